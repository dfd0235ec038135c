"""Races the shapes of the sweep with gemmtune and measures what the winners are worth.

    python3 experiments/sglang-triton/race.py OUT --gemmtune PROGRAM --sweep SWEEP_FOLDER \\
        [--sglang-root FOLDER] [--parts races,aa,deepseek,faults] [--today TABLES] [-- further arguments of `gemmtune tune`]

`races`: two races of the same shapes into separate folders, the first with an empty compile cache.
`aa`: once more with a table that a race wrote as today's (`--today`, or race 2's): every win is one over an equal.
`deepseek`: shapes of DeepSeek-V3 for which SGLang ships tuned tables for this card; the shipped row is the incumbent.
`faults`: one shape raced twice, the second time with three faults injected: the winner of the first returns NaN at full
speed, the third fastest hangs, the fourth makes an illegal access.

Every winner is then timed once more, interleaved in one request with the sweep's best, the row in force and the default.
Rows are looked up as SGLang does, by the nearest M in the written file, so that a row chosen for another M counts.
Writes OUT/race-*.json (what gemmtune printed, the driver's utilisation), the tables, OUT/evaluation-*.jsonl and
OUT/summary.json.
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
from gpu_worker.turns import whole

FAULTY_SHAPE = (16, 4096, 4096)
"""Raced twice for `faults`: as it is, and with faults in the candidates that were then the fastest."""

DEEPSEEK = [
    (m, n, k)
    for n, k in ((1536, 7168), (4608, 7168), (7168, 2048), (7168, 16384))
    for m in (1, 16, 64, 256, 1024, 4096)
]
"""Shapes of DeepSeek-V3 with a shipped file for the H100."""

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
            first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
            device = pynvml.nvmlDeviceGetHandleByIndex(int(first))
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


def tune(arguments, name, shapes, cache, extra=(), environment=None, limit_s=150):
    """One run of `gemmtune tune`; how it ended, and its table's folder."""
    folder = os.path.join(arguments.out, f"race-{name}")
    shapes_path = os.path.join(arguments.out, f"shapes-{name}.csv")
    write_shapes(shapes_path, shapes)
    command = [
        arguments.gemmtune,
        "tune",
        "--backend",
        "sglang-triton",
        "--shapes",
        shapes_path,
        "-o",
        folder,
        "--json",
    ]
    command += [*extra, *arguments.further]
    run_environment = {**os.environ, "XDG_CACHE_HOME": cache, **(environment or {})}
    run_environment.pop("TRITON_CACHE_DIR", None)
    if arguments.sglang_root:
        # The worker takes the SGLang that its Python would import.
        run_environment["PYTHONPATH"] = os.path.abspath(arguments.sglang_root)
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
    print(
        name,
        "status",
        status,
        f"wall {wall_s:.1f} s",
        "utilisation",
        statistics.mean(busy) if busy else None,
        flush=True,
    )
    print(err[-1500:], flush=True)
    return document, folder


