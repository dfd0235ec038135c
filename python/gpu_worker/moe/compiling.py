"""Compiles plans of the fused-MoE kernel, in a compile child and in the worker (`gpu_worker.compile_child`)."""

from gpu_worker.compile_child import Pointer, load_module, registers
from gpu_worker.moe.lift import KERNEL
from gpu_worker.moe.plan import POINTERS, Target, plan
from gpu_worker.moe.problem import MoeProblem

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


def compiler(kernel, build_launcher):
    """What compiles one job for the target `kernel` (`plan.Target` as plain data)."""
    target = Target.read(kernel)
    function = getattr(load_module(target.path), KERNEL)

    def compile_job(job):
        compiled = warm_up(function, plan(target, MoeProblem(**job["problem"]), job["gemm"], job["candidate"]))
        build_launcher(compiled)
        return {"shared": compiled.metadata.shared, **registers(compiled.asm.get("amdgcn", ""))}

    return compile_job
