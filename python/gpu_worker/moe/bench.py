"""The device side of a fused-MoE race: compiles, checks and times candidates of the lifted kernel."""

import dataclasses
import math
import os
import subprocess
import sys

from gpu_worker import numerics, rotation
from gpu_worker.compile_child import load_module
from gpu_worker.compilers import Compilers, Record
from gpu_worker.device import facts
from gpu_worker.launch import Step
from gpu_worker.moe.compile_child import warm_up
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


class Refused(Exception):
    """A candidate that cannot run here, with the reason."""


class MoeBench:
    """Opens device `index`; kernels come from the SGLang package in the folder `package`."""

    def __init__(self, index, package, cache, slots=None):
        os.environ.setdefault("TRITON_CACHE_DIR", os.path.join(cache, "triton"))
        import torch
        import triton

        self._torch = torch
        torch.cuda.set_device(index)
        self.device = torch.device("cuda", index)
        self.facts = facts(torch, index)
        self.kernel = moe_kernel(package)
        path = self.kernel.write(os.path.join(cache, "kernels"))
        self._function = getattr(load_module(path), KERNEL)
        self.target = Target(
            path=path,
            parameters=tuple(self._function.arg_names),
            arch=self.facts["arch"],
            release=tuple(int(part) for part in self.kernel.version.split(".")[:3] if part.isdigit()),
        )
        # Streams other than the default one can be captured into a graph.
        torch.cuda.set_stream(torch.cuda.Stream())
        target = triton.runtime.driver.active.get_current_target()
        setup = {
            "target": [target.backend, target.arch, target.warp_size],
            "kernel": dataclasses.asdict(self.target),
            "smem_bytes": self.facts["smem_bytes"],
        }
        slots = slots or max(1, len(os.sched_getaffinity(0)) - 1)
        record = Record(os.path.join(cache, "triton"), setup)
        self._compilers = Compilers(setup, slots, COMPILE_DEADLINE_S, start=_start_child, record=record)
        self._loaded = {}
        self._weights = (None, None)
        self.device_us = 0.0
        """Device time of all samples so far."""

    def close(self):
        """Ends the compile children."""
        self._compilers.close()

    def operands(self, problem, kind=UNIFORM, seed=0):
        """The problem's tensors; the weights of the latest model are kept."""
        model = (problem.experts, problem.hidden, problem.inter, problem.dtype)
        kept = self._weights[1] if self._weights[0] == model else None
        if kept is None:
            self._weights = (None, None)
            self._torch.cuda.empty_cache()
        made = MoeOperands(self._torch, self.device, problem, self._routings(problem), kind, kept, seed)
        self._weights = (model, made.weights)
        return made

    def prepare(self, problem, gemm, candidates):
        """Asks for candidates to be compiled; returns at once."""
        for candidate in candidates:
            try:
                self._ask(plan(self.target, problem, gemm, candidate), candidate)
            except Unsupported:
                continue

    def time(self, operands, work, timing):
        """Times `work`, interleaved: each is a tuple of (gemm, candidate), launched one after the other as one unit.
        Answers with a list of microseconds a unit, or the reason (text) for which it cannot run."""
        turn = self._rotation(operands, work, timing)
        answers, timed = [None] * len(work), {}
        for index, unit in enumerate(work):
            try:
                timed[index] = Timed(self._launch(operands, unit), turn)
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
        launch = self._launch(operands, ((gemm, candidate),))
        out = operands.inputs[gemm][2]
        wanted = operands.reference(gemm) if wanted is None else wanted
        compared = numerics.compare(torch, wanted, out, lambda: launch.run(0), lambda: out.fill_(float("nan")))
        found = numerics.found(compared)
        found["relative_error"] = float((out.float() - wanted).norm() / wanted.norm())
        found["right"] = found["not_finite"] == 0 and found["repeatable"] and found["relative_error"] <= RELATIVE_LIMIT
        return found

    def _ask(self, wanted, candidate, urgent=False):
        job = {
            "problem": dataclasses.asdict(wanted.problem),
            "gemm": wanted.gemm,
            "candidate": candidate,
        }
        return self._compilers.compile(wanted.key, job, urgent)[0]

    def _launch(self, operands, unit):
        steps = []
        for gemm, candidate in unit:
            try:
                wanted = plan(self.target, operands.problem, gemm, candidate)
            except Unsupported as error:
                raise Refused(f"unsupported: {error}") from error
            answer = self._ask(wanted, candidate, urgent=True).wait()
            if "refused" in answer:
                raise Refused(f"{answer['refused']}: {answer['detail']}"[:300])
            if wanted.key not in self._loaded:
                compiled = warm_up(self._function, wanted)
                try:
                    compiled[(1, 1, 1)]
                except Exception as error:
                    raise Refused(f"{type(error).__name__}: {error}"[:300]) from error
                self._loaded[wanted.key] = compiled
            import triton.language as tl

            fixed, changing = operands.pointers(wanted)
            meant = {**dict(wanted.scalars), **dict(wanted.constants), "compute_type": tl.bfloat16}
            steps.append(Step(self._function, wanted.grid, {**fixed, **meant}, changing, wanted.key, self._loaded))
        return _Unit(steps)

    def _routings(self, problem):
        """Routings to rotate, so that the weights of one launch have left the last-level cache before they come again."""
        read = min(problem.weight_bytes(UP), problem.weight_bytes(DOWN))
        return min(16, max(4, math.ceil(rotation.CACHES * self.facts["l2_bytes"] / read)))

    def _rotation(self, operands, work, timing):
        problem, copies = operands.problem, len(operands.routes)
        expected = 0.0
        for gemm in {gemm for unit in work for gemm, _ in unit}:
            rows, n, k, _ = problem.gemm(gemm)
            flops = 2.0 * problem.pairs * n * k
            expected += max(5.0, problem.weight_bytes(gemm) / 3.5e6, flops / 500e6)
        turns = max(1, math.ceil(timing["min_sample_us"] / (expected * copies)))
        return rotation.Rotation(copies, copies * turns, expected)


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


def _start_child():
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "TRITON_STORE_BINARY_ONLY": "1"}
    folder = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    environment["PYTHONPATH"] = os.pathsep.join([folder, *filter(None, [environment.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "gpu_worker.moe.compile_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        bufsize=0,
    )
