//! What was found, durable: an append-only file that a kill cannot spoil.
//!
//! `results.jsonl` begins with the identity of the results: operation, device, software, and a digest of the tuner's
//! files. A row is kept as the tuner wrote it, the moment it is seen.

use camino::Utf8Path;
use serde::{Deserialize, Serialize};

use crate::problem::{Op, Shape};
use crate::store::journal::{Journal, Record};
use crate::table::aiter::{Row, Table};
use crate::table::revision::RESULT_COLUMNS;
use crate::tune::event::Unserved;
use crate::tune::results::{self, Identity, ResultsError};

/// A row and how it came about.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Kept {
    pub(super) shape: Shape,
    pub(super) row: Row,
    pub(super) timed: u32,
    pub(super) unmeasured: u32,
    pub(super) busy_s: f64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
enum Entry {
    Header {
        identity: Identity,
    },
    Row {
        shape: Shape,
        /// Header and row as CSV: a column that is not known here is kept too.
        csv: String,
        timed: u32,
        unmeasured: u32,
        busy_s: f64,
    },
    Refused {
        shape: Shape,
        csv: String,
        reason: String,
    },
    Failed {
        shape: Shape,
        reason: String,
    },
}

#[derive(Debug)]
pub(super) struct Keep {
    journal: Journal,
    pub(super) rows: Vec<Kept>,
    pub(super) refused: Vec<(Shape, Row, String)>,
    pub(super) failed: Vec<Unserved>,
}

impl Keep {
    /// Opens or begins the results in `folder`, whose lock the caller holds.
    pub(super) fn open(folder: &Utf8Path, identity: &Identity) -> Result<Self, ResultsError> {
        let header = |identity| Entry::Header { identity };
        let identity_of = |entry: &Entry| match entry {
            Entry::Header { identity } => Some(identity.clone()),
            _ => None,
        };
        let (journal, entries) = results::open(folder, identity, header, identity_of)?;
        let mut keep = Self {
            journal,
            rows: Vec::new(),
            refused: Vec::new(),
            failed: Vec::new(),
        };
        for entry in entries {
            match entry {
                Entry::Header { .. } => {}
                Entry::Row {
                    shape,
                    csv,
                    timed,
                    unmeasured,
                    busy_s,
                } => {
                    if let Some(row) = from_csv(&csv, shape.op) {
                        keep.remember(Kept {
                            shape,
                            row,
                            timed,
                            unmeasured,
                            busy_s,
                        });
                    }
                }
                Entry::Refused { shape, csv, reason } => {
                    if let Some(row) = from_csv(&csv, shape.op) {
                        keep.refused.push((shape, row, reason));
                    }
                }
                Entry::Failed { shape, reason } => keep.failed.push(Unserved { shape, reason }),
            }
        }
        Ok(keep)
    }

    /// Keeps a row unless a faster one of its shape is there; says whether it was news.
    pub(super) fn row(&mut self, kept: Kept) -> Result<bool, ResultsError> {
        if let Some(known) = self.rows.iter().find(|known| known.shape == kept.shape) {
            let slower =
                kept.row.us.unwrap_or(f64::INFINITY) >= known.row.us.unwrap_or(f64::INFINITY);
            if known.row.is_copy_of(&kept.row) {
                // Its candidates were counted in a file that the tuner was rewriting; more of them is the whole of it.
                if kept.timed + kept.unmeasured > known.timed + known.unmeasured {
                    self.append_row(Kept {
                        busy_s: known.busy_s,
                        ..kept
                    })?;
                }
                return Ok(false);
            }
            // A slower one says only that all candidates were timed this time.
            if slower && known.unmeasured <= kept.unmeasured {
                return Ok(false);
            }
            if slower {
                let known = Kept {
                    unmeasured: kept.unmeasured,
                    ..known.clone()
                };
                return self.append_row(known);
            }
        }
        self.append_row(kept)
    }

    fn append_row(&mut self, kept: Kept) -> Result<bool, ResultsError> {
        self.append(Entry::Row {
            shape: kept.shape.clone(),
            csv: to_csv(&kept.row, kept.shape.op),
            timed: kept.timed,
            unmeasured: kept.unmeasured,
            busy_s: kept.busy_s,
        })?;
        self.remember(kept);
        Ok(true)
    }

    /// Keeps a refusal; the same row is refused once.
    pub(super) fn refuse(
        &mut self,
        shape: &Shape,
        row: &Row,
        reason: &str,
    ) -> Result<bool, ResultsError> {
        if self
            .refused
            .iter()
            .any(|(known, of, _)| known == shape && of.is_copy_of(row))
        {
            return Ok(false);
        }
        self.append(Entry::Refused {
            shape: shape.clone(),
            csv: to_csv(row, shape.op),
            reason: reason.to_owned(),
        })?;
        self.refused
            .push((shape.clone(), row.clone(), reason.to_owned()));
        Ok(true)
    }

