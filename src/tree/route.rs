//! `trace`: which GEMM kernel a tree calls, on which architecture and ROCm version, and why.
//!
//! The era only names the structure; the kernel is not looked up by era but determined by following the tree's own
//! code ([`super::flow`]), so an edited tree is reported as it is.

use serde::Serialize;

use super::environ;
use super::era::{self, Dispatch, Era};
use super::flow::{Arch, Cause, CodePath, Flow, Kernel, Rocm, Test};
use super::force::{self, Means, SwitchRequest, Target};
use super::package::{FP8, FP8_UTILS, Package, TreeError};
use super::reach;
use super::rebound;
use super::side::{self, Sides};
use super::switch;
use super::version::{self, Unserved};
use crate::pyedit::refusal::Refusal;
use crate::pyedit::source::Source;
use crate::pyedit::syntax::{self, ExprKind, Span, StmtKind};

/// The document of `trace --json`.
#[derive(Clone, Debug, Serialize)]
pub struct Trace {
    /// The version according to the package's files, `null` where they have none.
    pub sglang_version: Option<String>,
    pub era: Era,
    /// The era before the import was changed by hand, where that can be recognised.
    pub patched_from: Option<Era>,
    pub package: String,
    /// The dispatching file, relative to the package.
    pub file: &'static str,
    /// Dispatcher, functions between, leaf.
    pub dispatch: String,
    /// Which kernels the leaf imports: `ck`, `triton` or `both`.
    pub imports: &'static str,
    /// The effective kernel per architecture and ROCm version, with `SGLANG_USE_AITER=1`.
    pub paths: Vec<Path>,
    /// How CK can be forced per architecture.
    pub force_ck: Vec<ForceCk>,
    /// The source lines that this is based on.
    pub evidence: Vec<Evidence>,
    /// The shapes that stay on Triton on gfx95x, where the tree lists them.
    pub triton_shapes: Vec<(u64, u64)>,
    /// The largest M for which CK is safe per (N, K) on gfx95x below ROCm 7.2, where the tree has it.
    pub safe_m: Vec<(u64, u64, u64)>,
    /// Paths beside the main one.
    #[serde(flatten)]
    pub sides: Sides,
    /// Remarks that no field covers.
    pub notes: Vec<String>,
}

/// The kernel on one architecture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Path {
    pub arch: Arch,
    /// `<7.2`, `>=7.2` or `any`.
    pub rocm: &'static str,
    /// `ck`, `triton`, `bpreshuffle`, or `depends` where the tree alone does not decide.
    pub kernel: &'static str,
    pub because: String,
    /// The kernel for each condition, where it depends.
    pub choices: Vec<Choice>,
    /// The kernel if all deciding variables are unset, where only variables decide.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by_default: Option<Kernel>,
}

/// One of the possible kernels of a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Choice {
    pub kernel: Kernel,
    /// The condition, as written in the source.
    pub when: String,
}

/// How CK can be forced on one architecture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ForceCk {
    pub arch: Arch,
    pub means: Means,
    pub detail: String,
}

/// One source line of the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// Absolute path of the file.
    pub file: String,
    /// The line number, from 1.
    pub line: usize,
    pub text: String,
}

pub fn trace(package: &Package) -> Result<Trace, TreeError> {
    let source = package.read(FP8_UTILS)?;
    let dispatch = era::dispatch(&source)?;
    let safe_m = safe_m(&source);
    let mut exits = Vec::new();
    let mut paths = Vec::new();
    let mut calls: Vec<Span> = Vec::new();
    for arch in [Arch::Gfx942, Arch::Gfx950] {
        let below = followed(package, &source, &dispatch, arch, Rocm::Below72)?;
        let from = followed(package, &source, &dispatch, arch, Rocm::From72)?;
        for found in [&below, &from] {
            calls.extend(&found.calls);
            for exit in &found.exits {
                if !exits.contains(exit) {
                    exits.push(*exit);
                }
            }
        }
        if below.path == from.path {
            paths.push(below.path);
        } else {
            paths.push(Path {
                rocm: "<7.2",
                ..below.path
            });
            paths.push(Path {
                rocm: ">=7.2",
                ..from.path
            });
        }
    }
    rebound::check(&source, &package.read(FP8)?, &dispatch)?;
    let mut spans: Vec<Span> = dispatch
        .bindings
        .iter()
        .map(|binding| binding_line(&source, binding.span, &binding.alias))
        .collect();
    spans.extend(dispatch.chain.iter().map(|link| link.name_span));
    spans.push(dispatch.leaf.1.name_span);
    let predicate = syntax::function(source.body(), era::PREDICATE);
    spans.extend(predicate.map(|(_, function)| function.name_span));
    spans.extend(calls);
    let too_old = version::served(package.version.as_deref()).err();
    Ok(Trace {
        sglang_version: package.version.clone(),
        era: dispatch.era,
        // 0.5.5.post2 and .post3 were released with the structure that an edited 0.5.6 has.
        patched_from: dispatch.patched_from.filter(|_| too_old.is_none()),
        package: package.folder.to_string(),
        file: FP8_UTILS,
        dispatch: dispatch.chain_text(),
        imports: dispatch.import_kind(),
        force_ck: [Arch::Gfx942, Arch::Gfx950]
            .into_iter()
            .map(|arch| force_ck(&source, &dispatch, &safe_m, &paths, arch))
            .collect(),
        evidence: evidence(&source, spans),
        triton_shapes: triton_shapes(&source),
        notes: notes(&dispatch, &paths, &safe_m, too_old),
        safe_m,
        sides: side::sides(package, &source, &exits),
        paths,
    })
}

