"""Races the shapes of the sweep with gemmtune, twice, and measures what the winners are worth.

    python3 experiments/sglang-triton/race.py OUT --gemmtune PROGRAM --sweep SWEEP_FOLDER \
        [--sglang-root FOLDER] [--skip-faults] [-- further arguments of `gemmtune tune`]

1. race 1 with an empty compile cache, race 2 with the cache of race 1; same shapes, separate folders;
2. race A/A: race 2's table as today's, so that every win over an incumbent is one over an equal;
3. a race with three faults injected: a candidate that faults, one that hangs, one that returns NaN;
4. every shape once more, interleaved in one request: race 1's row, race 2's, A/A's, the sweep's best, the default.

Rows are looked up as SGLang does, by the nearest M in the written file, so that a row chosen for another M counts.
Writes OUT/shapes.csv, OUT/race-*.json (what gemmtune printed), the tables, OUT/evaluation.jsonl, OUT/summary.json.
"""

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.insert(0, os.path.join(HERE, "..", "..", "python"))

import space

FAULTS = [
    {"match": {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "num_stages": 5, "num_warps": 4}, "fault": "illegal_address"},
    {"match": {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "num_stages": 3, "num_warps": 4}, "fault": "nan"},
    {"match": {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 128, "num_stages": 3, "num_warps": 4}, "fault": "hang"},
]
"""Settings that a race at M = 16 tries; the sweep's best there is none of them."""

EVALUATION = {"warmups": 1, "samples": 21, "min_sample_us": 200.0, "stop_above_us": None}


class Utilisation:
    """The driver's own figure of how much of the time a kernel ran, sampled ten times a second."""

    def __init__(self):
        self.values = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _sample(self):
        try:
            import pynvml

            pynvml.nvmlInit()
            device = pynvml.nvmlDeviceGetHandleByIndex(0)
        except Exception as error:
            print(f"utilisation is not watched: {error}", file=sys.stderr)
            return
        while not self._stop.wait(0.1):
            self.values.append(pynvml.nvmlDeviceGetUtilizationRates(device).gpu)


def write_shapes(path, shapes):
    """The shapes file that `gemmtune tune` reads."""
    with open(path, "w") as file:
        file.write("op,M,N,K,dtype,records\n")
        for m, n, k in shapes:
            file.write(f"w8a8_block_fp8_matmul,{m},{n},{k},torch.float8_e4m3fn,1\n")


def tune(arguments, name, shapes, cache, extra=(), environment=None, limit_s=240):
    """One run of `gemmtune tune`; how it ended, and its table's folder."""
    folder = os.path.join(arguments.out, f"race-{name}")
    shapes_path = os.path.join(arguments.out, f"shapes-{name}.csv")
    write_shapes(shapes_path, shapes)
    command = [arguments.gemmtune, "tune", "--backend", "sglang-triton", "--shapes", shapes_path, "-o", folder, "--json"]
    if arguments.sglang_root:
        command += ["--sglang-root", arguments.sglang_root]
    command += [*extra, *arguments.further]
    run_environment = {**os.environ, "XDG_CACHE_HOME": cache, **(environment or {})}
    run_environment.pop("TRITON_CACHE_DIR", None)
    begun = time.perf_counter()
    with Utilisation() as utilisation:
        try:
            ran = subprocess.run(command, env=run_environment, capture_output=True, text=True, timeout=limit_s)
            status, out, err = ran.returncode, ran.stdout, ran.stderr
        except subprocess.TimeoutExpired as late:
            status, out, err = None, str(late.stdout), str(late.stderr)
    wall_s = time.perf_counter() - begun
    try:
        outcome = json.loads(out)
    except ValueError:
        outcome = {"stdout": out[-4000:]}
    document = {"status": status, "wall_s": wall_s, "utilisation": utilisation.values, "outcome": outcome}
    document["stderr"] = err[-6000:]
    with open(os.path.join(arguments.out, f"race-{name}.json"), "w") as file:
        json.dump(document, file)
    busy = utilisation.values
    print(name, "status", status, f"wall {wall_s:.1f} s", "utilisation", statistics.mean(busy) if busy else None, flush=True)
    print(err[-1500:], flush=True)
    return document, folder


def tables(folder):
    """The rows of every JSON table below a folder, by (N, K), in file order."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.startswith("N=") and name.endswith(".json"):
                n, k = (int(part.split("=")[1]) for part in name.split(",")[:2])
                with open(os.path.join(parent, name)) as file:
                    found[(n, k)] = {int(m): row for m, row in json.load(file).items()}
    return found


def serving(rows, m):
    """The row SGLang takes at M = m: the nearest key, the first of two equally near; its default without a file."""
    return rows[min(rows, key=lambda key: abs(key - m))] if rows else space.DEFAULT


def sweep_best(folder):
    """The sweep's best setting for each shape, plain and over everything, as settings."""
    best = {}
    with gzip.open(os.path.join(folder, "sweep.jsonl.gz"), "rt") as file:
        for line in file:
            row = json.loads(line)
            if row["pass"] == "shape":
                best.setdefault((row["m"], row["n"], row["k"]), {})[row["space"]] = row["best"]
    return best


