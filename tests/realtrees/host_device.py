"""Runs the GPU worker's fused-MoE side on a machine without a GPU: the lifted kernel in Triton's interpreter, and torch for what
SGLang has in C++. Times mean nothing; what is launched and what comes out does.

    host_device.py WORKER_FOLDER --device 0 --reply-fd 3      (what an interpreter is started with)
"""

import inspect
import os
import sys
import time
import types

os.environ["TRITON_INTERPRET"] = "1"


def measure(_torch, timed, timing, refuse, while_busy=None):
    """Runs each candidate once, which the interpreter takes long enough for, and has it stand for all samples."""
    for one in timed:
        begun = time.perf_counter()
        try:
            one._launch.load()
            one._launch.run(0)
        except Exception as error:
            one.refusal = refuse(error)
            continue
        one.us = [(time.perf_counter() - begun) * 1e6] * timing["samples"]
    yield
    return 0.0


def install(torch):
    """Puts the stand-ins into torch and the worker."""
    cuda = torch.cuda
    # Each a function of its own: torch._dynamo keeps rules by function.
    for name in ("set_device", "set_stream", "_sleep", "synchronize", "empty_cache", "current_stream"):
        setattr(cuda, name, (lambda: lambda *_: None)())
    cuda.Stream = type("Stream", (), {})
    cuda.get_device_name = lambda _=0: "Triton interpreter"
    cuda.device_count = lambda: 1
    cuda.get_device_properties = lambda _: types.SimpleNamespace(
        major=9, minor=0, multi_processor_count=1, L2_cache_size=1 << 20, shared_memory_per_block_optin=232448
    )
    from gpu_worker import rotation
    from gpu_worker.moe import bench

    class Interpreted(bench.MoeBench):
        """Compiles nothing: the interpreter takes any settings that the planner lets through."""

        def _open(self, _index):
            return torch.device("cpu")

        def _start_compilers(self, _triton, _cache):
            return Compiled()

        def _load(self, _wanted):
            pass

        def rotation(self, operands, _gemms, _timing):
            return rotation.Rotation(len(operands.routes), 0, 1e9)

        def _routings(self, _problem):
            return 2

    from gpu_worker.moe import serving

    serving.MoeBench = Interpreted
    serving.wait_until_idle = lambda *_: 0.0
    serving.measure = measure
    # The attempt would be a process without these stand-ins.
    serving.Attempt = lambda *_: types.SimpleNamespace(reason=lambda: None)


class Compiled:
    """Every specialisation is there at once."""

    def compile(self, _key, _job, _urgent):
        return self, True

    def wait(self):
        return {"shared": 0, "seconds": 0.0}

    def then(self, call):
        call(self.wait())

    def close(self):
        pass


def stand_in_for_operators(torch, module):
    """Torch for what `fused_experts` of the module calls in C++: sorting, quantisation, and its own operator on a CPU."""
    from gpu_worker.moe import routing
    from gpu_worker.moe.operands import MoeOperands

    def align(ids, buckets, block, sorted_ids, expert_ids, used, *_):
        # Into what SGLang's own Python has allocated.
        found = routing.align(torch, ids, buckets - 1, block, sorted_ids.numel())
        for given, computed in zip((sorted_ids, expert_ids, used), found):
            given.copy_(computed[: given.numel()])

    def quantised(values, *_, **__):
        operands = object.__new__(MoeOperands)
        operands._torch, operands.problem = torch, types.SimpleNamespace(dtype="float8_e4m3fn")
        return operands._quantised(values)

    sys.modules[module.moe_align_block_size.__module__].sgl_moe_align_block_size = align
    if not hasattr(module, "vllm_ops"):

        def silu_and_mul(out, values):
            gate, linear = values.chunk(2, dim=-1)
            out.copy_(torch.nn.functional.silu(gate) * linear)

        module.vllm_ops = types.SimpleNamespace(silu_and_mul=silu_and_mul)
    launcher = sys.modules[module.invoke_fused_moe_kernel.__module__]
    for name in ("sglang_per_token_group_quant_fp8", "per_token_group_quant_fp8"):
        if hasattr(launcher, name):
            setattr(launcher, name, quantised)
    operator = getattr(torch.ops.sglang, "outplace_fused_experts", None)
    if operator is None:
        return
    names = [argument.name for argument in operator.default._schema.arguments]
    takes = inspect.signature(module.fused_experts_impl).parameters

    def run(*arguments, **named):
        given = dict(zip(names, arguments)) | named
        return module.fused_experts_impl(inplace=False, **{key: value for key, value in given.items() if key in takes})

    library = torch.library.Library("sglang", "FRAGMENT")
    library.impl("outplace_fused_experts", run, "CPU")
    stand_in_for_operators.library = library  # it lives as long as it is held


def main():
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[1])))
    import torch

    install(torch)
    from gpu_worker import command
    from gpu_worker.moe import whole

    made = whole.Whole.of.__func__

    def of(cls, torch, package, _kernel=None):
        operation = made(cls, torch, package)
        stand_in_for_operators(torch, operation._module)
        return operation

    whole.Whole.of = classmethod(of)
    sys.exit(command.main(sys.argv[2:]))


if __name__ == "__main__":
    main()
