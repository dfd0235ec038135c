//! Tuned tables of the fused MoE, parsed by header name.

use std::collections::HashSet;

use crate::problem::op::fused_moe_aiter::{Problem, member};
use crate::table::aiter::{Interner, Text, first_line, is_unset};
use crate::table::csv_text;

/// Key columns that hold whole numbers, in the order of the key.
pub const NUMBERS: [&str; 6] = [
    "cu_num",
    "token",
    "model_dim",
    "inter_dim",
    "expert",
    "topk",
];

/// Key columns with text, compared as text.
pub const TEXTS: [&str; 5] = ["act_type", "dtype", "q_dtype_a", "q_dtype_w", "q_type"];

/// Key columns that hold 0 or 1.
pub const FLAGS: [&str; 2] = ["use_g1u1", "doweight_stage1"];

/// Columns of a tuner's input, in the order that `gemm_moe_tune.py` writes them in.
pub const UNTUNED: [&str; 12] = [
    "token",
    "model_dim",
    "inter_dim",
    "expert",
    "topk",
    "act_type",
    "dtype",
    "q_dtype_a",
    "q_dtype_w",
    "q_type",
    "use_g1u1",
    "doweight_stage1",
];

/// One row. A cell that pandas reads as "no value" is `None`.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// 1-based line of the file.
    pub line: u64,
    /// Architecture.
    pub gfx: Option<Text>,
    /// Compute units of the GPU.
    pub cu_num: u32,
    /// Tokens of the key, as a look-up rounds them.
    pub token: u32,
    /// Hidden size.
    pub model_dim: u32,
    /// Intermediate size on the rank.
    pub inter_dim: u32,
    /// Experts on the rank.
    pub expert: u32,
    /// Experts a token is sent to.
    pub topk: u32,
    /// The text key cells, in the order of [`TEXTS`].
    pub texts: [Text; 5],
    /// `use_g1u1` and `doweight_stage1`; `None` for a text other than 0, 1, True and False, which equals nothing.
    pub flags: [Option<bool>; 2],
    /// Rows of a tile.
    pub block_m: Option<f64>,
    /// Split of the first GEMM's K.
    pub ksplit: Option<f64>,
    /// Time of the first stage, of the second and of both, in microseconds, as the tuner defines them.
    pub us: [Option<f64>; 3],
    /// Share of wrong elements of the first and of the second stage.
    pub err: [Option<f64>; 2],
    /// Kernels of the two stages; a one-stage kernel is the first.
    pub kernels: [Option<Text>; 2],
    /// Whether one kernel does both stages. Python takes an empty cell for true.
    pub run_1stage: bool,
    /// The cell of `xbf16`; `None` without the column.
    pub xbf16: Option<Text>,
    /// The text of `_tag`; empty for none.
    pub tag: Text,
}

impl Row {
    /// The numbers of its key, in the order of [`NUMBERS`].
    pub const fn numbers(&self) -> [u32; 6] {
        let Self {
            cu_num,
            token,
            model_dim,
            inter_dim,
            expert,
            topk,
            ..
        } = self;
        [*cu_num, *token, *model_dim, *inter_dim, *expert, *topk]
    }

    /// The cell of the text column `column`, one of [`TEXTS`].
    fn text(&self, column: &str) -> &Text {
        let at = TEXTS.iter().position(|name| *name == column);
        &self.texts[at.unwrap_or(0)]
    }

    /// The cell `act_type`, such as `ActivationType.Silu`.
    pub fn act_type(&self) -> &str {
        self.text("act_type")
    }

    /// The cell `q_type`, such as `QuantType.per_1x128`.
    pub fn q_type(&self) -> &str {
        self.text("q_type")
    }

    /// dtype of the weights.
    pub fn q_dtype_w(&self) -> &str {
        self.text("q_dtype_w")
    }

    /// dtype of the quantised activation.
    pub fn q_dtype_a(&self) -> &str {
        self.text("q_dtype_a")
    }

    /// The problem it was tuned for, as far as its key is well formed.
    pub fn problem(&self) -> Problem {
        Problem {
            model_dim: self.model_dim,
            inter_dim: self.inter_dim,
            expert: self.expert,
            topk: self.topk,
            activation: member(self.act_type()).to_owned(),
            dtype: self.text("dtype").to_string(),
            q_dtype_a: self.q_dtype_a().to_owned(),
            q_dtype_w: self.q_dtype_w().to_owned(),
            q_type: member(self.q_type()).to_owned(),
            use_g1u1: self.flags[0].unwrap_or_default(),
            doweight_stage1: self.flags[1].unwrap_or_default(),
        }
    }

    /// The architecture of its key: its own, or the one implied by its compute units (`gfx_from_cu_num`).
    pub fn gfx_or<'row>(&'row self, here: &'row str) -> &'row str {
        match self.gfx.as_deref() {
            Some(gfx) => gfx,
            None => match self.cu_num {
                256 => "gfx950",
                80 | 304 => "gfx942",
                _ => here,
            },
        }
    }
}

