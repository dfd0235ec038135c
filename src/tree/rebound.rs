//! Bindings of the dispatch's names that the trace does not follow: attributes set from outside, strings, `global`,
//! `*`. And layers of `fp8.py` that call something other than what the dispatcher returns.
//!
//! [`super::flow`] reads the statements of one module in order. None of these is such a statement, so each is refused
//! rather than followed.

use super::era::{DISPATCHER, Dispatch, LEAF, PREDICATE};
use crate::pyedit::refusal::Refusal;
use crate::pyedit::source::Source;
use crate::pyedit::syntax::{self, Expr, ExprKind, Span, Stmt, StmtKind};

/// The attribute in which every block FP8 layer stores the function it calls.
const HELD: &str = "self.w8a8_block_fp8_linear";
/// Makes the shape predicate return false (0.5.14 and later).
const SET_FORCE_CK: &str = "set_force_ck_w8a8";
/// Ways to bind a name of the module through a string.
const BY_STRING: [&str; 6] = [
    "globals()",
    "vars()",
    "setattr(",
    "exec(",
    "sys.modules[",
    "__dict__",
];

/// Refuses a tree in which the dispatch that was read may not be the one that runs.
pub(super) fn check(utils: &Source, fp8: &Source, dispatch: &Dispatch<'_>) -> Result<(), Refusal> {
    let mut names: Vec<&str> = vec![LEAF, DISPATCHER, PREDICATE];
    names.extend(
        dispatch
            .bindings
            .iter()
            .map(|binding| binding.alias.as_str()),
    );
    names.extend(dispatch.chain.iter().map(|link| link.name.as_str()));
    unbound(utils, dispatch)?;
    for source in [utils, fp8] {
        attributes(source, &names)?;
    }
    declared(utils, dispatch, &names)?;
    by_string(utils)?;
    stars(utils, dispatch)?;
    held(fp8)
}

fn again(source: &Source, span: Span, what: String) -> Refusal {
    Refusal::new(
        source,
        span,
        what,
        "what runs under this name is not, or may not be, what was read",
        "names bound by plain statements, as every SGLang release has them",
    )
}

/// A name that the dispatch depends on and that nothing binds is a NameError at the first GEMM.
fn unbound(utils: &Source, dispatch: &Dispatch<'_>) -> Result<(), Refusal> {
    let mut bound = Vec::new();
    let mut star = false;
    syntax::walk(utils.body(), &mut |stmt| match &stmt.kind {
        StmtKind::Function(function) => bound.push(function.name.as_str()),
        StmtKind::Assign { targets, .. } => {
            for target in targets {
                if let ExprKind::Name(name) = &target.kind {
                    bound.push(name);
                }
            }
        }
        StmtKind::ImportFrom { names, .. } => {
            star |= names.iter().any(|alias| alias.name == "*");
            bound.extend(names.iter().map(syntax::Alias::bound));
        }
        _ => {}
    });
    let decides = |name: &str| name == PREDICATE || name.starts_with("_use_aiter");
    let missing = dispatch
        .leaf
        .1
        .mentions
        .iter()
        .find(|mention| decides(&mention.name) && !bound.contains(&mention.name.as_str()));
    match missing {
        Some(mention) if !star => Err(Refusal::new(
            utils,
            mention.span,
            format!("nothing binds `{}`, which decides here", mention.name),
            "a NameError at the first GEMM",
            "the definition that SGLang 0.5.10 to 0.5.23 have in this file",
        )),
        _ => Ok(()),
    }
}

/// `module.name = …`, in either file: a copy of the name elsewhere, or this one.
fn attributes(source: &Source, names: &[&str]) -> Result<(), Refusal> {
    let mut found = None;
    syntax::walk(source.body(), &mut |stmt| {
        if let StmtKind::Assign { targets, .. } = &stmt.kind {
            let set = targets.iter().find(|target| match &target.kind {
                ExprKind::Attribute(_, attr) => names.contains(&attr.as_str()),
                _ => false,
            });
            found = found.or(set.map(|target| target.span));
        }
    });
    found.map_or(Ok(()), |span| {
        let what = format!("`{}` is set from outside its module", source.slice(span));
        Err(again(source, span, what))
    })
}

/// `global name` for a kernel or a function of the dispatch; and for the names those read, if the module itself calls
/// the function that contains it.
fn declared(utils: &Source, dispatch: &Dispatch<'_>, names: &[&str]) -> Result<(), Refusal> {
    let predicate = syntax::function(utils.body(), PREDICATE).map(|(_, found)| found);
    let readers = dispatch.chain.iter().copied();
    let readers: Vec<_> = readers.chain([dispatch.leaf.1]).chain(predicate).collect();
    let asked = |name: &str| readers.iter().any(|reader| reader.mentions(name));
    for stmt in utils.body() {
        let StmtKind::Function(function) = &stmt.kind else {
            continue;
        };
        if let Some(name) = function
            .globals
            .iter()
            .find(|name| names.contains(&name.as_str()))
        {
            let what = format!("`{}` rebinds `{name}`", function.name);
            return Err(again(utils, function.name_span, what));
        }
        if !function.globals.iter().any(|name| asked(name)) {
            continue;
        }
        if let Some(span) = called_at_import(utils, &function.name) {
            let what = format!("`{}` is called when the module is imported", function.name);
            return Err(again(utils, span, what));
        }
    }
    Ok(())
}

