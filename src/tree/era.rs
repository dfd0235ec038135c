//! Which group of releases a tree belongs to, decided by its structure and never by its version.

use std::collections::BTreeMap;

use super::flow::Kernel;
use crate::problem::Op;
use crate::pyedit::refusal::Refusal;
use crate::pyedit::source::Source;
use crate::pyedit::syntax::{self, Comparison, ExprKind, Function, Mention, Span, Stmt, StmtKind};

/// The function that every block FP8 linear layer ends in when aiter is on.
pub const LEAF: &str = Op::UNSAID.facts().linears[0];
/// The function that returns it.
pub const DISPATCHER: &str = "dispatch_w8a8_block_fp8_linear";
/// The shape predicate that chooses Triton on gfx95x.
pub const PREDICATE: &str = "use_aiter_triton_gemm_w8a8_tuned_gfx950";

/// A group of SGLang releases with one dispatch structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub enum Era {
    /// 0.5.5: CK everywhere. Also a later tree whose import was changed by hand.
    E0,
    /// 0.5.6 to 0.5.9: Triton everywhere.
    E1,
    /// 0.5.10: CK on gfx95x except for listed shapes.
    E2,
    /// 0.5.11, 0.5.12: bpreshuffle on gfx95x with ROCm 7.2, no plain CK.
    E3,
    /// 0.5.13: plain CK is back on gfx95x below ROCm 7.2.
    E4,
    /// 0.5.14: `set_force_ck_w8a8`.
    E5,
    /// 0.5.15 to 0.5.21: a table of the largest safe M.
    E6,
    /// 0.5.22: an environment switch on gfx942.
    E7,
    /// 0.5.23: E7 with two more exits before the dispatch.
    #[serde(rename = "E7b")]
    E7b,
}

impl Era {
    /// The name used in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::E0 => "E0",
            Self::E1 => "E1",
            Self::E2 => "E2",
            Self::E3 => "E3",
            Self::E4 => "E4",
            Self::E5 => "E5",
            Self::E6 => "E6",
            Self::E7 => "E7",
            Self::E7b => "E7b",
        }
    }
}

/// A kernel name that the leaf uses, and the import that binds it.
#[derive(Clone, Debug)]
pub struct Binding {
    /// The name in the leaf.
    pub alias: String,
    pub kernel: Kernel,
    pub span: Span,
}

/// The dispatch of one tree.
#[derive(Clone, Debug)]
pub struct Dispatch<'a> {
    pub era: Era,
    /// The era the tree had before its import was changed by hand.
    pub patched_from: Option<Era>,
    /// The leaf function and its statement.
    pub leaf: (&'a Stmt, &'a Function),
    /// The kernel names the leaf uses, by the last import of each.
    pub bindings: Vec<Binding>,
    /// The functions between the dispatcher and the leaf, dispatcher first.
    pub chain: Vec<&'a Function>,
}

impl Dispatch<'_> {
    /// The name under which the leaf calls `kernel`.
    pub fn alias(&self, kernel: Kernel) -> Option<&str> {
        self.bindings
            .iter()
            .find(|binding| binding.kernel == kernel)
            .map(|binding| binding.alias.as_str())
    }

    /// The chain as one line: `dispatcher > a | b > leaf`.
    pub fn chain_text(&self) -> String {
        let names: Vec<&str> = self.chain.iter().map(|link| link.name.as_str()).collect();
        match names.as_slice() {
            [] => LEAF.to_owned(),
            [dispatcher] => format!("{dispatcher} > {LEAF}"),
            [dispatcher, between @ ..] => {
                format!("{dispatcher} > {} > {LEAF}", between.join(" | "))
            }
        }
    }

    /// Which kernels the leaf imports: `ck`, `triton` or `both`.
    pub fn import_kind(&self) -> &'static str {
        let triton = self.alias(Kernel::Triton).is_some();
        let ck = self.alias(Kernel::Ck).is_some() || self.alias(Kernel::Bpreshuffle).is_some();
        match (ck, triton) {
            (true, true) => "both",
            (false, true) => "triton",
            _ => "ck",
        }
    }
}

/// Determines the dispatch structure of `fp8_utils.py`, or refuses the file.
pub fn dispatch(source: &Source) -> Result<Dispatch<'_>, Refusal> {
    let Some(leaf) = syntax::function(source.body(), LEAF) else {
        return Err(Refusal::new(
            source,
            Span::at(0),
            format!("no function `{LEAF}` in this file"),
            "the aiter path of block FP8 linear layers is not here",
            "a top-level `def` of that name, as SGLang 0.5.5 to 0.5.23 have it",
        ));
    };
    if leaf.1.decorated {
        return Err(Refusal::new(
            source,
            leaf.1.name_span,
            format!("a decorator is on `{LEAF}`"),
            "what is called under this name is what the decorator makes of it",
            "a plain `def`, as SGLang 0.5.5 to 0.5.23 have it",
        ));
    }
    let bindings = bindings(source, leaf.1);
    let has = |kernel| {
        bindings
            .iter()
            .any(|binding: &Binding| binding.kernel == kernel)
    };
    let (ck, shuffled, triton) = (
        has(Kernel::Ck),
        has(Kernel::Bpreshuffle),
        has(Kernel::Triton),
    );
    let uses = |name: &str| leaf.1.mentions(name);
    let mut patched_from = None;
    let era = match (triton, ck, shuffled) {
        (false, true, false) if !uses("use_triton") => {
            if takes_quantised_input(leaf.1) {
                patched_from = Some(Era::E1);
            }
            Era::E0
        }
        (true, false, false) => Era::E1,
        (true, true, false) => Era::E2,
        (true, false, true) => Era::E3,
        (true, true, true) => {
            if uses("try_smallm_fp8_bs_linear") {
                Era::E7b
            } else if uses("SGLANG_AITER_GFX942_BLOCKSCALE_USE_CK") {
                Era::E7
            } else if uses("_AITER_GFX95_CK_W8A8_MAX_SAFE_M") {
                Era::E6
            } else if syntax::function(source.body(), "set_force_ck_w8a8").is_some() {
                Era::E5
            } else {
                Era::E4
            }
        }
        _ => return Err(unknown_imports(source, leaf, &bindings)),
    };
    let chain = chain(source, leaf)?;
    Ok(Dispatch {
        era,
        patched_from,
        leaf,
        bindings,
        chain,
    })
}

