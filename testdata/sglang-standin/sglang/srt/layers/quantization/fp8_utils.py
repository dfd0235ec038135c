from sglang.kernels.ops.quantization.fp8_kernel import w8a8_block_fp8_matmul_triton


def aiter_w8a8_block_fp8_linear(input, weight, block_size, weight_scale, input_scale=None, bias=None):
    raise NotImplementedError


def triton_w8a8_block_fp8_linear(input, weight, block_size, weight_scale, input_scale=None, bias=None):
    return w8a8_block_fp8_matmul_triton(input, weight, None, weight_scale, block_size)


def deepgemm_w8a8_block_fp8_linear_with_fallback(input, weight, block_size, weight_scale, input_scale=None, bias=None):
    return 10.0


def dispatch_w8a8_block_fp8_linear(backend="triton"):
    return triton_w8a8_block_fp8_linear if backend == "triton" else deepgemm_w8a8_block_fp8_linear_with_fallback
