"""The GPU worker's protocol, answered from `cost` (src/tune/protocol.rs says what the messages are)."""

import json
import os
import signal
import sys

from standin import cost

INDEX = int(sys.argv[sys.argv.index("--device") + 1]) if "--device" in sys.argv else 0
GPUS = int(os.environ.get("STANDIN_GPUS", 1))
PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "sglang")


def amd_device():
    """An MI300X, where aiter's Triton GEMM is raced: its files are those beside the stand-in's modules."""
    from aiter.ops.triton.utils import gemm_config_utils

    return {
        "protocol": 1, "backend": "aiter-triton", "name": "AMD Stand-in", "arch": "gfx942", "cu_num": 304, "index": 0, "visible": 1,
        "l2_bytes": 4 << 20, "smem_bytes": 65536, "versions": {"sglang": "0.5.16", "torch": "stand-in", "triton": "stand-in"},
        "kernel_hash": "stand-in", "capabilities": ["bound:1"], "prepare_slots": 2, "candidates": [],
        "shipped": gemm_config_utils.CONFIGS,
    }  # fmt: skip


def device(options):
    if options.get("problem") == "aiter_gemm":
        return amd_device()
    is_moe = options.get("problem") == "fused_moe"
    families = [name for name in options.get("families", []) if name in cost.FAMILIES]
    return {
        "protocol": 1, "backend": "sglang-moe" if is_moe else "sglang-families" if families else "sglang-triton",
        "name": cost.DEVICE, "arch": "sm_90", "cu_num": 132, "index": INDEX, "visible": GPUS,
        # STANDIN_TAKEN: a device on which another process holds 40 GiB.
        "taken_bytes": (40 << 30) + (1 << 29) if os.environ.get("STANDIN_TAKEN") == str(INDEX) else 1 << 29,
        "l2_bytes": 50 << 20, "smem_bytes": 232448,
        "versions": {
            "sglang": "0.5.16", "torch": "stand-in", "triton": "3.6.0", **{name: "stand-in" for name in families},
            **({"whole": "fused_experts" if options.get("whole", True) else "two GEMMs"} if is_moe else {}),
        },
        "kernel_hash": "stand-in", "capabilities": ["whole"] if is_moe else [f"family:{name}" for name in families], "prepare_slots": 2,
        "candidates": [], "shipped": os.environ.get("SGLANG_MOE_CONFIG_DIR") or PACKAGE if is_moe else "",
    }  # fmt: skip


def unsupported(candidate, shape):
    """What the families themselves refuse (`gpu_worker/families`)."""
    family = candidate.get("family")
    most = {"stream": 16, "stream-wg": 32}.get(family)
    if most is not None and shape["m"] > most:
        return f"`{family}` takes up to {most} rows of A"
    if family == "cublaslt" and (shape["k"] // 128 % 4 or shape["m"] < 4):
        return "`cublaslt` takes blocks of 128 x 128 and K in 512s"
    return None


def each(ask, result):
    outcomes = []
    for candidate in ask["candidates"]:
        why = unsupported(candidate, ask["shape"])
        outcomes.append(refused(why) if why else done(result(candidate)))
    return outcomes


def microseconds(shape, candidate):
    part, pairs = shape.get("part"), shape.get("M", 0) * shape.get("topk", 0)
    if part is None:
        return cost.microseconds(candidate, shape["m"], shape["n"], shape["k"])
    if part != "whole":
        return cost.moe_microseconds(part, candidate, pairs)
    up = candidate["up"]
    return cost.moe_microseconds("up", up, pairs) + cost.moe_microseconds("down", candidate["down"] or up, pairs)


def answer(ask):
    kind = ask["kind"]
    if kind in ("prepare", "time", "check") and ask["shape"].get("dtype", "torch.float8_e4m3fn") != "torch.float8_e4m3fn":
        return {"kind": "failed", "error": f"the kernel takes FP8, not `{ask['shape']['dtype']}`"}
    if kind == "hello":
        return {"kind": "hello", "device": device(ask["options"])}
    if kind == "prepare":
        why = unsupported(ask["candidate"], ask["shape"])
        return {"kind": "prepared", "outcome": refused(why) if why else done({"seconds": 0.0, "cached": True})}
    if kind == "time":
        # STANDIN_KILLED: a file that is written when the worker of the third device is killed, which happens once.
        mark = os.environ.get("STANDIN_KILLED")
        if mark and INDEX == 2 and not os.path.exists(mark):
            open(mark, "x").close()
            os.kill(os.getpid(), signal.SIGKILL)
        shape, samples = ask["shape"], ask["timing"]["samples"]
        outcomes = each(ask, lambda one: {"us": [microseconds(shape, one)] * samples})
        return {"kind": "timed", "outcomes": outcomes, "busy_s": 0.001, "clocks_mhz": []}
    if kind == "check":
        right = {"err_ratio": 0.0, "not_finite": 0, "repeatable": True}
        return {"kind": "checked", "outcomes": each(ask, lambda _: right), "busy_s": 0.001}
    return {"kind": "bye"}


def done(result):
    return {"outcome": "done", "result": result}


def refused(why):
    return {"outcome": "refused", "reason": "unsupported", "detail": why}


def main(arguments):
    descriptor = int(arguments[arguments.index("--reply-fd") + 1])
    for line in sys.stdin:
        request = json.loads(line)
        reply = {"id": request["id"], "attempt": request["attempt"], "answer": answer(request["ask"])}
        os.write(descriptor, json.dumps(reply).encode() + b"\n")
        if reply["answer"]["kind"] == "bye":
            return


main(sys.argv[1:])
