//! Realigns an aiter checkout: the steps of the playbook, each shown before it runs, all of them undone when one fails.
//!
//! Nothing is deleted: compiled modules and build folders are moved aside, so that going back is moving them back. The
//! checkout's previous head is recorded before the first step. Application code is never touched: a
//! missing `aiter_tensor_t` is cured by one tree with modules of its own, not by a shim.

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::proc::{Interrupt, Keeper, RunError, run};
use crate::store::file::write_atomic;
use crate::tree::git::{Checkout, GitError, REMOTE, SubmoduleState};

/// Folder inside the git folder for what is moved aside and recorded.
const ASIDE: &str = "gemmtune";

/// Longest that installing may take: it builds nothing by default, but downloads what it depends on.
const INSTALL: Duration = Duration::from_secs(1800);

/// What is to be done to a checkout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The checkout.
    pub root: Utf8PathBuf,
    /// Its head before.
    pub previous: Previous,
    /// Commit to check out, as it was named.
    pub target: String,
    /// The steps, in order.
    pub steps: Vec<Step>,
}

/// What was checked out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    /// Its commit.
    pub commit: String,
    /// The branch, unless the head was detached.
    pub branch: Option<String>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// A git command.
    Git {
        /// Its arguments.
        arguments: Vec<String>,
    },
    /// Compiled modules and build folders go aside.
    MoveAside {
        /// What goes.
        paths: Vec<Utf8PathBuf>,
    },
    /// The tree is installed again into the interpreter that uses it.
    Install {
        /// Program and arguments.
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

/// What was done, for the way back; kept in the git folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// What was checked out before.
    pub previous: Previous,
    /// What was moved: from, to.
    pub moved: Vec<(Utf8PathBuf, Utf8PathBuf)>,
    /// Submodules that were not initialised before.
    pub initialised: Vec<String>,
    /// Submodules that stood at another commit than the recorded one, and at which: it may be nowhere else.
    #[serde(default)]
    pub stood: Vec<(String, String)>,
    /// Whether every step ran.
    pub complete: bool,
}

/// Why a checkout was not realigned.
#[derive(Debug, thiserror::Error)]
pub enum FixError {
    /// There are changes that a checkout could lose.
    #[error("change `{root}`: {} tracked files are changed there: {}", files.len(), files.join(", "))]
    Dirty {
        /// The checkout.
        root: Utf8PathBuf,
        /// The files.
        files: Vec<String>,
    },
    /// git fails before anything was changed.
    #[error(transparent)]
    Git(#[from] GitError),
    /// Something could not be written before anything was changed.
    #[error("prepare the way back")]
    Prepare(#[source] std::io::Error),
    /// A step failed, and the tree is as it was.
    #[error("{step}: {said}; the tree is as it was")]
    StepFailed {
        /// The step.
        step: String,
        /// What went wrong.
        said: String,
    },
    /// A step failed, and so did the way back.
    #[error("{step}: {said}; and going back failed too: {back}")]
    Stuck {
        /// The step.
        step: String,
        /// What went wrong.
        said: String,
        /// What went wrong on the way back.
        back: String,
    },
    /// Nothing to undo.
    #[error("undo: no realignment of `{0}` is recorded")]
    NothingDone(Utf8PathBuf),
}

/// Plans the realignment of `checkout` to `target`. `products` is what was compiled there, `python` the interpreter to
/// install into. Refuses a tree with changes.
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
        // A shallow clone must be deepened, or the commit does not come with it.
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
    // What the playbook runs; it builds nothing, modules are compiled at first use.
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

/// Carries the plan out, saying each step before it starts. When a step fails, everything before it is taken back.
pub fn execute(
    checkout: &Checkout<'_>,
    plan: &Plan,
    keeper: &Keeper,
    interrupt: &Interrupt,
    mut say: impl FnMut(&Step),
) -> Result<Done, FixError> {
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
        complete: false,
    };
    let aside = git_folder(checkout)?.join(ASIDE);
    fs_err::create_dir_all(&aside).map_err(FixError::Prepare)?;
    record(&aside, &done)?;
    for step in &plan.steps {
        say(step);
        if let Err(said) = carry_out(checkout, step, &aside, &mut done, keeper, interrupt) {
            let step = step.to_string();
            return Err(match back(checkout, &aside, &done) {
                Ok(()) => FixError::StepFailed { step, said },
                Err(back) => FixError::Stuck { step, said, back },
            });
        }
    }
    done.complete = true;
    record(&aside, &done)?;
    Ok(done)
}

/// Takes the last realignment back.
pub fn undo(checkout: &Checkout<'_>) -> Result<Done, FixError> {
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
    match back(checkout, &aside, &done) {
        Ok(()) => Ok(done),
        Err(said) => Err(FixError::StepFailed {
            step: "going back".to_owned(),
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
    keeper: &Keeper,
    interrupt: &Interrupt,
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
                // Recorded first: a kill in between leaves a record of a move that is easily seen not to have been made.
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
            // Without it, newer setup.py files replace the installed Triton, which is the baseline to be beaten.
            let env = [("AITER_USE_SYSTEM_TRITON".to_owned(), Some("1".to_owned()))];
            let ran = run(
                keeper,
                argv,
                Some(checkout.root.clone()),
                env,
                INSTALL,
                interrupt,
            )
            .map_err(|error: RunError| error.to_string())?;
            if ran.code == 0 {
                return Ok(());
            }
            let text = String::from_utf8_lossy(&ran.stderr);
            let last = text
                .lines()
                .rfind(|line| !line.trim().is_empty())
                .unwrap_or("it said nothing");
            Err(format!("exit code {}: {last}", ran.code))
        }
    }
}

/// Puts everything back that was changed, in reverse order. An installation needs no undoing: it points to the folder.
fn back(checkout: &Checkout<'_>, aside: &Utf8Path, done: &Done) -> Result<(), String> {
    let git = |arguments: &[&str]| {
        checkout
            .git(arguments, REMOTE)
            .map(drop)
            .map_err(|error| error.to_string())
    };
    for (from, to) in done.moved.iter().rev().filter(|(_, to)| to.exists()) {
        // What was compiled since belongs to the other revision.
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
        // Fails where the step never came to this one.
        let _ = git(&["submodule", "deinit", "--force", path]);
    }
    let update = ["submodule", "update", "--recursive"];
    git(&update)?;
    for (path, commit) in &done.stood {
        git(&["-C", path, "checkout", "--quiet", "--detach", commit])?;
    }
    fs_err::remove_file(aside.join("done.json")).map_err(|error| error.to_string())
}
