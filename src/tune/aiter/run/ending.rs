//! The end of a run: the table, and remarks on it.

use std::collections::BTreeSet;

use super::{Session, libraries};
use crate::problem::Shape;
use crate::table::revision::RESULT_COLUMNS;
use crate::tune::aiter::outcome::{Accepted, AiterOutcome, Refused};
use crate::tune::aiter::queue::EndReason;
use crate::tune::aiter::{AiterTuneError, Script};
use crate::tune::event::{TuneEvent, Unserved};
use crate::tune::tuned::TunedTable;

/// File name of the winners' table.
const TABLE: &str = "tuned.csv";

impl Session<'_> {
    /// Writes the table and summarises the run.
    pub(super) fn end(
        mut self,
        observer: &mut dyn FnMut(&TuneEvent),
    ) -> Result<AiterOutcome, AiterTuneError> {
        let shapes = self.distinct();
        let mut rows: Vec<Accepted> = shapes
            .iter()
            .filter_map(|shape| self.accepted(shape))
            .collect();
        let left: BTreeSet<Shape> = self.run.queue.left().into_iter().collect();
        let failed: Vec<Unserved> = self
            .run
            .keep
            .failed
            .iter()
            .filter(|failed| {
                shapes.contains(&failed.shape)
                    && self.run.keep.of(&failed.shape).is_none()
                    && !left.contains(&failed.shape)
                    && !self.run.unserved.contains(failed)
            })
            .chain(&self.run.unserved)
            .cloned()
            .collect();
        let not_reached = shapes
            .iter()
            .filter(|shape| left.contains(*shape))
            .cloned()
            .collect();
        let lossy = rows.iter().filter(|row| row.unmeasured > 0).count();
        if lossy > 0 {
            self.run.remark(
                format!("{lossy} rows are the best of those candidates that could be timed: others hung or faulted"),
                observer,
            );
        }
        let libraries = self.libraries(&shapes)?;
        libraries::judge(&libraries)?;
        libraries::charge(&mut rows, &libraries);
        let mut outcome = AiterOutcome {
            device: self.run.device,
            rows,
            resumed: self.run.resumed,
            refused: self
                .run
                .keep
                .refused
                .into_iter()
                .filter(|(shape, _, _)| shapes.contains(shape))
                .map(|(shape, kept, reason)| Refused {
                    shape,
                    row: kept.row,
                    reason,
                })
                .collect(),
            failed,
            not_reached,
            libraries,
            remarks: self.run.remarks,
            files: Vec::new(),
            tables: Vec::new(),
            logs: self.run.logs,
            attempts: self.run.attempts,
            busy_s: self.run.busy_s,
            seconds: self.run.began.elapsed().as_secs_f64(),
            interrupted: self.run.stopped == Some(EndReason::Interrupted),
        };
        let path = self.run.folder.join(TABLE);
        if outcome.wins().next().is_some() {
            let columns = columns(&self.site.script, &outcome);
            let table = TunedTable::csv(TABLE, &outcome.table(self.order.op, &columns));
            crate::store::file::write_atomic(&path, table.text().as_bytes())
                .map_err(AiterTuneError::Write)?;
            observer(&TuneEvent::Wrote { path: path.clone() });
            outcome.files.push(path);
            outcome.tables.push(table);
        }
        Ok(outcome)
    }
}

/// Columns of the table: those of the tuner's keys, followed by those of the rows it wrote.
fn columns(script: &Script, outcome: &AiterOutcome) -> Vec<String> {
    let mut columns = script.keys.clone();
    if outcome.wins().any(|win| win.row.libtype.is_some()) {
        columns.push("libtype".to_owned());
    }
    columns.extend(RESULT_COLUMNS.map(str::to_owned));
    columns
}
