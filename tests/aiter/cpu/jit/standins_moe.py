"""What the fused MoE's tuner calls of compiled modules: routing, sorting, quantisation, and the two stages in float32."""

import os
import signal
import time
import zlib

import standins
import torch


def topk_softmax(topk_weights, topk_indices, token_expert_indices, gating_output, need_renorm, *_shared):
    """topk_softmax(topk_weights: torch.Tensor, topk_indices: torch.Tensor, token_expert_indices: torch.Tensor, gating_output: torch.Tensor, need_renorm: bool, num_shared_experts: int = 0, shared_expert_scoring_func: str = '') -> None"""
    weights, indices = gating_output.float().softmax(-1).topk(topk_indices.shape[1])
    if need_renorm:
        weights = weights / weights.sum(-1, keepdim=True)
    topk_weights.copy_(weights)
    topk_indices.copy_(indices)


def moe_sorting_fwd(
    topk_ids,
    topk_weights,
    sorted_token_ids,
    sorted_weights,
    sorted_expert_ids,
    num_valid_ids,
    moe_buf,
    num_experts,
    unit_size,
    local_expert_mask=None,
    num_local_tokens=None,
    dispatch_policy=0,
):
    """moe_sorting_fwd(topk_ids: torch.Tensor, topk_weights: torch.Tensor, sorted_token_ids: torch.Tensor, sorted_weights: torch.Tensor, sorted_expert_ids: torch.Tensor, num_valid_ids: torch.Tensor, moe_buf: torch.Tensor, num_experts: int, unit_size: int, local_expert_mask: Optional[torch.Tensor] = None, num_local_tokens: Optional[torch.Tensor] = None, dispatch_policy: int = 0) -> None"""
    tokens = topk_ids.shape[0]
    sorted_token_ids.fill_(tokens)
    sorted_weights.fill_(0)
    sorted_expert_ids.fill_(-1)
    at = 0
    for expert in range(num_experts):
        pairs = (topk_ids == expert).nonzero()
        for row, (token, slot) in enumerate(pairs.tolist()):
            sorted_token_ids[at + row] = slot << 24 | token
            sorted_weights[at + row] = topk_weights[token, slot]
        blocks = -(-len(pairs) // unit_size)
        sorted_expert_ids[at // unit_size : at // unit_size + blocks] = expert
        at += blocks * unit_size
    num_valid_ids[0], num_valid_ids[1] = at, tokens


def dynamic_per_token_scaled_quant(out, input, scales, *_rest, **_named):
    """dynamic_per_token_scaled_quant(out: torch.Tensor, input: torch.Tensor, scales: torch.Tensor, scale_ub: Optional[torch.Tensor] = None, shuffle_scale: bool = False, num_rows: Optional[torch.Tensor] = None, num_rows_factor: int = 1) -> None"""
    scale = input.float().abs().amax(-1, keepdim=True) / torch.finfo(out.dtype).max
    scale[scale == 0] = 1
    out.copy_((input.float() / scale).to(out.dtype).view(out.shape))
    scales.copy_(scale.view(scales.shape))


def silu_and_mul(out, input):
    """silu_and_mul(out: torch.Tensor, input: torch.Tensor) -> None"""
    gate, up = input.float().chunk(2, -1)
    out.copy_((torch.nn.functional.silu(gate) * up).view(out.shape))


def launched(name, size):
    """A launch at a made-up time, unless a fault was asked for; says which of the wrong results was."""
    struck = standins.fault("moe", name, size)
    if "exit" in struck:
        os._exit(1)
    if "segv" in struck:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "hang" in struck:
        time.sleep(100000)
    if "unsupported" in struck:
        raise RuntimeError("wrong! device_gemm with the specified compilation parameters does not support this problem")
    chance = zlib.crc32(f"{name}/{size}".encode()) / 2**32
    standins.LAUNCHES.append(standins.Launch(name, float(struck.get("us") or 20 + 20 * chance)))
    return "wrong" in struck


def weight(shuffled, scale, expert):
    """The float32 weight of an expert, whose layout and scales of 128 x 128 are undone."""
    rows, depth = shuffled.shape[1:]
    plain = standins.unshuffled(shuffled[expert].contiguous()).float()
    scale = scale.view(shuffled.shape[0], rows // 128, depth // 128)[expert].float()
    return plain * scale.repeat_interleave(128, 0).repeat_interleave(128, 1)


def blocks(sorted_ids, sorted_expert_ids, num_valid, block_m, tokens):
    """(expert, tokens, slots, rows of the sorted list) of every tile that holds something."""
    for block in range(int(num_valid[0]) // block_m):
        rows = torch.arange(block * block_m, (block + 1) * block_m)
        ids = sorted_ids[rows].long()
        token, slot = ids & 0xFFFFFF, ids >> 24
        here = token < tokens
        if here.any():
            yield int(sorted_expert_ids[block]), token[here], slot[here], rows[here]


def scaled(x, scale):
    """x (rows, K) by blocks of 1 x 128."""
    return x.float() * scale.float().repeat_interleave(128, -1)


# A tile's own rows of the routing choose the numbers, so a tile of another size than the sorting's shows.
def stage1(x, w1, w2, ids, experts, valid, out, topk, name, w_scale, x_scale, block_m, *rest):
    """The first stage, its split of K included: then the output is float32, not activated, in sorted order."""
    wrong = launched(name, f"{x.shape[0]}x{x.shape[1]}x{w2.shape[2]}")
    full = scaled(x, x_scale.view(x.shape[0], -1))
    for expert, token, slot, rows in blocks(ids, experts, valid, block_m, x.shape[0]):
        product = full[token] @ weight(w1, w_scale, expert).t()
        if wrong:
            product = product * 2 + 1
        if out.dtype == torch.float32:
            # The tuner reads the first tokens * topk rows as (token, slot).
            out[token * topk + slot] = product
        else:
            gate, up = product.chunk(2, -1)
            out[token, slot] = (torch.nn.functional.silu(gate) * up).to(out.dtype)


def stage2(x, w1, w2, ids, experts, valid, out, topk, name, w_scale, x_scale, block_m, weights, *rest):
    """The second stage: adds every slot's product, with its weight, to its token."""
    wrong = launched(name, f"{x.shape[0]}x{w2.shape[1]}x{x.shape[-1]}")
    flat = x.reshape(x.shape[0] * topk, -1)
    full = scaled(flat, x_scale.view(flat.shape[0], -1))
    total = torch.zeros(out.shape, dtype=torch.float32)
    for expert, token, slot, rows in blocks(ids, experts, valid, block_m, x.shape[0]):
        product = full[token * topk + slot] @ weight(w2, w_scale, expert).t()
        total.index_add_(0, token, product * weights[rows].float()[:, None])
    out.copy_(total * 2 + 1 if wrong else total)


NAMED = (
    "w1: torch.Tensor, w2: torch.Tensor, sorted_token_ids: torch.Tensor, sorted_expert_ids: torch.Tensor, "
    "num_valid_ids: torch.Tensor, out: torch.Tensor, topk: int, kernelName: str = '', {0}_scale: Optional[torch.Tensor] = None, "
    "{1}_scale: Optional[torch.Tensor] = None, block_m: Optional[int] = 32, sorted_weights: Optional[torch.Tensor] = None, "
    "quant_type: int = 0, activation: int = 0, splitk: Optional[int] = 1, use_non_temporal_load: bool = False, "
    "dst_type: Optional[str] = None, is_shuffled: bool = True"
)


def _order(names):
    """Calls come by position or by name."""

    def decorate(function):
        def call(*arguments, **named):
            return function(*arguments, *[named[name] for name in names[len(arguments) :] if name in named])

        return call

    return decorate


ORDER1 = (
    "hidden_states w1 w2 sorted_token_ids sorted_expert_ids num_valid_ids out topk kernelName w1_scale a1_scale block_m "
    "sorted_weights quant_type activation splitk use_non_temporal_load dst_type is_shuffled"
).split()
ORDER2 = ["inter_states", *ORDER1[1:9], "w2_scale", "a2_scale", *ORDER1[11:]]
ck_moe_stage1 = _order(ORDER1)(stage1)
ck_moe_stage1.__doc__ = f"ck_moe_stage1(hidden_states: torch.Tensor, {NAMED.format('w1', 'a1')}) -> None"
ck_moe_stage2 = _order(ORDER2)(stage2)
ck_moe_stage2.__doc__ = f"ck_moe_stage2(inter_states: torch.Tensor, {NAMED.format('w2', 'a2')}) -> None"
