"""Makes a CPU torch look like ROCm to SGLang: plain attributes of torch, no file of SGLang touched.

Import before anything of SGLang. The architecture and the HIP version are frozen at SGLang's import, so one
process serves one pair.
"""

import importlib.machinery
import os
import sys
import types

import torch

ARCH = os.environ["REALTREES_ARCH"]
HIP = os.environ["REALTREES_HIP"]
CAPABILITY = {"gfx942": (9, 4), "gfx950": (9, 5)}[ARCH]


def _look():
    properties = types.SimpleNamespace(
        gcnArchName=f"{ARCH}:sramecc+:xnack-",
        name={"gfx942": "AMD Instinct MI300X", "gfx950": "AMD Instinct MI355X"}[ARCH],
        major=CAPABILITY[0],
        minor=CAPABILITY[1],
        multi_processor_count={"gfx942": 304, "gfx950": 256}[ARCH],
        total_memory=192 << 30,
        warp_size=64,
    )
    torch.version.hip = HIP
    torch.version.cuda = None
    torch.cuda.get_device_properties = lambda *_: properties
    torch.cuda.get_device_capability = lambda *_: CAPABILITY
    torch.cuda.get_device_name = lambda *_: properties.name
    # Without it SGLang's own capability question answers (None, None) and fp8_utils fails to import.
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1
    torch.cuda.current_device = lambda: 0


class _Anything:
    """Tolerates being called, subscripted, inherited from and used as a decorator at import time."""

    def __init__(self, *_, **__):
        pass

    def __call__(self, *arguments, **_):
        return arguments[0] if len(arguments) == 1 and callable(arguments[0]) else _Anything()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()

    def __getitem__(self, _):
        return _Anything()

    def __mro_entries__(self, _):
        return (object,)


class _Stubs:
    """`sgl_kernel` and `vllm._custom_ops`: compiled packages that ROCm images have and this machine has not.

    Only these: SGLang guards other optional packages itself, and a permissive stub would flip capability flags.
    """

    def find_spec(self, name, path=None, target=None):
        wanted = name == "sgl_kernel" or name.startswith("sgl_kernel.") or name in ("vllm", "vllm._custom_ops")
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if wanted else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        if module.__name__ == "vllm":
            return  # a catch-all would satisfy guarded imports and change what SGLang believes

        def attribute(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return _Anything()

        module.__getattr__ = attribute


_look()
sys.meta_path.append(_Stubs())
