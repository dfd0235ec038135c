from aiter import gemm_a8w8_blockscale as ck_gemm_a8w8_blockscale
from aiter import triton as triton_gemm_a8w8_blockscale
from sglang.srt.distributed import parallel_state
from sglang.srt.layers.quantization.fp8_kernel import w8a8_block_fp8_matmul_triton
from torch import Tensor


def use_aiter_triton_gemm_w8a8_tuned_gfx950(n, k):
    return True


def aiter_w8a8_block_fp8_linear(input, weight, block_size, weight_scale, input_scale=None, bias=None):
    m = input.numel() // input.shape[-1]
    op = triton_gemm_a8w8_blockscale if use_aiter_triton_gemm_w8a8_tuned_gfx950(*weight.shape) else ck_gemm_a8w8_blockscale
    return op(Tensor(m, input.shape[-1]), weight, input_scale or Tensor(m, 8, dtype="view"), weight_scale)


def dispatch_w8a8_block_fp8_linear():
    return aiter_w8a8_block_fp8_linear
