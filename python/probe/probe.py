"""Reports where an interpreter would import SGLang and aiter from, without importing them and without touching a GPU.

Run as `python -c TEXT module|script`: `module` has the path of `python -m sglang.launch_server` (the working
directory comes first), `script` that of a console script (it does not). Prints one line, a tag and
a JSON object, so that whatever else the environment prints does not matter. Standard library only, Python 3.8 on.
"""

import ast
import importlib.metadata
import importlib.util
import json
import os
import sys

TAG = "gemmtune-probe: "
PACKAGES = ("sglang", "aiter", "aiter_meta", "torch", "triton", "sgl_kernel")
#: Distributions that install one of the packages, by normalised name.
DISTRIBUTIONS = {
    "sglang": "sglang",
    "amd-sglang": "sglang",
    "aiter": "aiter",
    "amd-aiter": "aiter",
    "torch": "torch",
    "triton": "triton",
    "pytorch-triton-rocm": "triton",
    "triton-rocm": "triton",
    "sgl-kernel": "sgl_kernel",
    "sglang-kernel": "sgl_kernel",
}


def found(name):
    """What an import of `name` would load, or null where there is nothing."""
    try:
        spec = importlib.util.find_spec(name)
    except Exception as error:
        return {"kind": "broken", "text": f"{type(error).__name__}: {error}"}
    if spec is None:
        return None
    if spec.origin in (None, "namespace"):
        # A folder of that name without __init__.py, such as the top of a checkout: an import gives an empty package.
        return {"kind": "empty", "folders": [real(folder) for folder in spec.submodule_search_locations or ()]}
    return {"kind": "package", "folder": real(os.path.dirname(spec.origin))}


def candidates(name):
    """Every folder on the path that holds the package, in import order: more than one means a shadow."""
    folders = []
    for entry in sys.path:
        folder = os.path.join(entry or os.curdir, name)
        if os.path.isfile(os.path.join(folder, "__init__.py")) and real(folder) not in folders:
            folders.append(real(folder))
    return folders


def distributions():
    """The installed distributions that matter, and where they are."""
    seen = []
    for distribution in importlib.metadata.distributions():
        try:
            name = distribution.metadata["Name"].lower().replace("_", "-").replace(".", "-")
            version = distribution.version
        except Exception:
            continue  # a broken dist-info folder is no business of ours
        if name not in DISTRIBUTIONS:
            continue
        site = getattr(distribution, "_path", None)
        entry = {
            "package": DISTRIBUTIONS[name],
            "name": name,
            "version": version,
            "site": real(os.path.dirname(str(site))) if site is not None else None,
            "editable": editable(distribution),
        }
        if entry not in seen:
            seen.append(entry)
    return seen


def editable(distribution):
    """The checkout that an editable distribution points to (PEP 610), else null."""
    try:
        direct = json.loads(distribution.read_text("direct_url.json") or "{}")
        if direct["dir_info"]["editable"] and direct["url"].startswith("file://"):
            return real(direct["url"][len("file://") :])
    except (ValueError, KeyError, OSError):
        pass
    return None


def literals(package, file):
    """Names bound to a string or to None at the top of `file` of a found package."""
    if package is None or package["kind"] != "package":
        return {}
    try:
        with open(os.path.join(package["folder"], file), encoding="utf-8") as source:
            tree = ast.parse(source.read())
    except (OSError, SyntaxError, ValueError):
        return {}
    names = {}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if isinstance(value, ast.Constant) and (value.value is None or isinstance(value.value, str)):
            names.update((target.id, value.value) for target in targets if isinstance(target, ast.Name))
    return names


def real(path):
    return os.path.realpath(path)


def answer(entry):
    """Everything the probe reports."""
    if entry == "script" and sys.path and sys.path[0] == "":
        del sys.path[0]
    packages = {name: found(name) for name in PACKAGES}
    torch = literals(packages["torch"], "version.py")
    return {
        "executable": sys.executable,
        "version": ".".join(str(part) for part in sys.version_info[:3]),
        "prefix": sys.prefix,
        # -E and -I make the interpreter ignore PYTHONPATH, and with it any overlay.
        "ignores_environment": bool(sys.flags.ignore_environment),
        "path": [entry or os.getcwd() for entry in sys.path],
        "packages": {name: place for name, place in packages.items() if place is not None},
        "candidates": {name: candidates(name) for name in ("sglang", "aiter")},
        "distributions": distributions(),
        "torch": {"version": torch.get("__version__"), "hip": torch.get("hip"), "cuda": torch.get("cuda")},
        "aiter_version": literals(packages["aiter"], "_version.py").get("__version__"),
    }


if __name__ == "__main__":
    text = TAG + json.dumps(answer(sys.argv[1] if len(sys.argv) > 1 else "module")) + "\n"
    sys.stdout.flush()
    os.write(1, text.encode())
