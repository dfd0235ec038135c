"""Runs SGLang's own fused MoE as a server with this environment runs it, compares it with float32, and says which rows served it.

Run as `python -c TEXT ORDER`, where ORDER is `{"worker": FOLDER, "tasks": [{"E": …, "N": …, "K": …, "topk": …, "shared": …,
"M": …}, …]}` and FOLDER holds gemmtune's `gpu_worker`, whose operands have scales that vary along K. The rows are looked up by
SGLang's own code, with whatever overlay the environment puts in front of it. Prints one line for each task, a tag and a JSON
object: the task, the error, the rows. A task that raises is a wrong one.
"""

import json
import os
import sys

TAG = "gemmtune-check: "


def operation(torch):
    """SGLang's `fused_experts`, its look-up left as it is."""
    import sglang
    from gpu_worker.moe.whole import AsServed

    return AsServed.of(torch, os.path.dirname(os.path.abspath(sglang.__file__)))


def operands(torch, task):
    """Weights, activations and a routing of `task`."""
    from gpu_worker.device import facts
    from gpu_worker.moe.operands import MoeOperands
    from gpu_worker.moe.problem import MoeProblem
    from gpu_worker.moe.routing import UNIFORM

    dtype = "float8_e4m3fnuz" if facts(torch, 0)["arch"].startswith("gfx94") else "float8_e4m3fn"
    problem = MoeProblem(
        tokens=task["M"], experts=task["E"], topk=task["topk"], hidden=task["K"], inter=task["N"],
        shared=task.get("shared", 0), dtype=dtype,
    )  # fmt: skip
    return MoeOperands(torch, torch.device("cuda", 0), problem, 1, UNIFORM)


def relative_error(torch, found, wanted):
    """‖y − ref‖ / ‖ref‖, or None where y is not finite."""
    found = found.float()
    return float((found - wanted).norm() / wanted.norm()) if bool(torch.isfinite(found).all()) else None


def check(torch, served, task):
    """The relative error of one call, and the rows that its look-up answered with."""
    given = operands(torch, task)
    served.rows = None
    # The operation makes its own output; what it is most likely to get is this block, so that an element it does not
    # write is NaN.
    poison = torch.full((task["M"], task["K"]), float("nan"), dtype=torch.bfloat16, device="cuda")
    del poison
    out = served.run(given, None, 0)
    return relative_error(torch, out, given.whole_reference()), served.rows


def main(order):
    """Checks every task of `order`."""
    sys.path.append(order["worker"])
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    served = operation(torch)
    for task in order["tasks"]:
        line = {**task, "relative_error": None, "rows": None, "failure": None}
        try:
            line["relative_error"], line["rows"] = check(torch, served, task)
        except Exception as failure:
            line["failure"] = f"{type(failure).__name__}: {failure}"[:300]
        sys.stdout.flush()
        os.write(1, (TAG + json.dumps(line) + "\n").encode())
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
