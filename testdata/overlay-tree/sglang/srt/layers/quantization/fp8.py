from sglang.srt.layers.quantization.fp8_utils import (
    aiter_w8a8_block_fp8_linear,
    dispatch_w8a8_block_fp8_linear,
    use_aiter_triton_gemm_w8a8_tuned_gfx950,
)


def shuffles_weight(n, k):
    return not use_aiter_triton_gemm_w8a8_tuned_gfx950(n, k)
