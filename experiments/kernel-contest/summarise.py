"""Tables from `contest.py`: what each family takes for a model's GEMMs, and what a route through the best of each takes.

    python3 experiments/kernel-contest/summarise.py contest.jsonl[.gz]

A family's entrant (its setting) and a shape's family are chosen by the samples number 0, 2, 4, …, and every figure is the
median of the others, so that a choice is not paid by the noise it was made from. An entrant counts if its numbers are right:
no element outside 1e-2 + 1e-2 |reference|, none not finite, the same bits twice.
"""

import gzip
import json
import statistics
import sys

MODELS = {
    "Qwen3-8B": ((6144, 4096), (4096, 4096), (24576, 4096), (4096, 12288)),
    "DeepSeek-V3 TP8": ((2112, 7168), (3072, 1536), (7168, 2048), (4608, 7168), (7168, 2304), (4096, 512)),
}

DEFAULT = "deepgemm"
"""What SGLang runs on Hopper if no flag says otherwise."""

LIBRARIES = ("deepgemm", "flashinfer", "cublaslt", "sglang-triton")


def right(entrant):
    """Whether it ran and computed what was asked."""
    numbers = entrant.get("numbers", {})
    return (
        "us" in entrant
        and numbers.get("err_ratio") == 0
        and numbers.get("not_finite") == 0
        and numbers.get("repeatable")
    )


def families(row):
    """For each family of one shape the best entrant's two medians: the one it was chosen by, and the other."""
    best = {}
    for entrant in filter(right, row["entrants"]):
        chosen_by, other = (statistics.median(entrant["us"][half::2]) for half in (0, 1))
        best[entrant["family"]] = min(best.get(entrant["family"], (float("inf"), 0.0)), (chosen_by, other))
    return best


def lines(rows, shapes):
    """One line a value of M: family sums, the route's sum, and what it is worth."""
    for m in sorted({row["m"] for row in rows}):
        found = [families(row) for row in rows if row["m"] == m and (row["n"], row["k"]) in shapes]
        plain = [{name: best for name, best in one.items() if "+" not in name} for one in found]
        sums = {name: sum(one[name][1] for one in found) for name in found[0] if all(name in one for one in found)}
        routed = [min(one, key=one.get) for one in plain]
        route = sum(one[name][1] for one, name in zip(plain, routed))
        early = sum(min(one.values())[1] for one in found)
        library = min((name for name in sums if name in LIBRARIES), key=sums.get)
        worst = max(
            one[name][1] / min(one[other][1] for other in LIBRARIES if other in one) for one, name in zip(plain, routed)
        )
        yield {
            "m": m,
            "sums": {name: round(us, 1) for name, us in sums.items()},
            "route": round(route, 1),
            "route_early": round(early, 1),
            "families": routed,
            "over_default": round(sums[DEFAULT] / route, 3),
            "best_library": library,
            "over_best_library": round(sums[library] / route, 3),
            "worst_shape_against_a_library": round(worst, 3),
        }


def main():
    opened = gzip.open if sys.argv[1].endswith(".gz") else open
    with opened(sys.argv[1], "rt") as file:
        rows = [row for row in map(json.loads, file) if "entrants" in row]
    for model, shapes in MODELS.items():
        for line in lines(rows, shapes):
            print(json.dumps({"model": model, **line}))


if __name__ == "__main__":
    main()
