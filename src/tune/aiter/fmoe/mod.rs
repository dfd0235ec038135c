//! aiter's tuner of the fused MoE, supervised as those of dense operations are: the same starts, watching, queue and limits.
//!
//! What differs is the key (twelve columns instead of three numbers), the table, and what is taken: the script accepts rows with up
//! to half of their numbers wrong, and adds times of stages up that leave work between them out.

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

/// The operation's name, on the command line and in documents.
pub const OP: &str = "fused_moe";

/// What is to be tuned, and with what.
#[derive(Debug)]
pub struct FmoeOrder<'a> {
    /// The aiter tree: its package folder, or the folder that holds it.
    pub tree: &'a Utf8Path,
    /// The interpreter the server runs under.
    pub python: &'a Utf8Path,
    /// Variables set or removed on top of our own environment. A `PYTHONPATH` to be kept must be in here.
    pub env: &'a BTreeMap<String, Option<String>>,
    /// Calls, most valuable first: what a budget leaves out are the last ones.
    pub calls: &'a [Counted],
    /// Where results, logs and the table go. One order has it at a time.
    pub folder: &'a Utf8Path,
    /// Wall time, after which what was found is kept.
    pub budget: Option<Duration>,
    /// [`Limits::err_ratio`] holds for each of the two stages.
    pub limits: Limits,
    /// Rows in a batch: what a kill costs, at most.
    pub batch: Option<usize>,
    /// Devices in parallel; all there are when absent.
    pub devices: Option<u32>,
    /// Whether calls that failed in an earlier run are tried again.
    pub retry_failed: bool,
    /// Keeps the tuner's processes.
    pub keeper: &'a Keeper,
    /// Ends the search early; what was found is kept.
    pub interrupt: &'a Interrupt,
}
