//! `deploy`: puts the tuned table in place, and undoes that.

use super::{Done, foresee, fused_moe};
use crate::engine::{Engine, in_place, read_document, read_json, write_document};
use crate::problem::Shape;
use crate::proc::quoted;
use crate::run::documents::{Deployment, Document as _, Inspection, Tuned};
use crate::run::error::{Error, ErrorKind};
use crate::run::stage::Stage;
use crate::store::journal::JournalError;
use crate::store::ledger::{Ledger, LedgerError, Operation};
use crate::store::run_dir::RunDir;
use crate::table::shapes;

pub(super) fn deploy(engine: &mut Engine<'_>) -> Result<Done, Error> {
    let inspection = super::inspection(&engine.run)?;
    let tuned: Tuned = read_document(&engine.run)?;
    if tuned.has_won() && tuned.tables.is_empty() {
        return Err(Error::new(
            ErrorKind::NotResumable,
            format!(
                "`{}` was written by a gemmtune that kept no rows in it",
                Tuned::path(&engine.run)
            ),
        )
        .hint(
            "go on with the gemmtune that began this run, or begin a new one: `gemmtune run --new`",
        ));
    }
    // First, because if its tables are refused nothing has been deployed yet.
    let experts = fused_moe::deploy(engine, &inspection, &tuned)?;
    let kernels = engine.backend.kernels.clone().filter(|_| tuned.has_won());
    let dense = match &kernels {
        Some(kernels) => Some(kernels.deploy(&engine.run, &inspection, &tuned)?),
        None => None,
    };
    let deployment = match (dense, experts) {
        (Some(dense), Some(experts)) => dense.with_fused_moe(experts),
        (Some(dense), None) => dense,
        (None, Some(experts)) => Deployment::of_fused_moe(experts),
        (None, None) => {
            return Err(Error::new(
                ErrorKind::Bug,
                "nothing that won is to be deployed",
            ));
        }
    };
    // The record of the deployment is written before anything relies on it.
    write_document(&engine.run, &deployment)?;
    in_place::record(&engine.run)?;
    foresee::foresee(engine, &inspection, &tuned, &deployment)?;
    for note in &deployment.notes {
        engine.remark(note.clone());
    }
    let mut summary: Vec<String> = Vec::new();
    if let Some(experts) = &deployment.fused_moe {
        summary.push(format!(
            "{} rows of fused MoE in {}; a dry look-up finds all {} that are faster than before",
            experts.rows,
            experts.table.file_name().unwrap_or_default(),
            experts.won
        ));
    }
    let Some(kernels) = kernels else {
        return Ok(Done::new(summary.join("; ")));
    };
    if tuned.taken_from.is_some() {
        let (served, seen) = served_of_captured(engine, &inspection, &deployment)?;
        if served.is_empty() {
            kernels.undo(&engine.run, &deployment)?;
            return Err(Error::new(
                ErrorKind::NotBetter,
                format!("the table serves none of the {seen} shapes that the workload runs"),
            )
            .hint("`gemmtune lookup --explain` says why for each shape"));
        }
        let tables = deployment.tables(&inspection);
        for op in inspection.ops() {
            if !tables.iter().any(|(one, _)| one.op == op) {
                engine.remark(format!(
                    "the table has no row of {op}, which stays as it is"
                ));
            } else if !served.iter().any(|shape| shape.op == op) {
                engine.remark(format!(
                    "the table of {op} serves none of the shapes that the workload runs"
                ));
            }
        }
        return Ok(Done::new(format!(
            "{} rows in {}, which serve {} of the {seen} shapes captured",
            deployment.dense_rows(),
            names(&deployment),
            served.len()
        )));
    }
    // Shapes that keep what serves them need no row.
    let won = tuned.rows.iter().filter(|row| !row.incumbent_kept);
    let planned: Vec<Shape> = won.map(|row| row.shape.clone()).collect();
    let rows = kernels.rows(&inspection, &deployment, &planned)?;
    let missing = planned.iter().zip(&rows).filter(|(_, row)| row.is_none());
    let missing: Vec<String> = missing.map(|(shape, _)| shape.to_string()).collect();
    if !missing.is_empty() {
        return Err(Error::new(
            ErrorKind::Bug,
            format!(
                "a dry look-up does not find {} of the {} rows that are faster than before, first {}",
                missing.len(),
                planned.len(),
                missing[..missing.len().min(5)].join("; ")
            ),
        ));
    }
    summary.insert(
        0,
        format!(
            "{} rows in {}; a dry look-up finds all {} that are faster than before",
            deployment.dense_rows(),
            names(&deployment),
            planned.len()
        ),
    );
    Ok(Done::new(summary.join("; ")))
}

