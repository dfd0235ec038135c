#!/usr/bin/env python3
"""Runs a worker in the place of the interpreter and writes down where its device thread's time goes.

    gemmtune tune --python experiments/sglang-triton/spans.py …

Environment: SPANS names the file to write (JSON, at the worker's end), LOAD_AHEAD=0 or 1 sets that option of `hello`,
UNDER_WAY the requests under way at once (the worker's own where they are absent), SPANS_PROFILE=1 adds Python's profile,
which itself slows the worker down.

Each span has a name, how often it was entered, and the seconds spent in it and not in a span below it.
"""

import collections
import cProfile
import io
import json
import os
import pstats
import sys
import time


class Spans:
    """Seconds by name, each second counted once: for the innermost span."""

    def __init__(self):
        self.seconds = collections.Counter()
        self.entered = collections.Counter()
        self._open = []
        self._since = time.perf_counter()

    def _turn(self):
        """Books the time since the last turn on the innermost span."""
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def wrap(self, owner, attribute, name):
        """Makes a function a span. It is only ever called from the device thread, or does not count."""
        inner = getattr(owner, attribute)

        def outer(*arguments, **named):
            self._turn()
            self._open.append(name)
            self.entered[name] += 1
            try:
                return inner(*arguments, **named)
            finally:
                self._turn()
                self._open.pop()

        setattr(owner, attribute, outer)


def main():
    folder = sys.argv[1]
    sys.path[0] = os.path.dirname(os.path.abspath(folder))
    from gpu_worker import bench, command, launch, numerics, operands, serve, timing
    from gpu_worker.ahead import Ahead

    spans = Spans()
    if "LOAD_AHEAD" in os.environ:
        opened = bench.Bench.__init__

        def told(self, index, options):
            opened(self, index, {**options, "load_ahead": os.environ["LOAD_AHEAD"] == "1"})

        bench.Bench.__init__ = told
    serve.UNDER_WAY = int(os.environ.get("UNDER_WAY", serve.UNDER_WAY))
    spans.wrap(bench.Bench, "__init__", "hello")
    spans.wrap(serve._Worker, "turn", "turn")
    spans.wrap(bench.Bench, "_launches", "launches")
    spans.wrap(operands.Store, "operands", "operands")
    spans.wrap(numerics, "reference", "reference")
    spans.wrap(numerics, "compare", "compare")
    spans.wrap(numerics, "found", "wait for numbers")
    spans.wrap(launch.Launch, "load", "load when needed")
    spans.wrap(Ahead, "lend", "lend")
    spans.wrap(launch, "find_compiled", "find ahead")
    spans.wrap(launch, "load", "load ahead")
    spans.wrap(timing.Timed, "enqueue", "enqueue")
    spans.wrap(timing.Timed, "_capture", "capture")
    spans.wrap(timing.Timed, "collect", "wait for samples")
    profile = cProfile.Profile() if os.environ.get("SPANS_PROFILE") == "1" else None
    serving = command.serve

    def served(*arguments):
        if profile is not None:
            profile.enable()
        status = serving(*arguments)
        if profile is not None:
            profile.disable()
        write(spans, profile)
        return status

    command.serve = served
    return command.main(sys.argv[2:])


def write(spans, profile):
    """Leaves what was seen at SPANS."""
    found = {name: {"times": spans.entered[name], "s": seconds} for name, seconds in spans.seconds.most_common()}
    with open(os.environ["SPANS"], "w") as file:
        json.dump(found, file, indent=1)
    if profile is not None:
        text = io.StringIO()
        for order in ("tottime", "cumulative"):
            pstats.Stats(profile, stream=text).sort_stats(order).print_stats(60)
        with open(os.environ["SPANS"] + ".profile.txt", "w") as file:
            file.write(text.getvalue())


if __name__ == "__main__":
    sys.exit(main())
