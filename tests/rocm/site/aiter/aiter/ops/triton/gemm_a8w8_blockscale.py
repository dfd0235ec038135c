"""The Triton twin: no table, no log line."""

from aiter import _block_gemm as gemm_a8w8_blockscale  # noqa: F401
