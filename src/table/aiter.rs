//! aiter's tuned CSV tables, read and written by header name.
//!
//! One reader serves every operation and every revision, and the reference engine's table, which has
//! the form of [`Revision::H`]. Further columns of a file are kept and written back.
//! Nothing here touches the file system.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::csv_text;
use super::family::{self, Family};
use super::revision::{self, Revision};
use crate::problem::{Op, Shape};
use cells::{Header, Role, ends_in_quote, record_start};
pub(super) use cells::{Interner, first_line};

mod cells;
mod texts;

/// A cell's text; equal cells of a table share their memory.
pub type Text = Arc<str>;

/// One row: a tuned kernel for one key.
///
/// A cell that is empty or one of pandas' spellings of "no value" is `None`. A cell of a typed column whose text is
/// not of that type is stored in [`Row::extra`] under its column's name, so that nothing is lost on writing.
///
/// In a document its keys are the column names; a time that is not finite is null there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// 1-based line of the file; 0 for a row that comes from no file.
    #[serde(skip)]
    pub line: u64,
    /// Architecture, for example `gfx942`; absent from tables before [`Revision::H`].
    #[serde(default, with = "texts")]
    pub gfx: Option<Text>,
    /// Compute units of the GPU.
    pub cu_num: Option<u32>,
    /// Rows of the activation.
    #[serde(rename = "M")]
    pub m: u32,
    /// Output features.
    #[serde(rename = "N")]
    pub n: u32,
    /// Input features.
    #[serde(rename = "K")]
    pub k: u32,
    /// dtype of the weight as torch prints it; a key column of some operations.
    #[serde(default, with = "texts")]
    pub q_dtype_w: Option<Text>,
    /// Library the kernel comes from: `ck`, `cktile`, `asm`, `flydsl`, `triton`, `opus`, `ref`.
    #[serde(default, with = "texts")]
    pub libtype: Option<Text>,
    /// Number of the kernel within its library.
    #[serde(rename = "kernelId")]
    pub kernel_id: Option<i64>,
    /// Split of K; its meaning depends on the library.
    #[serde(rename = "splitK")]
    pub split_k: Option<i64>,
    /// Mean device time of one call in microseconds.
    pub us: Option<f64>,
    /// Name of the kernel.
    #[serde(rename = "kernelName")]
    #[serde(default, with = "texts")]
    pub kernel_name: Option<Text>,
    /// 2·M·N·K / us, in 10^12 operations per second.
    pub tflops: Option<f64>,
    /// Bytes of both inputs and the output / us, in 10^9 bytes per second.
    pub bw: Option<f64>,
    /// Fraction of output elements outside the tuner's tolerance.
    #[serde(rename = "errRatio")]
    pub err_ratio: Option<f64>,
    /// Cells of further columns, and cells of known ones that cannot be parsed, by column name.
    #[serde(default, with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub extra: Vec<(Text, Text)>,
}

impl Row {
    /// The text stored for `column` in [`Row::extra`].
    pub fn extra(&self, column: &str) -> Option<&str> {
        self.extra
            .iter()
            .find(|(name, _)| &**name == column)
            .map(|(_, text)| &**text)
    }

    /// The problem this row was tuned for.
    pub fn shape(&self, op: Op) -> Shape {
        Shape {
            op,
            m: self.m,
            n: self.n,
            k: self.k,
            dtype: self.q_dtype_w.as_deref().unwrap_or("").to_owned(),
        }
    }

    /// Whether the rows are equal in every column as pandas compares them: two spellings of "no value" are equal.
    pub fn is_copy_of(&self, other: &Self) -> bool {
        let plain = |row: &Self| {
            let mut row = Self {
                line: 0,
                ..row.clone()
            };
            row.extra.retain(|(_, text)| !is_missing(text));
            row
        };
        plain(self) == plain(other)
    }

    /// Whether a merge or a plan may rely on this row: its time is a positive number and its error
    /// ratio, where there is one, is at most `limit`.
    pub fn is_valid(&self, limit: f64) -> bool {
        let timed = self.us.is_some_and(|us| us.is_finite() && us > 0.0);
        let right = match self.err_ratio {
            Some(ratio) => (0.0..=limit).contains(&ratio),
            // A ratio that cannot be parsed proves nothing; older tables have none.
            None => self.extra("errRatio").is_none(),
        };
        timed && right
    }
}

