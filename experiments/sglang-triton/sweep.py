"""Measures every setting of SGLang's tuning space on every shape, with the timing the race uses.

    python3 experiments/sglang-triton/sweep.py OUT [--sglang-root FOLDER] [--limit-s 560] [--m 1,16,...]

Three passes over each shape: every distinct program once (one sample), the best 48 and all within 15 % of the best
again (5 samples, interleaved), the best 8 and the default once more (11 samples). Then, where the kernel takes
them, SPLIT_K and SWAP_AB for M up to 128. Writes OUT/sweep.jsonl.gz (one line per timing), OUT/compile.jsonl.gz
(one line per compile), OUT/summary.json. A shape already in OUT/sweep.jsonl.gz is skipped, so a run that stopped at
its limit is continued by the same command.
"""

import argparse
import gzip
import json
import os
import statistics
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.insert(0, os.path.join(HERE, "..", "..", "python"))

import space
from gpu_worker.bench import Bench
from gpu_worker.turns import whole

BATCH = 16
"""Candidates per request: what the host prepares ahead while the device runs."""

EXTENDED_MS = 128
"""Largest M at which SPLIT_K and SWAP_AB are tried: beyond, there are tiles enough for every multiprocessor."""

TIMINGS = {
    "first": {"warmups": 1, "samples": 1, "min_sample_us": 100.0, "stop_above_us": None},
    "again": {"warmups": 1, "samples": 5, "min_sample_us": 200.0, "stop_above_us": None},
    "final": {"warmups": 1, "samples": 11, "min_sample_us": 200.0, "stop_above_us": None},
}


class Sweep:
    """One run over the shapes."""

    def __init__(self, bench, out, limit_s, begun):
        self._bench = bench
        self._begun = begun
        self._limit_s = limit_s
        self._sweep_path = os.path.join(out, "sweep.jsonl.gz")
        self.done = set()
        if os.path.exists(self._sweep_path):
            with gzip.open(self._sweep_path, "rt") as old:
                for line in old:
                    row = json.loads(line)
                    if row["pass"] == "shape":
                        self.done.add((row["m"], row["n"], row["k"], row["space"]))
        self._file = gzip.open(self._sweep_path, "at", compresslevel=6)
        self._compiles = gzip.open(os.path.join(out, "compile.jsonl.gz"), "at")
        self._lock = threading.Lock()
        self.device_s = 0.0
        self.timings = 0
        self.clocks = []
        self.throttled = 0

    def late(self):
        """Whether the limit is near."""
        return time.perf_counter() - self._begun > self._limit_s

    def prepare(self, m, n, k, settings):
        """Queues compiles, the slowest first."""
        slow_first = sorted(settings, key=lambda one: -one["BLOCK_SIZE_M"] * one["BLOCK_SIZE_N"] / one["num_warps"])
        for setting in slow_first:
            self._bench.prepare(
                space.shape(m, n, k), setting, lambda outcome, setting=setting: self._compiled(m, setting, outcome)
            )

    def _compiled(self, m, setting, outcome):
        with self._lock:
            self._compiles.write(json.dumps({"m": m, "setting": setting, **outcome}) + "\n")

    def shape(self, m, n, k, name, settings):
        """All three passes over one shape."""
        begun, device_before = time.perf_counter(), self.device_s
        first = self._pass("first", m, n, k, settings)
        ranked = sorted(first, key=lambda one: one[0])
        best = ranked[0][0]
        near = [one for place, one in enumerate(ranked) if place < 48 or (place < 96 and one[0] <= 1.15 * best)]
        again = sorted(self._pass("again", m, n, k, [setting for _, setting in near]), key=lambda one: one[0])
        last = [setting for _, setting in again[:8]]
        if space.DEFAULT not in last:
            last.append(space.DEFAULT)
        final = sorted(self._pass("final", m, n, k, last), key=lambda one: one[0])
        row = {"pass": "shape", "m": m, "n": n, "k": k, "space": name, "settings": len(settings), "ran": len(first)}
        row["best_us"], row["best"] = final[0]
        row["default_us"] = next(us for us, setting in final if setting == space.DEFAULT)
        row["wall_s"] = time.perf_counter() - begun
        row["device_s"] = self.device_s - device_before
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        print(json.dumps(row), flush=True)

    def _pass(self, name, m, n, k, settings):
        """Times `settings` in batches; `(median, setting)` of those that ran."""
        found = []
        for start in range(0, len(settings), BATCH):
            batch = settings[start : start + BATCH]
            answer = whole(self._bench.time(space.shape(m, n, k), batch, TIMINGS[name]))
            self.device_s += answer["device_s"]
            self.clocks += answer["clocks_mhz"]
            self.throttled += bool((answer["throttle_reasons"] or 0) & ~1)
            for setting, outcome in zip(batch, answer["outcomes"]):
                row = {"pass": name, "m": m, "n": n, "k": k, "setting": list(setting.values())}
                if outcome["outcome"] == "done":
                    us = outcome["result"]["us"]
                    row["us"] = [round(one, 3) for one in us]
                    found.append((statistics.median(us), setting))
                else:
                    row["refused"] = outcome["reason"]
                self._file.write(json.dumps(row, separators=(",", ":")) + "\n")
                self.timings += 1
        return found

    def close(self):
        self._file.close()
        self._compiles.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--sglang-root", default=None)
    parser.add_argument("--limit-s", type=float, default=560.0)
    parser.add_argument("--m", default=",".join(map(str, space.MS)))
    arguments = parser.parse_args()
    os.makedirs(arguments.out, exist_ok=True)
    begun = time.perf_counter()
    bench = Bench(0, {"sglang_root": arguments.sglang_root})
    sweep = Sweep(bench, arguments.out, arguments.limit_s, begun)
    ms = [int(one) for one in arguments.m.split(",")]
    plain, extended = space.full_space(), space.extended_space()
    work = [(m, n, k, "plain", plain) for m in ms for n, k in space.SHAPES]
    if bench.device()["capabilities"]:
        work += [(m, n, k, "extended", extended) for m in ms if m <= EXTENDED_MS for n, k in space.SHAPES]
    work = [one for one in work if one[:4] not in sweep.done]
    # One (N, K) stands for all in compiling: only M's divisibility tells specialisations apart here. SPLIT_K's sum
    # is compiled for each M x N, so those are prepared per shape.
    queued = set()
    for m, n, k, name, settings in work:
        chosen = space.distinct(settings, m)
        kind = (1 if m == 1 else 16 if m % 16 == 0 else 2, name)
        if name == "extended":
            sweep.prepare(m, n, k, chosen)
            continue
        new = [one for one in chosen if (*kind, tuple(one.values())) not in queued]
        queued |= {(*kind, tuple(one.values())) for one in new}
        sweep.prepare(m, n, k, new)
    for m, n, k, name, settings in work:
        if sweep.late():
            print(f"stopped at the limit before {m} x {n} x {k} {name}", flush=True)
            break
        chosen = space.distinct(settings, m)
        sweep.shape(m, n, k, name, chosen + ([space.DEFAULT] if name == "extended" else []))
    summary = {
        "device": bench.device(),
        "wall_s": time.perf_counter() - begun,
        "device_s": sweep.device_s,
        "timings": sweep.timings,
        "sm_mhz": [min(sweep.clocks), statistics.median(sweep.clocks), max(sweep.clocks)] if sweep.clocks else [],
        "requests_with_throttling": sweep.throttled,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    sweep.close()
    bench.close()
    with open(os.path.join(arguments.out, "summary.json"), "w") as file:
        json.dump(summary, file, indent=1)
    print(json.dumps(summary), flush=True)
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
