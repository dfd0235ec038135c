"""Of the fused MoE."""

from standins_moe import dynamic_per_token_scaled_quant  # noqa: F401
