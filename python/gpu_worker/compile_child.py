"""One compile child: compiles plans for a device it never opens, into Triton's disk cache.

Triton asks its driver what to compile for; here a replacement returns the worker's target, so that the child follows
exactly the path of a launch and the worker's launch finds the result under the same key. No torch and no device
context: a child costs memory for Triton alone and cannot disturb a timing.
"""

import importlib.util
import json
import math
import os
import re
import sys
import time

from gpu_worker.launchers import launcher_builder
from gpu_worker.plan import Kernels, Problem, Unsupported, plan


class CompileTarget:
    """The part of Triton's driver that compiling needs."""

    def __init__(self, backend, arch, warp_size):
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget(backend, arch, warp_size)

    def get_current_target(self):
        return self._target

    def get_current_device(self):
        return 0

    def get_current_stream(self, _device):
        return 0


class Pointer:
    """The properties of a tensor that specialisation needs: torch's allocations are aligned well past 16 bytes."""

    def __init__(self, dtype):
        self.dtype = dtype

    def data_ptr(self):
        return 0

    def ptr_range(self):
        return 0


class TooMuchSharedMemory(Exception):
    """A block of this plan needs more shared memory than the device gives one."""


PIPELINE_BUFFER = re.compile(r"local_alloc : \(\) -> !ttg\.memdesc<((?:\d+x)+)f8")
"""A buffer the software pipeline keeps for the whole loop, in Triton's own intermediate form: 5x256x128xf8E4M3FN."""


def buffered_bytes(intermediate):
    """Bytes of FP8 buffers that are alive at once in the main loop: a lower bound of the shared memory needed."""
    return sum(
        math.prod(int(side) for side in sides[:-1].split("x")) for sides in PIPELINE_BUFFER.findall(intermediate)
    )


def stop_early(backend, limit):
    """Makes compiling stop where the pipeline's buffers are known, before the back end.

    The plans that do not fit are the largest tiles, and LLVM takes 10 to 30 s over each of them. Where this Triton
    writes its buffers otherwise nothing changes: the worker compares the finished kernel with the limit all the same.
    """
    stage = getattr(backend, "make_llir", None)
    if stage is None or not limit:
        return
    static = isinstance(vars(backend).get("make_llir"), staticmethod)

    def guarded(self, source, *rest):
        needed = buffered_bytes(str(source))
        if needed > limit:
            raise TooMuchSharedMemory(f"shared memory {needed} > {limit}")
        return stage(source, *rest) if static else stage(self, source, *rest)

    backend.make_llir = guarded


def load_module(path):
    """The kernel module at `path`, imported under a name that follows its content."""
    name = os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def run():
    """Answers jobs, one JSON line each, until end of file. The first line is the set-up."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.nice(10)
    setup = json.loads(sys.stdin.readline())
    from triton.compiler.compiler import make_backend
    from triton.runtime.driver import driver

    target = CompileTarget(*setup["target"])
    driver.set_active(target)
    stop_early(type(make_backend(target.get_current_target())), setup["smem_bytes"])
    build_launcher = launcher_builder(setup["target"][0]) if setup["build_launchers"] else lambda _compiled: None
    compile_job = _compiler(setup, build_launcher)
    for line in sys.stdin:
        job = json.loads(line)
        started = time.perf_counter()
        try:
            answer = compile_job(job)
        except Unsupported as error:
            answer = {"refused": "unsupported", "detail": str(error)}
        except Exception as error:
            words = " ".join(f"{type(error).__name__}: {error}".split())
            short = isinstance(error, TooMuchSharedMemory) or type(error).__name__ == "OutOfResources"
            reason = "out_of_resources" if short else "compile_failed"
            answer = {"refused": reason, "detail": words[:2000]}
        answer["seconds"] = time.perf_counter() - started
        replies.write(json.dumps(answer) + "\n")
        replies.flush()
    return 0


def warm_up(module, wanted, out_dtype):
    """Compiles one plan and its split-K sum, or finds them compiled: Triton's kernels in the order they are launched."""
    inputs = [Pointer(wanted.problem.dtype), Pointer(wanted.problem.dtype), Pointer(wanted.out_dtype)]
    scales = [Pointer("float32"), Pointer("float32")]
    pointers = dict(zip(("A", "B", "C", "As", "Bs"), inputs + scales))
    function = getattr(module, wanted.function)
    compiled = [function.warmup(grid=(1,), **pointers, **dict(wanted.scalars), **dict(wanted.constants))]
    if wanted.reduce:
        reduce = getattr(module, wanted.reduce)
        parts, out = Pointer("float32"), Pointer(out_dtype)
        compiled.append(reduce.warmup(grid=(1,), Parts=parts, Out=out, **wanted.reduce_constants))
    return compiled


def _compiler(setup, build_launcher):
    """What compiles a job, by the kernels that the set-up names."""
    if "moe" in setup:
        from gpu_worker.moe.compiling import compiler

        return compiler(setup["moe"], build_launcher)
    if "aiter" in setup:
        from gpu_worker.aiter.compiling import compiler

        return compiler(setup["aiter"], build_launcher)
    kernels = Kernels(**{**setup["kernels"], "plain_takes": tuple(setup["kernels"]["plain_takes"])})
    module = load_module(kernels.path)
    return lambda job: _compile(
        module, plan(kernels, Problem(**job["problem"]), job["candidate"]), kernels, build_launcher
    )


def _compile(module, wanted, kernels, build_launcher):
    """Compiles one plan; answers with the shared memory a block needs, and on AMD with its registers."""
    compiled = warm_up(module, wanted, kernels.out_dtype)
    for one in compiled:
        build_launcher(one)
    return {"shared": compiled[0].metadata.shared, **registers(compiled[0].asm.get("amdgcn", ""))}


def registers(assembly):
    """Vector registers of a thread, and how many of them are kept in memory, as AMD's compiler writes them; empty for
    another. NVIDIA's says it when a kernel is loaded."""
    found = {
        name: re.findall(rf"^\s*\.{key}:\s+(\d+)", assembly, re.MULTILINE)
        for name, key in (("registers", "vgpr_count"), ("spilled", "vgpr_spill_count"))
    }
    return {name: int(numbers[-1]) for name, numbers in found.items() if numbers}
