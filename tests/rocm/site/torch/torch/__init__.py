"""As much of torch as the probe, the overlay and the stand-ins of this folder use, in Python floats.

With it the whole loop runs wherever Python does. A tensor is a list in row-major order; there are no strides, so layouts
cannot be shown with it. Rounding to FP8 and bf16 is done on every conversion.
"""

import builtins
import math
import operator
import os
import random
import types
from itertools import chain, repeat

from .version import __version__  # noqa: F401
from . import version  # noqa: F401


#: The GPU that is played.
ARCH = os.environ.get("PLAYED_ARCH", "gfx942")
CU_NUM = {"gfx942": 304, "gfx950": 256}[ARCH]


class dtype:
    """A number format: significand bits, smallest normal exponent, largest value."""

    def __init__(self, name, bits, lowest, largest):
        self.name, self.bits, self.lowest, self.largest = name, bits, lowest, largest

    def __repr__(self):
        return f"torch.{self.name}"

    def round(self, values):
        """Each to the nearest number of this format, ties to even, as far as the largest."""
        if self.bits is None:
            return values
        # A significand of frexp lies in [0.5, 1): it has one bit before those of the format.
        frexp, ldexp, scale, below = math.frexp, math.ldexp, 2.0 ** (self.bits + 1), self.bits + 1
        lowest, largest, finite = self.lowest + 1, self.largest, math.isfinite
        rounded = []
        for value in values:
            if finite(value):
                significand, exponent = frexp(value)
                if exponent >= lowest:
                    value = ldexp(round(significand * scale), exponent - below)
                else:
                    step = ldexp(1.0, lowest - below)
                    value = round(value / step) * step
                if value > largest:
                    value = largest
                elif value < -largest:
                    value = -largest
            rounded.append(value)
        return rounded


float64 = dtype("float64", None, 0, 0)
float32 = dtype("float32", None, 0, 0)
bfloat16 = dtype("bfloat16", 7, -126, 3.4e38)
float16 = dtype("float16", 10, -14, 65504.0)
float8_e4m3fn = dtype("float8_e4m3fn", 3, -6, 448.0)
float8_e4m3fnuz = dtype("float8_e4m3fnuz", 3, -7, 240.0)


def finfo(kind):
    return types.SimpleNamespace(max=kind.largest)


class device:
    """A device by its name."""

    def __init__(self, name):
        self.type = name

    def __str__(self):
        return self.type


