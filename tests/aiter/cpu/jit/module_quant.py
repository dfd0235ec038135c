"""Of the fused MoE."""

from standins_moe import _set_current_hip_stream, dynamic_per_token_scaled_quant  # noqa: F401
