//! Realigns an aiter checkout: the steps of the playbook, each announced before it runs, all of them undone when one
//! fails.
//!
//! Nothing is deleted: compiled modules and build folders are moved aside, so that undoing means moving them back.
//! The checkout's previous head is recorded before the first step. Application code is never touched: a missing
//! `aiter_tensor_t` is fixed by one tree with its own modules, not by a shim.

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use super::packages::{self, Change, Python};
use super::urls::{self, Urls};
use crate::proc::{Interrupt, Keeper, RunError, run};
use crate::store::file::write_atomic;
use crate::tree::git::{Checkout, GitError, REMOTE, SubmoduleState};

/// Folder inside the git folder for files moved aside and for the record.
const ASIDE: &str = "gemmtune";

/// Time limit of an installation: it builds nothing by default, but downloads its dependencies.
const INSTALL: Duration = Duration::from_secs(1800);

/// Lines shown of a failed installation: pip's reason is some lines before the last one, under a traceback of
/// `setup.py`.
const SHOWN: usize = 40;

/// The steps that realign a checkout, for review before they run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    pub root: Utf8PathBuf,
    pub previous: Previous,
    /// Commit to check out, as it was named.
    pub target: String,
    /// The steps, in order.
    pub steps: Vec<Step>,
}

impl Plan {
    /// The interpreter that aiter is installed into.
    pub fn python<'a>(&'a self, keeper: &'a Keeper, interrupt: &'a Interrupt) -> Python<'a> {
        let path = self.steps.iter().find_map(|step| match step {
            Step::Install { argv } => argv.first(),
            _ => None,
        });
        Python {
            path: Utf8Path::new(path.map_or("python3", String::as_str)),
            keeper,
            interrupt,
        }
    }
}

/// What was checked out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    pub commit: String,
    /// The branch, unless the head was detached.
    pub branch: Option<String>,
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    Git {
        arguments: Vec<String>,
    },
    /// Moves compiled modules and build folders aside.
    MoveAside {
        paths: Vec<Utf8PathBuf>,
    },
    /// Installs the tree again into the interpreter that uses it.
    Install {
        argv: Vec<String>,
    },
}

impl std::fmt::Display for Step {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Git { arguments } => write!(formatter, "git {}", arguments.join(" ")),
            Self::MoveAside { paths } => write!(
                formatter,
                "move {} compiled modules and build folders aside",
                paths.len()
            ),
            Self::Install { argv } => {
                write!(formatter, "AITER_USE_SYSTEM_TRITON=1 {}", argv.join(" "))
            }
        }
    }
}

/// What was done, for undoing it; stored in the git folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// What was checked out before.
    pub previous: Previous,
    /// What was moved: from, to.
    pub moved: Vec<(Utf8PathBuf, Utf8PathBuf)>,
    /// Submodules that were not initialised before.
    pub initialised: Vec<String>,
    /// Submodules that were at a commit other than the recorded one, and which: it may exist nowhere else.
    #[serde(default)]
    pub stood: Vec<(String, String)>,
    /// URLs that `submodule sync` and `init` may rewrite.
    #[serde(default)]
    pub urls: Vec<Urls>,
    /// The interpreter that aiter was installed into.
    #[serde(default)]
    pub python: Utf8PathBuf,
    /// What the installation changed there, besides the tree itself.
    #[serde(default)]
    pub packages: Vec<Change>,
    /// Whether every step ran.
    pub complete: bool,
}

/// Why a checkout was not realigned.
#[derive(Debug, thiserror::Error)]
pub enum FixError {
    /// There are changes that could be lost.
    #[error("change `{root}`: {} tracked files are changed there: {}", files.len(), files.join(", "))]
    Dirty {
        root: Utf8PathBuf,
        files: Vec<String>,
    },
    /// git failed before anything was changed.
    #[error(transparent)]
    Git(#[from] GitError),
    /// Something could not be written before anything was changed.
    #[error("prepare the way back")]
    Prepare(#[source] std::io::Error),
    /// A package that the commit itself requires is not available.
    #[error(
        "install {target}: its setup.py needs {requirement}, which pip's registry does not have (it has {}); the tree is as it was",
        listed(versions)
    )]
    CannotInstall {
        target: String,
        requirement: String,
        /// Versions that are available.
        versions: Vec<String>,
        /// The oldest later commit whose requirements are available.
        later: Option<String>,
    },
    /// A step failed, and the tree was restored.
    #[error("{step}: {said}\nthe tree is as it was{left}")]
    StepFailed {
        step: String,
        said: String,
        /// What could not be restored in the interpreter, in words; empty if everything was.
        left: String,
    },
    /// A step failed, and so did undoing.
    #[error("{step}: {said}; and going back failed too: {back}")]
    Stuck {
        step: String,
        said: String,
        /// The error while undoing.
        back: String,
    },
    #[error("undo: no realignment of `{0}` is recorded")]
    NothingDone(Utf8PathBuf),
}

