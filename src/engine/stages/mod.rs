//! What each stage does. Each writes one document into the run folder, which later stages read.

mod baseline;
mod capture;
mod compare;
mod deploy;
mod foresee;
mod inspect;
mod plan;
mod records;
mod report;
mod stays;
mod tune;
mod verify;

use serde::{Deserialize, Serialize};

use super::{Engine, read_json};
use crate::platform::Inspection;
use crate::report::model::Phase;
use crate::run::error::Error;
use crate::run::stage::Stage;
use crate::store::run_dir::RunDir;

pub(crate) use deploy::{deployed, in_ledger, take_back, undo};

/// A stage that passed its guard.
pub(crate) struct Done {
    /// One line for people.
    pub(crate) summary: String,
    /// Why the rest of the loop is pointless, if it is.
    pub(crate) nothing_to_gain: Option<String>,
}

impl Done {
    fn new(summary: impl Into<String>) -> Self {
        Self {
            summary: summary.into(),
            nothing_to_gain: None,
        }
    }
}

/// Runs `stage`.
pub(crate) fn perform(engine: &mut Engine<'_>, stage: Stage) -> Result<Done, Error> {
    match stage {
        Stage::Inspect => inspect::inspect(engine),
        Stage::Baseline => baseline::baseline(engine),
        Stage::Capture => capture::capture(engine),
        Stage::Plan => plan::plan(engine),
        Stage::Tune => tune::tune(engine),
        Stage::Deploy => deploy::deploy(engine),
        Stage::Verify => verify::verify(engine),
        Stage::Compare => compare::compare(engine),
        Stage::Report => report::report(engine),
    }
}

/// What was found of what serves, by the capture stage where it has ended: what a workload runs shows when it is served.
pub(crate) fn inspection(run: &RunDir) -> Result<Inspection, Error> {
    let captured = run.stage(Stage::Capture.name());
    if captured.is_file()
        && let Some(inspection) = read_json::<Captured>(&captured)?.inspection
    {
        return Ok(inspection);
    }
    read_json(&run.stage(Stage::Inspect.name()))
}

/// What the capture stage found, beside the shapes themselves.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Captured {
    /// What was inspected, as the workload was seen to use it.
    #[serde(default)]
    pub(crate) inspection: Option<Inspection>,
    /// Number of the capture trial.
    pub(crate) trial: u32,
    /// Distinct shapes.
    pub(crate) distinct: usize,
    /// GEMM calls seen.
    pub(crate) calls: u64,
    /// Identities of the dispatch.
    pub(crate) dispatch: Vec<String>,
    /// Records that were torn or impossible.
    pub(crate) malformed: u64,
    /// Sizes of decode batches seen, in requests.
    pub(crate) decode: Vec<u32>,
    /// Sizes of prefill batches seen, in tokens.
    pub(crate) prefill: Vec<u32>,
    /// M of the decode graphs that were captured.
    #[serde(default)]
    pub(crate) graphs: Vec<u32>,
    /// Tokens of one prefill chunk, where the server said.
    #[serde(default)]
    pub(crate) chunk: Option<u32>,
}

impl Captured {
    /// Which part of serving a GEMM with M of `m` belongs to, where the log says.
    pub(crate) fn phase(&self, m: u32) -> Option<Phase> {
        match (self.decode.contains(&m), self.prefill.contains(&m)) {
            (true, false) => Some(Phase::Decode),
            (false, true) => Some(Phase::Prefill),
            // Decode lines are sampled by default, prefill lines are not: an M below every prefill
            // batch is a decode batch that was not sampled.
            (false, false) if self.prefill.iter().all(|&tokens| m < tokens) => Some(Phase::Decode),
            _ => None,
        }
    }
}

/// What the verify stage found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Verified {
    /// Number of the verify trial.
    pub(crate) trial: u32,
    /// The deployed operation against a reference.
    pub(crate) layout: Vec<crate::platform::LayoutCheck>,
    /// Greedy answers against the baseline's.
    pub(crate) parity: crate::bench::parity::Agreement,
    /// Share of the look-ups that the deployed table served.
    pub(crate) hit_rate: Option<f64>,
    /// Which planned shapes were served by the deployed table.
    pub(crate) engagement: crate::platform::Engagement,
    /// How long deployed kernels take, where the platform times them.
    #[serde(default)]
    pub(crate) times: Vec<crate::platform::KernelTime>,
    /// The modules that the process loaded, where the platform has any.
    #[serde(default)]
    pub(crate) modules: Vec<crate::platform::Module>,
    /// Whether the kernels that ran are the table's.
    #[serde(default)]
    pub(crate) ran: crate::probe::ran::Ran,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_phase_of_a_size_follows_the_batches_that_were_logged() {
        let captured = Captured {
            inspection: None,
            trial: 2,
            distinct: 0,
            calls: 0,
            dispatch: Vec::new(),
            malformed: 0,
            decode: vec![4, 32],
            prefill: vec![32, 64],
            graphs: Vec::new(),
            chunk: None,
        };
        assert_eq!(captured.phase(4), Some(Phase::Decode));
        assert_eq!(captured.phase(64), Some(Phase::Prefill));
        assert_eq!(captured.phase(1), Some(Phase::Decode), "not sampled");
        assert_eq!(captured.phase(32), None, "both");
        assert_eq!(captured.phase(48), None, "neither");
    }
}
