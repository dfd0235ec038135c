"""Texts by which gemmtune recognises what an aiter tree can do, as they stand in `aiter/jit/core.py` of 303a583c."""

VARIABLES = (
    "AITER_CONFIG_GEMM_A8W8_BLOCKSCALE",
    "AITER_CONFIG_GEMM_A8W8_BLOCKSCALE_BPRESHUFFLE",
    "AITER_CONFIG_GEMM_A8W8_BPRESHUFFLE",
    "AITER_CONFIG_FMOE",
)
CAPABILITIES = """/tmp/aiter_configs Auto-resolved aiter_tensor_t"""
