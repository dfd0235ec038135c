"""Faults on demand, for tests of whoever drives the worker.

The variable GEMMTUNE_WORKER_FAULTS holds a JSON list of `{"match": {...}, "fault": "..."}`; a candidate that has all
the settings of `match` shows the fault when it is launched: `illegal_address` (a kernel writes where nothing is
mapped), `hang` (the device spins for half a minute), `nan` (its scales and so its output are NaN, as fast as without the
fault), `crash` (the process is killed).
"""

import json
import os
import signal

VARIABLE = "GEMMTUNE_WORKER_FAULTS"

KINDS = ("illegal_address", "hang", "nan", "crash")

HANG_CYCLES = 60_000_000_000
"""Cycles the device spins for `hang`: 30 s at 2 GHz, past the deadline of a timing. Bounded, because a killed
process's kernel was seen to spin on beside the next worker's."""

NOWHERE = 1 << 46
"""An address no allocation has."""


class Faults:
    """The faults asked for."""

    def __init__(self, text):
        self._rules = json.loads(text) if text else []
        for rule in self._rules:
            if rule["fault"] not in KINDS:
                raise ValueError(f"{VARIABLE}: unknown fault `{rule['fault']}`, not one of {', '.join(KINDS)}")

    @classmethod
    def from_environment(cls):
        """The faults of this process."""
        return cls(os.environ.get(VARIABLE, ""))

    def of(self, candidate):
        """The fault `candidate` is to show, or None."""
        for rule in self._rules:
            if all(candidate.get(name) == value for name, value in rule["match"].items()):
                return rule["fault"]
        return None


class FaultyLaunch:
    """A launch that goes wrong."""

    def __init__(self, launch, fault, torch):
        self._launch = launch
        self._fault = fault
        self._torch = torch

    def load(self):
        """Loads the real kernel, then goes wrong."""
        self._launch.load()
        self.run(0)

    def poison(self):
        """As the real launch."""
        self._launch.poison()

    def run(self, copy):
        """Enqueues the real launch and the fault."""
        self._launch.run(copy)
        if self._fault == "hang":
            self._torch.cuda._sleep(HANG_CYCLES)
        elif self._fault == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            from gpu_worker.fault_kernel import write_to

            # Far outside every allocation: a real illegal address, which loses the context.
            write_to[(1,)](NOWHERE)
