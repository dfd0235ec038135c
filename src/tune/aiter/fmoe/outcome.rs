//! The result of a run of aiter's fused-MoE tuner.

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
    /// The tuner's row with all its columns.
    #[serde(serialize_with = "named")]
    pub row: Line,
    /// Whether the share of wrong elements exceeds [`crate::problem::op::fused_moe_aiter::ERR_LIMIT`], so that it was accepted
    /// only because the limit was raised.
    pub above_default: bool,
}

/// A row of the tuner's that gemmtune does not accept.
#[derive(Clone, Debug, Serialize)]
pub struct Refused {
    pub shape: Call,
    /// The tuner's row with all its columns.
    #[serde(serialize_with = "named")]
    pub row: Line,
    pub reason: String,
}

/// The result of a run.
#[derive(Clone, Debug, Serialize)]
pub struct FmoeOutcome {
    /// The name of the operation, `fused_moe`.
    pub op: &'static str,
    pub device: Device,
    /// A row for each call that has one, from this run or an earlier one, in the order of the calls.
    pub rows: Vec<Taken>,
    /// Those of the calls whose row is from an earlier run.
    pub resumed: Vec<Call>,
    /// The largest share of wrong elements in a stage with which rows were accepted, and the default.
    pub err_ratio: f64,
    pub default_err_ratio: f64,
    pub refused: Vec<Refused>,
    /// Calls without a row, each with the reason.
    pub failed: Vec<Unserved<Call>>,
    /// Calls that were left out because of the budget or an interrupt.
    pub not_reached: Vec<Call>,
    /// Remarks.
    pub remarks: Vec<String>,
    /// Files of the table; empty if there is no row.
    pub files: Vec<Utf8PathBuf>,
    /// The tuner's output, one file for each attempt and stream.
    pub logs: Vec<Utf8PathBuf>,
    /// Number of times the tuner was started.
    pub attempts: u32,
    /// Total seconds for which devices were held.
    pub busy_s: f64,
    /// Seconds from start to end.
    pub seconds: f64,
    /// Whether the user interrupted it.
    pub interrupted: bool,
}
