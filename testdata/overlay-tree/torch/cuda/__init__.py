from .graphs import CUDAGraph
