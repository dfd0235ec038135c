//! What each stage does. Each writes one document into the run folder, which later stages read.

mod baseline;
mod capture;
mod compare;
mod deploy;
mod inspect;
mod plan;
mod report;
mod tune;
mod verify;

use serde::{Deserialize, Serialize};

use super::Engine;
use super::trouble::Trouble;
use crate::stage::Stage;

pub(crate) use deploy::{deployed, undo};

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
pub(crate) fn perform(engine: &mut Engine<'_>, stage: Stage) -> Result<Done, Trouble> {
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

/// What the capture stage found, beside the shapes themselves.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Captured {
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
}
