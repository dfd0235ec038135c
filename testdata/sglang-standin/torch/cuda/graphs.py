from standin import cost

capturing = None


class CUDAGraph:
    """Keeps the time of what is enqueued while it is captured, and takes it again at each replay."""

    def capture_begin(self):
        global capturing
        capturing = self
        self.began = cost.device_time()

    def capture_end(self):
        global capturing
        capturing = None
        self.microseconds = cost.device_time() - self.began

    def replay(self):
        cost.spend(self.microseconds)
