"""The route: which GEMM goes to which family, and what keeps one from going."""

import json
import os
import sys
import tempfile
import types
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "overlay"))
from gemmtune_overlay import route

ROWS = [
    {"N": 4096, "K": 4096, "min_M": 1, "max_M": 8, "family": "stream", "setting": {"DEPTH": 1}},
    {"N": 4096, "K": 4096, "min_M": 9, "max_M": 32, "family": "stream-wg", "setting": {}},
    {"N": 4096, "K": 4096, "min_M": 1000, "max_M": 1100, "family": "cublaslt", "setting": {}},
]


class Tensor:
    def __init__(self, *shape, dtype="fp8", strides=None):
        self.shape, self.dtype = shape, dtype
        self.strides = strides or (shape[1], 1)

    def dim(self):
        return len(self.shape)

    def numel(self):
        return self.shape[0] * self.shape[1]

    def is_contiguous(self):
        return self.strides == (self.shape[1], 1)

    def t(self):
        return Tensor(*self.shape[::-1], dtype=self.dtype, strides=self.strides[::-1])

    def new_empty(self, shape, dtype):
        return Tensor(*shape, dtype=dtype)


class Recorder:
    def __init__(self):
        self.said, self.counted, self.errors = [], [], []

    def once(self, record):
        self.said.append(record)

    def count(self, key):
        self.counted.append(dict(key))

    def error(self, where, error):
        self.errors.append(f"{where}: {error}")


class Family:
    def __init__(self, name, broken=False):
        self.name, self.broken, self.launched = name, broken, []

    def launch(self, problem, operands, setting, block):
        if self.broken:
            raise RuntimeError("out of resources")
        self.launched.append((problem.m, setting, block))
        return lambda copy: setattr(operands.out, "by", self.name)


class Families:
    def __init__(self, **broken):
        self.made = {}
        self.broken = broken

    def open(self, name):
        return self.made.setdefault(name, Family(name, self.broken.get(name.replace("-", "_"), False)))


