"""A kernel that writes to an address it is given: the illegal access of `faults.py`."""

import triton
import triton.language as tl


@triton.jit
def write_to(address):
    tl.store(address.to(tl.pointer_type(tl.float32)), 1.0)
