//! The tuned table as this runtime reads it, and how a shape finds its row.
//!
//! The rules are those of aiter's `gemm_a8w8_blockscale` (ROCm/aiter, `aiter/ops/gemm_op_a8w8.py` and
//! `csrc/py_itfs_cu/gemm_common.cu` at e4048607a5): the file is read whole at the first GEMM and never
//! again, a shape is looked up with its own M, then with two roundings of it, and the answer is kept.
//! This is the runtime's side; gemmtune's prediction of it is written separately, so that a test can
//! hold the two against each other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// `libtype` of the rows this runtime has kernels for.
pub const LIBTYPE: &str = "reference";

/// The table's columns in the order they are written; they are read by name.
pub const COLUMNS: [&str; 13] = [
    "gfx",
    "cu_num",
    "M",
    "N",
    "K",
    "libtype",
    "kernelId",
    "splitK",
    "us",
    "kernelName",
    "tflops",
    "bw",
    "errRatio",
];

/// A tuned row, as far as this runtime uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Which library the kernel belongs to.
    pub libtype: String,
    /// The kernel's number; the name decides.
    pub kernel_id: i64,
    /// Split-K exponent.
    pub split_k: u32,
    /// The kernel's name.
    pub kernel_name: String,
}

/// A table cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The file cannot be opened or is not CSV.
    #[error("read table `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: csv::Error,
    },
    /// A column is missing.
    #[error("read table `{path}`: no column `{column}`")]
    Column {
        /// The file.
        path: PathBuf,
        /// The column.
        column: &'static str,
    },
    /// A value is not a number that fits.
    #[error("read table `{path}`: line {line}: column `{column}` holds `{value}`")]
    Value {
        /// The file.
        path: PathBuf,
        /// One-based line.
        line: u64,
        /// The column.
        column: &'static str,
        /// What stands there.
        value: String,
    },
    /// Two different rows have the same key.
    #[error(
        "read table `{path}`: line {line} repeats gfx={gfx} cu_num={cu_num} M={m} N={n} K={k} with other columns (ValueError: DataFrame index must be unique for orient='index'.)"
    )]
    Repeated {
        /// The file.
        path: PathBuf,
        /// One-based line of the second row.
        line: u64,
        /// Key: instruction set; empty when the table has no such column.
        gfx: String,
        /// Key: cores.
        cu_num: u64,
        /// Key: rows of the activation.
        m: u64,
        /// Key: rows of the weight.
        n: u64,
        /// Key: columns.
        k: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    gfx: String,
    cu_num: u64,
    m: u64,
    n: u64,
    k: u64,
}

/// A tuned table in memory.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: BTreeMap<Key, Row>,
    without_gfx: bool,
}

/// A row found for a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit<'a> {
    /// The M whose row it is.
    pub padded_m: u64,
    /// The row.
    pub row: &'a Row,
}

