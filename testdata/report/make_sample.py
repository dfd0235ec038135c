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

def load_profile(load, concurrency):
    """Where a step's time goes, of two ranks; the figures are made up."""

    def phase(name, step, busy, parts, more):
        operations = [
            {"operation": operation, "us": us, "share": us / step, "kernels": kernels, "families": [{"family": family, "us": us}]}
            for operation, us, kernels, family in parts
        ]
        tunable = {"moe_gemm": "fused_moe", "dense_fp8": "dense_fp8"}
        bounds = [
            {"operation": tunable[part[0]], "us": part[1], "share": part[1] / step, "at_most": step / (step - part[1])}
            for part in parts
            if part[0] in tunable
        ]
        all_us = sum(bound["us"] for bound in bounds)
        return {
            "phase": name, "told_by": "step_spans", "steps": 24, "left_out": 1, "profiled_us": step * 1.08, "step_us": step,
            "busy_us": busy, "idle_us": step - busy, "operations": operations,
            "unknown": [{"name": "void a_kernel_of_a_plugin<__nv_bfloat16, 128>(" + "int, " * 20, "us": 41.5}],
            "bound": {"at_most": step / (step - all_us), "us": all_us, "operations": bounds},
            "unprofiled_us": None, "requests": None, "tokens": None, **more,
        }  # fmt: skip

    decode = phase(
        "decode", 8200.0, 7900.0,
        [("moe_gemm", 5000.0, 96, "SGLang Triton"), ("moe_other", 400.0, 144, "routing"), ("dense_fp8", 900.0, 96, "DeepGEMM"),
         ("quantisation", 300.0, 192, "per group"), ("other_gemm", 200.0, 49, "cuBLASLt"), ("attention", 600.0, 96, "FlashAttention"),
         ("communication", 250.0, 96, "custom all-reduce"), ("rest", 250.0, 300, "norm")],
        {"unprofiled_us": 8200.0, "requests": [concurrency, concurrency]},
    )  # fmt: skip
    prefill = phase(
        "prefill", 61000.0, 60000.0,
        [("moe_gemm", 38000.0, 96, "SGLang Triton"), ("dense_fp8", 14000.0, 96, "DeepGEMM"), ("attention", 8000.0, 48, "FlashAttention")],
        {"requests": [1, 4], "tokens": 4096.0, "left_out": 0},
    )  # fmt: skip
    return {
        "load": load,
        "concurrency": concurrency,
        "says": f"{load}: fused MoE 61 % and dense FP8 GEMMs 11 % of a decode step at concurrency {concurrency}; "
                "tuning both can bring at most 3.57x",
        "at_most": decode["bound"]["at_most"],
        "ranks": [
            {"rank": f"TP-{rank}", "file": f"1762000000.1-TP-{rank}.trace.json.gz", "device": "NVIDIA H200", "phases": [decode, prefill]}
            for rank in range(2)
        ],
    }


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
    "profile": [load_profile("decode-8", 8), load_profile("decode-32", 32)],
    "notes": ["Hit rates by calls and by time are predicted from the captured shapes, not read from counters."],
}
(HERE / "sample.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
