//! What is reported to the user about the tuner's lines and how it ends.

use super::output::{TunerLine, TunerStatus};
use super::queue::{EndReason, RoundKind};
use crate::tune::event::TuneEvent;

/// The event that a line causes on its own.
pub(super) fn event<P>(parsed: &TunerLine, status: &TunerStatus) -> Option<TuneEvent<P>> {
    let remark = |text| Some(TuneEvent::Remark { text });
    match parsed {
        // A fault is printed and logged: two streams, one event.
        TunerLine::Faulted { text }
            if status.faults.iter().filter(|known| *known == text).count() > 1 =>
        {
            None
        }
        TunerLine::TimedOut { text } | TunerLine::Faulted { text } => {
            Some(TuneEvent::WorkerRestarted {
                worker: 0,
                reason: text.clone(),
            })
        }
        TunerLine::BuildStarted(module) => remark(format!("compiling {module}")),
        TunerLine::WaitsForLock(lock) => remark(format!("waiting for the build lock `{lock}`")),
        _ => None,
    }
}

/// A remark that holds for the rest of the run after a line, made once.
pub(super) fn remark(parsed: &TunerLine) -> Option<String> {
    match parsed {
        TunerLine::BuildFailed(module) => Some(format!(
            "{module} could not be compiled: its kernels are not measured"
        )),
        _ => None,
    }
}

/// Why the tuner is started again after a round, if that should be reported.
pub(super) fn restarted(why: EndReason, kind: RoundKind) -> Option<String> {
    let what = match why {
        EndReason::Silent => "it made no progress".to_owned(),
        EndReason::BatchTooLong => "a batch took too long".to_owned(),
        EndReason::Died(code) if kind != RoundKind::Alone || code >= 128 => {
            format!("it died with exit code {code}")
        }
        _ => return None,
    };
    Some(format!(
        "the tuner was restarted: {what}; finished rows are kept"
    ))
}
