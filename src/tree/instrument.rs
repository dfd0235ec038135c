//! `instrument --mode patch`: the playbook's hooks as edits of the tree.
//!
//! - Shapes: one line at the top of `aiter_w8a8_block_fp8_linear`, the one function that every block FP8 GEMM of 20
//!   releases passes through, whatever the input (2-D, 3-D, quantised tuple). Hooking the layer instead, as the
//!   playbook's snippet does, misses plain tensors, which are nearly all inputs on gfx942.
//! - Per-channel shapes: one line before each call of `gemm_a8w8_bpreshuffle` in the two linears that make it; it
//!   also logs which of them serves.
//! - Dispatch: one line in `Fp8LinearMethod.__init__`, after the implementation is chosen.
//!
//! Both read their variable at each call. They do nothing if it is not set or while `torch.compile` traces, and never
//! read tensor values, so graph capture is safe.

mod channel;

use serde::Serialize;

use super::era::{self, LEAF};
use super::package::{FP8, FP8_UTILS, FileEdit, Package, TreeError};
use crate::pyedit::edit::Patch;
use crate::pyedit::hooks::InsertionPoint;
use crate::pyedit::imports;
use crate::pyedit::refusal::Refusal;
use crate::pyedit::source::Source;
use crate::pyedit::syntax::{self, ExprKind, Function, Span, Stmt, StmtKind};

/// Enables the shape lines.
pub const DUMP: &str = "SGLANG_DUMP_AITER_FP8_GEMM_SHAPES";
/// Enables the dispatch lines.
pub const LOG_DISPATCH: &str = "SGLANG_LOG_FP8_BLOCK_GEMM_DISPATCH";

/// Our functions in the tree, by which an instrumented tree is recognised.
const DUMP_HOOK: &str = "_gemmtune_dump_shape";
const RANK_HOOK: &str = "_gemmtune_rank";
const DISPATCH_HOOK: &str = "_gemmtune_log_dispatch";

/// The record's text is the playbook's, so that its parsers can read it. A process whose rank cannot be determined
/// logs its pid instead: it is neither mistaken for rank 0 nor lost.
const RANK_FUNCTION: &str = r#"

# gemmtune instrument: begin (`gemmtune instrument undo` removes it)
def _gemmtune_rank():
    """The tensor-parallel rank, or None where it is unknown."""
    try:
        # This module has the getter in every release from 0.5.5 to 0.5.23.
        from sglang.srt.distributed.parallel_state import get_tensor_model_parallel_rank

        return get_tensor_model_parallel_rank()
    except Exception:
        return None
# gemmtune instrument: end
"#;

const DUMP_FUNCTION: &str = r#"

# gemmtune instrument: begin
def _gemmtune_dump_shape(x, weight, block_size=None):
    """Log M, N and K of one GEMM if SGLANG_DUMP_AITER_FP8_GEMM_SHAPES is set."""
    if torch.compiler.is_compiling():
        return
    if not get_bool_env_var("SGLANG_DUMP_AITER_FP8_GEMM_SHAPES"):
        return
    import logging
    import os

    rank = _gemmtune_rank()
    if rank not in (0, None):
        return
    x = x[0] if isinstance(x, tuple) else x
    m = 1
    for size in x.shape[:-1]:
        m *= int(size)
    if m == 0:
        return
    n, k = int(weight.shape[0]), int(weight.shape[1])
    logging.getLogger(__name__).warning(
        "[GEMM_shape_dump] aiter FP8 block GEMM path%s%s | x.shape=%s weight.shape=%s | "
        "M=%d N=%d K=%d (aiter gemm_a8w8_blockscale / bpreshuffle tune CSV) | csv_row: %s",
        f" rank=unknown pid={os.getpid()}" if rank is None else "",
        f" block_size={block_size}" if block_size is not None else "",
        tuple(x.shape),
        tuple(weight.shape),
        m,
        n,
        k,
        f"{m},{n},{k},{weight.dtype}",
    )
# gemmtune instrument: end
"#;

const DUMP_CALL: &str = "_gemmtune_dump_shape(input, weight, block_size)  # gemmtune instrument\n";

const DISPATCH_FUNCTION: &str = r#"

# gemmtune instrument: begin (`gemmtune instrument undo` removes it)
_gemmtune_logged = set()