    /// Keeps that a shape failed for good.
    pub(super) fn fail(&mut self, failed: &Unserved) -> Result<(), ResultsError> {
        self.append(Entry::Failed {
            shape: failed.shape.clone(),
            reason: failed.reason.clone(),
        })?;
        self.failed.retain(|known| known.shape != failed.shape);
        self.failed.push(failed.clone());
        Ok(())
    }

    /// Whether `shape` has a row.
    pub(super) fn has(&self, shape: &Shape) -> bool {
        self.rows.iter().any(|kept| kept.shape == *shape)
    }

    fn remember(&mut self, kept: Kept) {
        self.failed.retain(|failed| failed.shape != kept.shape);
        self.rows.retain(|known| known.shape != kept.shape);
        self.rows.push(kept);
    }

    fn append(&mut self, event: Entry) -> Result<(), ResultsError> {
        let at = jiff::Timestamp::now();
        Ok(self.journal.append(&Record { at, event })?)
    }
}

/// A row as a table of one, with the columns it has cells for.
fn to_csv(row: &Row, op: Op) -> String {
    let has_gfx = row.gfx.is_some();
    let mut columns: Vec<&str> = has_gfx.then_some("gfx").into_iter().collect();
    columns.extend(["cu_num", "M", "N", "K"]);
    columns.extend(row.q_dtype_w.is_some().then_some("q_dtype_w"));
    columns.extend(row.libtype.is_some().then_some("libtype"));
    columns.extend(RESULT_COLUMNS);
    let extra: Vec<&str> = row
        .extra
        .iter()
        .map(|(name, _)| &**name)
        .filter(|name| !columns.contains(name))
        .collect();
    columns.extend(extra);
    Table {
        name: String::new(),
        op,
        columns: columns.into_iter().map(Into::into).collect(),
        rows: vec![row.clone()],
        faults: Vec::new(),
        quirks: crate::table::aiter::Quirks::default(),
    }
    .to_csv()
}

fn from_csv(csv: &str, op: Op) -> Option<Row> {
    let table = Table::read("results", csv.as_bytes(), Some(op)).ok()?;
    table
        .rows
        .into_iter()
        .next()
        .map(|row| Row { line: 0, ..row })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn identity(arch: &str) -> Identity {
        Identity {
            format: 1,
            backend: super::super::BACKEND.to_owned(),
            options: serde_json::json!({}),
            device: "gpu".to_owned(),
            arch: arch.to_owned(),
            cu_num: 304,
            versions: BTreeMap::new(),
            kernel_hash: "abc".to_owned(),
        }
    }

    fn kept(us: f64, unmeasured: u32) -> Kept {
        Kept {
            shape: Shape {
                op: Op::Blockscale,
                m: 16,
                n: 256,
                k: 512,
                dtype: String::new(),
            },
            row: Row {
                cu_num: Some(304),
                m: 16,
                n: 256,
                k: 512,
                libtype: Some("ck".into()),
                kernel_id: Some(3),
                us: Some(us),
                extra: vec![("_tag".into(), "x".into())],
                ..Row::default()
            },
            timed: 27,
            unmeasured,
            busy_s: 1.5,
        }
    }

    #[test]
    fn rows_come_back_as_they_were_and_the_fastest_stands() {
        let keep = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(keep.path()).unwrap();
        let mut results = Keep::open(folder, &identity("gfx942")).unwrap();
        let torn = Kept {
            timed: 9,
            ..kept(4.0, 0)
        };
        assert!(results.row(torn.clone()).unwrap());
        assert!(!results.row(kept(4.0, 2)).unwrap(), "the same row");
        assert!(!results.row(kept(4.0, 2)).unwrap(), "the same row again");
        assert!(
            !results.row(torn).unwrap(),
            "counted while it was rewritten"
        );
        assert_eq!((results.rows[0].timed, results.rows[0].unmeasured), (27, 2));
        assert!(results.row(kept(5.0, 0)).unwrap(), "now all were timed");
        assert_eq!(
            (results.rows[0].row.us, results.rows[0].unmeasured),
            (Some(4.0), 0)
        );
        assert!(results.row(kept(3.0, 0)).unwrap());
        assert!(
            results
                .refuse(&kept(1.0, 0).shape, &kept(1.0, 0).row, "no")
                .unwrap()
        );
        assert!(
            !results
                .refuse(&kept(1.0, 0).shape, &kept(1.0, 0).row, "no")
                .unwrap()
        );
        drop(results);
        let results = Keep::open(folder, &identity("gfx942")).unwrap();
        assert_eq!(results.rows, [kept(3.0, 0)]);
        assert_eq!(results.refused.len(), 1);
        let error = Keep::open(folder, &identity("gfx950")).unwrap_err();
        assert!(error.to_string().contains("gfx950"), "{error}");
    }
}
