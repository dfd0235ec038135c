"""What `serve` asks of a fused-MoE worker: tasks of `src/tune/moe`, which are one GEMM under one BLOCK_SIZE_M, or the whole
operation with the rows of both."""

import collections
import os
import sys
import threading
from dataclasses import dataclass

from gpu_worker import PROTOCOL, numerics
from gpu_worker.device import Clocks, refusal
from gpu_worker.faults import Faults, FaultyLaunch
from gpu_worker.idle import spinner, wait_until_idle
from gpu_worker.moe.bench import MoeBench, Refused
from gpu_worker.moe.lift import package_folder
from gpu_worker.moe.problem import DOWN, UP, MoeProblem
from gpu_worker.moe.routing import KINDS, UNIFORM
from gpu_worker.moe.whole import Attempt, Whole
from gpu_worker.serve import DeviceLost, done, refused
from gpu_worker.timing import Timed, measure

BACKEND = "sglang-moe"

KEPT_PROBLEMS, KEPT_BYTES = 8, 4 << 30
"""Problems whose operands are kept for their next request, and bytes of their activations and outputs together."""

PATIENCE_S = 120.0
"""How long a worker waits for a device that another process uses before it gives up."""

TOLERANCE, WHOLE_TOLERANCE = 0.05, 0.1
"""An element counts as wrong when it is off by more than this share of the root mean square of the output plus its own
size. bf16 gives 0.004 of an element; a BLOCK_SIZE_K of two scale blocks 0.4 of the mean square (measured on an H200). In the
whole operation an activation that is rounded the other way to FP8 adds to that: 0.02 of the mean square was seen."""

WHOLE = "whole"


@dataclass(frozen=True)
class Task:
    """What one race is about."""

    problem: MoeProblem
    part: str
    """`up`, `down`, or `whole`."""
    block_m: int
    """The BLOCK_SIZE_M under which a GEMM is raced; 0 for the whole operation."""

    @classmethod
    def read(cls, shape, dtype):
        """The task of a request."""
        sizes = {name: shape[key] for name, key in (("tokens", "M"), ("experts", "E"), ("hidden", "K"), ("inter", "N"))}
        problem = MoeProblem(topk=shape["topk"], shared=shape.get("shared", 0), dtype=dtype, **sizes)
        return cls(problem, shape["part"], shape.get("block_m", 0))

    def unit(self, candidate):
        """The GEMMs a candidate stands for, `(gemm, settings)`; raises `Refused` for one that is not of this task."""
        if self.part != WHOLE:
            if candidate.get("BLOCK_SIZE_M") != self.block_m:
                raise Refused("unsupported", f"BLOCK_SIZE_M is not {self.block_m}, under which this GEMM is raced")
            return ((self.part, candidate),)
        up = candidate["up"]
        down = candidate.get("down") or up
        if up.get("BLOCK_SIZE_M") != down.get("BLOCK_SIZE_M"):
            raise Refused("unsupported", "BLOCK_SIZE_M differs between up and down, which share one sort of the tokens")
        return ((UP, up), (DOWN, down))