def _gemmtune_log_dispatch(method):
    """Log once what serves block FP8 linears if SGLANG_LOG_FP8_BLOCK_GEMM_DISPATCH is set."""
    if not get_bool_env_var("SGLANG_LOG_FP8_BLOCK_GEMM_DISPATCH"):
        return
    fn = method.w8a8_block_fp8_linear
    if not method.block_quant or fn is None:
        return
    fn = getattr(fn, "func", fn)
    line = (
        "[Fp8LinearMethod] block_quant w8a8_block_fp8_linear="
        f"{getattr(fn, '__qualname__', repr(fn))} ({getattr(fn, '__module__', '?')})"
    )
    if line not in _gemmtune_logged:
        _gemmtune_logged.add(line)
        print_warning_once(line)
# gemmtune instrument: end
"#;

const DISPATCH_CALL: &str = "_gemmtune_log_dispatch(self)  # gemmtune instrument\n";

/// Whether one of the two hooks is in a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    Absent,
    Gemmtune,
    /// One was added by hand; it is left as it is.
    ByHand,
}

/// The hooks found in a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Instrumented {
    pub shapes: Presence,
    /// The shape lines of the per-channel linears; absent where the tree's linears never call aiter's GEMM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_channel: Option<Presence>,
    pub dispatch: Presence,
}

/// The edits that would be made.
#[derive(Clone, Debug)]
pub struct PatchPlan {
    /// The files to change.
    pub edits: Vec<FileEdit>,
    /// The hooks that are there now.
    pub now: Instrumented,
    /// Remarks for the reader.
    pub notes: Vec<String>,
}

/// Which hooks `package` has.
pub fn presence(package: &Package) -> Result<Instrumented, TreeError> {
    let utils = package.read(FP8_UTILS)?;
    let fp8 = package.read(FP8)?;
    Ok(Instrumented {
        shapes: shape_hook(&utils, &fp8)?.0,
        per_channel: channel::presence(&utils)?,
        dispatch: dispatch_hook(&fp8),
    })
}

/// Plans the edits; nothing is written. Hooks that are already there are not added again.
pub fn plan(package: &Package) -> Result<PatchPlan, TreeError> {
    let utils = package.read(FP8_UTILS)?;
    let fp8 = package.read(FP8)?;
    let (shapes, mut notes) = shape_hook(&utils, &fp8)?;
    let now = Instrumented {
        shapes,
        per_channel: channel::presence(&utils)?,
        dispatch: dispatch_hook(&fp8),
    };
    let mut edits = Vec::new();
    let mut patch = Patch::default();
    let shapes_added = now.shapes == Presence::Absent;
    if shapes_added {
        shape_patch(&utils, &mut patch)?;
    }
    if now.per_channel == Some(Presence::Absent) {
        channel::hook(&utils, &mut patch, shapes_added)?;
    }
    if !patch.is_empty()
        && let Some(edit) = imports::ensure(&utils, "sglang.srt.utils", "get_bool_env_var")?
    {
        patch.push(edit);
    }
    edits.extend(FileEdit::new(&utils, &patch)?);
    let mut patch = Patch::default();
    if now.dispatch == Presence::Absent {
        patch = dispatch_patch(&fp8)?;
    }
    for (module, name) in USED_BY_HAND {
        if let Some(edit) = missing_import(&fp8, module, name)? {
            patch.push(edit);
            notes.push(format!(
                "`{name}` is used in fp8.py and was imported nowhere: the import is added"
            ));
        }
    }
    edits.extend(FileEdit::new(&fp8, &patch)?);
    Ok(PatchPlan { edits, now, notes })
}

fn shape_patch(source: &Source, patch: &mut Patch) -> Result<(), TreeError> {
    let dispatch = era::dispatch(source)?;
    let (stmt, leaf) = dispatch.leaf;
    if !imports::binds(source, "torch") {
        return Err(no_torch(source).into());
    }
    for name in ["input", "weight", "block_size"] {
        if !leaf.params.iter().any(|param| param == name) {
            return Err(Refusal::new(
                source,
                leaf.name_span,
                format!("`{LEAF}` has no parameter `{name}`"),
                "the hook needs it",
                "the parameters input, weight, block_size, weight_scale, input_scale, bias",
            )
            .into());
        }
    }
    patch.push(InsertionPoint::top_of(source, leaf)?.insert(DUMP_CALL));
    let functions = format!("{RANK_FUNCTION}{DUMP_FUNCTION}");
    patch.push(InsertionPoint::after(source, stmt)?.insert(&functions));
    Ok(())
}

fn no_torch(source: &Source) -> Refusal {
    Refusal::new(
        source,
        Span::at(0),
        "this file does not import `torch` at its top level",
        "the hook needs it",
        "`import torch`, as every SGLang release has it",
    )
}

