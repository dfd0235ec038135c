"""Compiles plans of aiter's Triton GEMM, in a compile child (`gpu_worker.compile_child`)."""

from gpu_worker.aiter.launching import warm_up
from gpu_worker.aiter.plan import plan
from gpu_worker.aiter.tree import open_tree
from gpu_worker.compile_child import registers
from gpu_worker.plan import Problem


def compiler(about, build_launcher):
    """What compiles one job; `about` is the set-up of `gpu_worker.software.Aiter`."""
    tree = open_tree(about["root"])

    def compile_job(job):
        wanted = plan(
            tree, Problem(**job["problem"]), job["candidate"], about["block"], about["rocm"], about["out_dtype"]
        )
        compiled = warm_up(wanted)
        for one in compiled:
            build_launcher(one)
        # The kernel that adds parts of K needs the same little for every row.
        return {"shared": compiled[0].metadata.shared, **registers(compiled[0].asm.get("amdgcn", ""))}

    return compile_job
