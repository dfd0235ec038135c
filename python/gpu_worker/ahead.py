"""Loading kernels ahead of their turn, in time that the host would spend waiting for the device.

A kernel has to be loaded once per process before it can be launched, and that takes the host longer than its samples
take the device (6.5 ms on an H200). So the thread that times lends its waits: when all samples of a burst are enqueued
and the device has work left, it loads what is compiled and will be timed soon.

There is no second thread, on purpose. A load takes the driver's context lock; one that ran beside the enqueueing of a
sample could hold a launch back between the sample's two events, and the device's idle time would be counted. The
spacer in front of a sample hides 20 µs, a load takes hundreds of times that.
"""

import collections
import sys


class Ahead:
    """Kernels that are compiled and not loaded yet, in the order they were asked for."""

    def __init__(self, load):
        self._load = load
        self._waiting = collections.deque()

    def add(self, wanted):
        """Remembers a compiled plan. From any thread."""
        self._waiting.append(wanted)

    def lend(self, busy):
        """Loads for as long as `busy()` says that the device has work, and anything is left to load.

        The last load may outlast the device's work. That is no loss: whoever is timed next would have waited for it.
        """
        while self._waiting and busy():
            wanted = self._waiting.popleft()
            try:
                self._load(wanted)
            except Exception as error:
                # Loaded, and refused, where it is needed: `Launch.load`. An error of the device comes again at the
                # wait that follows, where it belongs to the candidates that were being timed.
                print(f"not loaded ahead: {type(error).__name__}: {error}", file=sys.stderr)
