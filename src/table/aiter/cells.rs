//! Cells and columns: the type of each, how it is parsed into a row and written back.

use std::collections::HashSet;

use super::{Fault, Quirks, Row, TableError, Text, float_cell, is_unset};
use crate::problem::Op;
use crate::table::csv_text;

/// The meaning of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Gfx,
    CuNum,
    M,
    N,
    K,
    WeightDtype,
    Libtype,
    KernelId,
    SplitK,
    Us,
    KernelName,
    Tflops,
    Bw,
    ErrRatio,
    Other,
}

impl Role {
    pub(super) fn of(column: &str) -> Self {
        match column {
            "gfx" => Self::Gfx,
            "cu_num" => Self::CuNum,
            "M" => Self::M,
            "N" => Self::N,
            "K" => Self::K,
            "q_dtype_w" => Self::WeightDtype,
            "libtype" => Self::Libtype,
            "kernelId" => Self::KernelId,
            "splitK" => Self::SplitK,
            "us" => Self::Us,
            "kernelName" => Self::KernelName,
            "tflops" => Self::Tflops,
            "bw" => Self::Bw,
            "errRatio" => Self::ErrRatio,
            _ => Self::Other,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Gfx => "gfx",
            Self::CuNum => "cu_num",
            Self::M => "M",
            Self::N => "N",
            Self::K => "K",
            Self::WeightDtype => "q_dtype_w",
            Self::Libtype => "libtype",
            Self::KernelId => "kernelId",
            Self::SplitK => "splitK",
            Self::Us => "us",
            Self::KernelName => "kernelName",
            Self::Tflops => "tflops",
            Self::Bw => "bw",
            Self::ErrRatio => "errRatio",
            Self::Other => "other",
        }
    }

    /// The cell of `row` that a typed field holds; `None` if its text, if any, is in `extra`.
    pub(super) fn typed(self, row: &Row) -> Option<String> {
        let text = |cell: &Option<Text>| cell.as_ref().map(ToString::to_string);
        match self {
            Self::Gfx => text(&row.gfx),
            Self::CuNum => row.cu_num.map(|number| number.to_string()),
            Self::M => Some(row.m.to_string()),
            Self::N => Some(row.n.to_string()),
            Self::K => Some(row.k.to_string()),
            Self::WeightDtype => text(&row.q_dtype_w),
            Self::Libtype => text(&row.libtype),
            Self::KernelId => row.kernel_id.map(|number| number.to_string()),
            Self::SplitK => row.split_k.map(|number| number.to_string()),
            Self::Us => row.us.map(float_cell),
            Self::KernelName => text(&row.kernel_name),
            Self::Tflops => row.tflops.map(float_cell),
            Self::Bw => row.bw.map(float_cell),
            Self::ErrRatio => row.err_ratio.map(float_cell),
            Self::Other => None,
        }
    }
}

/// A table's columns and their meanings.
pub(super) struct Header {
    pub(super) columns: Vec<Text>,
    roles: Vec<Role>,
}

impl Header {
    pub(super) fn read(
        name: &str,
        record: &csv::ByteRecord,
        quirks: &mut Quirks,
    ) -> Result<Self, TableError> {
        let mut columns: Vec<Text> = Vec::with_capacity(record.len());
        for cell in record {
            let Ok(raw) = std::str::from_utf8(cell) else {
                return Err(TableError::HeaderNotUtf8 {
                    name: name.to_owned(),
                });
            };
            let column = raw.trim();
            if column.len() != raw.len() {
                quirks.padded_columns.push(raw.to_owned());
            }
            if columns.iter().any(|seen| &**seen == column) {
                return Err(TableError::DuplicateColumn {
                    name: name.to_owned(),
                    column: column.to_owned(),
                });
            }
            columns.push(Text::from(column));
        }
        let has = |wanted: &str| columns.iter().any(|column| &**column == wanted);
        // Key columns of other families, newest spelling last.
        let kind = if has("model_dim") {
            Some("MoE")
        } else if has("B") || (has("b") && has("m")) {
            Some("batched GEMM")
        } else if has("solidx") || (has("bias") && has("outdtype")) {
            Some("bf16 or int8 GEMM")
        } else if has("BT") || has("BV") || has("Hg") {
            Some("linear-attention")
        } else {
            None
        };
        if let Some(kind) = kind {
            return Err(TableError::NotGemm {
                name: name.to_owned(),
                kind,
            });
        }
        let missing: Vec<&str> = ["M", "N", "K"]
            .into_iter()
            .filter(|column| !has(column))
            .collect();
        if !missing.is_empty() {
            return Err(TableError::MissingColumns {
                name: name.to_owned(),
                columns: missing.join(", "),
            });
        }
        let roles = columns.iter().map(|column| Role::of(column)).collect();
        Ok(Self { columns, roles })
    }

    /// The family that a further key column identifies, whatever the file's name.
    pub(super) fn family(&self) -> Option<String> {
        // Weights with scales of several block sizes share a table (`_MXSCALE_BPRESHUFFLE_KEYS`, main of September
        // 2026).
        let has = |wanted: &str| self.columns.iter().any(|column| &**column == wanted);
        has("w_scale_block").then(|| "a8w8_blockscale_mxscale_bpreshuffle_tuned_gemm".to_owned())
    }

    /// The operation according to the columns, if neither file name nor kernel names tell.
    pub(super) fn op(&self) -> Op {
        let has = |role: Role| self.roles.contains(&role);
        Op::of_columns(has(Role::WeightDtype), has(Role::Libtype))
    }

