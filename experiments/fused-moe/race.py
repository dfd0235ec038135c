#!/usr/bin/env python3
"""Races settings of SGLang's fused-MoE kernel, and measures an exhaustive sweep to judge the race by.

    python3 experiments/fused-moe/race.py OUT --sglang-root FOLDER [--seconds 480] [--models qwen3-30b-a3b,…]

For each model and M: up and down are raced separately for each BLOCK_SIZE_M (24 settings, then the neighbours of the
leaders for as long as one is faster), the pair with the smallest sum is timed as one unit beside SGLang's default row
and the row of its shipped table, interleaved, and checked against float32. For the first model a sweep of all settings of
the space is measured in the same run, and the winners' times are compared with the sweep's best in one interleaved
request. Cold weights (routings rotate), device graphs, uniform routing; winners are timed on a skewed one too.

What is timed are the two GEMMs: quantisation, sorting, activation and sum do not depend on the settings but for the
sorting's block size, and are not here. Writes OUT/moe.jsonl as it goes, OUT/summary.txt at the end.
"""

import argparse
import glob
import itertools
import json
import math
import os
import re
import statistics
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "python"))

from gpu_worker.moe.bench import MoeBench, Refused
from gpu_worker.moe.problem import DOWN, UP, MoeProblem
from gpu_worker.moe.routing import SKEWED

MODELS = {
    # name: experts, topk, hidden, inter on one rank, fused shared experts
    "qwen3-30b-a3b-tp1": (128, 8, 2048, 768, 0),
    "minimax-m2.5-tp4": (256, 8, 3072, 384, 0),
    "deepseek-v3-tp8": (257, 9, 7168, 256, 1),
    "qwen3-235b-a22b-tp4": (128, 8, 4096, 384, 0),
}
MS = (1, 4, 16, 64, 256, 1024, 4096)
DEFAULT = {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 128, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 32, "num_warps": 4}
DEFAULT["num_stages"] = 3
"""`get_default_config` of every release for FP8 with block scales, on CUDA, for every M."""

AXES = {
    "BLOCK_SIZE_N": (32, 64, 128, 256),
    "BLOCK_SIZE_K": (64, 128),
    "GROUP_SIZE_M": (1, 32),
    "num_warps": (4, 8),
    "num_stages": (2, 3, 4, 5),
}
QUICK = {"warmups": 1, "samples": 2, "min_sample_us": 150.0, "stop_above_us": None}
FULL = {"warmups": 1, "samples": 9, "min_sample_us": 300.0, "stop_above_us": None}


BLOCKS_M = (16, 32, 64, 128)


def blocks_m(problem):
    """BLOCK_SIZE_M worth trying: within a factor of four of the mean rows of an expert that is hit."""
    rows = 2 ** math.ceil(math.log2(max(problem.pairs / problem.experts_hit(), 1)))
    return [m for m in BLOCKS_M if rows <= 4 * m and m <= max(4 * rows, 16)]


def setting(block_m, **rest):
    return {"BLOCK_SIZE_M": block_m, **rest}


def space(block_m):
    for values in itertools.product(*AXES.values()):
        yield setting(block_m, **dict(zip(AXES, values)))


def start(block_m):
    for n, warps, stages in itertools.product((64, 128, 256), (4, 8), (3, 4)):
        for group in (1, 32) if block_m >= 64 else (1,):
            yield setting(
                block_m, BLOCK_SIZE_N=n, BLOCK_SIZE_K=128, GROUP_SIZE_M=group, num_warps=warps, num_stages=stages
            )


def neighbours(candidate):
    for axis, values in AXES.items():
        at = values.index(candidate[axis])
        for other in (at - 1, at + 1):
            if 0 <= other < len(values):
                yield {**candidate, axis: values[other]}


def frozen(candidate):
    return tuple(sorted(candidate.items()))