/// Oddities in the bytes of a table whose rows can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quirks {
    /// The file starts with a byte order mark, which pandas drops.
    pub byte_order_mark: bool,
    /// Lines end in carriage return and line feed.
    pub crlf: bool,
    /// The last line has no line end, so text appended to the file is glued to the last row.
    pub no_final_newline: bool,
    /// Header names written with blanks around them; aiter's look-up does not find such a column.
    pub padded_columns: Vec<String>,
}

/// A row or a cell that could not be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// More cells than columns: usually two rows glued together.
    #[error("line {line} has {found} cells, the header {expected}")]
    TooManyCells {
        /// 1-based line.
        line: u64,
        /// Columns of the header.
        expected: usize,
        /// Cells of the line.
        found: usize,
    },
    /// A key cell that is not a whole number in range, so that no look-up can find the row.
    #[error("line {line}: `{text}` in column {column} is no whole number from 0 to 4294967295")]
    BadKey {
        /// 1-based line.
        line: u64,
        column: &'static str,
        text: String,
    },
    /// A cell that must be a number but is not; the row is kept.
    #[error("line {line}: `{text}` in column {column} is no number")]
    BadNumber {
        /// 1-based line.
        line: u64,
        column: &'static str,
        text: String,
    },
    /// Bytes that are not UTF-8; the row is dropped.
    #[error("line {line} is not UTF-8")]
    NotUtf8 {
        /// 1-based line.
        line: u64,
    },
    /// A quote that is never closed, so that all that follows is one cell. The row is dropped.
    #[error("line {line} opens a quote that the file never closes")]
    OpenQuote {
        /// 1-based line the row begins on.
        line: u64,
    },
}

impl Fault {
    /// The 1-based line that it is in.
    pub fn line(&self) -> u64 {
        match self {
            Self::TooManyCells { line, .. }
            | Self::BadKey { line, .. }
            | Self::BadNumber { line, .. }
            | Self::NotUtf8 { line }
            | Self::OpenQuote { line } => *line,
        }
    }

    /// Whether the row is missing from the table because of this.
    pub fn drops_row(&self) -> bool {
        !matches!(self, Self::BadNumber { .. })
    }
}

/// A file that is not a tuned table, or not one that this program can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    #[error("read `{name}`: the file is empty")]
    Empty {
        /// Name of the table.
        name: String,
    },
    /// The header is not text.
    #[error("read `{name}`: the header is not UTF-8")]
    HeaderNotUtf8 {
        /// Name of the table.
        name: String,
    },
    /// Two columns with the same name, of which either could be meant.
    #[error("read `{name}`: column `{column}` appears twice in the header")]
    DuplicateColumn {
        /// Name of the table.
        name: String,
        column: String,
    },
    /// Columns are missing without which no row can be found.
    #[error("read `{name}`: no column {columns} in the header")]
    MissingColumns {
        /// Name of the table.
        name: String,
        /// The columns, joined by commas.
        columns: String,
    },
    /// A table of another kind: batched, bf16 or MoE. Its keys have further columns.
    #[error("read `{name}`: a {kind} table, not one of an FP8 or FP4 GEMM")]
    NotGemm {
        /// Name of the table.
        name: String,
        kind: &'static str,
    },
    /// A table of a family that is not one of our operations: its keys and kernels have rules of their own.
    #[error("read `{name}`: a table of `{family}`, a family of its own that is left alone")]
    OtherFamily {
        /// Name of the table.
        name: String,
        /// The stem of the family's names.
        family: String,
    },
}

/// A tuned table: the contents of one CSV file.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Its name in messages: usually its path.
    pub name: String,
    /// The operation it serves.
    pub op: Op,
    /// Column names in file order.
    pub columns: Vec<Text>,
    /// Rows in file order.
    pub rows: Vec<Row>,
    /// Lines and cells that could not be parsed, in file order.
    pub faults: Vec<Fault>,
    /// Oddities of the bytes.
    pub quirks: Quirks,
}

impl Table {
    /// An empty table with the columns `op`'s tuner writes at `revision`.
    pub fn new(name: impl Into<String>, op: Op, revision: Revision) -> Self {
        Self {
            name: name.into(),
            op,
            columns: revision::tuned_columns(op, revision)
                .into_iter()
                .map(Text::from)
                .collect(),
            rows: Vec::new(),
            faults: Vec::new(),
            quirks: Quirks::default(),
        }
    }

