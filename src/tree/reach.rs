//! Whether callers really get the aiter path: nothing rebinds the names of its functions, and the dispatcher returns
//! no other function where aiter is on. And whether a switch affects both readers of the shape predicate.

use super::era::{self, Dispatch, Era};
use super::flow::{Arch, Flow, HandedOut, Rocm};
use super::force::{Plan, Step};
use super::package::{FP8, Package, TreeError};
use crate::pyedit::refusal::Refusal;
use crate::pyedit::source::Source;
use crate::pyedit::syntax::{self, Alias, Expr, ExprKind, Span, Stmt, StmtKind};

/// Conditions on NVIDIA's hardware and libraries, which are false on ROCm.
const NVIDIA: [&str; 6] = [
    "blackwell",
    "is_sm",
    "deep_gemm",
    "deepgemm",
    "flashinfer",
    "cutlass",
];

/// Refuses a tree whose dispatch leads elsewhere, or may.
pub(super) fn check<'a>(
    source: &'a Source,
    dispatch: &Dispatch<'a>,
    flow: &Flow<'a>,
) -> Result<(), Refusal> {
    let links = dispatch.chain.iter().copied();
    let predicate = syntax::function(source.body(), era::PREDICATE).map(|(_, found)| found);
    for function in links.chain([dispatch.leaf.1]).chain(predicate) {
        if let Some(span) = bound_after(source.body(), &function.name, function.name_span) {
            return Err(Refusal::new(
                source,
                span,
                format!("`{}` is bound again here", function.name),
                "what is called under this name is not, or may not be, the function that was read",
                "one `def` for each function of the dispatch, as every SGLang release has it",
            ));
        }
    }
    for link in &dispatch.chain {
        if link.decorated {
            return Err(Refusal::new(
                source,
                link.name_span,
                format!("a decorator is on `{}`", link.name),
                "what is called under this name is what the decorator makes of it",
                "a plain `def`, as SGLang 0.5.5 to 0.5.23 have it",
            ));
        }
    }
    let Some(dispatcher) = dispatch.chain.first() else {
        return Ok(());
    };
    let stray = flow
        .handed_out(dispatcher)?
        .into_iter()
        .find(|way| !leads_on(way));
    match stray {
        None => Ok(()),
        Some(way) => Err(Refusal::new(
            source,
            way.end,
            "the dispatcher may hand out something else than the aiter path here",
            "on ROCm with aiter on, nothing known keeps a layer from getting this",
            "the branches of `dispatch_w8a8_block_fp8_linear` in SGLang 0.5.5 to 0.5.23",
        )),
    }
}

/// Refuses a plan that changes the result of the shape predicate in a tree whose other reader, which lays weights out
/// when they are loaded, would not be affected.
pub fn both_readers(
    package: &Package,
    era: Era,
    plan: &Plan,
    (arch, rocm): (Arch, Option<Rocm>),
) -> Result<(), TreeError> {
    let asked = plan
        .steps
        .iter()
        .any(|step| matches!(step, Step::Predicate { .. } | Step::SetForceCk));
    let laid_out = era >= Era::E3 && arch == Arch::Gfx950 && rocm != Some(Rocm::Below72);
    if !asked || !laid_out {
        return Ok(());
    }
    let source = package.read(FP8)?;
    let mut import = None;
    let mut asks = false;
    syntax::walk(source.body(), &mut |stmt| match &stmt.kind {
        StmtKind::ImportFrom { module, names, .. } if module.ends_with("fp8_utils") => {
            let found = names.iter().find(|alias| alias.bound() == era::PREDICATE);
            import = found
                .filter(|alias| alias.name == era::PREDICATE)
                .or(import);
        }
        StmtKind::If(branches) => {
            asks |= branches.iter().any(|branch| {
                let not_asked = branch.test.as_ref().is_some_and(|test| match &test.kind {
                    ExprKind::Not(inner) => match &inner.kind {
                        ExprKind::Call { function, .. } => {
                            function.dotted().as_deref() == Some(era::PREDICATE)
                        }
                        _ => false,
                    },
                    _ => false,
                });
                let shuffles = |stmt: &Stmt| source.slice(stmt.span).contains("shuffle_weight(");
                not_asked && branch.body.iter().any(shuffles)
            });
        }
        _ => {}
    });
    let again = import.and_then(|alias| bound_after(source.body(), era::PREDICATE, alias.span));
    if import.is_some() && asks && again.is_none() {
        return Ok(());
    }
    let place = again.or_else(|| {
        let at = source.text().find("shuffle_weight(")?;
        Some(Span {
            start: at,
            end: at + "shuffle_weight".len(),
        })
    });
    Err(Refusal::new(
        &source,
        place.unwrap_or(Span::at(0)),
        format!("weights are not laid out by the answer of `{}` in fp8_utils", era::PREDICATE),
        "the weight would be laid out for another kernel than the one that runs: wrong numbers, and no error",
        "its import from fp8_utils, and an `if not` of it around `shuffle_weight`, as SGLang 0.5.11 to 0.5.23 have them",
    )
    .into())
}