class Race:
    def __init__(self, bench, out, budget_s):
        self.bench, self.out, self.end = bench, out, time.time() + budget_s

    def note(self, **row):
        self.out.write(json.dumps(row) + "\n")
        self.out.flush()

    def quick(self, operands, gemm, candidates, seen):
        """Times what was not timed; `seen` maps settings to microseconds (inf: does not run)."""
        fresh = [one for one in {frozen(c): c for c in candidates}.values() if frozen(one) not in seen]
        self.bench.prepare(operands.problem, gemm, fresh)
        for index in range(0, len(fresh), 24):
            part = fresh[index : index + 24]
            for one, us in zip(part, self.bench.time(operands, [((gemm, one),) for one in part], QUICK)):
                seen[frozen(one)] = min(us) if isinstance(us, list) else math.inf

    def one_gemm(self, operands, gemm, block_m):
        """The leaders for one GEMM under one BLOCK_SIZE_M: (candidate, quick us), fastest first."""
        seen = {}
        self.quick(operands, gemm, start(block_m), seen)
        best = math.inf
        for _ in range(4):
            leaders = sorted(seen, key=seen.get)[:2]
            now = seen[leaders[0]] if leaders else math.inf
            if not now < best * 0.995:
                break
            best = now
            self.quick(operands, gemm, [n for one in leaders for n in neighbours(dict(one))], seen)
        running = [(dict(one), us) for one, us in sorted(seen.items(), key=lambda item: item[1]) if us < math.inf]
        return running, len(seen)

    def model(self, name, ms, shipped):
        experts, topk, hidden, inter, shared = MODELS[name]
        found = {}
        for m in ms:
            if time.time() > self.end:
                return found
            problem = MoeProblem(m, experts, topk, hidden, inter, shared)
            began, device = time.time(), self.bench.device_us
            operands = self.bench.operands(problem)
            for block_m in blocks_m(problem):
                for gemm in (UP, DOWN):
                    self.bench.prepare(problem, gemm, start(block_m))
            pairs, tried = [], 0
            for block_m in blocks_m(problem):
                ups, first = self.one_gemm(operands, UP, block_m)
                downs, second = self.one_gemm(operands, DOWN, block_m)
                tried += first + second
                if ups and downs:
                    pairs += [(a[1] + b[1], a[0], b[0]) for a in ups[:2] for b in downs[:2]]
            pairs.sort(key=lambda pair: pair[0])
            best = pairs[0][0]
            finalists = [(up, down) for total, up, down in pairs if total <= 1.06 * best][:5]
            raced_us = self.bench.device_us - device
            rows = {"default": (DEFAULT, DEFAULT)}
            if shipped:
                rows["shipped"] = tuple(table[min(table, key=lambda key: abs(key - m))] for table in shipped)
            for index, pair in enumerate(finalists):
                rows[f"finalist {index}"] = pair
            units = [((UP, up), (DOWN, down)) for up, down in rows.values()]
            us = dict(zip(rows, self.bench.time(operands, units, FULL)))
            middle = {key: statistics.median(value) for key, value in us.items() if isinstance(value, list)}
            winner = min((key for key in middle if key.startswith("finalist")), key=middle.get)
            checks = {gemm: self.bench.check(operands, gemm, rows[winner][at]) for at, gemm in enumerate((UP, DOWN))}
            skewed = self.bench.operands(problem, SKEWED)
            again = [((UP, up), (DOWN, down)) for up, down in (rows[winner], rows["default"])]
            skew = self.bench.time(skewed, again, FULL)
            found[m] = rows[winner]
            floor = (problem.weight_bytes(UP) + problem.weight_bytes(DOWN)) / 4.0e6
            self.note(
                kind="race", model=name, m=m, us=middle, samples=us, up=rows[winner][0], down=rows[winner][1],
                checks=checks, tried=tried, device_us=raced_us, seconds=time.time() - began, floor_us=floor,
                skewed_us=[statistics.median(one) if isinstance(one, list) else one for one in skew],
                block_m_tried=blocks_m(problem),
            )  # fmt: skip
            print(
                f"{name:20s} M={m:5d} default {middle.get('default', math.nan):8.1f} shipped {middle.get('shipped', math.nan):8.1f}"
                f" raced {middle[winner]:8.1f} x{middle.get('default', math.nan) / middle[winner]:.2f} skewed x"
                f"{statistics.median(skew[1]) / statistics.median(skew[0]):.2f} floor {floor:6.1f} tried {tried}"
                f" right {all(c['right'] for c in checks.values())} {time.time() - began:.1f} s",
                flush=True,
            )
        return found

    def sweep(self, name, ms, found):
        """Every setting of the space, then the best of it beside the race's winner."""
        experts, topk, hidden, inter, shared = MODELS[name]
        problems = {m: MoeProblem(m, experts, topk, hidden, inter, shared) for m in ms if m in found}
        for problem in problems.values():
            for block_m in BLOCKS_M:
                for gemm in (UP, DOWN):
                    self.bench.prepare(problem, gemm, space(block_m))
        for m, problem in problems.items():
            if time.time() > self.end:
                return
            began, device = time.time(), self.bench.device_us
            operands = self.bench.operands(problem)
            leaders = []
            counted = 0
            for block_m in BLOCKS_M:
                seen = {UP: {}, DOWN: {}}
                for gemm in (UP, DOWN):
                    self.quick(operands, gemm, space(block_m), seen[gemm])
                    counted += len(seen[gemm])
                ups, downs = (sorted(seen[gemm], key=seen[gemm].get)[:4] for gemm in (UP, DOWN))
                leaders += [(seen[UP][a] + seen[DOWN][b], dict(a), dict(b)) for a in ups for b in downs]
            leaders = [one for one in leaders if one[0] < math.inf]
            leaders.sort(key=lambda one: one[0])
            swept_us = self.bench.device_us - device
            entrants = [found[m]] + [(up, down) for _, up, down in leaders[:8]]
            units = [((UP, up), (DOWN, down)) for up, down in entrants]
            us = [statistics.median(one) for one in self.bench.time(operands, units, FULL)]
            self.note(
                kind="sweep", model=name, m=m, race_us=us[0], best_us=min(us[1:]), quality=min(us[1:]) / us[0],
                settings=counted, device_us=swept_us, seconds=time.time() - began, best=entrants[1 + us[1:].index(min(us[1:]))],
            )  # fmt: skip
            print(
                f"sweep {name} M={m}: raced {us[0]:.1f}, best of {counted} {min(us[1:]):.1f}, quality"
                f" {min(us[1:]) / us[0]:.3f}, device {swept_us / 1e6:.2f} s, {time.time() - began:.0f} s",
                flush=True,
            )