/// A line or cell that cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// 1-based line.
    pub line: u64,
    /// What is wrong with it.
    pub what: String,
    /// Whether the row is left out.
    pub drops_row: bool,
}

/// A file that is not a tuned table of the fused MoE.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// No header, or one that is not text.
    #[error("read `{0}`: it has no header line of text")]
    NoHeader(String),
    /// Columns are missing without which nothing can be found.
    #[error("read `{name}`: no column {columns} in the header")]
    MissingColumns {
        /// Name of the table.
        name: String,
        /// The columns, joined by commas.
        columns: String,
    },
    /// Two columns have the same name.
    #[error("read `{name}`: column `{column}` appears twice in the header")]
    DuplicateColumn {
        /// Name of the table.
        name: String,
        column: String,
    },
}

/// A tuned table: the contents of one CSV file.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Its name in messages.
    pub name: String,
    /// Column names in file order.
    pub columns: Vec<String>,
    /// Rows in file order: if several could serve, the first does.
    pub rows: Vec<Row>,
    /// What could not be parsed, in file order.
    pub faults: Vec<Fault>,
    /// Whether the last line has no line end.
    pub no_final_newline: bool,
}

/// Whether the header in `bytes` is that of a fused-MoE table, tuned or not.
pub fn is_of_moe(bytes: &[u8]) -> bool {
    let columns = header(bytes);
    ["token", "model_dim", "inter_dim", "expert", "topk"]
        .iter()
        .all(|name| columns.iter().any(|column| column == name))
}

/// Whether such a table is a tuner's input, without any measurement.
pub fn is_untuned(bytes: &[u8]) -> bool {
    let columns = header(bytes);
    !columns
        .iter()
        .any(|column| column == "us" || column == "kernelName1")
}

fn header(bytes: &[u8]) -> Vec<String> {
    let bytes = csv_text::unmarked(bytes);
    let end = memchr::memchr2(b'\n', b'\r', bytes).unwrap_or(bytes.len());
    let line = String::from_utf8_lossy(&bytes[..end]);
    line.split(',').map(|name| name.trim().to_owned()).collect()
}

