"""Where the time of a request goes: what the host does while the device waits.

    python3 experiments/sglang-triton/phases.py OUT [--sglang-root FOLDER]

Batches of seven candidates, as a race sends them, on a few shapes: once with every kernel to be loaded, once with all of
them loaded. Compiling is done before and not counted. Writes OUT/phases.json: wall and device seconds of both rounds, and
Python's own profile of the first (functions by time spent in them and below).
"""

import argparse
import cProfile
import io
import json
import os
import pstats
import random
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.insert(0, os.path.join(HERE, "..", "..", "python"))

import space
from gpu_worker.turns import whole

TIMING = {"warmups": 1, "samples": 3, "min_sample_us": 200.0, "stop_above_us": None}
BATCH = 7
SHAPES = [(m, n, k) for n, k in space.SHAPES[:2] for m in (1, 64, 1024)]


def prepared(bench, jobs):
    """Compiles everything; leaves out what is refused."""
    left = threading.Semaphore(0)
    good = []
    for shape, candidate in jobs:

        def heard(outcome, shape=shape, candidate=candidate):
            if outcome["outcome"] == "done":
                good.append((shape, candidate))
            left.release()

        bench.prepare(shape, candidate, heard)
    for _ in jobs:
        left.acquire()
    return good


def round_of(bench, requests):
    """Serves the requests; wall and device seconds."""
    device_s, begun = 0.0, time.perf_counter()
    for shape, candidates in requests:
        device_s += whole(bench.time(shape, candidates, TIMING))["device_s"]
    return {"wall_s": time.perf_counter() - begun, "device_s": device_s, "requests": len(requests)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--sglang-root", default=None)
    arguments = parser.parse_args()
    os.makedirs(arguments.out, exist_ok=True)
    from gpu_worker.bench import Bench

    begun = time.perf_counter()
    bench = Bench(0, {"sglang_root": arguments.sglang_root})
    found = {
        "open_s": time.perf_counter() - begun,
        "device": bench.device()["name"],
        "versions": bench.device()["versions"],
    }
    chosen = random.Random(1).sample([one for one in space.full_space() if one["num_stages"] > 2], 4 * BATCH)
    begun = time.perf_counter()
    good = prepared(bench, [(space.shape(*shape), candidate) for shape in SHAPES for candidate in chosen])
    found["compile_s"] = time.perf_counter() - begun
    requests = []
    for shape in SHAPES:
        fitting = [candidate for at, candidate in good if at == space.shape(*shape)]
        requests += [(space.shape(*shape), fitting[at : at + BATCH]) for at in range(0, len(fitting), BATCH)]
    found["candidates"] = sum(len(candidates) for _, candidates in requests)
    profile = cProfile.Profile()
    profile.enable()
    found["loading"] = round_of(bench, requests)
    profile.disable()
    found["loaded"] = round_of(bench, requests)
    again = cProfile.Profile()
    again.enable()
    found["loaded, profiled"] = round_of(bench, requests)
    again.disable()
    for name, one in (("loading", profile), ("loaded", again)):
        for order in ("cumulative", "tottime"):
            text = io.StringIO()
            pstats.Stats(one, stream=text).sort_stats(order).print_stats(45)
            with open(os.path.join(arguments.out, f"profile-{name}-{order}.txt"), "w") as file:
                file.write(text.getvalue())
    with open(os.path.join(arguments.out, "phases.json"), "w") as file:
        json.dump(found, file, indent=1)
    print(json.dumps(found))
    bench.close()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
