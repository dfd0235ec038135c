"""The matrices of a shape on the device: a fixed function of the shape and a seed."""

import zlib
from collections import OrderedDict

KEPT = 2
"""Weight sets kept on the device: a search mostly stays at one (N, K)."""

ACTIVATION_SCALE = 0.02
"""Mean scale of the activations' groups; with WEIGHT_SCALE and standard normal FP8 values the outputs have a
standard deviation near 1 at K = 4096, so that the absolute tolerance of the check bites."""

WEIGHT_SCALE = 0.78


class Operands:
    """A, As, B, Bs and C of one shape; `weights[i]` are copies of (B, Bs) at different addresses."""

    def __init__(self, a, a_scale, weights, out, partial):
        self.a = a
        self.a_scale = a_scale
        self.weights = weights
        self.out = out
        self.partial = partial
        """Makes the float32 planes of split-K; called with the number of planes."""

    @property
    def own_bytes(self):
        """Bytes of what no other shape shares."""
        return sum(one.numel() * one.element_size() for one in (self.a, self.a_scale, self.out))

    def with_nan_scales(self):
        """The same with NaN for every scale of the activations: all outputs are NaN, at full speed."""
        return Operands(self.a, self.a_scale * float("nan"), self.weights, self.out, self.partial)


class Store:
    """Makes operands and keeps the latest weights."""

    def __init__(self, torch, device, block_n, block_k, out_dtype):
        self._torch = torch
        self._device = device
        self._block_n = block_n
        self._block_k = block_k
        self._out_dtype = getattr(torch, out_dtype)
        self._weights = OrderedDict()
        self._partials = {}

    def operands(self, problem, copies, seed=0):
        """The operands of `problem` with `copies` copies of the weights. A seed other than 0 is never kept."""
        torch = self._torch
        generator = self._generator(f"a {problem} {seed}")
        a = self._values((problem.m, problem.k), problem.dtype, generator)
        a_scale = self._scales((problem.m, -(-problem.k // self._block_k)), ACTIVATION_SCALE, generator)
        weights = self._kept_weights(problem, copies) if seed == 0 else self._new_weights(problem, copies, seed)
        out = torch.empty((problem.m, problem.n), dtype=self._out_dtype, device=self._device)
        return Operands(a, a_scale, weights, out, lambda planes: self._partial(problem, planes))

    def forget(self):
        """Frees everything kept."""
        self._weights.clear()
        self._partials.clear()

    def _kept_weights(self, problem, copies):
        key = (problem.n, problem.k, problem.dtype)
        kept = self._weights.pop(key, [])
        if len(kept) < copies:
            if not kept:
                while len(self._weights) >= KEPT:
                    self._weights.popitem(last=False)
                kept = self._new_weights(problem, 1, 0)
            kept += [(kept[0][0].clone(), kept[0][1].clone()) for _ in range(copies - len(kept))]
        self._weights[key] = kept
        return kept[:copies]

    def _new_weights(self, problem, copies, seed):
        generator = self._generator(f"b {problem.n} {problem.k} {problem.dtype} {seed}")
        b = self._values((problem.n, problem.k), problem.dtype, generator)
        blocks = (-(-problem.n // self._block_n), -(-problem.k // self._block_k))
        b_scale = self._scales(blocks, WEIGHT_SCALE, generator)
        return [(b, b_scale)] + [(b.clone(), b_scale.clone()) for _ in range(copies - 1)]

    def _partial(self, problem, planes):
        """Split-K planes, shared by all candidates of a shape."""
        elements = planes * problem.m * problem.n
        kept = self._partials.get("planes")
        if kept is None or kept.numel() < elements:
            kept = self._torch.empty(elements, dtype=self._torch.float32, device=self._device)
            self._partials["planes"] = kept
        return kept[:elements].view(planes, problem.m, problem.n)

    def _generator(self, text):
        generator = self._torch.Generator(device=self._device)
        generator.manual_seed(zlib.crc32(text.encode()))
        return generator

    def _values(self, size, dtype, generator):
        normal = self._torch.randn(size, generator=generator, device=self._device, dtype=self._torch.bfloat16)
        return normal.to(getattr(self._torch, dtype))

    def _scales(self, size, mean, generator):
        uniform = self._torch.rand(size, generator=generator, device=self._device, dtype=self._torch.float32)
        return (uniform + 0.5) * mean