/// Plans the realignment of `checkout` to `target`. `products` is what was compiled there, `python` the interpreter
/// to install into. Refuses a tree with uncommitted changes.
pub fn plan(
    checkout: &Checkout<'_>,
    target: &str,
    products: Vec<Utf8PathBuf>,
    python: &Utf8Path,
) -> Result<Plan, FixError> {
    let files = checkout.changed_files()?;
    if !files.is_empty() {
        return Err(FixError::Dirty {
            root: checkout.root.clone(),
            files,
        });
    }
    let previous = Previous {
        commit: checkout.head()?,
        branch: checkout.branch()?,
    };
    let git = |arguments: &[&str]| Step::Git {
        arguments: arguments.iter().map(ToString::to_string).collect(),
    };
    let mut steps = Vec::new();
    let present = checkout.commit(target)?;
    if present.is_none() {
        let remote = checkout.remote()?;
        // A shallow clone must be deepened, or the commit is not fetched with it.
        steps.push(if checkout.is_shallow()? {
            git(&["fetch", "--unshallow", "--tags", &remote])
        } else {
            git(&["fetch", "--tags", &remote])
        });
    }
    if present.as_deref() != Some(previous.commit.as_str()) {
        steps.push(git(&["checkout", "--detach", target]));
    }
    steps.push(git(&["submodule", "sync", "--recursive"]));
    steps.push(git(&["submodule", "update", "--init", "--recursive"]));
    if !products.is_empty() {
        steps.push(Step::MoveAside { paths: products });
    }
    // The playbook's command; it builds nothing, since modules are compiled at first use.
    let install = [python.as_str(), "setup.py", "develop"];
    steps.push(Step::Install {
        argv: install.map(str::to_owned).to_vec(),
    });
    Ok(Plan {
        root: checkout.root.clone(),
        previous,
        target: target.to_owned(),
        steps,
    })
}

/// Carries out the plan, announcing each step before it starts. When a step fails, everything before it is undone.
pub fn execute(
    checkout: &Checkout<'_>,
    plan: &Plan,
    keeper: &Keeper,
    interrupt: &Interrupt,
    mut say: impl FnMut(&Step),
) -> Result<Done, FixError> {
    let python = plan.python(keeper, interrupt);
    let mut unchecked = checkout.commit(&plan.target)?.is_none();
    if !unchecked {
        installable(checkout, &plan.target, python)?;
    }
    let modules = checkout.submodules()?;
    let in_state = |state| modules.iter().filter(move |module| module.state == state);
    let mut done = Done {
        previous: plan.previous.clone(),
        moved: Vec::new(),
        initialised: in_state(SubmoduleState::Missing)
            .map(|module| module.path.clone())
            .collect(),
        stood: in_state(SubmoduleState::Other)
            .map(|module| (module.path.clone(), module.commit.clone()))
            .collect(),
        urls: urls::read(checkout, &git_folder(checkout)?),
        python: python.path.to_owned(),
        packages: Vec::new(),
        complete: false,
    };
    let aside = git_folder(checkout)?.join(ASIDE);
    fs_err::create_dir_all(&aside).map_err(FixError::Prepare)?;
    record(&aside, &done)?;
    for step in &plan.steps {
        say(step);
        if let Err(said) = carry_out(checkout, step, &aside, &mut done, python) {
            let step = step.to_string();
            return Err(match back(checkout, &aside, &done, python) {
                Ok(left) => FixError::StepFailed {
                    step,
                    said,
                    left: told(&left),
                },
                Err(back) => FixError::Stuck { step, said, back },
            });
        }
        if std::mem::take(&mut unchecked)
            && let Err(error) = installable(checkout, &plan.target, python)
        {
            // Only a fetch was done so far, so there is nothing to undo but the record.
            fs_err::remove_file(aside.join("done.json")).map_err(FixError::Prepare)?;
            return Err(error);
        }
    }
    done.complete = true;
    record(&aside, &done)?;
    Ok(done)
}

