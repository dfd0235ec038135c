"""Of the fused MoE."""

from standins_moe import _set_current_hip_stream, topk_softmax  # noqa: F401
