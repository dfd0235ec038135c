"""The GPU worker's protocol, answered from `cost` (src/tune/protocol.rs says what the messages are)."""

import json
import os
import sys

from standin import cost


def device():
    return {
        "protocol": 1, "backend": "sglang-triton", "name": cost.DEVICE, "arch": "sm_90", "cu_num": 132, "index": 0, "visible": 1,
        "l2_bytes": 50 << 20, "smem_bytes": 232448, "versions": {"sglang": "0.5.16", "torch": "stand-in", "triton": "stand-in"},
        "kernel_hash": "stand-in", "capabilities": [], "prepare_slots": 2, "candidates": [], "shipped": "",
    }  # fmt: skip


def answer(ask):
    kind = ask["kind"]
    if kind in ("prepare", "time", "check") and ask["shape"]["dtype"] != "torch.float8_e4m3fn":
        return {"kind": "failed", "error": f"the kernel takes FP8, not `{ask['shape']['dtype']}`"}
    if kind == "hello":
        return {"kind": "hello", "device": device()}
    if kind == "prepare":
        return {"kind": "prepared", "outcome": done({"seconds": 0.0, "cached": True})}
    if kind == "time":
        shape = ask["shape"]
        outcomes = [
            done({"us": [cost.microseconds(config, shape["m"], shape["n"], shape["k"])] * ask["timing"]["samples"]})
            for config in ask["candidates"]
        ]
        return {"kind": "timed", "outcomes": outcomes, "busy_s": 0.001, "clocks_mhz": []}
    if kind == "check":
        right = {"err_ratio": 0.0, "not_finite": 0, "repeatable": True}
        return {"kind": "checked", "outcomes": [done(right) for _ in ask["candidates"]], "busy_s": 0.001}
    return {"kind": "bye"}


def done(result):
    return {"outcome": "done", "result": result}


def main(arguments):
    descriptor = int(arguments[arguments.index("--reply-fd") + 1])
    for line in sys.stdin:
        request = json.loads(line)
        reply = {"id": request["id"], "attempt": request["attempt"], "answer": answer(request["ask"])}
        os.write(descriptor, json.dumps(reply).encode() + b"\n")
        if reply["answer"]["kind"] == "bye":
            return


main(sys.argv[1:])
