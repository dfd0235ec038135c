class CUDAGraph:
    def capture_begin(self):
        pass

    def capture_end(self):
        pass

    def replay(self):
        return "replayed"