def evaluate(arguments, folders, cache):
    """Times the contenders of every shape in one interleaved request each."""
    os.environ["XDG_CACHE_HOME"] = cache
    from gpu_worker.bench import Bench

    bench = Bench(0, {"sglang_root": arguments.sglang_root})
    read = {name: tables(folder) for name, folder in folders.items()}
    best = sweep_best(arguments.sweep)
    rows = []
    for n, k in space.SHAPES:
        for m in space.MS:
            contenders = {"default": space.DEFAULT}
            contenders.update({f"sweep {name}": setting for name, setting in best[(m, n, k)].items()})
            contenders.update({name: serving(files.get((n, k), {}), m) for name, files in read.items()})
            programs = []
            for setting in contenders.values():
                if setting not in programs:
                    programs.append(setting)
            answer = bench.time(space.shape(m, n, k), programs, EVALUATION)
            checked = bench.check(space.shape(m, n, k), programs, m + n + k)["outcomes"]
            row = {"m": m, "n": n, "k": k, "clocks": answer["clocks_mhz"], "throttle": answer["throttle_reasons"]}
            for name, setting in contenders.items():
                place = programs.index(setting)
                timed, numbers = answer["outcomes"][place], checked[place]
                us = [round(one, 3) for one in timed.get("result", {}).get("us", [])]
                row[name] = {"setting": setting, "us": us, "numbers": numbers.get("result")}
            rows.append(row)
    bench.close()
    with open(os.path.join(arguments.out, "evaluation.jsonl"), "w") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
    return rows


def summary(rows, documents):
    """Regret, agreement of two races, wins over equals."""

    def median(row, name):
        return statistics.median(row[name]["us"])

    def regrets(name):
        plain = [median(row, "sweep plain") / median(row, name) for row in rows]
        every = [min(median(row, one) for one in row if one.startswith("sweep")) / median(row, name) for row in rows]
        return {
            "of_the_plain_space": [statistics.geometric_mean(plain), min(plain)],
            "of_everything_swept": [statistics.geometric_mean(every), min(every)],
            "over_default": statistics.geometric_mean([median(row, "default") / median(row, name) for row in rows]),
        }

    found = {"shapes": len(rows)}
    for name in ("race 1", "race 2", "race aa"):
        if name in rows[0]:
            found[name] = regrets(name)
    if "race 2" in rows[0]:
        apart = [abs(median(row, "race 1") / median(row, "race 2") - 1) for row in rows]
        found["two_races_within_2_percent"] = sum(one <= 0.02 for one in apart) / len(apart)
    if "race aa" in rows[0]:
        changed = [row for row in rows if row["race aa"]["setting"] != row["race 2"]["setting"]]
        false = [row for row in changed if median(row, "race aa") > 0.995 * median(row, "race 2")]
        found["aa_changed"], found["aa_changed_without_gain"] = len(changed), len(false)
    for name, document in documents.items():
        busy = document["utilisation"]
        found[f"{name} wall_s"] = document["wall_s"]
        found[f"{name} utilisation"] = statistics.mean(busy) if busy else None
        found[f"{name} status"] = document["status"]
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--gemmtune", required=True)
    parser.add_argument("--sweep", required=True)
    parser.add_argument("--sglang-root", default=None)
    parser.add_argument("--skip-faults", action="store_true")
    arguments, further = parser.parse_known_args()
    arguments.further = [one for one in further if one != "--"]
    os.makedirs(arguments.out, exist_ok=True)
    shapes = [(m, n, k) for n, k in space.SHAPES for m in space.MS]
    cache = tempfile.mkdtemp()
    documents, folders = {}, {}
    documents["race 1"], folders["race 1"] = tune(arguments, "1", shapes, cache)
    documents["race 2"], folders["race 2"] = tune(arguments, "2", shapes, cache)
    today = folders["race 2"]
    documents["race aa"], folders["race aa"] = tune(arguments, "aa", shapes, cache, ("--table", today))
    rows = evaluate(arguments, folders, cache)
    found = summary(rows, documents)
    print(json.dumps(found, indent=1), flush=True)
    with open(os.path.join(arguments.out, "summary.json"), "w") as file:
        json.dump(found, file, indent=1)
    if not arguments.skip_faults:
        environment = {"GEMMTUNE_WORKER_FAULTS": json.dumps(FAULTS)}
        documents["faults"], _ = tune(arguments, "faults", [(16, 4096, 4096)], cache, (), environment, 200)
    shutil.rmtree(cache, ignore_errors=True)
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
