//! The result of a run of aiter's tuner.

use camino::Utf8PathBuf;
use serde::Serialize;

use super::Incumbent;
use crate::problem::{Op, Shape};
use crate::table::aiter::{Row, Table};
use crate::tune::event::Unserved;
use crate::tune::protocol::{Candidate, Device};
use crate::tune::results;
use crate::tune::rules::Effort;
use crate::tune::tuned::TunedTable;

/// A row that may be deployed, or that shows where not to deploy one.
#[derive(Clone, Debug, Serialize)]
pub struct Accepted {
    pub shape: Shape,
    /// The tuner's row with all its columns.
    pub row: Row,
    /// What served the shape, if that was measured.
    pub incumbent: Option<Incumbent>,
    /// Whether the incumbent is at least as fast, so that this row does not win and a route should leave the shape
    /// with it.
    pub incumbent_stays: bool,
    /// Candidates with a time, if the tuner reports their number.
    pub timed: u32,
    /// Candidates lost to a timeout or a fault, or with their whole library: one of them may be better.
    pub unmeasured: u32,
    /// Device seconds of its batch, divided by the batch's shapes.
    pub busy_s: f64,
}

impl Accepted {
    /// The row as a candidate, as the other rooms represent them.
    pub fn candidate(&self) -> Candidate {
        let row = &self.row;
        serde_json::json!({
            "libtype": row.libtype.as_deref(),
            "kernelId": row.kernel_id,
            "splitK": row.split_k,
            "kernelName": row.kernel_name.as_deref(),
        })
    }

    /// The row as a race's result. `noise` is zero, because aiter's tuner measures once.
    pub fn result(&self) -> results::Row {
        results::Row {
            shape: self.shape.clone(),
            candidate: self.candidate(),
            incumbent_kept: self.incumbent_stays,
            us: self.row.us.unwrap_or(f64::INFINITY),
            incumbent: self
                .incumbent
                .as_ref()
                .map(|incumbent| serde_json::json!({ "kernelName": incumbent.what })),
            incumbent_us: self.incumbent.as_ref().map(|incumbent| incumbent.us),
            noise: 0.0,
            err_ratio: self.row.err_ratio.unwrap_or(0.0),
            timed: self.timed,
            busy_s: self.busy_s,
            effort: Effort::Full,
        }
    }
}

/// A row of the tuner's that gemmtune does not accept.
#[derive(Clone, Debug, Serialize)]
pub struct Refused {
    pub shape: Shape,
    pub row: Row,
    pub reason: String,
}

/// The candidates of one library, over all shapes and attempts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LibraryCount {
    /// As in the `libtype` column.
    pub library: String,
    /// Candidates in the tuner's profile files.
    pub candidates: u32,
    /// Those with a time.
    pub timed: u32,
    /// Those lost to a timeout, a dead worker or a fault.
    pub lost: u32,
    /// Those that raised: a kernel that does not fit, or a library that cannot be used.
    pub refused: u32,
    /// The tuner's last message, if none has a time.
    pub reason: Option<String>,
}

impl LibraryCount {
    /// A count of zero candidates.
    pub fn of(library: String) -> Self {
        Self {
            library,
            candidates: 0,
            timed: 0,
            lost: 0,
            refused: 0,
            reason: None,
        }
    }

    /// Whether it was tried but nothing in it was measured.
    pub fn is_lost(&self) -> bool {
        self.candidates > 0 && self.timed == 0
    }

    /// The sentence about it, if it was lost.
    pub fn loss(&self) -> Option<String> {
        self.is_lost().then(|| {
            let reason = self.reason.as_deref();
            format!(
                "none of the {} candidates of {} was measured{}: rows are the best of the other libraries",
                self.candidates,
                self.library,
                reason.map_or_else(String::new, |reason| format!(" ({reason})"))
            )
        })
    }
}

/// The result of a run of aiter's tuner.
#[derive(Clone, Debug, Serialize)]
pub struct AiterOutcome {
    pub device: Device,
    /// A row for every shape with a winner, from this run or an earlier one, in the given order; including those for
    /// which the incumbent stays.
    pub rows: Vec<Accepted>,
    /// Those of the shapes whose row is from an earlier run.
    pub resumed: Vec<Shape>,
    pub refused: Vec<Refused>,
    /// Shapes without a row, each with the reason.
    pub failed: Vec<Unserved>,
    /// Shapes that were left out because of the budget or an interrupt.
    pub not_reached: Vec<Shape>,
    /// The candidates of each library, if the tuner distinguishes libraries.
    pub libraries: Vec<LibraryCount>,
    /// Remarks.
    pub remarks: Vec<String>,
    /// Files of the table: the accepted rows that win, in the tuner's columns. Empty if nothing won.
    pub files: Vec<Utf8PathBuf>,
    /// The same tables as rows.
    #[serde(skip)]
    pub tables: Vec<TunedTable>,
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

impl AiterOutcome {
    /// Rows that are faster than what serves the shape, or for which that is not known.
    pub fn wins(&self) -> impl Iterator<Item = &Accepted> {
        self.rows.iter().filter(|row| !row.incumbent_stays)
    }

    /// Libraries that were lost completely, a sentence for each; empty if nothing at all has a time.
    pub fn losses(&self) -> Vec<String> {
        let lost = self.libraries.iter().filter_map(LibraryCount::loss);
        if self.libraries.iter().any(|library| library.timed > 0) {
            lost.collect()
        } else {
            Vec::new()
        }
    }

    /// Rows of shapes that should keep what serves them.
    pub fn routes(&self) -> impl Iterator<Item = &Accepted> {
        self.rows.iter().filter(|row| row.incumbent_stays)
    }

    /// The winning rows as one table of `op`, in `columns`.
    pub fn table(&self, op: Op, columns: &[String]) -> Table {
        Table {
            name: "tuned.csv".to_owned(),
            op,
            columns: columns
                .iter()
                .map(|column| column.as_str().into())
                .collect(),
            rows: self.wins().map(|accepted| accepted.row.clone()).collect(),
            faults: Vec::new(),
            quirks: crate::table::aiter::Quirks::default(),
        }
    }
}

impl From<AiterOutcome> for crate::tune::TuneOutcome {
    fn from(outcome: AiterOutcome) -> Self {
        let lost = outcome.losses();
        Self {
            rows: outcome.rows.iter().map(Accepted::result).collect(),
            resumed: outcome.resumed,
            failed: outcome.failed,
            not_reached: outcome.not_reached,
            quarantined: outcome
                .refused
                .iter()
                .map(|refused| results::Quarantined {
                    shape: refused.shape.clone(),
                    candidate: serde_json::json!({
                        "libtype": refused.row.libtype.as_deref(),
                        "kernelId": refused.row.kernel_id,
                        "splitK": refused.row.split_k,
                        "kernelName": refused.row.kernel_name.as_deref(),
                    }),
                    evidence: refused.reason.clone(),
                })
                .collect(),
            lost,
            files: outcome.files,
            tables: outcome.tables,
            restarts: outcome.attempts.saturating_sub(1),
            busy_s: outcome.busy_s,
            active_s: outcome.busy_s,
            seconds: outcome.seconds,
            interrupted: outcome.interrupted,
            ..Self::new(outcome.device)
        }
    }
}
