"""Runs SGLang's own block-FP8 linear as a server with this environment runs it, compares it with float32, and says what
computed it.

Run as `python -c TEXT ORDER`, where ORDER is `{"linear": NAME, "shapes": [[M, N, K], …]}` and NAME is the function of
`fp8_utils` that serves the model. The environment's overlay has to be one that records (`GEMMTUNE_RECORD_DIR`): which
kernel computed a GEMM is read from its records. Prints one line per shape, a tag and a JSON object. A shape that raises is
a wrong one.
"""

import importlib
import json
import os
import sys
import zlib

TAG = "gemmtune-check: "
MODULE = "sglang.srt.layers.quantization.fp8_utils"
BLOCK = 128
LARGEST = 448.0  # of float8_e4m3fn


def operands(torch, m, n, k):
    """Activations in bfloat16, and a weight in FP8 with its scales. No two scales are alike, so that one in the wrong place
    shows."""
    generator = torch.Generator(device="cuda")
    generator.manual_seed(zlib.crc32(f"{m} {n} {k}".encode()))

    def normal(rows, columns):
        return torch.randn((rows, columns), generator=generator, device="cuda", dtype=torch.float32)

    def factors(rows, columns):
        uniform = torch.rand((rows, columns), generator=generator, device="cuda", dtype=torch.float32)
        return uniform + 0.5

    blocks = -(-k // BLOCK)
    x = (normal(m, k) * factors(m, blocks).repeat_interleave(BLOCK, 1)[:, :k]).to(torch.bfloat16)
    weight = normal(n, k).to(torch.float8_e4m3fn)
    return x, weight, factors(-(-n // BLOCK), blocks) * 0.1


def reference(torch, x, weight, scales):
    """The product in float32, of the activations as the server's quantiser rounds them: 128 of a row share a scale."""
    m, k = x.shape
    groups = x.float().view(m, k // BLOCK, BLOCK)
    scale = groups.abs().amax(2, keepdim=True).clamp(min=1e-10) / LARGEST
    rounded = (groups / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn).float() * scale
    wide = scales.repeat_interleave(BLOCK, 0)[: weight.shape[0]].repeat_interleave(BLOCK, 1)[:, :k]
    return rounded.view(m, k) @ (weight.float() * wide).T


def relative_error(torch, found, wanted):
    """‖y − ref‖ / ‖ref‖, or None where y is not finite."""
    found = found.float()
    return float((found - wanted).norm() / wanted.norm()) if bool(torch.isfinite(found).all()) else None


def check(torch, linear, m, n, k):
    """The relative error of one call of the linear."""
    x, weight, scales = operands(torch, m, n, k)
    # The linear makes its own output; what it is most likely to get is this block, so that an element that is not written
    # is NaN.
    poison = torch.full((m, n), float("nan"), dtype=torch.bfloat16, device="cuda")
    del poison
    out = linear(input=x, weight=weight, block_size=[BLOCK, BLOCK], weight_scale=scales)
    return relative_error(torch, out, reference(torch, x, weight, scales))


def computed_by(folder, m, n, k):
    """What the overlay's records say computed this GEMM, each once."""
    targets = []
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            for line in file:
                record = json.loads(line)
                if "target" in record and (record.get("M"), record.get("N"), record.get("K")) == (m, n, k):
                    targets.append(record["target"])
    return sorted(set(targets))


def main(order):
    """Checks every shape of `order`."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    linear = getattr(importlib.import_module(MODULE), order["linear"])
    folder = os.environ["GEMMTUNE_RECORD_DIR"]
    for m, n, k in order["shapes"]:
        line = {"M": m, "N": n, "K": k, "relative_error": None, "computed_by": [], "failure": None}
        try:
            line["relative_error"] = check(torch, linear, m, n, k)
        except Exception as failure:
            line["failure"] = f"{type(failure).__name__}: {failure}"[:300]
        if os.path.isdir(folder):
            line["computed_by"] = computed_by(folder, m, n, k)
        sys.stdout.flush()
        os.write(1, (TAG + json.dumps(line) + "\n").encode())
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
