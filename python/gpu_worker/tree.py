"""Finds the block-FP8 kernel in the SGLang tree at hand and lifts it out, without importing SGLang.

Importing the module would start half a server (custom operators, device probes, compiled extensions) in
this process and in every compile child. The kernels themselves need nothing but Triton, so their source is
taken as it stands, by its syntax, and written to a module of its own.
"""

import ast
import builtins
import hashlib
import importlib.util
import os
import re

LOCATIONS = (
    "kernels/ops/gemm/fp8_kernel.py",  # SGLang 0.5.21 and later
    "kernels/ops/quantization/fp8_kernel.py",  # 0.5.16 to 0.5.20
    "srt/layers/quantization/fp8_kernel.py",  # up to 0.5.15.post1
)
"""Where the kernel lives, newest first; 0.5.21 keeps a file of the old name without the kernel."""

PLAIN = "_w8a8_block_fp8_matmul"
"""The kernel every release has."""

TUNED = "_w8a8_block_fp8_matmul_hopper"
"""The variant that takes SPLIT_K and SWAP_AB, launched on sm_90 only (SGLang 0.5.21)."""

REDUCE = "_reduce_block_fp8_split_k"
"""Adds the partial results of SPLIT_K (SGLang 0.5.21)."""

_PREAMBLE = "import triton\nimport triton.language as tl\n\n\n"
_PROVIDED = {"triton", "tl"} | set(dir(builtins))


class TreeError(Exception):
    """The SGLang tree at hand holds no kernel this worker can take."""


class KernelSource:
    """Kernels as source text, and where they came from."""

    def __init__(self, text, plain, tuned, reduce, origin, version, clamps_block_k, configs=""):
        self.text = text
        self.plain = plain
        self.tuned = tuned
        """The function for SPLIT_K and SWAP_AB, or None."""
        self.reduce = reduce
        self.origin = origin
        self.version = version
        """SGLang's version, or None when unknown or when the kernel is gemmtune's own."""
        self.clamps_block_k = clamps_block_k
        """Whether the release raises a BLOCK_SIZE_K below the scale block when it reads its file."""
        self.configs = configs
        """The folder of SGLang's own configuration files, beside the kernel's module; empty if there is none."""
        self.digest = digest(text)

    def write(self, folder):
        """Writes the module (atomically, content-addressed) and returns its path. Triton needs a real file."""
        return write_module(folder, f"block_fp8_{self.digest[:16]}.py", self.text)


def write_module(folder, name, text):
    """Writes a module of lifted kernels (atomically; `name` follows its content) and returns its path."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        part = f"{path}.{os.getpid()}.part"
        with open(part, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(part, path)
    return path


def digest(text):
    """The digest that names a lifted module."""
    return hashlib.sha256(text.encode()).hexdigest()


def lift(path, wanted):
    """The text of a module that holds the functions `wanted` of the file at `path` and what they call; None where the
    file does not define all of them."""
    with open(path, encoding="utf-8") as file:
        source = file.read()
    functions = _functions(source, path)
    if not all(name in functions for name in wanted):
        return None
    return _PREAMBLE + _lifted(source, functions, wanted, path)


def package_folder(root=None):
    """The folder of the `sglang` package: at or below `root`, or the one this interpreter would import."""
    if root:
        for folder in (os.path.join(root, "sglang"), root):
            if any(os.path.isfile(os.path.join(folder, location)) for location in LOCATIONS):
                return folder
        raise TreeError(f"`{root}` holds no sglang package with a block-FP8 kernel (looked for {', '.join(LOCATIONS)})")
    spec = importlib.util.find_spec("sglang")
    places = list(spec.submodule_search_locations or []) if spec else []
    return places[0] if places else None


def sglang_kernels(package):
    """The kernels of the SGLang package in the folder `package`."""
    for location in LOCATIONS:
        path = os.path.join(package, location)
        if not os.path.isfile(path):
            continue
        with open(path, encoding="utf-8") as file:
            source = file.read()
        functions = _functions(source, path)
        if PLAIN not in functions:
            continue
        wanted = [name for name in (PLAIN, TUNED, REDUCE) if name in functions]
        tuned = TUNED if TUNED in functions and REDUCE in functions else None
        return KernelSource(
            text=_PREAMBLE + _lifted(source, functions, wanted, path),
            plain=PLAIN,
            tuned=tuned,
            reduce=REDUCE if tuned else None,
            origin=location,
            version=sglang_version(package),
            clamps_block_k=clamps_block_k(source),
            configs=_configs(path),
        )
    raise TreeError(f"no file of `{package}` defines {PLAIN} (looked at {', '.join(LOCATIONS)})")


def own_kernels():
    """gemmtune's own kernels of the same interface, for a host without SGLang."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "own_kernel.py")
    with open(path, encoding="utf-8") as file:
        text = file.read()
    name = "block_fp8_matmul"
    return KernelSource(text, name, name, "add_partial_results", "gemmtune", None, False)


def clamps_block_k(source):
    """Whether a release raises every BLOCK_SIZE_K below the scale block (0.5.12.post1; 0.5.14 spares CUDA)."""
    return "Clamped BLOCK_SIZE_K" in source and "block_k % cfg[" not in source


def sglang_version(package):
    """The version of the package in that folder, from its metadata or its version file; None if neither says."""
    parent = os.path.dirname(os.path.abspath(package))
    found = sorted(name for name in os.listdir(parent) if re.fullmatch(r"sglang-[^-]+\.dist-info", name))
    if len(found) == 1:
        return found[0][len("sglang-") : -len(".dist-info")]
    for name in ("_version.py", "version.py"):
        path = os.path.join(package, name)
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as file:
                match = re.search(
                    r"^(?:__version__ = )?(?:version = )*['\"](\d[^'\"]*)['\"]", file.read(), re.MULTILINE
                )
            if match:
                return match.group(1)
    return None


def _configs(path):
    """The folder in which a release looks for its files, where it is there."""
    folder = os.path.join(os.path.dirname(os.path.realpath(path)), "configs")
    return folder if os.path.isdir(folder) else ""


def _functions(source, path):
    """Top-level functions of a module by name, the first definition of each."""
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        raise TreeError(f"`{path}` does not parse: {error}") from error
    functions = {}
    for node in body:
        if isinstance(node, ast.FunctionDef):
            functions.setdefault(node.name, node)
    return functions


def _lifted(source, functions, wanted, path):
    """The text of `wanted` and of every function of the module they call, in the module's order."""
    lines = source.splitlines(keepends=True)
    taken, queue = set(), list(wanted)
    while queue:
        name = queue.pop()
        if name in taken:
            continue
        taken.add(name)
        for free in sorted(_free_names(functions[name])):
            if free not in functions:
                raise TreeError(f"`{path}`: {name} uses `{free}`, which cannot be lifted out of its module")
            queue.append(free)
    texts = []
    for name, node in sorted(functions.items(), key=lambda item: item[1].lineno):
        if name in taken:
            first = min([node.lineno] + [decorator.lineno for decorator in node.decorator_list])
            texts.append("".join(lines[first - 1 : node.end_lineno]).rstrip() + "\n")
    return "\n\n".join(texts)


def _free_names(function):
    """Names a function reads but neither binds nor gets from Triton or Python."""
    bound = {argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)}
    read = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
    return read - bound - _PROVIDED
