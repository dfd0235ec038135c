"""What one candidate means on one shape: which kernel, which grid, which arguments. Pure; no torch, no Triton."""

import functools
import json
from dataclasses import dataclass

META = ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M")
"""Constants the kernel is compiled for."""

OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg", "waves_per_eu", "matrix_instr_nonkdim", "kpack")
"""Options of Triton's compiler; the last three are AMD's."""

REDUCE_BLOCK = 256
"""Elements one program of the split-K sum handles (SGLang 0.5.21, w8a8_block_fp8_matmul_triton)."""


class Unsupported(Exception):
    """The kernel at hand does not take this shape or setting."""


@dataclass(frozen=True)
class Problem:
    """A shape as the protocol writes it: C (m x n) from A (m x k) and B (n x k)."""

    m: int
    n: int
    k: int
    dtype: str

    @classmethod
    def read(cls, shape, op="w8a8_block_fp8_matmul"):
        """Reads the protocol's shape; refuses an operation that the kernel at hand does not compute."""
        if shape["op"] != op:
            raise Unsupported(f"this worker times {op}, not `{shape['op']}`")
        problem = cls(int(shape["m"]), int(shape["n"]), int(shape["k"]), shape["dtype"].removeprefix("torch."))
        if min(problem.m, problem.n, problem.k) < 1:
            raise Unsupported(f"a shape of {problem.m} x {problem.n} x {problem.k}")
        if not problem.dtype.startswith("float8"):
            raise Unsupported(f"the kernel takes FP8, not `{problem.dtype}`")
        return problem


@dataclass(frozen=True)
class Kernels:
    """The kernel functions at hand and what they take; plain data, so that a compile child can be told."""

    path: str
    plain: str
    plain_takes: tuple
    """Names of the plain kernel's parameters: `needs_masking` came with SGLang 0.5.9."""
    tuned: str
    """The function for SPLIT_K and SWAP_AB; empty when there is none here."""
    reduce: str
    clamps_block_k: bool
    block_n: int
    block_k: int
    out_dtype: str


@dataclass(frozen=True)
class Plan:
    """One candidate on one shape, ready to be compiled or launched."""

    problem: Problem
    function: str
    constants: tuple
    """Constexprs and compiler options, as (name, value) pairs."""
    scalars: tuple
    """Runtime integers, as (name, value) pairs."""
    grid: tuple
    split_k: int
    reduce: str
    out_dtype: str

    @functools.cached_property
    def key(self):
        """Equal for two plans that run the same compiled code: Triton compiles anew for an integer that is 1 and
        for one that 16 divides, and for each value of a constant; nothing else about the shape matters."""
        classes = [(name, "1" if value == 1 else "16" if value % 16 == 0 else "") for name, value in self.scalars]
        reduced = (self.problem.m * self.problem.n, self.split_k) if self.split_k > 1 else None
        return json.dumps([self.function, self.constants, classes, self.problem.dtype, self.out_dtype, reduced])

    @property
    def reduce_grid(self):
        """Programs of the split-K sum."""
        return (-(-self.problem.m * self.problem.n // REDUCE_BLOCK),)

    @property
    def reduce_constants(self):
        """The split-K sum's arguments after its two pointers, by SGLang's names."""
        return {"ELEMENTS": self.problem.m * self.problem.n, "SPLITS": self.split_k, "BLOCK": REDUCE_BLOCK}


def plan(kernels, problem, candidate):
    """The plan of `candidate` on `problem`, launched as SGLang's w8a8_block_fp8_matmul_triton would."""
    settings = _settings(candidate)
    block_k = settings["BLOCK_SIZE_K"]
    if kernels.block_k % block_k != 0:
        raise Unsupported(f"BLOCK_SIZE_K {block_k} does not divide the scale block {kernels.block_k}")
    if kernels.clamps_block_k and block_k < kernels.block_k:
        raise Unsupported(
            f"this SGLang release raises BLOCK_SIZE_K {block_k} to {kernels.block_k} when it reads its table"
        )
    split_k = settings.pop("SPLIT_K")
    swap_ab = settings.pop("SWAP_AB")
    function, constants, takes = kernels.plain, settings, kernels.plain_takes
    if split_k > 1 or swap_ab:
        if not kernels.tuned:
            raise Unsupported("the kernel at hand takes neither SPLIT_K nor SWAP_AB")
        function, takes = kernels.tuned, None
        constants = {**settings, "SPLIT_K": split_k, "SWAP_AB": swap_ab}
    if takes is None or "needs_masking" in takes:
        constants = {**constants, "needs_masking": problem.k % block_k != 0}
    scale_columns = -(-problem.k // kernels.block_k)
    scalars = {
        "M": problem.m,
        "N": problem.n,
        "K": problem.k,
        "group_n": kernels.block_n,
        "group_k": kernels.block_k,
        "stride_am": problem.k,
        "stride_ak": 1,
        "stride_bk": 1,
        "stride_bn": problem.k,
        "stride_cm": problem.n,
        "stride_cn": 1,
        "stride_As_m": scale_columns,
        "stride_As_k": 1,
        "stride_Bs_k": 1,
        "stride_Bs_n": scale_columns,
    }
    blocks = -(-problem.m // settings["BLOCK_SIZE_M"]) * -(-problem.n // settings["BLOCK_SIZE_N"])
    return Plan(
        problem=problem,
        function=function,
        constants=tuple(sorted(constants.items())),
        scalars=tuple(scalars.items()),
        grid=(blocks, split_k) if function == kernels.tuned and (split_k > 1 or swap_ab) else (blocks,),
        split_k=split_k,
        reduce=kernels.reduce if split_k > 1 else "",
        out_dtype="float32" if split_k > 1 else kernels.out_dtype,
    )


def _settings(candidate):
    """The candidate's settings, checked; SPLIT_K and SWAP_AB filled in."""
    if not isinstance(candidate, dict):
        raise Unsupported(f"a candidate is an object of settings, not {candidate!r}")
    settings = {"SPLIT_K": 1, "SWAP_AB": False, **candidate}
    unknown = sorted(set(settings) - set(META) - set(OPTIONS) - {"SPLIT_K", "SWAP_AB"})
    if unknown:
        raise Unsupported(f"unknown setting `{unknown[0]}`")
    missing = [name for name in META if name not in settings]
    if missing:
        raise Unsupported(f"the setting `{missing[0]}` is missing")
    settings["SWAP_AB"] = bool(settings["SWAP_AB"])
    for name, value in settings.items():
        if name != "SWAP_AB" and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise Unsupported(f"{name} {value!r} is not a whole number of 0 or more")
    for name in META[:3] + ("SPLIT_K",):
        if settings[name] < 1 or settings[name] & (settings[name] - 1):
            raise Unsupported(f"{name} {settings[name]} is not a power of two")
    if settings["GROUP_SIZE_M"] < 1:
        raise Unsupported("GROUP_SIZE_M 0 is not a positive number")
    return settings