    /// Reads a table. The operation is `op` if given, else it is derived from the file name, the kernel names or the
    /// columns, in this order.
    ///
    /// Lines that cannot be parsed are left out and listed in [`Table::faults`].
    pub fn read(name: &str, bytes: &[u8], op: Option<Op>) -> Result<Self, TableError> {
        let mut quirks = Quirks {
            byte_order_mark: bytes.starts_with(b"\xef\xbb\xbf"),
            ..Quirks::default()
        };
        let bytes = csv_text::unmarked(bytes);
        quirks.no_final_newline = !matches!(bytes.last(), Some(b'\n' | b'\r') | None);
        quirks.crlf =
            memchr::memchr(b'\n', bytes).is_some_and(|end| end > 0 && bytes[end - 1] == b'\r');

        let mut record = csv::ByteRecord::new();
        let mut next = csv_text::records(bytes);
        if !next(&mut record) {
            return Err(TableError::Empty {
                name: name.to_owned(),
            });
        }
        let header = Header::read(name, &record, &mut quirks)?;
        let named = match op {
            Some(op) => Some(Family::Op(op)),
            None => family::of_file_name(name),
        };
        let op = match (named, header.family()) {
            (Some(Family::Op(op)), None) => Some(op),
            (None, None) => None,
            (Some(Family::Other(family)), _) | (_, Some(family)) => {
                return Err(TableError::OtherFamily {
                    name: name.to_owned(),
                    family,
                });
            }
        };

        let mut texts = Interner::default();
        let mut rows = Vec::new();
        let mut faults = Vec::new();
        let mut last = (0, 0);
        while next(&mut record) {
            let line = first_line(bytes, &record);
            last = (record_start(&record), line);
            if record.iter().all(|cell| cell.trim_ascii().is_empty()) {
                continue; // pandas skips blank lines; a line of commas has no key either way
            }
            if let Some(row) = header.row(line, &record, &mut texts, &mut faults) {
                rows.push(row);
            }
        }
        let (start, line) = last;
        if ends_in_quote(&bytes[start.min(bytes.len())..]) {
            rows.retain(|row| row.line != line);
            faults.retain(|fault: &Fault| fault.line() != line);
            faults.push(Fault::OpenQuote { line });
        }
        let op = op
            .or_else(|| op_of_rows(&rows))
            .unwrap_or_else(|| header.op());
        Ok(Self {
            name: name.to_owned(),
            op,
            columns: header.columns,
            rows,
            faults,
            quirks,
        })
    }

    /// Whether the table has a column called `name`.
    pub fn has_column(&self, name: &str) -> bool {
        self.columns.iter().any(|column| &**column == name)
    }

    /// The table as CSV: its columns, LF line ends, a final newline, no byte order mark.
    pub fn to_csv(&self) -> String {
        let roles: Vec<Role> = self.columns.iter().map(|column| Role::of(column)).collect();
        let cells = |row: &Row| -> Vec<String> {
            let columns = roles.iter().zip(&self.columns);
            let cell = |(role, column): (&Role, &Text)| match role.typed(row) {
                Some(cell) => cell,
                None => row.extra(column).unwrap_or("").to_owned(),
            };
            columns.map(cell).collect()
        };
        csv_text::text(&self.columns, self.rows.iter().map(cells))
    }
}

/// A float as pandas writes it: `6.62`, `0.0`, `inf`, nothing for NaN.
pub fn float_cell(value: f64) -> String {
    if value.is_nan() {
        return String::new();
    }
    format!("{value:?}")
}

/// Whether pandas reads `cell` as "no value", or a tuner's profile wrote it to mean that (`Null`).
pub fn is_unset(cell: &str) -> bool {
    cell == "Null" || is_missing(cell)
}

/// Whether pandas reads `cell` as "no value" (`pandas/_libs/parsers.pyx`, `_NA_VALUES`).
fn is_missing(cell: &str) -> bool {
    matches!(
        cell,
        "" | "#N/A"
            | "#N/A N/A"
            | "#NA"
            | "-1.#IND"
            | "-1.#QNAN"
            | "-NaN"
            | "-nan"
            | "1.#IND"
            | "1.#QNAN"
            | "<NA>"
            | "N/A"
            | "NA"
            | "NULL"
            | "NaN"
            | "None"
            | "n/a"
            | "nan"
            | "null"
    )
}

fn op_of_rows(rows: &[Row]) -> Option<Op> {
    rows.iter()
        .filter_map(|row| row.kernel_name.as_deref())
        .find_map(Op::of_kernel_name)
}

#[cfg(test)]
mod tests;