/// Whether a path through the dispatcher ends in the aiter path, or cannot be taken by a block-FP8 layer on ROCm with
/// aiter on and its backend chosen, explicitly or automatically.
fn leads_on(way: &HandedOut<'_>) -> bool {
    let elsewhere = |text: &str, answer: bool| {
        let lower = text.to_ascii_lowercase();
        let nvidia = !lower.contains("not ") && NVIDIA.iter().any(|word| lower.contains(word));
        // Layers with blocks of a width other than 128 (0.5.21) are not relevant here.
        let other_blocks = lower.contains("weight_block_size[1] != 128");
        (answer && (nvidia || other_blocks)) || (!answer && text == "_use_aiter")
    };
    // `backend.is_auto()`, or `backend != "auto"` with the opposite outcome.
    let automatic = way
        .tests
        .iter()
        .filter(|(test, _)| test.text.contains("auto"))
        .map(|(test, answer)| *answer != test.text.contains("!="))
        .next_back();
    let other_backend = automatic == Some(false)
        && !way
            .tests
            .iter()
            .any(|(test, answer)| *answer && asks_for_aiter(&test.text));
    way.function
        .is_some_and(|function| function.name == era::LEAF)
        || other_backend
        || way
            .tests
            .iter()
            .any(|(test, answer)| elsewhere(&test.text, *answer))
}

/// Whether a condition tests if aiter was chosen explicitly: `backend.is_aiter()`, `backend == "aiter"`.
fn asks_for_aiter(text: &str) -> bool {
    text.contains("is_aiter(") || text.contains("\"aiter\"") || text.contains("'aiter'")
}

/// Where `name` is bound at module level after its definition at `definition`.
fn bound_after(body: &[Stmt], name: &str, definition: Span) -> Option<Span> {
    body.iter().find_map(|stmt| {
        let blocks = |blocks: &[&[Stmt]]| {
            blocks
                .iter()
                .find_map(|block| bound_after(block, name, definition))
        };
        let bound = |found: &str, span: Span| {
            (found == name && span.start > definition.start).then_some(span)
        };
        match &stmt.kind {
            StmtKind::Function(function) => bound(&function.name, function.name_span),
            StmtKind::Class { name: class, .. } => bound(class, stmt.span),
            StmtKind::Import(names) => names
                .iter()
                .find_map(|alias: &Alias| bound(alias.bound(), alias.span)),
            StmtKind::ImportFrom { names, .. } => names.iter().find_map(|alias| {
                let found = if alias.name == "*" {
                    name
                } else {
                    alias.bound()
                };
                bound(found, alias.span)
            }),
            StmtKind::Assign {
                targets,
                value: Some(_),
            } => targets
                .iter()
                .find_map(|target| assigned(target, name))
                .and_then(|span| bound(name, span)),
            StmtKind::If(branches) => branches.iter().find_map(|branch| blocks(&[&branch.body])),
            StmtKind::Try {
                body,
                handlers,
                rest,
            } => blocks(&[body, rest])
                .or_else(|| handlers.iter().find_map(|handler| blocks(&[handler]))),
            StmtKind::With { body, .. } | StmtKind::Loop { body, .. } => blocks(&[body]),
            _ => None,
        }
    })
}

fn assigned(target: &Expr, name: &str) -> Option<Span> {
    match &target.kind {
        ExprKind::Name(found) if found == name => Some(target.span),
        ExprKind::Sequence(items) => items.iter().find_map(|item| assigned(item, name)),
        _ => None,
    }
}
