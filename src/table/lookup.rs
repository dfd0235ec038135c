//! How aiter finds a row for a GEMM: padded M, keys, probe order, per operation and revision.
//!
//! Everything here is what `aiter/ops/gemm_op_a8w8.py`, `gemm_op_a4w4.py` and `csrc/py_itfs_cu/gemm_common.cu` do at
//! the commits of [`Revision`]; the vectors under `testdata/lookup/` come from running that code. Nothing is guessed:
//! a table that aiter rejects is rejected here, with the offending lines.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::aiter::{Fault, Row, Table, Text};
use super::revision::{self, Revision};
use crate::problem::dtype;
use crate::problem::{Op, Shape};

/// M as a table may hold it for a GEMM with `m` rows: aiter's `getPaddedM`, the same at every revision.
///
/// `gl` 0 is the fine grid (steps of 16, 32, 64, 128), 1 the coarse one (powers of two; 8192 for
/// anything larger when N > 4096); any other value leaves M unchanged. K has no effect.
pub fn padded_m(gl: i32, m: u32, n: u32, _k: u32) -> u32 {
    let up = |step: u32| m.checked_next_multiple_of(step).unwrap_or(m);
    match gl {
        0 if m <= 256 => up(16),
        0 if m <= 1024 => up(32),
        0 if m <= 4096 => up(64),
        0 => up(128),
        1 if m > 8192 && n > 4096 => 8192,
        1 => m.checked_next_power_of_two().unwrap_or(m),
        _ => m,
    }
}

/// M as the table compiled into `gemm_a8w8`'s own module rounds it on its second and last probe
/// (`csrc/ck_gemm_a8w8/gemm_a8w8.cu`, `rowwise_dispatch`, the same at every revision). So Python may log row M = 96
/// while the kernel of row M = 128 runs.
pub fn padded_m_of_a8w8_module(m: u32) -> u32 {
    match m {
        2..=16 => 16,
        0..=16384 => m.checked_next_power_of_two().unwrap_or(m),
        16385..=20480 => 20480,
        _ => m,
    }
}

/// A step of the look-up; the first that finds a row ends it, whatever the rows' times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Probe {
    Exact,
    /// M on the fine grid.
    Fine,
    /// M on the coarse grid.
    Coarse,
    /// The largest M of the weight, if the shape's is larger still.
    Largest,
}

impl Probe {
    /// The M that this probe looks up.
    pub fn m(self, m: u32, n: u32, k: u32) -> u32 {
        match self {
            // The largest row's M is its own, and does not follow from the shape.
            Self::Exact | Self::Largest => m,
            Self::Fine => padded_m(0, m, n, k),
            Self::Coarse => padded_m(1, m, n, k),
        }
    }
}

/// What a tree's look-up does: four facts that determine every hit and miss.
///
/// [`Rules::new`] has them per revision; a tree in between is described by its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    pub op: Op,
    /// Whether M is padded after the exact probe (`bpreshuffle` at [`Revision::A`] does not).
    pub pads_m: bool,
    /// Whether a table's `gfx` column, where it has one, is part of the key ([`Revision::H`]; also
    /// releases v0.1.12.post2 and v0.1.13 on). Without it the column is data like any other.
    pub keys_gfx: bool,
    /// Whether the weight's dtype is part of the key.
    pub keys_weight_dtype: bool,
    /// Whether the largest row of a weight serves every M above it (`reuse_largest_bpreshuffle_config`).
    pub reuses_largest: bool,
}

impl Rules {
    /// The rules of `op` at `revision`.
    pub fn new(op: Op, revision: Revision) -> Self {
        let aiter = op.aiter();
        Self {
            op,
            pads_m: aiter.is_none_or(|aiter| revision >= aiter.pads_m_from),
            keys_gfx: revision >= Revision::H,
            keys_weight_dtype: revision::has_weight_dtype(op, revision),
            reuses_largest: aiter
                .and_then(|aiter| aiter.reuses_largest_from)
                .is_some_and(|from| revision >= from),
        }
    }

    /// The probes that follow from the shape, in order.
    pub fn probes(self) -> &'static [Probe] {
        if self.pads_m {
            &[Probe::Exact, Probe::Fine, Probe::Coarse]
        } else {
            &[Probe::Exact]
        }
    }
}

