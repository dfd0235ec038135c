"""Compiles and launches what aiter's wrapper was recorded to launch."""

import sys

from gpu_worker.compile_child import Pointer
from gpu_worker.launch import Step


def kernel(call):
    """The kernel of a call, without what computes some of its arguments: they are among the call's."""
    found = getattr(sys.modules[call.module], call.function)
    while not hasattr(found, "params"):
        found = found.fn
    return found


def warm_up(plan):
    """Compiles the kernels of a plan, or finds them compiled, without a device."""
    compiled = []
    for call in plan.calls:
        dtypes = dict(call.dtypes)
        given = {**dict(call.arguments), **{name: Pointer(dtypes[role]) for name, role in call.tensors}}
        compiled.append(kernel(call).warmup(grid=(1,), **given, **dict(call.options)))
    return compiled


class AiterLaunch:
    """One row on one set of operands; `run(copy)` enqueues it on the current stream (as `gpu_worker.launch.Launch`)."""

    def __init__(self, plan, operands, loaded):
        self._written = [operands.out]
        fixed = {"a": operands.a, "a_scale": operands.a_scale, "out": operands.out}
        if plan.planes:
            fixed["partial"] = operands.partial(plan.planes)
            self._written.append(fixed["partial"])
        self._steps = []
        for call, step in zip(plan.calls, ("main", "reduce")):
            roles = call.tensors
            given = {name: value for name, value in call.arguments if name not in dict(roles)}
            given.update((name, fixed[role]) for name, role in roles if role in fixed)
            copies = [
                {name: {"b": b, "b_scale": b_scale}[role] for name, role in roles if role not in fixed}
                for b, b_scale in operands.weights
            ]
            self._steps.append(
                Step(kernel(call), call.grid, {**given, **dict(call.options)}, copies, (plan.key, step), loaded)
            )

    def poison(self):
        """Fills everything a launch writes with NaN."""
        for one in self._written:
            one.fill_(float("nan"))

    def load(self):
        """Loads what was never loaded, by launching it once."""
        if not all(step.loaded for step in self._steps):
            self.run(0)

    def run(self, copy):
        """Enqueues one launch on weights number `copy`."""
        for step in self._steps:
            step.run(copy)