/// How CK can be forced in this tree: as in its era, if following the tree with that applied confirms it.
fn force_ck(
    source: &Source,
    dispatch: &Dispatch<'_>,
    safe_m: &[(u64, u64, u64)],
    paths: &[Path],
    arch: Arch,
) -> ForceCk {
    let triton = |path: &Path| {
        path.kernel == Kernel::Triton.as_str()
            || path
                .choices
                .iter()
                .any(|choice| choice.kernel == Kernel::Triton)
    };
    let found = force::summary(dispatch, safe_m, arch);
    // What gemmtune has switched already is switched differently after an undo, which restores the tree of that era.
    let settled = matches!(found.means, Means::None | Means::Refused);
    if settled || switch::is_switched(source) {
        return found;
    }
    if !paths.iter().any(|path| path.arch == arch && triton(path)) {
        let detail = "CK is what this tree calls".to_owned();
        return ForceCk {
            means: Means::None,
            detail,
            ..found
        };
    }
    for rocm in [Rocm::Below72, Rocm::From72] {
        let request = SwitchRequest {
            to: Target::Ck,
            routes: &[],
            arch,
            rocm: Some(rocm),
            env: true,
        };
        let Ok(plan) = force::plan(dispatch, safe_m, &request) else {
            continue;
        };
        if let Err(TreeError::NotAsAsked(why)) = switch::edit(source, dispatch, &plan, &request) {
            return ForceCk {
                means: Means::Refused,
                detail: why,
                ..found
            };
        }
    }
    found
}

struct Followed {
    path: Path,
    exits: Vec<Span>,
    calls: Vec<Span>,
}

/// Follows the leaf on one machine.
fn followed(
    package: &Package,
    source: &Source,
    dispatch: &Dispatch<'_>,
    arch: Arch,
    rocm: Rocm,
) -> Result<Followed, Refusal> {
    let leaf = dispatch.leaf.1;
    let flow = Flow::new(source, arch, rocm)?;
    reach::check(source, dispatch, &flow)?;
    let (main, side): (Vec<CodePath>, Vec<CodePath>) =
        flow.ways(leaf)?.into_iter().partition(|way| way.main);
    let mut kernels = Vec::new();
    let mut calls = Vec::new();
    for way in &main {
        let Some((kernel, call)) = way.kernel else {
            return Err(Refusal::new(
                source,
                unknown_call(source, dispatch).unwrap_or(way.end),
                "which kernel runs here is not known",
                "no known GEMM is called on the way through this",
                "a call of `gemm_a8w8_blockscale` of aiter or of its Triton twin, or of \
                 `gemm_a8w8_blockscale_bpreshuffle`, on every way through \
                 `aiter_w8a8_block_fp8_linear`",
            ));
        };
        kernels.push(kernel);
        calls.push(call);
    }
    if main.is_empty() {
        return Err(Refusal::new(
            source,
            leaf.name_span,
            "this function never returns a result at its end",
            "every way through it ends early",
            "a `return` at the end of the function",
        ));
    }
    calls.sort();
    calls.dedup();
    if let Some(unknown) = side.iter().find(|way| !way.known) {
        return Err(Refusal::new(
            source,
            unknown.end,
            "what leaves the aiter path here is not known",
            "neither the result of a known GEMM nor of an operation that a release has beside it",
            "the early exits of SGLang 0.5.21 to 0.5.23",
        ));
    }
    let mut exits: Vec<Span> = side.iter().map(|way| way.end).collect();
    exits.sort();
    exits.dedup();
    Ok(Followed {
        path: path(package, arch, &main, &kernels),
        exits,
        calls,
    })
}

