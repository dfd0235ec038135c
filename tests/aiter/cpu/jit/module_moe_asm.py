"""Of the fused MoE."""

from standins_moe import topk_softmax  # noqa: F401
