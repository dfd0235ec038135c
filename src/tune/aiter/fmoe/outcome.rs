//! What a run of aiter's fused-MoE tuner left.

use camino::Utf8PathBuf;
use serde::Serialize;

use super::call::Call;
use super::row::{Line, named};
use crate::tune::event::Unserved;
use crate::tune::protocol::Device;

/// A row that may be compared end to end with what serves today.
#[derive(Clone, Debug, Serialize)]
pub struct Taken {
    pub shape: Call,
    /// The tuner's row, every column of it.
    #[serde(serialize_with = "named")]
    pub row: Line,
    /// Whether more of its numbers are wrong than [`crate::table::fmoe::ERR_LIMIT`] allows: it passed because the limit was raised.
    pub above_default: bool,
}

/// A row the tuner wrote and gemmtune does not take.
#[derive(Clone, Debug, Serialize)]
pub struct Refused {
    pub shape: Call,
    /// The tuner's row, every column of it.
    #[serde(serialize_with = "named")]
    pub row: Line,
    pub reason: String,
}

/// What a run left.
#[derive(Clone, Debug, Serialize)]
pub struct FmoeOutcome {
    /// `fused_moe`.
    pub op: &'static str,
    pub device: Device,
    /// One row for every call with one, by this run or an earlier one, in the order of the calls.
    pub rows: Vec<Taken>,
    /// Of them, those of an earlier run.
    pub resumed: Vec<Call>,
    /// Share of wrong numbers in a stage up to which rows were taken, and the one that holds where none is given.
    pub err_ratio: f64,
    pub default_err_ratio: f64,
    pub refused: Vec<Refused>,
    /// Calls without a row, with the reason.
    pub failed: Vec<Unserved<Call>>,
    /// Calls that the budget or an interrupt left out.
    pub not_reached: Vec<Call>,
    /// What is worth knowing.
    pub remarks: Vec<String>,
    /// Files of the table. None where there is no row.
    pub files: Vec<Utf8PathBuf>,
    /// What the tuner printed, one file for each attempt and stream.
    pub logs: Vec<Utf8PathBuf>,
    /// Times the tuner was started.
    pub attempts: u32,
    /// Seconds devices were held, all together.
    pub busy_s: f64,
    /// Seconds from start to end.
    pub seconds: f64,
    /// Whether the user stopped it.
    pub interrupted: bool,
}
