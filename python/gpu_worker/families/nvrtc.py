"""CUDA C++ kernels compiled at run time with NVRTC, which comes with torch, and launched through the driver.

Neither nvcc nor a CUDA toolkit is needed. Only functions that both libraries have had since CUDA 12 are called.
"""

import ctypes
import glob
import hashlib
import os
import site
import sys


class CudaError(Exception):
    """NVRTC or the driver refused something; the text says which call and why."""


def compile_cubin(source, macros, arch, cache_dir):
    """The machine code of `source` for `arch` ("sm_90") with `macros` defined, from `cache_dir` if it is there."""
    library = _nvrtc()
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(library, library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "nvrtcVersion")
    options = [f"--gpu-architecture={arch}", "--std=c++17"] + [f"-D{name}={value}" for name, value in macros.items()]
    digest = hashlib.sha256(repr((source, options, major.value, minor.value)).encode()).hexdigest()[:24]
    path = os.path.join(cache_dir, f"{digest}.cubin")
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        pass
    cubin = _compile(library, source, options)
    os.makedirs(cache_dir, exist_ok=True)
    part = f"{path}.{os.getpid()}.part"
    with open(part, "wb") as file:
        file.write(cubin)
    os.replace(part, path)
    return cubin


def _compile(library, source, options):
    program = ctypes.c_void_p()
    made = library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    _check(library, made, "nvrtcCreateProgram")
    try:
        encoded = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        status = library.nvrtcCompileProgram(program, len(options), encoded)
        if status != 0:
            raise CudaError(
                f"nvrtcCompileProgram: {_text(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program).decode(errors='replace')[:1500]}"
            )
        return _text(library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN, program)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _text(size_of, read, program):
    size = ctypes.c_size_t()
    size_of(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    read(program, buffer)
    return buffer.raw


_loaded = {}


def _nvrtc():
    """NVRTC as torch brought it, or else the system's."""
    if "nvrtc" not in _loaded:
        _loaded["nvrtc"] = _load_nvrtc()
        _loaded["nvrtc"].nvrtcGetErrorString.restype = ctypes.c_char_p
    return _loaded["nvrtc"]


def _load_nvrtc():
    folders = []
    for root in {*site.getsitepackages(), *sys.path}:
        folders += sorted(glob.glob(os.path.join(root, "nvidia", "*", "lib")), reverse=True)
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            folders.append(os.path.join(os.environ[variable], "lib64"))
    folders += ["/usr/local/cuda/lib64"]
    for folder in folders:
        for path in sorted(glob.glob(os.path.join(folder, "libnvrtc.so.*")), key=len):
            try:
                # NVRTC opens its second library by name alone, so that has to be loaded before.
                for second in glob.glob(os.path.join(folder, "libnvrtc-builtins.so*")):
                    ctypes.CDLL(second, mode=ctypes.RTLD_GLOBAL)
                return ctypes.CDLL(path)
            except OSError:
                continue
    try:
        return ctypes.CDLL("libnvrtc.so")
    except OSError as error:
        raise CudaError(f"NVRTC is not installed here ({error})") from error


def _check(library, status, call):
    if status != 0:
        raise CudaError(f"{call}: {library.nvrtcGetErrorString(status).decode()}")


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute; its value is a union of 64 bytes."""

    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_uint * 16)]


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [
        *[(name, ctypes.c_uint) for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared")],
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("attribute_count", ctypes.c_uint),
    ]


_CLUSTER_DIMENSION, _PROGRAMMATIC_STREAM_SERIALIZATION = 4, 6  # CUlaunchAttributeID, cuda.h
_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # CUfunction_attribute, cuda.h
_SHARED_WITHOUT_ASKING = 48 * 1024


class Kernel:
    """A kernel on the current device. Make it where torch has a context; it lives as long as the process."""

    def __init__(self, cubin, name, threads, shared_bytes, early=False, cluster=1):
        self._driver = ctypes.CDLL("libcuda.so.1")
        module = ctypes.c_void_p()
        self._function = ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), cubin)
        self._call("cuModuleGetFunction", ctypes.byref(self._function), module, name.encode())
        if shared_bytes > _SHARED_WITHOUT_ASKING:
            self._call("cuFuncSetAttribute", self._function, _MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes)
        self._threads = threads
        self._shared = shared_bytes
        wanted = [(_PROGRAMMATIC_STREAM_SERIALIZATION, (1,))] if early else []
        wanted += [(_CLUSTER_DIMENSION, (cluster, 1, 1))] if cluster > 1 else []
        self._attributes = (_Attribute * len(wanted))()
        for attribute, (number, values) in zip(self._attributes, wanted):
            attribute.id = number
            attribute.value[: len(values)] = values

    def bind(self, blocks, arguments):
        """A function of a stream (its handle) that enqueues this launch. `arguments` are ctypes values."""
        config = _Config(blocks, 1, 1, self._threads, 1, 1, self._shared)
        config.attributes, config.attribute_count = (
            ctypes.cast(self._attributes, ctypes.POINTER(_Attribute)),
            len(self._attributes),
        )
        pointers = (ctypes.c_void_p * len(arguments))(*[ctypes.addressof(one) for one in arguments])
        launch, function, at = self._driver.cuLaunchKernelEx, self._function, ctypes.byref(config)

        def enqueue(stream, _kept=arguments):
            config.stream = stream
            status = launch(at, function, pointers, None)
            if status != 0:
                raise CudaError(f"cuLaunchKernelEx: {self._words(status)}")

        return enqueue

    def _call(self, name, *arguments):
        status = getattr(self._driver, name)(*arguments)
        if status != 0:
            raise CudaError(f"{name}: {self._words(status)}")

    def _words(self, status):
        text = ctypes.c_char_p()
        self._driver.cuGetErrorString(status, ctypes.byref(text))
        return f"{(text.value or b'unknown error').decode()} ({status})"
