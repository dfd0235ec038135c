//! aiter's own tuner, driven and supervised.
//!
//! The tuner script of the user's tree does the search ([`scripts`], [`flags`]); this room decides which shapes it
//! gets ([`queue`]), watches it while it works ([`attempt`], [`output`]), takes over rows as they are written and
//! judges them by its CSV, never by its exit code ([`rows`], [`accept`]). It starts processes and writes files below
//! its own folder only; it never prints, and never writes into the tree.

mod accept;
mod argparse;
mod attempt;
mod command;
pub mod flags;
pub mod fmoe;
mod keep;
mod kept;
mod memory;
mod notices;
mod outcome;
mod output;
mod prepare;
mod queue;
mod rows;
mod run;
pub mod scripts;
mod session;
mod site;
mod starts;

use std::collections::BTreeMap;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};

use super::results::ResultsError;
use crate::problem::op::ERR_RATIO_LIMIT;
use crate::problem::{Op, Shape};
use crate::proc::{Interrupt, Keeper, RunError, SpawnError};
use crate::pyedit::source::SourceError;
use crate::store::journal::JournalError;
use crate::workload::share::Share;

pub use command::FlagError;
pub use outcome::{Accepted, AiterOutcome, LibraryCount, Refused};
pub use prepare::{DeviceSeen, Preview, preview};
pub use run::tune;
pub use scripts::Script;
pub use site::Seen;

/// The backend's name, on the command line and in results.
pub const BACKEND: &str = "aiter";

/// What serves a shape today.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Incumbent {
    /// Its time, µs.
    pub us: f64,
    /// A description: `the shipped row`, `Triton`.
    pub what: String,
}

/// Time limits, and how wrong numbers may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Limit for one candidate, applied by the tuner itself. If that limit also counts waiting in the queue, or
    /// applies to a whole shape, the tuner gets a multiple of it.
    pub task: Duration,
    /// After this long without a line, a row or a build the tuner counts as hanging and is ended. It is raised above
    /// the tuner's own limit where that one is sure to act.
    pub silence: Duration,
    /// Limit for one batch, builds excluded.
    pub batch: Duration,
    /// Limit for compiling a module; all candidates of an operation are in one module.
    pub build: Duration,
    /// Largest share of elements outside the tuner's tolerance.
    pub err_ratio: f64,
}

impl Limits {
    /// The default limits, with `err_ratio` for the share of wrong elements if given, else `usual`.
    pub fn with(err_ratio: Option<Share>, usual: f64) -> Self {
        Self {
            err_ratio: err_ratio.map_or(usual, Share::get),
            ..Self::default()
        }
    }

    /// A remark on rows if more wrong elements are allowed than `usual`.
    fn lenient(&self, usual: f64) -> Option<String> {
        (self.err_ratio > usual).then(|| {
            format!(
                "rows are taken here with up to {:.1} % of a stage's numbers wrong, and {:.1} % is what is allowed otherwise",
                self.err_ratio * 100.0,
                usual * 100.0
            )
        })
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // A candidate is 106 launches and one reference product: seconds on an idle GPU.
            task: Duration::from_secs(180),
            silence: Duration::from_secs(300),
            batch: Duration::from_secs(45 * 60),
            // 142 to 726 seconds have been reported for one module (ROCm/aiter issues 5266, 882).
            build: Duration::from_secs(60 * 60),
            err_ratio: ERR_RATIO_LIMIT,
        }
    }
}

/// Settings of a run that have a default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Rows in use today, for any device: those for exactly the shape and this device are incumbents too.
    pub shipped: Vec<crate::table::aiter::Row>,
    /// Shapes in a batch: the most that a kill loses.
    pub batch: Option<usize>,
    pub devices: Option<u32>,
    pub libtype: Option<String>,
    /// Whether to search splits of K; if absent, where they have an effect.
    pub split_k: Option<bool>,
    /// Whether shapes that failed in an earlier run should be tried again.
    pub retry_failed: bool,
}

