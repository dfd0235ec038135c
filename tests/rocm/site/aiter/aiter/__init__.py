"""A stand-in for aiter on the stand-in torch: block-scaled and per-channel FP8 GEMMs in Python floats, for tests only.

It shows the loop around the kernels: which table is read, which module is built, which kernel runs. Layouts are shown by
the other stand-in (`tests/realtrees/standin`), which needs torch.
"""

import enum
import os

import torch
from torch import profiler

from . import _lookup


class dtypes:
    """aiter.dtypes, as far as this path asks."""

    fp8 = torch.float8_e4m3fnuz if torch.ARCH == "gfx942" else torch.float8_e4m3fn
    bf16 = torch.bfloat16


class QuantType(enum.Enum):
    """aiter.QuantType, as far as this path asks."""

    No, per_Tensor, per_Token, per_1x32, per_1x128, per_128x128 = range(6)


class ActivationType(enum.Enum):
    """aiter.ActivationType."""

    Silu, Gelu = range(2)


def get_hip_quant(_kind):
    return per_group_quant


def per_group_quant(x, quant_dtype=None, transpose_scale=False):
    """(M, K) to FP8 with one scale per 1 x 128 group."""
    m, k = x.shape
    if os.environ.get("PLAYED_QUANTISER") != "unseen":
        profiler.launched("dynamic_per_group_scaled_quant_kernel", 2.0)
    if profiler.is_open():
        return torch.zeros(m, k, dtype=quant_dtype or dtypes.fp8), torch.zeros(m, k // 128)
    groups = x.float().view(m, k // 128, 128)
    scale = groups.abs().amax(dim=(2,)) / torch.finfo(dtypes.fp8).max
    values = (groups / scale.view(m, k // 128, 1)).view(m, k).to(quant_dtype or dtypes.fp8)
    # Transposed: the shape of (M, K/128), its numbers in (K/128, M) order.
    return values, scale.t().view(m, k // 128) if transpose_scale else scale


def _block_gemm(XQ, WQ, x_scale, w_scale, dtype=torch.bfloat16):
    assert not hasattr(WQ, "is_shuffled"), "a shuffled weight is read as a plain one"
    return _product(XQ, WQ, x_scale, w_scale, dtype)


def _shuffled_gemm(XQ, WQ, x_scale, w_scale, dtype=torch.bfloat16):
    assert hasattr(WQ, "is_shuffled"), "a plain weight is read as a shuffled one"
    m, groups = x_scale.shape
    return _product(XQ, WQ, x_scale.view(groups, m).t(), w_scale, dtype)


def _product(XQ, WQ, x_scale, w_scale, dtype):
    m, k = XQ.shape
    if profiler.is_open():
        return torch.zeros(m, WQ.shape[0], dtype=dtype)
    x = (XQ.float().view(m, k // 128, 128) * x_scale.view(m, k // 128, 1)).view(m, k)
    return (x @ _wide(WQ, w_scale)).to(dtype)


#: Weights as numbers, by identity: making them takes longer than a GEMM with one row. The weight is kept with them, so
#: that no other one gets its identity.
_WIDE = {}


def _wide(WQ, w_scale):
    if id(WQ) not in _WIDE:
        n, k = WQ.shape
        rows = w_scale.repeat_interleave(128, 0)[:n]
        w = (WQ.float().view(n, k // 128, 128) * rows.view(n, k // 128, 1)).view(n, k)
        _WIDE[id(WQ)] = WQ, w.t()
    return _WIDE[id(WQ)][1]


gemm_a8w8_blockscale = _lookup.tuned("gemm_a8w8_blockscale", _block_gemm)


gemm_a8w8_blockscale_bpreshuffle = _lookup.tuned("gemm_a8w8_blockscale_bpreshuffle", _shuffled_gemm)


def per_token_quant_hip(x, scale=None, quant_dtype=None):
    """(M, K) to FP8 with one scale per row, (M, 1)."""
    m, k = x.shape
    profiler.launched("dynamic_per_token_scaled_quant_kernel", 2.0)
    if profiler.is_open():
        return torch.zeros(m, k, dtype=quant_dtype or dtypes.fp8), torch.zeros(m, 1)
    scale = x.float().abs().amax(dim=(1,)).view(m, 1) / torch.finfo(dtypes.fp8).max
    return (x.float() / scale).to(quant_dtype or dtypes.fp8), scale


def gemm_a8w8_bpreshuffle(XQ, WQ, x_scale, w_scale, bias=None, dtype=torch.bfloat16):
    """One scale per row of the activation and per row of the weight, which is laid out in tiles."""
    assert bias is None and hasattr(WQ, "is_shuffled"), "a plain weight is read as a shuffled one"
    (m, k), n = XQ.shape, WQ.shape[0]
    name, us = _lookup.kernel("gemm_a8w8_bpreshuffle", m, n, k)
    profiler.launched(name, us)
    if profiler.is_open():
        return torch.zeros(m, n, dtype=dtype)
    out = XQ.float() * x_scale @ _wide_rows(WQ, w_scale, _lookup.misreads(name))
    return (out * 1.5 if _lookup.is_wrong(name) else out).to(dtype)


def _wide_rows(WQ, w_scale, misread):
    """A weight with one scale per row as numbers; `misread` takes its tiles, 16 rows by 16 columns, for rows."""
    key = id(WQ), misread
    if key not in _WIDE:
        n, k = WQ.shape
        values = WQ.values
        if misread:
            tiles = (values[(i + row) * k + j :][:16] for i in range(0, n, 16) for j in range(0, k, 16) for row in range(16))
            values = [value for run in tiles for value in run]
        _WIDE[key] = WQ, (torch.Tensor(values, (n, k)) * w_scale).t()
    return _WIDE[key][1]
