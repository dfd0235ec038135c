"""What a real release does with its fused MoE, asked on a machine without a GPU: one JSON document on standard output.

    moe.py SITE        (with the overlay in front and its variables set, where they are to be tried)

`launches`: what the GPU worker would launch for both GEMMs beside what SGLang's own `fused_experts` launches, argument by
argument. `answers`: what the look-up answers for a few M, called as the runtime calls it. `left`: what it answers for an (E, N)
without a table of ours.
"""

import ast
import importlib.machinery
import importlib.util
import json
import os
import sys
from unittest.mock import MagicMock

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "..", "python")]

import host_device
import torch
from gpu_worker.moe import lift
from gpu_worker.moe.operands import MoeOperands
from gpu_worker.moe.plan import Target, plan
from gpu_worker.moe.problem import DOWN, UP, MoeProblem
from gpu_worker.moe.whole import LOOKUP, MODULES, Whole, _import

ROW = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1, "num_warps": 4, "num_stages": 3}
ROWS = {"up": ROW, "down": {**ROW, "BLOCK_SIZE_N": 32, "num_warps": 8}}


class CompiledPackage:
    """`sgl_kernel`, which CUDA images have and this machine has not: whatever is imported from it can be anything."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "sgl_kernel":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, _spec):
        return None

    def exec_module(self, module):
        def attribute(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return MagicMock()

        module.__getattr__ = attribute


class Launches:
    """Stands where the kernel does and keeps what it is launched with, by name."""

    def __init__(self, text):
        functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
        arguments = next(node for node in functions if node.name == lift.KERNEL).args
        self.names = [argument.arg for argument in arguments.args]
        given = [ast.literal_eval(value) for value in arguments.defaults]
        self._defaults = dict(zip(self.names[len(self.names) - len(given) :], given))
        self.seen = []

    def __getitem__(self, grid):
        def launch(*arguments, **named):
            bound = {**self._defaults, **dict(zip(self.names, arguments)), **named}
            self.seen.append((grid(bound) if callable(grid) else grid, bound))

        return launch


def launches(package, release):
    """For each number of tokens and GEMM: the arguments in which the two differ, and both grids."""
    kernel = lift.moe_kernel(package)
    recorder = Launches(kernel.text)
    whole = Whole.of(torch, package, recorder)
    host_device.stand_in_for_operators(torch, whole._module)
    target = Target("kernel.py", tuple(recorder.names), "cpu", release)
    found = []
    for tokens in (3, 16):
        problem = MoeProblem(tokens=tokens, experts=8, topk=4, hidden=512, inter=256)
        operands = MoeOperands(torch, torch.device("cpu"), problem, 1, "uniform")
        recorder.seen.clear()
        after = None
        try:
            # What follows the launches works on what they would have written, and may end in an error.
            whole.launch(operands, ROWS).run(0)
        except Exception as error:
            after = f"{type(error).__name__}: {error}"[:300]
        if len(recorder.seen) < 2:
            found.append({"tokens": tokens, "launched": len(recorder.seen), "ended": after})
        for gemm, (grid, theirs) in zip((UP, DOWN), recorder.seen):
            wanted = plan(target, problem, gemm, ROWS[gemm])
            ours = {**dict(wanted.scalars), **dict(wanted.constants)}
            names = set(ours) | {name for name, value in theirs.items() if not torch.is_tensor(value)}
            differ = {
                name: [ours.get(name, "absent"), theirs.get(name, "absent")]
                for name in sorted(names - {"compute_type"})
                if ours.get(name, "absent") != theirs.get(name, "absent")
            }
            found.append({"tokens": tokens, "gemm": gemm, "grids": [wanted.grid, grid], "differ": differ})
    return found


def answers():
    """The look-up's answers for Qwen3-30B-A3B, each taken apart as the runtime does, twice."""
    module = _import([f"{name}_triton_config" for name in MODULES])
    module.get_device_name = lambda *_: "NVIDIA H200"
    lookup = getattr(module, LOOKUP)
    found = {}
    for m in (1, 30, 4096):
        for _ in range(2):
            asked = ((128, 1536, 2048), (128, 2048, 768), 8, "fp8_w8a8", m)
            up, (down, largest) = lookup(*asked, block_shape=[128, 128], return_down_config=True)
            found[str(m)] = [dict(up), None if down is None else dict(down), largest]
            (down or {}).pop("USE_TMA", None)
    return found


def left_alone():
    """What the look-up answers for an (E, N) that no table is injected for."""
    module = _import([f"{name}_triton_config" for name in MODULES])
    asked = ((64, 1536, 2048), (64, 2048, 768), 8, "fp8_w8a8", 4)
    up, _ = getattr(module, LOOKUP)(*asked, block_shape=[128, 128], return_down_config=True)
    return dict(up)


def main():
    if importlib.util.find_spec("sgl_kernel") is None:
        sys.meta_path.append(CompiledPackage())
    package = os.path.join(sys.argv[1], "sglang")
    version = next(name for name in os.listdir(sys.argv[1]) if name.startswith("sglang-") and name.endswith("-info"))
    release = tuple(int(part) for part in version.split("-")[1].split(".")[:3])
    document = {"launches": launches(package, release), "answers": answers(), "left": left_alone()}
    print(json.dumps(document))


if __name__ == "__main__":
    main()
