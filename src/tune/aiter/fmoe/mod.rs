//! aiter's tuner of the fused MoE, supervised like those of dense operations, with the same starts, watching, queue
//! and limits.
//!
//! The differences are the key (twelve columns instead of three numbers), the table, and which rows are accepted: the
//! script accepts rows with up to half of their numbers wrong, and its sums of stage times omit the work between
//! stages.

mod call;
mod outcome;
mod prepare;
mod row;
mod run;
mod script;

use std::collections::BTreeMap;
use std::time::Duration;

use camino::Utf8Path;

use super::Limits;
use crate::proc::{Interrupt, Keeper};
use crate::table::fmoe::requests::Counted;

pub use call::Call;
pub use outcome::{FmoeOutcome, Refused, Taken};
pub use prepare::preview;
pub use row::Line;
pub use run::tune;
pub use script::FmoeScript;

/// What to tune, and with what.
#[derive(Debug)]
pub struct FmoeOrder<'a> {
    /// The aiter tree: its package folder, or the folder that contains it.
    pub tree: &'a Utf8Path,
    /// The interpreter the server runs under.
    pub python: &'a Utf8Path,
    /// Variables set or removed relative to our own environment. A `PYTHONPATH` that should be kept must be in here.
    pub env: &'a BTreeMap<String, Option<String>>,
    /// Calls, most valuable first: a budget leaves out the last ones.
    pub calls: &'a [Counted],
    /// Folder for results, logs and the table. One order uses it at a time.
    pub folder: &'a Utf8Path,
    /// Wall time, after which the results so far are kept.
    pub budget: Option<Duration>,
    /// [`Limits::err_ratio`] applies to each of the two stages.
    pub limits: Limits,
    /// Rows in a batch: the most that a kill loses.
    pub batch: Option<usize>,
    /// Devices to use in parallel; all of them when absent.
    pub devices: Option<u32>,
    /// Whether calls that failed in an earlier run should be tried again.
    pub retry_failed: bool,
    /// Runs the tuner's processes.
    pub keeper: &'a Keeper,
    /// Ends the search early; the results so far are kept.
    pub interrupt: &'a Interrupt,
}
