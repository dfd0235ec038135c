"""What AMD's compiler says of a kernel, and what is said of jobs that it never saw."""

import contextlib
import os
import tempfile
import types
import unittest
import unittest.mock

from gpu_worker import offline, software
from gpu_worker.compile_child import registers

ASSEMBLY = """
    .vgpr_count:     12
    .vgpr_spill_count: 3
  - .name: kernel
    .vgpr_count:     240
    .vgpr_spill_count: 0
"""


class Registers(unittest.TestCase):
    def test_the_kernels_own_numbers_stand_last(self):
        self.assertEqual(registers(ASSEMBLY), {"registers": 240, "spilled": 0})

    def test_another_back_ends_kernel_has_none(self):
        self.assertEqual(registers(""), {})


class FakeCompilers:
    def __init__(self, setup, slots, deadline_s, start):
        self.asked = []
        self.setup = setup
        FakeCompilers.last = self

    def compile(self, key, job):
        self.asked.append(key)
        shared = job["candidate"]["BLOCK_SIZE_M"] * 1024
        return types.SimpleNamespace(
            wait=lambda: {"shared": shared, "registers": 240, "spilled": 0, "seconds": 1.0}
        ), False

    def close(self):
        pass


class FakeSource:
    text, configs, plain, tuned, reduce, origin, version, clamps_block_k, digest = (
        "",
        "",
        "kernel",
        None,
        None,
        "here",
        "0.5.16",
        False,
        "d",
    )

    def write(self, folder):
        return os.path.join(folder, "kernel.py")


def candidate(block_m, block_k=128):
    names = ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M", "num_warps", "num_stages")
    return dict(zip(names, (block_m, 64, block_k, 1, 4, 2)))


class Answers(unittest.TestCase):
    def answers(self, candidates):
        shape = {"op": "w8a8_block_fp8_matmul", "m": 64, "n": 4096, "k": 4096, "dtype": "torch.float8_e4m3fnuz"}
        jobs = [{"shape": shape, "candidate": one} for one in candidates]
        chosen = types.SimpleNamespace(
            target="gfx942", problem=None, sglang_root="/nowhere", aiter_root=None, slots=1, block=(128, 128)
        )
        fake_tree = types.SimpleNamespace(package_folder=lambda root: root, sglang_kernels=lambda _: FakeSource())
        fake_module = types.SimpleNamespace(kernel=types.SimpleNamespace(arg_names=["A"]))
        with contextlib.ExitStack() as replaced, tempfile.TemporaryDirectory() as scratch:
            for module, name, fake in (
                (offline, "Compilers", FakeCompilers),
                (offline, "take", lambda _: "3.6.0"),
                (software, "tree", fake_tree),
                (software, "load_module", lambda _: fake_module),
            ):
                replaced.enter_context(unittest.mock.patch.object(module, name, fake))
            return list(offline.answers(jobs, chosen, scratch))

    def test_each_job_is_answered_in_its_place(self):
        head, fits, large, wrong = self.answers([candidate(32), candidate(128), candidate(32, block_k=96)])
        self.assertEqual(head["shared_limit"], 65536)
        self.assertEqual((fits["candidate"], fits["registers"], fits["spilled"]), (candidate(32), 240, 0))
        self.assertEqual((large["refused"], large["detail"]), ("out_of_resources", "shared memory 131072 > 65536"))
        self.assertEqual(wrong["refused"], "unsupported")
        self.assertEqual(FakeCompilers.last.setup["target"], ["hip", "gfx942", 64])
        self.assertEqual(len(FakeCompilers.last.asked), 2)
