"""Names that SGLang imports from aiter but must not call on this path."""

import importlib.machinery
import sys


class Absent:
    """Stands for something the stand-in has not; raises when used."""

    def __init__(self, name):
        self._name = name

    def __call__(self, *_, **__):
        raise NotImplementedError(f"the stand-in aiter has no {self._name}")

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self._name}.{name}")


class _Finder:
    """Any submodule of the package exists, and holds only absent names."""

    def __init__(self, package):
        self._prefix = package + "."

    def find_spec(self, name, path=None, target=None):
        if name.startswith(self._prefix):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        module.__getattr__ = lambda name: absent_attribute(module.__name__, name)


def absent_attribute(module, name):
    """What the attribute `name` of `module` is, when the stand-in does not define it."""
    if name.startswith("__"):
        raise AttributeError(name)
    return Absent(f"{module}.{name}")


def install_finder(package):
    """Makes every other submodule of `package` importable."""
    sys.meta_path.append(_Finder(package))
