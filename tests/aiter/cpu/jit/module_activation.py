"""Of the fused MoE."""

from standins_moe import silu_and_mul  # noqa: F401
