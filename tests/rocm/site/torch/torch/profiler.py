"""torch.profiler of the played GPU: the kernels that ran while it was open, each as an event on the device.

A kernel says by `launched` that it ran and how long it is said to have taken. These times are made up; what is real is
everything that reads them.
"""

import types

#: Events of the profile that is open, or None.
_EVENTS = None
_LAUNCHES = 0
_CLOCK = 0.0


class ProfilerActivity:
    CPU, CUDA = "CPU", "CUDA"


class profile:
    """The context manager, and what was seen in it."""

    def __init__(self, activities=None, **_):
        assert activities == [ProfilerActivity.CUDA]
        self._events = []

    def __enter__(self):
        global _EVENTS
        _EVENTS = self._events
        return self

    def __exit__(self, *_):
        global _EVENTS
        _EVENTS = None

    def events(self):
        return self._events


def is_open():
    """Whether kernels are timed: then nobody looks at their numbers, which take Python long to compute."""
    return _EVENTS is not None


def launched(name, us):
    """A kernel ran for `us` microseconds, give or take the half percent by which no two runs are alike."""
    global _LAUNCHES, _CLOCK
    _LAUNCHES += 1
    us *= 1 + (_LAUNCHES % 7 - 3) / 600
    if _EVENTS is not None:
        span = types.SimpleNamespace(start=_CLOCK, elapsed_us=lambda: us)
        _EVENTS.append(types.SimpleNamespace(name=name, device_type="DeviceType.CUDA", time_range=span))
    _CLOCK += us
