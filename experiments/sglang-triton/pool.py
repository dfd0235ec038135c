"""Races the same shapes over the devices given; two folders of it are compared by `--beside`.

    python3 experiments/sglang-triton/pool.py OUT --gemmtune PROGRAM --devices 0,1 --cache FOLDER [--sglang-root FOLDER] [--beside OTHER_OUT]

Two runs: the second finds all compiled, and is the one to compare. Writes what gemmtune printed, which device raced
which shape, and OUT/summary.json: wall time, keys that differ from the other folder's, and rows that do.
"""

import argparse
import collections
import json
import os
import sys

from race import configs, tables, tune
from space import MS, SHAPES


def devices(document, folder):
    """Rows and seconds each worker's log speaks of."""
    workers = os.path.join(folder, "workers")
    logs = {}
    for name in sorted(os.listdir(workers)) if os.path.isdir(workers) else []:
        with open(os.path.join(workers, name), errors="replace") as file:
            logs[name] = [line.strip() for line in file if line.startswith("device:")]
    return {
        "logs": logs,
        "outcome": {key: value for key, value in document["outcome"].items() if not isinstance(value, list)},
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--gemmtune", required=True)
    parser.add_argument("--devices", required=True)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--sglang-root", default=None)
    parser.add_argument("--beside", default=None)
    arguments = parser.parse_args()
    arguments.further = []
    os.makedirs(arguments.out, exist_ok=True)
    os.environ["CUDA_VISIBLE_DEVICES"] = arguments.devices
    shapes = [(m, n, k) for n, k in SHAPES[:2] for m in MS]
    found = {"devices": arguments.devices, "shapes": len(shapes)}
    for name in ("first", "warm"):
        document, folder = tune(arguments, name, shapes, arguments.cache)
        found[name] = {"status": document["status"], "wall_s": document["wall_s"], **devices(document, folder)}
    if arguments.beside:
        mine, theirs = tables(configs(folder)), tables(configs(os.path.join(arguments.beside, "race-warm")))
        rows = collections.Counter()
        for key in sorted(set(mine) | set(theirs)):
            here, there = mine.get(key, {}), theirs.get(key, {})
            rows["keys in one only"] += len(set(here) ^ set(there))
            rows["equal"] += sum(here[m] == there[m] for m in set(here) & set(there))
            rows["another kernel"] += sum(here[m] != there[m] for m in set(here) & set(there))
        found["beside"] = rows
    print(json.dumps(found, indent=1))
    with open(os.path.join(arguments.out, "summary.json"), "w") as file:
        json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
