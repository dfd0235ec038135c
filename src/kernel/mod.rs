//! The families of kernels that gemmtune tunes, each a file or a folder: the reference engine's, aiter's, its Triton
//! GEMM's, and SGLang's own. Each implements [`crate::engine::ports::Kernels`] or
//! [`crate::engine::ports::FusedMoeKernels`]; here is what they share.

pub(crate) mod aiter;
pub(crate) mod aiter_triton;
mod from_elsewhere;
mod placed;
mod raced;
pub(crate) mod reference;
pub(crate) mod sglang_families;
pub(crate) mod sglang_moe;
pub(crate) mod sglang_triton;
#[cfg(test)]
pub(crate) mod toy;

use std::collections::BTreeSet;

use crate::log::summary::LogSummary;
use crate::run::documents::Engagement;
use crate::run::error::{Error, ErrorKind};
use crate::store::journal::JournalError;
use crate::store::lock::LockError;
use crate::table::aiter::Row;
use crate::table::lookup::Resolver;
use crate::tune::TuneError;
use crate::tune::results::ResultsError;

/// What `log_summary`, from the log of a server that names its look-ups, reports about the deployed tables: one for
/// each operation, with the rows that the workload is expected to use.
///
/// The unit is the shape that the server looked up; whether it should have hit is determined with the runtime's own
/// rules, so a shape that no row serves by design is "unplanned", not "missed".
fn engagement_of(tables: &[(&Resolver<'_>, Vec<&Row>)], log_summary: &LogSummary) -> Engagement {
    let op = |resolver: &Resolver<'_>| resolver.rules().op;
    let mut engagement = Engagement::default();
    let mut used = BTreeSet::new();
    for (shape, served) in log_summary.served() {
        let table = match tables {
            [only] => Some(only),
            several => several
                .iter()
                .find(|(resolver, _)| op(resolver) == shape.op),
        };
        let row =
            table.and_then(|(resolver, _)| Some((resolver.find(&shape).row()?, op(resolver))));
        let Some((row, op)) = row else {
            engagement.unplanned.push(shape.to_string());
            continue;
        };
        used.insert((op, row.m, row.n, row.k));
        let told = served
            .hit
            .as_ref()
            .and_then(|hit| hit.kernel_name.as_deref());
        let hits = engagement.hit;
        if served.hits == 0 {
            engagement.missed.push(shape.to_string());
        } else if told.is_some() && told != row.kernel_name.as_deref() {
            let (told, want) = (told.unwrap_or_default(), row.kernel_name.as_deref());
            engagement.other_kernel.push(format!(
                "{shape}: {told} instead of {}",
                want.unwrap_or("an unnamed kernel")
            ));
        } else {
            engagement.hit += 1;
        }
        if tables.len() > 1 {
            let asked = engagement.operations.entry(op.to_string()).or_default();
            let is_hit = engagement.hit - hits;
            asked.hit += is_hit;
            asked.missed += 1 - is_hit;
        }
    }
    for (resolver, rows) in tables {
        let op = op(resolver);
        let unseen = |row: &&&Row| !used.contains(&(op, row.m, row.n, row.k));
        let named = rows.iter().filter(unseen);
        let named = named.map(|row| row.shape(op).to_string());
        engagement.unseen.extend(named);
    }
    engagement
}

/// Removing what is already gone is not an error: an undo can be repeated.
fn gone(removed: std::io::Result<()>) -> Result<(), Error> {
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::file(&error)),
        _ => Ok(()),
    }
}

/// The kind of error: results that cannot be continued, or a disk that cannot be written.
fn class_of(error: &ResultsError) -> ErrorKind {
    match error {
        ResultsError::Journal(JournalError::Io { .. })
        | ResultsError::Lock(LockError::Io { .. }) => ErrorKind::Environment,
        _ => ErrorKind::NotResumable,
    }
}

/// The error of a tuning run that could not take place, as the loop reports it.
fn tune_error(error: &TuneError) -> Error {
    match error {
        TuneError::Interrupted => Error::interrupted(),
        TuneError::NoShapes => Error::caused(ErrorKind::NoShapes, error),
        TuneError::Results(results) => Error::caused(class_of(results), error),
        TuneError::Write { .. } => Error::caused(ErrorKind::Environment, error),
        _ => Error::caused(ErrorKind::TunerFailed, error),
    }
}