def tables(folder, device=""):
    """The rows of every JSON table of `device` below a folder, by (N, K), in file order."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.startswith("N=") and name.endswith("dtype=fp8_w8a8,block_shape=[128, 128].json") and device in name:
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


def ranked(folder, among):
    """Of the candidates that a race timed first, so many, the fastest first."""
    fastest = {}
    with open(os.path.join(folder, "timings.jsonl")) as file:
        for line in file:
            row = json.loads(line)
            key = json.dumps(row["candidate"], sort_keys=True)
            fastest[key] = min(fastest.get(key, float("inf")), statistics.median(row["us"]))
    return [json.loads(key) for key in sorted(list(fastest)[:among], key=fastest.get)]


def evaluate(arguments, name, shapes, contenders_of, cache):
    """Times the contenders of every shape in one interleaved request each; writes and returns the rows."""
    os.environ["XDG_CACHE_HOME"] = cache
    from gpu_worker.bench import Bench

    bench = Bench(0, {"sglang_root": arguments.sglang_root})
    rows = []
    for m, n, k in shapes:
        contenders = contenders_of(m, n, k)
        programs = []
        for setting in contenders.values():
            if setting not in programs:
                programs.append(setting)
        answer = whole(bench.time(space.shape(m, n, k), programs, EVALUATION))
        checked = whole(bench.check(space.shape(m, n, k), programs, m + n + k))["outcomes"]
        row = {"m": m, "n": n, "k": k, "clocks": answer["clocks_mhz"], "throttle": answer["throttle_reasons"]}
        for contender, setting in contenders.items():
            place = programs.index(setting)
            timed, numbers = answer["outcomes"][place], checked[place]
            us = [round(one, 3) for one in timed.get("result", {}).get("us", [])]
            row[contender] = {"setting": setting, "us": us, "numbers": numbers.get("result")}
        rows.append(row)
    bench.close()
    with open(os.path.join(arguments.out, f"evaluation-{name}.jsonl"), "w") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
    return rows


def median(row, name):
    """Median time of a contender, µs; infinite if it did not run."""
    return statistics.median(row[name]["us"]) if row[name]["us"] else float("inf")


def over(rows, name, reference):
    """Geometric mean and least of how much faster `name` is than `reference(row)`."""
    ratios = [reference(row) / median(row, name) for row in rows]
    return [statistics.geometric_mean(ratios), min(ratios)]


def summary_of_races(rows, names):
    """Regret against the sweep, gain over the default, agreement of two races."""
    best = lambda row: min(median(row, one) for one in row if one.startswith("sweep"))
    found = {"shapes": len(rows)}
    for name in names:
        found[name] = {
            "of_the_plain_space": over(rows, name, lambda row: median(row, "sweep plain")),
            "of_everything_swept": over(rows, name, best),
            "over_default": over(rows, name, lambda row: median(row, "default")),
        }
    if len(names) > 1:
        apart = [abs(median(row, names[0]) / median(row, names[1]) - 1) for row in rows]
        found["two_races_within_2_percent"] = sum(one <= 0.02 for one in apart) / len(apart)
    return found


def summary_of_equals(rows, outcome):
    """Wins over an incumbent that a race had already chosen, and how many of them are none when timed again."""
    changed = [row for row in rows if row["race aa"]["setting"] != row["today"]["setting"]]
    without = [row for row in changed if median(row, "race aa") > 0.995 * median(row, "today")]
    return {
        "raced": len(outcome.get("rows", [])),
        "shapes": len(rows),
        "changed": len(changed),
        "changed_without_gain": len(without),
    }


def configs(folder):
    """Where a run of `gemmtune tune` writes its tables."""
    return os.path.join(folder, "configs")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--gemmtune", required=True)
    parser.add_argument("--sweep", help="folder of sweep.py; `races` needs it")
    parser.add_argument("--sglang-root", default=None)
    parser.add_argument("--parts", default="races,aa,deepseek,faults")
    parser.add_argument("--today", default=None)
    arguments, further = parser.parse_known_args()
    arguments.further = [one for one in further if one != "--"]
    os.makedirs(arguments.out, exist_ok=True)
    parts = arguments.parts.split(",")
    shapes = [(m, n, k) for n, k in space.SHAPES for m in space.MS]
    cache = tempfile.mkdtemp()
    found, today = {}, arguments.today

    def note(name, value):
        found[name] = value
        print(name, json.dumps(value), flush=True)
        with open(os.path.join(arguments.out, "summary.json"), "w") as file:
            json.dump(found, file, indent=1)

    def race(name, shapes, *further, **settings):
        document, folder = tune(arguments, name, shapes, cache, *further, **settings)
        busy = document["utilisation"]
        note(
            f"race {name}",
            {
                "status": document["status"],
                "wall_s": document["wall_s"],
                "utilisation": statistics.mean(busy) if busy else None,
            },
        )
        return document, folder

    if "races" in parts:
        folders = {f"race {name}": race(name, shapes)[1] for name in ("1", "2")}
        today = today or configs(folders["race 2"])
        read = {name: tables(folder) for name, folder in folders.items()}
        best = sweep_best(arguments.sweep)

        def contenders(m, n, k):
            swept = {f"sweep {name}": setting for name, setting in best[(m, n, k)].items()}
            return {
                "default": space.DEFAULT,
                **swept,
                **{name: serving(files.get((n, k), {}), m) for name, files in read.items()},
            }

        note("races", summary_of_races(evaluate(arguments, "races", shapes, contenders, cache), list(folders)))
    if "aa" in parts:
        document, folder = race("aa", shapes, ("--table", today))
        before, after = tables(today), tables(folder)
        pairs = lambda m, n, k: {
            "today": serving(before.get((n, k), {}), m),
            "race aa": serving(after.get((n, k), {}), m),
        }
        note("aa", summary_of_equals(evaluate(arguments, "aa", shapes, pairs, cache), document["outcome"]))
    if "deepseek" in parts:
        _, folder = race("deepseek", DEEPSEEK)
        import torch

        card = "device_name=" + torch.cuda.get_device_name(0).replace(" ", "_")
        shipped, after = tables(arguments.sglang_root, card), tables(folder)
        rows = evaluate(
            arguments,
            "deepseek",
            DEEPSEEK,
            lambda m, n, k: {
                "default": space.DEFAULT,
                "shipped": serving(shipped[(n, k)], m),
                "race": serving(after.get((n, k), {}), m),
            },
            cache,
        )
        over_shipped = over(rows, "race", lambda row: median(row, "shipped"))
        note(
            "deepseek",
            {"over_shipped": over_shipped, "over_default": over(rows, "race", lambda row: median(row, "default"))},
        )
    if "faults" in parts:
        _, folder = race("faultless", [FAULTY_SHAPE])
        m, n, k = FAULTY_SHAPE
        winner = serving(tables(folder)[(n, k)], m)
        # Of those that a race begins with, so that it meets them whatever leads.
        others = [one for one in ranked(folder, among=24) if one not in (winner, space.DEFAULT)]
        faults = [(winner, "nan"), (others[1], "hang"), (others[2], "illegal_address")]
        injected = [{"match": candidate, "fault": fault} for candidate, fault in faults]
        document, folder = race(
            "faults", [FAULTY_SHAPE], (), {"GEMMTUNE_WORKER_FAULTS": json.dumps(injected)}, limit_s=240
        )
        contenders = {
            "without faults": winner,
            "second then": others[0],
            "race": serving(tables(folder).get((n, k), {}), m),
        }
        rows = evaluate(arguments, "faults", [FAULTY_SHAPE], lambda *_: contenders, cache)
        quarantined = document["outcome"].get("quarantined", [])
        over_second = over(rows, "race", lambda row: median(row, "second then"))
        note(
            "faults",
            {
                "injected": faults,
                "over_the_second": over_second,
                "chosen": contenders["race"],
                "quarantined": quarantined,
            },
        )
    shutil.rmtree(cache, ignore_errors=True)
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
