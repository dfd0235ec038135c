"""The program that tries aiter's fused MoE, on the played torch and the played aiter of `tests/rocm/site`."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
TAG = "gemmtune-aiter-probe: "


class Probe(unittest.TestCase):
    def setUp(self):
        keep = tempfile.TemporaryDirectory()
        self.addCleanup(keep.cleanup)
        self.folder = keep.name
        for part in ("tests/aiter/standin/aiter", "tests/rocm/site/aiter/aiter"):
            shutil.copytree(os.path.join(ROOT, part), os.path.join(self.folder, "aiter"), dirs_exist_ok=True)
        shutil.copytree(os.path.join(ROOT, "tests/rocm/site/torch/torch"), os.path.join(self.folder, "torch"))
        for name, to in (("fused_moe.py", "fused_moe.py"), ("probe.py", "gemmtune_probe.py")):
            shutil.copy(os.path.join(ROOT, "python/aiter_probe", name), os.path.join(self.folder, to))

    def asked(self, tasks, times=False, **env):
        with open(os.path.join(self.folder, "order.json"), "w", encoding="utf-8") as file:
            json.dump({"tasks": tasks, "is_shuffled": False, "times": list(range(len(tasks))) if times else []}, file)
        ran = subprocess.run(
            [sys.executable, os.path.join(self.folder, "fused_moe.py"), os.path.join(self.folder, "order.json")],
            env={**os.environ, "HOME": self.folder, "PYTHONPATH": self.folder, **env},
            capture_output=True,
            text=True,
        )
        lines = [json.loads(line[len(TAG) :]) for line in ran.stdout.splitlines() if line.startswith(TAG)]
        return [line["done"] for line in lines if "done" in line], ran.stderr

    def task(self, m, **more):
        return {"E": 3, "N": 128, "K": 256, "topk": 2, "M": m, **more}

    def test_numbers_are_right_with_and_without_a_shared_expert_and_a_mask(self):
        tasks = [self.task(3), self.task(3, shared=1), self.task(6, experts_of_all=6)]
        answers, said = self.asked(tasks)
        self.assertEqual(len(answers), 3, said)
        for answer in answers:
            self.assertIsNone(answer["said"])
            self.assertLess(answer["error"], 0.02)

    def test_a_wrong_kernel_is_found_out_and_the_times_are_of_all_that_runs(self):
        row = "304,4,256,128,3,2,ActivationType.Silu,torch.bfloat16,torch.float8_e4m3fnuz,torch.float8_e4m3fnuz,QuantType.per_1x128,1,0"
        with open(os.path.join(self.folder, "aiter/configs/tuned_fmoe.csv"), encoding="utf-8") as file:
            header = file.readline()
        table = os.path.join(self.folder, "t.csv")
        with open(table, "w", encoding="utf-8") as file:
            file.write(f"{header}{row},32,0,1,standin_stage1_32,0.0%,1,standin_stage2_32,0.0%,2,0,1,1,\n")
        named = {"AITER_CONFIG_FMOE": table}
        (right,), said = self.asked([self.task(3)], times=True, **named)
        self.assertIn("kernelName1='standin_stage1_32'", said)
        self.assertEqual((len(right["us"]), right["clock"]), (6, "device"))
        (slower,), _ = self.asked([self.task(3)], times=True, PLAYED_BETWEEN="302", **named)
        self.assertAlmostEqual(min(slower["us"]) - min(right["us"]), 300, delta=5)
        (wrong,), _ = self.asked([self.task(3)], STANDIN_WRONG="standin_stage2", **named)
        self.assertGreater(wrong["error"], 0.3)


if __name__ == "__main__":
    unittest.main()