/// What to tune, and with what.
#[derive(Debug)]
pub struct AiterOrder<'a> {
    /// The aiter tree: its package folder, or the folder that contains it.
    pub tree: &'a Utf8Path,
    /// The interpreter the server runs under.
    pub python: &'a Utf8Path,
    /// Variables set or removed relative to our own environment. A `PYTHONPATH` that should be kept must be in here.
    pub env: &'a BTreeMap<String, Option<String>>,
    pub op: Op,
    /// Shapes, most valuable first: a budget leaves out the last ones.
    pub untuned: &'a [Shape],
    /// What serves shapes today, if that was measured.
    pub incumbents: &'a BTreeMap<Shape, Incumbent>,
    /// Folder for results, logs and the table. One order uses it at a time.
    pub folder: &'a Utf8Path,
    /// Architecture and compute units that the table is for; those of the device when absent.
    pub key: Option<(String, u32)>,
    /// Wall time, after which the results so far are kept.
    pub budget: Option<Duration>,
    pub limits: Limits,
    pub settings: Settings,
    /// Runs the tuner's processes.
    pub keeper: &'a Keeper,
    /// Ends the search early; the results so far are kept.
    pub interrupt: &'a Interrupt,
}

/// Why aiter's tuner could not be run.
#[derive(Debug, thiserror::Error)]
pub enum AiterTuneError {
    /// There is nothing to tune.
    #[error("tune no shapes")]
    NoShapes,
    /// A shape of another operation.
    #[error("tune `{shape}` with the tuner of {op}")]
    OtherOperation { shape: Shape, op: Op },
    /// The folder does not contain aiter.
    #[error("find aiter's tuner: `{tree}` holds no `aiter/utility/base_tuner.py`")]
    NoTree { tree: Utf8PathBuf },
    /// The tree has no tuner for the operation.
    #[error("find a tuner for {op}: `{tree}` has none of `{tried}` that can do it")]
    NoScript {
        op: Op,
        tree: Utf8PathBuf,
        tried: String,
    },
    /// The tree has no tuner for the fused MoE.
    #[error("find a tuner for fused_moe: `{tree}` has no `{script}`")]
    NoFmoeScript {
        tree: Utf8PathBuf,
        /// The script that was searched for.
        script: &'static str,
    },
    /// The tuner for the fused MoE has a different key.
    #[error("use `{script}`: the columns of its key are not known ({keys})")]
    OtherFmoeKey { script: Utf8PathBuf, keys: String },
    /// A flag is not as required.
    #[error(transparent)]
    Flag(#[from] FlagError),
    /// A file of the tree cannot be read.
    #[error("read the aiter tree")]
    Read(#[source] std::io::Error),
    /// A script is not Python.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The interpreter ended without an answer.
    #[error("ask `{python}` for its devices: exit code {code}: {said}")]
    NoAnswer {
        python: Utf8PathBuf,
        code: u8,
        /// The end of its output.
        said: String,
    },
    /// torch or aiter cannot be imported.
    #[error("import torch and aiter with `{python}`: {error}")]
    CannotImport { python: Utf8PathBuf, error: String },
    /// The interpreter imports another tree.
    #[error("tune with `{meant}`: `{python}` imports aiter from `{used}`")]
    OtherTree {
        python: Utf8PathBuf,
        used: Utf8PathBuf,
        /// The tree in the order.
        meant: Utf8PathBuf,
    },
    /// A library was lost completely, and no other was searched completely.
    #[error(
        "tell what the rows are the best of: {0}, and each of those lost candidates to time-outs or faults too"
    )]
    NoLibraryWhole(String),
    /// No GPU is visible.
    #[error("find a GPU: torch in `{python}` sees none")]
    NoDevice { python: Utf8PathBuf },
    /// The device writes keys other than those wanted.
    #[error(
        "tune for {wanted}: the tuner would write {found}; its rows would never be found (look at partition modes and at variables that hide or rename devices)"
    )]
    OtherKey {
        /// The key in the order.
        wanted: String,
        found: String,
    },
    /// The tuner ended before it tuned anything.
    #[error("run `{script}`: it ended with exit code {code} before the first batch: {said}")]
    Broken {
        script: Utf8PathBuf,
        code: u8,
        /// The end of its output.
        said: String,
    },
    /// It could not be run.
    #[error(transparent)]
    Run(RunError),
    /// It could not be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// A file of our own cannot be written.
    #[error("write into the tuning folder")]
    Write(#[source] std::io::Error),
    /// Results cannot be stored, or belong to another device or tree.
    #[error(transparent)]
    Results(#[from] ResultsError),
    /// Interrupted before anything was measured.
    #[error("tune: interrupted before the first batch")]
    Interrupted,
}

impl From<RunError> for AiterTuneError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Interrupted(_) => Self::Interrupted,
            error => Self::Run(error),
        }
    }
}

impl From<JournalError> for AiterTuneError {
    fn from(error: JournalError) -> Self {
        Self::Results(error.into())
    }
}
