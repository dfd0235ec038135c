"""What the fused MoE's tuner calls of compiled modules: routing, sorting, quantisation, and the kernels in float32."""

import os
import re
import signal
import time
import zlib

import standins
import torch
from standins_abi import compiled

BLOCK = 128


def _set_current_hip_stream(stream):
    """Of every module that is called with `aiter_tensor_t`."""


@compiled
def topk_softmax(topk_weights, topk_indices, gating_output, need_renorm):
    weights, indices = gating_output.float().softmax(-1).topk(topk_indices.shape[1])
    if need_renorm:
        weights = weights / weights.sum(-1, keepdim=True)
    topk_weights.copy_(weights)
    topk_indices.copy_(indices)


def noted(name):
    """A launch of what is around the kernels: seen by the profiler, and next to nothing beside them."""
    standins.LAUNCHES.append(standins.Launch(name, 0.1))


def sort(
    topk_ids, topk_weights, sorted_token_ids, sorted_weights, sorted_expert_ids, num_valid_ids, num_experts, unit_size
):
    """Pairs `slot << 24 | token` by expert, padded to tiles of `unit_size`, whose experts are listed."""
    noted("moe_sorting")
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


moe_sorting_fwd = compiled(sort, "moe_sorting_fwd")
moe_sorting_opus_fwd = compiled(sort, "moe_sorting_opus_fwd")


@compiled
def moe_sorting_opus_get_workspace_size():
    return 0


def quantised(x, dtype):
    """x (..., K) in blocks of K, and the scales, one a row of x."""
    scale = x.float().abs().amax(-1, keepdim=True) / torch.finfo(dtype).max
    scale[scale == 0] = 1
    return (x.float() / scale).to(dtype), scale


@compiled
def dynamic_per_token_scaled_quant(out, input, scales, shuffle_scale=False):
    noted("dynamic_per_token_scaled_quant")
    numbers, scale = quantised(input, out.dtype)
    out.copy_(numbers.view(out.shape))
    if shuffle_scale:
        # Of a token's blocks the scales stand a column apart.
        scale = scale.view(out.shape[0], -1).t().contiguous()
    scales.copy_(scale.view(scales.shape))


def activated(product):
    """silu(gate) * up of the columns' two halves."""
    gate, up = product.float().chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


@compiled
def silu_and_mul(out, input):
    out.copy_(activated(input).view(out.shape))


def launched(name, size, us):
    """A launch at a made-up time from `us` on, unless a fault was asked for; the faults that struck."""
    struck = standins.fault("moe", name, size)
    if "exit" in struck:
        os._exit(1)
    if "segv" in struck:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "hang" in struck:
        time.sleep(100000)
    if "sleep" in struck and getattr(launched, "slept", None) != (name, size):
        launched.slept = (name, size)
        time.sleep(float(struck["sleep"]))
    if "unsupported" in struck:
        raise RuntimeError("wrong! device_gemm with the specified compilation parameters does not support this problem")
    chance = zlib.crc32(f"{name}/{size}".encode()) / 2**32
    standins.LAUNCHES.append(standins.Launch(name, float(struck.get("us") or us * (1 + chance))))
    return struck


def spoil(out, struck):
    """Has numbers of `out` be wrong as a fault says: all of them by far, or a share of them by little."""
    if "nan" in struck:
        out.fill_(float("nan"))
    if "wrong" in struck:
        out.fill_(100.0)
    numbers = out.view(-1)
    some = numbers[: round(float(struck.get("err", 0)) * len(numbers))]
    some.copy_(some.float() * 1.25 + 0.05)


def weight(shuffled, scale, expert):
    """The float32 weight of an expert, whose layout and scales of 128 x 128 are undone."""
    rows, depth = shuffled.shape[1:]
    plain = standins.unshuffled(shuffled[expert].contiguous()).float()
    scale = scale.view(shuffled.shape[0], rows // BLOCK, depth // BLOCK)[expert].float()
    return plain * scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)


# A tile's own rows of the routing choose the numbers, so a tile of another size than the sorting's shows.
def tiles(sorted_ids, sorted_expert_ids, num_valid, block_m, tokens):
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
    return x.float() * scale.float().repeat_interleave(BLOCK, -1)


_LAST = {}


def remembered(kernel, inputs, compute):
    """What `kernel` makes of `inputs`, computed once for the many launches of a candidate."""
    key = (kernel, *((one.data_ptr(), tuple(one.shape)) for one in inputs))
    if _LAST.get("key") != key:
        # Inputs are kept, so that no other tensor gets their place.
        _LAST.update(key=key, inputs=inputs, value=compute())
    return _LAST["value"]


