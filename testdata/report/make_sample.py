#!/usr/bin/env python3
"""Writes sample.json beside itself: a report with something in every section.

    python3 testdata/report/make_sample.py target/debug/gemmtune

The trials are seeded noise around figures that were measured once (see ORIGIN); the sample shows what a
report looks like and proves nothing.
"""
import json
import pathlib
import random
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
BENCH = HERE.parent / "bench"
random.seed(20260101)


def trials(name, folder, count):
    line = json.loads((BENCH / name).read_text().splitlines()[1].replace("Infinity", "null"))
    path = pathlib.Path(folder) / name
    with path.open("w") as out:
        for _ in range(count):
            speed = random.gauss(1, 0.008)
            trial = dict(line)
            for key, value in line.items():
                if key.endswith("_throughput"):
                    trial[key] = value * speed
                elif key.endswith("_ms") or key == "duration":
                    trial[key] = value / speed * random.gauss(1, 0.01)
            out.write(json.dumps(trial) + "\n")
    return name


def compare(folder, baseline, tuned):
    command = [str(pathlib.Path(sys.argv[1]).resolve()), "--json", "compare", "--baseline", baseline, "--tuned", tuned]
    return json.loads(subprocess.run(command, cwd=folder, capture_output=True, check=False).stdout)


with tempfile.TemporaryDirectory() as folder:
    comparison = compare(folder, trials("bench-base.jsonl", folder, 7), trials("bench-tuned.jsonl", folder, 7))
comparison["metrics"] = [metric for metric in comparison["metrics"] if metric["headline"]]

# Microseconds a call, default -> best found, on one H100 (SGLang 0.5.16 Triton block FP8): measured once.
TIMES = {
    (6144, 4096): [(33.0, 16.7), (23.5, 15.2), (21.8, 15.3), (21.5, 15.2), (21.8, 15.3), (21.8, 17.2), (21.9, 17.3),
                   (22.1, 18.8), (25.9, None), (47.5, 46.1), (72.0, None)],
    (4096, 4096): [(26.9, 14.8), (21.4, 12.9), (20.0, 12.4), (20.1, 12.5), (20.1, 12.5), (20.3, 14.1), (20.2, 14.7),
                   (20.3, 16.1), (20.1, 17.7), (24.5, None), (48.0, None)],
    (24576, 4096): [(79.8, 39.6), (55.4, 39.5), (43.8, 39.3), (40.9, 39.8), (41.3, 39.5), (41.9, None), (42.6, None),
                    (57.1, None), (77.2, 74.7), (142.3, None), (273.8, None)],
    (4096, 12288): [(71.6, 38.3), (57.8, 33.4), (55.6, 31.6), (55.3, 31.7), (55.5, 32.0), (55.6, 36.4), (56.3, 42.1),
                    (57.4, 43.7), (57.8, 48.9), (69.6, None), (141.8, None)],
}
CALLS = [180, 180, 360, 126 * 36, 720, 1080, 180, 36, 36, 72, 540]
shapes = []
for (n, k), times in TIMES.items():
    for power, (before, after) in enumerate(times):
        m = 1 << power
        default = {"us": before, "kernel": "default BLOCK_M 64 N 128 K 128, stages 3"}
        block_m = 16 if m <= 16 else 64
        best = {"us": after, "kernel": f"BLOCK_M {block_m} N 64 K 128, stages 4, warps 4"} if after else default
        shapes.append({
            "op": "w8a8_block_fp8_matmul", "m": m, "n": n, "k": k, "phase": "decode" if m <= 64 else "prefill",
            "calls": CALLS[power], "before": default, "after": best,
            "status": "tuned" if after else "the default stays: nothing at least 2 % faster",
        })