fn dispatch_patch(source: &Source) -> Result<Patch, TreeError> {
    let expected = "`self.w8a8_block_fp8_linear = …` and `self.block_quant = …` in \
                    `Fp8LinearMethod.__init__`, as SGLang 0.5.5 to 0.5.23 have them";
    let Some((class, body)) = syntax::class(source.body(), "Fp8LinearMethod") else {
        return Err(Refusal::new(
            source,
            Span::at(0),
            "no class `Fp8LinearMethod` in this file",
            "the dispatch line belongs into it",
            expected,
        )
        .into());
    };
    let Some((_, init)) = syntax::function(body, "__init__") else {
        return Err(Refusal::new(
            source,
            class.span,
            "`Fp8LinearMethod` has no `__init__`",
            "the dispatch line belongs into it",
            expected,
        )
        .into());
    };
    let after = ["self.w8a8_block_fp8_linear", "self.block_quant"]
        .into_iter()
        .map(|target| {
            init.body
                .iter()
                .rposition(|stmt| assigns(stmt, target))
                .ok_or_else(|| {
                    Refusal::new(
                        source,
                        init.name_span,
                        format!("`{target}` is not set here"),
                        "the dispatch line needs it",
                        expected,
                    )
                })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let last = after.into_iter().max().unwrap_or(0);
    let mut patch = Patch::default();
    for name in ["get_bool_env_var", "print_warning_once"] {
        if let Some(edit) = imports::ensure(source, "sglang.srt.utils", name)? {
            patch.push(edit);
        }
    }
    patch.push(InsertionPoint::after(source, &init.body[last])?.insert(DISPATCH_CALL));
    patch.push(InsertionPoint::after(source, class)?.insert(DISPATCH_FUNCTION));
    Ok(patch)
}

/// Whether `stmt`, or a statement inside it, assigns `target`.
fn assigns(stmt: &Stmt, target: &str) -> bool {
    let mut found = false;
    syntax::walk(std::slice::from_ref(stmt), &mut |inner| {
        if let StmtKind::Assign { targets, .. } = &inner.kind {
            found |= targets
                .iter()
                .any(|assigned| assigned.dotted().as_deref() == Some(target));
        }
    });
    found
}

/// Names that the playbook's hooks use but `fp8.py` may not import: the leaf, with which they compare (up to 0.5.10),
/// and `prod` (no release). Either causes a NameError when the first layer is built, or called.
const USED_BY_HAND: [(&str, &str); 2] = [
    ("sglang.srt.layers.quantization.fp8_utils", LEAF),
    ("math", "prod"),
];

fn missing_import(
    source: &Source,
    module: &str,
    name: &str,
) -> Result<Option<crate::pyedit::edit::Edit>, TreeError> {
    let mut used = false;
    let mut bound = false;
    syntax::walk(source.body(), &mut |stmt| match &stmt.kind {
        StmtKind::Function(function) => {
            let plain = |at: usize| !source.text()[..at].ends_with('.');
            let mut mentions = function.mentions.iter();
            used |= mentions.any(|mention| mention.name == name && plain(mention.span.start));
        }
        StmtKind::ImportFrom { names, .. } => {
            bound |= names.iter().any(|alias| alias.bound() == name);
        }
        StmtKind::Assign { targets, .. } => {
            bound |= targets
                .iter()
                .any(|target| target.dotted().as_deref() == Some(name));
        }
        _ => {}
    });
    if !used || bound {
        return Ok(None);
    }
    Ok(imports::ensure(source, module, name)?)
}

fn dispatch_hook(fp8: &Source) -> Presence {
    if syntax::function(fp8.body(), DISPATCH_HOOK).is_some() {
        Presence::Gemmtune
    } else if spoken(fp8, LOG_DISPATCH).next().is_some() {
        Presence::ByHand
    } else {
        Presence::Absent
    }
}

/// Where `word` occurs in the text outside comments.
fn spoken<'a>(source: &'a Source, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    source
        .text()
        .match_indices(word)
        .map(|(at, _)| at)
        .filter(|at| !source.in_comment(*at))
}

/// Every function of a file, methods included, with its statement.
fn functions(source: &Source) -> Vec<(&Stmt, &Function)> {
    let mut found = Vec::new();
    syntax::walk(source.body(), &mut |stmt| {
        if let StmtKind::Function(function) = &stmt.kind {
            found.push((stmt, function));
        }
    });
    found
}

/// Whether a shape hook is there. One added by hand counts if it sees every GEMM; one that is defined but never
/// called has no effect; one that sees only quantised tuples is refused, since adding ours would count those GEMMs
/// twice and leaving it alone would miss nearly all others.
fn shape_hook(utils: &Source, fp8: &Source) -> Result<(Presence, Vec<String>), Refusal> {
    if syntax::function(utils.body(), DUMP_HOOK).is_some() {
        return Ok((Presence::Gemmtune, Vec::new()));
    }
    let mut notes = Vec::new();
    let mut presence = Presence::Absent;
    for source in [utils, fp8] {
        for at in spoken(source, DUMP) {
            let holder = functions(source)
                .into_iter()
                .filter(|(stmt, _)| stmt.span.range().contains(&at))
                .min_by_key(|(stmt, _)| stmt.span.end - stmt.span.start);
            // At module level it only names the variable.
            let Some((_, holder)) = holder else { continue };
            let line = source.line_number(at);
            let file = source.path();
            let calls = calls(&holder.name, utils, fp8);
            let inline = matches!(holder.name.as_str(), LEAF | "apply");
            if calls.is_empty() && !inline {
                notes.push(format!(
                    "`{}` at {file}:{line} is a shape hook that nothing calls: it is left alone",
                    holder.name
                ));
                continue;
            }
            let sees_all = holder.name == LEAF
                || calls.iter().any(|call| call.function == LEAF)
                || calls
                    .iter()
                    .any(|call| !call.tuples_only && !call.first_of_tensor)
                || (inline && calls.is_empty());
            if let Some(call) = calls
                .iter()
                .find(|call| !call.tuples_only && call.first_of_tensor)
            {
                return Err(Refusal::new(
                    call.source,
                    call.span,
                    "a shape hook by hand that logs wrong shapes",
                    "`x[0]` of a plain tensor drops its first axis: M becomes the hidden size",
                    "no hook at all (gemmtune adds one that is right), or `x[0]` only for tuples",
                ));
            }
            if !sees_all {
                let call = &calls[0];
                return Err(Refusal::new(
                    call.source,
                    call.span,
                    "a shape hook by hand that sees only quantised tuples",
                    "plain tensors pass this by, which on gfx942 are nearly all",
                    "no hook at all (gemmtune adds one that sees every GEMM), or a call for both \
                     kinds of input",
                ));
            }
            presence = Presence::ByHand;
            notes.push(format!(
                "shapes are logged by hand at {file}:{line}: no second hook is added"
            ));
        }
    }
    notes.sort();
    notes.dedup();
    Ok((presence, notes))
}

struct Call<'a> {
    source: &'a Source,
    span: Span,
    function: String,
    /// Whether it is under an `if isinstance(…, tuple)`.
    tuples_only: bool,
    /// Whether the argument is `x[0]`.
    first_of_tensor: bool,
}

