"""A launch of a family, with the interface of the Triton kernel's (`gpu_worker.launch.Launch`)."""


class FamilyLaunch:
    """`run(copy)` enqueues on the current stream; loading is the first run."""

    def __init__(self, enqueue, out):
        self._enqueue = enqueue
        self._out = out
        self._loaded = False

    def poison(self):
        """Fills the output with NaN."""
        self._out.fill_(float("nan"))

    def load(self):
        """Runs once, so that what a library compiles or allocates at its first call is there before a graph is captured."""
        if not self._loaded:
            self.run(0)
            self._loaded = True

    def run(self, copy):
        """Enqueues one launch on weights number `copy`."""
        self._enqueue(copy)
