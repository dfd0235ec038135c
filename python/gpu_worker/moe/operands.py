"""The tensors of a fused MoE on the device: a fixed function of the problem and a seed."""

import zlib

from gpu_worker.moe import routing
from gpu_worker.moe.problem import DOWN, UP

ACTIVATION_SCALE, WEIGHT_SCALE = 0.02, 0.78
"""As for dense GEMMs (`gpu_worker.operands`): outputs have a standard deviation near 1 at K = 4096. Scales differ from
block to block, along K too, so that a kernel which takes one for its neighbour is found out."""

LARGEST_FP8 = {"float8_e4m3fn": 448.0, "float8_e4m3fnuz": 240.0}
"""Largest finite value of a dtype; SGLang quantises to the whole range."""


class MoeOperands:
    """Weights, activations and routings of one problem; `routings` of them are rotated."""

    def __init__(self, torch, device, problem, routings, kind, weights=None, seed=0):
        self._torch = torch
        self.problem = problem
        self._aligned = {}
        generator = torch.Generator(device=device)
        self.weights = weights or _weights(torch, device, problem)
        generator.manual_seed(zlib.crc32(f"{problem} {kind} {seed}".encode()))
        self.inputs = {}
        for name in (UP, DOWN):
            rows, n, k, _ = problem.gemm(name)
            values = torch.randn((rows, k), generator=generator, device=device, dtype=torch.bfloat16)
            scale = (torch.rand((rows, -(-k // 128)), generator=generator, device=device) + 0.5) * ACTIVATION_SCALE
            out = torch.empty((problem.pairs, n), dtype=torch.bfloat16, device=device)
            self.inputs[name] = (values.to(getattr(torch, problem.dtype)), scale, out)
        hidden = torch.randn((problem.tokens, problem.hidden), generator=generator, device=device) * ACTIVATION_SCALE
        self.hidden = hidden.to(torch.bfloat16)
        """What the whole operation is given; not quantised yet."""
        self.routes = [routing.route(torch, problem, kind, generator) for _ in range(routings)]

    @property
    def own_bytes(self):
        """Bytes of what no other problem shares."""
        tensors = [self.hidden, *(one for each in self.inputs.values() for one in each)]
        return sum(one.numel() * one.element_size() for one in tensors)

    def with_nan_scales(self):
        """The same with NaN for all activations: all outputs are NaN, at full speed."""
        other = object.__new__(MoeOperands)
        vars(other).update(vars(self))
        nan = float("nan")
        other.inputs = {name: (a, scale * nan, out) for name, (a, scale, out) in self.inputs.items()}
        other.hidden = self.hidden * nan
        return other

    def aligned(self, block_m, length):
        """The routings in blocks of `block_m`, as the kernel reads them."""
        if (block_m, length) not in self._aligned:
            experts = self.problem.experts
            self._aligned[block_m, length] = [
                routing.align(self._torch, ids, experts, block_m, length) for ids, _ in self.routes
            ]
        return self._aligned[block_m, length]

    def pointers(self, wanted):
        """(what never changes, what changes from routing to routing) of a plan's launch."""
        name = wanted.gemm
        a, a_scale, out = self.inputs[name]
        weight, weight_scale = self.weights[name]
        fixed = {"a_ptr": a, "a_scale_ptr": a_scale, "b_ptr": weight, "b_scale_ptr": weight_scale, "c_ptr": out}
        length = dict(wanted.scalars)["EM"]
        changing = [
            {
                "topk_weights_ptr": weights,
                "sorted_token_ids_ptr": sorted_ids[:length],
                "expert_ids_ptr": expert_of,
                "num_tokens_post_padded_ptr": used,
            }
            for (sorted_ids, expert_of, used), (_, weights) in zip(self.aligned(wanted.block_m, length), self.routes)
        ]
        return fixed, changing

    def reference(self, name, copy=0):
        """The GEMM in float32 with the routing number `copy`: `[pairs, n]`."""
        a, a_scale, _ = self.inputs[name]
        return self._product(name, a, a_scale, copy)

    def whole_reference(self, copy=0):
        """The whole operation: `[tokens, hidden]`, float32 but where SGLang's has less (the activations between the GEMMs
        are bf16 and FP8 there, what each expert adds is bf16)."""
        torch = self._torch
        up = self._product(UP, *self._quantised(self.hidden), copy).to(torch.bfloat16).float()
        gate, linear = up.chunk(2, dim=1)
        between = (torch.nn.functional.silu(gate) * linear).to(torch.bfloat16)
        down = self._product(DOWN, *self._quantised(between), copy).to(torch.bfloat16).float()
        return down.view(self.problem.tokens, self.problem.topk, -1).sum(dim=1)

    def _product(self, name, a, a_scale, copy):
        torch = self._torch
        ids, weights = self.routes[copy]
        weight, weight_scale = self.weights[name]
        _, n, _, divisor = self.problem.gemm(name)
        scaled = a.float() * a_scale.repeat_interleave(128, 1)[:, : a.shape[1]]
        out = torch.zeros((self.problem.pairs, n), dtype=torch.float32, device=a.device)
        flat = ids.flatten().long()
        allowed = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            for expert in flat.unique().tolist():
                pairs = (flat == expert).nonzero().flatten()
                spread = weight_scale[expert].repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, : a.shape[1]]
                out[pairs] = scaled[pairs // divisor] @ (weight[expert].float() * spread).T
        finally:
            torch.backends.cuda.matmul.allow_tf32 = allowed
        return out * weights.flatten()[:, None] if name == DOWN else out

    def _quantised(self, values):
        """FP8 with a scale for each 128 columns of a row, as SGLang's `per_token_group_quant_fp8`: (values, scales)."""
        rows, columns = values.shape
        largest = LARGEST_FP8[self.problem.dtype]
        groups = values.float().view(rows, -1, 128)
        scale = groups.abs().amax(dim=2, keepdim=True).clamp_min(1e-10) / largest
        quantised = (groups / scale).clamp(-largest, largest).to(getattr(self._torch, self.problem.dtype))
        return quantised.view(rows, columns), scale.squeeze(2)


def _weights(torch, device, problem):
    """The stacked expert weights and their scales of both GEMMs."""
    made = {}
    for name in (UP, DOWN):
        generator = torch.Generator(device=device)
        generator.manual_seed(zlib.crc32(f"{name} {problem.experts} {problem.hidden} {problem.inter}".encode()))
        _, n, k, _ = problem.gemm(name)
        weight = torch.empty((problem.experts, n, k), dtype=getattr(torch, problem.dtype), device=device)
        for expert in range(problem.experts):
            values = torch.randn((n, k), generator=generator, device=device, dtype=torch.bfloat16)
            weight[expert].copy_(values.to(weight.dtype))
        blocks = (problem.experts, -(-n // 128), -(-k // 128))
        scale = (torch.rand(blocks, generator=generator, device=device) + 0.5) * WEIGHT_SCALE
        made[name] = (weight, scale)
    return made
