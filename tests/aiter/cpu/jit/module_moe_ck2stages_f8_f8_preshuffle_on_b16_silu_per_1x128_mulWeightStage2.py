"""Of the fused MoE."""

from standins_moe import ck_moe_stage1, ck_moe_stage2  # noqa: F401
