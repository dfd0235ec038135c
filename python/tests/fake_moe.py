"""A fused-MoE worker without a device, for tests of whoever drives it:

    fake_moe.py WORKER_FOLDER --device 0 --reply-fd 3      (what an interpreter is started with)

The request loop is the worker's own; times are a rule of the settings. The variable FAKE_MOE holds `{"sglang": folder of the
package}` and may hold `"pause_s"` for each timing and `"faults"`, a list of `{"match": settings, "does": …}`: `crash`,
`hang`, `nan`, `wrong` or `refuse`.
"""

import json
import math
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[1])))

from gpu_worker import command
from gpu_worker.moe import serving
from gpu_worker.serve import done, refused

ASKED = json.loads(os.environ["FAKE_MOE"])


def microseconds(part, row, pairs):
    """The rule: a best width and depth for each GEMM, tiles that waste rows, and narrower steps that cost a little."""
    best_n, best_stages = (128, 4) if part == "up" else (64, 3)
    off = abs(math.log2(row["BLOCK_SIZE_N"] / best_n)) + abs(row["num_stages"] - best_stages)
    off += (row["num_warps"] != 4) + (row["BLOCK_SIZE_K"] != 128) + 0.5 * (row["GROUP_SIZE_M"] != 1)
    rows = max(1.0, pairs / 128)
    waste = abs(math.log2(row["BLOCK_SIZE_M"] / max(16.0, rows)))
    return (20.0 + pairs / 100.0) * (1.0 + 0.05 * off + 0.1 * waste)


class FakeMoe:
    """Answers as `serving.MoeServing` does."""

    def __init__(self, _index, options):
        self._joint = options["joint"]

    def device(self):
        return {
            "protocol": 1,
            "backend": serving.BACKEND,
            "name": "NVIDIA H200",
            "arch": "sm_90",
            "cu_num": 132,
            "index": 0,
            "visible": 1,
            "l2_bytes": 60 << 20,
            "smem_bytes": 232448,
            "versions": {"sglang": "0.5.16", "triton": "3.6.0", "whole": "fused_experts"},
            "kernel_hash": "sha256:0",
            "capabilities": ["whole"],
            "prepare_slots": 4,
            "candidates": [],
            "shipped": ASKED.get("sglang", ""),
        }

    def prepare(self, shape, candidate, reply):
        reply(self._refusal(shape, candidate) or done({"seconds": 0.0, "cached": False}))

    def time(self, shape, candidates, timing):
        time.sleep(ASKED.get("pause_s", 0.0))
        yield
        outcomes = [self._refusal(shape, one) or self._timed(shape, one, timing) for one in candidates]
        return {"kind": "timed", "outcomes": outcomes, "clocks_mhz": []}

    def check(self, shape, candidates, _seed):
        yield
        faults = [self._does(shape, one) for one in candidates]
        numbers = [
            {"err_ratio": 0.8 * (f == "wrong"), "not_finite": 9 * (f == "nan"), "repeatable": True} for f in faults
        ]
        refusals = [self._refusal(shape, one) for one in candidates]
        return {"kind": "checked", "outcomes": [bad or done(one) for bad, one in zip(refusals, numbers)]}

    def close(self):
        pass

    def _unit(self, shape, candidate):
        return serving.Task.read(shape, "float8_e4m3fn").unit(candidate)

    def _does(self, shape, candidate):
        for _, row in self._unit(shape, candidate):
            for fault in ASKED.get("faults", []):
                if all(row.get(name) == value for name, value in fault["match"].items()):
                    return fault["does"]
        return None

    def _refusal(self, shape, candidate):
        try:
            unit = self._unit(shape, candidate)
        except serving.Refused as error:
            return refused(error.reason, error.detail)
        if any(128 % row["BLOCK_SIZE_K"] for _, row in unit):
            return refused("unsupported", "the numbers would be wrong")
        if self._does(shape, candidate) == "refuse":
            return refused("out_of_resources", "shared memory 300000 > 232448")
        return None

    def _timed(self, shape, candidate, timing):
        does = self._does(shape, candidate)
        if does == "crash":
            os.abort()
        if does == "hang":
            time.sleep(3600)
        pairs = shape["M"] * shape["topk"]
        us = sum(microseconds(part, row, pairs) for part, row in self._unit(shape, candidate))
        if does in ("nan", "wrong"):
            us /= 2  # a wrong kernel that is fast must not win
        us += 30.0 * (shape["part"] == "whole")  # what surrounds the GEMMs
        return done({"us": [us * (1.0 + 1e-3 * (sample % 3)) for sample in range(timing["samples"])]})


serving.MoeServing = FakeMoe
sys.exit(command.main(sys.argv[2:]))
