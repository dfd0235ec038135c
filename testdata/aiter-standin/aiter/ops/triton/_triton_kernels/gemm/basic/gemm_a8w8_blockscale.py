from aiter.ops.triton.utils.gemm_config_utils import get_gemm_config


def _get_config(M, N, K):
    return get_gemm_config("GEMM-A8W8_BLOCKSCALE", M, N, K)
