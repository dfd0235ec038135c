//! Merges several tables into one: the best valid row for each key, and why each row was kept or not.
//!
//! aiter's own merge takes the lowest `us` whatever it means, fills missing columns with 0 and rewrites its inputs.
//! This one applies the rules of `lint` to every row: no row with an error wins over a good one, and none that a
//! runtime cannot use is kept. It fills a column only from evidence and refuses if there is none. It works on tables
//! in memory; the command writes the files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::aiter::{Fault, Row, Table, Text};
use super::csv_text;
use super::kernels::{self, Library};
use super::revision::{self, Revision};
use super::roofline;
use crate::problem::Op;
use crate::problem::op::ERR_RATIO_LIMIT;

mod judge;

use judge::{judge, refuse_unknown, unknown};

/// Which rows count as valid, and what may be filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Largest error ratio of a valid row; aiter's tuners accept 0.05.
    pub err_ratio_limit: f64,
    /// Architecture of rows that have none, if their compute units do not tell it.
    pub gfx: Option<String>,
    /// The aiter that will use the result; without it a row must be valid for every current aiter.
    pub revision: Option<Revision>,
    /// Further columns that are part of the key.
    pub keys: Vec<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            err_ratio_limit: ERR_RATIO_LIMIT,
            gfx: None,
            revision: None,
            keys: Vec::new(),
        }
    }
}

/// Why tables cannot be merged without guessing or losing rows.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MergeError {
    #[error("merge: no table was given")]
    NoTables,
    /// Tables of two operations.
    #[error(
        "merge `{first}` of {first_op} with `{second}` of {second_op}: their keys and kernels differ"
    )]
    DifferentOps {
        /// Name of the first table.
        first: String,
        first_op: Op,
        /// Name of the other.
        second: String,
        second_op: Op,
    },
    /// A line that cannot be parsed and would be lost.
    #[error("merge `{table}`")]
    Unreadable {
        /// Name of the table.
        table: String,
        #[source]
        fault: Fault,
    },
    /// A key column is missing.
    #[error("merge `{table}`: it has no column `{column}`")]
    MissingColumn {
        /// Name of the table.
        table: String,
        column: &'static str,
    },
    /// Rows with one key differ in a column of unknown meaning.
    #[error(
        "merge line {line} of `{table}` with line {other_line} of `{other}`: they have the key {key} and differ in column `{column}`, which may be a part of it"
    )]
    UnknownColumn {
        /// Name of the table.
        table: String,
        /// 1-based line.
        line: u64,
        /// Name of the other row's table.
        other: String,
        /// Its 1-based line.
        other_line: u64,
        /// The key, as `M=… N=… K=…`.
        key: String,
        column: String,
    },
    /// A row without architecture whose compute units do not tell it.
    #[error(
        "merge line {line} of `{table}`: it has no gfx, and {cu_num} compute units do not say which it is"
    )]
    UnknownArch {
        /// Name of the table.
        table: String,
        /// 1-based line.
        line: u64,
        /// Compute units of the row.
        cu_num: u32,
    },
    /// A row without library whose kernel name does not tell it.
    #[error(
        "merge line {line} of `{table}`: it has no libtype, and kernel `{kernel}` does not say which it is"
    )]
    UnknownLibrary {
        /// Name of the table.
        table: String,
        /// 1-based line.
        line: u64,
        /// Name of the kernel, empty if there is none.
        kernel: String,
    },
}

/// What was done with an input row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is in the result.
    Kept,
    /// A valid row with the same key is faster, or as fast and earlier.
    Slower,
    /// For tables without times: an earlier table has a valid row for this M.
    Later,
    /// It equals the row that was kept.
    Copy,
    /// It is not a valid measurement.
    Invalid,
}

impl Outcome {
    /// The word in the provenance file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Slower => "slower",
            Self::Later => "later",
            Self::Copy => "copy",
            Self::Invalid => "invalid",
        }
    }
}

