"""The numerics checks of gemmtune, with the numbers played: what a check calls and what it says of it are its own lines.

    python check.py TEXT ORDER

The text is executed but for its operands and its arithmetic: a right output is 0.0017 off, a wrong one 0.41, and one that no
kernel wrote is not finite. STANDIN_WRONG=1 makes SGLang's Triton kernel wrong where a tuned table serves it.
"""

import json
import os
import sys

import torch  # before SGLang, as the overlay expects it

text, order = sys.argv[1], json.loads(sys.argv[2])
check = {"__name__": "check"}
exec(compile(text, "check", "exec"), check)


def error_of(out):
    return {"right": 0.0017, "wrong": 0.41}.get(out.content)


if "linear" in order:

    def operands(torch, m, n, k):
        scales = torch.Tensor(-(-n // 128), -(-k // 128), dtype=torch.float32)
        return torch.Tensor(m, k, dtype=torch.bfloat16), torch.Tensor(n, k), scales

    torch.full = lambda shape, value, dtype, device: torch.Tensor(*shape, dtype=dtype)
    check.update(operands=operands, reference=lambda *_: None, relative_error=lambda torch, found, wanted: error_of(found))
    check["main"](order)
elif "tasks" in order:
    from types import SimpleNamespace

    def operands(torch, task):
        m, experts, hidden, n, topk = (task[key] for key in ("M", "E", "K", "N", "topk"))
        weights = {"up": torch.Tensor(experts, 2 * n, hidden), "down": torch.Tensor(experts, hidden, n)}
        scales = torch.Tensor(experts, 1, 1, dtype=torch.float32)
        return SimpleNamespace(
            hidden=torch.Tensor(m, hidden, dtype=torch.bfloat16),
            weights={name: (weight, scales) for name, weight in weights.items()},
            routes=[(torch.Tensor(m, topk), torch.Tensor(m, topk))],
            problem=SimpleNamespace(experts=experts),
            whole_reference=lambda: None,
        )

    torch.full = lambda shape, value, dtype, device: torch.Tensor(*shape, dtype=dtype)
    check.update(operands=operands, relative_error=lambda torch, found, wanted: error_of(found))
    check["main"](order)
elif "aiter" in order:
    # Operands and arithmetic apart, the check's own lines: which modules, which row.
    module, lookup = check["modules"]()
    for m, n, k in order["shapes"]:
        out = module.gemm_a8w8_blockscale(torch.Tensor(m, k), torch.Tensor(n, k), None, None)
        row = check["row_of"](lookup, m, n, k)
        wrong = os.environ.get("STANDIN_WRONG") and row["BLOCK_SIZE_M"] != 128
        line = {"M": m, "N": n, "K": k, "relative_error": 0.41 if wrong else error_of(out), "config": row, "failure": None}
        print("gemmtune-check: " + json.dumps(line))
else:
    from sglang.kernels.ops.quantization import fp8_kernel

    for m, n, k in order["shapes"]:
        table = fp8_kernel.get_w8a8_block_fp8_configs(n, k, *order["block"])
        config = table[min(table, key=lambda row: abs(row - m))] if table else None
        wrong = os.environ.get("STANDIN_WRONG") and table
        line = {"M": m, "N": n, "K": k, "relative_error": 0.41 if wrong else 0.0017, "config": config, "failure": None}
        print("gemmtune-check: " + json.dumps(line))
