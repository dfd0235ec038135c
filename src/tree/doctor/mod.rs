//! Whether this machine and its trees can be tuned: a table of checks, each with its fix.
//!
//! The checks change nothing. Only [`fix`] does, and only on request.

pub mod caps;
pub mod devices;
pub mod fix;
pub mod machine;
pub mod packages;
pub mod products;
pub mod urls;

use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;

use super::coupling::{self, Coupling};
use super::git::{Ancestry, Checkout, GitError, Submodule, SubmoduleState};
use super::locate::Answer;
use super::package::Package;
use super::{route, version};
use crate::problem::Op;
use crate::proc::{Interrupt, Keeper};
use crate::table::kernels::Library;
use caps::Capabilities;
use products::Products;

/// The oldest aiter that is tuned: "Add run_config and compare in tuner (#2375)", 14 April 2026.
pub const PIN: &str = "303a583c89fe392a39cad7e45d616cc43bde3278";

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// No action needed, but worth knowing.
    Note,
    /// May make a run slower or its result hard to interpret.
    Warning,
    /// A run would fail or mislead.
    Failure,
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    pub verdict: Verdict,
    pub found: String,
    /// How to fix it.
    pub fix: Option<String>,
}

impl Check {
    fn new(name: &'static str, verdict: Verdict, found: impl Into<String>) -> Self {
        Self {
            name,
            verdict,
            found: found.into(),
            fix: None,
        }
    }

    fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

/// What is known about an aiter tree.
#[derive(Clone, Debug, Serialize)]
pub struct Aiter {
    pub package: Utf8PathBuf,
    /// Its capabilities.
    pub capabilities: Capabilities,
    /// Its checkout, if it is one that git can read.
    pub checkout: Option<CheckoutFacts>,
    /// git's error where it cannot: "dubious ownership" in most containers.
    pub unreadable: Option<String>,
    pub products: Products,
    pub tuners: Vec<Utf8PathBuf>,
}

/// What git reports about a checkout.
#[derive(Clone, Debug, Serialize)]
pub struct CheckoutFacts {
    pub root: Utf8PathBuf,
    pub head: String,
    /// Branch, unless detached.
    pub branch: Option<String>,
    /// How the pin relates to it.
    pub pin: Ancestry,
    /// Tracked files with changes.
    pub changed: Vec<String>,
    pub submodules: Vec<Submodule>,
}

/// Inspects the aiter tree whose package is in `package`. A checkout that git refuses to read hides nothing else.
pub fn look_at_aiter(
    package: &Utf8Path,
    variable: impl Fn(&str) -> Option<String>,
    keeper: &Keeper,
    interrupt: &Interrupt,
) -> Aiter {
    let read = Checkout::of(package, keeper, interrupt).map(|checkout| facts_of(&checkout));
    let (facts, unreadable) = match read {
        None => (None, None),
        Some(Ok(facts)) => (Some(facts), None),
        Some(Err(error)) => (None, Some(error.to_string())),
    };
    let checked_out = facts.as_ref().and_then(|(_, moved)| *moved);
    let facts = facts.map(|(facts, _)| facts);
    let jit = products::folder(package, variable);
    Aiter {
        package: package.to_owned(),
        capabilities: Capabilities::read(package),
        checkout: facts,
        unreadable,
        products: products::inspect(&jit, package, checked_out, SystemTime::now()),
        tuners: caps::tuners(package),
    }
}

/// What git reports about a checkout, and when its head was moved to another commit.
fn facts_of(checkout: &Checkout<'_>) -> Result<(CheckoutFacts, Option<SystemTime>), GitError> {
    let head = checkout.head()?;
    let moved = checkout
        .head_moved_at()?
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    let facts = CheckoutFacts {
        root: checkout.root.clone(),
        head,
        branch: checkout.branch()?,
        pin: checkout.ancestry(PIN)?,
        changed: checkout.changed_files()?,
        submodules: checkout.submodules()?,
    };
    Ok((facts, moved))
}

/// The check for a checkout that git could not read.
fn unreadable(said: &str) -> Check {
    let check = Check::new("aiter", Verdict::Failure, said);
    let root = said
        .contains("dubious ownership")
        .then(|| said.split('\'').nth(1))
        .flatten();
    match root {
        Some(root) => check.fix(format!(
            "git reads a folder of another user only where it is declared safe: `git config --global --add safe.directory {root}`"
        )),
        None => check.fix("make `git status` work in that folder"),
    }
}

/// Adds that the reference engine runs here, and downgrades to notes what only the other engines need: for someone
/// who tunes nothing else, a missing torch or SGLang is not an error.
pub fn for_reference_alone(checks: &mut Vec<Check>) {
    for check in checks
        .iter_mut()
        .filter(|check| check.verdict >= Verdict::Warning)
    {
        check.verdict = Verdict::Note;
        check
            .found
            .push_str("; only SGLang and aiter need it, the reference engine does not");
        check.fix = None;
    }
    checks.push(Check::new(
        "reference engine",
        Verdict::Good,
        "built in: `gemmtune demo` runs the whole loop on this CPU. To tune a real server, name its \
         interpreter with `--python`",
    ));
}

/// Checks of an interpreter and of the SGLang that it imports.
pub fn interpreter(answer: &Answer) -> Vec<Check> {
    let mut checks = Vec::new();
    let python = format!("{} (Python {})", answer.executable, answer.version);
    checks.push(if answer.ignores_environment {
        Check::new(
            "interpreter",
            Verdict::Failure,
            format!("{python} ignores PYTHONPATH"),
        )
        .fix("start it without -E and -I: an overlay cannot work otherwise")
    } else {
        Check::new("interpreter", Verdict::Good, python)
    });
    let torch = &answer.torch;
    let stack = match (&torch.hip, &torch.cuda) {
        (Some(hip), _) => format!("ROCm build, HIP {hip}"),
        (None, Some(cuda)) => format!("CUDA build, CUDA {cuda}"),
        (None, None) => "CPU build".to_owned(),
    };
    let beside_aiter = answer.folder("aiter").is_ok() && torch.hip.is_none();
    checks.push(match &torch.version {
        Some(version) if beside_aiter => Check::new(
            "torch",
            Verdict::Failure,
            format!("{version}, {stack}, beside aiter, whose kernels need a ROCm build"),
        )
        .fix("install the ROCm build of torch into this interpreter, or name the one that serves with `--python`"),
        Some(version) => Check::new("torch", Verdict::Good, format!("{version}, {stack}")),
        None => Check::new("torch", Verdict::Failure, "not importable")
            .fix("install torch into this interpreter"),
    });
    for package in ["sglang", "aiter"] {
        for folder in answer.shadowed(package) {
            checks.push(
                Check::new(
                    "second install",
                    Verdict::Warning,
                    format!("`{package}` is also in {folder}, hidden behind the one in use"),
                )
                .fix(
                    "remove the one that is not meant, or keep PYTHONPATH as it is for every start",
                ),
            );
        }
    }
    checks
}

/// Checks of an SGLang tree.
pub fn sglang(folder: &Utf8Path) -> Vec<Check> {
    let package = match Package::find(folder) {
        Ok(package) => package,
        Err(error) => return vec![Check::new("SGLang", Verdict::Failure, error.to_string())],
    };
    let named = package
        .version
        .as_deref()
        .unwrap_or("no version of its own");
    let mut checks = vec![match version::served(package.version.as_deref()) {
        Ok(()) => Check::new(
            "SGLang",
            Verdict::Good,
            format!("{named} in {}", package.folder),
        ),
        Err(error) => Check::new("SGLang", Verdict::Failure, error.to_string())
            .fix(format!("install {} or newer", version::OLDEST_SGLANG)),
    }];
    checks.push(match route::trace(&package) {
        Ok(trace) => {
            let era = serde_json::to_value(trace.era)
                .ok()
                .and_then(|era| era.as_str().map(str::to_owned));
            Check::new(
                "GEMM path",
                Verdict::Good,
                format!("era {}", era.unwrap_or_default()),
            )
        }
        Err(error) => Check::new("GEMM path", Verdict::Failure, error.to_string())
            .fix("run `gemmtune trace` on it for the place"),
    });
    checks
}

/// Checks of an aiter tree.
pub fn aiter(aiter: &Aiter) -> Vec<Check> {
    let mut checks = Vec::new();
    match (&aiter.checkout, &aiter.unreadable) {
        (Some(facts), _) => checks.extend(checkout(facts, &aiter.capabilities)),
        (None, Some(said)) => checks.push(unreadable(said)),
        (None, None) => checks.push(Check::new(
            "aiter",
            Verdict::Good,
            format!("installed in {}, no checkout", aiter.package),
        )),
    }
    let missing = &aiter.capabilities.missing;
    checks.push(if missing.is_empty() {
        Check::new(
            "aiter capabilities",
            Verdict::Good,
            format!(
                "{} found, all that are needed",
                aiter.capabilities.present.len()
            ),
        )
    } else {
        let listed: Vec<_> = missing
            .iter()
            .map(|(name, meaning)| format!("{name} ({meaning})"))
            .collect();
        Check::new(
            "aiter capabilities",
            Verdict::Failure,
            format!("missing: {}", listed.join("; ")),
        )
        .fix(FIX)
    });
    checks.extend(products(&aiter.products));
    checks.push(after_a_table_change(&aiter.capabilities));
    checks.push(if aiter.tuners.is_empty() {
        Check::new("tuner scripts", Verdict::Failure, "none under csrc/ck_*")
            .fix("install aiter from a checkout, or with its aiter_meta package")
    } else {
        let names: Vec<_> = aiter
            .tuners
            .iter()
            .filter_map(|path| path.file_name())
            .collect();
        Check::new("tuner scripts", Verdict::Good, names.join(", "))
    });
    if aiter.capabilities.has("setup-replaces-triton") {
        checks.push(Check::new(
            "Triton",
            Verdict::Note,
            "this setup.py replaces the installed Triton unless AITER_USE_SYSTEM_TRITON=1; `doctor --fix` sets it",
        ));
    }
    checks
}

/// Which operations need their modules rebuilt for a new table.
fn after_a_table_change(capabilities: &Capabilities) -> Check {
    let by_name = |functions: &[(Library, &str)], op| {
        functions
            .iter()
            .all(|(library, _)| capabilities.coupling(op, *library) == Coupling::ByName)
    };
    let (mut named, mut compiled) = (Vec::new(), Vec::new());
    for (op, aiter) in coupling::tabled() {
        if by_name(aiter.functions, op) {
            named.push(op);
        } else {
            compiled.push(op);
        }
    }
    let list = |ops: &[Op]| {
        let names: Vec<&str> = ops.iter().map(|op| op.name()).collect();
        names.join(", ")
    };
    let mut found = Vec::new();
    if !compiled.is_empty() {
        found.push(format!(
            "the table of {} is compiled into its modules here: modules and build folders must go, or the new table is ignored silently",
            list(&compiled)
        ));
    }
    if !named.is_empty() {
        found.push(format!(
            "{}: no rebuild, unless the table names a kernel that a module lacks",
            list(&named)
        ));
    }
    Check::new("after a table change", Verdict::Note, found.join("; "))
}

const FIX: &str = "`gemmtune doctor --fix` realigns the checkout (see `--dry-run` first)";

fn checkout(facts: &CheckoutFacts, capabilities: &Capabilities) -> Vec<Check> {
    let place = format!(
        "{} on {}",
        &facts.head[..facts.head.len().min(12)],
        facts.branch.as_deref().unwrap_or("no branch")
    );
    let able = capabilities.missing.is_empty();
    let rewritten = "aiter's main branch was rewritten in March 2026";
    let (verdict, found) = match facts.pin {
        Ancestry::Ancestor => (
            Verdict::Good,
            format!("{place}, the pin {} is an ancestor", &PIN[..12]),
        ),
        // Ancestry is not what counts; capabilities are.
        _ if able => (
            Verdict::Good,
            format!(
                "{place}: not a descendant of the pin, which proves nothing ({rewritten}); it can do what is needed"
            ),
        ),
        Ancestry::NotAncestor => (
            Verdict::Failure,
            format!("{place}, older than the pin {} or beside it", &PIN[..12]),
        ),
        Ancestry::Unrelated => (
            Verdict::Failure,
            format!(
                "{place} shares no history with the pin: {rewritten}, and `git pull` cannot get over that"
            ),
        ),
        Ancestry::Absent => (
            Verdict::Failure,
            format!("{place}, and the pin {} was never fetched", &PIN[..12]),
        ),
        Ancestry::Shallow => (
            Verdict::Failure,
            format!("{place}, a shallow clone, which does not hold the ancestry"),
        ),
    };
    let mut checks = vec![Check::new("aiter", verdict, found)];
    if verdict == Verdict::Failure {
        checks[0].fix = Some(FIX.to_owned());
    }
    if !facts.changed.is_empty() {
        checks.push(
            Check::new(
                "aiter work tree",
                Verdict::Warning,
                format!("changed: {}", facts.changed.join(", ")),
            )
            .fix("commit or put them away: `--fix` refuses a tree with changes"),
        );
    }
    let off: Vec<_> = facts
        .submodules
        .iter()
        .filter(|module| module.state != SubmoduleState::Current)
        .collect();
    checks.push(if off.is_empty() {
        Check::new("aiter submodules", Verdict::Good, format!("{} at their recorded commits", facts.submodules.len()))
    } else {
        let listed: Vec<_> = off
            .iter()
            .map(|module| {
                let state = match module.state {
                    SubmoduleState::Missing => "not initialised",
                    SubmoduleState::Other => "at another commit",
                    SubmoduleState::Conflict => "in conflict",
                    SubmoduleState::Current => "current",
                };
                format!("{} {state}", module.path)
            })
            .collect();
        Check::new("aiter submodules", Verdict::Failure, listed.join(", "))
            .fix("`git submodule sync && git submodule update --init --recursive`, or `gemmtune doctor --fix`")
    });
    checks
}

fn products(products: &Products) -> Vec<Check> {
    let mut checks = Vec::new();
    let names = |paths: &[Utf8PathBuf]| {
        paths
            .iter()
            .filter_map(|path| path.file_name())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let stale = if products.other_revision.is_empty() {
        &products.older_than_sources
    } else {
        &products.other_revision
    };
    let why = if products.other_revision.is_empty() {
        "older than the sources"
    } else {
        "built before this commit was checked out"
    };
    checks.push(if stale.is_empty() {
        Check::new(
            "compiled modules",
            Verdict::Good,
            format!("{} in {}", products.modules.len(), products.folder),
        )
    } else {
        Check::new(
            "compiled modules",
            Verdict::Failure,
            format!("{why}: {}", names(stale)),
        )
        .fix(format!(
            "remove `{0}/*.so` and `{0}/build/*`, or `gemmtune doctor --fix`",
            products.folder
        ))
    });
    if !products.stale_locks.is_empty() {
        let locks: Vec<_> = products
            .stale_locks
            .iter()
            .map(|lock| lock.as_str())
            .collect();
        checks.push(
            Check::new(
                "build locks",
                Verdict::Failure,
                format!(
                    "left by a dead builder; the next one waits forever: {}",
                    locks.join(", ")
                ),
            )
            .fix(format!("rm {}", locks.join(" "))),
        );
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(pin: Ancestry) -> CheckoutFacts {
        CheckoutFacts {
            root: "/src/aiter".into(),
            head: "de14bec0ca0000000000".to_owned(),
            branch: None,
            pin,
            changed: Vec::new(),
            submodules: Vec::new(),
        }
    }

    #[test]
    fn ancestry_counts_only_where_the_capabilities_do_not_tell() {
        let able = Capabilities {
            present: vec!["libtype"],
            ..Capabilities::default()
        };
        let unable = Capabilities {
            missing: vec![("run-config", "x")],
            ..Capabilities::default()
        };
        assert_eq!(
            checkout(&facts(Ancestry::Unrelated), &able)[0].verdict,
            Verdict::Good
        );
        let check = &checkout(&facts(Ancestry::Unrelated), &unable)[0];
        assert_eq!(check.verdict, Verdict::Failure);
        insta::assert_snapshot!(check.found, @"de14bec0ca00 on no branch shares no history with the pin: aiter's main branch was rewritten in March 2026, and `git pull` cannot get over that");
        insta::assert_snapshot!(check.fix.as_ref().unwrap(), @"`gemmtune doctor --fix` realigns the checkout (see `--dry-run` first)");
        insta::assert_snapshot!(checkout(&facts(Ancestry::Shallow), &unable)[0].found, @"de14bec0ca00 on no branch, a shallow clone, which does not hold the ancestry");
    }
}
