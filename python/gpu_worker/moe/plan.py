"""What one candidate means for one GEMM of a fused MoE: which grid, which arguments. Pure; no torch, no Triton.

The kernel's parameters differ between releases (46 in 0.5.6, 52 in 0.5.16), so they are bound by name: those of a
release that this worker does not know by what leaves them without effect.
"""

import functools
import json
from dataclasses import dataclass

from gpu_worker.moe.problem import DOWN, MoeProblem
from gpu_worker.plan import META, OPTIONS, Unsupported

POINTERS = (
    "a_ptr",
    "b_ptr",
    "c_ptr",
    "a_scale_ptr",
    "b_scale_ptr",
    "topk_weights_ptr",
    "sorted_token_ids_ptr",
    "expert_ids_ptr",
    "num_tokens_post_padded_ptr",
)

NEUTRAL = {
    # Without tensor descriptors, bias or LoRA mask.
    "a_desc": None,
    "b_desc": None,
    "bias_ptr": None,
    "add_mask_ptr": None,
    "stride_bias_e": 0,
    "stride_bias_n": 0,
    # FP8 with block scales, nothing else.
    "use_fp8_w8a8": True,
    "use_int8_w8a8": False,
    "use_int8_w8a16": False,
    "per_channel_quant": False,
    # Features of newer releases, off as in the plain path.
    "c_sorted": False,
    "filter_expert": False,
    "FUSE_SUM_ALL_REDUCE": False,
    "FUSE_ADD_TO_OUTPUT": False,
    "MASK_OUTPUT": False,
    "LORA_PRESERVE_BASE": False,
    "FUSE_SWIGLU": False,
    "USE_GDC": False,
    "GDC_EARLY": False,
    "A_OUTPUT_SLICES": 1,
    "A_OUTPUT_SLICE_WIDTH": 0,
    "A_OUTPUT_SLICE_K": 0,
}
"""Parameters that have no effect on the plain path, with the value SGLang's own launcher gives them there."""


@dataclass(frozen=True)
class Target:
    """What a plan is made for; plain data, so that a compile child can be told."""

    path: str
    """The lifted kernel's module."""
    parameters: tuple
    """Names of the kernel's parameters in order."""
    arch: str
    release: tuple
    """SGLang's version as numbers: (0, 5, 16)."""
    block_n: int = 128
    block_k: int = 128

    @classmethod
    def read(cls, fields):
        """What `dataclasses.asdict` and JSON made of a target."""
        return cls(**{**fields, "parameters": tuple(fields["parameters"]), "release": tuple(fields["release"])})


@dataclass(frozen=True)
class MoePlan:
    """One candidate for one GEMM, ready to be compiled or launched."""

    problem: MoeProblem
    gemm: str
    block_m: int
    constants: tuple
    """Constexprs and compiler options, as (name, value) pairs."""
    scalars: tuple
    """Runtime integers, as (name, value) pairs."""
    grid: tuple

    @functools.cached_property
    def key(self):
        """Equal for two plans that run the same compiled code (see `gpu_worker.plan.Plan.key`)."""
        classes = [(name, "1" if value == 1 else "16" if value % 16 == 0 else "") for name, value in self.scalars]
        return json.dumps([self.constants, classes, self.problem.dtype], default=str)


def rows_allocated(problem, block_m, release):
    """Length of the sorted routing that SGLang allocates, which is what the grid covers.

    `moe_align_block_size`: every expert may be padded by BLOCK_SIZE_M - 1 rows; from 0.5.9 on no more blocks than pairs
    where there are fewer pairs than experts; from 0.5.22 on rounded up to fours.
    """
    rows = problem.pairs + (problem.experts + 1) * (block_m - 1)
    if release >= (0, 5, 9) and problem.pairs < problem.experts + 1:
        rows = problem.pairs * block_m
    return -(-rows // 4) * 4 if release >= (0, 5, 22) else rows


def swaps_operands(target, settings):
    """Whether the runtime computes the transposed product: `should_enable_swap_ab` of 0.5.8.post1 and later."""
    small = settings["BLOCK_SIZE_M"] < 64 and settings["BLOCK_SIZE_N"] >= 64
    return "swap_ab" in target.parameters and target.arch == "sm_90" and small


def plan(target, problem, gemm, candidate):
    """The plan of `candidate` for one GEMM of `problem`, launched as SGLang's `invoke_fused_moe_kernel` would."""
    settings = checked(candidate, target.block_k)
    _, n, k, divisor = problem.gemm(gemm)
    block_m = settings["BLOCK_SIZE_M"]
    rows = rows_allocated(problem, block_m, target.release)
    columns, blocks_n = -(-k // target.block_k), -(-n // target.block_n)
    scalars = {
        "N": n,
        "K": k,
        "EM": rows,
        "num_valid_tokens": problem.pairs,
        "stride_am": k,
        "stride_ak": 1,
        "stride_be": n * k,
        "stride_bk": 1,
        "stride_bn": k,
        "stride_cm": n,
        "stride_cn": 1,
        "stride_asm": columns,
        "stride_ask": 1,
        "stride_bse": blocks_n * columns,
        "stride_bsk": 1,
        "stride_bsn": columns,
    }
    constants = {
        **settings,
        "group_n": target.block_n,
        "group_k": target.block_k,
        "MUL_ROUTED_WEIGHT": gemm == DOWN,
        "top_k": divisor,
        "even_Ks": k % settings["BLOCK_SIZE_K"] == 0,
        "swap_ab": swaps_operands(target, settings),
        # Read only by a fused sum, but a specialisation all the same: SGLang hands it to the down projection (0.5.10 on).
        "ROUTER_TOPK": problem.topk if gemm == DOWN else 1,
    }
    for name in target.parameters:
        if name in POINTERS or name in scalars or name in constants or name == "compute_type":
            continue
        if name not in NEUTRAL:
            raise Unsupported(f"the kernel at hand has a parameter `{name}` that this version does not know")
        (scalars if name.startswith("stride_") else constants)[name] = NEUTRAL[name]
    blocks = -(-rows // block_m) * -(-n // settings["BLOCK_SIZE_N"])
    taken = set(target.parameters) | set(OPTIONS)
    return MoePlan(
        problem=problem,
        gemm=gemm,
        block_m=block_m,
        constants=tuple(sorted((name, value) for name, value in constants.items() if name in taken)),
        scalars=tuple((name, value) for name, value in scalars.items() if name in taken),
        grid=(blocks,),
    )


def checked(candidate, block_k):
    """The candidate's settings; refuses what the kernel would run with wrong numbers or not at all.

    No SGLang release checks BLOCK_SIZE_K: above the scale block one scale serves two blocks, at full speed.
    """
    settings = dict(candidate)
    unknown = sorted(set(settings) - set(META) - set(OPTIONS))
    if unknown:
        raise Unsupported(f"unknown setting `{unknown[0]}`")
    for name in META:
        value = settings.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise Unsupported(f"{name} {value!r} is not a whole number above 0")
        if name != "GROUP_SIZE_M" and value & (value - 1):
            raise Unsupported(f"{name} {value} is not a power of two")
    if block_k % settings["BLOCK_SIZE_K"]:
        raise Unsupported(
            f"BLOCK_SIZE_K {settings['BLOCK_SIZE_K']} does not divide the scale block {block_k}: the numbers would be wrong"
        )
    return settings
