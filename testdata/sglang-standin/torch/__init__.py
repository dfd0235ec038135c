"""What the overlay, the families of the GPU worker and the stand-in server ask of torch. A tensor has a shape, a dtype, strides
and a word on its content; kernels take time (`standin.cost`) and write that word."""

import sys
import weakref
from types import SimpleNamespace

from standin import cost, nvrtc

from . import cuda

__version__ = "stand-in"
version = SimpleNamespace(hip=None, cuda="13.0")
compiler = SimpleNamespace(is_compiling=lambda: False)
backends = SimpleNamespace(cuda=SimpleNamespace(matmul=SimpleNamespace(allow_tf32=True)))
bfloat16, float16, float32, float8_e4m3fn = "torch.bfloat16", "torch.float16", "torch.float32", "torch.float8_e4m3fn"

# NVRTC and the driver: what compiles and launches gemmtune's own kernels.
sys.modules["gpu_worker.families.nvrtc"] = nvrtc
MEMORY = weakref.WeakValueDictionary()


class Tensor:
    def __init__(self, *shape, dtype=float8_e4m3fn, strides=None):
        self.shape, self.dtype, self.content = shape, dtype, "unwritten"
        self.strides = strides or (shape[-1], 1)
        MEMORY[id(self)] = self

    def numel(self):
        size = 1
        for extent in self.shape:
            size *= extent
        return size

    def dim(self):
        return len(self.shape)

    def stride(self, axis):
        return self.strides[axis]

    def is_contiguous(self):
        return self.strides == (self.shape[-1], 1)

    def contiguous(self):
        return self if self.is_contiguous() else Tensor(*self.shape, dtype=self.dtype)

    def t(self):
        return Tensor(*self.shape[::-1], dtype=self.dtype, strides=self.strides[::-1])

    def new_empty(self, shape, dtype):
        return Tensor(*shape, dtype=dtype)

    def data_ptr(self):
        return id(self)


def _scaled_mm(a, b, a_scale, b_scale, out_dtype, out):
    """cuBLASLt's kernel."""
    assert a_scale.t().is_contiguous() and out.dtype == out_dtype
    cost.computed("cublaslt", out, a.shape[0])
