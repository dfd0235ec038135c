from types import SimpleNamespace

from . import cuda

compiler = SimpleNamespace(is_compiling=lambda: compiler.now, now=False)


class Tensor:
    def __init__(self, *shape, dtype="torch.float8_e4m3fn"):
        self.shape, self.dtype = shape, dtype

    def numel(self):
        size = 1
        for extent in self.shape:
            size *= extent
        return size

    def contiguous(self):
        return Tensor(*self.shape, dtype="row-major")
