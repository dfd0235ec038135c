"""Compiles candidates for a GPU that is not present, with Triton's own compiler, and reports what each of them needs.

    python3 gpu_worker offline --target gfx942 --jobs FILE [--problem aiter_gemm|fused_moe] [--sglang-root FOLDER]
        [--aiter-root FOLDER] [--slots 8] > answers

A job is one JSON line, `{"shape":, "candidate":}` as the protocol has them; its answer repeats both and adds `shared` (bytes of
shared memory of a block), `registers` (vector registers of a thread), `spilled` (of them kept in memory instead) and
`seconds`, or `refused` with its `detail`. The first line answered names the kernel and the compiler. Candidates that are the
same program (`plan.Plan.key`) are compiled once. Neither torch nor a device is needed.
"""

import argparse
import json
import os
import tempfile

from gpu_worker.compile_child import CompileTarget
from gpu_worker.compilers import Compilers, start_child
from gpu_worker.plan import Unsupported
from gpu_worker.software import software

TARGETS = {"gfx942": ("hip", 64, 64 << 10), "gfx950": ("hip", 64, 160 << 10)}
"""Triton's back end, threads of a wavefront, bytes of shared memory of a block: CDNA3 and CDNA4 ISA guides (LDS)."""

COMPILE_DEADLINE_S = 120.0
"""Longest a compile may take: the largest tiles take LLVM a minute on a busy machine."""


def main(arguments):
    """Answers the jobs; the exit status."""
    parser = argparse.ArgumentParser(prog="gpu_worker offline")
    parser.add_argument("--target", required=True, choices=sorted(TARGETS))
    parser.add_argument("--jobs", required=True)
    parser.add_argument("--problem", default=None, choices=("aiter_gemm", "fused_moe"))
    parser.add_argument("--sglang-root", default=None)
    parser.add_argument("--aiter-root", default=None)
    parser.add_argument("--slots", type=int, default=max(1, len(os.sched_getaffinity(0)) - 1))
    parser.add_argument("--block", type=int, nargs=2, default=(128, 128), metavar=("N", "K"))
    chosen = parser.parse_args(arguments)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with open(chosen.jobs, encoding="utf-8") as file:
        jobs = [json.loads(line) for line in file if line.strip()]
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.setdefault("TRITON_CACHE_DIR", os.path.join(scratch, "triton"))
        for answer in answers(jobs, chosen, scratch):
            replies.write(json.dumps(answer) + "\n")
            replies.flush()
    return 0


def take(target):
    """Has Triton compile for `target`, a device that is not here; its version."""
    import triton
    from triton.runtime.driver import driver

    driver.set_active(CompileTarget(*target))
    return triton.__version__


def answers(jobs, chosen, scratch):
    """First the kernel and the compiler, then the jobs' answers in their order."""
    backend, threads, shared = TARGETS[chosen.target]
    target = (backend, chosen.target, threads)
    versions = {"triton": take(target)}
    options = {"problem": chosen.problem, "sglang_root": chosen.sglang_root, "aiter_root": chosen.aiter_root}
    kernels = software(options)
    kernels.on(chosen.target, tuple(chosen.block), "bfloat16", scratch)
    yield {
        "target": chosen.target,
        "kernel": kernels.versions["kernel"],
        "kernel_hash": f"sha256:{kernels.digest}",
        "versions": {**versions, **{name: said for name, said in kernels.versions.items() if name != "kernel"}},
        "shared_limit": shared,
    }
    setup = {
        "target": list(target),
        **kernels.setup,
        "smem_bytes": shared,
        "build_launchers": False,
    }
    # Registers are read off the assembly.
    compilers = Compilers(setup, chosen.slots, COMPILE_DEADLINE_S, start=lambda: start_child("0"))
    try:
        asked = [(job, _ask(compilers, kernels, job)) for job in jobs]
        for job, compiled in asked:
            answer = compiled if isinstance(compiled, dict) else compiled.wait()
            if answer.get("shared", 0) > shared:
                answer = {
                    "refused": "out_of_resources",
                    "detail": f"shared memory {answer['shared']} > {shared}",
                    **answer,
                }
            yield {**job, **answer}
    finally:
        compilers.close()


def _ask(compilers, kernels, job):
    """The compile of a job, or the answer that says why there is none."""
    try:
        wanted = kernels.plan(kernels.read(job["shape"]), job["candidate"])
    except Unsupported as error:
        return {"refused": "unsupported", "detail": str(error)}
    return compilers.compile(wanted.key, kernels.job(wanted, job["candidate"]))[0]