/// A table that aiter itself would reject: the first GEMM of the server raises.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// pandas: `ValueError: DataFrame index must be unique for orient='index'`.
    #[error(
        "look up in `{table}`: lines {first} and {second} have the key {key} but differ elsewhere, and aiter raises `ValueError: DataFrame index must be unique` at the first GEMM ({count} such keys)"
    )]
    DuplicateKey {
        /// Name of the table.
        table: String,
        /// The key, as `M=… N=… K=… cu_num=…`.
        key: String,
        /// 1-based line of the first row.
        first: u64,
        /// 1-based line of the second.
        second: u64,
        /// Number of keys with this fault.
        count: usize,
    },
    /// pandas: `KeyError: "None of ['…'] are in the columns"`.
    #[error(
        "look up in `{table}`: it has no column `{column}`, a part of this operation's key, and aiter raises `KeyError` at the first GEMM"
    )]
    MissingKeyColumn {
        /// Name of the table.
        table: String,
        column: &'static str,
    },
    /// A line with which pandas rejects the file, or turns a key column into text that equals nothing.
    #[error("look up in `{table}`: {consequence}")]
    Unusable {
        /// Name of the table.
        table: String,
        /// What happens at run time.
        consequence: &'static str,
        #[source]
        fault: Fault,
    },
    /// SGLang's Triton kernel has JSON files instead.
    #[error("look up {0} in a CSV: SGLang reads JSON files for it")]
    NotAnAiterOperation(Op),
}

/// The result of a look-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Resolution<'table> {
    /// A row serves the shape.
    Hit {
        row: &'table Row,
        padded_m: u32,
        /// The probe that found it.
        probe: Probe,
    },
    Miss,
}

impl<'table> Resolution<'table> {
    /// The row, if there is one.
    pub fn row(self) -> Option<&'table Row> {
        match self {
            Self::Hit { row, .. } => Some(row),
            Self::Miss => None,
        }
    }
}

/// A table indexed for one GPU, as a server process does.
#[derive(Debug)]
pub struct Resolver<'table> {
    rules: Rules,
    gfx: String,
    /// Rows of this GPU by (M, N, K, dtype); the dtype is empty if it is not part of the key.
    rows: HashMap<(u32, u32, u32, Text), &'table Row>,
    /// For each (N, K, dtype) the row with the largest M, under [`Rules::reuses_largest`].
    largest: HashMap<(u32, u32, Text), &'table Row>,
    /// Whether the table lacks a column of the key; the runtime warns and continues.
    falls_back_to_cu_num: bool,
}

impl<'table> Resolver<'table> {
    /// Indexes `table` for GPUs of architecture `gfx` with `cu_num` compute units.
    pub fn new(
        table: &'table Table,
        rules: Rules,
        gfx: &str,
        cu_num: u32,
    ) -> Result<Self, LookupError> {
        if rules.op.aiter().is_none() {
            return Err(LookupError::NotAnAiterOperation(rules.op));
        }
        // A name with blanks around it is another name to pandas.
        let padded = |column: &str| {
            let padded = &table.quirks.padded_columns;
            padded.iter().any(|name| name.trim() == column)
        };
        let has = |column: &str| table.has_column(column) && !padded(column);
        let with_gfx = rules.keys_gfx && has("gfx");
        let mut needed = vec!["cu_num", "M", "N", "K"];
        if rules.keys_weight_dtype {
            needed.push("q_dtype_w");
        }
        if let Some(column) = needed.into_iter().find(|column| !has(column)) {
            let table = table.name.clone();
            return Err(LookupError::MissingKeyColumn { table, column });
        }
        refuse_faults(table)?;

        let unset = Text::from("");
        let key = |row: &Row| Key {
            gfx: with_gfx.then(|| row.gfx.clone().unwrap_or_else(|| unset.clone())),
            cu_num: row.cu_num,
            m: row.m,
            n: row.n,
            k: row.k,
            dtype: rules
                .keys_weight_dtype
                .then(|| row.q_dtype_w.clone().unwrap_or_else(|| unset.clone())),
        };
        let mut seen: HashMap<Key, &Row> = HashMap::with_capacity(table.rows.len());
        let mut rows = HashMap::new();
        let mut largest: HashMap<(u32, u32, Text), &Row> = HashMap::new();
        let mut duplicates: Vec<(Key, u64, u64)> = Vec::new();
        for row in &table.rows {
            match seen.entry(key(row)) {
                Entry::Vacant(vacant) => {
                    let key = vacant.key();
                    let here = key.gfx.as_deref().is_none_or(|column| column == gfx)
                        && key.cu_num == Some(cu_num);
                    if here {
                        let dtype = key.dtype.clone().unwrap_or_else(|| unset.clone());
                        rows.insert((row.m, row.n, row.k, dtype.clone()), row);
                        if rules.reuses_largest {
                            let best = largest.entry((row.n, row.k, dtype)).or_insert(row);
                            if row.m > best.m {
                                *best = row;
                            }
                        }
                    }
                    vacant.insert(row);
                }
                // `drop_duplicates` removes rows that are equal in every column.
                Entry::Occupied(first) if first.get().is_copy_of(row) => {}
                Entry::Occupied(first) => {
                    duplicates.push((first.key().clone(), first.get().line, row.line));
                }
            }
        }
        if let Some((key, first, second)) = duplicates.first() {
            return Err(LookupError::DuplicateKey {
                table: table.name.clone(),
                key: key.to_string(),
                first: *first,
                second: *second,
                count: duplicates.len(),
            });
        }
        Ok(Self {
            rules,
            gfx: gfx.to_owned(),
            rows,
            largest,
            falls_back_to_cu_num: rules.keys_gfx && !with_gfx,
        })
    }

