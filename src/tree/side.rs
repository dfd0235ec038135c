//! FP8 GEMMs that do not pass through the main exit of the block FP8 path.

use serde::Serialize;

use super::package::{FP8, Package};
use crate::pyedit::source::Source;
use crate::pyedit::syntax::{self, Span, StmtKind};

/// Where the compressed-tensors scheme lives, in every release.
const COMPRESSED_TENSORS: [&str; 2] = [
    "srt/layers/quantization/compressed_tensors/schemes/compressed_tensors_w8a8_fp8.py",
    "srt/layers/quantization/compressed_tensors/compressed_tensors_w8a8_fp8.py",
];

/// Everything beside the main path.
#[derive(Clone, Debug, Serialize)]
pub struct Sides {
    /// Early exits of the block FP8 path: its GEMMs never reach the main kernel.
    pub side_exits: Vec<Side>,
    /// Users of `aiter.gemm_a8w8_bpreshuffle`: per-token and per-channel FP8, another table.
    pub per_token: Vec<Side>,
    pub compressed_tensors: Vec<Side>,
    /// Routed experts: aiter's fused MoE, another table.
    pub moe: Vec<Side>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Side {
    /// The file, relative to the package.
    pub file: String,
    /// The line number, from 1.
    pub line: usize,
    /// The function or condition there.
    pub what: String,
}

/// Collects them; `exits` are the early `return` statements of the leaf.
pub(super) fn sides(package: &Package, source: &Source, exits: &[Span]) -> Sides {
    let relative = super::package::FP8_UTILS;
    let line = |source: &Source, span: Span| source.line_number(span.start);
    let per_token = source
        .body()
        .iter()
        .filter_map(|stmt| match &stmt.kind {
            StmtKind::Function(function) => {
                let mention = function.mention("gemm_a8w8_bpreshuffle")?;
                Some(Side {
                    file: relative.to_owned(),
                    line: line(source, mention.span),
                    what: format!("`{}` calls gemm_a8w8_bpreshuffle", function.name),
                })
            }
            _ => None,
        })
        .collect();
    Sides {
        side_exits: exits
            .iter()
            .map(|exit| Side {
                file: relative.to_owned(),
                line: line(source, *exit),
                what: condition(source, *exit),
            })
            .collect(),
        per_token,
        compressed_tensors: compressed_tensors(package),
        moe: moe(package),
    }
}

/// The test of the innermost `if` around a statement.
fn condition(source: &Source, stmt: Span) -> String {
    let mut found: Option<(Span, String)> = None;
    syntax::walk(source.body(), &mut |outer| {
        let StmtKind::If(branches) = &outer.kind else {
            return;
        };
        for branch in branches {
            let inside =
                branch
                    .body
                    .first()
                    .zip(branch.body.last())
                    .is_some_and(|(first, last)| {
                        Span {
                            start: first.span.start,
                            end: last.span.end,
                        }
                        .contains(stmt)
                    });
            if let (true, Some(test)) = (inside, &branch.test) {
                let text = source.slice(test.span);
                let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
                if found
                    .as_ref()
                    .is_none_or(|(span, _)| span.contains(outer.span))
                {
                    found = Some((outer.span, text));
                }
            }
        }
    });
    let returned = source
        .slice(stmt)
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    match found {
        Some((_, test)) => format!("`{returned}` if `{test}`"),
        None => format!("`{returned}`"),
    }
}

fn compressed_tensors(package: &Package) -> Vec<Side> {
    let Some((file, source)) = package.read_any(&COMPRESSED_TENSORS) else {
        return Vec::new();
    };
    let mut sides: Vec<Side> = Vec::new();
    syntax::walk(source.body(), &mut |stmt| {
        let StmtKind::Function(function) = &stmt.kind else {
            return;
        };
        for (name, what) in [
            (
                super::era::DISPATCHER,
                "block strategy takes the same path, and its weight is never shuffled here: on \
                 gfx95x with ROCm 7.2 check the numbers",
            ),
            (
                "apply_fp8_ptpc_linear",
                "channel strategy runs gemm_a8w8_bpreshuffle",
            ),
        ] {
            if let Some(mention) = function
                .mentions
                .iter()
                .find(|m| m.name == name && m.called)
            {
                sides.push(Side {
                    file: file.clone(),
                    line: source.line_number(mention.span.start),
                    what: format!("`{}`: {what}", function.name),
                });
            }
        }
    });
    sides
}

fn moe(package: &Package) -> Vec<Side> {
    let Ok(source) = package.read(FP8) else {
        return Vec::new();
    };
    let mut sides = Vec::new();
    syntax::walk(source.body(), &mut |stmt| {
        if let StmtKind::ImportFrom { module, names, .. } = &stmt.kind {
            let fused = module == "aiter.fused_moe"
                || names.iter().any(|alias| alias.name == "AiterMoeQuantInfo");
            if fused {
                sides.push(Side {
                    file: FP8.to_owned(),
                    line: source.line_number(stmt.span.start),
                    what: "routed experts run aiter's fused MoE".to_owned(),
                });
            }
        }
    });
    sides
}
