//! The shapes file every step passes to the next: `op,M,N,K,dtype,records`.

use std::collections::BTreeMap;

use super::csv_text;
use super::family::{self, Family};
use crate::problem::fused_moe::MoeOp;
use crate::problem::{Op, Shape, UnknownOp};

/// A shape and how often it was seen.
///
/// In a file made from a plain log, `records` counts log records; in one made from an overlay it counts calls, graph
/// replays included.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CountedShape {
    pub shape: Shape,
    /// Times seen, at least 1.
    pub records: u64,
}

/// Why a shapes file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ShapesError {
    /// The CSV itself is malformed.
    #[error("read the shapes: line {line}: {message}")]
    Csv {
        /// 1-based line.
        line: u64,
        /// The CSV parser's error.
        message: String,
    },
    /// A required column is missing.
    #[error("find column `{column}` among `{header}` (line 1)")]
    MissingColumn {
        column: &'static str,
        /// The header of the file.
        header: String,
    },
    /// A cell that must be a positive integer but is not.
    #[error("read `{text}` in column {column} of line {line} as an integer from 1 to 4294967295")]
    BadNumber {
        /// 1-based line.
        line: u64,
        column: &'static str,
        text: String,
    },
    /// The scales of a fused MoE's weights are not one of the known kinds.
    #[error("read `{text}` in column scales of line {line} as `128x128`, `channel` or nothing")]
    BadScales {
        /// 1-based line.
        line: u64,
        text: String,
    },
    /// The operation of a line is unknown, or the file has no `op` column and none was given.
    #[error("read line {line} of the shapes")]
    BadOp {
        /// 1-based line.
        line: u64,
        #[source]
        source: UnknownOp,
    },
    /// Shapes of GEMMs that this program does not tune: their keys have further parts.
    #[error("take `{name}` for shapes of an FP8 or FP4 GEMM: {because}")]
    OtherGemm {
        name: String,
        /// How they were recognised.
        because: String,
    },
    /// Neither the file nor the caller tells which operation the shapes belong to.
    #[error("tell the operation: the shapes have no `op` column")]
    NoOp,
}

/// The operation of a shapes file without an `op` column: a tuner's input tells it by its name and columns. `None` if
/// nothing does.
///
/// An input of aiter's batched, bf16 or other tuners is refused, because its M, N and K would be mistaken for those
/// of another GEMM.
pub fn said_op(name: &str, bytes: &[u8]) -> Result<Option<Op>, ShapesError> {
    let mut reader = csv_text::trimmed(bytes);
    let header = reader.headers().map_err(|error| csv_error(&error))?.clone();
    let column = |name: &str| header.iter().position(|column| column == name);
    if column("op").is_some() {
        return Ok(None); // each line contains it
    }
    let other = |because: String| {
        Err(ShapesError::OtherGemm {
            name: name.to_owned(),
            because,
        })
    };
    // Key columns of the other tuners' inputs (aiter e4048607 and main of September 2026).
    let further = [
        ("B", "batched GEMMs"),
        ("b", "batched GEMMs"),
        ("bias", "bf16 GEMMs"),
        ("outdtype", "bf16 GEMMs"),
        ("scaleAB", "bf16 GEMMs"),
        ("w_scale_block", "MX-scaled GEMMs"),
        ("b_intype", "MX-scaled GEMMs"),
        ("model_dim", "fused MoE"),
    ];
    if let Some((column, what)) = further.iter().find(|(name, _)| column(name).is_some()) {
        return other(format!(
            "column `{column}` is of {what}, which are not tuned here"
        ));
    }
    let named = match family::of_file_name(name) {
        Some(Family::Other(stem)) => {
            return other(format!(
                "its name is of the family `{stem}`, which is not tuned here"
            ));
        }
        Some(Family::Op(op)) => Some(op),
        None => None,
    };
    let weight = column("q_dtype_w");
    let dtype = column("dtype").or(weight);
    let first = reader
        .records()
        .find_map(Result::ok)
        .and_then(|record| Some(record.get(dtype?)?.to_owned()));
    let first = first.as_deref().unwrap_or("");
    if let wide @ ("torch.bfloat16" | "torch.float16" | "torch.float32") = first {
        return other(format!("its dtype is {wide}"));
    }
    let keyed = weight.map(|_| Op::of_weight_dtype(first));
    Ok(named.or(keyed))
}