    /// The row that the runtime uses for `shape`; its operation is ignored.
    ///
    /// If the dtype is part of the key and the shape has none, the architecture's FP8 dtype is used.
    pub fn find(&self, shape: &Shape) -> Resolution<'table> {
        let dtype = match (self.rules.keys_weight_dtype, shape.dtype.as_str()) {
            (false, _) => Text::from(""),
            (true, "") => Text::from(dtype::fp8_of(&self.gfx)),
            (true, dtype) => Text::from(dtype),
        };
        for probe in self.rules.probes() {
            let padded_m = probe.m(shape.m, shape.n, shape.k);
            if let Some(row) = self.rows.get(&(padded_m, shape.n, shape.k, dtype.clone())) {
                return Resolution::Hit {
                    row,
                    padded_m,
                    probe: *probe,
                };
            }
        }
        match self.largest.get(&(shape.n, shape.k, dtype)) {
            Some(row) if shape.m > row.m => Resolution::Hit {
                row,
                padded_m: row.m,
                probe: Probe::Largest,
            },
            _ => Resolution::Miss,
        }
    }

    /// The row whose kernel `gemm_a8w8`'s compiled module runs for `shape`: its own two probes over the same
    /// table. `None` means its built-in heuristic by M, N and K.
    pub fn find_in_a8w8_module(&self, shape: &Shape) -> Option<&'table Row> {
        let dtype = match (self.rules.keys_weight_dtype, shape.dtype.as_str()) {
            (false, _) => Text::from(""),
            (true, "") => Text::from(dtype::fp8_of(&self.gfx)),
            (true, dtype) => Text::from(dtype),
        };
        [shape.m, padded_m_of_a8w8_module(shape.m)]
            .into_iter()
            .find_map(|m| {
                self.rows
                    .get(&(m, shape.n, shape.k, dtype.clone()))
                    .copied()
            })
    }

    /// Whether the runtime warns that the table has no `gfx` column and matches by `cu_num` alone.
    pub fn falls_back_to_cu_num(&self) -> bool {
        self.falls_back_to_cu_num
    }

    /// The look-up rules in effect.
    pub fn rules(&self) -> Rules {
        self.rules
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    gfx: Option<Text>,
    cu_num: Option<u32>,
    m: u32,
    n: u32,
    k: u32,
    dtype: Option<Text>,
}

impl std::fmt::Display for Key {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "M={} N={} K={}", self.m, self.n, self.k)?;
        if let Some(cu_num) = self.cu_num {
            write!(formatter, " cu_num={cu_num}")?;
        }
        if let Some(gfx) = &self.gfx {
            write!(formatter, " gfx={gfx}")?;
        }
        if let Some(dtype) = &self.dtype {
            write!(formatter, " q_dtype_w={dtype}")?;
        }
        Ok(())
    }
}

fn refuse_faults(table: &Table) -> Result<(), LookupError> {
    for fault in &table.faults {
        let consequence = match fault {
            Fault::TooManyCells { .. } => {
                "more cells than columns: pandas raises `ParserError` at the first GEMM, or takes the first column for an index and every look-up misses"
            }
            Fault::NotUtf8 { .. } => "pandas raises `UnicodeDecodeError` at the first GEMM",
            Fault::OpenQuote { .. } => {
                "pandas raises `ParserError` (EOF inside string) at the first GEMM"
            }
            // An empty key cell, or a number that is not a valid M, N, K or cu_num, only makes its own row
            // unreachable.
            Fault::BadKey { text, .. }
                if super::aiter::is_unset(text.trim()) || text.trim().parse::<f64>().is_ok() =>
            {
                continue;
            }
            Fault::BadKey { .. } => {
                "one cell that is no number makes pandas read the whole key column as text, so every look-up misses"
            }
            Fault::BadNumber { .. } => continue,
        };
        return Err(LookupError::Unusable {
            table: table.name.clone(),
            consequence,
            fault: fault.clone(),
        });
    }
    Ok(())
}

#[cfg(test)]
#[path = "lookup_tests.rs"]
mod tests;
