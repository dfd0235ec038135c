"""Replaces what torch would ask of a GPU, and computes what a kernel would."""

import fnmatch
import os
import signal
import time
import types
import zlib

import torch
import torch.overrides

GFX, UNITS, GPUS = os.environ["GPU_ARCHS"], int(os.environ["CU_NUM"]), int(os.environ.get("CPU_GPUS", "2"))
LAUNCHES = []


class Launch:
    """An event of the profiler."""

    device_type = "DeviceType.CUDA"
    device_index = 0
    self_cpu_time_total = 0.0

    def __init__(self, name, us):
        self.name = name
        self.self_device_time_total = self.device_time_total = self.device_time = us


class Profile:
    """torch.profiler.profile: the launches seen while active."""

    def __init__(self, *_args, **_options):
        self.first = 0

    def __enter__(self):
        self.first = len(LAUNCHES)
        return self

    def __exit__(self, *_error):
        return False

    def events(self):
        return LAUNCHES[self.first :]

    def step(self):
        pass


class Placement(torch.overrides.TorchFunctionMode):
    """Rewrites every device to the CPU."""

    @staticmethod
    def here(value):
        is_cuda = (isinstance(value, str) and value.startswith("cuda")) or (
            isinstance(value, torch.device) and value.type == "cuda"
        )
        return "cpu" if is_cuda else value

    def __torch_function__(self, function, _types, args=(), options=None):
        options = {name: self.here(value) for name, value in (options or {}).items()}
        return function(*[self.here(value) for value in args], **options)


class Event:
    def __init__(self, *_args, **_options):
        self.at = 0.0

    def record(self, *_args):
        self.at = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return (other.at - self.at) * 1e3


def install():
    """Once for the life of the process."""
    if getattr(torch, "_stood_in", False):
        return
    torch._stood_in = True
    total = 8 << 30
    properties = types.SimpleNamespace(
        multi_processor_count=UNITS,
        L2_cache_size=0,
        total_memory=total,
        gcnArchName=GFX + ":sramecc+:xnack-",
        name="a stand-in",
        warp_size=64,
        major=9,
        minor=4,
    )
    cuda = torch.cuda
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: GPUS,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "synchronize": lambda *device: None,
        "empty_cache": lambda: None,
        "get_device_properties": lambda *device: properties,
        "get_device_name": lambda *device: properties.name,
        "get_device_capability": lambda *device: (9, 4),
        "mem_get_info": lambda *device: (0, total),
        "memory_reserved": lambda *device: 0,
        "memory_allocated": lambda *device: 0,
        "memory_stats": lambda *device: {},
        "reset_peak_memory_stats": lambda *device: None,
        "current_stream": lambda *device: types.SimpleNamespace(cuda_stream=0),
        "Event": Event,
    }.items():
        setattr(cuda, name, value)
    torch.profiler.profile = Profile
    mode = Placement()
    mode.__enter__()
    # The mode is off inside an operator that is given no tensor, where aiter makes one.
    empty = torch.empty
    torch.empty = lambda *args, **options: empty(*args, **{name: mode.here(value) for name, value in options.items()})
    torch._stood_in_mode = mode
    try:
        import triton
        from triton.backends.compiler import GPUTarget

        target = GPUTarget("hip", GFX, 64)
        triton.runtime.driver.set_active(
            types.SimpleNamespace(
                get_current_target=lambda: target,
                get_current_device=lambda: 0,
                get_device_properties=lambda device: {"multiprocessor_count": UNITS},
            )
        )
    except ImportError:
        pass


def fault(library, kernel, size):
    """The faults that strike here, by kind."""
    found = {}
    for text in filter(None, os.environ.get("CPU_FAULTS", "").split(";")):
        kind, _, where = text.partition("@")
        kind, _, value = kind.partition("=")
        at = where.split(":")
        if all(fnmatch.fnmatchcase(str(this), one) for one, this in zip(at, (library, kernel, size))):
            found[kind] = value
    return found


_REFERENCES = {}


def block_product(x, w, x_scale, w_scale):
    """x (M, K) by blocks of 1 x 128, w (N, K) by blocks of 128 x 128, in float32."""
    key = (x.data_ptr(), w.data_ptr(), tuple(x.shape), tuple(w.shape))
    if key not in _REFERENCES:
        _REFERENCES.clear()
        rows, depth = x.shape
        columns = w.shape[0]
        x = x.float() * x_scale.float().repeat_interleave(128, 1)[:rows, :depth]
        w = w.float() * w_scale.float().repeat_interleave(128, 0).repeat_interleave(128, 1)[:columns, :depth]
        _REFERENCES[key] = (x @ w.t()).to(torch.bfloat16)
    return _REFERENCES[key]


def token_product(x, w, x_scale, w_scale):
    """x (M, K) with a scale a row, w (N, K) with a scale a row, in float32."""
    key = (x.data_ptr(), w.data_ptr(), tuple(x.shape), tuple(w.shape))
    if key not in _REFERENCES:
        _REFERENCES.clear()
        _REFERENCES[key] = ((x.float() * x_scale.float()) @ (w.float() * w_scale.float()).t()).to(torch.bfloat16)
    return _REFERENCES[key]


_PLAIN = {}


def unshuffled(w):
    """The plain weight of one in tiles of 16 rows and 2 x 16 columns (`aiter/ops/shuffle.py`, layout (16, 16))."""
    key = (w.data_ptr(), tuple(w.shape))
    if key not in _PLAIN:
        _PLAIN.clear()
        rows, depth = w.shape
        tiles = w.view(torch.uint8).view(rows // 16, depth // 32, 2, 16, 16)
        plain = tiles.permute(0, 3, 1, 2, 4).contiguous().view(rows, depth).view(w.dtype)
        # The shuffled one is kept, so that no other tensor gets its place.
        _PLAIN[key] = w, plain
    return _PLAIN[key][1]


def run_shuffled(library, x, w, x_scale, w_scale, out, kernel, split):
    """A kernel for shuffled weights: scales of x come in (K/128, M) order."""
    rows, groups = x_scale.shape
    return run(library, x, unshuffled(w), x_scale.reshape(groups, rows).t(), w_scale, out, kernel, split)


def run_per_token(library, x, w, x_scale, w_scale, out, kernel, split):
    """A kernel for shuffled weights with a scale a row on both sides."""
    return run(library, x, unshuffled(w), x_scale, w_scale, out, kernel, split, token_product)


def run(library, x, w, x_scale, w_scale, out, kernel, split, product_of=None):
    """A kernel: the right product at a made-up time, unless a fault was asked for."""
    size = f"{x.shape[0]}x{w.shape[0]}x{x.shape[1]}"
    struck = fault(library, kernel, size)
    if "exit" in struck:
        os._exit(1)
    if "segv" in struck:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "hang" in struck:
        time.sleep(100000)
    if "sleep" in struck and not getattr(run, "slept", None) == (library, kernel, size):
        run.slept = (library, kernel, size)
        time.sleep(float(struck["sleep"]))
    if "unsupported" in struck:
        raise RuntimeError("This GEMM is not supported!")
    chance = zlib.crc32(f"{library}/{kernel}/{split}/{size}".encode()) / 2**32
    us = float(struck.get("us") or 20 + 20 * chance)
    LAUNCHES.append(Launch(f"{library}_{kernel}", us))
    product = (product_of or block_product)(x, w, x_scale, w_scale)
    if "nan" in struck:
        product = torch.full_like(product, float("nan"))
    if "wrong" in struck:
        product = product * 2 + 1
    out.copy_(product)
    return out
