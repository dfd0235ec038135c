import functools

from standin import cost

from .fused_moe_triton_config import try_get_optimal_moe_config


def invoke_fused_moe_kernel(gemm, config, pairs, out):
    cost.moe_gemm(gemm, config, pairs, out)


def fused_experts(
    hidden_states, w1, w2, topk_output, moe_runner_config, use_fp8_w8a8=False, w1_scale=None, w2_scale=None, block_shape=None
):
    tokens, topk = topk_output.topk_ids.shape
    get_config = functools.partial(
        try_get_optimal_moe_config, w1.shape, w2.shape, topk, "fp8_w8a8", block_shape=block_shape, return_down_config=True
    )
    config, (down_config, _) = get_config(tokens)
    config.pop("USE_TMA", None)
    out = hidden_states.new_empty(hidden_states.shape, dtype=hidden_states.dtype)
    invoke_fused_moe_kernel("up", config, tokens * topk, out)
    invoke_fused_moe_kernel("down", down_config or config, tokens * topk, out)
    return out
