"""Compiles candidates for a GPU that is not here, with Triton's own compiler, and says what each of them needs.

    python3 gpu_worker offline --target gfx942 --jobs FILE [--sglang-root FOLDER] [--slots 8] > answers

A job is one JSON line, `{"shape":, "candidate":}` as the protocol has them; its answer repeats both and adds `shared` (bytes of
shared memory of a block), `registers` (vector registers of a thread), `spilled` (of them kept in memory instead) and
`seconds`, or `refused` with its `detail`. The first line answered names the kernel and the compiler. Candidates that are the
same program (`plan.Plan.key`) are compiled once. Neither torch nor a device is needed.
"""

import argparse
import dataclasses
import json
import os
import tempfile

from gpu_worker import tree
from gpu_worker.compile_child import load_module
from gpu_worker.compilers import Compilers, start_child
from gpu_worker.plan import Kernels, Problem, Unsupported, plan

TARGETS = {"gfx942": ("hip", 64, 64 << 10), "gfx950": ("hip", 64, 160 << 10)}
"""Triton's back end, threads of a wavefront, bytes of shared memory of a block: CDNA3 and CDNA4 ISA guides (LDS)."""

COMPILE_DEADLINE_S = 120.0
"""Longest a compile may take: the largest tiles take LLVM a minute on a busy machine."""


def main(arguments):
    """Answers the jobs; the exit status."""
    parser = argparse.ArgumentParser(prog="gpu_worker offline")
    parser.add_argument("--target", required=True, choices=sorted(TARGETS))
    parser.add_argument("--jobs", required=True)
    parser.add_argument("--sglang-root", default=None)
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


def triton_version():
    """Triton's, whose compiler it is."""
    import triton

    return triton.__version__


def answers(jobs, chosen, scratch):
    """First the kernel and the compiler, then the jobs' answers in their order."""
    backend, threads, shared = TARGETS[chosen.target]
    package = None if chosen.sglang_root == "" else tree.package_folder(chosen.sglang_root)
    source = tree.sglang_kernels(package) if package else tree.own_kernels()
    path = source.write(scratch)
    kernels = Kernels(
        path=path,
        plain=source.plain,
        plain_takes=tuple(getattr(load_module(path), source.plain).arg_names),
        # SGLang launches its other variant on sm_90 alone.
        tuned="" if source.version else source.tuned,
        reduce="" if source.version else source.reduce,
        clamps_block_k=source.clamps_block_k,
        block_n=chosen.block[0],
        block_k=chosen.block[1],
        out_dtype="bfloat16",
    )
    yield {
        "target": chosen.target,
        "kernel": source.origin,
        "kernel_hash": f"sha256:{source.digest}",
        "versions": {"triton": triton_version(), **({"sglang": source.version} if source.version else {})},
        "shared_limit": shared,
    }
    setup = {
        "target": [backend, chosen.target, threads],
        "kernels": dataclasses.asdict(kernels),
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
        wanted = plan(kernels, Problem.read(job["shape"]), job["candidate"])
    except Unsupported as error:
        return {"refused": "unsupported", "detail": str(error)}
    compiled, _ = compilers.compile(
        wanted.key, {"problem": dataclasses.asdict(wanted.problem), "candidate": job["candidate"]}
    )
    return compiled
