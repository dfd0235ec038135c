"""Kernel families besides SGLang's Triton kernel: every way to multiply with block FP8 that this interpreter offers.

A family is a class with a `name` and `version`. Made with `(torch, facts, cache_dir)`, it raises `Unavailable` where it
cannot run. `launch(problem, operands, setting, block)` returns a function of a copy of the weights that enqueues
C into `operands.out` on torch's current stream, or raises `plan.Unsupported` for a shape or setting it does not take. What
depends on the activations' layout only (the order of their scales) is done once, before: a server has its quantisation
write the order that the kernel wants.
"""

import importlib


class Unavailable(Exception):
    """This interpreter or device does not have the family; the text says why."""


TRITON = "triton"
"""The family of a candidate that names none: the Triton kernel that the worker was opened with."""

MODULES = {
    "stream": ("stream", "Stream"),
    "stream-wg": ("stream_wg", "StreamWg"),
    "deepgemm": ("deepgemm", "DeepGemm"),
    "cublaslt": ("cublaslt", "CublasLt"),
    "cutlass": ("cutlass", "Cutlass"),
    "flashinfer": ("flashinfer_sm90", "FlashInfer"),
}
"""Where each family is; imported when it is opened, so that one that is missing disturbs no other."""


class Families:
    """Opens each family when it is first asked for, and remembers why one could not be opened."""

    def __init__(self, torch, facts, cache_dir):
        self._setup = (torch, facts, cache_dir)
        self._opened = {}

    def open(self, name):
        """The family; raises `Unavailable`."""
        if name not in self._opened:
            self._opened[name] = self._try(name)
        found = self._opened[name]
        if isinstance(found, Unavailable):
            raise found
        return found

    def document(self, names=tuple(MODULES)):
        """For each family `{"version":}`, or `{"unavailable": why}`."""
        said = {}
        for name in names:
            try:
                said[name] = {"version": str(self.open(name).version)}
            except Unavailable as why:
                said[name] = {"unavailable": str(why)}
        return said

    def _try(self, name):
        if name not in MODULES:
            return Unavailable(f"no family is called `{name}`")
        module, made = MODULES[name]
        try:
            return getattr(importlib.import_module(f"gpu_worker.families.{module}"), made)(*self._setup)
        except Unavailable as why:
            return why
        except Exception as error:
            # A partly installed library may raise anything.
            return Unavailable(" ".join(f"{type(error).__name__}: {error}".split())[:500])
