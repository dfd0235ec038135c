"""The overlay's fused-MoE tables on a module that looks rows up as SGLang's does."""

import json
import os
import sys
import tempfile
import types
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "overlay"))

from gemmtune_overlay import moe_tables

ROW = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1, "num_warps": 4, "num_stages": 4}
STEM = "E=128,N=768,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128]"


class Recorder:
    def __init__(self):
        self.records, self.errors, self.ranks = [], [], []

    def once(self, record):
        self.records.append(record)

    def error(self, where, error):
        self.errors.append((where, str(error)))

    def rank(self, rank, world, expert=None):
        self.ranks.append((rank, world, expert))


def config_module():
    """`get_config_file_name` and the look-up, with SGLang's signatures."""
    module = types.ModuleType("fused_moe_triton_config")

    def get_config_file_name(E, N, dtype, block_shape=None, per_channel_quant=False, down_moe=False):
        block = f",block_shape={block_shape}" if block_shape else ""
        return f"E={E},N={N},device_name=NVIDIA_H200,dtype={dtype}{block}{'_down' if down_moe else ''}.json"

    def try_get_optimal_moe_config(
        w1_shape, w2_shape, top_k, dtype, M, is_marlin=False, block_shape=None, per_channel_quant=False,
        return_down_config=False,
    ):  # fmt: skip
        shipped = {"BLOCK_SIZE_M": 64}
        return (shipped, (None, None)) if return_down_config else shipped

    module.get_config_file_name = get_config_file_name
    module.try_get_optimal_moe_config = try_get_optimal_moe_config
    return module


class Tables(unittest.TestCase):
    def setUp(self):
        keep = tempfile.TemporaryDirectory()
        self.addCleanup(keep.cleanup)
        self.folder, self.recorder, self.module = keep.name, Recorder(), config_module()
        torch = types.ModuleType("torch")
        torch.compiler = types.SimpleNamespace(is_compiling=lambda: False)
        before = sys.modules.get("torch")
        sys.modules["torch"] = torch
        self.addCleanup(lambda: sys.modules.pop("torch") if before is None else sys.modules.update(torch=before))

    def write(self, up, down):
        for suffix, table in (("", up), ("_down", down)):
            if table is not None:
                with open(os.path.join(self.folder, f"{STEM}{suffix}.json"), "w", encoding="utf-8") as file:
                    json.dump(table, file)

    def asked(self, m, experts=128, **more):
        moe_tables.patch(self.module, self.folder, self.recorder)
        more.setdefault("return_down_config", True)
        return self.module.try_get_optimal_moe_config(
            (experts, 1536, 2048), (experts, 2048, 768), 8, "fp8_w8a8", m, block_shape=[128, 128], **more
        )

    def served(self):
        return [record["served_moe"] for record in self.recorder.records if "served_moe" in record]

    def test_the_nearest_row_of_both_tables_is_answered_and_recorded(self):
        wide = {**ROW, "BLOCK_SIZE_N": 128}
        self.write({"1": ROW, "64": {**ROW, "num_warps": 8}}, {"1": wide, "64": {**wide, "BLOCK_SIZE_M": 16}})
        self.assertEqual(self.asked(4), (ROW, (wide, 16)))
        self.assertEqual(self.asked(40, return_down_config=False)["num_warps"], 8)
        first = self.served()[0]
        self.assertEqual((first["E"], first["N"], first["M"], first["key"]), (128, 768, 4, 1))
        self.assertEqual((first["source"], first["down"]), ("injected", wide))
        self.assertEqual(self.recorder.errors, [])

    def test_a_process_says_which_rank_it_is_when_it_is_served(self):
        self.write({"1": ROW}, {"1": ROW})
        self.asked(4)
        self.assertEqual(len(self.recorder.ranks), 1)

    def test_what_is_answered_may_be_taken_apart(self):
        tma = {**ROW, "USE_TMA": True}
        self.write({"1": ROW}, {"1": tma})
        self.asked(1)[1][0].pop("USE_TMA")
        self.assertEqual(self.asked(1)[1][0], tma, "the next caller gets a row of its own")

    def test_what_the_folder_has_no_table_for_is_left_to_sglang(self):
        self.write({"1": ROW}, {"1": ROW})
        self.assertEqual(self.asked(4, experts=64)[0], {"BLOCK_SIZE_M": 64})
        self.assertEqual(self.served()[0]["source"], "sglang")

    def test_a_pair_that_cannot_be_right_is_refused_and_said(self):
        other = {**ROW, "BLOCK_SIZE_M": 32}
        for down, word in ((None, "missing"), ({"2": ROW}, "rows"), ({"1": other}, "BLOCK_SIZE_M")):
            with self.subTest(word=word):
                self.recorder.errors.clear()
                for name in os.listdir(self.folder):
                    os.remove(os.path.join(self.folder, name))
                self.module = config_module()
                self.write({"1": ROW}, down)
                self.assertEqual(self.asked(1)[0], {"BLOCK_SIZE_M": 64}, "SGLang's own row serves")
                self.assertIn(word, self.recorder.errors[0][1])


if __name__ == "__main__":
    unittest.main()
