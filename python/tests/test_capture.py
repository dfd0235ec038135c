"""What is counted below SGLang's block-FP8 linears, whichever the server takes."""

import os
import sys
import types
import unittest
from unittest import mock

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "overlay"))
from gemmtune_overlay import capture, settings


class Tensor:
    def __init__(self, *shape):
        self.shape, self.dtype = shape, "torch.float8_e4m3fn"


class Recorder:
    def __init__(self):
        self.counted, self.errors = [], []

    def count(self, key):
        self.counted.append({name: value for name, value in key if name in ("op", "M", "N", "K")})

    def once(self, record):
        pass

    def rank(self, rank, world):
        pass

    def error(self, where, error):
        self.errors.append(f"{where}: {error}")


def kernels():
    """SGLang's GEMMs for quantised operands."""

    def w8a8_block_fp8_matmul_triton(A, B, As, Bs, block_size, output_dtype=None):
        return "triton"

    def w8a8_block_fp8_matmul_deepgemm(A, B, As, Bs, block_size, output_dtype):
        return "deepgemm"

    return types.SimpleNamespace(__name__="sglang.fp8_kernel", **locals())


def linears(kernel):
    """SGLang's linears, in the form of 0.5.16."""

    def aiter_w8a8_block_fp8_linear(input, weight, block_size, weight_scale, input_scale=None, bias=None):
        return "aiter"

    def triton_w8a8_block_fp8_linear(input, weight, block_size, weight_scale, input_scale=None, bias=None):
        return kernel.w8a8_block_fp8_matmul_triton(input, weight, None, weight_scale, block_size)

    def deepgemm_w8a8_block_fp8_linear_with_fallback(
        input, weight, block_size, weight_scale, input_scale=None, bias=None
    ):
        return kernel.w8a8_block_fp8_matmul_deepgemm(input, weight, None, weight_scale, block_size, "bf16")

    def cutlass_w8a8_block_fp8_linear_with_fallback(
        input, weight, block_size, weight_scale, input_scale=None, bias=None
    ):
        if weight.shape[0] % 128:
            return triton_w8a8_block_fp8_linear(input, weight, block_size, weight_scale)
        return "cutlass"

    return types.SimpleNamespace(__name__="sglang.fp8_utils", **locals())


class Captures(unittest.TestCase):
    def setUp(self):
        compiler = types.SimpleNamespace(is_compiling=lambda: False)
        torch = types.SimpleNamespace(compiler=compiler)
        patched = mock.patch.dict(sys.modules, {"torch": torch})
        patched.start()
        self.addCleanup(patched.stop)
        self.recorder = Recorder()
        wanted = settings.Settings({settings.DUMP_SHAPES: "1"})
        self.kernel = kernels()
        capture.patch_fp8_kernel(self.kernel, wanted, self.recorder)
        self.utils = linears(self.kernel)
        capture.patch_fp8_utils(self.utils, wanted, self.recorder)

    def counted_by(self, name, n=256):
        answer = getattr(self.utils, name)(
            input=Tensor(4, 512), weight=Tensor(n, 512), block_size=[128, 128], weight_scale=None
        )
        return answer, self.recorder.counted

    def test_each_linear_is_counted_once_whatever_computes_it(self):
        for name, answer in (
            ("triton_w8a8_block_fp8_linear", "triton"),
            ("deepgemm_w8a8_block_fp8_linear_with_fallback", "deepgemm"),
            ("cutlass_w8a8_block_fp8_linear_with_fallback", "cutlass"),
        ):
            self.recorder.counted.clear()
            expected = [{"op": "w8a8_block_fp8_matmul", "M": 4, "N": 256, "K": 512}]
            self.assertEqual(self.counted_by(name), (answer, expected), name)
        self.assertEqual(self.recorder.errors, [])

    def test_a_linear_that_falls_back_is_not_counted_twice(self):
        answer, counted = self.counted_by("cutlass_w8a8_block_fp8_linear_with_fallback", n=200)
        self.assertEqual((answer, len(counted)), ("triton", 1))
        # The GEMM that it fell back to is counted again where it is called for itself.
        answer, counted = self.counted_by("triton_w8a8_block_fp8_linear")
        self.assertEqual((answer, len(counted)), ("triton", 2))