/// What could not be restored in the interpreter, as the end of a sentence.
fn told(left: &[String]) -> String {
    if left.is_empty() {
        String::new()
    } else {
        format!(", but for what was installed: {}", left.join("; "))
    }
}

/// Refuses a commit whose `setup.py` requires what the registry does not have, and suggests the oldest later commit
/// that does not.
pub fn installable(
    checkout: &Checkout<'_>,
    target: &str,
    python: Python<'_>,
) -> Result<(), FixError> {
    let setup = |commit: &str| {
        checkout
            .git(&["show", &format!("{commit}:setup.py")], REMOTE)
            .map(|text| packages::pinned(text.as_bytes()))
            .unwrap_or_default()
    };
    let pins = setup(target);
    if pins.is_empty() {
        return Ok(());
    }
    let installed = python.installed();
    for requirement in pins {
        let Some((name, version)) = requirement.split_once("==") else {
            continue;
        };
        if installed.get(name).is_some_and(|there| there == version) {
            continue;
        }
        let Some(versions) = python.lacking(&requirement) else {
            continue;
        };
        let newer = newer(checkout, target).unwrap_or_default();
        let later = newer.lines().find(|commit| {
            setup(commit).iter().all(|pin| {
                pin.split_once("==").is_none_or(|(other, version)| {
                    other != name || versions.iter().any(|there| there == version)
                })
            })
        });
        return Err(FixError::CannotInstall {
            target: target.to_owned(),
            later: later.map(str::to_owned),
            requirement,
            versions,
        });
    }
    Ok(())
}

/// Commits after `target` that changed `setup.py`, oldest first; on the remote's main line, where it is known.
fn newer(checkout: &Checkout<'_>, target: &str) -> Result<String, GitError> {
    let remote = checkout.remote()?;
    let mut line = vec!["--all".to_owned()];
    for name in ["HEAD", "main"] {
        let reference = format!("refs/remotes/{remote}/{name}");
        if checkout.commit(&reference)?.is_some() {
            line = vec!["--first-parent".to_owned(), reference];
            break;
        }
    }
    let since = format!("^{target}");
    let mut arguments = vec!["rev-list", "--reverse", "--ancestry-path", &since];
    arguments.extend(line.iter().map(String::as_str));
    arguments.extend(["--", "setup.py"]);
    checkout.git(&arguments, REMOTE)
}

/// A few versions, or the first and the last of many.
fn listed(versions: &[String]) -> String {
    match versions {
        [] => "none".to_owned(),
        [first, .., last] if versions.len() > 4 => {
            format!("{} others, {first} to {last}", versions.len())
        }
        few => few.join(", "),
    }
}

/// Undoes the last realignment; returns its record, and what could not be restored in the interpreter.
pub fn undo(
    checkout: &Checkout<'_>,
    keeper: &Keeper,
    interrupt: &Interrupt,
) -> Result<(Done, Vec<String>), FixError> {
    let aside = git_folder(checkout)?.join(ASIDE);
    let nothing = || FixError::NothingDone(checkout.root.clone());
    let text = fs_err::read(aside.join("done.json")).map_err(|_| nothing())?;
    let done: Done = serde_json::from_slice(&text).map_err(|_| nothing())?;
    let files = checkout.changed_files()?;
    if !files.is_empty() {
        return Err(FixError::Dirty {
            root: checkout.root.clone(),
            files,
        });
    }
    let python = done.python.clone();
    let python = Python {
        path: &python,
        keeper,
        interrupt,
    };
    match back(checkout, &aside, &done, python) {
        Ok(left) => Ok((done, left)),
        Err(said) => Err(FixError::Stuck {
            step: "going back".to_owned(),
            back: said.clone(),
            said,
        }),
    }
}