/// An input row and what was done with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Provenance {
    /// Name of the input table.
    pub table: String,
    /// The row as it would be in the result; its line is that of the input.
    pub row: Row,
    /// What was done with it.
    pub outcome: Outcome,
    /// Why, and what was filled in.
    pub reason: String,
}

/// A merged table and where its rows come from.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    /// The result, sorted by gfx, cu_num, N, K, M, dtype.
    pub table: Table,
    /// Every input row, in the order of the result's keys.
    pub provenance: Vec<Provenance>,
    /// Keys left out because none of their rows is valid, as `M=… N=… K=…`.
    pub dropped: Vec<String>,
    /// Keys whose only row is doubtful, with the reason.
    pub doubtful: Vec<String>,
}

impl Merged {
    /// How many input rows had this outcome.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.provenance
            .iter()
            .filter(|entry| entry.outcome == outcome)
            .count()
    }

    /// The provenance as CSV: the key, the row's origin, its measurement, what was done with it and why.
    pub fn provenance_csv(&self) -> String {
        const HEADER: [&str; 12] = [
            "gfx",
            "cu_num",
            "M",
            "N",
            "K",
            "q_dtype_w",
            "file",
            "line",
            "us",
            "errRatio",
            "outcome",
            "reason",
        ];
        let number = |value: Option<f64>| value.map(super::aiter::float_cell).unwrap_or_default();
        let text = |cell: &Option<Text>| cell.as_deref().unwrap_or("").to_owned();
        let cells = |Provenance {
                         table,
                         row,
                         outcome,
                         reason,
                     }: &Provenance| {
            [
                text(&row.gfx),
                row.cu_num
                    .map(|count| count.to_string())
                    .unwrap_or_default(),
                row.m.to_string(),
                row.n.to_string(),
                row.k.to_string(),
                text(&row.q_dtype_w),
                table.clone(),
                row.line.to_string(),
                number(row.us),
                number(row.err_ratio),
                outcome.name().to_owned(),
                reason.clone(),
            ]
        };
        csv_text::text(HEADER, self.provenance.iter().map(cells))
    }
}

/// The columns that a look-up compares, in the order of the result.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    gfx: Option<Text>,
    cu_num: Option<u32>,
    n: u32,
    k: u32,
    m: u32,
    dtype: Option<Text>,
    /// Cells of the columns in [`Policy::keys`].
    more: Vec<Text>,
}

impl std::fmt::Display for Key {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "M={} N={} K={}", self.m, self.n, self.k)
    }
}

struct Candidate<'a> {
    table: &'a str,
    row: Row,
    notes: Vec<String>,
    /// Why the row cannot be used.
    invalid: Option<String>,
    /// Why it cannot be relied on.
    doubt: Option<String>,
}

impl Candidate<'_> {
    fn is_good(&self) -> bool {
        self.invalid.is_none() && self.doubt.is_none()
    }
}

/// Merges tables of one operation. Of equally fast rows the one given first wins.
pub fn merge(tables: &[Table], policy: &Policy) -> Result<Merged, MergeError> {
    let Some(first) = tables.first() else {
        return Err(MergeError::NoTables);
    };
    check(first, tables)?;
    let columns = union(first.op, tables);
    let with = |name: &str| columns.iter().any(|column| &**column == name);
    let (with_gfx, with_libtype) = (with("gfx"), with("libtype"));

    let unknown = unknown(first.op, &columns, policy);
    let mut keys: BTreeMap<Key, Vec<Candidate<'_>>> = BTreeMap::new();
    for table in tables {
        for row in &table.rows {
            let mut candidate = Candidate {
                table: &table.name,
                row: row.clone(),
                notes: Vec::new(),
                invalid: None,
                doubt: None,
            };
            if with_gfx {
                fill_gfx(&mut candidate, policy)?;
                update_name(&mut candidate, first.op);
            }
            judge(&mut candidate, table, policy);
            // A row that cannot win needs no library.
            if with_libtype && candidate.invalid.is_none() {
                fill_libtype(&mut candidate)?;
            }
            keys.entry(key(&candidate.row, policy))
                .or_default()
                .push(candidate);
        }
    }
    if !unknown.is_empty() {
        for (key, candidates) in &keys {
            refuse_unknown(key, candidates, &unknown)?;
        }
    }

    let mut table = Table {
        name: "merged table".to_owned(),
        op: first.op,
        columns,
        rows: Vec::with_capacity(keys.len()),
        faults: Vec::new(),
        quirks: super::aiter::Quirks::default(),
    };
    let mut provenance = Vec::new();
    let (mut dropped, mut doubtful) = (Vec::new(), Vec::new());
    for (key, candidates) in keys {
        match decide(candidates, &mut provenance) {
            Some((row, doubt)) => {
                table.rows.push(row);
                doubtful.extend(doubt.map(|doubt| format!("{key}: {doubt}")));
            }
            None => dropped.push(key.to_string()),
        }
    }
    Ok(Merged {
        table,
        provenance,
        dropped,
        doubtful,
    })
}

