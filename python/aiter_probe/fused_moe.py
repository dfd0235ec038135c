"""Runs aiter's own fused MoE as SGLang calls it: are its numbers right, and how long does one call take, whole.

Run as `python FOLDER/fused_moe.py ORDER.json` in the environment of the server, the probe beside it as `gemmtune_probe.py`. The order is
{"tasks": [{"E", "N", "K", "topk", "shared", "M", "experts_of_all"}, ...], "is_shuffled": bool, "times": [numbers of tasks]}. Answers are lines on
standard output, a tag and a JSON object, each written before the next task begins, so that a kernel that ends the process leaves what
came before it:

    {"doing": 0}
    {"done": {"task": 0, "error": 0.004 or null, "us": [6 times], "clock": "device" or "wall", "kernel": longest or null, "said": null}}

Which kernels were asked for is in the lines that aiter itself logs, and which of them the compiled modules do not have as well.

What is timed is `fused_moe` as a whole: the tuner's own time leaves out what runs between the stages (sorting, two quantisations). Rounds
take routings of two kinds in turn, uniform and with popular experts, and the same ones in every process of an order, so that two tables
can be compared round by round. With an expert mask the rank holds the first experts; ids are of all of them.
"""

import json
import os
import sys

from gemmtune_probe import BLOCK, CALLS, ROTATED_BYTES, ROUNDS, TAG, WARM_UP, device_time, failure

#: Tokens whose numbers are compared; the kernels compute all of them.
CHECKED = 32
#: Exponent of the popularity of experts in every other routing: the r-th is 1/r as likely as the first. At 1, five tokens of six use the
#: busiest of 128 experts (topk 8), and at 64 tokens a quarter of them have none.
SKEW = 1.0


def tell(record):
    """One answer line, in one write, so that other output cannot tear it."""
    sys.stdout.flush()
    os.write(1, (TAG + json.dumps(record) + "\n").encode())


