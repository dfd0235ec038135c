"""Finds `fused_moe_kernel` in the SGLang tree at hand and lifts it out, without importing SGLang."""

import importlib.util
import os
from dataclasses import dataclass

from gpu_worker import tree

LOCATIONS = (
    "kernels/ops/moe/fused_moe_triton_kernels.py",  # SGLang 0.5.16 and later
    "srt/layers/moe/moe_runner/triton_utils/fused_moe_triton_kernels.py",  # 0.5.11 to 0.5.15.post1
    "srt/layers/moe/fused_moe_triton/fused_moe_triton_kernels.py",  # up to 0.5.10.post1
)
"""Where the kernel lives, newest first."""

KERNEL = "fused_moe_kernel"


@dataclass(frozen=True)
class MoeKernel:
    """The lifted kernel and the rules of its release."""

    text: str
    origin: str
    version: str
    digest: str

    def write(self, folder):
        """Writes the module (atomically, content-addressed) and returns its path."""
        return tree.write_module(folder, f"fused_moe_{self.digest[:16]}.py", self.text)


def package_folder(root=None):
    """The folder of the `sglang` package: at or below `root`, or the one this interpreter would import."""
    if root:
        for folder in (os.path.join(root, "sglang"), root):
            if any(os.path.isfile(os.path.join(folder, location)) for location in LOCATIONS):
                return folder
        raise tree.TreeError(f"`{root}` holds no sglang package with {KERNEL} (looked for {', '.join(LOCATIONS)})")
    spec = importlib.util.find_spec("sglang")
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        raise tree.TreeError(f"this interpreter has no sglang package, so there is no {KERNEL} to race")
    return places[0]


def moe_kernel(package):
    """The kernel of the SGLang package in the folder `package`; `tree.TreeError` where it has none."""
    for location in LOCATIONS:
        path = os.path.join(package, location)
        if os.path.isfile(path):
            text = tree.lift(path, [KERNEL])
            if text is not None:
                return MoeKernel(text, location, tree.sglang_version(package), tree.digest(text))
    raise tree.TreeError(f"no file of `{package}` defines {KERNEL} (looked at {', '.join(LOCATIONS)})")
