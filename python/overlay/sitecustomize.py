"""First door of the overlay: Python runs this file in every process whose PYTHONPATH starts with its folder.

SGLang spawns its ranks as fresh interpreters that inherit the environment (`set_start_method("spawn")`, 0.5.5 to
0.5.23), so the hooks reach each of them. Nothing is imported here beyond the standard library's import
machinery, and nothing at all happens unless one of gemmtune's variables is set. A `sitecustomize` that this
file hides is run after it, as if this one were not there.
"""

import sys

try:
    from gemmtune_overlay import hooks as _hooks

    _hooks.install("sitecustomize")
except Exception as _error:  # an overlay must never keep an interpreter from starting
    print(f"gemmtune overlay: not installed: {_error!r}", file=sys.stderr)


def _run_hidden_sitecustomize():
    import importlib.util
    import os
    from importlib.machinery import PathFinder

    here = os.path.dirname(os.path.realpath(__file__))
    elsewhere = [folder for folder in sys.path if os.path.realpath(folder or os.curdir) != here]
    spec = PathFinder.find_spec("sitecustomize", elsewhere)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


_run_hidden_sitecustomize()