    pub(super) fn row(
        &self,
        line: u64,
        record: &csv::ByteRecord,
        texts: &mut Interner,
        faults: &mut Vec<Fault>,
    ) -> Option<Row> {
        if record.len() > self.columns.len() {
            faults.push(Fault::TooManyCells {
                line,
                expected: self.columns.len(),
                found: record.len(),
            });
            return None;
        }
        let mut row = Row {
            line,
            ..Row::default()
        };
        let mut keys = [false; 3];
        for (index, role) in self.roles.iter().enumerate() {
            let bytes = record.get(index).unwrap_or(b"");
            let Ok(cell) = std::str::from_utf8(bytes) else {
                faults.push(Fault::NotUtf8 { line });
                return None;
            };
            let number = cell.trim();
            let mut kept = false; // whether a typed field holds the cell
            let mut bad_number = false;
            match role {
                Role::M | Role::N | Role::K => {
                    let Some(size) = whole(number).and_then(|size| u32::try_from(size).ok()) else {
                        faults.push(Fault::BadKey {
                            line,
                            column: role.name(),
                            text: short(cell),
                        });
                        return None;
                    };
                    let (field, key) = match role {
                        Role::M => (&mut row.m, 0),
                        Role::N => (&mut row.n, 1),
                        _ => (&mut row.k, 2),
                    };
                    (*field, keys[key], kept) = (size, true, true);
                }
                Role::CuNum => {
                    row.cu_num = whole(number).and_then(|count| u32::try_from(count).ok());
                    kept = row.cu_num.is_some();
                    if !kept {
                        faults.push(Fault::BadKey {
                            line,
                            column: role.name(),
                            text: short(cell),
                        });
                        return None;
                    }
                }
                Role::KernelId => {
                    row.kernel_id = whole(number);
                    (kept, bad_number) = (row.kernel_id.is_some(), true);
                }
                Role::SplitK => {
                    row.split_k = whole(number);
                    (kept, bad_number) = (row.split_k.is_some(), true);
                }
                Role::Us | Role::Tflops | Role::Bw | Role::ErrRatio => {
                    let value = float(number);
                    (kept, bad_number) = (value.is_some(), true);
                    *match role {
                        Role::Us => &mut row.us,
                        Role::Tflops => &mut row.tflops,
                        Role::Bw => &mut row.bw,
                        _ => &mut row.err_ratio,
                    } = value;
                }
                Role::Gfx | Role::WeightDtype | Role::Libtype | Role::KernelName => {
                    kept = !is_unset(number);
                    if kept {
                        *match role {
                            Role::Gfx => &mut row.gfx,
                            Role::WeightDtype => &mut row.q_dtype_w,
                            Role::Libtype => &mut row.libtype,
                            _ => &mut row.kernel_name,
                        } = Some(texts.text(cell));
                    }
                }
                Role::Other => {}
            }
            if !kept && !cell.is_empty() {
                row.extra
                    .push((self.columns[index].clone(), texts.text(cell)));
                if bad_number && !is_unset(number) {
                    faults.push(Fault::BadNumber {
                        line,
                        column: role.name(),
                        text: short(cell),
                    });
                }
            }
        }
        keys.iter().all(|seen| *seen).then_some(row)
    }
}

/// The line of a record's first cell. The reader's own count is that of preceding blank lines.
pub(in crate::table) fn first_line(bytes: &[u8], record: &csv::ByteRecord) -> u64 {
    let Some(position) = record.position() else {
        return 0;
    };
    let start = record_start(record);
    let blank = bytes
        .get(start..)
        .unwrap_or_default()
        .iter()
        .take_while(|byte| matches!(byte, b'\n' | b'\r'));
    position.line() + blank.filter(|byte| **byte == b'\n').count() as u64
}

/// Offset of a record in the file.
pub(super) fn record_start(record: &csv::ByteRecord) -> usize {
    let byte = record.position().map_or(0, csv::Position::byte);
    usize::try_from(byte).unwrap_or(usize::MAX)
}

/// Whether the last record of a file, `tail`, ends inside a quote. The CSV reader takes the end of the file for the
/// closing quote; pandas raises.
pub(super) fn ends_in_quote(tail: &[u8]) -> bool {
    if memchr::memchr(b'"', tail).is_none() {
        return false;
    }
    let last_cell = |text: &[u8]| {
        let mut record = csv::ByteRecord::new();
        let read = csv_text::records(text)(&mut record);
        read.then(|| record.iter().next_back().map(<[u8]>::to_vec))
    };
    // Outside a quote a further line would be a record of its own.
    last_cell(tail) != last_cell(&[tail, b"\nx"].concat())
}

/// Parses a whole number, also as pandas writes one in a column with gaps (`3.0`).
fn whole(text: &str) -> Option<i64> {
    if let Ok(number) = text.parse::<i64>() {
        return Some(number);
    }
    let number: f64 = text.parse().ok()?;
    // 2^53: above it a float no longer identifies one whole number.
    (number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0).then_some(number as i64)
}

/// Parses a float, `inf` included; `nan` is one of the spellings of "no value", so the result is `None`.
fn float(text: &str) -> Option<f64> {
    text.parse::<f64>().ok().filter(|value| !value.is_nan())
}

/// A cell, truncated for a message.
fn short(cell: &str) -> String {
    const SHOWN: usize = 60;
    match cell.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &cell[..end]),
        None => cell.to_owned(),
    }
}

/// Makes equal cells share their memory.
#[derive(Default)]
pub(in crate::table) struct Interner(HashSet<Text>);

impl Interner {
    pub(in crate::table) fn text(&mut self, cell: &str) -> Text {
        if let Some(text) = self.0.get(cell) {
            return text.clone();
        }
        let text = Text::from(cell);
        self.0.insert(text.clone());
        text
    }
}
