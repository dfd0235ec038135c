"""Of the fused MoE."""

from standins_moe import (  # noqa: F401
    _set_current_hip_stream,
    moe_sorting_opus_fwd,
    moe_sorting_opus_get_workspace_size,
)