class MoeServing:
    """Opens the device on creation; `options` are those of `hello`: `sglang_root` (folder that holds the package; default:
    what this interpreter would import), `routing` ("uniform" or "skewed"), `whole` (false: SGLang is not imported, and the
    two GEMMs stand for the operation), `cache_dir`, `prepare_slots`."""

    def __init__(self, index, options):
        cache = options.get("cache_dir") or os.path.join(
            os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "gemmtune", BACKEND
        )
        package = package_folder(options.get("sglang_root"))
        self._routing = options.get("routing") or UNIFORM
        if self._routing not in KINDS:
            raise ValueError(f"unknown routing `{self._routing}`, not one of {', '.join(KINDS)}")
        attempt = Attempt(index, package) if options.get("whole", True) else None
        self._bench = self._open(index, package, cache, options.get("prepare_slots"))
        import torch

        self._torch = torch
        self._package = package
        self._dtype = "float8_e4m3fnuz" if self._bench.facts["arch"].startswith("gfx94") else "float8_e4m3fn"
        self._lock = threading.Lock()
        self._imported, self._warm = None, False
        why = attempt.reason() if attempt else "not asked for"
        self._runs_whole = why is None
        self._bench.versions[WHOLE] = "two GEMMs" if why else "fused_experts"
        if why:
            print(f"the two GEMMs stand for the operation, SGLang's fused_experts does not run: {why}", file=sys.stderr)
        waited = wait_until_idle(spinner(torch), PATIENCE_S)
        if waited > 1.0:
            print(f"waited {waited:.0f} s until nobody else computed on the device", file=sys.stderr)
        self._clocks = Clocks(str(getattr(torch.cuda.get_device_properties(index), "uuid", "")))
        self._faults = Faults.from_environment()
        self._kept = collections.OrderedDict()

    def _open(self, index, package, cache, slots):
        return MoeBench(index, package, cache, slots and int(slots))

    def _import(self):
        """SGLang's operation, imported once; does nothing on the device, so any thread may ask."""
        with self._lock:
            if self._imported is None:
                self._imported = Whole.of(self._torch, self._package, self._bench.function)
            return self._imported

    def _operation(self):
        """SGLang's operation with what surrounds the GEMMs compiled."""
        operation = self._import()
        if not self._warm:
            operation.warm_up(self._torch, self._bench.device, self._dtype)
            self._warm = True
        return operation

    def device(self):
        """The document of `hello`."""
        return {
            "protocol": PROTOCOL,
            "backend": BACKEND,
            **self._bench.facts,
            "taken_bytes": self._bench.taken_bytes,
            "versions": self._bench.versions,
            "kernel_hash": f"sha256:{self._bench.kernel.digest}",
            "capabilities": [WHOLE] if self._runs_whole else [],
            "prepare_slots": self._bench.slots,
            "candidates": [],
            # What a server of this environment reads its tables from.
            "shipped": os.environ.get("SGLANG_MOE_CONFIG_DIR") or self._package,
        }

    def prepare(self, shape, candidate, reply):
        """Compiles a candidate; `reply(outcome)` is called from whichever thread finishes it."""
        task = Task.read(shape, self._dtype)
        try:
            asked = [self._bench.ask(task.problem, gemm, settings) for gemm, settings in _lifted(task.unit(candidate))]
        except Refused as error:
            reply(refused(error.reason, error.detail))
            return
        if task.part == WHOLE and self._runs_whole:
            self._import()
        _when_all(asked, reply)

    def time(self, shape, candidates, timing):
        """Measures candidates, interleaved. In turns."""
        task = Task.read(shape, self._dtype)
        operands = self._operands(task.problem)
        gemms = (UP, DOWN) if task.part == WHOLE else (task.part,)
        turn = self._bench.rotation(operands, gemms, timing)
        before = self._clocks.sm_mhz()
        launches = [self._launch(task, candidate, operands) for candidate in candidates]
        timed = [None if isinstance(one, dict) else Timed(one, turn) for one in launches]
        try:
            entered = [one for one in timed if one is not None]
            device_us = yield from measure(self._torch, entered, timing, self._refusal)
        except DeviceLost:
            raise
        except Exception as error:
            self._refusal(error)
            raise
        outcomes = []
        for launch, one in zip(launches, timed):
            if one is None:
                outcomes.append(launch)
            else:
                outcomes.append(done({"us": one.us}) if one.refusal is None else refused(*one.refusal))
        clocks = (before, self._clocks.sm_mhz())
        return {
            "kind": "timed",
            "outcomes": outcomes,
            "clocks_mhz": [clock for clock in clocks if clock is not None],
            "device_s": device_us / 1e6,
            "throttle_reasons": self._clocks.throttle_reasons(),
        }

    def check(self, shape, candidates, seed):
        """Compares candidates with float32 on activations and a routing drawn anew for `seed`. In turns."""
        task = Task.read(shape, self._dtype)
        operands = self._bench.operands(task.problem, self._routing, seed + 1, routings=1)
        yield
        return {"kind": "checked", "outcomes": [self._checked(task, one, operands) for one in candidates]}

    def close(self):
        """Ends the compile children."""
        self._bench.close()

    def _checked(self, task, candidate, operands):
        launch = self._launch(task, candidate, operands)
        if isinstance(launch, dict):
            return launch
        try:
            launch.load()
            found = self._compared(task, launch, operands)
            return done({name: found[name] for name in ("err_ratio", "not_finite", "repeatable")})
        except Exception as error:
            return refused(*self._refusal(error))

    def _compared(self, task, launch, operands):
        """What `numerics.found` says; of the two GEMMs where they stand for the operation, the worse."""
        if task.part == WHOLE and self._runs_whole:
            return self._compare(operands.whole_reference(), launch, lambda: launch.out, WHOLE_TOLERANCE)
        found = []
        for gemm in (UP, DOWN) if task.part == WHOLE else (task.part,):
            out = operands.inputs[gemm][2]
            out.fill_(float("nan"))
            found.append(self._compare(operands.reference(gemm), launch, lambda out=out: out))
        return max(found, key=lambda one: (one["not_finite"], not one["repeatable"], one["err_ratio"]))

    def _compare(self, wanted, launch, output, tolerance=TOLERANCE):
        torch = self._torch
        launch.run(0)
        out = output()
        allowed = tolerance * (wanted.square().mean().sqrt() + wanted.abs())
        again = torch.empty_like(out)

        def run():
            launch.run(0)
            again.copy_(output())

        def poison():
            output().fill_(float("nan"))
            again.fill_(float("nan"))

        return numerics.found(numerics.compare(torch, wanted, again, run, poison, allowed))

    def _launch(self, task, candidate, operands):
        """A launch, or the outcome that says why there is none. Compiles what is missing."""
        try:
            unit = task.unit(candidate)
            fault = self._fault(unit)
            # The one fault that must not cost time: a wrong kernel that is fast leads, and only its numbers tell.
            given = operands.with_nan_scales() if fault == "nan" else operands
            # Also where SGLang's own launch follows: this refuses what would be run with wrong numbers.
            launch = self._bench.launch(given, _lifted(unit))
        except Refused as error:
            return refused(error.reason, error.detail)
        if task.part == WHOLE and self._runs_whole:
            launch = self._operation().launch(given, candidate)
        return launch if fault in (None, "nan") else FaultyLaunch(launch, fault, self._torch)

    def _fault(self, unit):
        found = (self._faults.of(settings) for _, settings in unit)
        return next((fault for fault in found if fault is not None), None)

    def _operands(self, problem):
        """The timing operands of a problem; those of the latest problems are kept between requests."""
        operands = self._kept.pop(problem, None)
        if operands is None:
            try:
                operands = self._bench.operands(problem, self._routing)
            except self._torch.cuda.OutOfMemoryError:
                self._kept.clear()
                self._torch.cuda.empty_cache()
                operands = self._bench.operands(problem, self._routing)
        self._kept[problem] = operands
        while len(self._kept) > KEPT_PROBLEMS or sum(one.own_bytes for one in self._kept.values()) > KEPT_BYTES:
            self._kept.popitem(last=False)
        return operands

    def _refusal(self, error):
        """`(reason, detail)` for a launch that failed on a device that still works; else raises DeviceLost."""
        return refusal(self._torch, error, DeviceLost)


def _lifted(unit):
    """The unit without USE_TMA, which SGLang takes out before it launches: it chooses how operands are loaded, and the
    lifted kernel is raced without it."""
    return tuple((gemm, {key: value for key, value in row.items() if key != "USE_TMA"}) for gemm, row in unit)


def _when_all(asked, reply):
    """Replies once, when the last of what was asked for is compiled; the first refusal counts."""
    waiting = list(asked)

    def next_one(answers):
        if not waiting:
            bad = next((answer for answer in answers if "refused" in answer), None)
            if bad is not None:
                reply(refused(bad["refused"], bad["detail"]))
            else:
                seconds = sum(answer["seconds"] for answer in answers)
                reply(done({"seconds": seconds, "cached": all(known for _, known in asked)}))
            return
        waiting.pop(0)[0].then(lambda answer: next_one([*answers, answer]))

    next_one([])
