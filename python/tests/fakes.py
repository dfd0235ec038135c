"""A device that is not there: what `serve` asks of a bench, answered from rules."""

import threading

from gpu_worker.serve import DeviceLost, done, refused


class FakeBench:
    """Times are a function of the candidate; faults are part of it."""

    def __init__(self, options):
        if options.get("broken"):
            raise RuntimeError("no device here")
        self.closed = False
        self.held = threading.Event()

    def device(self):
        return {"protocol": 1, "backend": "fake"}

    def prepare(self, shape, candidate, reply):
        def compiling():
            if candidate.get("slow"):
                self.held.wait(10)
            if candidate.get("too_big"):
                reply(refused("out_of_resources", "shared memory 655360 > 232448"))
            else:
                reply(done({"seconds": 0.5, "cached": False}))

        threading.Thread(target=compiling).start()

    def time(self, shape, candidates, timing):
        if any(one.get("lost") for one in candidates):
            raise DeviceLost("an illegal memory access was encountered")
        if any(one.get("bug") for one in candidates):
            raise KeyError("bug")
        self.held.set()
        yield
        samples = [float(one.get("us", 1.0)) for one in candidates]
        return {
            "kind": "timed",
            "outcomes": [done({"us": [us] * timing["samples"]}) for us in samples],
            "clocks_mhz": [],
        }

    def check(self, shape, candidates, seed):
        yield
        return {"kind": "checked", "outcomes": [done({"err_ratio": 0.0, "not_finite": 0, "repeatable": True})]}

    def close(self):
        self.closed = True
