import aiter
from aiter import gemm_a8w8_bpreshuffle
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


def apply_fp8_linear(input, weight, weight_scale, use_per_token_if_dynamic=False):
    if not use_per_token_if_dynamic:
        return "torch"
    transposed = Tensor(*reversed(weight.shape))
    return gemm_a8w8_bpreshuffle(XQ=input, WQ=transposed, x_scale=None, w_scale=weight_scale)


def apply_fp8_ptpc_linear(input, weight, weight_scale):
    if isinstance(input, tuple):
        return aiter.gemm_a8w8_bpreshuffle(input[0], weight, input[1], weight_scale, None, "bf16")
    return aiter.gemm_a8w8_bpreshuffle(input, weight, None, weight_scale, None, "bf16")
