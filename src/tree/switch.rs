//! `switch --mode patch`: the steps of a [`Plan`] as edits of `fp8_utils.py`.
//!
//! Nothing is replaced: lines are inserted after the kernel imports (names rebound) and at the top of the shape
//! predicate. `fp8.py` imports that predicate by name, so one edit reaches both of its readers. The edited tree is
//! followed again before a byte is written: an edit that does not lead where it should is refused.

use std::fmt::Write as _;

use super::era::{self, Dispatch, Era, PREDICATE};
use super::flow::{Arch, Cause, CodePath, Flow, Kernel, Rocm};
use super::force::{AITER_CK, AITER_TRITON, Plan, Rule, Step, SwitchRequest, Target};
use super::package::{FileEdit, TreeError};
use crate::pyedit::edit::Patch;
use crate::pyedit::hooks::InsertionPoint;
use crate::pyedit::imports;
use crate::pyedit::refusal::Refusal;
use crate::pyedit::source::Source;
use crate::pyedit::syntax::{self, Stmt, StmtKind};

/// First line of an insertion, by which a switched tree is recognised.
const MARK: &str = "# gemmtune switch: begin (`gemmtune switch undo` removes it)";
const END: &str = "# gemmtune switch: end";

/// Whether `source` contains our lines.
pub fn is_switched(source: &Source) -> bool {
    source.text().contains(MARK)
}

/// The edit that applies `plan` for `request`; `None` where the plan has no step for a tree. In any case the tree
/// with the plan applied is followed, and a plan that does not lead where the request wants is refused.
pub fn edit(
    source: &Source,
    dispatch: &Dispatch<'_>,
    plan: &Plan,
    request: &SwitchRequest<'_>,
) -> Result<Option<FileEdit>, TreeError> {
    let mut patch = Patch::default();
    let names = bindings(&plan.steps);
    if !names.is_empty() {
        let text = gated(source, request.arch, &rebound(dispatch, &names));
        patch.push(after_imports(source, dispatch)?.insert(&text));
    }
    for step in &plan.steps {
        let (value, except) = match step {
            Step::Predicate { value, except } => (*value, except.as_slice()),
            Step::SetForceCk => (false, [].as_slice()),
            Step::Rebind { .. } | Step::Route { .. } => continue,
        };
        let Some((_, predicate)) = syntax::function(source.body(), PREDICATE) else {
            return Err(Refusal::new(
                source,
                dispatch.leaf.1.name_span,
                format!("no function `{PREDICATE}` in this file"),
                "it chooses Triton on gfx95x",
                "a top-level `def` of that name, as SGLang 0.5.10 to 0.5.23 have it",
            )
            .into());
        };
        let text = answer(
            source,
            dispatch.era,
            &predicate.params,
            request,
            value,
            except,
        );
        patch.push(InsertionPoint::top_of(source, predicate)?.insert(&text));
    }
    let edit = FileEdit::new(source, &patch)?;
    match &edit {
        None => check(source, plan, request)?,
        Some(edit) => check(
            &Source::parse(edit.path.clone(), &edit.after)?,
            plan,
            request,
        )?,
    }
    Ok(edit)
}

/// What a name is rebound to: `base`, except for the GEMMs that match a rule.
struct Rebound {
    name: String,
    base: Option<String>,
    routes: Vec<(String, Vec<Rule>)>,
}

fn bindings(steps: &[Step]) -> Vec<Rebound> {
    let mut names: Vec<Rebound> = Vec::new();
    for step in steps {
        let (Step::Rebind { name, .. } | Step::Route { name, .. }) = step else {
            continue;
        };
        if !names.iter().any(|known| known.name == *name) {
            names.push(Rebound {
                name: name.clone(),
                base: None,
                routes: Vec::new(),
            });
        }
        let Some(bound) = names.iter_mut().find(|known| known.name == *name) else {
            continue;
        };
        match step {
            Step::Rebind { to, .. } => bound.base = Some(to.clone()),
            Step::Route { to, rules, .. } => bound.routes.push((to.clone(), rules.clone())),
            Step::Predicate { .. } | Step::SetForceCk => {}
        }
    }
    names
}