/// Reads a shapes file. Columns are found by name; `op`, `dtype` and `records` may be absent (then `op` is
/// `default_op`, the dtype is unknown and each line counts once), so that an untuned CSV of a tuner (`M,N,K`) is a
/// shapes file too. Equal shapes are added up; the result is sorted.
pub fn read(bytes: &[u8], default_op: Option<Op>) -> Result<Vec<CountedShape>, ShapesError> {
    let mut reader = csv_text::trimmed(bytes);
    let header = reader.headers().map_err(|error| csv_error(&error))?.clone();
    let column = |name: &'static str| header.iter().position(|column| column == name);
    let needed = |name: &'static str| {
        column(name).ok_or_else(|| ShapesError::MissingColumn {
            column: name,
            header: header.iter().collect::<Vec<_>>().join(","),
        })
    };
    let (m, n, k) = (needed("M")?, needed("N")?, needed("K")?);
    let (op, records) = (column("op"), column("records"));
    let dtype = column("dtype").or_else(|| column("q_dtype_w"));
    let mut counted: BTreeMap<Shape, u64> = BTreeMap::new();
    for record in reader.records() {
        let record = record.map_err(|error| csv_error(&error))?;
        if op
            .and_then(|index| record.get(index))
            .is_some_and(MoeOp::is_named)
        {
            continue; // no plain GEMM: read by `moe::counted::read`
        }
        let line = record.position().map_or(0, csv::Position::line);
        let number = |column: &'static str, index: usize| -> Result<u64, ShapesError> {
            let text = record.get(index).unwrap_or("");
            text.parse::<u64>()
                .ok()
                .filter(|number| *number > 0)
                .ok_or_else(|| ShapesError::BadNumber {
                    line,
                    column,
                    text: text.to_owned(),
                })
        };
        let size = |column: &'static str, index: usize| -> Result<u32, ShapesError> {
            let number = number(column, index)?;
            u32::try_from(number).map_err(|_| ShapesError::BadNumber {
                line,
                column,
                text: number.to_string(),
            })
        };
        let op = match op
            .and_then(|index| record.get(index))
            .filter(|text| !text.is_empty())
        {
            Some(text) => text
                .parse()
                .map_err(|source| ShapesError::BadOp { line, source })?,
            None => default_op.ok_or(ShapesError::NoOp)?,
        };
        let shape = Shape {
            op,
            m: size("M", m)?,
            n: size("N", n)?,
            k: size("K", k)?,
            dtype: dtype
                .and_then(|index| record.get(index))
                .unwrap_or("")
                .to_owned(),
        };
        let records = match records {
            Some(index) => number("records", index)?,
            None => 1,
        };
        let count = counted.entry(shape).or_default();
        *count = count.saturating_add(records);
    }
    Ok(counted
        .into_iter()
        .map(|(shape, records)| CountedShape { shape, records })
        .collect())
}

/// Writes a shapes file, sorted by operation, N, K, M, dtype.
pub fn write<'shape>(shapes: impl IntoIterator<Item = &'shape CountedShape>) -> String {
    let mut text = String::from("op,M,N,K,dtype,records\n");
    for row in rows(shapes.into_iter().map(|shape| (shape, String::new()))) {
        text.push_str(&row);
    }
    text
}

/// The same with the look-ups of each shape in two more columns: those that found a row, and those that did not.
pub fn write_looked_up(shapes: &[(CountedShape, (u64, u64))]) -> String {
    let mut text = String::from("op,M,N,K,dtype,records,hits,misses\n");
    let ends = shapes
        .iter()
        .map(|(shape, (hits, misses))| (shape, format!(",{hits},{misses}")));
    for row in rows(ends) {
        text.push_str(&row);
    }
    text
}

