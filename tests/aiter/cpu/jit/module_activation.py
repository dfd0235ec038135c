"""Of the fused MoE."""

from standins_moe import _set_current_hip_stream, silu_and_mul  # noqa: F401
