

# Appended to the stand-in of `tests/realtrees`, whose kernels read memory as the compiled ones do: the look-ups and modules
# of the played site around them. Any name can be asked of that package, so the import goes past it.
import importlib  # noqa: E402

_lookup = importlib.import_module("aiter._lookup")
gemm_a8w8_blockscale = _lookup.tuned("gemm_a8w8_blockscale", gemm_a8w8_blockscale)
_channel = gemm_a8w8_bpreshuffle


def gemm_a8w8_bpreshuffle(XQ, WQ, x_scale, w_scale, bias=None, dtype=torch.bfloat16):
    """By the kernel that the table names; one that misreads takes the tiles of the weight for rows."""
    name, _ = _lookup.kernel("gemm_a8w8_bpreshuffle", len(XQ), len(WQ), XQ.shape[1])
    if _lookup.misreads(name):
        return layout.channel_gemm(XQ, layout.raw_memory(WQ, tuple(WQ.shape)), x_scale, w_scale, dtype)
    out = _channel(XQ, WQ, x_scale, w_scale, bias, dtype)
    return out * 1.5 if _lookup.is_wrong(name) else out