/// Calls of `name` in both files.
fn calls<'a>(name: &str, utils: &'a Source, fp8: &'a Source) -> Vec<Call<'a>> {
    let mut found: Vec<Call<'a>> = Vec::new();
    for source in [utils, fp8] {
        for (stmt, function) in functions(source) {
            for mention in &function.mentions {
                if mention.name == name && mention.called {
                    found.push(Call {
                        source,
                        span: mention.span,
                        function: function.name.clone(),
                        tuples_only: under_tuple_test(stmt, mention.span),
                        first_of_tensor: first_argument(source, mention.span).ends_with("x[0]"),
                    });
                }
            }
        }
    }
    found
}

/// The text of the first argument of the call of the name at `span`, without spaces.
fn first_argument(source: &Source, span: Span) -> String {
    source.text()[span.end..]
        .chars()
        .skip(1)
        .take_while(|c| !matches!(c, ',' | ')'))
        .filter(|c| !c.is_whitespace())
        .collect()
}

fn under_tuple_test(stmt: &Stmt, call: Span) -> bool {
    let mut under = false;
    syntax::walk(std::slice::from_ref(stmt), &mut |inner| {
        let StmtKind::If(branches) = &inner.kind else {
            return;
        };
        for branch in branches {
            let holds = branch.body.iter().any(|stmt| stmt.span.contains(call));
            let tests_tuple = branch.test.as_ref().is_some_and(|test| match &test.kind {
                ExprKind::Call { function, args, .. } => {
                    function.dotted().as_deref() == Some("isinstance")
                        && args
                            .iter()
                            .any(|argument| argument.dotted().as_deref() == Some("tuple"))
                }
                _ => false,
            });
            under |= holds && tests_tuple;
        }
    });
    under
}