impl Table {
    /// Reads a table. Lines that cannot be parsed are left out and listed in [`Table::faults`].
    pub fn read(name: &str, bytes: &[u8]) -> Result<Self, TableError> {
        let bytes = csv_text::unmarked(bytes);
        let mut record = csv::ByteRecord::new();
        let mut next = csv_text::records(bytes);
        if !next(&mut record) {
            return Err(TableError::NoHeader(name.to_owned()));
        }
        let columns = record
            .iter()
            .map(|cell| std::str::from_utf8(cell).map(|cell| cell.trim().to_owned()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| TableError::NoHeader(name.to_owned()))?;
        let mut seen = HashSet::new();
        if let Some(column) = columns.iter().find(|column| !seen.insert(column.as_str())) {
            return Err(TableError::DuplicateColumn {
                name: name.to_owned(),
                column: column.clone(),
            });
        }
        let needed = NUMBERS.iter().chain(&TEXTS).chain(&FLAGS);
        let missing: Vec<&str> = needed
            .chain(&["block_m", "ksplit", "kernelName1", "kernelName2"])
            .copied()
            .filter(|column| !columns.iter().any(|name| name == column))
            .collect();
        if !missing.is_empty() {
            return Err(TableError::MissingColumns {
                name: name.to_owned(),
                columns: missing.join(", "),
            });
        }
        let mut table = Self {
            name: name.to_owned(),
            columns,
            rows: Vec::new(),
            faults: Vec::new(),
            no_final_newline: !matches!(bytes.last(), Some(b'\n' | b'\r') | None),
        };
        let mut texts = Interner::default();
        while next(&mut record) {
            let line = first_line(bytes, &record);
            if record.iter().all(|cell| cell.trim_ascii().is_empty()) {
                continue;
            }
            match table.row(line, &record, &mut texts) {
                Ok(row) => table.rows.push(row),
                Err(what) => table.faults.push(Fault {
                    line,
                    what,
                    drops_row: true,
                }),
            }
        }
        Ok(table)
    }

    /// Whether the table has `column`.
    pub fn has(&self, column: &str) -> bool {
        self.columns.iter().any(|name| name == column)
    }

    fn row(
        &mut self,
        line: u64,
        record: &csv::ByteRecord,
        texts: &mut Interner,
    ) -> Result<Row, String> {
        if record.len() > self.columns.len() {
            return Err(format!(
                "{} cells, the header {}",
                record.len(),
                self.columns.len()
            ));
        }
        let cells = record
            .iter()
            .map(std::str::from_utf8)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| "not UTF-8".to_owned())?;
        let columns = &self.columns;
        let cell = |column: &str| {
            let at = columns.iter().position(|name| name == column);
            at.and_then(|at| cells.get(at).copied()).unwrap_or("")
        };
        let mut shared = |text: &str| texts.text(text);
        let mut unreadable = Vec::new();
        let number = |column: &str| {
            let text = cell(column).trim();
            // A column with an empty cell has floats in pandas.
            let plain = text.strip_suffix(".0").unwrap_or(text);
            plain
                .parse::<u32>()
                .map_err(|_| format!("`{text}` in column {column} is no whole number"))
        };
        let [cu_num, token, model_dim, inter_dim, expert, topk] = NUMBERS;
        let numbers = [
            number(cu_num)?,
            number(token)?,
            number(model_dim)?,
            number(inter_dim)?,
            number(expert)?,
            number(topk)?,
        ];
        let mut measured = |column: &str| {
            let text = cell(column).trim();
            let plain = text.strip_suffix('%').unwrap_or(text);
            if is_unset(text) {
                return None;
            }
            let value = plain.parse::<f64>().ok();
            if value.is_none() {
                unreadable.push(format!("`{text}` in column {column} is no number"));
            }
            let percent = if text.ends_with('%') { 100.0 } else { 1.0 };
            value.map(|value| value / percent)
        };
        let us = ["us1", "us2", "us"].map(&mut measured);
        let err = ["err1", "err2"].map(&mut measured);
        let [block_m, ksplit] = ["block_m", "ksplit"].map(&mut measured);
        let flag = |column: &str| match cell(column).trim() {
            "1" | "1.0" | "True" => Some(true),
            "0" | "0.0" | "False" => Some(false),
            _ => None,
        };
        let run_1stage = columns.iter().any(|name| name == "run_1stage")
            && !matches!(cell("run_1stage").trim(), "0" | "0.0" | "False");
        let row = Row {
            line,
            gfx: Some(cell("gfx"))
                .filter(|gfx| !is_unset(gfx) && *gfx != "0")
                .map(&mut shared),
            cu_num: numbers[0],
            token: numbers[1],
            model_dim: numbers[2],
            inter_dim: numbers[3],
            expert: numbers[4],
            topk: numbers[5],
            texts: TEXTS.map(|column| shared(cell(column))),
            flags: FLAGS.map(flag),
            block_m,
            ksplit,
            us,
            err,
            kernels: ["kernelName1", "kernelName2"].map(|column| {
                Some(cell(column))
                    .filter(|name| !is_unset(name))
                    .map(&mut shared)
            }),
            run_1stage,
            xbf16: columns
                .iter()
                .any(|name| name == "xbf16")
                .then(|| shared(cell("xbf16").trim())),
            tag: shared(
                Some(cell("_tag"))
                    .filter(|tag| !is_unset(tag))
                    .unwrap_or(""),
            ),
        };
        let faults = unreadable.into_iter().map(|what| Fault {
            line,
            what,
            drops_row: false,
        });
        self.faults.extend(faults);
        Ok(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "cu_num,token,model_dim,inter_dim,expert,topk,act_type,dtype,q_dtype_a,q_dtype_w,q_type,use_g1u1,doweight_stage1,block_m,ksplit,us1,kernelName1,err1,us2,kernelName2,err2,us,run_1stage,tflops,bw";
    const KEY: &str = "ActivationType.Silu,torch.bfloat16,torch.float8_e4m3fn,torch.float8_e4m3fn,QuantType.per_1x128,1,0";

    #[test]
    fn a_row_is_read_by_the_names_of_its_columns() {
        let text = format!(
            "{HEADER}\n256,64,7168,256,257,9,{KEY},32,0,10.5,a,0.0%,20.25,b,17.1%,30.75,0,1.0,2.0\n"
        );
        let table = Table::read("t", text.as_bytes()).unwrap();
        let row = &table.rows[0];
        assert_eq!((row.line, row.cu_num, row.topk), (2, 256, 9));
        assert_eq!(row.us, [Some(10.5), Some(20.25), Some(30.75)]);
        assert_eq!(row.err, [Some(0.0), Some(0.171)]);
        assert_eq!(row.gfx_or("gfx1"), "gfx950");
        assert_eq!(row.flags, [Some(true), Some(false)]);
        assert_eq!(row.problem().activation, "Silu");
        assert!(table.faults.is_empty());
    }

    #[test]
    fn a_line_that_cannot_be_read_is_told_and_left_out() {
        let text = format!(
            "{HEADER}\n256,x,7168,256,257,9,{KEY},32,0,1,a,0%,1,b,0%,2,0,1,2\n256,8,7168,256,257,9,{KEY},32,0,fast,a,0%,1,b,0%,2,0,1,2\n"
        );
        let table = Table::read("t", text.as_bytes()).unwrap();
        assert_eq!(table.rows.len(), 1);
        let faults: Vec<_> = table
            .faults
            .iter()
            .map(|fault| (fault.line, fault.drops_row))
            .collect();
        assert_eq!(faults, [(2, true), (3, false)]);
        let spaced = Table::read("t", text.replacen('\n', "\n\n", 1).as_bytes()).unwrap();
        assert_eq!((spaced.faults[0].line, spaced.rows[0].line), (3, 4));
        assert!(Table::read("t", b"").is_err());
        assert!(Table::read("t", b"token,token\n").is_err());
        assert!(is_of_moe(HEADER.as_bytes()) && !is_untuned(HEADER.as_bytes()));
        assert!(is_untuned(UNTUNED.join(",").as_bytes()));
    }
}
