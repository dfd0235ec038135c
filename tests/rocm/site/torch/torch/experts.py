"""What a fused MoE asks of the played torch besides what GEMMs do. `aiter/_fused_moe.py` puts it in place."""

import builtins
import math
import operator
import random
import types
from itertools import chain

import torch
from torch import Tensor, device, float32

int32 = torch.dtype("int32", None, 0, 0)
_to, _clone, _sum = Tensor.to, Tensor.clone, Tensor.sum


def to(self, dtype):
    return self if isinstance(dtype, device) else _to(self, dtype)


def clone(self):
    copy = _clone(self)
    if hasattr(self, "tiled"):
        copy.tiled = True  # the numbers lie as they did
    return copy


def sum_rows(self, dim=None):
    if dim is None:
        return _sum(self)
    m, n = rows_of(self, dim)
    return Tensor([math.fsum(self.values[i * n : (i + 1) * n]) for i in range(m)], (m,), self.dtype)


def rows_of(one, dim):
    assert dim == 1 and len(one.shape) == 2
    return one.shape


def log(self):
    return Tensor([math.log(value) if value else -math.inf for value in self.values], self.shape)


def topk(self, count, dim):
    m, n = rows_of(self, dim)
    rows = [self.values[i * n : (i + 1) * n] for i in range(m)]
    found = [sorted(range(n), key=row.__getitem__, reverse=True)[:count] for row in rows]
    return types.SimpleNamespace(indices=Tensor(list(chain.from_iterable(found)), (m, count), int32))


def tolist(self):
    if len(self.shape) == 1:
        return list(self.values)
    n = self.shape[1]
    return [self.values[i * n : (i + 1) * n] for i in range(self.shape[0])]


def add(self, other):
    return self._with(other, operator.add)


def rand(*shape, device=None):
    return Tensor([random.random() for _ in range(math.prod(shape))], shape)


def stack(tensors):
    first = tensors[0]
    return Tensor(list(chain.from_iterable(one.values for one in tensors)), (len(tensors), *first.shape), first.dtype)


def cat(tensors, dim):
    first = tensors[0]
    if dim == 0:
        rows = builtins.sum(one.shape[0] for one in tensors)
        return Tensor(list(chain.from_iterable(one.values for one in tensors)), (rows, *first.shape[1:]), first.dtype)
    joined = [list(chain.from_iterable(rows)) for rows in zip(*(tolist(one) for one in tensors))]
    return Tensor(list(chain.from_iterable(joined)), (len(joined), len(joined[0])), first.dtype)


def silu(one):
    return Tensor([value / (1 + math.exp(-max(value, -700.0))) for value in one.values], one.shape, float32)


Tensor.to, Tensor.clone, Tensor.sum, Tensor.__add__ = to, clone, sum_rows, add
Tensor.log, Tensor.topk, Tensor.tolist = log, topk, tolist
torch.int32, torch.rand, torch.stack, torch.cat = int32, rand, stack, cat
torch.nn = types.SimpleNamespace(functional=types.SimpleNamespace(silu=silu))
