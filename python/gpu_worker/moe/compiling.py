"""One compile child for fused-MoE plans: as `gpu_worker.compile_child`, for the other kernel.

python -m gpu_worker.moe.compile_child      the first line of standard input is the set-up, then one job a line
"""

import json
import os
import sys
import time

from gpu_worker.compile_child import CompileTarget, Pointer, TooMuchSharedMemory, load_module, stop_early
from gpu_worker.moe.lift import KERNEL
from gpu_worker.moe.plan import POINTERS, Target, plan
from gpu_worker.moe.problem import MoeProblem
from gpu_worker.plan import Unsupported

DTYPES = dict.fromkeys(("a_scale_ptr", "b_scale_ptr", "topk_weights_ptr"), "float32") | dict.fromkeys(
    ("sorted_token_ids_ptr", "expert_ids_ptr", "num_tokens_post_padded_ptr"), "int32"
)
"""dtypes of the kernel's pointers besides the matrices."""


def warm_up(function, wanted):
    """Compiles a plan, or finds it compiled, without a device."""
    import triton.language as tl

    matrices = {"a_ptr": wanted.problem.dtype, "b_ptr": wanted.problem.dtype, "c_ptr": "bfloat16"}
    pointers = {name: Pointer({**DTYPES, **matrices}[name]) for name in POINTERS}
    return function.warmup(
        grid=(1,), **pointers, compute_type=tl.bfloat16, **dict(wanted.scalars), **dict(wanted.constants)
    )


def main():
    """Answers jobs until end of file."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.nice(10)
    setup = json.loads(sys.stdin.readline())
    from triton.compiler.compiler import make_backend
    from triton.runtime.driver import driver

    device = CompileTarget(*setup["target"])
    driver.set_active(device)
    stop_early(type(make_backend(device.get_current_target())), setup["smem_bytes"])
    target = Target.read(setup["kernel"])
    function = getattr(load_module(target.path), KERNEL)
    for line in sys.stdin:
        job = json.loads(line)
        started = time.perf_counter()
        try:
            wanted = plan(target, MoeProblem(**job["problem"]), job["gemm"], job["candidate"])
            compiled = warm_up(function, wanted)
            answer = {"shared": compiled.metadata.shared}
        except Unsupported as error:
            answer = {"refused": "unsupported", "detail": str(error)}
        except Exception as error:
            short = isinstance(error, TooMuchSharedMemory) or type(error).__name__ == "OutOfResources"
            words = " ".join(f"{type(error).__name__}: {error}".split())
            answer = {"refused": "out_of_resources" if short else "compile_failed", "detail": words[:2000]}
        answer["seconds"] = time.perf_counter() - started
        replies.write(json.dumps(answer) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
