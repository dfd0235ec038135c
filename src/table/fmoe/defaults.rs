//! What runs if no row is found: aiter's own choice by sizes (`get_2stage_cfgs`, after a miss).

use super::rules::Release;
use crate::problem::dtype::fp8_of as fp8_dtype;
use crate::problem::op::fused_moe_aiter::Problem;

/// The kernel parameters that aiter chooses itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Default {
    /// Whether one assembly kernel does both GEMMs.
    pub one_stage: bool,
    /// Rows of a tile, by which tokens are sorted.
    pub block_m: u32,
    /// Split of the first GEMM's K; 0 for none.
    pub ksplit: u32,
}

/// Rows of a tile of the one-stage kernels (`BLOCK_SIZE_M`).
const ONE_STAGE_BLOCK: u32 = 32;

/// The choice of `release` for `token`, which is rounded already, and `problem`, whose `topk` is that of the key;
/// `None` where aiter raises `KeyError` because it has no list for the architecture.
pub(super) fn choose(
    release: Release,
    token: u32,
    problem: &Problem,
    gfx: &str,
    cu_num: u32,
) -> Option<Default> {
    if !matches!(gfx, "gfx942" | "gfx950") && release < Release::V19Post1 {
        return None;
    }
    let blockscale = problem.q_type == "per_1x128";
    let one_stage =
        has_one_stage(release, problem, gfx) && prefers_one_stage(release, token, problem, gfx);
    let block_m = match (one_stage, blockscale) {
        (true, _) => ONE_STAGE_BLOCK,
        (false, true) if release == Release::V7 => 64,
        (false, true) if token > 32 => 64,
        // v0.1.9 sends weights in another architecture's FP8 to an assembly stage that has no smaller tile.
        (false, true) if release == Release::V9 && problem.q_dtype_w != fp8_dtype(gfx) => 32,
        (false, true) => 16,
        (false, false) => tile(token, problem, cu_num),
    };
    let splits = match release {
        Release::V7 => false,
        Release::V9 => blockscale,
        _ => blockscale || problem.q_type == "per_1x32",
    };
    let ksplit = if splits && !one_stage {
        split(release, token, problem, cu_num)
    } else {
        0
    };
    Some(Default {
        one_stage,
        block_m,
        ksplit,
    })
}

/// Whether the architecture has a one-stage kernel for the combination (`fused_moe_1stage_dict`).
fn has_one_stage(release: Release, problem: &Problem, gfx: &str) -> bool {
    let fp8 = fp8_dtype(gfx);
    let silu = problem.activation == "Silu";
    let gelu = problem.activation == "Gelu";
    let bf16 = problem.dtype == "torch.bfloat16";
    let types = (problem.q_dtype_a.as_str(), problem.q_dtype_w.as_str());
    let both = |dtype: &str| types == (dtype, dtype);
    let weighted = problem.doweight_stage1;
    // The first list had no such column; it was used only where no weight is applied to the input.
    if release == Release::V7 && weighted {
        return false;
    }
    let since = |first: Release| release >= first;
    match (gfx, problem.q_type.as_str(), problem.use_g1u1, weighted) {
        ("gfx942", "No", false, false) => {
            silu && matches!(problem.dtype.as_str(), "torch.bfloat16" | "torch.float16")
                && both(&problem.dtype)
        }
        ("gfx942" | "gfx950", "per_1x32", true, false) => {
            silu && bf16 && both("torch.float4_e2m1fn_x2")
        }
        ("gfx942", "per_Token", true, false) => {
            bf16 && ((silu || gelu) && (both("torch.int8") || both(fp8))
                || gelu && types == (fp8, "torch.int4"))
        }
        ("gfx942", "per_Token", false, false) => bf16 && (silu || gelu) && both("torch.int8"),
        ("gfx950", "per_1x128", true, false) => {
            bf16 && both(fp8) && (silu || gelu && since(Release::V12))
        }
        ("gfx950", "per_Token", false, false) => {
            silu && both("torch.bfloat16") && bf16 && since(Release::V9)
        }
        ("gfx950", "per_Token", true, false) => {
            (silu || gelu) && bf16 && both(fp8) && since(Release::V11)
        }
        ("gfx942", "per_1x128", true, false) | ("gfx950", "per_Token", true, true) => {
            silu && bf16 && both(fp8)
        }
        _ => false,
    }
}

/// Whether the one-stage kernel is used, if there is one.
fn prefers_one_stage(release: Release, token: u32, problem: &Problem, gfx: &str) -> bool {
    use Release as R;
    let weight = problem.q_dtype_w.as_str();
    let is_fp8 = weight == fp8_dtype(gfx);
    let whole = |step: u32| problem.inter_dim.is_multiple_of(step);
    match problem.q_type.as_str() {
        "per_1x128" => match release {
            R::V7 => whole(256),
            R::V10 => false,
            R::V9 | R::V9Post1 | R::V10Post2 | R::V11 => token > 32 && whole(256),
            _ => token > 32 && whole(128),
        },
        "per_Token" if weight == "torch.int8" => token > 32,
        "per_Token" if is_fp8 => match release {
            R::V7 => token > 32,
            R::V11 if gfx == "gfx950" && !problem.doweight_stage1 => problem.inter_dim == 192,
            R::V9 | R::V9Post1 | R::V10 | R::V10Post2 | R::V11 => token > 16,
            _ => token > 16 || !whole(128),
        },
        "per_1x32" => false,
        _ => token < 256,
    }
}

/// The tile with which the fewest compute units idle in the last round (`get_block_size_M`).
fn tile(token: u32, problem: &Problem, cu_num: u32) -> u32 {
    let units = u64::from(cu_num.max(1));
    let columns = u64::from(problem.inter_dim).div_ceil(128);
    let rounds = |rows: u32| {
        // Python's integers may go below 0 here; a token has at least one expert, so they do not.
        let tokens = (u64::from(token) * u64::from(problem.topk)
            + u64::from(problem.expert) * u64::from(rows))
        .saturating_sub(u64::from(problem.topk));
        let rows = u64::from(rows);
        let groups = (columns * (tokens + rows - 1)) / rows;
        (groups.div_ceil(units), units - groups % units)
    };
    let mut tiles = [32, 64, 128];
    tiles.sort_by_key(|rows| rounds(*rows));
    tiles[0]
}

/// The largest split with which every compute unit has work (`get_ksplit`).
fn split(release: Release, token: u32, problem: &Problem, cu_num: u32) -> u32 {
    let pairs = u64::from(token) * u64::from(problem.topk);
    if pairs > u64::from(problem.expert) {
        return 0;
    }
    let inter = u64::from(problem.inter_dim) * if release == Release::V9 { 2 } else { 1 };
    let groups = inter.div_ceil(128) * pairs;
    let units = u64::from(cu_num);
    if groups >= units || groups == 0 {
        return 0;
    }
    let model = u64::from(problem.model_dim);
    (2..=units.div_ceil(groups))
        .rev()
        .find(|split| model.is_multiple_of(*split) && (model / split).is_multiple_of(256))
        .map_or(0, |split| u32::try_from(split).unwrap_or(0))
}
