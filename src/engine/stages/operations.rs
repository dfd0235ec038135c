//! The outcome of each dense GEMM operation, where a run tunes several.

use crate::plan::Plan;
use crate::report::model::ShapeRow;
use crate::report::operations::DenseOperation;
use crate::run::documents::{Deployment, Inspection, Tuned, Verified};

/// An entry for each; empty if there is only one.
pub(super) fn operations(
    inspection: &Inspection,
    shapes: &[ShapeRow],
    plan: &Plan,
    tuned: Option<&Tuned>,
    deployment: Option<&Deployment>,
    verified: Option<&Verified>,
) -> Vec<DenseOperation> {
    if inspection.also.is_empty() {
        return Vec::new();
    }
    let deployed = deployment.map(|deployment| deployment.tables(inspection));
    let of = |one: Inspection| {
        let planned = || plan.tune.iter().filter(|row| row.shape.op == one.op);
        let asked = verified.map(|verified| {
            let operations = &verified.engagement.operations;
            operations.get(one.op.name()).copied().unwrap_or_default()
        });
        let mut tables = deployed.iter().flatten();
        let table = tables.find(|(of, _)| of.op == one.op);
        DenseOperation {
            op: one.op,
            captured: shapes.iter().filter(|row| row.op == one.op).count(),
            share: planned().map(|row| row.share).sum(),
            planned: planned().count(),
            tuned: tuned.map(|tuned| {
                let rows = tuned.rows.iter();
                rows.filter(|row| row.shape.op == one.op).count()
            }),
            faster: tuned.map(|tuned| tuned.won(one.op).count()),
            deployed: table.map(|(_, table)| table.rows),
            looked_up: asked.map(|asked| asked.hit + asked.missed),
            hits: asked.map(|asked| asked.hit),
            today: one.path,
        }
    };
    inspection.operations().into_iter().map(of).collect()
}
