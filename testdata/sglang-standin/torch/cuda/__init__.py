from types import SimpleNamespace

from standin import cost

from . import graphs
from .graphs import CUDAGraph


def is_current_stream_capturing():
    return graphs.capturing is not None


def current_device():
    return 0


def device_count():
    return 1


def get_device_name(index):
    return cost.DEVICE


def get_device_properties(index):
    return SimpleNamespace(
        major=9, minor=0, multi_processor_count=132, L2_cache_size=50 << 20, shared_memory_per_block_optin=232448
    )


def current_stream():
    return SimpleNamespace(cuda_stream=0)


def empty_cache():
    pass