/// The call in the leaf whose callee no import binds.
fn unknown_call(source: &Source, dispatch: &Dispatch<'_>) -> Option<Span> {
    let leaf = dispatch.leaf.1;
    leaf.mentions
        .iter()
        .find(|mention| {
            mention.name.contains("gemm_a8w8")
                && !mention.name.ends_with("_op")
                && !dispatch
                    .bindings
                    .iter()
                    .any(|binding| binding.alias == mention.name)
                && syntax::function(source.body(), &mention.name).is_none()
        })
        .or_else(|| {
            leaf.mentions
                .iter()
                .find(|mention| mention.called && mention.name.contains("gemm_a8w8"))
        })
        .map(|mention| mention.span)
}

fn path(package: &Package, arch: Arch, ways: &[CodePath], kernels: &[Kernel]) -> Path {
    let mut distinct: Vec<Kernel> = kernels.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    if let [kernel] = distinct[..] {
        return Path {
            arch,
            rocm: "any",
            kernel: kernel.as_str(),
            because: format!("every way through `{}` calls {}", era::LEAF, named(kernel)),
            choices: Vec::new(),
            by_default: None,
        };
    }
    let mut tests = deciding(ways, kernels);
    for cause in tests.iter_mut().flat_map(|test| &mut test.causes) {
        if let Cause::Env(name, unset @ None) = cause {
            *unset = environ::unset(package, name);
        }
    }
    let mut choices: Vec<Choice> = Vec::new();
    for (way, kernel) in ways.iter().zip(kernels) {
        let when = tests
            .iter()
            .filter_map(|test| {
                let (_, answer) = way.tests.iter().find(|(met, _)| met.text == test.text)?;
                Some(if *answer {
                    test.text.clone()
                } else {
                    format!("not ({})", test.text)
                })
            })
            .collect::<Vec<_>>()
            .join(" and ");
        let choice = Choice {
            kernel: *kernel,
            when,
        };
        if !choices.contains(&choice) {
            choices.push(choice);
        }
    }
    let because = format!(
        "{}; decided by {}",
        choices
            .iter()
            .map(|choice| format!("{} when `{}`", choice.kernel.as_str(), choice.when))
            .collect::<Vec<_>>()
            .join(", "),
        causes(&tests)
    );
    Path {
        arch,
        rocm: "any",
        kernel: "depends",
        because,
        by_default: by_default(ways, kernels, &tests),
        choices,
    }
}

/// The only kernel left if every variable in `tests` is unset.
fn by_default(ways: &[CodePath], kernels: &[Kernel], tests: &[Test]) -> Option<Kernel> {
    let unset = |text: &str| {
        let test = tests.iter().find(|test| test.text == text)?;
        match test.causes[..] {
            [Cause::Env(_, unset)] => unset,
            _ => None,
        }
    };
    let mut left = ways
        .iter()
        .zip(kernels)
        .filter(|(way, _)| {
            way.tests
                .iter()
                .all(|(test, answer)| unset(&test.text).is_none_or(|unset| unset == *answer))
        })
        .map(|(_, kernel)| *kernel);
    let first = left.next()?;
    left.all(|kernel| kernel == first).then_some(first)
}

/// The tests whose outcome changes which kernels can be reached.
fn deciding(ways: &[CodePath], kernels: &[Kernel]) -> Vec<Test> {
    let reached = |text: &str, wanted: bool| {
        let mut found: Vec<Kernel> = ways
            .iter()
            .zip(kernels)
            .filter(|(way, _)| {
                way.tests
                    .iter()
                    .any(|(test, answer)| test.text == text && *answer == wanted)
            })
            .map(|(_, kernel)| *kernel)
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    };
    let mut tests: Vec<Test> = Vec::new();
    for (test, _) in ways.iter().flat_map(|way| &way.tests) {
        let (yes, no) = (reached(&test.text, true), reached(&test.text, false));
        // A test whose other outcome leaves through an early exit does not choose a main kernel.
        let chooses = !yes.is_empty() && !no.is_empty() && yes != no;
        if chooses && !tests.iter().any(|known| known.text == test.text) {
            tests.push(test.clone());
        }
    }
    tests
}

fn causes(tests: &[Test]) -> String {
    let mut words: Vec<String> = tests
        .iter()
        .flat_map(|test| &test.causes)
        .map(|cause| match cause {
            Cause::Predicate(name) => format!("the shape (`{name}`)"),
            Cause::Env(name, unset) => {
                let unset = match unset {
                    Some(true) => ", on by default",
                    Some(false) => ", off by default",
                    None => "",
                };
                format!("the environment (`{name}`{unset})")
            }
            Cause::Rows => "the number of rows M".to_owned(),
        })
        .collect();
    words.sort();
    words.dedup();
    if words.is_empty() {
        "the running process".to_owned()
    } else {
        words.join(" and ")
    }
}

fn named(kernel: Kernel) -> &'static str {
    match kernel {
        Kernel::Ck => "`aiter.gemm_a8w8_blockscale`",
        Kernel::Triton => "`aiter.ops.triton` `gemm_a8w8_blockscale`",
        Kernel::Bpreshuffle => "`aiter.gemm_a8w8_blockscale_bpreshuffle`",
    }
}

