"""A stand-in for aiter, for tests only: block-scaled and per-channel FP8 GEMMs in float32 on the CPU.

It exists to show that SGLang's dispatch, load-time processing and gemmtune's switches hand each kernel the operands
that kernel needs. So the operations read memory as the compiled kernels do, ignoring strides where those ignore
them; a friendlier stand-in (ordinary indexing) would hide every layout mistake. It says nothing about speed and
nothing about the real kernels' arithmetic. Names that SGLang only imports resolve to objects that raise when called.
"""

import sys

import torch

from . import _layout as layout
from ._absent import Absent, absent_attribute, install_finder

install_finder(__name__)

#: Every GEMM that ran, in order: op, M, N, K. The oracle for "which kernel ran".
CALLS = []
#: The quantised activation of the last quantiser call: (fp8 values, scales in row-major (M, K/128) or (M, 1)).
LAST_QUANTISED = []


class dtypes:
    """aiter.dtypes, as far as the block-FP8 path asks."""

    fp8 = layout.FP8
    bf16 = torch.bfloat16
    fp16 = torch.float16
    fp32 = torch.float32
    fp8_e8m0 = getattr(torch, "float8_e8m0fnu", torch.uint8)
    fp4x2 = getattr(torch, "float4_e2m1fn_x2", torch.uint8)
    i8 = torch.int8
    i32 = torch.int32


class _Names(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class QuantType(metaclass=_Names):
    """An enum of which only identity matters here."""


class ActivationType(metaclass=_Names):
    """An enum of which only identity matters here."""


def get_hip_quant(kind):
    """The per-1x128 quantiser; SGLang asks for no other on this path."""
    if kind != QuantType.per_1x128:
        return Absent(f"aiter.get_hip_quant({kind})")
    return per_group_quant_hip


def per_group_quant_hip(
    x, scale=None, quant_dtype=None, group_size=128, transpose_scale=False,
    num_rows=None, num_rows_factor=1, scale_type=None,
):  # fmt: skip
    """Quantises (M, K) per 1x128 group.

    With `transpose_scale` the scales come back with the shape and strides of (M, K/128) but their bytes in (K/128, M)
    order, as the HIP kernel returns them.
    """
    assert scale is None and group_size == 128 and num_rows is None and x.dim() == 2
    values, scales = layout.quantise_groups(x, quant_dtype or dtypes.fp8)
    LAST_QUANTISED[:] = [values, scales.clone()]
    if transpose_scale:
        scales = scales.t().contiguous().view(scales.shape)
    return values, scales


def per_token_quant_hip(x, scale=None, quant_dtype=None, **_):
    """Quantises (M, K) with one scale per row, (M, 1)."""
    assert scale is None and x.dim() == 2
    values, scales = layout.quantise_tokens(x, quant_dtype or dtypes.fp8)
    LAST_QUANTISED[:] = [values, scales]
    return values, scales


def gemm_a8w8_blockscale(XQ, WQ, x_scale, w_scale, dtype=torch.bfloat16, **_):
    """Plain CK: scales row-major in memory, weight row-major, strides ignored; NaN above its safe M."""
    m, n, k = _note("gemm_a8w8_blockscale", XQ, WQ, dtype)
    groups = layout.raw_memory(x_scale, (m, k // 128))
    out = layout.block_gemm(XQ, WQ, groups, w_scale, dtype)
    if m > layout.safe_m(n, k):
        out.fill_(float("nan"))
    return out


def gemm_a8w8_blockscale_bpreshuffle(XQ, WQ, x_scale, w_scale, dtype=torch.bfloat16, **_):
    """CK with shuffled weights: scales column-major in memory, weight in (16, 16) tiles, strides ignored."""
    m, n, k = _note("gemm_a8w8_blockscale_bpreshuffle", XQ, WQ, dtype)
    groups = layout.raw_memory(x_scale, (k // 128, m)).t()
    return layout.block_gemm(XQ, layout.unshuffle(WQ), groups, w_scale, dtype)


def triton_gemm_a8w8_blockscale(XQ, WQ, x_scale, w_scale, dtype=torch.bfloat16, **_):
    """aiter's Triton GEMM: scales through the tensor's own strides, weight row-major."""
    m, n, k = _note("triton", XQ, WQ, dtype)
    return layout.block_gemm(XQ, WQ, x_scale, w_scale, dtype)


def gemm_a8w8_bpreshuffle(XQ, WQ, x_scale, w_scale, bias=None, dtype=torch.bfloat16, **_):
    """One scale per row of the activation and per row of the weight, which is in (16, 16) tiles; strides ignored."""
    assert bias is None
    m, n, k = _note("gemm_a8w8_bpreshuffle", XQ, WQ, dtype)
    return layout.channel_gemm(XQ, layout.unshuffle(layout.raw_memory(WQ, (n, k))), x_scale, w_scale, dtype)


def _note(op, XQ, WQ, dtype):
    assert dtype in (torch.bfloat16, torch.float16), f"{op} writes bf16 or fp16, not {dtype}"
    (m, k), (n, k_weight) = XQ.shape, WQ.shape
    assert k == k_weight, f"{op}: K is {k} and {k_weight}"
    CALLS.append((op, m, n, k))
    return m, n, k


def __getattr__(name):
    return absent_attribute(__name__, name)


def _submodule(name, **attributes):
    module = type(sys)(f"{__name__}.{name}")
    module.__path__ = []
    module.__dict__.update(attributes)
    module.__getattr__ = lambda missing: absent_attribute(module.__name__, missing)
    sys.modules[module.__name__] = module
    return module


ops = _submodule("ops")
ops.quant = _submodule("ops.quant", per_group_quant_hip=per_group_quant_hip, per_token_quant_hip=per_token_quant_hip)
ops.shuffle = _submodule("ops.shuffle", shuffle_weight=layout.shuffle)
ops.triton = _submodule("ops.triton")
ops.triton.gemm_a8w8_blockscale = _submodule(
    "ops.triton.gemm_a8w8_blockscale", gemm_a8w8_blockscale=triton_gemm_a8w8_blockscale
)
