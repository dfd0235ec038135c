"""Imports the Triton GEMM of an aiter tree and nothing else of aiter.

`import aiter` needs ROCm, compiles extensions and probes devices. The GEMM's own modules need Triton and one another, so the
packages on the way to them stay empty (no `__init__.py` is run) and the modules are the tree's files as they stand: the kernels,
what they call, and the wrapper that decides how they are launched.
"""

import hashlib
import importlib
import importlib.machinery
import importlib.util
import os
import re
import sys

from gpu_worker.tree import TreeError

WRAPPERS = (
    "aiter.ops.triton.gemm.basic.gemm_a8w8_blockscale",  # aiter v0.1.10 and later
    "aiter.ops.triton.gemm_a8w8_blockscale",  # up to v0.1.9
)
"""Modules with the wrapper that SGLang calls, newest first."""

WRAPPER = "gemm_a8w8_blockscale"

LOOKUP = "aiter.ops.triton.utils.gemm_config_utils"
"""The look-up by `M_LEQ_x` keys; v0.1.7 has names of sizes instead, in the kernel's module."""

CONFIGS = "aiter/ops/triton/configs/gemm"

_FROM_4 = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)

BOUNDS = ((1, *_FROM_4), _FROM_4)
"""Bounds of keys that gemmtune knows: from v0.1.20 on, and v0.1.9 to v0.1.19."""


class AiterTree:
    """The modules of one tree, imported."""

    def nested(self, gfx):
        """A default that v0.1.20 and later take before the one in `configs/gemm`, where there is one: none ships one."""
        places = (
            f"{gfx}/triton/gemm/gemm_a8w8_blockscale/DEFAULT.json",
            f"gemm/triton/{gfx}-GEMM-A8W8_BLOCKSCALE.json",
        )
        paths = (os.path.join(os.path.dirname(self.configs), place) for place in places)
        return next((path for path in paths if os.path.isfile(path)), None)

    def __init__(self, root, wrapper, lookup):
        self.root = root
        self.wrapper = wrapper
        self.origin = os.path.relpath(wrapper.__file__, root)
        self.bounds = tuple(lookup.STANDARD_M_BOUNDS)
        self.configs = os.path.join(root, CONFIGS)
        self.version = version(root)
        self.digest = digest(root)


def open_tree(root=None):
    """The tree at `root` (a checkout, or the folder that holds the package), or the one this interpreter would import."""
    root = _root(root)
    finder = _Finder(root)
    if any(name == "aiter" or name.startswith("aiter.") for name in sys.modules):
        raise TreeError("aiter is imported in this process already")
    sys.meta_path.insert(0, finder)
    name = next((name for name in WRAPPERS if os.path.isfile(finder.path(name) + ".py")), None)
    if name is None:
        raise TreeError(f"`{root}` holds no Triton GEMM of aiter (looked for {' and '.join(WRAPPERS)})")
    if not os.path.isfile(finder.path(LOOKUP) + ".py"):
        raise TreeError(
            f"`{root}` is an aiter before v0.1.9: its files have names of sizes for keys, which are not tuned"
        )
    with torch_stands_in():
        try:
            wrapper, lookup = importlib.import_module(name), importlib.import_module(LOOKUP)
        except Exception as error:
            raise TreeError(f"`{root}`: {name} could not be imported: {type(error).__name__}: {error}") from error
    if not callable(getattr(wrapper, WRAPPER, None)):
        raise TreeError(f"`{wrapper.__file__}` defines no {WRAPPER}")
    tree = AiterTree(root, wrapper, lookup)
    if tree.bounds not in BOUNDS:
        raise TreeError(f"`{lookup.__file__}` looks for keys by bounds that are not known: {tree.bounds}")
    return tree


def _root(root):
    """The folder that contains the folder `aiter`."""
    if root:
        if os.path.isdir(os.path.join(root, "aiter", "ops", "triton")):
            return os.path.abspath(root)
        raise TreeError(f"`{root}` holds no aiter package (looked for aiter/ops/triton)")
    spec = importlib.util.find_spec("aiter")
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        raise TreeError("this interpreter has no aiter package, so there is no Triton GEMM of it to race")
    return os.path.dirname(os.path.abspath(places[0]))


class _Finder:
    """Finds the modules of the tree; a package is an empty one."""

    def __init__(self, root):
        self._root = root

    def path(self, name):
        """Where a module or package lies, without an ending."""
        return os.path.join(self._root, *name.split("."))

    def find_spec(self, name, path=None, target=None):
        """A finder's part of `importlib`."""
        if name != "aiter" and not name.startswith("aiter."):
            return None
        place = self.path(name)
        if os.path.isfile(place + ".py"):
            return importlib.util.spec_from_file_location(name, place + ".py")
        if os.path.isdir(place):
            spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [place]
            return spec
        return None


class _Torch:
    """Replaces torch where a module only uses its types in annotations: a compile child without it starts in a fifth of the time."""

    __spec__ = None

    class Tensor:
        """A name in annotations."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class torch_stands_in:
    """Installs the replacement if torch is not imported yet, and removes it again."""

    def __enter__(self):
        self._placed = "torch" not in sys.modules
        if self._placed:
            sys.modules["torch"] = _Torch()

    def __exit__(self, *_):
        if self._placed:
            del sys.modules["torch"]


def version(root):
    """The version that the tree names, or None: a checkout has none before it is built."""
    path = os.path.join(root, "aiter", "_version.py")
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            match = re.search(r"^(?:__version__ = )(?:version = )*['\"]([^'\"]+)['\"]", file.read(), re.MULTILINE)
        if match:
            return match.group(1)
    found = [name for name in os.listdir(root) if re.fullmatch(r"(amd_)?aiter-[^-]+\.dist-info", name)]
    return found[0].removesuffix(".dist-info").split("-", 1)[1] if len(found) == 1 else None


def digest(root):
    """A digest of the tree's files that are imported: what decides what is launched."""
    files = sorted(
        os.path.relpath(module.__file__, root)
        for name, module in list(sys.modules.items())
        if name.startswith("aiter.") and getattr(module, "__file__", None)
    )
    whole = hashlib.sha256()
    for name in files:
        whole.update(name.encode())
        with open(os.path.join(root, name), "rb") as file:
            whole.update(file.read())
    return whole.hexdigest()
