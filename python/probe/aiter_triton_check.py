"""Runs aiter's Triton block-FP8 GEMM as a server with this environment runs it, and compares it with float32.

Run as `python -c TEXT ORDER`, where ORDER is `{"aiter": "gfx942", "shapes": [[M, N, K], …]}`. The kernel and its row are looked up
by aiter's own code, with whatever overlay the environment puts in front of its files. Prints one line per shape, a tag and a
JSON object. A shape that raises is a wrong one.
"""

import importlib
import json
import os
import sys
import zlib

TAG = "gemmtune-check: "
GEMM = "gemm_a8w8_blockscale"
#: v0.1.10 and later, up to v0.1.9: what is called, and beside it what looks rows up.
MODULES = (
    (
        "aiter.ops.triton.gemm.basic.gemm_a8w8_blockscale",
        "aiter.ops.triton._triton_kernels.gemm.basic.gemm_a8w8_blockscale",
    ),
    ("aiter.ops.triton.gemm_a8w8_blockscale", "aiter.ops.triton._triton_kernels.gemm_a8w8_blockscale"),
)


def modules():
    """The module of the GEMM and the one of its look-up."""
    for names in MODULES:
        try:
            return [importlib.import_module(name) for name in names]
        except ModuleNotFoundError as error:
            if error.name is None or not names[0].startswith(error.name):
                raise
    raise ImportError(f"no module of {', '.join(name for name, _ in MODULES)}")


def check(torch, module, m, n, k, dtype):
    """‖y − ref‖ / ‖ref‖ of one GEMM; None where y is not finite."""
    generator = torch.Generator(device="cuda")
    generator.manual_seed(zlib.crc32(f"{m} {n} {k}".encode()))

    def values(rows, columns):
        normal = torch.randn((rows, columns), generator=generator, device="cuda", dtype=torch.bfloat16)
        return normal.to(dtype)

    def scales(rows, columns):
        # A third apart from one another, so that a scale in the wrong place shows.
        uniform = torch.rand((rows, columns), generator=generator, device="cuda", dtype=torch.float32)
        return (uniform + 0.5) * 0.1

    a, a_scale = values(m, k), scales(m, -(-k // 128))
    b, b_scale = values(n, k), scales(-(-n // 128), -(-k // 128))
    # The GEMM makes its own output; what it is most likely to get is this block, so that an element it does not
    # write is NaN.
    poison = torch.full((m, n), float("nan"), dtype=torch.bfloat16, device="cuda")
    del poison
    out = getattr(module, GEMM)(a, b, a_scale, b_scale, dtype=torch.bfloat16)
    wide_a = a.float() * a_scale.repeat_interleave(128, 1)[:, :k]
    wide_b = b.float() * b_scale.repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :k]
    wanted = wide_a @ wide_b.T
    found = out.float()
    return float((found - wanted).norm() / wanted.norm()) if bool(torch.isfinite(found).all()) else None


def row_of(lookup, m, n, k):
    """The row that aiter's look-up answers with: alone up to v0.1.9, with a word on where it is from since."""
    answer = lookup._get_config(m, n, k)
    return dict(answer[0] if isinstance(answer, tuple) else answer)


def main(order):
    """Checks every shape of `order`."""
    import torch

    # CDNA3 computes with an FP8 of its own, into which SGLang turns weights when it loads them.
    dtype = torch.float8_e4m3fnuz if order["aiter"].startswith("gfx94") else torch.float8_e4m3fn
    module, lookup = modules()
    for m, n, k in order["shapes"]:
        line = {"M": m, "N": n, "K": k, "relative_error": None, "config": None, "failure": None}
        try:
            line["config"] = row_of(lookup, m, n, k)
            line["relative_error"] = check(torch, module, m, n, k, dtype)
        except Exception as failure:
            line["failure"] = f"{type(failure).__name__}: {failure}"[:300]
        sys.stdout.flush()
        os.write(1, (TAG + json.dumps(line) + "\n").encode())
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