impl Table {
    /// Reads a table file.
    pub fn read(path: &Path) -> Result<Self, TableError> {
        let read_error = |source| TableError::Read {
            path: path.to_owned(),
            source,
        };
        let mut reader = csv::ReaderBuilder::new()
            .trim(csv::Trim::All)
            .from_path(path)
            .map_err(read_error)?;
        let headers = reader.headers().map_err(read_error)?.clone();
        let place = |column: &'static str| headers.iter().position(|header| header == column);
        let required = |column: &'static str| {
            place(column).ok_or_else(|| TableError::Column {
                path: path.to_owned(),
                column,
            })
        };
        let gfx = place("gfx");
        let numbers = [
            ("cu_num", required("cu_num")?),
            ("M", required("M")?),
            ("N", required("N")?),
            ("K", required("K")?),
        ];
        let (kernel_id, split_k) = (required("kernelId")?, required("splitK")?);
        let (libtype, kernel_name) = (required("libtype")?, required("kernelName")?);
        let mut table = Self {
            rows: BTreeMap::new(),
            without_gfx: gfx.is_none(),
        };
        let mut seen = BTreeSet::new();
        for record in reader.records() {
            let record = record.map_err(read_error)?;
            // Rows equal in every column are one row (pandas `drop_duplicates`).
            if !seen.insert(record.iter().map(str::to_owned).collect::<Vec<_>>()) {
                continue;
            }
            let line = record.position().map_or(0, csv::Position::line);
            let integer = |column: &'static str, place: usize| {
                let value = record.get(place).unwrap_or_default();
                whole_number(value).ok_or_else(|| TableError::Value {
                    path: path.to_owned(),
                    line,
                    column,
                    value: value.to_owned(),
                })
            };
            let mut parts = [0u64; 4];
            for (part, (column, place)) in parts.iter_mut().zip(numbers) {
                *part = integer(column, place).and_then(|value| {
                    u64::try_from(value).map_err(|_| TableError::Value {
                        path: path.to_owned(),
                        line,
                        column,
                        value: value.to_string(),
                    })
                })?;
            }
            let [cu_num, m, n, k] = parts;
            let text = |place: usize| record.get(place).unwrap_or_default().to_owned();
            let split_value = integer("splitK", split_k)?;
            let row = Row {
                libtype: text(libtype),
                kernel_id: integer("kernelId", kernel_id)?,
                split_k: u32::try_from(split_value).map_err(|_| TableError::Value {
                    path: path.to_owned(),
                    line,
                    column: "splitK",
                    value: split_value.to_string(),
                })?,
                kernel_name: text(kernel_name),
            };
            let key = Key {
                gfx: gfx.map(text).unwrap_or_default(),
                cu_num,
                m,
                n,
                k,
            };
            if table.rows.contains_key(&key) {
                return Err(TableError::Repeated {
                    path: path.to_owned(),
                    line,
                    gfx: key.gfx,
                    cu_num,
                    m,
                    n,
                    k,
                });
            }
            table.rows.insert(key, row);
        }
        Ok(table)
    }

    /// Rows in the table.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether the table has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether the file had no `gfx` column, so that only `cu_num`, M, N and K are compared.
    pub fn is_without_gfx(&self) -> bool {
        self.without_gfx
    }

    /// The row that serves a shape: M itself, then the fine rounding, then the coarse one; first hit wins.
    pub fn find(&self, gfx: &str, cu_num: u64, m: u64, n: u64, k: u64) -> Option<Hit<'_>> {
        let gfx = if self.without_gfx { "" } else { gfx };
        [m, padded_m(m, n, 0), padded_m(m, n, 1)]
            .into_iter()
            .find_map(|padded_m| {
                let key = Key {
                    gfx: gfx.to_owned(),
                    cu_num,
                    m: padded_m,
                    n,
                    k,
                };
                self.rows.get(&key).map(|row| Hit { padded_m, row })
            })
    }
}

/// An integer, also written as pandas writes one in a column that had a gap (`16.0`).
fn whole_number(text: &str) -> Option<i64> {
    text.parse().ok().or_else(|| {
        let value: f64 = text.parse().ok()?;
        // 2^53: beyond it float64 skips integers.
        (value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0).then_some(value as i64)
    })
}

