"""What one row of aiter's means on one shape: the launches that aiter's own wrapper makes, recorded instead of made.

The wrapper decides the splits of K, the strides, the grid and the kernel that adds the parts; it changed with most
releases, so it is run rather than reimplemented: it gets tensors that have sizes but no memory, and its kernels are
replaced by recorders. Neither torch nor a device is needed.
"""

import functools
import json
import threading
from dataclasses import dataclass

from gpu_worker.plan import Problem, Unsupported

AMD_OPTIONS = ("waves_per_eu", "matrix_instr_nonkdim", "kpack")
"""Options that only AMD's compiler takes: another refuses a row that has them, so they are left out there."""

OP = "gemm_a8w8_blockscale"

_RECORDING = threading.Lock()
"""Held while the wrapper's kernels are replaced: plans are asked for by the thread that reads and by the one that times."""


class Tensor:
    """The properties of a tensor that the wrapper uses."""

    device = "none"

    def __init__(self, role, shape, dtype, strides=None):
        self.role = role
        self.shape = tuple(shape)
        self.dtype = dtype
        self.strides = strides or _contiguous(self.shape)

    @property
    def T(self):
        """Rows for columns."""
        return Tensor(self.role, self.shape[::-1], self.dtype, self.strides[::-1])

    def stride(self, axis):
        """Elements from one to the next along an axis."""
        return self.strides[axis]


def _contiguous(shape):
    strides, step = [], 1
    for side in reversed(shape):
        strides.append(step)
        step *= side
    return tuple(reversed(strides))


class _Torch:
    """The torch of a wrapper that is being recorded."""

    @staticmethod
    def empty(shape, dtype=None, device=None):
        """The parts of a split K, the only tensor that the wrapper creates when it is given an output."""
        return Tensor("partial", shape, dtype)

    def __getattr__(self, name):
        return name


@dataclass(frozen=True)
class Call:
    """One kernel launch."""

    module: str
    function: str
    arguments: tuple
    """(name, value) of the kernel's parameters; a tensor is its role."""
    dtypes: tuple
    """(role, dtype) of the tensors."""
    options: tuple
    """(name, value) of what the compiler takes."""
    constants: frozenset
    """Names of the arguments that are compiled in."""
    grid: tuple

    @property
    def tensors(self):
        """Parameters that are tensors, with their roles."""
        return [(name, value.role) for name, value in self.arguments if isinstance(value, Tensor)]

    def specialisation(self):
        """What two launches of the same program have in common."""
        classes = []
        for name, value in self.arguments:
            if isinstance(value, Tensor):
                classes.append((name, value.dtype))
            elif name in self.constants or not isinstance(value, int):
                classes.append((name, repr(value)))
            else:
                classes.append((name, "1" if value == 1 else "16" if value % 16 == 0 else ""))
        return [self.module, self.function, classes, self.options]


@dataclass(frozen=True)
class AiterPlan:
    """One row on one shape, ready to be compiled or launched."""

    problem: Problem
    calls: tuple
    planes: int
    """Parts of K that are added up by a second kernel; 0 for none."""

    @functools.cached_property
    def key(self):
        """Equal for two plans that run the same compiled code."""
        return json.dumps([call.specialisation() for call in self.calls], default=str)

    @property
    def reduce(self):
        """Whether a second kernel runs."""
        return len(self.calls) > 1


def plan(tree, problem, row, block, rocm, out_dtype="bfloat16"):
    """The plan of `row` on `problem`; `block` is (N, K) of the weight's scales."""
    if not isinstance(row, dict):
        raise Unsupported(f"a candidate is an object of settings, not {row!r}")
    settings = {name: value for name, value in row.items() if rocm or name not in AMD_OPTIONS}
    m, n, k = problem.m, problem.n, problem.k
    whole_splits(settings, k)
    columns, rows = -(-k // block[1]), -(-n // block[0])
    calls = _recorded(
        tree.wrapper,
        Tensor("a", (m, k), problem.dtype),
        Tensor("b", (n, k), problem.dtype),
        Tensor("a_scale", (m, columns), "float32"),
        Tensor("b_scale", (rows, columns), "float32"),
        Tensor("out", (m, n), out_dtype),
        settings,
        out_dtype,
    )
    written = next(
        value for name, value in calls[0].arguments if isinstance(value, Tensor) and value.role in ("out", "partial")
    )
    return AiterPlan(problem, calls, written.shape[0] if written.role == "partial" else 0)


def whole_splits(settings, k):
    """Refuses parts of K that are not equal: the last of them reads past the end of a row (ROCm/aiter#5286: NaN)."""
    splits, step = settings.get("NUM_KSPLIT", 1), settings.get("BLOCK_SIZE_K", 0)
    if not isinstance(splits, int) or not isinstance(step, int) or splits < 1 or step < 1:
        raise Unsupported(f"NUM_KSPLIT {splits!r} and BLOCK_SIZE_K {step!r} are no whole numbers above 0")
    if splits > 1:
        blocks = -(-k // step)
        if k % step or blocks % splits:
            raise Unsupported(f"NUM_KSPLIT {splits} does not split K = {k} into equal parts of whole scale blocks")


def _recorded(module, a, b, a_scale, b_scale, out, settings, dtype):
    """The launches that the wrapper makes."""
    with _RECORDING:
        return _record(module, (a, b, a_scale, b_scale, dtype, out), settings)


def _record(module, operands, settings):
    calls, kept = [], {}
    for name, value in list(vars(module).items()):
        if isinstance(getattr(value, "arg_names", None), (list, tuple)):
            kept[name] = value
            setattr(module, name, _Recorder(value, calls))
    kept["torch"] = module.torch
    module.torch = _Torch()
    try:
        getattr(module, OP)(*operands, config=dict(settings))
    except (AssertionError, KeyError, ValueError, TypeError) as error:
        raise Unsupported(f"aiter's wrapper takes no such row: {type(error).__name__}: {error}") from error
    finally:
        for name, value in kept.items():
            setattr(module, name, value)
    if not calls:
        raise Unsupported("aiter's wrapper launched no kernel of its own")
    return tuple(calls)


class _Recorder:
    """Takes the place of a kernel in the wrapper."""

    def __init__(self, kernel, calls):
        self._kernel = kernel
        self._calls = calls

    def __getitem__(self, grid):
        def launch(*arguments, **named):
            self._calls.append(_call(self._kernel, grid, arguments, named))

        return launch


def _call(kernel, grid, arguments, named):
    named = {**dict(zip(kernel.arg_names, arguments)), **named}
    # `triton.heuristics` computes arguments from the others, at every launch.
    while not hasattr(kernel, "params"):
        if not hasattr(kernel, "values"):
            raise Unsupported(f"{kernel!r} chooses its settings itself")
        for name, value in kernel.values.items():
            named[name] = value(named)
        kernel = kernel.fn
    takes = {parameter.name for parameter in kernel.params}
    options = tuple(sorted((name, value) for name, value in named.items() if name not in takes))
    chosen = grid(named) if callable(grid) else grid
    return Call(
        module=kernel.fn.__module__,
        function=kernel.fn.__name__,
        arguments=tuple(
            (parameter.name, named[parameter.name]) for parameter in kernel.params if parameter.name in named
        ),
        dtypes=tuple((value.role, value.dtype) for value in named.values() if isinstance(value, Tensor)),
        options=options,
        constants=frozenset(parameter.name for parameter in kernel.params if parameter.is_constexpr),
        grid=tuple(chosen),
    )
