//! The hook of the per-channel linears: one line before each call of aiter's GEMM, which logs its shape and, once, the linear
//! that serves.

use super::{Presence, RANK_FUNCTION, RANK_HOOK, no_torch, spoken};
use crate::pyedit::edit::Patch;
use crate::pyedit::hooks::InsertionPoint;
use crate::pyedit::imports;
use crate::pyedit::refusal::Refusal;
use crate::pyedit::source::Source;
use crate::pyedit::syntax::{self, Span, StmtKind};
use crate::tree::channel::{self, LINEARS};
use crate::tree::package::TreeError;

/// Name of our function in the tree.
const HOOK: &str = "_gemmtune_dump_channel";

/// `gemm` may be one of SGLang's own kernels, which no aiter table serves.
const FUNCTION: &str = r#"

# gemmtune instrument: begin (`gemmtune instrument undo` removes it)
_gemmtune_channel_logged = set()


def _gemmtune_dump_channel(linear, gemm, x, weight):
    """Log M, N and K of one per-channel GEMM, and once the linear it is for, as the two variables ask."""
    if torch.compiler.is_compiling() or gemm is not aiter.gemm_a8w8_bpreshuffle:
        return
    import logging
    import os

    log = logging.getLogger(__name__).warning
    if linear not in _gemmtune_channel_logged and get_bool_env_var("SGLANG_LOG_FP8_BLOCK_GEMM_DISPATCH"):
        _gemmtune_channel_logged.add(linear)
        log("[Fp8LinearMethod] per_channel fp8_linear=%s (%s)", linear, __name__)
    if not get_bool_env_var("SGLANG_DUMP_AITER_FP8_GEMM_SHAPES"):
        return
    rank = _gemmtune_rank()
    if rank not in (0, None):
        return
    m = 1
    for size in x.shape[:-1]:
        m *= int(size)
    if m == 0:
        return
    n, k = int(weight.shape[0]), int(weight.shape[1])
    log(
        "[GEMM_shape_dump] op=gemm_a8w8_bpreshuffle aiter FP8 per-channel GEMM path%s | x.shape=%s weight.shape=%s | "
        "M=%d N=%d K=%d (gemm_a8w8_bpreshuffle tune CSV) | csv_row: %s",
        f" rank=unknown pid={os.getpid()}" if rank is None else "",
        tuple(x.shape),
        tuple(weight.shape),
        m,
        n,
        k,
        f"{m},{n},{k},{weight.dtype}",
    )
# gemmtune instrument: end
"#;

/// Whether the hook is in `fp8_utils.py`; `None` where its linears never call the GEMM.
pub(super) fn presence(utils: &Source) -> Result<Option<Presence>, Refusal> {
    if syntax::function(utils.body(), HOOK).is_some() {
        return Ok(Some(Presence::Gemmtune));
    }
    if channel::calls(utils)?.is_empty() {
        return Ok(None);
    }
    let by_hand = LINEARS.iter().any(|linear| {
        let Some((stmt, _)) = syntax::function(utils.body(), linear) else {
            return false;
        };
        spoken(utils, super::DUMP).any(|at| stmt.span.range().contains(&at))
    });
    Ok(Some(if by_hand {
        Presence::ByHand
    } else {
        Presence::Absent
    }))
}

/// Adds the hook to `patch`, which already has the one of the block-FP8 leaf if that is added.
pub(super) fn hook(
    source: &Source,
    patch: &mut Patch,
    rank_is_added: bool,
) -> Result<(), TreeError> {
    let calls = channel::calls(source)?;
    let Some((last, _)) = LINEARS
        .iter()
        .rev()
        .filter(|linear| calls.iter().any(|call| call.linear == **linear))
        .find_map(|linear| syntax::function(source.body(), linear))
    else {
        return Ok(());
    };
    if !imports::binds(source, "torch") {
        return Err(no_torch(source).into());
    }
    let mut has_aiter = false;
    syntax::walk(source.body(), &mut |stmt| {
        if let StmtKind::Import(names) = &stmt.kind {
            has_aiter |= names.iter().any(|alias| alias.bound() == "aiter");
        }
    });
    if !has_aiter {
        return Err(Refusal::new(
            source,
            Span::at(0),
            "this file does not import `aiter`",
            "the hook tells aiter's GEMM from SGLang's own by it",
            "`import aiter` under `if _use_aiter:`, as SGLang 0.5.5 to 0.5.23 have it",
        )
        .into());
    }
    for call in &calls {
        let line = format!(
            "{HOOK}(\"{}\", {}, {}, {})  # gemmtune instrument\n",
            call.linear, call.callee, call.activation, call.weight
        );
        patch.push(InsertionPoint::before(source, call.stmt)?.insert(&line));
    }
    let rank = if rank_is_added || syntax::function(source.body(), RANK_HOOK).is_some() {
        ""
    } else {
        RANK_FUNCTION
    };
    let text = format!("{rank}{FUNCTION}");
    patch.push(InsertionPoint::after(source, last)?.insert(&text));
    Ok(())
}