fn check(first: &Table, tables: &[Table]) -> Result<(), MergeError> {
    for table in tables {
        if table.op != first.op {
            return Err(MergeError::DifferentOps {
                first: first.name.clone(),
                first_op: first.op,
                second: table.name.clone(),
                second_op: table.op,
            });
        }
        if let Some(fault) = table.faults.iter().find(|fault| fault.drops_row()) {
            return Err(MergeError::Unreadable {
                table: table.name.clone(),
                fault: fault.clone(),
            });
        }
        let mut needed = vec!["cu_num", "us", "kernelName"];
        // An older row of gemm_a8w8 does not tell its dtype, and no look-up finds an empty one.
        let keyed = first.op.became_keyed_by_dtype()
            && tables.iter().any(|other| other.has_column("q_dtype_w"));
        if first.op.is_always_keyed_by_dtype() || keyed {
            needed.push("q_dtype_w");
        }
        if let Some(column) = needed.into_iter().find(|column| !table.has_column(column)) {
            return Err(MergeError::MissingColumn {
                table: table.name.clone(),
                column,
            });
        }
    }
    Ok(())
}

/// The columns of the result: those of any input, in the newest revision's order, followed by the others in order of
/// appearance.
fn union(op: Op, tables: &[Table]) -> Vec<Text> {
    let all: BTreeSet<&str> = tables
        .iter()
        .flat_map(|table| &table.columns)
        .map(|column| &**column)
        .collect();
    let known = revision::tuned_columns(op, Revision::H);
    let mut columns: Vec<Text> = known
        .iter()
        .filter(|column| all.contains(*column))
        .map(|column| Text::from(*column))
        .collect();
    for column in tables.iter().flat_map(|table| &table.columns) {
        if !columns.contains(column) {
            columns.push(column.clone());
        }
    }
    columns
}

fn key(row: &Row, policy: &Policy) -> Key {
    Key {
        more: policy
            .keys
            .iter()
            .map(|column| Text::from(row.extra(column).unwrap_or("")))
            .collect(),
        gfx: row.gfx.clone(),
        cu_num: row.cu_num,
        n: row.n,
        k: row.k,
        m: row.m,
        dtype: row.q_dtype_w.clone(),
    }
}

fn fill_gfx(candidate: &mut Candidate<'_>, policy: &Policy) -> Result<(), MergeError> {
    if candidate.row.gfx.is_some() {
        return Ok(());
    }
    let cu_num = candidate.row.cu_num.unwrap_or(0);
    let gfx = roofline::gfx_of_cu_num(cu_num).or(policy.gfx.as_deref());
    let Some(gfx) = gfx else {
        return Err(MergeError::UnknownArch {
            table: candidate.table.to_owned(),
            line: candidate.row.line,
            cu_num,
        });
    };
    candidate
        .notes
        .push(format!("gfx {gfx} from cu_num {cu_num}"));
    candidate.row.gfx = Some(Text::from(gfx));
    candidate.row.extra.retain(|(column, _)| &**column != "gfx");
    Ok(())
}

