//! What a run of aiter's tuner left.

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

/// A row that may be deployed, or says where not to.
#[derive(Clone, Debug, Serialize)]
pub struct Accepted {
    pub shape: Shape,
    /// The tuner's row, every column of it.
    pub row: Row,
    /// What served the shape, where that was measured.
    pub incumbent: Option<Incumbent>,
    /// Whether the incumbent is at least as fast: then this row is no win, and a route is to leave the shape with it.
    pub incumbent_stays: bool,
    /// Candidates that gave a time, where the tuner says so.
    pub timed: u32,
    /// Candidates that were lost to a time-out or a fault, or with their whole library: one of them may be better.
    pub unmeasured: u32,
    /// Device seconds its batch took, shared among the batch.
    pub busy_s: f64,
}

impl Accepted {
    /// What may serve the shape, as the other rooms know candidates.
    pub fn candidate(&self) -> Candidate {
        let row = &self.row;
        serde_json::json!({
            "libtype": row.libtype.as_deref(),
            "kernelId": row.kernel_id,
            "splitK": row.split_k,
            "kernelName": row.kernel_name.as_deref(),
        })
    }

    /// The row in the form of a race's result. `noise` is zero: aiter's tuner measures once.
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

/// A row the tuner wrote and gemmtune does not take.
#[derive(Clone, Debug, Serialize)]
pub struct Refused {
    pub shape: Shape,
    pub row: Row,
    pub reason: String,
}

/// What became of the candidates of one library, over all shapes and attempts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LibraryCount {
    /// As in the `libtype` column.
    pub library: String,
    /// Candidates in the tuner's files of all results.
    pub candidates: u32,
    /// Those with a time.
    pub timed: u32,
    /// Those lost to a time-out, a dead worker or a fault.
    pub lost: u32,
    /// Those that raised: a kernel that does not fit, or a library that cannot be used.
    pub refused: u32,
    /// What the tuner said last, where none has a time.
    pub reason: Option<String>,
}

impl LibraryCount {
    /// Without a candidate yet.
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

    /// Whether it was tried and nothing of it was measured.
    pub fn is_lost(&self) -> bool {
        self.candidates > 0 && self.timed == 0
    }

    /// What is to be said of it where it is lost.
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

/// What a run of aiter's tuner left.
#[derive(Clone, Debug, Serialize)]
pub struct AiterOutcome {
    pub device: Device,
    /// One row for every shape with a winner, by this run or an earlier one, in the order of the shapes asked for;
    /// those where the incumbent stays included.
    pub rows: Vec<Accepted>,
    /// Of them, those of an earlier run.
    pub resumed: Vec<Shape>,
    pub refused: Vec<Refused>,
    /// Shapes without a row, with the reason.
    pub failed: Vec<Unserved>,
    /// Shapes that the budget or an interrupt left out.
    pub not_reached: Vec<Shape>,
    /// What became of each library's candidates, where the tuner tells libraries apart.
    pub libraries: Vec<LibraryCount>,
    /// What is worth knowing.
    pub remarks: Vec<String>,
    /// Files of the table: the accepted rows that win, in the tuner's columns. None where nothing won.
    pub files: Vec<Utf8PathBuf>,
    /// The tables in them, as rows.
    #[serde(skip)]
    pub tables: Vec<TunedTable>,
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

impl AiterOutcome {
    /// Rows that are faster than what serves the shape, or where nothing is known to serve it.
    pub fn wins(&self) -> impl Iterator<Item = &Accepted> {
        self.rows.iter().filter(|row| !row.incumbent_stays)
    }

    /// Libraries that were lost whole, each in a sentence; none where nothing at all has a time.
    pub fn losses(&self) -> Vec<String> {
        let lost = self.libraries.iter().filter_map(LibraryCount::loss);
        if self.libraries.iter().any(|library| library.timed > 0) {
            lost.collect()
        } else {
            Vec::new()
        }
    }

    /// Rows of shapes that are best left with what serves them.
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
