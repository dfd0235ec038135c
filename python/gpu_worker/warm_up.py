"""Incurs the cost of a process's first use of everything before any timing waits for it.

Triton hashes itself at its first launch (0.4 s) and on a new machine has a C compiler build what it talks to the driver
with; torch loads each of its kernels, and the library of its matrix products, at their first use.
"""

import sys

import triton
import triton.language as tl

from gpu_worker import numerics
from gpu_worker.plan import Problem


@triton.jit
def touch(out):
    """A kernel that does next to nothing."""
    tl.store(out, 1.0)


def warm_up(torch, store, block_n, block_k):
    """One launch, one device graph, and one check of a small shape that was not requested."""
    try:
        problem = Problem(16, block_n, block_k, "float8_e4m3fn")
        operands = store.operands(problem, 2, seed=1)
        line = torch.zeros(1, device=operands.out.device)
        touch[(1,)](line)
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            touch[(1,)](line)
        finally:
            graph.capture_end()
        graph.replay()
        wanted = numerics.reference(torch, operands, block_n, block_k)
        numerics.found(
            numerics.compare(torch, wanted, operands.out, lambda: None, lambda: operands.out.fill_(float("nan")))
        )
        torch.cuda.synchronize()
    except Exception as error:
        # Whatever the reason, a candidate's own launch runs into it again and is refused because of it.
        print(f"the warm-up failed: {type(error).__name__}: {error}", file=sys.stderr)
