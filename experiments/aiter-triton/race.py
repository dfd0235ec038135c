"""aiter's Triton block-FP8 GEMM on an NVIDIA GPU: do the rows that aiter ships for AMD run there, are their numbers right, and how much
faster is what a race finds.

    python3 experiments/aiter-triton/race.py OUT --aiter-root FOLDER --gemmtune BINARY [--limit-s 170]

FOLDER holds the package `aiter`, or the part of it that `subset.sh` takes out of a checkout. Needs torch and Triton, and an NVIDIA
GPU. First every row shipped for gfx942 and gfx950 is compiled and its numbers are compared with float32 (`rows.jsonl`), without
the options that only AMD's compiler takes; then `gemmtune tune --backend aiter-triton` races three GEMMs of DeepSeek-V3 at TP8
against the rows of each architecture (`gfx942/`, `gfx950/`). `summary.json` says it in short and is written anew after each part.
"""

import argparse
import collections
import glob
import json
import math
import os
import re
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "python"))

ARCHITECTURES = ("gfx942", "gfx950")

WEIGHTS = ((2112, 7168), (3072, 1536), (7168, 2048))
"""(N, K) of fused_qkv_a, q_b and o of DeepSeek-V3 at TP8: both architectures have a file for each."""

MS = (1, 8, 32, 128, 512, 2048)

LARGEST = 64 << 20
"""Bytes of a weight that is checked, at most: a row does not run differently on a larger one."""


def shipped(root):
    """(gfx, N, K, M, key, row) of every row for a weight of its own; the M is the largest that the key serves, 4096 for `any`."""
    for path in sorted(
        glob.glob(os.path.join(root, "aiter/ops/triton/configs/gemm/gfx9*-GEMM-A8W8_BLOCKSCALE-N=*.json"))
    ):
        gfx, n, k = re.search(r"(gfx\w+)-GEMM-A8W8_BLOCKSCALE-N=(\d+)-K=(\d+)", os.path.basename(path)).groups()
        with open(path, encoding="utf-8") as file:
            for key, row in json.load(file).items():
                m = int(key.removeprefix("M_LEQ_")) if key.startswith("M_LEQ_") else 4096
                if gfx in ARCHITECTURES and int(n) * int(k) <= LARGEST:
                    yield gfx, int(n), int(k), m, key, row


def rows(out, root, limit_s):
    """What becomes of every shipped row."""
    from gpu_worker.bench import Bench
    from gpu_worker.turns import whole

    begun = time.perf_counter()
    bench = Bench(0, {"problem": "aiter_gemm", "aiter_root": root, "config_for": "gfx942", "load_ahead": False})
    waiting, by_shape = [], collections.OrderedDict()
    for gfx, n, k, m, key, row in shipped(root):
        shape = {"op": "gemm_a8w8_blockscale", "m": m, "n": n, "k": k, "dtype": "torch.float8_e4m3fn"}
        waiting.append(threading.Event())
        bench.prepare(shape, row, lambda _, done=waiting[-1]: done.set())
        by_shape.setdefault((m, n, k), (shape, []))[1].append((gfx, key, row))
    with open(os.path.join(out, "rows.jsonl"), "w", encoding="utf-8") as file:
        file.write(json.dumps({"device": bench.device()}) + "\n")
        for (m, n, k), (shape, entered) in by_shape.items():
            if time.perf_counter() - begun > limit_s:
                break
            outcomes = whole(bench.check(shape, [row for _, _, row in entered], m + n))["outcomes"]
            for (gfx, key, row), outcome in zip(entered, outcomes):
                file.write(json.dumps({"gfx": gfx, "N": n, "K": k, "M": m, "key": key, "row": row, **outcome}) + "\n")
            file.flush()
    os._exit(0)


def counted(path):
    """Rows by what became of them."""
    found, examples = collections.Counter(), {}
    with open(path, encoding="utf-8") as file:
        for line in list(file)[1:]:
            row = json.loads(line)
            if row["outcome"] == "done":
                numbers = row["result"]
                right = numbers["err_ratio"] <= 0.01 and not numbers["not_finite"]
                kind = f"{row['gfx']}: {'right numbers' if right else 'wrong numbers'}"
            else:
                kind = f"{row['gfx']}: {row['reason']}"
                examples.setdefault(kind, [row["row"], row["detail"][:300]])
            found[kind] += 1
    return {"counts": dict(sorted(found.items())), "examples": examples}


