"""How busy a race keeps one GPU, what loading kernels ahead and a second request under way have to do with it, and whether
the same is found.

    python3 experiments/sglang-triton/busy.py OUT --gemmtune PROGRAM [--sglang-root FOLDER] [--arms fill,serial,…]

The 48 shapes of the sweep, raced again and again over one compile cache; ARMS says how. Writes OUT/busy.json: for each race
wall time, the worker's own account of the device (its samples, what requests held), the driver's utilisation while
candidates were timed, the device thread's time by span (`spans.py`), and how its rows and times differ from the first
`serial` race's.
"""

import argparse
import json
import os
import statistics
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

from race import tables, tune
from space import MS, SHAPES

ARMS = {
    "fill": {},
    "serial": {"LOAD_AHEAD": "0", "UNDER_WAY": "1"},
    "ahead": {"LOAD_AHEAD": "1", "UNDER_WAY": "1"},
    "both": {"LOAD_AHEAD": "1", "UNDER_WAY": "2"},
    "full": {"LOAD_AHEAD": "1", "UNDER_WAY": "2"},
    "profiled": {"LOAD_AHEAD": "1", "UNDER_WAY": "2", "SPANS_PROFILE": "1"},
}
"""What is given to `spans.py`; `full` has `--effort full`."""


def timed(folder):
    """The median of every candidate a race timed, µs, by shape and candidate."""
    found = {}
    with open(os.path.join(folder, "timings.jsonl")) as file:
        for line in file:
            row = json.loads(line)
            found[json.dumps([row["m"], row["n"], row["k"], row["candidate"]], sort_keys=True)] = statistics.median(
                row["us"]
            )
    return found


def account(folder):
    """Seconds in samples, held by requests, and since the first request, of the race's one worker."""
    with open(os.path.join(folder, "workers", "worker-0.log"), errors="replace") as file:
        line = [line for line in file if line.startswith("device:")][-1]
    sampled, held, since = (float(word) for word in line.split() if word.replace(".", "").isdigit())
    return {"samples_s": sampled, "held_s": held, "since_first_s": since, "share": sampled / since}


def utilisation(values):
    """Percent of the time in which the driver saw a kernel run, while candidates were timed: the mean of its readings
    from the first to the last above 30. Opening the device and importing reads 0 to 11."""
    at = [place for place, value in enumerate(values) if value > 30]
    return statistics.mean(values[at[0] : at[-1] + 1]) if at else None


def compared(mine, theirs):
    """Rows of two races: how many are equal; and of all that both timed, the quarters of one time over the other."""
    rows, ratios = [], [mine["timed"][key] / theirs["timed"][key] for key in mine["timed"] if key in theirs["timed"]]
    for key in sorted(set(mine["tables"]) & set(theirs["tables"])):
        here, there = mine["tables"][key], theirs["tables"][key]
        rows += [here[m] == there[m] for m in set(here) & set(there)]
    return {
        "rows": len(rows),
        "equal": sum(rows),
        "candidates": len(ratios),
        "quarters": statistics.quantiles(ratios, n=4),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--gemmtune", required=True)
    parser.add_argument("--sglang-root", default=None)
    parser.add_argument("--arms", default="fill,fill,serial,ahead,both,both,ahead,serial,profiled,full,full")
    arguments = parser.parse_args()
    os.makedirs(arguments.out, exist_ok=True)
    arguments.further = ["--python", os.path.join(HERE, "spans.py"), "--workers", "1"]
    shapes = [(m, n, k) for n, k in SHAPES for m in MS]
    races, kept = [], []
    for number, arm in enumerate(arguments.arms.split(",")):
        name = f"{number}-{arm}"
        spans = os.path.join(os.path.abspath(arguments.out), f"spans-{name}.json")
        extra = ["--effort", "full"] if arm == "full" else []
        environment = {"SPANS": spans, **ARMS[arm]}
        document, folder = tune(arguments, name, shapes, os.path.join(arguments.out, "cache"), extra, environment)
        kept.append({"tables": tables(os.path.join(folder, "configs")), "timed": timed(folder)})
        with open(spans) as file:
            seen = json.load(file)
        races.append({"arm": arm, "status": document["status"], "wall_s": document["wall_s"], **account(folder)})
        races[-1] |= {
            "timed": len(kept[-1]["timed"]),
            "utilisation": utilisation(document["utilisation"]),
            "spans": seen,
        }
        print(json.dumps(races[-1]), flush=True)
    first = next((number for number, race in enumerate(races) if race["arm"] == "serial"), 0)
    for race, one in zip(races, kept):
        race["beside the first serial race"] = compared(one, kept[first])
    with open(os.path.join(arguments.out, "busy.json"), "w") as file:
        json.dump({"device": document["outcome"].get("device"), "shapes": len(shapes), "races": races}, file, indent=1)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