/// A look-up that has gfx passes the kernel by name, and knows only the current spelling.
fn update_name(candidate: &mut Candidate<'_>, op: Op) {
    let Some(name) = candidate.row.kernel_name.as_deref() else {
        return;
    };
    if !kernels::is_old_spelling(op, name) {
        return;
    }
    if let Some(today) = kernels::ck_id(op, name).and_then(|id| kernels::ck_name(op, id)) {
        candidate
            .notes
            .push("kernelName in the spelling after v0.1.9".to_owned());
        candidate.row.kernel_name = Some(Text::from(today));
    }
}

fn fill_libtype(candidate: &mut Candidate<'_>) -> Result<(), MergeError> {
    let row = &mut candidate.row;
    // 0 is what aiter's own merge writes for "no column".
    if row
        .libtype
        .as_deref()
        .is_some_and(|libtype| !matches!(libtype, "0" | "0.0"))
    {
        return Ok(());
    }
    let kernel = row.kernel_name.as_deref().unwrap_or("");
    let Some(library) = Library::of_kernel(kernel) else {
        return Err(MergeError::UnknownLibrary {
            table: candidate.table.to_owned(),
            line: row.line,
            kernel: kernel.to_owned(),
        });
    };
    candidate
        .notes
        .push(format!("libtype {} from the kernel's name", library.name()));
    row.libtype = Some(Text::from(library.name()));
    row.extra.retain(|(column, _)| &**column != "libtype");
    Ok(())
}

/// Records the candidates of one key and returns the winner, with doubts about it if any.
fn decide(
    candidates: Vec<Candidate<'_>>,
    provenance: &mut Vec<Provenance>,
) -> Option<(Row, Option<String>)> {
    let time = |candidate: &Candidate<'_>| candidate.row.us.unwrap_or(f64::INFINITY);
    let best = candidates
        .iter()
        .enumerate()
        .filter(|(_, candidate)| candidate.invalid.is_none())
        .min_by(|(_, a), (_, b)| {
            let doubtful = a.doubt.is_some().cmp(&b.doubt.is_some());
            doubtful.then(time(a).total_cmp(&time(b)))
        })
        .map(|(index, _)| index);
    let winner = best.map(|index| {
        let candidate = &candidates[index];
        (candidate.row.clone(), candidate.doubt.clone())
    });
    let place =
        best.map(|index| format!("{}:{}", candidates[index].table, candidates[index].row.line));
    let good = candidates
        .iter()
        .filter(|candidate| candidate.is_good())
        .count();
    let all = candidates.len();
    for (index, candidate) in candidates.into_iter().enumerate() {
        let us = time(&candidate);
        let (outcome, mut reason) = if let Some(invalid) = candidate.invalid {
            (Outcome::Invalid, invalid)
        } else if best == Some(index) {
            let kept = match (good, all) {
                (1, 1) => "the only row".to_owned(),
                (1, _) => "the only valid row".to_owned(),
                (0, 1) => "the only row, though".to_owned(),
                (0, _) => "no row is better, though".to_owned(),
                _ => format!("the fastest of {good} valid rows"),
            };
            let doubt = candidate.doubt.as_deref().map(|doubt| format!(" {doubt}"));
            (Outcome::Kept, kept + &doubt.unwrap_or_default())
        } else {
            let (place, winner) = (place.as_deref().unwrap_or(""), winner.as_ref());
            let best_us = winner.and_then(|(row, _)| row.us).unwrap_or(f64::NAN);
            if winner.is_some_and(|(row, _)| candidate.row.is_copy_of(row)) {
                (Outcome::Copy, format!("the same as {place}"))
            } else if let Some(doubt) = candidate.doubt.filter(|_| good > 0) {
                (Outcome::Invalid, doubt)
            } else {
                (
                    Outcome::Slower,
                    format!("{us} us against {best_us} of {place}"),
                )
            }
        };
        for note in candidate.notes {
            let _ = write!(reason, "; {note}");
        }
        provenance.push(Provenance {
            table: candidate.table.to_owned(),
            row: candidate.row,
            outcome,
            reason,
        });
    }
    winner
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