class Weights:
    """The experts' weights of one size, plain for the reference and stacked as the server holds them."""

    def __init__(self, torch, aiter, sizes, is_shuffled):
        self.torch, self.sizes, self.is_shuffled = torch, sizes, is_shuffled
        self.experts, self.inter, self.hidden = sizes
        self.dtype = aiter.dtypes.fp8
        self.largest = float(torch.finfo(self.dtype).max)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(self.experts * 1_000_003 + self.inter * 1009 + self.hidden)
        self.up = [self._weight(2 * self.inter, self.hidden) for _ in range(self.experts)]
        self.down = [self._weight(self.hidden, self.inter) for _ in range(self.experts)]
        self.scales = [torch.stack([scale for _, scale in weights]) for weights in (self.up, self.down)]
        self._laid_out = []

    def _weight(self, n, k):
        """FP8 with one scale per 128 x 128 block, which vary along both sides, so that a scale mistaken for its neighbour is noticed."""
        torch = self.torch
        rows, groups = -(-n // BLOCK), k // BLOCK
        w = torch.randn(rows * BLOCK, k, device=self.device).view(rows, BLOCK, groups, BLOCK)
        scale = w.abs().amax(dim=(1, 3)) / self.largest
        q = (w / scale.view(rows, 1, groups, 1)).view(rows * BLOCK, k)[:n].contiguous().to(self.dtype)
        spread = [[2.0 ** ((row + 2 * group) % 3 - 1) for group in range(groups)] for row in range(rows)]
        return q, scale * torch.tensor(spread, device=self.device) * (k**-0.5)

    def laid_out(self, tokens, topk):
        """Enough copies of the stacked weights that a call reads them from memory and not from a cache."""
        from aiter.ops.shuffle import shuffle_weight

        wanted = 1
        if self.device.type == "cuda":
            # A few tokens do not use all experts.
            read = min(self.experts, tokens * topk) * 3 * self.inter * self.hidden
            whole = 3 * self.experts * self.inter * self.hidden
            room = len(self._laid_out) + self.torch.cuda.mem_get_info()[0] // 2 // whole
            wanted = max(1, min(CALLS, ROTATED_BYTES // read + 1, room))
        while len(self._laid_out) < wanted:
            stacks = [self.torch.stack([q for q, _ in weights]) for weights in (self.up, self.down)]
            stacks = [shuffle_weight(stack, (16, 16)) for stack in stacks]
            for stack in stacks:
                stack.is_shuffled = self.is_shuffled
            self._laid_out.append(stacks)
        return self._laid_out[:wanted]

    def wide(self, weight):
        """A weight, dequantised."""
        q, scale = weight
        n, k = q.shape
        per_row = scale.repeat_interleave(BLOCK, 0)[:n].contiguous().view(n, k // BLOCK, 1)
        return (q.float().view(n, k // BLOCK, BLOCK) * per_row).view(n, k)


class Experts:
    """Weights, inputs and routings of one task, and the operation on them."""

    def __init__(self, torch, aiter, module, task, weights):
        self.torch, self.aiter, self.module, self.weights = torch, aiter, module, weights
        self.tokens, self.topk, self.shared = task["M"], task["topk"], task.get("shared", 0)
        self.experts, self.inter, self.hidden = weights.sizes
        self.all = task.get("experts_of_all") or self.experts
        self.masked = task.get("experts_of_all") is not None
        self.device, self.dtype, self.largest = weights.device, weights.dtype, weights.largest
        self.copies = weights.laid_out(self.tokens, self.topk)
        torch.manual_seed(self.tokens)
        self.x = self._activation()
        self.routes = [self._route(kind) for kind in range(ROUNDS)]
        self.mask = self._mask()

    def _activation(self):
        """bf16, with groups of 128 of very different magnitudes."""
        torch, groups = self.torch, self.hidden // BLOCK
        spread = [
            [2.0 ** ((5 * row + 3 * group) % 7 - 3) for group in range(groups)] for row in range(min(self.tokens, 7))
        ]
        spread = [spread[row % 7] for row in range(self.tokens)]
        x = torch.randn(self.tokens, self.hidden, device=self.device).view(self.tokens, groups, BLOCK)
        x = x * torch.tensor(spread, device=self.device).view(self.tokens, groups, 1)
        return x.view(self.tokens, self.hidden).to(torch.bfloat16)

    def _route(self, number):
        """(weights, ids) of a routing; no token uses an expert twice."""
        torch, routed = self.torch, self.all - self.shared
        scores = torch.rand(self.tokens, routed, device=self.device).log()
        if number % 2:
            # The largest of log(u) / p are drawn without replacement, by p.
            ranks = [float((expert * 7 + 3) % routed + 1) ** SKEW for expert in range(routed)]
            scores = scores * torch.tensor([ranks], device=self.device)
        ids = scores.topk(self.topk - self.shared, dim=1).indices.to(torch.int32)
        if self.shared:  # behind the routed ones, for every token
            behind = [list(range(routed, self.all))] * self.tokens
            ids = torch.cat([ids, torch.tensor(behind, device=self.device).to(torch.int32)], dim=1)
        weights = torch.rand(self.tokens, self.topk, device=self.device) + 0.5
        return weights / weights.sum(dim=1).view(self.tokens, 1), ids.contiguous()

    def _mask(self):
        if not self.masked:
            return None
        here = [[1.0] * self.experts + [0.0] * (self.all - self.experts)]
        return self.torch.tensor(here, device=self.device).view(self.all).to(self.torch.int32)

    def call(self, number, copy=0):
        """aiter's operation as SGLang calls it."""
        up, down = self.copies[copy % len(self.copies)]
        up_scale, down_scale = self.weights.scales
        weights, ids = self.routes[number]
        return self.module.fused_moe(
            self.x,
            up,
            down,
            weights,
            ids,
            w1_scale=up_scale,
            w2_scale=down_scale,
            quant_type=self.aiter.QuantType.per_128x128,
            activation=self.aiter.ActivationType.Silu,
            expert_mask=self.mask,
        )

    def error(self):
        """‖y − ref‖ / ‖ref‖ over some tokens, of a routing with popular experts; None where an output is not finite."""
        torch = self.torch
        out = self.call(1)
        rows = range(self.tokens)
        if self.tokens > CHECKED:
            rows = sorted({i * (self.tokens - 1) // (CHECKED - 1) for i in range(CHECKED)})
        rows = list(rows)
        found = out[rows].float()
        if not bool(torch.isfinite(found).all()):
            return None
        wanted = self.reference(rows)
        difference = found - wanted
        right = float((wanted * wanted).sum())
        return (float((difference * difference).sum()) / right) ** 0.5 if right else None

    def reference(self, rows):
        """The whole operation for these tokens in float32, except where the kernels use bf16 and FP8."""
        torch = self.torch
        weights, ids = self.routes[1]
        weights, ids = weights[rows].tolist(), ids[rows].tolist()
        x = self._quantised(self.x[rows].float())
        total = [None] * len(rows)
        for expert in sorted({expert for row in ids for expert in row if expert < self.experts}):
            pairs = [(at, row.index(expert)) for at, row in enumerate(ids) if expert in row]
            between = x[[at for at, _ in pairs]] @ self.weights.wide(self.weights.up[expert]).t()
            between = between.to(torch.bfloat16).float()
            gate, linear = between[:, : self.inter], between[:, self.inter :]
            between = (torch.nn.functional.silu(gate) * linear).to(torch.bfloat16).float()
            added = self._quantised(between) @ self.weights.wide(self.weights.down[expert]).t()
            for number, (at, slot) in enumerate(pairs):
                part = (added[[number]] * weights[at][slot]).to(torch.bfloat16).float()
                total[at] = part if total[at] is None else total[at] + part
        nothing = torch.zeros(1, self.hidden).to(self.device)
        return torch.cat([nothing if one is None else one for one in total], dim=0)

    def _quantised(self, values):
        """`values` after a round trip through FP8 with a scale for each 128 columns of a row."""
        rows, columns = values.shape
        groups = values.contiguous().view(rows, columns // BLOCK, BLOCK)
        scale = groups.abs().amax(dim=(2,)).view(rows, columns // BLOCK, 1) / self.largest + 1e-30
        return ((groups / scale).to(self.dtype).float() * scale).view(rows, columns)

    def times(self):
        """Time of a call in each round, the clock used, and the kernel that took longest."""
        for number in range(WARM_UP):
            self.call(number % ROUNDS, number)
        if self.device.type != "cuda":
            return [], "wall", None
        times, longest = [], None
        for number in range(ROUNDS):
            calls = [lambda copy=copy: self.call(number, copy) for copy in range(len(self.copies))]
            us, longest = device_time(self.torch, calls, CALLS)
            times.append(us)
        return times, "device", longest


def main(path):
    """Answers every task of the order at `path`."""
    with open(path, encoding="utf-8") as file:
        order = json.load(file)
    import aiter
    import aiter.fused_moe
    import torch

    weights = None
    for number, task in enumerate(order["tasks"]):
        tell({"doing": number})
        error, us, clock, kernel, said = None, [], "device", None, None
        try:
            sizes = task["E"], task["N"], task["K"]
            if weights is None or weights.sizes != sizes:
                weights = None  # before others are made: both may not fit
                weights = Weights(torch, aiter, sizes, order["is_shuffled"])
            experts = Experts(torch, aiter, aiter.fused_moe, task, weights)
            error = experts.error()
            said = None if error is not None else "an output is not finite"
            if number in order["times"] and said is None:
                us, clock, kernel = experts.times()
        except Exception as raised:
            said = failure(raised)
        experts = None
        tell({"done": {"task": number, "error": error, "us": us, "clock": clock, "kernel": kernel, "said": said}})


if __name__ == "__main__":
    main(sys.argv[1])