/// The lines that rebind `names`. The kernels are bound to names of our own first, since a rebound name may be
/// another one's target.
fn rebound(dispatch: &Dispatch<'_>, names: &[Rebound]) -> String {
    let kernel_of = |name: &str| {
        dispatch
            .bindings
            .iter()
            .find(|binding| binding.alias == name)
            .map(|binding| binding.kernel)
    };
    let is_ck = |target: &str| match target.strip_prefix("self:") {
        Some(name) => kernel_of(name) == Some(Kernel::Ck),
        None => target == AITER_CK,
    };
    let mut held = Held::default();
    let mut functions = String::new();
    for rebound in names {
        let own = format!("self:{}", rebound.name);
        let base = rebound.base.as_deref().unwrap_or(&own);
        let _ = write!(
            functions,
            "\ndef {}(XQ, WQ, x_scale, w_scale, *args, **kwargs):\n",
            rebound.name
        );
        if !rebound.routes.is_empty() {
            functions.push_str("    m, shape = XQ.shape[0], tuple(WQ.shape)\n");
        }
        for (target, rules) in &rebound.routes {
            let call = held.call(target, is_ck(target));
            for rule in rules {
                let _ = write!(functions, "    if {}:\n        {call}\n", condition(rule));
            }
        }
        let _ = writeln!(functions, "    {}", held.call(base, is_ck(base)));
    }
    let held = held.ck.into_iter().chain(held.triton).collect::<String>();
    format!("{MARK}\n{held}{functions}\n{END}\n")
}

/// The kernels under names of our own: the line that binds each.
#[derive(Default)]
struct Held {
    ck: Option<String>,
    triton: Option<String>,
}

impl Held {
    /// The expression that calls `target`, which is bound on first use.
    fn call(&mut self, target: &str, ck: bool) -> String {
        // CK reads a scale's memory and ignores its strides; Triton respects them.
        let (slot, variable, scale) = if ck {
            (&mut self.ck, "_gemmtune_ck", "x_scale.contiguous()")
        } else {
            (&mut self.triton, "_gemmtune_triton", "x_scale")
        };
        slot.get_or_insert_with(|| match target.split_once(':') {
            Some(("self", name)) => format!("{variable} = {name}\n"),
            Some((module, attribute)) => {
                format!("from {module} import {attribute} as {variable}\n")
            }
            None => format!("{variable} = {target}\n"),
        });
        format!("return {variable}(XQ, WQ, {scale}, w_scale, *args, **kwargs)")
    }
}

fn condition(rule: &Rule) -> String {
    let mut text = format!("shape == ({}, {})", rule.n, rule.k);
    if let Some(m) = rule.min_m {
        let _ = write!(text, " and m >= {m}");
    }
    if let Some(m) = rule.max_m {
        let _ = write!(text, " and m <= {m}");
    }
    text
}

/// `lines` under the flag of the architecture, if the tree has one: the same tree may run on other machines.
fn gated(source: &Source, arch: Arch, lines: &str) -> String {
    if !imports::binds(source, "_use_aiter_gfx95") {
        return lines.to_owned();
    }
    let test = match arch {
        Arch::Gfx942 => "if not _use_aiter_gfx95:",
        Arch::Gfx950 => "if _use_aiter_gfx95:",
    };
    let mut text = format!("{test}\n");
    for line in lines.lines() {
        if line.is_empty() {
            text.push('\n');
        } else {
            let _ = writeln!(text, "    {line}");
        }
    }
    text
}

/// The lines at the top of the predicate that determine its result.
fn answer(
    source: &Source,
    era: Era,
    params: &[String],
    request: &SwitchRequest<'_>,
    value: bool,
    except: &[(u64, u64)],
) -> String {
    let python = |truth: bool| if truth { "True" } else { "False" };
    let result = match (except, params) {
        ([], _) => python(value).to_owned(),
        (shapes, [n, k, ..]) => {
            let mut list: Vec<String> = shapes.iter().map(|(n, k)| format!("({n}, {k})")).collect();
            list.dedup();
            let word = if value { "not in" } else { "in" };
            format!("({n}, {k}) {word} [{}]", list.join(", "))
        }
        (_, _) => python(value).to_owned(),
    };
    let flag = "_use_aiter_bpreshuffle_gfx95";
    let gate = match request.rocm {
        Some(rocm) if era >= Era::E3 && imports::binds(source, flag) => Some(match rocm {
            Rocm::From72 => format!("if {flag}:"),
            Rocm::Below72 => format!("if not {flag}:"),
        }),
        _ => None,
    };
    match gate {
        Some(gate) => format!("{MARK}\n{gate}\n    return {result}\n{END}\n"),
        None => format!("{MARK}\nreturn {result}\n{END}\n"),
    }
}