fn rows<'shape>(
    shapes: impl Iterator<Item = (&'shape CountedShape, String)>,
) -> impl Iterator<Item = String> {
    let mut sorted: Vec<(&CountedShape, String)> = shapes.collect();
    sorted.sort_by(|(a, _), (b, _)| a.shape.cmp(&b.shape));
    sorted.into_iter().map(|(counted, more)| {
        let Shape { op, m, n, k, dtype } = &counted.shape;
        format!("{op},{m},{n},{k},{dtype},{}{more}\n", counted.records)
    })
}

fn csv_error(error: &csv::Error) -> ShapesError {
    ShapesError::Csv {
        line: error.position().map_or(0, csv::Position::line),
        message: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shapes_file_reads_back_and_equal_shapes_add_up() {
        let text = "op,M,N,K,dtype,records\n\
                    gemm_a8w8_blockscale,64,512,7168,torch.float8_e4m3fn,2\r\n\
                    gemm_a8w8_blockscale,1,512,7168,torch.float8_e4m3fn,5\n\n\
                    gemm_a8w8_blockscale,64,512,7168,torch.float8_e4m3fn,1";
        let shapes = read(text.as_bytes(), None).unwrap();
        assert_eq!(shapes.len(), 2);
        assert_eq!((shapes[1].shape.m, shapes[1].records), (64, 3));
        assert_eq!(read(write(&shapes).as_bytes(), None).unwrap(), shapes);
    }

    #[test]
    fn an_untuned_table_is_a_shapes_file() {
        let shapes = read(b"M,N,K\n16, 1536, 7168\n", Some(Op::Blockscale)).unwrap();
        assert_eq!((shapes[0].shape.n, shapes[0].records), (1536, 1));
        assert!(matches!(
            read(b"M,N,K\n1,2,3\n", None),
            Err(ShapesError::NoOp)
        ));
    }

    #[test]
    fn a_tuners_input_says_by_name_and_columns_what_it_is_for() {
        let op = |name: &str, text: &str| said_op(name, text.as_bytes()).unwrap();
        let fp8 = "M,N,K,q_dtype_w\n1,2,3,torch.float8_e4m3fn\n";
        assert_eq!(op("mine.csv", fp8), Some(Op::Bpreshuffle));
        assert_eq!(
            op("mine.csv", &fp8.replace("float8_e4m3fn", "int8")),
            Some(Op::A8w8)
        );
        assert_eq!(op("a8w8_untuned_gemm.csv", fp8), Some(Op::A8w8));
        let plain = "M,N,K\n1,2,3\n";
        assert_eq!(op("mine.csv", plain), None);
        assert_eq!(
            op("x_a4w4_blockscale_untuned_gemm.csv", plain),
            Some(Op::A4w4)
        );
        assert_eq!(
            op("a8w8_blockscale_bpreshuffle_untuned_gemm_dsv3.csv", plain),
            Some(Op::BlockscaleBpreshuffle)
        );
        assert_eq!(op("x.csv", "op,M,N,K,dtype,records\n"), None);
        for (name, text) in [
            ("x.csv", "B,M,N,K\n1,2,3,4\n"),
            (
                "x.csv",
                "M,N,K,bias,dtype,outdtype,scaleAB\n1,2,3,False,torch.bfloat16,torch.bfloat16,False\n",
            ),
            ("x.csv", "M,N,K,dtype\n1,2,3,torch.bfloat16\n"),
            ("x.csv", "M,N,K,w_scale_block\n1,2,3,1x32\n"),
            ("a6w6_blockscale_untuned_gemm.csv", plain),
            ("a8w8_untuned_batched_gemm.csv", plain),
        ] {
            let refused = said_op(name, text.as_bytes());
            assert!(
                matches!(refused, Err(ShapesError::OtherGemm { .. })),
                "{name} {text}"
            );
        }
    }

    #[test]
    fn a_bad_cell_names_its_line_and_column() {
        let error = read(b"M,N,K\n1,2,3\n0,2,3\n", Some(Op::Blockscale)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "read `0` in column M of line 3 as an integer from 1 to 4294967295"
        );
        assert!(matches!(
            read(b"N,K\n2,3\n", Some(Op::Blockscale)),
            Err(ShapesError::MissingColumn { column: "M", .. })
        ));
        assert!(read(&[0xff, 0xfe, b'\n', 0xff], Some(Op::Blockscale)).is_err());
    }
}
