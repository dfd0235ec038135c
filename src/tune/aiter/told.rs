//! What is reported to the user about the tuner's lines and how it ends.

use super::output::{Heard, Said};
use super::queue::{Manner, Why};
use crate::tune::event::TuneEvent;

/// The event that a line causes on its own.
pub(super) fn event<P>(said: &Said, heard: &Heard) -> Option<TuneEvent<P>> {
    let remark = |text| Some(TuneEvent::Remark { text });
    match said {
        // A fault is printed and logged: two streams, one event.
        Said::Faulted { text }
            if heard.faults.iter().filter(|known| *known == text).count() > 1 =>
        {
            None
        }
        Said::TimedOut { text } | Said::Faulted { text } => Some(TuneEvent::WorkerRestarted {
            worker: 0,
            reason: text.clone(),
        }),
        Said::BuildStarted(module) => remark(format!("compiling {module}")),
        Said::WaitsForLock(lock) => remark(format!("waiting for the build lock `{lock}`")),
        _ => None,
    }
}

/// A remark that holds for the rest of the run after a line, made once.
pub(super) fn remark(said: &Said) -> Option<String> {
    match said {
        Said::BuildFailed(module) => Some(format!(
            "{module} could not be compiled: its kernels are not measured"
        )),
        _ => None,
    }
}

/// Why the tuner is started again after a round, if that should be reported.
pub(super) fn restarted(why: Why, manner: Manner) -> Option<String> {
    let what = match why {
        Why::Silent => "it stood still".to_owned(),
        Why::BatchTooLong => "a batch took too long".to_owned(),
        Why::Died(code) if manner != Manner::Alone || code >= 128 => {
            format!("it died with exit code {code}")
        }
        _ => return None,
    };
    Some(format!(
        "the tuner was restarted: {what}; finished rows are kept"
    ))
}