/// The position after the last kernel import, in its block.
fn after_imports(source: &Source, dispatch: &Dispatch<'_>) -> Result<InsertionPoint, TreeError> {
    let last = dispatch.bindings.iter().map(|binding| binding.span).max();
    let mut found: Option<&Stmt> = None;
    syntax::walk(source.body(), &mut |stmt| {
        if matches!(stmt.kind, StmtKind::ImportFrom { .. }) && Some(stmt.span) == last {
            found = Some(stmt);
        }
    });
    let stmt = found.ok_or_else(|| {
        Refusal::new(
            source,
            dispatch.leaf.1.name_span,
            "the kernel imports of this tree were not found",
            "no name is bound here that could be bound again",
            "imports in the `if _use_aiter:` block",
        )
    })?;
    if dispatch.leaf.0.span.contains(stmt.span) {
        return Err(Refusal::new(
            source,
            stmt.span,
            "a kernel import inside the function that uses it",
            "the name would have to be bound again at each call",
            "imports in the `if _use_aiter:` block of the module",
        )
        .into());
    }
    Ok(InsertionPoint::after(source, stmt)?)
}

/// Whether a path is taken with the plan's variables, that is, none of its tests contradicts them.
fn open(way: &CodePath, plan: &Plan) -> bool {
    let set = plan.env.iter().map(|(name, value)| (name, value == "1"));
    let values: Vec<_> = set
        .chain(plan.unset.iter().map(|name| (name, false)))
        .collect();
    way.tests.iter().all(|(test, answer)| {
        let [Cause::Env(name, _)] = &test.causes[..] else {
            return true;
        };
        values
            .iter()
            .all(|(known, truth)| *known != name || truth == answer)
    })
}

/// Follows the file and refuses it unless it leads where the request wants, with the plan's variables set.
fn check(source: &Source, plan: &Plan, request: &SwitchRequest<'_>) -> Result<(), TreeError> {
    let dispatch = era::dispatch(source)?;
    let guarded = plan
        .steps
        .iter()
        .any(|step| matches!(step, Step::Route { to, .. } if to == AITER_TRITON));
    let rocms: &[Rocm] = match &request.rocm {
        Some(rocm) => std::slice::from_ref(rocm),
        None => &[Rocm::Below72, Rocm::From72],
    };
    for rocm in rocms {
        let flow = Flow::new(source, request.arch, *rocm)?;
        let mut kernels: Vec<Kernel> = flow
            .ways(dispatch.leaf.1)?
            .iter()
            .filter(|way| way.main && open(way, plan))
            .filter_map(|way| way.kernel.map(|(kernel, _)| kernel))
            .collect();
        kernels.sort_unstable();
        kernels.dedup();
        let triton = kernels.contains(&Kernel::Triton);
        let ck = kernels.iter().any(|kernel| *kernel != Kernel::Triton);
        // The tree's own guard above the safe M (0.5.15 and later) keeps Triton reachable too.
        let own_guard = dispatch.era >= Era::E6 && request.arch == Arch::Gfx950;
        let right = match (request.to, request.routes.is_empty()) {
            (Target::Triton, _) => triton && !ck,
            (Target::Ck, true) => ck && (!triton || guarded || own_guard),
            (Target::Ck, false) => ck && triton,
        };
        if !right {
            let found: Vec<&str> = kernels.iter().map(|kernel| kernel.as_str()).collect();
            return Err(TreeError::NotAsAsked(format!(
                "this tree was edited: with \"{}\" it would call {}, which is not what was asked for",
                plan.detail,
                found.join(" and "),
            )));
        }
    }
    Ok(())
}