/// The line of an import statement that has the alias: the statement may span several.
fn binding_line(source: &Source, statement: Span, alias: &str) -> Span {
    let text = source.slice(statement);
    text.rfind(alias)
        .map_or(statement, |at| Span::at(statement.start + at))
}

fn evidence(source: &Source, mut spans: Vec<Span>) -> Vec<Evidence> {
    spans.sort();
    let mut lines: Vec<Evidence> = spans
        .into_iter()
        .map(|span| Evidence {
            file: source.path().to_string(),
            line: source.line_number(span.start),
            text: source.line_at(span.start).trim().to_owned(),
        })
        .collect();
    lines.dedup();
    lines
}

fn ints(items: &[syntax::Expr]) -> Option<Vec<u64>> {
    items
        .iter()
        .map(|item| match item.kind {
            ExprKind::Int(value) => u64::try_from(value).ok(),
            _ => None,
        })
        .collect()
}

/// The (N, K) pairs of the predicate's list.
pub fn triton_shapes(source: &Source) -> Vec<(u64, u64)> {
    let Some((_, predicate)) = syntax::function(source.body(), era::PREDICATE) else {
        return Vec::new();
    };
    let mut shapes = Vec::new();
    for stmt in &predicate.body {
        let StmtKind::Return(Some(value)) = &stmt.kind else {
            continue;
        };
        let ExprKind::Compare(_, syntax::Comparison::In, list) = &value.kind else {
            continue;
        };
        if let ExprKind::Sequence(items) = &list.kind {
            shapes.extend(items.iter().filter_map(|item| match &item.kind {
                ExprKind::Sequence(pair) => match ints(pair)?[..] {
                    [n, k] => Some((n, k)),
                    _ => None,
                },
                _ => None,
            }));
        }
    }
    shapes
}

/// The entries of the tree's table of the largest safe M.
pub fn safe_m(source: &Source) -> Vec<(u64, u64, u64)> {
    source
        .body()
        .iter()
        .find_map(|stmt| match &stmt.kind {
            StmtKind::Assign {
                targets,
                value: Some(value),
            } if targets.iter().any(|target| {
                target.dotted().as_deref() == Some("_AITER_GFX95_CK_W8A8_MAX_SAFE_M")
            }) =>
            {
                match &value.kind {
                    ExprKind::Dict(items) => Some(
                        items
                            .iter()
                            .filter_map(|(key, value)| match (&key.kind, &value.kind) {
                                (ExprKind::Sequence(pair), ExprKind::Int(m)) => {
                                    match ints(pair)?[..] {
                                        [n, k] => Some((n, k, u64::try_from(*m).ok()?)),
                                        _ => None,
                                    }
                                }
                                _ => None,
                            })
                            .collect(),
                    ),
                    _ => None,
                }
            }
            _ => None,
        })
        .unwrap_or_default()
}

fn notes(
    dispatch: &Dispatch<'_>,
    paths: &[Path],
    safe_m: &[(u64, u64, u64)],
    too_old: Option<Unserved>,
) -> Vec<String> {
    let mut notes = vec![
        "paths hold with SGLANG_USE_AITER=1 and the aiter backend (the default then); without it \
         ROCm runs SGLang's own Triton kernel"
            .to_owned(),
    ];
    if let Some(too_old) = too_old {
        notes.push(too_old.to_string());
    } else if dispatch.era == Era::E0 && dispatch.patched_from.is_none() {
        notes.push("it takes no quantised input, as releases before 0.5.6".to_owned());
    } else if dispatch.patched_from.is_some() {
        notes.push(
            "the structure is that of 0.5.6 to 0.5.9 with its Triton import swapped for CK"
                .to_owned(),
        );
    }
    let unguarded: Vec<String> = force::SAFE_M
        .iter()
        .filter(|row| !safe_m.contains(row))
        .map(|(n, k, m)| format!("M > {m} with N={n}, K={k}"))
        .collect();
    let runs_ck = |path: &Path| {
        path.kernel == Kernel::Ck.as_str()
            || path
                .choices
                .iter()
                .any(|choice| choice.kernel == Kernel::Ck)
    };
    if !unguarded.is_empty()
        && paths
            .iter()
            .any(|path| path.arch == Arch::Gfx950 && path.rocm != ">=7.2" && runs_ck(path))
    {
        notes.push(format!(
            "on gfx95x below ROCm 7.2 CK returns NaN for {}, and the release has no guard there: \
             `gemmtune switch apply --to ck` adds it",
            unguarded.join(", ")
        ));
    }
    if dispatch.era >= Era::E5 {
        notes.push("no release reads SGLANG_FORCE_CK_W8A8; setting it changes nothing".to_owned());
    }
    notes
}
