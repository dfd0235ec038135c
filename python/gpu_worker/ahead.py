"""Loading kernels ahead of their turn, in time that the host would spend waiting for the device.

A kernel has to be loaded once per process before it can be launched, and that takes the host longer than its samples
take the device. So the timing thread uses its waits: when all samples of a burst are enqueued and the device has work
left, it reads what is compiled and will be timed soon. The driver then waits for the device before it loads anything
(on an H200 a load took 0.3 ms on an idle device and as long as the device's work on a busy one), so what was read is
loaded several at a time.

There is no second thread, on purpose. A load takes the driver's context lock; one that ran beside the enqueueing of a
sample could hold a launch back between the sample's two events, and the device's idle time would be counted. The
spacer in front of a sample hides 20 µs, a load takes hundreds of times that.
"""

import collections
import sys

TOGETHER = 8
"""Kernels loaded at a time, as long as there are as many."""


class Ahead:
    """Kernels that are compiled but not loaded yet, in the order of the requests.

    `find(wanted)` reads a compiled kernel and may take its time; `load(wanted, found)` brings it onto the device.
    """

    def __init__(self, find, load):
        self._find = find
        self._load = load
        self._waiting = collections.deque()
        self._found = []

    def add(self, wanted):
        """Remembers a compiled plan. From any thread."""
        self._waiting.append(wanted)

    def run_while_busy(self, busy):
        """Reads kernels for as long as `busy()` says that the device has work, and loads them once there are enough.

        That may take longer than the device's work, but nothing is lost: the next candidate would have waited for it.
        """
        while self._waiting and busy():
            wanted = self._waiting.popleft()
            found = _attempt(self._find, wanted)
            if found:
                self._found.append((wanted, found))
        if len(self._found) >= TOGETHER or not self._waiting:
            together, self._found = self._found, []
            for wanted, found in together:
                _attempt(self._load, wanted, found)


def _attempt(act, *arguments):
    """Does it, or says why not: a kernel is loaded, and refused, where it is needed (`Launch.load`). An error of the
    device comes again at the wait that follows, where it belongs to the candidates that were being timed."""
    try:
        return act(*arguments)
    except Exception as error:
        print(f"not loaded ahead: {type(error).__name__}: {error}", file=sys.stderr)
        return None