report = {
    "format": 1,
    "name": "Sample: made-up trials, not a measurement",
    "made": "2026-01-01T00:00:00Z",
    "gemmtune": "0.1.0",
    "comparison": comparison,
    "facts": [
        {"name": "machine", "value": "NVIDIA H100 80GB HBM3"},
        {"name": "model", "value": "Qwen3-8B-FP8, random weights"},
        {"name": "changed", "value": "29 table rows through PYTHONPATH"},
    ],
    "keep": "export PYTHONPATH=runs/sample/overlay",
    "undo": "gemmtune undo runs/sample",
    "machine": [
        {"name": "device", "value": "NVIDIA H100 80GB HBM3"},
        {"name": "SGLang", "value": "0.5.16"},
        {"name": "Triton", "value": "3.6.0"},
    ],
    "arms": [
        {"name": "baseline", "description": "As the user runs it", "trials": 7,
         "command": "python3 -m sglang.launch_server --model-path /models/q --load-format dummy --attention-backend triton "
                    "--fp8-gemm-backend triton --port 30000 --host 127.0.0.1 --mem-fraction-static 0.8",
         "environment": []},
        {"name": "tuned", "description": "With the overlay that hands the table to SGLang", "trials": 7, "command": None,
         "environment": [{"name": "PYTHONPATH", "value": "runs/sample/overlay"}]},
    ],
    "shapes": shapes,
    "hit_rates": [
        {"of": "calls, predicted", "before": 0.0, "after": 0.9982},
        {"of": "GEMM time, predicted", "before": 0.0, "after": 0.9961},
        {"of": "shapes looked up, measured", "before": None, "after": 1.0},
    ],
    "roofline": {"tflops": 1979.0, "gbps": 3350.0, "source": "NVIDIA H100 SXM data sheet, dense FP8"},
    "plan": {"captured": 44, "to_tune": 31, "folded": 9, "served": 4, "deployed": 29, "estimated_s": 150.0, "used_s": 107.0,
             "candidates": 1824},
    "skipped": [
        {"what": "N 4096 × K 12288, M 2048", "why": "one call in the captured run; predicted gain below 0.01 % of GEMM time"},
        {"what": "aiter back end", "why": "the device is not an AMD one"},
    ],
    "parity": {
        "relation": "accepted", "answers": 32, "equal_answers": 30, "steps": 1987, "step_agreement": 0.99899345,
        "least": 0.95,
        "first_divergence": {"concurrency": 8, "prompt": 11, "token": 22, "baseline": " river", "tuned": " bank of the"},
        "because": "30 of 32 answers are equal and 99.90 % of 1987 steps agree, at least 95 % were asked for: differences of "
                   "this size come from another order of summation",
    },
    "layout": [
        {"what": "w8a8_block_fp8_matmul N 4096 K 4096", "m": m, "error_ratio": 0.0016 + 0.0001 * (i % 3), "limit": 0.05}
        for i, m in enumerate((1, 2, 33, 128, 1024))
    ],
    "engagement": {"passed": True, "hits": 4, "misses": 0, "missing": [],
                   "because": "The overlay's own record shows one hit for each of the four (N, K)"},
    "commands": [
        {"what": "The whole loop", "command": "gemmtune run gemmtune.toml"},
        {"what": "The comparison alone", "command": "gemmtune compare --baseline trials/*-baseline/bench.jsonl --tuned "
                                                    "trials/*-tuned/bench.jsonl"},
    ],
    "digests": [
        {"name": "table.csv, sha256", "value": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"},
    ],
    "stages": [
        {"stage": stage, "seconds": seconds, "attempts": attempts, "outcome": outcome}
        for stage, seconds, attempts, outcome in [
            ("inspect", 2.1, 1, "done"), ("baseline", 230.0, 1, "done"), ("capture", 95.0, 1, "done"),
            ("plan", 0.3, 1, "done"), ("tune", 107.0, 2, "done, resumed once"), ("deploy", 0.6, 1, "done"),
            ("verify", 71.0, 1, "done"), ("compare", 1840.0, 1, "done"), ("report", 0.2, 1, "done"),
        ]
    ],
    "notes": ["Hit rates by calls and by time are predicted from the captured shapes, not read from counters."],
}
(HERE / "sample.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