/// The statements that run when the module is imported, that is, not those of functions.
fn imported<'a>(body: &'a [Stmt], visit: &mut dyn FnMut(&'a Stmt)) {
    for stmt in body {
        if matches!(stmt.kind, StmtKind::Function(_)) {
            continue;
        }
        visit(stmt);
        for block in syntax::blocks(stmt) {
            imported(block, visit);
        }
    }
}

fn called_at_import(source: &Source, name: &str) -> Option<Span> {
    let call = format!("{name}(");
    let mut found = None;
    imported(source.body(), &mut |stmt| {
        let plain = matches!(stmt.kind, StmtKind::Expr(_) | StmtKind::Assign { .. });
        if plain && source.slice(stmt.span).contains(&call) {
            found = found.or(Some(stmt.span));
        }
    });
    found
}

fn by_string(utils: &Source) -> Result<(), Refusal> {
    let mut found = None;
    imported(utils.body(), &mut |stmt| {
        let (StmtKind::Expr(value)
        | StmtKind::Assign {
            value: Some(value), ..
        }) = &stmt.kind
        else {
            return;
        };
        // A docstring only mentions it.
        let text = utils.slice(stmt.span);
        if !matches!(value.kind, ExprKind::Str(_)) || matches!(stmt.kind, StmtKind::Assign { .. }) {
            let used = |way: &str| {
                text.match_indices(way).any(|(at, _)| {
                    let before = text[..at].chars().next_back();
                    !before.is_some_and(|letter| letter.is_alphanumeric() || letter == '_')
                })
            };
            found = found.or(BY_STRING.iter().any(|way| used(way)).then_some(stmt.span));
        }
    });
    found.map_or(Ok(()), |span| {
        let what = "names of this module may be bound through strings here".to_owned();
        Err(again(utils, span, what))
    })
}

/// `from … import *` after the kernel imports: `aiter` itself exports a `gemm_a8w8_blockscale`.
fn stars(utils: &Source, dispatch: &Dispatch<'_>) -> Result<(), Refusal> {
    let first = dispatch.bindings.first().map(|binding| binding.span.start);
    let mut found = None;
    imported(utils.body(), &mut |stmt| {
        if let StmtKind::ImportFrom { names, .. } = &stmt.kind {
            let star = names.iter().find(|alias| alias.name == "*");
            let behind = star.filter(|star| Some(star.span.start) > first);
            found = found.or(behind.map(|star| star.span));
        }
    });
    found.map_or(Ok(()), |span| {
        let what = "a `*` may bind the kernels' names again".to_owned();
        Err(again(utils, span, what))
    })
}

/// Refuses an `fp8.py` whose layers call something other than what the dispatcher returns.
fn held(fp8: &Source) -> Result<(), Refusal> {
    let mut dispatched = false;
    let mut stray = None;
    holders(
        fp8.body(),
        "",
        &mut |target, value, tests| match &value.kind {
            ExprKind::None => {}
            ExprKind::Call { function, .. } if function.dotted().as_deref() == Some(DISPATCHER) => {
                dispatched = true;
            }
            ExprKind::Name(name) if name == LEAF => dispatched = true,
            // Ascend's layers (0.5.20) are not relevant here.
            _ if tests.contains("npu") => {}
            _ => stray = stray.or(Some(target.span)),
        },
        fp8,
    );
    let mut forced = None;
    syntax::walk(fp8.body(), &mut |stmt| {
        if let StmtKind::Expr(Expr {
            kind: ExprKind::Call { function, .. },
            ..
        }) = &stmt.kind
            && function
                .dotted()
                .is_some_and(|name| name.ends_with(SET_FORCE_CK))
        {
            forced = Some(stmt.span);
        }
    });
    if let Some(span) = forced {
        let what = "the shape predicate is switched off here".to_owned();
        return Err(again(fp8, span, what));
    }
    let place = match (stray, dispatched) {
        (Some(span), _) => span,
        (None, true) => return Ok(()),
        (None, false) => syntax::class(fp8.body(), "Fp8LinearMethod")
            .map_or(Span::at(0), |(class, _)| Span::at(class.span.start)),
    };
    Err(Refusal::new(
        fp8,
        place,
        format!("block FP8 layers may call something else than what `{DISPATCHER}` hands out"),
        "whether the aiter path runs is not known",
        "`self.w8a8_block_fp8_linear = dispatch_w8a8_block_fp8_linear(…)`, as SGLang 0.5.5 to 0.5.23 have it",
    ))
}

/// Every assignment of what a layer calls, with the tests of the enclosing `if`s.
fn holders<'a>(
    body: &'a [Stmt],
    tests: &str,
    visit: &mut dyn FnMut(&'a Expr, &'a Expr, &str),
    source: &'a Source,
) {
    for stmt in body {
        match &stmt.kind {
            StmtKind::Assign {
                targets,
                value: Some(value),
            } => {
                let target = targets
                    .iter()
                    .find(|target| target.dotted().as_deref() == Some(HELD));
                if let Some(target) = target {
                    visit(target, value, tests);
                }
            }
            StmtKind::If(branches) => {
                for branch in branches {
                    let test = branch
                        .test
                        .as_ref()
                        .map_or("", |test| source.slice(test.span));
                    holders(&branch.body, &format!("{tests} {test}"), visit, source);
                }
            }
            _ => {
                for block in syntax::blocks(stmt) {
                    holders(block, tests, visit, source);
                }
            }
        }
    }
}
