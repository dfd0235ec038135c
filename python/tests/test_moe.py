"""Fused MoE: what is lifted, what is launched and what is refused. Without torch and without a device."""

import os
import tempfile
import types
import unittest

from gpu_worker import tree
from gpu_worker.compilers import Compiled
from gpu_worker.moe import lift
from gpu_worker.moe.bench import Refused
from gpu_worker.moe.plan import POINTERS, Target, plan, rows_allocated
from gpu_worker.moe.problem import DOWN, UP, MoeProblem
from gpu_worker.moe.serving import Task, _lifted, _when_all
from gpu_worker.moe.whole import LOOKUP, AsServed, Whole
from gpu_worker.plan import Unsupported

PARAMETERS = (
    *POINTERS,
    *(
        "a_desc",
        "b_desc",
        "bias_ptr",
        "N",
        "K",
        "EM",
        "num_valid_tokens",
        "stride_am",
        "stride_ak",
        "stride_be",
        "stride_bk",
    ),
    *(
        "stride_bn",
        "stride_bias_e",
        "stride_bias_n",
        "stride_cm",
        "stride_cn",
        "stride_asm",
        "stride_ask",
        "stride_bse",
    ),
    *("stride_bsk", "stride_bsn", "group_n", "group_k", "BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M"),
    *("MUL_ROUTED_WEIGHT", "top_k", "compute_type", "use_fp8_w8a8", "use_int8_w8a8", "use_int8_w8a16"),
    *("per_channel_quant", "even_Ks", "c_sorted", "filter_expert", "swap_ab"),
)
"""The kernel's parameters in SGLang 0.5.9, in another order."""

ROW = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1, "num_warps": 4, "num_stages": 4}
QWEN = MoeProblem(tokens=4, experts=128, topk=8, hidden=2048, inter=768)


def target(parameters=PARAMETERS, arch="sm_90", release=(0, 5, 16)):
    return Target("kernel.py", tuple(parameters), arch, release)