class Routes(unittest.TestCase):
    def setUp(self):
        self.capturing = False
        self.compiling = False
        self.torch = types.SimpleNamespace(
            float8_e4m3fn="fp8",
            bfloat16="bf16",
            float16="f16",
            float32="f32",
            compiler=types.SimpleNamespace(is_compiling=lambda: self.compiling),
            cuda=types.SimpleNamespace(
                is_current_stream_capturing=lambda: self.capturing,
                current_device=lambda: 0,
                get_device_name=lambda index: "NVIDIA H200",
                get_device_properties=lambda index: types.SimpleNamespace(multi_processor_count=132),
            ),
        )
        self.recorder = Recorder()
        self.families = Families()

    def router(self, raced_on=("NVIDIA H200", 132)):
        router = route.Router(self.torch, ROWS, self.recorder, self.families, raced_on=raced_on)
        return router.instead_of("w8a8_block_fp8_matmul_deepgemm", original)

    def call(self, routed, m, n=4096, k=4096, by_columns=True, dtype="bf16", block=(128, 128), scales="f32"):
        strides = (1, m) if by_columns else (k // 128, 1)
        a_scale = Tensor(m, k // 128, dtype=scales, strides=strides)
        b_scale = Tensor(-(-n // 128), k // 128, dtype=scales)
        return routed(Tensor(m, k), Tensor(n, k), a_scale, b_scale, list(block), output_dtype=dtype).by

    def test_each_gemm_goes_where_its_row_says_and_every_other_one_where_it_went(self):
        routed = self.router()
        went = [self.call(routed, m) for m in (1, 8, 9, 32, 33, 1024, 8192)]
        self.assertEqual(went, ["stream", "stream", "stream-wg", "stream-wg", "sglang", "cublaslt", "sglang"])
        self.assertEqual(self.call(routed, 1, n=6144), "sglang")
        self.assertEqual(self.families.made["stream"].launched[0], (1, {"DEPTH": 1}, (128, 128)))
        self.assertEqual(self.recorder.errors, [])

    def test_engagement_is_counted_by_family(self):
        routed = self.router()
        self.call(routed, 4)
        self.assertEqual(
            self.recorder.counted,
            [{"kernel": "w8a8_block_fp8_matmul_deepgemm", "target": "gemmtune:stream", "M": 4, "N": 4096, "K": 4096}],
        )

    def test_a_gemm_that_no_row_names_is_counted_as_what_it_was(self):
        routed = self.router()
        self.call(routed, 33)
        self.assertTrue(self.recorder.counted[0]["target"].endswith(":original"), self.recorder.counted)

    def test_a_row_of_the_triton_kernel_is_what_the_kernel_looks_up(self):
        asked = []

        def gemm(A, B, As, Bs, block_size, output_dtype):
            rows = module.get_w8a8_block_fp8_configs(*B.shape, *block_size)
            asked.append(rows)
            return types.SimpleNamespace(by="triton")

        module = types.SimpleNamespace(
            __name__="sglang.fp8_kernel",
            w8a8_block_fp8_matmul_triton=gemm,
            get_w8a8_block_fp8_configs=lambda N, K, block_n, block_k: {64: "shipped"},
        )
        rows = [{"N": 512, "K": 512, "min_M": 1, "max_M": 99, "family": "triton", "setting": {"num_warps": 8}}]
        router = route.Router(self.torch, rows, self.recorder, self.families, route.TritonRows(module))
        routed = router.instead_of("w8a8_block_fp8_matmul_deepgemm", original)
        self.assertEqual(self.call(routed, 40, n=512, k=512), "triton")
        self.assertEqual(self.recorder.counted[0]["target"], "gemmtune:triton")
        gemm(Tensor(40, 512), Tensor(512, 512), None, None, [128, 128], "bf16")
        self.assertEqual(asked, [{1: {"num_warps": 8}}, {64: "shipped"}])

    def test_operands_that_a_family_does_not_take_go_the_old_way_and_are_named(self):
        routed = self.router()
        wrong = ({"dtype": "f16"}, {"block": (64, 128)}, {"scales": "int32"})
        self.assertEqual([self.call(routed, 4, **one) for one in wrong], ["sglang"] * 3)
        self.assertEqual(len([one for one in self.recorder.said if not one["switch"]["ok"]]), 3)
        self.assertEqual(self.recorder.counted[0]["target"].rsplit(":", 1)[1], "original")

    def test_scales_by_rows_suit_the_kernels_that_take_any_stride_only(self):
        routed = self.router()
        self.assertEqual(self.call(routed, 4, by_columns=False), "stream")
        self.assertEqual(self.call(routed, 1024, by_columns=False), "sglang")

    def test_nothing_is_loaded_while_a_graph_is_captured(self):
        routed = self.router()
        self.capturing = True
        self.assertEqual(self.call(routed, 4), "sglang")
        self.capturing = False
        self.assertEqual(self.call(routed, 4), "stream")
        self.capturing = True
        self.assertEqual(self.call(routed, 4), "stream")

    def test_a_family_that_fails_is_left_alone_from_then_on(self):
        self.families = Families(stream=True)
        routed = self.router()
        self.assertEqual([self.call(routed, 4), self.call(routed, 4)], ["sglang", "sglang"])
        self.assertEqual(self.recorder.errors, ["w8a8_block_fp8_matmul_deepgemm: out of resources"])
        self.assertEqual(self.call(routed, 16), "stream-wg")

    def test_a_route_of_another_device_routes_nothing_and_says_so_once(self):
        for raced_on in (("NVIDIA H20", 78), ("NVIDIA H200", 114)):
            self.recorder = Recorder()
            routed = self.router(raced_on)
            self.assertEqual([self.call(routed, 4), self.call(routed, 16)], ["sglang", "sglang"])
            said = [one["switch"]["detail"] for one in self.recorder.said]
            self.assertEqual(len(said), 1)
            self.assertIn("served by NVIDIA H200 (132)", said[0])
        # A file from before multiprocessors were counted.
        self.assertEqual(self.call(self.router(("NVIDIA H200", None)), 4), "stream")

    def test_what_is_traced_by_the_compiler_is_left_to_sglang(self):
        routed = self.router()
        self.compiling = True
        self.assertEqual(self.call(routed, 4), "sglang")

    def test_a_file_of_another_format_changes_nothing(self):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump({"format": 2, "rows": []}, file)
            file.flush()
            with self.assertRaisesRegex(ValueError, "format 2"):
                route._read(file.name)


def original(A, B, As, Bs, block_size, output_dtype):
    return types.SimpleNamespace(by="sglang")
