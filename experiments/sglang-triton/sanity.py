"""A first look at a GPU: kernels right, times plausible, what a compile and a timing cost.

python3 experiments/sglang-triton/sanity.py OUT [--sglang-root FOLDER]
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.insert(0, os.environ.get("GPU_WORKER_PARENT") or os.path.join(HERE, "..", "..", "python"))

import space
from gpu_worker.bench import Bench
from gpu_worker.plan import Problem
from gpu_worker.turns import whole


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--sglang-root", default=None)
    arguments = parser.parse_args()
    os.makedirs(arguments.out, exist_ok=True)
    report = {}

    def note(name, value):
        report[name] = value
        print(name, json.dumps(value), flush=True)
        with open(os.path.join(arguments.out, "sanity.json"), "w") as file:
            json.dump(report, file, indent=1)

    begun = time.perf_counter()
    bench = Bench(0, {"sglang_root": arguments.sglang_root})
    note("open_s", time.perf_counter() - begun)
    note("device", bench.device())
    import torch

    base = {**space.DEFAULT, "BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "GROUP_SIZE_M": 1, "num_stages": 4}
    some = [
        space.DEFAULT,
        base,
        {**base, "BLOCK_SIZE_K": 64},
        {**base, "BLOCK_SIZE_N": 128, "SWAP_AB": True},
        {**base, "SPLIT_K": 4},
        {**base, "BLOCK_SIZE_N": 128, "SPLIT_K": 4, "SWAP_AB": True},
        {**base, "BLOCK_SIZE_M": 256, "BLOCK_SIZE_N": 256, "num_stages": 5},
    ]
    for m, n, k in ((1, 4096, 4096), (7, 6144, 4096), (64, 4096, 12288), (300, 4096, 4096)):
        note(f"check {m}x{n}x{k}", whole(bench.check(space.shape(m, n, k), some, m))["outcomes"])
    for number in range(2):
        note(f"loads {number}", _load_seconds(bench, some[:4], torch))
    timing = {"warmups": 1, "samples": 5, "min_sample_us": 200.0, "stop_above_us": None}
    for m in (1, 16, 128, 1024, 4096):
        for n, k in space.SHAPES[:2]:
            begun = time.perf_counter()
            answer = whole(bench.time(space.shape(m, n, k), some, timing))
            note(
                f"time {m}x{n}x{k}",
                {
                    "us": [one.get("result", {}).get("us") for one in answer["outcomes"]],
                    "clocks": answer["clocks_mhz"],
                    "throttle": answer["throttle_reasons"],
                    "device_s": answer["device_s"],
                    "wall_s": time.perf_counter() - begun,
                },
            )
    # Cost of a pass over many candidates once they are compiled, and compile throughput.
    sample = space.distinct(space.full_space(), 16)[::5]
    arrived, seconds, everything = [], [], threading.Event()
    begun = time.perf_counter()

    def reply(outcome):
        arrived.append(outcome)
        seconds.append(outcome.get("result", {}).get("seconds", 0.0))
        if len(arrived) == len(sample):
            everything.set()

    for setting in sample:
        bench.prepare(space.shape(16, 4096, 4096), setting, reply)
    everything.wait(200)
    note(
        "compile",
        {
            "candidates": len(sample),
            "arrived": len(arrived),
            "wall_s": time.perf_counter() - begun,
            "sum_s": sum(seconds),
            "max_s": max(seconds),
            "refused": [one["detail"][:80] for one in arrived if one["outcome"] == "refused"][:3],
            "refusals": sum(one["outcome"] == "refused" for one in arrived),
        },
    )
    once = {"warmups": 1, "samples": 1, "min_sample_us": 100.0, "stop_above_us": None}
    for number in range(2):
        for m, n, k in ((16, 4096, 4096), (4096, 6144, 4096)):
            begun = time.perf_counter()
            device_s, all_us = 0.0, []
            for first in range(0, len(sample), 16):
                answer = whole(bench.time(space.shape(m, n, k), sample[first : first + 16], once))
                device_s += answer["device_s"]
                all_us += [one.get("result", {}).get("us", [0])[0] for one in answer["outcomes"]]
            wall = time.perf_counter() - begun
            note(f"pass {m}x{n}x{k} {number}", {"wall_s": wall, "device_s": device_s, "n": len(all_us), "us": all_us})
    note("ceilings", _ceilings(torch))
    bench.close()
    for fault in ("nan", "illegal_address", "hang"):
        note(f"fault {fault}", _faulty(fault, arguments.sglang_root))
    return 0


def _load_seconds(bench, candidates, torch):
    """Seconds to load each candidate (Triton's own look-up in its disk cache included)."""
    problem = Problem.read(space.shape(48, 4096, 4096))
    operands = bench._operands(problem, 2)
    found = []
    for candidate in candidates:
        launch = bench._software.launch(bench._software.plan(problem, candidate), operands, {})
        begun = time.perf_counter()
        launch.load()
        loaded = time.perf_counter()
        for _ in range(100):
            launch.run(0)
        launched = time.perf_counter()
        torch.cuda.synchronize()
        found.append(
            {
                "load_s": loaded - begun,
                "launch_us": (launched - loaded) * 1e4,
                "direct": launch._steps[0]._direct is not None,
            }
        )
    return found


def _ceilings(torch):
    """Rate of a large copy (bytes read plus written) and of a large FP8 product, this card, now."""
    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)

    def median_ms(run):
        times = []
        for _ in range(12):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        return sorted(times[2:])[5]

    copy_ms = median_ms(lambda: target.copy_(source))  # noqa: F821 (both are deleted below)
    found = {"copy_tb_s": 2 * source.numel() / copy_ms / 1e9}
    del source, target
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16).to(torch.float8_e4m3fn)
    b = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16).to(torch.float8_e4m3fn)
    one = torch.ones((), device="cuda")
    product = lambda: torch._scaled_mm(a, b.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    found["fp8_tflop_s"] = 2 * 8192**3 / median_ms(product) / 1e9
    return found


def _faulty(fault, root):
    """Drives a worker process as the tuner does, with one candidate that goes wrong."""
    environment = {**os.environ, "GEMMTUNE_WORKER_FAULTS": json.dumps([{"match": {"num_stages": 4}, "fault": fault}])}
    reading, writing = os.pipe()
    entry = os.path.join(os.environ.get("GPU_WORKER_PARENT") or os.path.join(HERE, "..", "..", "python"), "gpu_worker")
    worker = subprocess.Popen(
        [sys.executable, entry, "--device", "0", "--reply-fd", str(writing)],
        stdin=subprocess.PIPE,
        env=environment,
        pass_fds=(writing,),
        stderr=subprocess.PIPE,
    )
    os.close(writing)
    replies = os.fdopen(reading)
    bad = {**space.DEFAULT, "num_stages": 4}
    ask = {"shape": space.shape(16, 4096, 4096), "candidates": [bad, space.DEFAULT]}
    timing = {"warmups": 1, "samples": 2, "min_sample_us": 100.0, "stop_above_us": None}
    requests = [
        {"kind": "hello", "options": {"sglang_root": root}},
        {"kind": "check", **ask},
        {"kind": "time", **ask, "timing": timing},
        {"kind": "quit"},
    ]
    killer = threading.Timer(45.0, worker.kill)
    killer.start()
    found, begun = [], time.perf_counter()
    try:
        for number, one in enumerate(requests):
            worker.stdin.write((json.dumps({"id": number, "attempt": 1, "ask": one}) + "\n").encode())
        worker.stdin.flush()
        for line in replies:
            found.append(json.loads(line)["answer"])
        status = worker.wait()
    finally:
        killer.cancel()
    return {"answers": found[1:], "status": status, "seconds": time.perf_counter() - begun}


if __name__ == "__main__":
    sys.exit(main())
