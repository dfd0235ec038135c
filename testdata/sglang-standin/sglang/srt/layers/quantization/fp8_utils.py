from sglang.kernels.ops.quantization.fp8_kernel import (
    sglang_per_token_group_quant_fp8,
    w8a8_block_fp8_matmul_deepgemm,
    w8a8_block_fp8_matmul_triton,
)


try:
    from aiter.ops.triton.gemm.basic.gemm_a8w8_blockscale import gemm_a8w8_blockscale as triton_gemm_a8w8_blockscale
except ImportError:  # no ROCm
    triton_gemm_a8w8_blockscale = None


def aiter_w8a8_block_fp8_linear(input, weight, block_size, weight_scale, input_scale=None, bias=None):
    q_input, x_scale = sglang_per_token_group_quant_fp8(input, block_size[1], column_major_scales=False)
    return triton_gemm_a8w8_blockscale(q_input, weight, x_scale, weight_scale, dtype=input.dtype)


def triton_w8a8_block_fp8_linear(input, weight, block_size, weight_scale, input_scale=None, bias=None):
    q_input, x_scale = sglang_per_token_group_quant_fp8(input, block_size[1], column_major_scales=False)
    return w8a8_block_fp8_matmul_triton(q_input, weight, x_scale, weight_scale, block_size, output_dtype=input.dtype)


def deepgemm_w8a8_block_fp8_linear_with_fallback(input, weight, block_size, weight_scale, input_scale=None, bias=None):
    if weight.shape[0] % 64 or weight.shape[1] % 128:
        return triton_w8a8_block_fp8_linear(input, weight, block_size, weight_scale, input_scale, bias)
    q_input, x_scale = sglang_per_token_group_quant_fp8(
        input, block_size[1], column_major_scales=True, scale_tma_aligned=True
    )
    return w8a8_block_fp8_matmul_deepgemm(q_input, weight, x_scale, weight_scale, block_size, output_dtype=input.dtype)


def cutlass_w8a8_block_fp8_linear_with_fallback(input, weight, block_size, weight_scale, input_scale=None, bias=None):
    if weight.shape[0] % 128 or weight.shape[1] % 128:
        return triton_w8a8_block_fp8_linear(input, weight, block_size, weight_scale, input_scale, bias)
    return input.new_empty((input.shape[0], weight.shape[0]), dtype=input.dtype)


def dispatch_w8a8_block_fp8_linear(backend="triton"):
    if backend == "aiter":
        return aiter_w8a8_block_fp8_linear
    if backend == "cutlass":
        return cutlass_w8a8_block_fp8_linear_with_fallback
    return triton_w8a8_block_fp8_linear if backend == "triton" else deepgemm_w8a8_block_fp8_linear_with_fallback
