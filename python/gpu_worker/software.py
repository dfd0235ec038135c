"""Whose kernel is raced: what the bench has to know of SGLang's block-FP8 kernel and of aiter's Triton GEMM.

Each class says where its kernel was found, what a candidate means, and how its plans are compiled and launched; the bench times
and checks whatever these give it.
"""

import dataclasses
import os

from gpu_worker import launch, tree
from gpu_worker.compile_child import load_module
from gpu_worker.plan import Kernels, Problem, plan


class Sglang:
    """SGLang's block-FP8 kernel, lifted out of its tree, or gemmtune's own of the same interface."""

    backend = "sglang-triton"

    def __init__(self, options):
        root = options.get("sglang_root")
        package = None if root == "" else tree.package_folder(root)
        self._source = tree.sglang_kernels(package) if package else tree.own_kernels()
        self.digest = self._source.digest
        self.shipped = self._source.configs
        self.versions = {"kernel": self._source.origin}
        if self._source.version:
            self.versions["sglang"] = self._source.version

    def on(self, arch, block, out_dtype, cache):
        """Loads the kernel for a device; `block` is (N, K) of the weights' scales."""
        source = self._source
        path = source.write(os.path.join(cache, "kernels"))
        self.module = load_module(path)
        takes_tuned = source.tuned and (source.version is None or arch == "sm_90")
        self.kernels = Kernels(
            path=path,
            plain=source.plain,
            plain_takes=tuple(getattr(self.module, source.plain).arg_names),
            tuned=source.tuned if takes_tuned else "",
            reduce=source.reduce if takes_tuned else "",
            clamps_block_k=source.clamps_block_k,
            block_n=block[0],
            block_k=block[1],
            out_dtype=out_dtype,
        )
        self.capabilities = ["split_k", "swap_ab"] if self.kernels.tuned else []
        self.setup = {"kernels": dataclasses.asdict(self.kernels)}

    def read(self, shape):
        """The problem in the protocol's words."""
        return Problem.read(shape)

    def plan(self, problem, candidate):
        """What a candidate means; raises `Unsupported`."""
        return plan(self.kernels, problem, candidate)

    def job(self, wanted, candidate):
        """What a compile child is asked for a plan."""
        return {"problem": dataclasses.asdict(wanted.problem), "candidate": candidate}

    def find_compiled(self, wanted, loaded):
        """A plan's compiled kernels that are not loaded yet."""
        return launch.find_compiled(self.module, wanted, self.kernels.out_dtype, loaded)

    def launch(self, wanted, operands, loaded):
        """A launch of a plan."""
        return launch.Launch(self.module, wanted, operands, loaded)


class Aiter:
    """aiter's Triton GEMM, imported out of its tree."""

    backend = "aiter-triton"

    def __init__(self, options):
        self._root = options.get("aiter_root")
        self._gfx = options.get("config_for")

    def on(self, arch, block, out_dtype, _cache):
        """Imports the tree's modules; they ask Triton for its device."""
        from gpu_worker.aiter import launching, plan
        from gpu_worker.aiter import tree as aiter_tree

        self._launching, self._plan = launching, plan
        rocm = arch.startswith("gfx")
        if not rocm and not self._gfx:
            raise tree.TreeError(f"aiter ships no row for {arch}: `--config-for gfx942` says whose rows are today's")
        self._tree = aiter_tree.open_tree(self._root)
        nested = self._tree.nested(arch if rocm else self._gfx)
        if nested:
            raise tree.TreeError(f"this aiter reads `{nested}` first, a layout that is not known")
        self._fnuz = arch.startswith("gfx94")
        self._about = {"root": self._tree.root, "block": list(block), "out_dtype": out_dtype, "rocm": rocm}
        self.digest = self._tree.digest
        self.shipped = self._tree.configs if os.path.isdir(self._tree.configs) else ""
        self.versions = {"kernel": self._tree.origin}
        if self._tree.version:
            self.versions["aiter"] = self._tree.version
        self.capabilities = [f"bound:{self._tree.bounds[0]}"]
        if not rocm:
            self.capabilities += [f"drops:{name}" for name in plan.AMD_OPTIONS]
        # The digest, so that what was compiled is known for the tree that it was compiled from.
        self.setup = {"aiter": {**self._about, "digest": self._tree.digest}}

    def read(self, shape):
        """The problem in the protocol's words."""
        # CDNA3 computes with another FP8, into which SGLang turns the weights when it loads them.
        if self._fnuz and shape["dtype"].endswith("float8_e4m3fn"):
            shape = {**shape, "dtype": "float8_e4m3fnuz"}
        return Problem.read(shape, self._plan.OP)

    def plan(self, problem, candidate):
        """What a row means; raises `Unsupported`."""
        about = self._about
        return self._plan.plan(self._tree, problem, candidate, about["block"], about["rocm"], about["out_dtype"])

    def job(self, wanted, candidate):
        """What a compile child is asked for a plan."""
        return {"problem": dataclasses.asdict(wanted.problem), "candidate": candidate}

    def find_compiled(self, wanted, loaded):
        """A plan's compiled kernels that are not loaded yet."""
        steps = ("main", "reduce") if wanted.reduce else ("main",)
        if all((wanted.key, step) in loaded for step in steps):
            return []
        return self._launching.warm_up(wanted)

    def launch(self, wanted, operands, loaded):
        """A launch of a plan."""
        return self._launching.AiterLaunch(wanted, operands, loaded)


class SglangMoe:
    """The two GEMMs of SGLang's fused MoE, as far as compiling them asks (`gpu_worker.moe` times them)."""

    backend = "sglang-moe"

    def __init__(self, options):
        from gpu_worker.moe import lift

        self._kernel = lift.moe_kernel(lift.package_folder(options.get("sglang_root")))
        self.digest = self._kernel.digest
        self.versions = {"kernel": self._kernel.origin, "sglang": self._kernel.version}

    def on(self, arch, block, _out_dtype, cache):
        """Loads the kernel for a device."""
        from gpu_worker.moe.lift import KERNEL
        from gpu_worker.moe.plan import Target, plan
        from gpu_worker.moe.serving import Task

        path = self._kernel.write(os.path.join(cache, "kernels"))
        release = tuple(int(part) for part in (self._kernel.version or "0").split(".")[:3] if part.isdigit())
        parameters = tuple(getattr(load_module(path), KERNEL).arg_names)
        self._target = Target(path, parameters, arch, release, *block)
        self._dtype = "float8_e4m3fnuz" if arch.startswith("gfx94") else "float8_e4m3fn"
        self._read, self._plan = Task.read, plan
        self.setup = {"moe": dataclasses.asdict(self._target)}

    def read(self, shape):
        """One GEMM in the protocol's words."""
        return self._read(shape, self._dtype)

    def plan(self, task, candidate):
        """What a candidate means; raises `Unsupported`."""
        return self._plan(self._target, task.problem, task.part, candidate)

    def job(self, wanted, candidate):
        """What a compile child is asked for a plan."""
        return {"problem": dataclasses.asdict(wanted.problem), "gemm": wanted.gemm, "candidate": candidate}


def software(options):
    """The software that `hello` asks for."""
    return {"aiter_gemm": Aiter, "fused_moe": SglangMoe}.get(options.get("problem"), Sglang)(options)