/// File names of the tables of dense GEMMs.
fn names(deployment: &Deployment) -> String {
    let also = deployment.also.iter().map(|table| &table.table);
    let tables = std::iter::once(&deployment.table).chain(also);
    let names: Vec<&str> = tables.filter_map(|table| table.file_name()).collect();
    names.join(" and ")
}

/// The captured shapes of the operations that the deployed table serves, and how many there are.
pub(super) fn served_of_captured(
    engine: &Engine<'_>,
    inspection: &Inspection,
    deployment: &Deployment,
) -> Result<(Vec<Shape>, usize), Error> {
    let bytes =
        crate::store::file::read(&engine.run.shapes()).map_err(|error| Error::file(&error))?;
    let captured = shapes::read(&bytes, None)
        .map_err(|error| Error::caused(ErrorKind::NotResumable, &error))?;
    let seen: Vec<Shape> = captured
        .into_iter()
        .map(|counted| counted.shape)
        .filter(|shape| inspection.ops().any(|op| op == shape.op))
        .collect();
    let all = seen.len();
    let rows = match &engine.backend.kernels {
        Some(kernels) => kernels.rows(inspection, deployment, &seen)?,
        None => vec![None; all],
    };
    let served = seen.into_iter().zip(rows);
    let served = served.filter_map(|(shape, row)| row.map(|_| shape));
    Ok((served.collect(), all))
}

/// What the run has deployed, in words; empty if nothing.
pub(crate) fn deployed(engine: &Engine<'_>) -> Result<Vec<String>, Error> {
    let path = engine.run.stage(Stage::Deploy.name());
    let undone = !engine.state.has_finished(Stage::Deploy) && !engine.state.undone().is_empty();
    if path.is_file() && !undone {
        return Ok(read_json::<Deployment>(&path)?.takes_back);
    }
    in_ledger(&engine.run)
}

/// What the run's ledger has changed and not undone, in words.
pub(crate) fn in_ledger(run: &RunDir) -> Result<Vec<String>, Error> {
    let operations = Ledger::read(&run.ledger()).map_err(|error| ledger_error(run, &error))?;
    let live = operations.iter().filter(|operation| operation.is_live());
    Ok(live
        .flat_map(|operation| &operation.changes)
        .map(|change| format!("what was done to {}", change.path()))
        .collect())
}

/// Undoes the deployment. Doing it twice is harmless.
pub(crate) fn undo(engine: &mut Engine<'_>) -> Result<(), Error> {
    let path = engine.run.stage(Stage::Deploy.name());
    if path.is_file() {
        let deployment: Deployment = read_json(&path)?;
        if let Some(kernels) = engine.backend.kernels.as_ref().filter(|_| deployment.dense) {
            kernels.undo(&engine.run, &deployment)?;
        }
        fused_moe::undo(engine, &deployment)?;
    }
    // A deploy stage that was killed has left the ledger but no document.
    take_back(&engine.run)
}

/// Undoes everything in the run's ledger, newest first.
pub(crate) fn take_back(run: &RunDir) -> Result<(), Error> {
    let failed = |error: LedgerError| ledger_error(run, &error);
    let live = |operations: &[Operation]| operations.iter().any(Operation::is_live);
    if !live(&Ledger::read(&run.ledger()).map_err(failed)?) {
        return Ok(());
    }
    let mut ledger = Ledger::open(&run.ledger(), "gemmtune undo").map_err(failed)?;
    let ids: Vec<u32> = ledger
        .operations()
        .iter()
        .rev()
        .map(|operation| operation.id)
        .collect();
    for id in ids {
        ledger.undo(id).map_err(failed)?;
    }
    Ok(())
}

/// The error for something that could not be undone, with what is left to do by hand.
fn ledger_error(run: &RunDir, error: &LedgerError) -> Error {
    let undo = format!("gemmtune undo {}", quoted(run.path()));
    let hint = match error {
        LedgerError::Journal(JournalError::Damaged { .. }) => format!(
            "nothing was taken back, because what is damaged says what was changed; the lines before it can be read, and \
             the originals are in {}, each named by the SHA-256 of its bytes",
            run.ledger().join("saved")
        ),
        LedgerError::Damaged { path, .. } => format!(
            "nothing was taken back; put {path} back from its package or repository, then `{undo}` again"
        ),
        LedgerError::Edited { .. } | LedgerError::Exists { .. } => {
            format!("put what was changed since away, then `{undo}` again")
        }
        LedgerError::Lock(_) => "wait for the process that holds it".to_owned(),
        _ => format!("make it possible, then `{undo}` again"),
    };
    Error::caused(ErrorKind::Environment, error).hint(hint)
}
