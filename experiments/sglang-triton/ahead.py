"""What loading kernels ahead of their turn gains, and whether it disturbs what is timed meanwhile.

    python3 experiments/sglang-triton/ahead.py OUT [--sglang-root FOLDER]

The batches of `phases.py`, each arm in a process of its own, because a kernel is loaded once per process: everything is
compiled before, then the arms run as ahead, inline, inline, ahead. Writes OUT/ahead.json: for each arm wall and device
seconds and their share (the share of the time in which the device runs samples), the seconds until `hello`, and how the
arms' samples differ: the median over all candidates of the ratio of their medians, ahead over inline, and the same of
the two inline arms for comparison.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.insert(0, os.path.join(HERE, "..", "..", "python"))

import space
from phases import BATCH, SHAPES, TIMING, prepared

ARMS = ["ahead", "inline", "inline", "ahead"]


def arm(load_ahead, root, folder):
    """One process: opens the device, compiles or finds all, and serves the batches in the order they were prepared."""
    from gpu_worker.bench import Bench

    begun = time.perf_counter()
    bench = Bench(0, {"sglang_root": root, "cache_dir": folder, "load_ahead": load_ahead})
    found = {"hello_s": time.perf_counter() - begun, "device": bench.device()["name"], "versions": bench.device()["versions"]}
    chosen = random.Random(1).sample([one for one in space.full_space() if one["num_stages"] > 2], 4 * BATCH)
    jobs = [(space.shape(*shape), candidate) for shape in SHAPES for candidate in chosen]
    begun = time.perf_counter()
    good = prepared(bench, jobs)
    found["prepare_s"] = time.perf_counter() - begun
    device_s, medians, begun = 0.0, {}, time.perf_counter()
    for shape in SHAPES:
        fitting = [candidate for at, candidate in good if at == space.shape(*shape)]
        for at in range(0, len(fitting), BATCH):
            batch = fitting[at : at + BATCH]
            answer = bench.time(space.shape(*shape), batch, TIMING)
            device_s += answer["device_s"]
            for candidate, outcome in zip(batch, answer["outcomes"]):
                if outcome["outcome"] == "done":
                    key = json.dumps([shape, candidate], sort_keys=True)
                    medians[key] = statistics.median(outcome["result"]["us"])
    wall_s = time.perf_counter() - begun
    found |= {"wall_s": wall_s, "device_s": device_s, "share": device_s / wall_s, "candidates": len(medians)}
    bench.close()
    return found | {"medians": medians}


def ratio(first, second):
    """The median, and the middle half, of first over second."""
    ratios = [first[key] / second[key] for key in first if key in second]
    quarters = statistics.quantiles(ratios, n=4)
    return {"median": quarters[1], "from": quarters[0], "to": quarters[2], "candidates": len(ratios)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--sglang-root", default=None)
    parser.add_argument("--arm", choices=["ahead", "inline"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.makedirs(arguments.out, exist_ok=True)
    cache = os.path.join(os.path.abspath(arguments.out), "cache")
    if arguments.arm:
        print(json.dumps(arm(arguments.arm == "ahead", arguments.sglang_root, cache)))
        sys.stdout.flush()
        os._exit(0)
    runs = []
    for name in ["inline", *ARMS]:
        command = [sys.executable, os.path.abspath(__file__), arguments.out, "--arm", name]
        command += ["--sglang-root", arguments.sglang_root] if arguments.sglang_root is not None else []
        line = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1]
        runs.append({"arm": name, **json.loads(line)})
    medians = [run.pop("medians") for run in runs]
    found = {
        "filled the cache": runs[0],
        "arms": runs[1:],
        "ahead over inline": [ratio(medians[1], medians[2]), ratio(medians[4], medians[3])],
        "inline over inline": ratio(medians[2], medians[3]),
    }
    with open(os.path.join(arguments.out, "ahead.json"), "w") as file:
        json.dump(found, file, indent=1)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
