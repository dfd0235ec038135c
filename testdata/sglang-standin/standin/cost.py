"""How long a GEMM takes here, so that tuning has something to find: Triton's by its configuration, every other family's by M; and
of a fused MoE each of its two GEMMs by its row."""

import os

DEVICE = "NVIDIA Stand-in"
#: Microseconds of a family up to an M, and beyond the last one.
FAMILIES = {
    "deepgemm": ((16, 90.0), (64, 20.0), (None, 60.0)),
    "stream": ((8, 15.0), (None, 99.0)),
    "stream-wg": ((16, 25.0), (None, 99.0)),
    "cublaslt": ((64, 99.0), (None, 20.0)),
}

_device_time = 0.0


def microseconds(candidate, m, n, k):
    """Tiles of 16 rows are right up to M = 16, larger ones above; each doubling too many costs half as much again."""
    family = candidate.get("family")
    if family is not None:
        return next(duration for last, duration in FAMILIES[family] if last is None or m <= last)
    wanted = 16 if m <= 16 else 64
    block = candidate["BLOCK_SIZE_M"]
    steps = 0
    while min(wanted, block) << steps < max(wanted, block):
        steps += 1
    return (30.0 + 3.0 * (candidate["num_stages"] == 2)) * 1.5**steps


def spend(duration):
    """The device is busy for so many microseconds."""
    global _device_time
    _device_time += duration


def device_time():
    """Microseconds that the device has been busy."""
    return _device_time


def moe_microseconds(gemm, row, pairs):
    """As a dense GEMM's: tiles of 16 rows are right for few tokens and experts, larger ones for many."""
    wanted = 16 if pairs <= 128 else 64
    steps = 0
    while min(wanted, row["BLOCK_SIZE_M"]) << steps < max(wanted, row["BLOCK_SIZE_M"]):
        steps += 1
    # Much beside the rest of a step, so that a busy machine does not hide what a row changes.
    return ((400.0 if gemm == "up" else 240.0) + 9.0 * (row["num_stages"] == 2)) * 1.5**steps


def moe_gemm(gemm, row, pairs, out):
    """A GEMM of a fused MoE ran. A BLOCK_SIZE_K beyond the scale block is wrong at full speed, as SGLang's is; STANDIN_WRONG=fused-moe
    makes every row wrong but the default, whose BLOCK_SIZE_M of 64 it is known by."""
    spend(moe_microseconds(gemm, row, pairs))
    wrong = os.environ.get("STANDIN_WRONG") == "fused-moe" and row["BLOCK_SIZE_M"] != 64
    if wrong or row["BLOCK_SIZE_K"] > 128:
        out.content = "wrong"
    elif out.content == "unwritten":
        out.content = "right"


def computed(family, out, m):
    """A kernel of `family` ran: STANDIN_WRONG=FAMILY makes it a wrong one, STANDIN_BROKEN=FAMILY one that cannot be launched."""
    if os.environ.get("STANDIN_BROKEN") == family:
        raise RuntimeError(f"{family} cannot be launched")
    spend(microseconds({"family": family}, m, None, None))
    out.content = "wrong" if os.environ.get("STANDIN_WRONG") == family else "right"
