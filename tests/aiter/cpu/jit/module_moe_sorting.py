"""Of the fused MoE."""

from standins_moe import moe_sorting_fwd  # noqa: F401
