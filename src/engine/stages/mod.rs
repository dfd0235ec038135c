//! What each stage does. Each writes one document into the run folder, which later stages read.

mod baseline;
mod capture;
mod compare;
mod deploy;
mod foresee;
mod fused_moe;
mod inspect;
mod operations;
mod plan;
mod profile;
mod records;
mod report;
mod stays;
mod tune;
mod verify;
mod weights;

use std::sync::Arc;

use super::{Engine, read_document};
use crate::engine::ports::Kernels;
use crate::run::documents::{Captured, Document as _, Inspection};
use crate::run::error::Error;
use crate::run::stage::Stage;
use crate::store::run_dir::RunDir;

pub(crate) use deploy::{deployed, in_ledger, take_back, undo};

/// A stage that passed its guard.
pub(crate) struct Done {
    /// One line for display.
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

/// Runs `stage` and writes its document; an error if its guard is not passed.
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

/// The kernels for the dense GEMMs that this run tunes; `None` if it tunes only the fused MoE.
fn dense_kernels(engine: &Engine<'_>, inspection: &Inspection) -> Option<Arc<dyn Kernels>> {
    let kernels = engine.backend.kernels.clone();
    kernels.filter(|_| inspection.dense_left.is_none())
}

/// The inspection; updated by the capture stage if that has ended, because what a workload runs shows only when it is
/// served.
pub(crate) fn inspection(run: &RunDir) -> Result<Inspection, Error> {
    if Captured::path(run).is_file()
        && let Some(inspection) = read_document::<Captured>(run)?.inspection
    {
        return Ok(inspection);
    }
    read_document(run)
}
