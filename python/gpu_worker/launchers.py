"""Triton's launchers: small C modules that pass a kernel's arguments to the driver."""

import importlib
import sys

LAUNCHERS = {"cuda": ("nvidia", "CudaLauncher"), "hip": ("amd", "HIPLauncher")}
"""Where Triton keeps what builds a launcher, by the backend of its target (3.6, triton/backends/*/driver.py)."""


def launcher_builder(backend):
    """A function that has Triton build the launcher of a compiled kernel, into its disk cache.

    A launcher is C, compiled once per machine for each signature (0.4 s); built here, it is found by the worker's own
    thread. Where this Triton builds it otherwise, or cannot without a device, the worker builds it when it loads.
    """
    try:
        build = getattr(_driver(backend), LAUNCHERS[backend][1])
    except (ImportError, AttributeError, KeyError):
        return lambda _compiled: None

    def build_launcher(compiled):
        nonlocal build
        if build is None:
            return
        try:
            build(compiled.src, compiled.metadata)
        except Exception as error:
            build = None
            print(f"launchers are not built ahead: {type(error).__name__}: {error}", file=sys.stderr)

    return build_launcher


def share_launchers(backend):
    """Has Triton load every launcher once. It loads it anew for each kernel (3.6, CompiledKernel._init_handles), which
    takes longer than loading the kernel; a launcher keeps nothing, and kernels with the same parameters have the same."""
    try:
        driver = _driver(backend)
        load = driver.compile_module_from_src
    except (ImportError, AttributeError, KeyError):
        return
    loaded = {}

    def load_once(*arguments, **named):
        key = repr((arguments, named))
        if key not in loaded:
            loaded[key] = load(*arguments, **named)
        return loaded[key]

    driver.compile_module_from_src = load_once


def _driver(backend):
    return importlib.import_module(f"triton.backends.{LAUNCHERS[backend][0]}.driver")
