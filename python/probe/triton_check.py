"""Runs SGLang's Triton block-FP8 GEMM as a server with this environment runs it, and compares it with float32.

Run as `python -c TEXT ORDER`, where ORDER is `{"block": [128, 128], "shapes": [[M, N, K], …]}`. The kernel and its
configuration are looked up by SGLang's own code, with whatever overlay the environment puts in front of it. Prints one
line per shape, a tag and a JSON object. A shape that raises is a wrong one.
"""

import importlib
import json
import os
import sys
import zlib

TAG = "gemmtune-check: "
#: 0.5.21 and later, 0.5.16 to 0.5.20, up to 0.5.15.post1.
MODULES = (
    "sglang.kernels.ops.gemm.fp8_kernel",
    "sglang.kernels.ops.quantization.fp8_kernel",
    "sglang.srt.layers.quantization.fp8_kernel",
)
GEMM = "w8a8_block_fp8_matmul_triton"
LOOKUP = "get_w8a8_block_fp8_configs"


def kernel_module():
    """The module of this release that holds the GEMM."""
    for name in MODULES:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and name.startswith(error.name):
                continue
            raise
        if hasattr(module, GEMM):
            return module
    raise ImportError(f"no module of {', '.join(MODULES)} has {GEMM}")


def check(torch, module, m, n, k, block):
    """‖y − ref‖ / ‖ref‖ of one GEMM (None where y is not finite), and the configuration that served it (None: SGLang's
    default)."""
    block_n, block_k = block
    generator = torch.Generator(device="cuda")
    generator.manual_seed(zlib.crc32(f"{m} {n} {k}".encode()))

    def values(rows, columns):
        normal = torch.randn((rows, columns), generator=generator, device="cuda", dtype=torch.bfloat16)
        return normal.to(torch.float8_e4m3fn)

    def scales(rows, columns):
        # A third apart from one another, so that a scale in the wrong place shows.
        uniform = torch.rand((rows, columns), generator=generator, device="cuda", dtype=torch.float32)
        return (uniform + 0.5) * 0.1

    a, a_scale = values(m, k), scales(m, -(-k // block_k))
    b, b_scale = values(n, k), scales(-(-n // block_n), -(-k // block_k))
    # The GEMM makes its own output; what it is most likely to get is this block, so that an element it does not
    # write is NaN.
    poison = torch.full((m, n), float("nan"), dtype=torch.bfloat16, device="cuda")
    del poison
    out = getattr(module, GEMM)(a, b, a_scale, b_scale, list(block), output_dtype=torch.bfloat16)
    wide_a = a.float() * a_scale.repeat_interleave(block_k, 1)[:, :k]
    wide_b = b.float() * b_scale.repeat_interleave(block_n, 0)[:n].repeat_interleave(block_k, 1)[:, :k]
    wanted = wide_a @ wide_b.T
    found = out.float()
    error = float((found - wanted).norm() / wanted.norm()) if bool(torch.isfinite(found).all()) else None
    table = getattr(module, LOOKUP)(n, k, block_n, block_k)
    return error, table[min(table, key=lambda row: abs(row - m))] if table else None


def main(order):
    """Checks every shape of `order`."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    module = kernel_module()
    for m, n, k in order["shapes"]:
        line = {"M": m, "N": n, "K": k, "relative_error": None, "config": None, "failure": None}
        try:
            line["relative_error"], line["config"] = check(torch, module, m, n, k, order["block"])
        except Exception as failure:
            line["failure"] = f"{type(failure).__name__}: {failure}"[:300]
        sys.stdout.flush()
        os.write(1, (TAG + json.dumps(line) + "\n").encode())
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
