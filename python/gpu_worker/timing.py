"""Times launches on the device: rotated weights, device graphs for short kernels, interleaved samples."""

from gpu_worker.rotation import launches_for, sample_order

SPACER_CYCLES = 40_000
"""Device cycles (about 20 µs) of idle spinning before a sample, so that the host has enqueued all of it when the
device begins and no launch gap is counted."""

FIRST_GRAPH_SPACER_CYCLES = 320_000
"""The same before the first replay of a graph, which takes the host longer: with 20 µs the first sample of a 10 µs
kernel read 2 µs too high on an H100."""


class Timed:
    """One candidate while it is being timed."""

    def __init__(self, launch, rotation):
        self._launch = launch
        self._rotation = rotation
        self._graph = None
        self._next_copy = 0
        self._launches = max(1, rotation.per_graph)
        """Launches of one sample."""
        self._pending = []
        self.us = []
        self.stopped = False
        self.refusal = None
        """Why it could not be launched: `(reason, detail)`."""

    def lead(self):
        """Enqueues one launch that is not counted: the first after an idle device reads up to a tenth too high."""
        self._launch.run(self._turn())

    def enqueue(self, torch, stream, warmups, min_sample_us):
        """Enqueues one sample (with the warm-up before the first) on `stream`, which is the current one."""
        spacer = SPACER_CYCLES
        if not self.us and not self._pending:
            self._launch.load()
            for _ in range(warmups):
                self._launch.run(self._turn())
            if self._rotation.per_graph:
                self._graph = self._capture(torch)
                spacer = FIRST_GRAPH_SPACER_CYCLES
            else:
                self._launches = launches_for(min_sample_us, self._rotation.expected_us, 1)
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(spacer)
        start.record(stream)
        if self._graph is not None:
            for _ in range(self._launches // self._rotation.per_graph):
                self._graph.replay()
        else:
            for _ in range(self._launches):
                self._launch.run(self._turn())
        end.record(stream)
        self._pending.append((start, end, self._launches))

    def last_event(self):
        """The end of the sample that was enqueued last, if one has not been read."""
        return self._pending[-1][1] if self._pending else None

    def collect(self, min_sample_us):
        """Reads the samples that were enqueued; returns the device time they took, µs."""
        device_us = 0.0
        for start, end, launches in self._pending:
            end.synchronize()
            total = start.elapsed_time(end) * 1000.0
            device_us += total
            self.us.append(total / launches)
        self._pending = []
        self._launches = launches_for(min_sample_us, self.us[0], max(1, self._rotation.per_graph))
        return device_us

    def _turn(self):
        copy = self._next_copy
        self._next_copy = (copy + 1) % self._rotation.copies
        return copy

    def _capture(self, torch):
        """A device graph of whole turns through the copies. Not `torch.cuda.graph`: its garbage collection and
        device-wide waits cost more than the timing."""
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for number in range(self._rotation.per_graph):
                self._launch.run(number % self._rotation.copies)
        finally:
            graph.capture_end()
        return graph


def measure(torch, timed, timing, refuse, while_busy=None):
    """Takes the samples of all candidates, A B C, C B A, …; returns the device time of the samples, µs.

    The host prepares a candidate's first sample while the device runs the one before it. It waits for the device
    twice: after the first sample of each, which says who goes on and how many launches a sample needs, and at the
    end. `refuse(error)` turns a failed launch into a refusal, or raises if the device is lost.

    A generator (`turns`): it yields where it would wait, and whoever runs it may enqueue other work meanwhile. That
    runs after all samples enqueued so far and delays none. Going on, it first calls `while_busy(busy)`, where `busy()` says
    whether the device has these samples left to run: nothing will be enqueued until `while_busy` returns, so what it does
    cannot delay a launch.
    """
    stop_above_us = timing.get("stop_above_us")
    device_us = yield from _burst(torch, timed, range(1), timing, refuse, while_busy)
    for one in timed:
        if one.us and stop_above_us is not None and one.us[0] > stop_above_us:
            one.stopped = True
    return device_us + (yield from _burst(torch, timed, range(1, timing["samples"]), timing, refuse, while_busy))


def _burst(torch, timed, samples, timing, refuse, while_busy):
    """Takes the samples numbered `samples` without waiting between them."""
    entered = [one for one in timed if not one.stopped]
    stream = torch.cuda.current_stream()
    for sample in samples:
        order = [timed[index] for index in sample_order(len(timed), sample) if not timed[index].stopped]
        for one in order:
            try:
                if sample == samples[0] and sample > 0 and one is order[0]:
                    one.lead()
                one.enqueue(torch, stream, timing["warmups"], timing["min_sample_us"])
            except Exception as error:
                one.refusal, one.stopped = refuse(error), True
    last = None
    for one in order if samples else []:
        last = one.last_event() or last
    if last is not None:
        yield
    if while_busy is not None and last is not None:
        while_busy(lambda: not last.query())
    return sum(one.collect(timing["min_sample_us"]) for one in entered if one.refusal is None and samples)