/// The M whose row serves `m` at granularity `gl` (aiter `getPaddedM`): 0 is fine, 1 coarse, any other
/// leaves M alone.
pub fn padded_m(m: u64, n: u64, gl: u32) -> u64 {
    let step = match m {
        0..=256 => 16,
        257..=1024 => 32,
        1025..=4096 => 64,
        _ => 128,
    };
    match gl {
        0 => m.div_ceil(step) * step,
        1 if m > 8192 && n > 4096 => 8192,
        1 => m.max(1).next_power_of_two(),
        _ => m,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn table(text: &str) -> Result<Table, TableError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        Table::read(file.path())
    }

    const HEAD: &str =
        "gfx,cu_num,M,N,K,libtype,kernelId,splitK,us,kernelName,tflops,bw,errRatio\n";

    #[test]
    fn m_is_rounded_as_aiter_rounds_it() {
        let fine = [
            (0, 0),
            (1, 16),
            (16, 16),
            (17, 32),
            (256, 256),
            (257, 288),
            (1025, 1088),
            (4097, 4224),
        ];
        for (m, expected) in fine {
            assert_eq!(padded_m(m, 512, 0), expected, "{m}");
        }
        let coarse = [
            (0, 4096, 1),
            (1, 1, 1),
            (3, 1, 4),
            (8193, 4097, 8192),
            (8193, 4096, 16384),
            (100_000, 8192, 8192),
        ];
        for (m, n, expected) in coarse {
            assert_eq!(padded_m(m, n, 1), expected, "{m}");
        }
        assert_eq!(padded_m(77, 1, 2), 77);
    }

    #[test]
    fn an_exact_row_beats_a_fine_one_and_a_fine_one_a_coarse_one() {
        let text = format!(
            "{HEAD}avx2,2,3,64,64,reference,1,0,9,exact,0,0,0\navx2,2,16,64,64,reference,2,1,1,fine,0,0,0\navx2,2,4,64,64,reference,3,0,1,coarse,0,0,0\navx2,2,64,64,64,reference,4,0,1,far,0,0,0\n"
        );
        let table = table(&text).unwrap();
        let name = |m| {
            table
                .find("avx2", 2, m, 64, 64)
                .map(|hit| (hit.padded_m, hit.row.kernel_name.as_str()))
        };
        assert_eq!(name(3), Some((3, "exact")));
        assert_eq!(name(4), Some((4, "coarse")));
        assert_eq!(name(2), Some((16, "fine")));
        assert_eq!(name(33), Some((64, "far")));
        assert_eq!(name(65), None);
        assert_eq!(table.find("avx512", 2, 3, 64, 64), None);
        assert_eq!(table.find("avx2", 4, 3, 64, 64), None);
    }

    #[test]
    fn columns_are_found_by_name_and_a_missing_gfx_column_is_not_compared() {
        let table = table(
            "kernelName,splitK,kernelId,libtype,K,N,M,cu_num\nx,0,7.0,reference,64,64,16.0,2\n",
        )
        .unwrap();
        assert!(table.is_without_gfx());
        let hit = table.find("anything", 2, 5, 64, 64).unwrap();
        assert_eq!((hit.padded_m, hit.row.kernel_id), (16, 7));
    }

    #[test]
    fn equal_rows_are_one_row_and_a_repeated_key_is_an_error() {
        let row = "avx2,2,1,64,64,reference,1,0,9,a,0,0,0\n";
        assert_eq!(table(&format!("{HEAD}{row}{row}")).unwrap().len(), 1);
        let other = row.replace(",9,a,", ",8,a,");
        let error = table(&format!("{HEAD}{row}{other}")).unwrap_err();
        assert!(
            matches!(error, TableError::Repeated { line: 3, .. }),
            "{error}"
        );
    }

    #[test]
    fn a_bad_file_is_named_with_its_line_and_column() {
        assert!(matches!(
            Table::read(Path::new("/nonexistent/t.csv")),
            Err(TableError::Read { .. })
        ));
        assert!(matches!(
            table("M,N\n1,2\n"),
            Err(TableError::Column {
                column: "cu_num",
                ..
            })
        ));
        let text = format!("{HEAD}avx2,2,many,64,64,reference,1,0,9,a,0,0,0\n");
        assert!(matches!(
            table(&text),
            Err(TableError::Value {
                line: 2,
                column: "M",
                ..
            })
        ));
        let text = format!("{HEAD}avx2,2,1,64,64,reference,1,-1,9,a,0,0,0\n");
        assert!(matches!(
            table(&text),
            Err(TableError::Value {
                line: 2,
                column: "splitK",
                ..
            })
        ));
        assert!(matches!(
            table(&format!("{HEAD}avx2,2\n")),
            Err(TableError::Read { .. })
        ));
    }
}