/// The kernel names that the leaf uses, each with the last import that binds it. A name in a comment does not count,
/// and a similar name (`gemm_a8w8_bpreshuffle`) is another operation.
fn bindings(source: &Source, leaf: &Function) -> Vec<Binding> {
    let mut found = BTreeMap::new();
    syntax::walk_live(source.body(), &mut |stmt| {
        // A relative import refers to the tree itself, whatever the module's name.
        let StmtKind::ImportFrom {
            module,
            level: 0,
            names,
        } = &stmt.kind
        else {
            return;
        };
        for alias in names {
            if !leaf.mentions(alias.bound()) {
                continue;
            }
            if let Some(kernel) = Kernel::imported(module, &alias.name) {
                found.insert(
                    alias.bound().to_owned(),
                    Binding {
                        alias: alias.bound().to_owned(),
                        kernel,
                        span: stmt.span,
                    },
                );
            }
        }
    });
    let mut bindings: Vec<Binding> = found.into_values().collect();
    bindings.sort_by_key(|binding| binding.span);
    bindings
}

/// Whether the leaf has a branch for `(x, scale)` input: every release but 0.5.5.
fn takes_quantised_input(leaf: &Function) -> bool {
    let mut found = false;
    syntax::walk(&leaf.body, &mut |stmt| {
        if let StmtKind::If(branches) = &stmt.kind {
            found |= branches.iter().any(|branch| {
                branch.test.as_ref().is_some_and(|test| match &test.kind {
                    ExprKind::Compare(left, Comparison::IsNot, right) => {
                        left.dotted().as_deref() == Some("input_scale")
                            && matches!(right.kind, ExprKind::None)
                    }
                    _ => false,
                })
            });
        }
    });
    found
}

/// From the dispatcher to the leaf: the dispatcher itself, then those of its callees that name the
/// leaf, or none where it names the leaf itself.
fn chain<'a>(
    source: &'a Source,
    leaf: (&'a Stmt, &'a Function),
) -> Result<Vec<&'a Function>, Refusal> {
    let unreachable = |what: &str| {
        Refusal::new(
            source,
            leaf.1.name_span,
            what,
            "whether this function runs is not known",
            "`dispatch_w8a8_block_fp8_linear` returning it, directly or through functions of this file",
        )
    };
    let Some((_, dispatcher)) = syntax::function(source.body(), DISPATCHER) else {
        return Err(unreachable(
            "no function `dispatch_w8a8_block_fp8_linear` in this file",
        ));
    };
    if dispatcher.mentions(LEAF) {
        return Ok(vec![dispatcher]);
    }
    let mut chain = vec![dispatcher];
    for mention in &dispatcher.mentions {
        if let Some((_, callee)) = syntax::function(source.body(), &mention.name)
            && callee.mentions(LEAF)
            && !chain.iter().any(|link| link.name == callee.name)
        {
            chain.push(callee);
        }
    }
    if chain.len() == 1 {
        return Err(unreachable("the dispatcher never names the aiter path"));
    }
    Ok(chain)
}

/// The kernel imports are not a known combination: name the first kernel-like name that nothing binds.
fn unknown_imports(source: &Source, leaf: (&Stmt, &Function), bindings: &[Binding]) -> Refusal {
    let expected = "the imports of `gemm_a8w8_blockscale` from `aiter` and from \
                    `aiter.ops.triton.gemm_a8w8_blockscale` that SGLang 0.5.5 to 0.5.23 have";
    let unbound = |mention: &&Mention| {
        mention.name.contains("gemm_a8w8_blockscale")
            && !bindings.iter().any(|binding| binding.alias == mention.name)
            && !assigned_in(leaf.1, &mention.name)
    };
    if let Some(mention) = leaf.1.mentions.iter().find(unbound) {
        return Refusal::new(
            source,
            mention.span,
            format!(
                "nothing imports `{}`, which the aiter path uses",
                mention.name
            ),
            "a NameError, or a binding that is not understood",
            expected,
        );
    }
    Refusal::new(
        source,
        leaf.1.name_span,
        "the GEMM imports of this tree are not those of a known release",
        "the kernels this function calls are not known",
        expected,
    )
}

fn assigned_in(function: &Function, name: &str) -> bool {
    let mut found = false;
    syntax::walk(&function.body, &mut |stmt| {
        if let StmtKind::Assign { targets, .. } = &stmt.kind {
            found |= targets
                .iter()
                .any(|target| target.dotted().as_deref() == Some(name));
        }
    });
    found
}
