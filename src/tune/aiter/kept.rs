//! What is stored of a row of a dense operation, and which of two rows is kept.

use serde::{Deserialize, Serialize};

use super::keep::{Found, Keep};
use crate::problem::{Op, Shape};
use crate::table::aiter::{Row, Table};
use crate::table::revision::RESULT_COLUMNS;
use crate::tune::results::ResultsError;

/// A row and how it was obtained.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct RowRecord {
    pub(super) row: Row,
    pub(super) timed: u32,
    pub(super) unmeasured: u32,
    pub(super) busy_s: f64,
}

/// A [`RowRecord`] as a line of the results file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    /// Header and row as CSV, so that unknown columns are stored too.
    csv: String,
    #[serde(default)]
    timed: u32,
    #[serde(default)]
    unmeasured: u32,
    #[serde(default)]
    busy_s: f64,
}

impl Found<Shape> for RowRecord {
    type Stored = Stored;

    fn store(&self, shape: &Shape) -> Stored {
        Stored {
            csv: to_csv(&self.row, shape.op),
            timed: self.timed,
            unmeasured: self.unmeasured,
            busy_s: self.busy_s,
        }
    }

    fn restore(stored: Stored, shape: &Shape) -> Option<Self> {
        Some(Self {
            row: from_csv(&stored.csv, shape.op)?,
            timed: stored.timed,
            unmeasured: stored.unmeasured,
            busy_s: stored.busy_s,
        })
    }

    fn is_copy_of(&self, other: &Self) -> bool {
        self.row.is_copy_of(&other.row)
    }
}

impl Keep<Shape, RowRecord> {
    /// Stores a row unless there is a faster one of its shape; returns whether it is new.
    pub(super) fn row(&mut self, shape: &Shape, kept: RowRecord) -> Result<bool, ResultsError> {
        let Some(known) = self.of(shape) else {
            self.put(shape, kept)?;
            return Ok(true);
        };
        let us = |kept: &RowRecord| kept.row.us.unwrap_or(f64::INFINITY);
        if known.is_copy_of(&kept) {
            // Its candidates were counted while the tuner was rewriting the file, so the larger count is right.
            if kept.timed + kept.unmeasured > known.timed + known.unmeasured {
                let busy_s = known.busy_s;
                self.put(shape, RowRecord { busy_s, ..kept })?;
            }
            return Ok(false);
        }
        if us(&kept) < us(known) {
            self.put(shape, kept)?;
            return Ok(true);
        }
        // A slower row only shows that all candidates were timed this time.
        let news = known.unmeasured > kept.unmeasured;
        if news {
            let unmeasured = kept.unmeasured;
            let known = known.clone();
            self.put(
                shape,
                RowRecord {
                    unmeasured,
                    ..known
                },
            )?;
        }
        Ok(news)
    }
}

/// A row as a table of one row, with the columns for which it has cells.
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
    use crate::tune::results::Identity;
    use camino::Utf8Path;
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

    fn shape() -> Shape {
        Shape {
            op: Op::Blockscale,
            m: 16,
            n: 256,
            k: 512,
            dtype: String::new(),
        }
    }

    fn kept(us: f64, unmeasured: u32) -> RowRecord {
        RowRecord {
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
        let mut results = Keep::<Shape, RowRecord>::open(folder, &identity("gfx942")).unwrap();
        let torn = RowRecord {
            timed: 9,
            ..kept(4.0, 0)
        };
        assert!(results.row(&shape(), torn.clone()).unwrap());
        assert!(
            !results.row(&shape(), kept(4.0, 2)).unwrap(),
            "the same row"
        );
        assert!(
            !results.row(&shape(), kept(4.0, 2)).unwrap(),
            "the same row again"
        );
        assert!(
            !results.row(&shape(), torn).unwrap(),
            "counted while it was rewritten"
        );
        assert_eq!(
            (results.rows[0].1.timed, results.rows[0].1.unmeasured),
            (27, 2)
        );
        assert!(
            results.row(&shape(), kept(5.0, 0)).unwrap(),
            "now all were timed"
        );
        assert_eq!(
            (results.rows[0].1.row.us, results.rows[0].1.unmeasured),
            (Some(4.0), 0)
        );
        assert!(results.row(&shape(), kept(3.0, 0)).unwrap());
        assert!(results.refuse(&shape(), &kept(1.0, 0), "no").unwrap());
        assert!(!results.refuse(&shape(), &kept(1.0, 0), "no").unwrap());
        drop(results);
        let results = Keep::<Shape, RowRecord>::open(folder, &identity("gfx942")).unwrap();
        assert_eq!(results.rows, [(shape(), kept(3.0, 0))]);
        assert_eq!(results.refused.len(), 1);
        let error = Keep::<Shape, RowRecord>::open(folder, &identity("gfx950")).unwrap_err();
        insta::assert_snapshot!(error.to_string().replace(folder.as_str(), "[folder]"), @"add to `[folder]/results.jsonl`: it was measured with arch `gfx942`, now it is `gfx950`");
    }
}