@compiled
def ck_moe_stage1(
    hidden_states,
    w1,
    w2,
    sorted_token_ids,
    sorted_expert_ids,
    num_valid_ids,
    out,
    topk,
    kernelName,
    w1_scale,
    a1_scale,
    block_m,
):
    """The first stage, its split of K included: then the output is float32, not activated."""
    (tokens, depth), is_split = hidden_states.shape, out.dtype == torch.float32
    struck = launched(kernelName, f"{tokens}x{depth}x{w2.shape[2]}", 20)

    def compute():
        values = torch.zeros(out.shape, dtype=out.dtype)
        full = scaled(hidden_states, a1_scale.view(tokens, -1))
        for expert, token, slot, _ in tiles(sorted_token_ids, sorted_expert_ids, num_valid_ids, block_m, tokens):
            product = full[token] @ weight(w1, w1_scale, expert).t()
            if is_split:
                # The tuner reads the first tokens * topk rows as (token, slot).
                values[token * topk + slot] = product
            else:
                values[token, slot] = activated(product).to(out.dtype)
        return values

    out.copy_(remembered(kernelName, (hidden_states, w1, sorted_token_ids, out), compute))
    spoil(out, struck)


@compiled
def moe_stage1_g1u1(
    input, w1, w2, sorted_token_ids, sorted_expert_ids, num_valid_ids, out, kernelName, block_m, a1_scale, w1_scale
):
    """The first stage in assembly: numbers of the second one's dtype, and their scales in what follows the last token."""
    (tokens, depth), (topk, width) = input.shape, out.shape[1:]
    struck = launched(kernelName, f"{tokens}x{depth}x{width}", 20)

    def compute():
        numbers = torch.zeros(out[:tokens].shape, dtype=torch.float32).to(out.dtype)
        scales = torch.ones(tokens, topk, width // BLOCK)
        full = scaled(input, a1_scale.reshape(-1, tokens).t())
        for expert, token, slot, _ in tiles(sorted_token_ids, sorted_expert_ids, num_valid_ids, block_m, tokens):
            values = activated(full[token] @ weight(w1, w1_scale, expert).t()).to(torch.bfloat16)
            values, scale = quantised(values.view(len(token), -1, BLOCK), out.dtype)
            numbers[token, slot] = values.view(len(token), width)
            scales[token, slot] = scale.squeeze(-1)
        return numbers, scales.view(torch.uint8).view(-1)

    numbers, scales = remembered(kernelName, (input, w1, sorted_token_ids), compute)
    out[:tokens] = numbers
    out[tokens:].view(torch.uint8).view(-1)[: len(scales)] = scales
    spoil(out[:tokens], struck)


@compiled
def ck_moe_stage2(
    inter_states,
    w2,
    sorted_token_ids,
    sorted_expert_ids,
    num_valid_ids,
    out,
    topk,
    kernelName,
    w2_scale,
    a2_scale,
    block_m,
    sorted_weights,
):
    """The second stage: adds every slot's product, with its weight, to its token."""
    tokens, depth = inter_states.shape[0], inter_states.shape[-1]
    struck = launched(kernelName, f"{tokens}x{w2.shape[1]}x{depth}", 20)

    def compute():
        total = torch.zeros(out.shape, dtype=torch.float32)
        full = scaled(inter_states.reshape(-1, depth), a2_scale.view(tokens * topk, -1))
        for expert, token, slot, rows in tiles(sorted_token_ids, sorted_expert_ids, num_valid_ids, block_m, tokens):
            product = full[token * topk + slot] @ weight(w2, w2_scale, expert).t()
            total.index_add_(0, token, product * sorted_weights[rows].float()[:, None])
        return total

    out.copy_(remembered(kernelName, (inter_states, w2, sorted_token_ids), compute))
    spoil(out, struck)


def routed(topk_ids, experts):
    """As `tiles`, of a kernel that is given no sorting but the routing itself; rows are of the flattened weights."""
    for expert in range(experts):
        token, slot = (topk_ids == expert).nonzero().unbind(1)
        if len(token):
            yield expert, token, slot, token * topk_ids.shape[1] + slot


@compiled
def fmoe_fp8_blockscale_g1u1(
    out,
    input,
    gate,
    down,
    sorted_token_ids,
    sorted_weights,
    sorted_expert_ids,
    num_valid_ids,
    input_scale,
    fc1_scale,
    fc2_scale,
    kernelName,
):
    """Both stages in assembly, of tiles as its name says; quantises 16-bit numbers itself."""
    tokens, depth = input.shape
    struck = launched(kernelName, f"{tokens}x{depth}x{down.shape[2]}", 40)
    block_m = int(re.findall(r"_(\d+)x\d+", kernelName)[-1])
    sorting = (sorted_token_ids, sorted_expert_ids, num_valid_ids, block_m, tokens)
    is_sorted = sorted_token_ids.dim() == 1

    def requantised(values):
        values, scale = quantised(values.view(len(values), -1, BLOCK), gate.dtype)
        return scaled(values.view(len(values), -1), scale.squeeze(-1))

    def compute():
        total = torch.zeros(out.shape, dtype=torch.float32)
        is_quantised = input.dtype == gate.dtype
        full = scaled(input, input_scale.reshape(-1, tokens).t()) if is_quantised else requantised(input)
        for expert, token, _, rows in tiles(*sorting) if is_sorted else routed(sorted_token_ids, gate.shape[0]):
            values = activated(full[token] @ weight(gate, fc1_scale, expert).t())
            product = requantised(values) @ weight(down, fc2_scale, expert).t()
            total.index_add_(0, token, product * sorted_weights.reshape(-1)[rows].float()[:, None])
        return total

    out.copy_(remembered(kernelName, (input, gate, sorted_token_ids), compute))
    spoil(out, struck)
