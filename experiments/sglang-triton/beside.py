"""Other ways to the same product, timed in the same way: gemmtune's own kernel, torch's block-scaled product, DeepGEMM.

    python3 experiments/sglang-triton/beside.py OUT [--sglang-root FOLDER] [--tables FOLDER]

For each shape: SGLang's kernel with its default and with the row of `--tables`, gemmtune's own kernel over a handful of
settings (with and without SPLIT_K and SWAP_AB), `torch._scaled_mm` with scales of 1 x 128 and 128 x 128, DeepGEMM where it
can be imported, and a bf16 product. Cold L2, device graphs, interleaved samples, like every timing of a race. What cannot
run is written with its reason. Writes OUT/beside.jsonl: medians in us, TB/s of what has to be moved, errors against float32.
"""

import argparse
import json
import os
import statistics
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.insert(0, os.path.join(HERE, "..", "..", "python"))

import space
from gpu_worker import numerics
from gpu_worker.bench import Bench
from gpu_worker.plan import Problem
from gpu_worker.rotation import rotation
from gpu_worker.timing import Timed, measure
from gpu_worker.turns import whole
from race import serving, tables

MS = (1, 16, 64, 256, 1024, 4096)
TIMING = {"warmups": 1, "samples": 11, "min_sample_us": 200.0, "stop_above_us": None}
TILES = [
    {
        "BLOCK_SIZE_M": bm,
        "BLOCK_SIZE_N": bn,
        "BLOCK_SIZE_K": 128,
        "GROUP_SIZE_M": 16,
        "num_warps": warps,
        "num_stages": stages,
    }
    for bm, bn, warps, stages in (
        (16, 64, 4, 5),
        (16, 128, 4, 4),
        (64, 64, 4, 5),
        (64, 128, 4, 4),
        (128, 128, 8, 3),
        (128, 128, 4, 3),
    )
]
OWN = TILES + [
    {**one, "SPLIT_K": split, "SWAP_AB": swap}
    for one in TILES[:4]
    for split, swap in ((4, False), (1, True), (4, True))
]


class Call:
    """A call of another library, launched and timed like a candidate."""

    def __init__(self, function, arguments):
        self._function = function
        self._arguments = arguments

    def load(self):
        self.run(0)

    def run(self, copy):
        return self._function(*self._arguments[copy % len(self._arguments)])


def others(torch, operands):
    """Calls of other libraries by name, as functions that make them: a library may refuse when it is asked."""
    a, a_scale, bf16 = operands.a, operands.a_scale, torch.bfloat16

    def torch_scaled(columns):
        scale = a_scale.t().contiguous().t() if columns else a_scale

        def product(b, b_scale):
            return torch._scaled_mm(a, b.t(), scale, b_scale.t(), out_dtype=bf16)

        return Call(product, operands.weights)

    def torch_recipe():
        from torch.nn.functional import ScalingType, scaled_mm

        scale = a_scale.t().contiguous().t()

        def product(b, b_scale):
            return scaled_mm(
                a,
                b.t(),
                scale,
                ScalingType.BlockWise1x128,
                b_scale.t(),
                ScalingType.BlockWise128x128,
                output_dtype=bf16,
            )

        return Call(product, operands.weights)

    def deep_gemm():
        import deep_gemm as library

        scale = a_scale.t().contiguous().t()
        return Call(lambda b, b_scale: library.fp8_gemm_nt((a, scale), (b, b_scale), operands.out), operands.weights)

    def plain_bf16():
        wide = [(b.to(bf16),) for b, _ in operands.weights[: max(2, len(operands.weights) // 2)]]
        activations = a.to(bf16)
        return Call(lambda b: activations @ b.t(), wide)

    return {
        "torch._scaled_mm": lambda: torch_scaled(True),
        "torch._scaled_mm, rows of scales": lambda: torch_scaled(False),
        "torch.nn.functional.scaled_mm": torch_recipe,
        "deep_gemm": deep_gemm,
        "bf16": plain_bf16,
    }


def timed_others(torch, bench, problem, turn, operands, wanted):
    """Median and error of each other library, or why there is none."""
    found, calls = {}, {}
    for name, make in others(torch, operands).items():
        try:
            call = make()
            result = call.run(0)
            result = operands.out if result is None else result
            torch.cuda.synchronize()
            error = (result.float() - wanted).norm() / wanted.norm()
            # The bf16 product leaves the scales out: it is there for its time.
            found[name] = {} if name == "bf16" else {"relative_error": float(error)}
            calls[name] = Timed(call, turn)
        except Exception as error:
            found[name] = {"refused": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    whole(
        measure(torch, list(calls.values()), TIMING, lambda error: ("launch_failed", str(error).splitlines()[0][:300]))
    )
    for name, one in calls.items():
        found[name].update(
            {"us": statistics.median(one.us)} if one.us and not one.refusal else {"refused": str(one.refusal)}
        )
    return found


def best(bench, shape, candidates):
    """The fastest candidate whose numbers hold."""
    answer = whole(bench.time(shape, candidates, TIMING))
    timed = [
        (statistics.median(outcome["result"]["us"]), candidate)
        for outcome, candidate in zip(answer["outcomes"], candidates)
        if outcome["outcome"] == "done"
    ]
    for us, candidate in sorted(timed, key=lambda one: one[0]):
        numbers = whole(bench.check(shape, [candidate], 7))["outcomes"][0].get("result", {})
        if numbers.get("err_ratio") == 0 and numbers.get("not_finite") == 0:
            return {"us": us, "setting": candidate, "numbers": numbers}
    return {"refused": [outcome for outcome in answer["outcomes"] if outcome["outcome"] != "done"][:2]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--sglang-root", default=None)
    parser.add_argument("--tables", default=None)
    arguments = parser.parse_args()
    os.makedirs(arguments.out, exist_ok=True)
    import torch

    sglang, own = Bench(0, {"sglang_root": arguments.sglang_root}), Bench(0, {"sglang_root": ""})
    tuned = tables(arguments.tables) if arguments.tables else {}
    with open(os.path.join(arguments.out, "beside.jsonl"), "w") as file:
        for n, k in space.SHAPES[:2]:
            for m in MS:
                shape = space.shape(m, n, k)
                problem = Problem.read(shape)
                row = {"m": m, "n": n, "k": k, "default": best(sglang, shape, [space.DEFAULT])}
                if (n, k) in tuned:
                    row["tuned"] = best(sglang, shape, [serving(tuned[(n, k)], m)])
                row["own"] = best(own, shape, OWN)
                turn = rotation(
                    n * k, m * k + 2 * m * n, 2 * m * n * k, own._facts["l2_bytes"], TIMING["min_sample_us"]
                )
                operands = own._store.operands(problem, turn.copies)
                wanted = numerics.reference(torch, operands, 128, 128)
                row.update(timed_others(torch, own, problem, turn, operands, wanted))
                for name, one in row.items():
                    if isinstance(one, dict) and "us" in one:
                        width = 2 if name == "bf16" else 1
                        one["tb_s"] = (width * (n * k + m * k) + 2 * m * n) / one["us"] / 1e6
                file.write(json.dumps(row) + "\n")
                file.flush()
                print(
                    json.dumps(
                        {
                            name: one.get("us") or one.get("refused")
                            for name, one in row.items()
                            if isinstance(one, dict)
                        }
                        | {"m": m, "n": n}
                    ),
                    flush=True,
                )
    sglang.close()
    own.close()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
