"""The Triton twin: no table, no log line, and a time that PLAYED_TRITON tells.

`60;48:10` is 60 us, and 10 us at M of 48 and above; in place of a time, `unseen` is a kernel that the profiler loses, `raises`
one that raises while it is timed, and `dies` one that ends the process then.
"""

import os

from torch import profiler

from aiter import _block_gemm

NAME = "_gemm_a8w8_blockscale_kernel"


def _said(m):
    said = "60"
    for part in os.environ.get("PLAYED_TRITON", said).split(";"):
        least, _, what = part.rpartition(":")
        if m >= int(least or 0):
            said = what
    return said


def gemm_a8w8_blockscale(XQ, WQ, x_scale, w_scale, dtype=None):
    """The product of the plain kernel."""
    said = _said(XQ.shape[0])
    if said == "raises" and profiler.is_open():
        raise RuntimeError("out of resource: shared memory")
    if said == "dies" and profiler.is_open():
        os._exit(139)
    if said not in ("unseen", "raises", "dies"):
        profiler.launched(NAME, float(said))
    return _block_gemm(XQ, WQ, x_scale, w_scale, **({} if dtype is None else {"dtype": dtype}))
