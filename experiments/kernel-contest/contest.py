"""Kernel families against one another on block-FP8 GEMMs: SGLang's Triton kernel, gemmtune's, DeepGEMM, FlashInfer, cuBLASLt, CUTLASS.

    python3 experiments/kernel-contest/contest.py OUT --sglang-root FOLDER [--tables FOLDER] [--ms 1,2,4,…] [--limit-s 600]

Four phases, each of which writes what it found at once: `prepare` has libraries compile their kernels in processes of their
own (DeepGEMM and FlashInfer call nvcc, seconds for each shape), `check` compares a sample of gemmtune's settings with
float32, `race` times all settings of gemmtune's kernels for each shape of up to 32 rows, and `contest` times the three best
of each beside all other families, interleaved in one request: cold L2, device graphs for all, one clock. Needs an NVIDIA GPU
with torch and Triton; a library that is not there is said by name. `--sglang-root` holds the `sglang` package (its kernel
file is enough), `--tables` rows tuned by gemmtune, else what SGLang ships for the device is taken.

`summarise.py OUT/contest.jsonl` makes the tables.
"""

import argparse
import concurrent.futures
import json
import os
import statistics
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
PYTHON = os.path.join(HERE, "..", "..", "python")
sys.path[:0] = [HERE, PYTHON, os.path.join(HERE, "..", "sglang-triton")]

import space
from gpu_worker.plan import Problem
from gpu_worker.turns import whole
from race import serving, tables
from settings import candidates

QWEN3_8B = ((6144, 4096), (4096, 4096), (24576, 4096), (4096, 12288))
"""(N, K) of its four linear layers without tensor parallelism."""

DEEPSEEK_V3_TP8 = ((2112, 7168), (3072, 1536), (7168, 2048), (4608, 7168), (7168, 2304), (4096, 512))
"""fused_qkv_a, q_b, o, dense gate_up, dense down, kv_b."""

MS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)

LIBRARIES = ("deepgemm", "flashinfer", "cublaslt", "cutlass")

RACE = {"warmups": 1, "samples": 4, "min_sample_us": 150.0, "stop_above_us": None}
CONTEST = {"warmups": 1, "samples": 9, "min_sample_us": 200.0, "stop_above_us": None}

EARLY_AT = (1, 4, 8, 16)
"""M at which the first setting of gemmtune's kernels and DeepGEMM is timed with programmatic dependent launch, too."""


def open_bench(sglang_root):
    """A bench on the first device; kernels are loaded when needed."""
    from gpu_worker.bench import Bench

    return Bench(0, {"sglang_root": sglang_root, "load_ahead": False})


def warm(name, n, k, ms):
    """One launch of a library for each M, so that it compiles what it compiles. In a process of its own."""
    bench = open_bench("")
    for m in ms:
        begun = time.perf_counter()
        found = whole(bench.check(space.shape(m, n, k), [{"family": name}], 1))["outcomes"][0]
        print(name, n, k, m, f"{time.perf_counter() - begun:.1f} s", found.get("detail", ""), flush=True)


def prepare(bench, shapes, ms, rows, log):
    """Has everything compiled before anything is timed."""
    children = []
    for name in ("flashinfer", "deepgemm"):
        # The first opens the library alone: FlashInfer compiles its sources then, two minutes on 16 cores.
        first = [sys.executable, os.path.abspath(__file__), "--warm", name, f"{shapes[0][0]}x{shapes[0][1]}", "1"]
        subprocess.run(first, stdout=log, stderr=subprocess.STDOUT, check=False)
        for n, k in shapes:
            command = [*first[:4], f"{n}x{k}", ",".join(map(str, ms))]
            children.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
    waiting = []
    for n, k in shapes:
        for m in ms:
            for row in triton_rows(rows, m, n, k):
                waiting.append(threading.Event())
                bench.prepare(space.shape(m, n, k), row, lambda _, done=waiting[-1]: done.set())
    with concurrent.futures.ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)) - 2)) as pool:
        jobs = {}
        for family, m, n, k, setting in settings(bench, shapes, (8, 16, 24, 32)):
            tiles = family.token_tiles(m)
            jobs.setdefault((family.name, tiles, *family.macros(setting, tiles).items()), (family, m, n, k, setting))
        list(pool.map(lambda job: job[0].prepare(Problem(*job[1:4], "float8_e4m3fn"), job[4]), jobs.values()))
    for event in waiting:
        event.wait()
    for child in children:
        child.wait()


def settings(bench, shapes, ms):
    """All settings of gemmtune's two streaming kernels: family, shape, setting."""
    from gpu_worker.families import Unavailable

    for name in ("stream", "stream-wg"):
        try:
            family = bench._families.open(name)
        except Unavailable:
            continue
        for n, k in shapes:
            for m in ms:
                for setting in candidates(type(family), m, n, k, bench._facts):
                    yield family, m, n, k, setting


def triton_rows(rows, m, n, k):
    """The row that SGLang would look up, and its default."""
    found = [serving(rows.get((n, k)), m)]
    return found if found[0] == space.DEFAULT else [*found, space.DEFAULT]


