"""Reads a sweep (and races, if given) and prints what they show; nothing is measured here.

    python3 experiments/sglang-triton/analyse.py SWEEP_FOLDER

Prints one JSON document: the best per shape against SGLang's default and against the card's ceilings, and what
SGLang's own tuner would have paid for the same four (N, K): extrapolated from `upstream.json` and the sweep.
"""

import gzip
import json
import math
import os
import statistics
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import space

COPY_TB_S = 3.0
FP8_TFLOP_S = 1394.0
"""The card's ceilings as `sanity.py` measured them: a 2 GiB copy (bytes read and written), an 8192^3 FP8 product."""

CALLS = 15
"""Launches SGLang's tuner makes of each setting: 5 to warm up and 10 timed."""


def read_sweep(folder):
    """The best time of every setting on every shape, µs: the median of its last pass. And the rows of the shapes."""
    times, shapes = {}, []
    with gzip.open(os.path.join(folder, "sweep.jsonl.gz"), "rt") as file:
        for line in file:
            row = json.loads(line)
            if row["pass"] == "shape":
                shapes.append(row)
            elif "us" in row:
                times.setdefault((row["m"], row["n"], row["k"]), {})[tuple(row["setting"])] = statistics.median(
                    row["us"]
                )
    return times, shapes


def read_compiles(folder):
    """Seconds of every compile of the plain space, by class of M (1, 2: not a multiple of 16, 16) and setting."""
    seconds, refused = {}, set()
    with gzip.open(os.path.join(folder, "compile.jsonl.gz"), "rt") as file:
        for line in file:
            row = json.loads(line)
            if "SPLIT_K" in row["setting"]:
                continue
            key = (1 if row["m"] == 1 else 16 if row["m"] % 16 == 0 else 2, tuple(row["setting"].values()))
            if row["outcome"] == "refused":
                refused.add(key)
            elif not row["result"]["cached"]:
                seconds[key] = row["result"]["seconds"]
    return seconds, refused


def upstream_cost(times, seconds, refused, upstream):
    """Wall and device seconds of SGLang's tuner on the shapes of the sweep, one process on one device."""
    first = [row for row in upstream["rows"] if row["m"] == 16]
    # Compiles: the sampled settings were compiled alone here and beside 14 others in the sweep; the ratio carries
    # the sweep's complete list over. A setting that was refused early in the sweep is compiled to the end upstream:
    # it counts as the mean of its tile's settings that did compile.
    pairs = []
    for row in first:
        key = (16, tuple(row["setting"]))
        if key in seconds and "us" in row:
            pairs.append((row["first_call_s"], seconds[key]))
    alone = sum(pair[0] for pair in pairs) / sum(pair[1] for pair in pairs)
    by_tile = {}
    for (_, setting), value in seconds.items():
        by_tile.setdefault((setting[0], setting[1], setting[4]), []).append(value)
    settings = [tuple(one.values()) for one in space.full_space()]
    compile_s = 0.0
    for kind in (1, 2, 16):
        for setting in settings:
            # Below one tile of M only one of the four groups was compiled; the others are alike.
            like = setting if kind == 16 else (*setting[:3], 1, *setting[4:])
            value = seconds.get((kind, like))
            if value is None:
                value = statistics.mean(by_tile[(setting[0], setting[1], setting[4])])
            compile_s += alone * value
    # Launches: the wait after every call costs the host's round trip; the sample gives it.
    rest = [row["rest_s"] / 14 - row["us"] * 1e-6 for row in upstream["rows"] if "us" in row]
    host_s = statistics.median(rest)
    device_s, runs = 0.0, 0
    for n, k in space.SHAPES:
        for m in space.UPSTREAM_MS:
            # An M that was not swept counts as the largest swept one below it: too little rather than too much.
            measured = times[(max(one for one in space.MS if one <= m), n, k)]
            swept = max(one for one in space.MS if one <= m)
            alike = {}
            for one in space.full_space():
                value = measured.get(tuple(one.values()))
                if value is not None:
                    alike[space.program(one, swept)] = value
            for one in space.full_space():
                value = alike.get(space.program(one, swept))
                if value is not None:
                    device_s += CALLS * value * 1e-6
                    runs += 1
    return {
        "extrapolated_from_settings": len(first),
        "compiles": 3 * len(settings),
        "compile_s": compile_s,
        "mean_compile_alone_s": statistics.mean(row["first_call_s"] for row in first),
        "alone_over_busy": alone,
        "timed": runs,
        "device_s": device_s,
        "host_per_call_us": host_s * 1e6,
        "wall_s": compile_s + device_s + runs * CALLS * max(0.0, host_s),
    }


def ceilings(m, n, k, us):
    """Share of the measured copy rate and of the measured FP8 rate that a launch reaches."""
    moved = n * k + m * k + 2 * m * n
    return {"bandwidth": moved / us / 1e6 / COPY_TB_S, "matrix": 2 * m * n * k / us / 1e6 / FP8_TFLOP_S}


def main():
    folder = sys.argv[1]
    times, rows = read_sweep(folder)
    seconds, refused = read_compiles(folder)
    best = {}
    for row in rows:
        entry = best.setdefault((row["m"], row["n"], row["k"]), {})
        entry[row["space"]] = row
    table, gains = [], {"plain": [], "all": []}
    for (m, n, k), entry in sorted(best.items(), key=lambda item: (item[0][1:], item[0][0])):
        plain = entry["plain"]
        line = {"m": m, "n": n, "k": k, "default_us": plain["default_us"], "plain_us": plain["best_us"]}
        # The extended space was measured in another pass: its gain is over the default of that same pass.
        gain = plain["default_us"] / plain["best_us"]
        gains["plain"].append(gain)
        if "extended" in entry:
            extended = entry["extended"]
            line["extended_us"] = extended["best_us"]
            gain = max(gain, extended["default_us"] / extended["best_us"])
        gains["all"].append(gain)
        line["gain"] = gain
        line.update(ceilings(m, n, k, min(line["plain_us"], line.get("extended_us", math.inf))))
        table.append(line)
    document = {
        "shapes": table,
        "gain_geomean": {name: statistics.geometric_mean(values) for name, values in gains.items()},
        "sweep": {
            "compile_busy_s": sum(seconds.values()),
            "compiled": len(seconds),
            "refused": len(refused),
            "wall_s": sum(row["wall_s"] for row in rows),
            "device_s": sum(row["device_s"] for row in rows),
        },
    }
    path = os.path.join(folder, "upstream.json")
    if os.path.exists(path):
        with open(path) as file:
            document["upstream"] = upstream_cost(times, seconds, refused, json.load(file))
    json.dump(document, sys.stdout, indent=1)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
