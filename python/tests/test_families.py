"""Kernel families: what is there, what a setting means, which settings are raced. Kernels themselves need a GPU."""

import itertools
import os
import re
import types
import unittest

from gpu_worker.bench import family_of
from gpu_worker.families import Families, Unavailable, stream
from gpu_worker.families.stream import Stream
from gpu_worker.families.stream_wg import StreamWg
from gpu_worker.plan import Problem, Unsupported

H200 = {"arch": "sm_90", "cu_num": 132, "smem_bytes": 232448}
CUDA = types.SimpleNamespace(version=types.SimpleNamespace(hip=None), bfloat16="bf16", __version__="2.11.0")


def problem(m, n, k):
    return Problem(m, n, k, "float8_e4m3fn")


def combinations():
    """Settings of both streaming families over the whole of their values, with the eights of rows of A."""
    values = {"PERSISTENT": (0, 1), "DEPTH": (2, 3), "CLUSTER": (1, 4), "BLOCKS": (1, 2), "ROW_TILES": (1, 2, 3, 4)}
    for family in (Stream, StreamWg):
        chosen = itertools.product(*(values.get(name, (1, 2, 4)) for name in family.names))
        for one in chosen:
            for tiles in (1, 2, 3, 4):
                yield family, dict(zip(family.names, one)), tiles


class WhatIsThere(unittest.TestCase):
    def test_a_family_that_is_not_installed_is_named_with_the_reason(self):
        families = Families(CUDA, H200, "/nowhere")
        said = families.document(["deepgemm", "nonsense"])
        self.assertIn("deep_gemm cannot be imported", said["deepgemm"]["unavailable"])
        self.assertIn("no family is called `nonsense`", said["nonsense"]["unavailable"])
        with self.assertRaises(Unavailable):
            families.open("deepgemm")

    def test_the_streaming_kernels_say_which_device_they_are_not_for(self):
        for arch, family, words in (("sm_80", "stream", "no FP8"), ("sm_89", "stream-wg", "is for sm_90")):
            said = Families(CUDA, {**H200, "arch": arch}, "/nowhere").document([family])
            self.assertIn(words, said[family]["unavailable"])
        on_amd = types.SimpleNamespace(version=types.SimpleNamespace(hip="7.0"))
        said = Families(on_amd, {**H200, "arch": "gfx942"}, "/nowhere").document(["stream", "cublaslt"])
        self.assertTrue(all("unavailable" in one for one in said.values()))

    def test_a_candidate_without_a_family_is_the_triton_kernels(self):
        self.assertEqual(family_of({"BLOCK_SIZE_M": 16}), ("triton", {"BLOCK_SIZE_M": 16}))
        self.assertEqual(family_of({"family": "deepgemm"}), ("deepgemm", {}))


def defines(family):
    """The source's own macros as Python expressions, by name."""
    path = os.path.join(os.path.dirname(stream.__file__), family.source_file)
    with open(path, encoding="utf-8") as file:
        lines = re.findall(r"^#define ([A-Z0-9_]+) (.+?)(?:\s*//.*)?$", file.read(), re.MULTILINE)
    choice = re.compile(r"\((.+) \? (.+) : (.+)\)")
    return {name: choice.sub(r"((\2) if (\1) else (\3))", text).replace("/", "//") for name, text in lines}


class SharedMemory(unittest.TestCase):
    """What the launch asks for is what the source lays out: one byte less is a fault on the device."""

    def used(self, family, setting, tiles, expression):
        texts = defines(family)
        values = dict(family.macros(setting, tiles))

        class Names(dict):
            def __missing__(self, name):
                return eval(texts[name], {"__builtins__": {}}, self)

        return eval(expression, {"__builtins__": {}}, Names(values))

    def test_the_first_kernel(self):
        self.check(Stream, "DEPTH * STAGE_BYTES + BUFFERS * WARPS_N * WARPS_K * TOKENS * PITCH * 4")

    def test_the_kernel_of_warpgroups(self):
        self.check(StreamWg, "GROUPS_K * GROUPS_N * (GROUP_BYTES + BUFFERS * TOKENS * PITCH * 4)")

    def check(self, family, expression):
        for index, (one, setting, tiles) in enumerate(combinations()):
            if one is family and index % 5 == 0:
                self.assertEqual(
                    family.shared_bytes(setting, tiles), self.used(family, setting, tiles, expression), setting
                )


class FakeTensor:
    dtype = "bf16"

    def __init__(self, *strides):
        self.strides = strides

    def data_ptr(self):
        return 4096

    def stride(self, axis):
        return self.strides[axis]


class FakeKernel:
    def __init__(self):
        self.bound = []

    def bind(self, blocks, arguments):
        self.bound.append((blocks, [one.value for one in arguments[5:]]))
        return lambda stream: None


class Launches(unittest.TestCase):
    SETTING = {"ROW_TILES": 2, "WARPS_K": 8, "WARPS_N": 1, "CLUSTER": 2, "DEPTH": 1, "BLOCKS": 1, "PERSISTENT": 0}

    def bound(self, setting, scale):
        torch = types.SimpleNamespace(**vars(CUDA), cuda=types.SimpleNamespace(current_stream=None))
        family, kernel = Stream(torch, H200, "/nowhere"), FakeKernel()
        family._kernel = lambda *_: kernel
        operands = types.SimpleNamespace(
            a=FakeTensor(), out=FakeTensor(), a_scale=scale, weights=[(FakeTensor(), FakeTensor())] * 2
        )
        family.launch(problem(4, 24576, 4096), operands, setting, [128, 128])
        self.assertEqual(len(kernel.bound), 2)
        return kernel.bound[0]

    def test_scales_of_a_may_lie_by_rows_or_by_columns(self):
        self.assertEqual(self.bound(self.SETTING, FakeTensor(32, 1)), (2 * 768, [4, 24576, 4096, 32, 1, 768]))
        self.assertEqual(self.bound(self.SETTING, FakeTensor(1, 4)), (2 * 768, [4, 24576, 4096, 1, 4, 768]))

    def test_persistent_blocks_are_as_many_as_are_resident(self):
        blocks, _ = self.bound({**self.SETTING, "PERSISTENT": 1}, FakeTensor(32, 1))
        self.assertEqual(blocks, 132)

    def test_what_a_kernel_does_not_take_is_said(self):
        family = Stream(CUDA, H200, "/nowhere")
        for m, n, k, setting, words in (
            (17, 4096, 4096, self.SETTING, "up to 16 rows"),
            (1, 4096, 4160, self.SETTING, "K in 128s"),
            (1, 4096, 4096, {**self.SETTING, "BLOCK_SIZE_M": 16}, "sets ROW_TILES"),
            (16, 4096, 4096, {**self.SETTING, "WARPS_K": 16, "ROW_TILES": 4, "DEPTH": 3}, "shared memory"),
        ):
            with self.assertRaisesRegex(Unsupported, words):
                family.prepare(problem(m, n, k), setting)
        ada = Stream(CUDA, {**H200, "arch": "sm_89"}, "/nowhere")
        with self.assertRaisesRegex(Unsupported, "no clusters"):
            ada.prepare(problem(1, 4096, 4096), self.SETTING)
