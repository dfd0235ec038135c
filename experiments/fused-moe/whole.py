#!/usr/bin/env python3
"""Times whole fused MoE operations with the rows that a tuning run found, beside SGLang's default and shipped rows.

    python3 experiments/fused-moe/whole.py OUT TUNED [--sglang-root FOLDER] [--seconds 100]

TUNED is the output folder of `gemmtune tune --backend sglang-moe`. Each of its rows is timed in SGLang's own `fused_experts`,
interleaved with the default and with the row that served before, under a uniform and a skewed routing; the two GEMMs alone
are timed too. Last, a row whose BLOCK_SIZE_K spans two scale blocks: refused by the worker, and run all the same. Writes
OUT/whole.jsonl as it goes.
"""

import argparse
import json
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "python"))

from gpu_worker.moe.problem import DOWN, UP
from gpu_worker.moe.routing import SKEWED, UNIFORM
from gpu_worker.moe.serving import MoeServing, Task
from gpu_worker.turns import whole

DEFAULT = {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 128, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 32, "num_warps": 4}
DEFAULT["num_stages"] = 3
TIMING = {"warmups": 1, "samples": 11, "min_sample_us": 300.0, "stop_above_us": None}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("tuned")
    parser.add_argument("--sglang-root")
    parser.add_argument("--seconds", type=float, default=100.0)
    parser.add_argument("--cache")
    arguments = parser.parse_args()
    end = time.time() + arguments.seconds
    with open(os.path.join(arguments.tuned, "configs", "provenance.jsonl"), encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    options = {"sglang_root": arguments.sglang_root, "cache_dir": arguments.cache}
    worker = MoeServing(0, options)
    with open(os.path.join(arguments.out, "whole.jsonl"), "w", encoding="utf-8") as out:

        def note(row):
            out.write(json.dumps(row) + "\n")
            out.flush()

        note({"kind": "device", **worker.device()})
        for row in rows:
            if time.time() > end:
                break
            note(compared(worker, row))
        note(wrong_scale_block(worker, rows[0]))
    worker.close()
    sys.stdout.flush()
    os._exit(0)


def shape_of(row, part="whole", block_m=0):
    shape = {name: row[name] for name in ("E", "N", "K", "topk", "M")}
    return {**shape, "shared": row["E"] % 2, "part": part, "block_m": block_m}


def compared(worker, row):
    """The row's times beside those of the default and of what served before, each median of TIMING's samples, µs."""
    default = {"up": DEFAULT, "down": None}
    candidates = {"default": default, "before": row["incumbent"], "raced": row["config"]}
    us = {}
    for routing in (UNIFORM, SKEWED):
        worker._routing = routing
        worker._kept.clear()
        answer = whole(worker.time(shape_of(row), list(candidates.values()), TIMING))
        us[routing] = {name: middle(outcome) for name, outcome in zip(candidates, answer["outcomes"])}
    worker._routing = UNIFORM
    worker._kept.clear()
    kept, worker._runs_whole = worker._runs_whole, False
    answer = whole(worker.time(shape_of(row), list(candidates.values()), TIMING))
    us["gemms"] = {name: middle(outcome) for name, outcome in zip(candidates, answer["outcomes"])}
    worker._runs_whole = kept
    numbers = whole(worker.check(shape_of(row), list(candidates.values()), 1))["outcomes"]
    found = {"kind": "whole", **{name: row[name] for name in ("E", "N", "K", "topk", "M")}, "us": us}
    found["numbers"] = dict(zip(candidates, (one.get("result", one) for one in numbers)))
    found["relative_error"] = relative_error(worker, row, row["config"])
    found["raced"] = row["config"]
    u = us[UNIFORM]
    print(f"E={row['E']} N={row['N']} M={row['M']}: {u} skewed {us[SKEWED]} gemms {us['gemms']}"
          f" error {found['relative_error']:.4f}", flush=True)  # fmt: skip
    return found


def middle(outcome):
    return statistics.median(outcome["result"]["us"]) if outcome["outcome"] == "done" else outcome["detail"]


def relative_error(worker, row, candidate):
    """Frobenius norm of the difference over that of the float32 reference, run whatever the planner says."""
    task = Task.read(shape_of(row), worker._dtype)
    operands = worker._bench.operands(task.problem, UNIFORM, 7, routings=1)
    launch = worker._operation().launch(operands, candidate)
    launch.run(0)
    wanted = operands.whole_reference()
    return float((launch.out.float() - wanted).norm() / wanted.norm())


def wrong_scale_block(worker, row):
    """A BLOCK_SIZE_K of two scale blocks: what the worker answers, and what comes out when it is run all the same."""
    row = {**row, "M": 64}
    wide = {**DEFAULT, "BLOCK_SIZE_K": 256, "num_stages": 2}
    candidates = [{"up": wide, "down": None}]
    refusal = whole(worker.time(shape_of(row), candidates, TIMING))["outcomes"][0]
    errors = {gemm: relative_error(worker, row, {"up": wide if gemm == UP else {**DEFAULT}, "down": wide if gemm == DOWN else DEFAULT})
              for gemm in (UP, DOWN)}  # fmt: skip
    found = {"kind": "block_k_256", "refusal": refusal, "relative_error_when_forced": errors}
    print(found, flush=True)
    return found


if __name__ == "__main__":
    main()