class Plans(unittest.TestCase):
    def test_both_gemms_of_a_moe_are_launched_as_sglang_does(self):
        up = plan(target(), QWEN, UP, ROW)
        self.assertEqual((dict(up.scalars)["N"], dict(up.scalars)["K"]), (1536, 2048))
        self.assertEqual((dict(up.constants)["top_k"], dict(up.constants)["MUL_ROUTED_WEIGHT"]), (8, False))
        down = plan(target(), QWEN, DOWN, ROW)
        self.assertEqual((dict(down.scalars)["N"], dict(down.scalars)["K"]), (2048, 768))
        self.assertEqual((dict(down.constants)["top_k"], dict(down.constants)["MUL_ROUTED_WEIGHT"]), (1, True))
        # 32 pairs are fewer than 128 experts: a block for each pair, and no more.
        self.assertEqual(up.grid, (32 * (1536 // 64),))

    def test_the_sorted_routing_is_as_long_as_the_release_allocates(self):
        many = MoeProblem(tokens=64, experts=128, topk=8, hidden=2048, inter=768)
        for problem, release, rows in [
            (QWEN, (0, 5, 8), 32 + 129 * 15),
            (QWEN, (0, 5, 9), 32 * 16),
            (many, (0, 5, 16), 512 + 129 * 15),
            (many, (0, 5, 22), 512 + 129 * 15 + 1),
        ]:
            self.assertEqual(rows_allocated(problem, 16, release), rows, release)

    def test_a_scale_block_is_never_stepped_over(self):
        with self.assertRaisesRegex(Unsupported, "numbers would be wrong"):
            plan(target(), QWEN, UP, {**ROW, "BLOCK_SIZE_K": 256})

    def test_operands_are_swapped_where_the_runtime_swaps_them(self):
        swapped = lambda **other: dict(plan(target(**other), QWEN, UP, ROW).constants).get("swap_ab")
        self.assertTrue(swapped())
        self.assertFalse(swapped(arch="sm_89"))
        self.assertIsNone(swapped(parameters=[name for name in PARAMETERS if name != "swap_ab"]))
        wide = plan(target(), QWEN, UP, {**ROW, "BLOCK_SIZE_M": 64})
        self.assertFalse(dict(wide.constants)["swap_ab"])

    def test_a_parameter_of_a_later_release_is_refused_by_name(self):
        with self.assertRaisesRegex(Unsupported, "`FUSE_EVERYTHING`"):
            plan(target(parameters=(*PARAMETERS, "FUSE_EVERYTHING")), QWEN, UP, ROW)

    def test_every_token_goes_to_a_fused_shared_expert(self):
        deepseek = MoeProblem(tokens=1, experts=257, topk=9, hidden=7168, inter=256, shared=1)
        self.assertEqual(deepseek.experts_hit(), 9)
        self.assertEqual(MoeProblem(4, 257, 9, 7168, 256, shared=1).experts_hit(), 33)
        self.assertEqual(MoeProblem(4096, 257, 9, 7168, 256, shared=1).experts_hit(), 257)

    def test_the_down_projection_is_handed_the_routers_topk_as_sglang_does(self):
        constants = lambda gemm: dict(plan(target((*PARAMETERS, "ROUTER_TOPK")), QWEN, gemm, ROW).constants)
        self.assertEqual((constants(UP)["ROUTER_TOPK"], constants(DOWN)["ROUTER_TOPK"]), (1, 8))
        self.assertNotIn("ROUTER_TOPK", dict(plan(target(), QWEN, DOWN, ROW).constants))


class Tasks(unittest.TestCase):
    SHAPE = {"op": "fused_moe_triton", "E": 128, "N": 768, "K": 2048, "topk": 8, "shared": 0, "M": 4}

    def task(self, **more):
        return Task.read({**self.SHAPE, **more}, "float8_e4m3fn")

    def test_a_gemm_is_raced_under_its_own_block_size_only(self):
        task = self.task(part="down", block_m=16)
        self.assertEqual(task.problem, QWEN)
        self.assertEqual(task.unit(ROW), ((DOWN, ROW),))
        with self.assertRaisesRegex(Refused, "not 16"):
            task.unit({**ROW, "BLOCK_SIZE_M": 32})

    def test_the_whole_runs_both_rows_and_without_a_down_row_the_up_row_twice(self):
        task, wide = self.task(part="whole"), {**ROW, "BLOCK_SIZE_N": 128}
        self.assertEqual(task.unit({"up": ROW, "down": wide}), ((UP, ROW), (DOWN, wide)))
        self.assertEqual(task.unit({"up": ROW, "down": None}), ((UP, ROW), (DOWN, ROW)))
        with self.assertRaisesRegex(Refused, "share one sort"):
            task.unit({"up": ROW, "down": {**ROW, "BLOCK_SIZE_M": 32}})

    def test_use_tma_is_for_the_runtime_and_never_reaches_the_kernel(self):
        self.assertEqual(_lifted(((UP, {**ROW, "USE_TMA": True}),)), ((UP, ROW),))

    def test_a_pair_is_prepared_when_both_are_and_refused_with_the_first_refusal(self):
        for second, outcome in (
            ({"seconds": 2.0, "shared": 1}, "done"),
            ({"refused": "compile_failed", "detail": "no", "seconds": 0.1}, "refused"),
        ):
            asked, heard = [(Compiled(), False), (Compiled(), True)], []
            _when_all(asked, heard.append)
            asked[1][0].finish(second)
            self.assertEqual(heard, [])
            asked[0][0].finish({"seconds": 1.0, "shared": 1})
            self.assertEqual([one["outcome"] for one in heard], [outcome])


class Wholes(unittest.TestCase):
    def test_sglangs_look_up_gets_new_rows_each_time(self):
        module = types.ModuleType("fused_moe")
        module.fused_experts = lambda hidden, *_, **__: getattr(module, LOOKUP)(
            None, None, 8, "fp8_w8a8", 4, block_shape=[128, 128], return_down_config=True
        )
        whole = Whole(module, lambda *_: None, lambda **_: None)
        operands = types.SimpleNamespace(
            routes=[(None, None)], weights={UP: (None, None), DOWN: (None, None)}, problem=QWEN, hidden=None
        )
        down = {**ROW, "USE_TMA": True}
        for _ in range(2):
            up_row, (down_row, largest) = whole.run(operands, {"up": ROW, "down": down}, 0)
            self.assertEqual((up_row, down_row, largest), (ROW, down, 16))
            down_row.pop("USE_TMA")
        self.assertEqual(whole.run(operands, {"up": ROW, "down": None}, 0), (ROW, (None, 16)))

    def test_the_rows_that_a_look_up_answered_are_those_it_answered_and_not_what_callers_leave_of_them(self):
        down = {**ROW, "USE_TMA": True}
        module = types.ModuleType("fused_moe")
        setattr(module, LOOKUP, lambda *_, return_down_config, **__: (dict(ROW), (dict(down), 16)))

        def fused_experts(*_, **__):
            _, (answered, _) = getattr(module, LOOKUP)(None, None, 8, "fp8_w8a8", 4, return_down_config=True)
            answered.pop("USE_TMA")

        module.fused_experts = fused_experts
        served = AsServed(module, lambda *_: None, lambda **_: None)
        operands = types.SimpleNamespace(
            routes=[(None, None)], weights={UP: (None, None), DOWN: (None, None)}, problem=QWEN, hidden=None
        )
        served.run(operands, None, 0)
        self.assertEqual(served.rows, {"up": ROW, "down": down})


class Lifted(unittest.TestCase):
    def test_the_kernel_is_taken_with_what_it_calls_and_nothing_else(self):
        text = (
            "import torch\nfrom sglang.srt.utils import is_hip\n\n\ndef other():\n    return torch.empty(1)\n\n\n"
            "@triton.jit\ndef write_zeros(c_ptr):\n    tl.store(c_ptr, 0)\n\n\n"
            "@triton.jit\ndef fused_moe_kernel(a_ptr, c_ptr):\n    write_zeros(c_ptr)\n"
        )
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, lift.LOCATIONS[0])
            os.makedirs(os.path.dirname(path))
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            found = lift.moe_kernel(folder)
            self.assertEqual(found.origin, lift.LOCATIONS[0])
            self.assertIn("def write_zeros", found.text)
            self.assertNotIn("torch", found.text)
            with open(found.write(folder), encoding="utf-8") as file:
                self.assertEqual(file.read(), found.text)

    def test_a_tree_without_the_kernel_is_refused(self):
        with tempfile.TemporaryDirectory() as folder, self.assertRaises(tree.TreeError):
            lift.moe_kernel(folder)


if __name__ == "__main__":
    unittest.main()