def race(out, root, gfx, gemmtune, python, budget_s):
    """`gemmtune tune` against the rows of one architecture; its outcome in short."""
    shapes = os.path.join(out, "s.csv")
    with open(shapes, "w", encoding="utf-8") as file:
        file.write("M,N,K,dtype\n" + "".join(f"{m},{n},{k},torch.float8_e4m3fn\n" for m in MS for n, k in WEIGHTS))
    command = [gemmtune, "--json", "tune", "--backend", "aiter-triton", "--aiter-root", root, "--config-for", gfx]
    command += ["--shapes", shapes, "-o", os.path.join(out, gfx), "--python", python, "--budget", f"{budget_s:.0f}s"]
    with open(os.path.join(out, f"{gfx}.log"), "w", encoding="utf-8") as log:
        ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, check=False)
    with open(os.path.join(out, f"{gfx}.json"), "w", encoding="utf-8") as file:
        file.write(ran.stdout)
    try:
        outcome = json.loads(ran.stdout)
    except ValueError:
        return {"exit": ran.returncode, "said": ran.stdout[-500:]}
    if "rows" not in outcome:
        return {"exit": ran.returncode, "said": outcome}
    lines, gains = [], []
    for row in sorted(outcome["rows"], key=lambda row: (row["shape"]["n"], row["shape"]["m"])):
        shape, before = row["shape"], row["incumbent_us"]
        gain = before / row["us"] if before else None
        gains += [gain] if gain else []
        lines.append(
            {
                **{name.upper(): shape[name] for name in ("n", "k", "m")},
                "before_us": before,
                "us": row["us"],
                "gain": gain and round(gain, 3),
                "kept": row["incumbent_kept"],
                "err_ratio": row["err_ratio"],
                "row": row["candidate"],
            }
        )
    mean = math.exp(sum(map(math.log, gains)) / len(gains)) if gains else None
    return {
        "exit": ran.returncode,
        "rows": lines,
        "mean_gain": mean,
        "without_incumbent": sum(line["gain"] is None for line in lines),
        "failed": outcome["failed"],
        "not_reached": len(outcome["not_reached"]),
        "quarantined": outcome["quarantined"],
        "seconds": outcome["seconds"],
        "device_s": outcome["busy_s"],
        "clocks": outcome["clocks"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--aiter-root", required=True)
    parser.add_argument("--gemmtune", default="gemmtune")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--limit-s", type=float, default=170.0)
    parser.add_argument("--rows", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    root, begun = os.path.abspath(arguments.aiter_root), time.perf_counter()
    left = lambda: arguments.limit_s - (time.perf_counter() - begun)
    os.makedirs(arguments.out, exist_ok=True)
    if arguments.rows:
        return rows(arguments.out, root, arguments.limit_s)
    summary = {}

    def put(part, found):
        summary[part] = found
        with open(os.path.join(arguments.out, "summary.json"), "w", encoding="utf-8") as file:
            json.dump(summary, file, indent=1)
        print(f"{part}: {time.perf_counter() - begun:.0f} s", flush=True)

    # A process of its own, so that nothing of it is on the device while others are timed.
    first = [sys.executable, os.path.abspath(__file__), arguments.out, "--aiter-root", root, "--rows"]
    with open(os.path.join(arguments.out, "rows.log"), "w", encoding="utf-8") as log:
        limit = max(30.0, left() / 3)
        try:
            subprocess.run([*first, "--limit-s", f"{limit:.0f}"], stderr=log, check=False, timeout=limit + 30)
        except subprocess.TimeoutExpired:
            print("the rows were not all checked", flush=True)
    path = os.path.join(arguments.out, "rows.jsonl")
    put("rows", counted(path) if os.path.exists(path) else {"counts": {}, "examples": {}})
    for index, gfx in enumerate(ARCHITECTURES):
        # A race that has begun is finished, and a worker takes ten seconds to start.
        budget = left() / (len(ARCHITECTURES) - index) - 20
        put(gfx, race(arguments.out, root, gfx, arguments.gemmtune, arguments.python, max(10.0, budget)))
    print(json.dumps({part: found.get("mean_gain", found.get("counts")) for part, found in summary.items()}))
    return None


if __name__ == "__main__":
    main()