class Tensor:
    """Numbers in row-major order."""

    def __init__(self, values, shape, kind=float32):
        self.values, self.shape, self.dtype = values, tuple(shape), kind
        self.columns = None  # of a matrix that was multiplied with
        assert len(values) == math.prod(self.shape)

    def view(self, *shape):
        shape = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        if -1 in shape:
            rest = math.prod(size for size in shape if size != -1)
            shape = [len(self.values) // rest if size == -1 else size for size in shape]
        return Tensor(self.values, shape, self.dtype)

    def to(self, dtype):
        if dtype is self.dtype:
            return self
        return Tensor(dtype.round(self.values), self.shape, dtype)

    def float(self):
        return Tensor(self.values, self.shape, float32)

    def contiguous(self):
        return self

    def clone(self):
        copy = Tensor(list(self.values), self.shape, self.dtype)
        if hasattr(self, "is_shuffled"):
            copy.is_shuffled = True  # the numbers lie as they did
        return copy

    def abs(self):
        return Tensor(list(map(builtins.abs, self.values)), self.shape, self.dtype)

    def amax(self, dim):
        values, shape = self.values, list(self.shape)
        for axis in sorted(dim, reverse=True):
            # Behind the axis lie `inner` numbers that are compared place by place.
            inner = math.prod(shape[axis + 1 :])
            if inner == 1:
                chunks = (values[at : at + shape[axis]] for at in range(0, len(values), shape[axis]))
                values = list(map(builtins.max, chunks))
            else:
                values = list(
                    chain.from_iterable(
                        map(
                            builtins.max,
                            *(values[at + i * inner : at + (i + 1) * inner] for i in range(shape[axis])),
                        )
                        for at in range(0, len(values), inner * shape[axis])
                    )
                )
            del shape[axis]
        return Tensor(values, shape, self.dtype)

    def repeat_interleave(self, times, dim):
        assert dim == 0
        row = len(self.values) // self.shape[0]
        rows = (self.values[i * row : (i + 1) * row] for i in range(self.shape[0]))
        values = list(chain.from_iterable(chain.from_iterable(repeat(one, times) for one in rows)))
        return Tensor(values, (self.shape[0] * times, *self.shape[1:]), self.dtype)

    def numel(self):
        return len(self.values)

    def dim(self):
        return len(self.shape)

    def t(self):
        m, n = self.shape
        return Tensor(list(chain.from_iterable(self.values[j::n] for j in range(n))), (n, m), self.dtype)

    def sum(self):
        return Tensor([math.fsum(self.values)], (), self.dtype)

    def all(self):
        return builtins.all(self.values)

    def __float__(self):
        return self.values[0]

    def __getitem__(self, index):
        if isinstance(index, tuple):
            rows, columns = index
            assert rows == slice(None)
            m, n = self.shape
            kept = range(n)[columns]
            return Tensor([self.values[i * n + j] for i in range(m) for j in kept], (m, len(kept)), self.dtype)
        rows = list(range(self.shape[0])[index]) if isinstance(index, slice) else list(index)
        row = len(self.values) // self.shape[0]
        values = list(chain.from_iterable(self.values[i * row : (i + 1) * row] for i in rows))
        return Tensor(values, (len(rows), *self.shape[1:]), self.dtype)

    def __matmul__(self, other):
        (m, k), n = self.shape, other.shape[1]
        if other.columns is None:
            other.columns = [other.values[j::n] for j in range(n)]
        columns = other.columns
        rows = [self.values[i * k : (i + 1) * k] for i in range(m)]
        return Tensor([sum(map(operator.mul, row, column)) for row in rows for column in columns], (m, n))

    def __mul__(self, other):
        return self._with(other, operator.mul)

    def __truediv__(self, other):
        return self._with(other, operator.truediv)

    def __sub__(self, other):
        return self._with(other, operator.sub)

    def _with(self, other, combine):
        if not isinstance(other, Tensor):
            return Tensor([combine(value, other) for value in self.values], self.shape, self.dtype)
        if other.shape == self.shape:
            return Tensor(list(map(combine, self.values, other.values)), self.shape)
        return Tensor(list(map(combine, self.values, other._spread(self.shape))), self.shape)

    def _spread(self, shape):
        """The numbers of this tensor repeated along the axes in which it has one and `shape` more."""
        assert len(self.shape) == len(shape)
        values, inner = self.values, 1
        for own, wanted in zip(reversed(self.shape), reversed(shape)):
            if own != wanted:
                assert own == 1
                blocks = (values[at : at + inner] for at in range(0, len(values), inner))
                values = list(chain.from_iterable(block * wanted for block in blocks))
            inner *= wanted
        return values


def manual_seed(seed):
    random.seed(seed)


def empty(*shape, device=None):
    return Tensor([0.0] * math.prod(shape), shape)


def zeros(*shape, dtype=float32):
    return Tensor([0.0] * math.prod(shape), shape, dtype)


def randn(*shape, device=None):
    return Tensor([random.gauss(0.0, 1.0) for _ in range(math.prod(shape))], shape)


def tensor(nested, device=None):
    return Tensor(list(chain.from_iterable(nested)), (len(nested), len(nested[0])))


def isfinite(one):
    return Tensor(list(map(math.isfinite, one.values)), one.shape)


compiler = types.SimpleNamespace(is_compiling=lambda: False)
cuda = types.SimpleNamespace(
    is_available=lambda: True,
    synchronize=lambda: None,
    # Few copies of an operand fit: each is a list of Python floats.
    mem_get_info=lambda: (1 << 18, 192 << 30),
    device_count=lambda: 1,
    current_device=lambda: 0,
    get_device_properties=lambda _: types.SimpleNamespace(
        gcnArchName=f"{ARCH}:sramecc+:xnack-", name=f"stand-in of {ARCH}", multi_processor_count=CU_NUM
    ),
)
