"""What SGLang's own tuner pays: compiles in line, one after another, then 5 + 10 synchronised calls on hot buffers.

    python3 experiments/sglang-triton/upstream.py OUT [--sglang-root FOLDER] [--limit-s 60] [--count 48]

The upstream script is not in any wheel, so its loop is rebuilt here from its description: for each setting 5 calls to
warm up, then 10 calls, each between two events and followed by a wait; one process, an empty compile cache. A random
sample of the 1,280 settings is measured at M = 16 and M = 4096 of 4096 x 4096, for the extrapolation in analyse.py.
Writes OUT/upstream.json.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.insert(0, os.path.join(HERE, "..", "..", "python"))

import space


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--sglang-root", default=None)
    parser.add_argument("--limit-s", type=float, default=60.0)
    parser.add_argument("--count", type=int, default=48)
    arguments = parser.parse_args()
    os.makedirs(arguments.out, exist_ok=True)
    os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp()
    import torch
    from gpu_worker import tree
    from gpu_worker.compile_child import load_module
    from gpu_worker.operands import Store
    from gpu_worker.plan import Kernels, Problem, plan

    package = tree.package_folder(arguments.sglang_root)
    source = tree.sglang_kernels(package) if package else tree.own_kernels()
    module = load_module(source.write(tempfile.mkdtemp()))
    names = tuple(getattr(module, source.plain).arg_names)
    kernels = Kernels("", source.plain, names, "", "", False, 128, 128, "bfloat16")
    store = Store(torch, torch.device("cuda", 0), 128, 128, "bfloat16")
    settings = random.Random(6).sample(space.full_space(), arguments.count)
    rows, begun = [], time.perf_counter()
    for setting in settings:
        if time.perf_counter() - begun > arguments.limit_s:
            break
        for m in (16, 4096):
            problem = Problem(m, 4096, 4096, "float8_e4m3fn")
            operands = store.operands(problem, 1)
            wanted = plan(kernels, problem, setting)
            b, b_scale = operands.weights[0]
            named = {"A": operands.a, "B": b, "C": operands.out, "As": operands.a_scale, "Bs": b_scale}
            named.update(wanted.scalars)
            named.update(wanted.constants)

            def call():
                getattr(module, wanted.function)[wanted.grid](**named)

            row = {"m": m, "setting": list(setting.values())}
            torch.cuda.synchronize()
            started = time.perf_counter()
            try:
                call()
                torch.cuda.synchronize()
                row["first_call_s"] = time.perf_counter() - started
                started = time.perf_counter()
                for _ in range(4):
                    call()
                times = []
                for _ in range(10):
                    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                    torch.cuda.synchronize()
                    start.record()
                    call()
                    end.record()
                    end.synchronize()
                    times.append(start.elapsed_time(end) * 1000)
                row["rest_s"] = time.perf_counter() - started
                row["us"] = sum(times) / len(times)
            except Exception as error:
                if type(error).__name__ != "OutOfResources":
                    raise
                row["first_call_s"] = time.perf_counter() - started
                row["refused"] = "out_of_resources"
            rows.append(row)
    with open(os.path.join(arguments.out, "upstream.json"), "w") as file:
        json.dump({"sampled": len({tuple(row["setting"]) for row in rows}), "rows": rows}, file)
    print(json.dumps({"rows": len(rows), "wall_s": time.perf_counter() - begun}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
