"""The device side of a fused-MoE race: compiles, checks and times candidates of the lifted kernel."""

import collections
import dataclasses
import math
import os
import platform

from gpu_worker import numerics, rotation
from gpu_worker.compile_child import load_module
from gpu_worker.compilers import Compilers, Record
from gpu_worker.device import facts, taken_bytes
from gpu_worker.launch import Step
from gpu_worker.launchers import share_launchers
from gpu_worker.moe.compiling import warm_up
from gpu_worker.moe.lift import KERNEL, moe_kernel
from gpu_worker.moe.operands import MoeOperands
from gpu_worker.moe.plan import Target, Unsupported, plan
from gpu_worker.moe.problem import DOWN, UP
from gpu_worker.moe.routing import UNIFORM
from gpu_worker.timing import Timed, measure
from gpu_worker.turns import whole

COMPILE_DEADLINE_S = 90.0

RELATIVE_LIMIT = 0.02
"""Largest relative error that counts as right. Rounding to bf16 gives 0.002; a BLOCK_SIZE_K of two scale blocks gives
tenths. SGLang's own test of block-FP8 kernels allows a mean relative difference of 0.02."""

WEIGHT_BYTES_KEPT = 16 << 30
"""Bytes of expert weights kept on the device, so that problems of several models raced side by side do not make them anew.
A rank's share of the largest models is 2 to 3 GB."""


