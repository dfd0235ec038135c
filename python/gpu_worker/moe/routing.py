"""Which token goes to which expert, and the sorted form in which the kernel reads it."""

UNIFORM, SKEWED = "uniform", "skewed"
KINDS = (UNIFORM, SKEWED)

SKEW = 1.0
"""Exponent of the popularity of the experts in a skewed routing: the r-th is r ** -SKEW times as likely as the first.
At 1, five tokens of six use the busiest of 128 experts (topk 8), and a quarter of them have none at 64 tokens."""


def route(torch, problem, kind, generator):
    """(ids, weights) of a routing: int32 and float32, each `[tokens, topk]`; no expert twice for one token."""
    device = generator.device
    routed = problem.experts - problem.shared
    scores = torch.rand(problem.tokens, routed, generator=generator, device=device)
    if kind == SKEWED:
        rank = torch.randperm(routed, generator=generator, device=device).float() + 1.0
        # Gumbel's trick: the topk largest of log(p) - log(-log(u)) are drawn without replacement by p.
        scores = -SKEW * rank.log() - (-scores.clamp_min(1e-20).log()).log()
    ids = scores.topk(problem.topk - problem.shared, dim=1).indices
    # Fused shared experts stand behind the routed ones and get every token.
    shared = torch.arange(routed, problem.experts, device=device).expand(problem.tokens, problem.shared)
    ids = torch.cat([ids, shared], dim=1).to(torch.int32)
    weights = torch.rand(ids.shape, generator=generator, device=device) + 0.5
    return ids, weights / weights.sum(dim=1, keepdim=True)


def align(torch, ids, experts, block_m, length):
    """The routing as `moe_align_block_size` leaves it: (sorted pair numbers, expert of each block, rows in use).

    Every expert's pairs stand together and are padded to a multiple of `block_m` with the number of all pairs, which
    the kernel masks; `length` is what SGLang allocates (`plan.rows_allocated`), and entries behind the rows in use are
    never read.
    """
    flat = ids.flatten().long()
    pairs = flat.numel()
    count = torch.bincount(flat, minlength=experts)
    padded = (count + block_m - 1) // block_m * block_m
    start = padded.cumsum(0) - padded
    order = torch.argsort(flat, stable=True)
    within = torch.arange(pairs, device=ids.device) - (count.cumsum(0) - count)[flat[order]]
    used = int(padded.sum())
    sorted_ids = torch.full((max(length, used),), pairs, dtype=torch.int32, device=ids.device)
    sorted_ids[start[flat[order]] + within] = order.to(torch.int32)
    blocks = -(-max(length, used) // block_m)
    expert_of = torch.zeros(blocks, dtype=torch.int32, device=ids.device)
    named = torch.arange(experts, device=ids.device).repeat_interleave(padded // block_m)
    expert_of[: named.numel()] = named.to(torch.int32)
    return sorted_ids, expert_of, torch.tensor([used], dtype=torch.int32, device=ids.device)
