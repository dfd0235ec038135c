"""Memory layouts of block-scaled FP8 operands, and the arithmetic on them. CPU, float32."""

import torch


def _arch():
    return torch.cuda.get_device_properties(0).gcnArchName.split(":")[0]


def _rocm():
    return tuple(int(part) for part in torch.version.hip.split("-")[0].split(".")[:2])


#: gfx942 computes in the fnuz variant, gfx95x in the OCP one.
FP8 = torch.float8_e4m3fnuz if _arch() == "gfx942" else torch.float8_e4m3fn

#: Largest M at which plain CK returns numbers on gfx95x with ROCm < 7.2; SGLang 0.5.16 to 0.5.23,
#: `fp8_utils._AITER_GFX95_CK_W8A8_MAX_SAFE_M`.
_SAFE_M = {(2560, 4096): 2048, (4096, 1024): 4096, (4096, 2048): 2048, (4608, 4096): 512}


def safe_m(n, k):
    """Largest M at which plain CK is right for this (N, K) here."""
    if _arch().startswith("gfx95") and _rocm() < (7, 2):
        return _SAFE_M.get((n, k), 1 << 30)
    return 1 << 30


def quantise_groups(x, dtype):
    """(M, K) to FP8 with one float32 scale per 1x128 group; scales are row-major (M, K/128)."""
    m, k = x.shape
    groups = x.float().view(m, k // 128, 128)
    scales = groups.abs().amax(dim=-1).clamp(min=1e-10) / torch.finfo(dtype).max
    return (groups / scales.unsqueeze(-1)).to(dtype).view(m, k), scales


def raw_memory(tensor, shape):
    """The memory from the tensor's first element on, as a row-major tensor of `shape`, whatever its strides claim."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return torch.as_strided(tensor, shape, strides, tensor.storage_offset())


def expand_weight_scale(w_scale, n, k):
    """(ceil(N/128), K/128) block scales spread over (N, K)."""
    blocks = raw_memory(w_scale, ((n + 127) // 128, (k + 127) // 128)).float()
    return blocks.repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :k]


def block_gemm(xq, wq, groups, w_scale, dtype):
    """(M, K) FP8 by (N, K) FP8 with group and block scales, accumulated in float32."""
    x = xq.float() * groups.float().repeat_interleave(128, 1)
    w = wq.float() * expand_weight_scale(w_scale, *wq.shape)
    return (x @ w.t()).to(dtype)


def quantise_tokens(x, dtype):
    """(M, K) to FP8 with one float32 scale per row; scales are (M, 1)."""
    scales = x.float().abs().amax(dim=-1, keepdim=True).clamp(min=1e-10) / torch.finfo(dtype).max
    return (x.float() / scales).to(dtype), scales


def channel_gemm(xq, wq, x_scale, w_scale, dtype):
    """(M, K) FP8 by (N, K) FP8 with one scale per row of either, accumulated in float32."""
    rows, columns = raw_memory(x_scale, (len(xq), 1)), raw_memory(w_scale, (1, len(wq)))
    return ((xq.float() @ wq.float().t()) * rows.float() * columns.float()).to(dtype)


def shuffle(w, layout=(16, 16), use_int4=False):
    """aiter's (16, 16) weight layout: tiles of 16 rows by 32 bytes, each as two halves of 16 bytes, rows inner."""
    assert layout == (16, 16) and not use_int4 and w.element_size() == 1
    n, k = w.shape[-2:]
    tiles = w.view(torch.uint8).reshape(-1, n // 16, 16, k // 32, 2, 16).permute(0, 1, 3, 4, 2, 5).contiguous()
    shuffled = tiles.view(w.shape).view(w.dtype)
    shuffled.is_shuffled = True
    return shuffled


def unshuffle(w):
    """Inverse of `shuffle`."""
    n, k = w.shape[-2:]
    tiles = w.view(torch.uint8).reshape(-1, n // 16, k // 32, 2, 16, 16).permute(0, 1, 4, 2, 3, 5).contiguous()
    return tiles.view(w.shape).view(w.dtype)