fn git_folder(checkout: &Checkout<'_>) -> Result<Utf8PathBuf, FixError> {
    let folder = checkout.git(
        &["rev-parse", "--absolute-git-dir"],
        Duration::from_secs(60),
    )?;
    Ok(folder.trim().into())
}

fn record(aside: &Utf8Path, done: &Done) -> Result<(), FixError> {
    let text = serde_json::to_vec_pretty(done).map_err(|error| FixError::Prepare(error.into()))?;
    write_atomic(&aside.join("done.json"), &text).map_err(FixError::Prepare)
}

fn carry_out(
    checkout: &Checkout<'_>,
    step: &Step,
    aside: &Utf8Path,
    done: &mut Done,
    python: Python<'_>,
) -> Result<(), String> {
    match step {
        Step::Git { arguments } => {
            let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
            checkout
                .git(&arguments, REMOTE)
                .map(drop)
                .map_err(|error| error.to_string())
        }
        Step::MoveAside { paths } => {
            for from in paths {
                let to = aside
                    .join("products")
                    .join(from.strip_prefix("/").unwrap_or(from));
                // Recorded first: after a kill in between, it is easy to see that a recorded move was not made.
                done.moved.push((from.clone(), to.clone()));
                record(aside, done).map_err(|error| error.to_string())?;
                let parent = to.parent().unwrap_or(aside);
                fs_err::create_dir_all(parent)
                    .and_then(|()| fs_err::rename(from, &to))
                    .map_err(|error| error.to_string())?;
            }
            Ok(())
        }
        Step::Install { argv } => {
            // Without it, newer setup.py files replace the installed Triton, which is the baseline to compare with.
            let env = [("AITER_USE_SYSTEM_TRITON".to_owned(), Some("1".to_owned()))];
            let before = python.installed();
            let ran = run(
                python.keeper,
                argv,
                Some(checkout.root.clone()),
                env,
                INSTALL,
                python.interrupt,
            );
            done.packages = packages::changes(&before, &python.installed());
            record(aside, done).map_err(|error| error.to_string())?;
            let ran = ran.map_err(|error: RunError| error.to_string())?;
            let log = aside.join("install.log");
            let said = [ran.stdout.as_slice(), ran.stderr.as_slice()].concat();
            write_atomic(&log, &said).map_err(|error| error.to_string())?;
            if ran.code == 0 {
                return Ok(());
            }
            Err(format!(
                "exit code {}; all it said is in `{log}`, and the end of it:\n{}",
                ran.code,
                packages::last_lines(&ran, SHOWN)
            ))
        }
    }
}

/// Restores everything that was changed, in reverse order; returns what could not be restored in the interpreter. The
/// tree's own installation needs no undoing if it existed before: it points to the folder.
fn back(
    checkout: &Checkout<'_>,
    aside: &Utf8Path,
    done: &Done,
    python: Python<'_>,
) -> Result<Vec<String>, String> {
    let left = python.take_back(&done.packages);
    let git = |arguments: &[&str]| {
        checkout
            .git(arguments, REMOTE)
            .map(drop)
            .map_err(|error| error.to_string())
    };
    for (from, to) in done.moved.iter().rev().filter(|(_, to)| to.exists()) {
        // What was compiled since then belongs to the other revision.
        if from.is_dir() {
            fs_err::remove_dir_all(from).map_err(|error| error.to_string())?;
        }
        fs_err::rename(to, from).map_err(|error| error.to_string())?;
    }
    git(&[
        "checkout",
        "--force",
        done.previous
            .branch
            .as_deref()
            .unwrap_or(&done.previous.commit),
    ])?;
    for path in &done.initialised {
        // Fails if this step was never reached.
        let _ = git(&["submodule", "deinit", "--force", path]);
    }
    let update = ["submodule", "update", "--recursive"];
    git(&update)?;
    for (path, commit) in &done.stood {
        git(&["-C", path, "checkout", "--quiet", "--detach", commit])?;
    }
    urls::restore(checkout, &done.urls).map_err(|error| error.to_string())?;
    fs_err::remove_file(aside.join("done.json")).map_err(|error| error.to_string())?;
    Ok(left)
}