def check(bench, shapes, file):
    """A sample of gemmtune's settings against float32, with every number of rows that leaves a tile partly empty."""
    for n, k in shapes:
        for m in (1, 3, 8, 13, 16, 24, 27, 32):
            by_family = {}
            for family, _, _, _, setting in settings(bench, ((n, k),), (m,)):
                by_family.setdefault(family.name, []).append({"family": family.name, **setting})
            for found in by_family.values():
                sample = found[:: max(1, len(found) // 8)]
                outcomes = whole(bench.check(space.shape(m, n, k), sample, m + n))["outcomes"]
                put(file, {"phase": "check", "m": m, "n": n, "k": k, "found": list(zip(sample, outcomes))})


def race(bench, m, n, k, file):
    """All settings of gemmtune's kernels on one shape; the three best of each."""
    by_family = {}
    for family, _, _, _, setting in settings(bench, ((n, k),), (m,)):
        by_family.setdefault(family.name, []).append({"family": family.name, **setting})
    best = []
    for name, entered in by_family.items():
        outcomes = whole(bench.time(space.shape(m, n, k), entered, RACE))["outcomes"]
        timed = [
            (statistics.median(one["result"]["us"]), index) for index, one in enumerate(outcomes) if "result" in one
        ]
        ranked = [(round(us, 2), entered[index]) for us, index in sorted(timed)]
        put(
            file,
            {"phase": "race", "m": m, "n": n, "k": k, "family": name, "entered": len(entered), "ranked": ranked[:12]},
        )
        best += [candidate for _, candidate in ranked[:3]]
    return best


def contest(bench, m, n, k, own, rows, file):
    """Every family on one shape, interleaved in one request, each entrant's numbers checked."""
    entered = list(own)
    entered += triton_rows(rows, m, n, k)
    entered += [{"family": name} for name in LIBRARIES]
    if m in EARLY_AT:
        for name in ("stream", "stream-wg", "deepgemm"):
            first = next((one for one in entered if one.get("family") == name), None)
            entered += [{**first, "EARLY": 1}] if first else []
    shape = space.shape(m, n, k)
    answer = whole(bench.time(shape, entered, CONTEST))
    checked = whole(bench.check(shape, entered, m + 11))["outcomes"]
    row = {
        "m": m,
        "n": n,
        "k": k,
        "clocks_mhz": answer["clocks_mhz"],
        "throttle": answer["throttle_reasons"],
        "entrants": [],
    }
    for candidate, timed, numbers in zip(entered, answer["outcomes"], checked):
        one = {"family": candidate.get("family", "sglang-triton"), "setting": {**candidate}}
        one["setting"].pop("family", None)
        if one["setting"].get("EARLY"):
            one["family"] += "+early"
        if timed["outcome"] == "done":
            one["us"] = [round(us, 3) for us in timed["result"]["us"]]
            one["numbers"] = numbers.get("result", numbers)
        else:
            one["refused"] = timed["detail"]
        row["entrants"].append(one)
    put(file, row)


def put(file, row):
    """One line, written at once."""
    file.write(json.dumps(row) + "\n")
    file.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?")
    parser.add_argument("--sglang-root", default=None)
    parser.add_argument("--tables", default=None)
    parser.add_argument("--ms", default=",".join(map(str, MS)))
    parser.add_argument("--limit-s", type=float, default=600.0)
    parser.add_argument("--warm", nargs=3, metavar=("FAMILY", "NxK", "MS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.warm:
        name, weight, ms = arguments.warm
        n, k = map(int, weight.split("x"))
        warm(name, n, k, list(map(int, ms.split(","))))
        os._exit(0)  # a library's threads may not end by themselves
    begun = time.perf_counter()
    left = lambda: arguments.limit_s - (time.perf_counter() - begun)
    os.makedirs(arguments.out, exist_ok=True)
    shapes, ms = QWEN3_8B + DEEPSEEK_V3_TP8, list(map(int, arguments.ms.split(",")))
    bench = open_bench(arguments.sglang_root)
    device = bench.device()
    rows = tables(device["shipped"], device["name"].replace(" ", "_")) if device["shipped"] else {}
    rows.update(tables(arguments.tables) if arguments.tables else {})
    with open(os.path.join(arguments.out, "prepare.log"), "w") as log:
        prepare(bench, shapes, ms, rows, log)
    print(f"prepared after {time.perf_counter() - begun:.0f} s", flush=True)
    with open(os.path.join(arguments.out, "check.jsonl"), "w") as file:
        check(bench, shapes, file)
    raced = open(os.path.join(arguments.out, "race.jsonl"), "w")
    with open(os.path.join(arguments.out, "contest.jsonl"), "w") as file:
        put(file, {"device": device, "families": bench._families.document(), "timing": CONTEST})
        for m in ms:
            for n, k in shapes:
                if left() > 10:
                    contest(bench, m, n, k, race(bench, m, n, k, raced) if m <= 32 else [], rows, file)
            print(f"M = {m}, {time.perf_counter() - begun:.0f} s", flush=True)
    bench.close()
    os._exit(0)


if __name__ == "__main__":
    main()
