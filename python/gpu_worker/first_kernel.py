"""A kernel that does next to nothing: the first launch of a process (`bench.first_launch`)."""

import triton
import triton.language as tl


@triton.jit
def touch(out):
    tl.store(out, 1.0)