class Refused(Exception):
    """A candidate that cannot run here: `reason` by protocol name, and what was said."""

    def __init__(self, reason, detail):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class MoeBench:
    """Opens device `index`; kernels come from the SGLang package in the folder `package`."""

    def __init__(self, index, package, cache, slots=None):
        os.environ.setdefault("TRITON_CACHE_DIR", os.path.join(cache, "triton"))
        import torch
        import triton

        self._torch = torch
        self.device = self._open(index)
        self.facts = facts(torch, index)
        self.taken_bytes = taken_bytes(torch, index)
        self.kernel = moe_kernel(package)
        path = self.kernel.write(os.path.join(cache, "kernels"))
        self.function = getattr(load_module(path), KERNEL)
        self.target = Target(
            path=path,
            parameters=tuple(self.function.arg_names),
            arch=self.facts["arch"],
            release=tuple(int(part) for part in self.kernel.version.split(".")[:3] if part.isdigit()),
        )
        self.versions = {
            "torch": torch.__version__,
            "triton": triton.__version__,
            "python": platform.python_version(),
            "kernel": self.kernel.origin,
            "sglang": self.kernel.version,
            "hip" if torch.version.hip else "cuda": str(torch.version.hip or torch.version.cuda),
        }
        # Streams other than the default one can be captured into a graph.
        torch.cuda.set_stream(torch.cuda.Stream())
        self.slots = slots or max(1, len(os.sched_getaffinity(0)) - 1)
        self._compilers = self._start_compilers(triton, cache)
        self._loaded = {}
        self._weights = collections.OrderedDict()
        self.device_us = 0.0
        """Device time of all samples so far."""

    def _open(self, index):
        self._torch.cuda.set_device(index)
        return self._torch.device("cuda", index)

    def _start_compilers(self, triton, cache):
        target = triton.runtime.driver.active.get_current_target()
        share_launchers(target.backend)
        setup = {
            "target": [target.backend, target.arch, target.warp_size],
            "moe": dataclasses.asdict(self.target),
            "smem_bytes": self.facts["smem_bytes"],
            "build_launchers": True,
        }
        record = Record(os.path.join(cache, "triton"), {**setup, "versions": self.versions})
        return Compilers(setup, self.slots, COMPILE_DEADLINE_S, record=record)

    def close(self):
        """Ends the compile children."""
        self._compilers.close()

    def operands(self, problem, kind=UNIFORM, seed=0, routings=None):
        """The problem's tensors. Weights are the same for every seed and are kept."""
        model = (problem.experts, problem.hidden, problem.inter, problem.dtype)
        kept = self._weights.pop(model, None)
        if kept is None:
            size = lambda weights: sum(weight.numel() for weight, _ in weights.values())
            new = problem.experts * 3 * problem.hidden * problem.inter
            while self._weights and new + sum(map(size, self._weights.values())) > WEIGHT_BYTES_KEPT:
                self._weights.popitem(last=False)
            self._torch.cuda.empty_cache()
        count = routings or self._routings(problem)
        made = MoeOperands(self._torch, self.device, problem, count, kind, kept, seed)
        self._weights[model] = made.weights
        return made

    def prepare(self, problem, gemm, candidates):
        """Asks for candidates to be compiled; returns at once."""
        for candidate in candidates:
            try:
                self.ask(problem, gemm, candidate)
            except Refused:
                continue

    def ask(self, problem, gemm, candidate, urgent=False):
        """The specialisation of a candidate (`compilers.Compiled`), and whether somebody had asked for it before."""
        wanted = self._plan(problem, gemm, candidate)
        job = {"problem": dataclasses.asdict(problem), "gemm": gemm, "candidate": candidate}
        return self._compilers.compile(wanted.key, job, urgent)

    def time(self, operands, work, timing):
        """Times `work`, interleaved: each is a tuple of (gemm, candidate), launched one after the other as one unit.
        Answers with a list of microseconds a unit, or the reason (text) for which it cannot run."""
        turn = self.rotation(operands, {gemm for unit in work for gemm, _ in unit}, timing)
        answers, timed = [None] * len(work), {}
        for index, unit in enumerate(work):
            try:
                timed[index] = Timed(self.launch(operands, unit), turn)
            except Refused as error:
                answers[index] = str(error)
        refuse = lambda error: ("launch_failed", str(error).splitlines()[0][:200])
        self.device_us += whole(measure(self._torch, list(timed.values()), timing, refuse))
        for index, one in timed.items():
            answers[index] = list(one.us) if one.refusal is None else ": ".join(one.refusal)
        return answers

    def check(self, operands, gemm, candidate, wanted=None):
        """Compares a candidate with float32 on the first routing: `numerics.found`, `relative_error` (Frobenius norm of
        the difference over that of the reference) and `right`."""
        torch = self._torch
        launch = self.launch(operands, ((gemm, candidate),))
        out = operands.inputs[gemm][2]
        wanted = operands.reference(gemm) if wanted is None else wanted
        compared = numerics.compare(torch, wanted, out, lambda: launch.run(0), lambda: out.fill_(float("nan")))
        found = numerics.found(compared)
        found["relative_error"] = float((out.float() - wanted).norm() / wanted.norm())
        found["right"] = found["not_finite"] == 0 and found["repeatable"] and found["relative_error"] <= RELATIVE_LIMIT
        return found

    def launch(self, operands, unit):
        """GEMMs `(gemm, candidate)` that are launched, and timed, together; compiles what is missing."""
        steps = []
        for gemm, candidate in unit:
            wanted = self._plan(operands.problem, gemm, candidate)
            answer = self.ask(operands.problem, gemm, candidate, urgent=True)[0].wait()
            if "refused" in answer:
                raise Refused(answer["refused"], answer["detail"][:500])
            if wanted.key not in self._loaded:
                self._load(wanted)
            import triton.language as tl

            fixed, changing = operands.pointers(wanted)
            meant = {**dict(wanted.scalars), **dict(wanted.constants), "compute_type": tl.bfloat16}
            steps.append(Step(self.function, wanted.grid, {**fixed, **meant}, changing, wanted.key, self._loaded))
        return _Unit(steps)

    def rotation(self, operands, gemms, timing):
        """How launches of these GEMMs rotate through the routings."""
        problem, copies = operands.problem, len(operands.routes)
        expected = 0.0
        for gemm in gemms:
            rows, n, k, _ = problem.gemm(gemm)
            flops = 2.0 * problem.pairs * n * k
            expected += max(5.0, problem.weight_bytes(gemm) / 3.5e6, flops / 500e6)
        turns = max(1, math.ceil(timing["min_sample_us"] / (expected * copies)))
        return rotation.Rotation(copies, copies * turns, expected)

    def _plan(self, problem, gemm, candidate):
        try:
            return plan(self.target, problem, gemm, candidate)
        except Unsupported as error:
            raise Refused("unsupported", str(error)) from error

    def _load(self, wanted):
        compiled = warm_up(self.function, wanted)
        try:
            compiled[(1, 1, 1)]
        except Exception as error:
            reason = "out_of_resources" if type(error).__name__ == "OutOfResources" else "launch_failed"
            raise Refused(reason, f"{type(error).__name__}: {error}"[:500]) from error
        self._loaded[wanted.key] = compiled

    def _routings(self, problem):
        """Routings to rotate, so that the weights of one launch have left the last-level cache before they come again."""
        read = min(problem.weight_bytes(UP), problem.weight_bytes(DOWN))
        return min(16, max(4, math.ceil(rotation.CACHES * self.facts["l2_bytes"] / read)))


class _Unit:
    """GEMMs that are launched, and timed, together."""

    def __init__(self, steps):
        self._steps = steps

    def load(self):
        """Kernels are loaded already."""

    def run(self, copy):
        """Enqueues them with routing number `copy`."""
        for step in self._steps:
            step.run(copy)