def shipped_table(package, name, device):
    """((up rows, down rows), where from): SGLang's own table for a model on this device, of the newest Triton folder.

    USE_TMA is left out: it chooses another way to load operands, which is not raced here.
    """
    experts, _, _, inter, _ = MODELS[name]
    stem = f"E={experts},N={inter},device_name={device},dtype=fp8_w8a8,block_shape=[[]128, 128[]]"
    found = {}
    for suffix in ("", "_down"):
        pattern = os.path.join(package, "srt/layers/moe/**/configs/triton_*", f"{stem}{suffix}.json")
        places = glob.glob(pattern, recursive=True)
        places.sort(key=lambda path: [int(part) for part in re.findall(r"triton_([\d_]+)/", path)[0].split("_")])
        if places:
            with open(places[-1], encoding="utf-8") as text:
                rows = {int(m): row for m, row in json.load(text).items()}
            for row in rows.values():
                row.pop("USE_TMA", None)
            found[suffix] = rows, os.path.relpath(places[-1], package)
    if "" not in found:
        return None, None
    up, down = found[""], found.get("_down", found[""])
    return (up[0], down[0]), [up[1], down[1]]


def wrong_scale_block(bench, out):
    """A BLOCK_SIZE_K of two scale blocks: refused when asked for, and wrong when run all the same."""
    from gpu_worker.moe import plan as planning

    problem = MoeProblem(64, 16, 4, 2048, 768)
    operands = bench.operands(problem)
    candidate = {**DEFAULT, "BLOCK_SIZE_K": 256, "num_stages": 2}
    refusal = bench.time(operands, [((UP, candidate),)], QUICK)[0]
    checked, planning.checked = planning.checked, lambda settings, _block: dict(settings)
    try:
        bench._ask = lambda wanted, _candidate, urgent=False: type("Ready", (), {"wait": lambda self: {"shared": 0}})()
        numbers = bench.check(operands, UP, candidate)
    except Refused as error:
        numbers = str(error)
    finally:
        planning.checked = checked
        del bench._ask
    row = {"kind": "block_k_256", "refusal": refusal, "numbers_when_forced": numbers}
    out.write(json.dumps(row) + "\n")
    print(row, flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--sglang-root", required=True)
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--cache")
    arguments = parser.parse_args()
    os.makedirs(arguments.out, exist_ok=True)
    package = os.path.join(arguments.sglang_root, "sglang")
    bench = MoeBench(0, package, arguments.cache or os.path.join(arguments.out, "cache"))
    device = bench.facts["name"].replace(" ", "_")
    began = time.time()
    with open(os.path.join(arguments.out, "moe.jsonl"), "w", encoding="utf-8") as out:
        facts = {"kind": "device", **bench.facts, "sglang": bench.kernel.version, "origin": bench.kernel.origin}
        out.write(json.dumps(facts, default=str) + "\n")
        race = Race(bench, out, arguments.seconds)
        wrong_scale_block(bench, out)
        names = arguments.models.split(",")
        found = {}
        for name in names:
            shipped, origin = shipped_table(package, name, device)
            race.note(kind="table", model=name, shipped=origin)
            print(name, "shipped table:", origin, flush=True)
            found[name] = race.model(name, MS, shipped)
            print(f"{name}: {time.time() - began:.0f} s so far", flush=True)
        race.sweep(names[0], [16, 64, 256, 4096, 4, 1024, 1], found[names[0]])
    bench.close()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
