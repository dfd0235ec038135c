//! Calls of the fused MoE as CSV: what a log names, the input of a look-up, the input of a tuner.

use std::fmt::Write as _;

use super::table::UNTUNED;
use crate::problem::op::fused_moe_aiter::{Problem, Request, member};
use crate::table::csv_text;

/// A call, the card if it is known, and how often it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    pub request: Request,
    /// Architecture and compute units.
    pub card: Card,
    /// Calls, where the source counts them; else 1.
    pub records: u64,
}

/// Architecture and compute units, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Card {
    /// Architecture.
    pub gfx: Option<String>,
    /// Compute units.
    pub cu_num: Option<u32>,
}

/// A CSV file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestsError {
    /// Columns are missing without which no call is known.
    #[error("no column {0} in the header")]
    MissingColumns(String),
    /// A cell without a valid value.
    #[error("line {line}: `{text}` in column {column}")]
    Cell {
        /// 1-based line.
        line: u64,
        column: String,
        text: String,
    },
}

/// The calls in `bytes`: the columns of a tuner's input, and optionally `gfx`, `cu_num`, `ep` and `records`.
///
/// `token` may be any number of tokens: a look-up rounds it. dtypes may be written as aiter's tuner reads them
/// (`dtypes.bf16`); those that depend on the architecture cannot.
pub fn read(bytes: &[u8]) -> Result<Vec<Counted>, RequestsError> {
    let mut reader = csv_text::trimmed(bytes);
    // Reading from memory fails only on bytes that are not UTF-8.
    let header = reader.headers().cloned().unwrap_or_default();
    let at = |column: &str| header.iter().position(|name| name == column);
    let missing: Vec<&str> = UNTUNED
        .into_iter()
        .filter(|column| at(column).is_none())
        .collect();
    if !missing.is_empty() {
        return Err(RequestsError::MissingColumns(missing.join(", ")));
    }
    let mut calls = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| RequestsError::Cell {
            line: error.position().map_or(0, csv::Position::line),
            column: "any".to_owned(),
            text: "not UTF-8".to_owned(),
        })?;
        let line = record.position().map_or(0, csv::Position::line);
        let cell = |column: &str| at(column).and_then(|at| record.get(at)).unwrap_or("");
        let wrong = |column: &str| RequestsError::Cell {
            line,
            column: column.to_owned(),
            text: cell(column).to_owned(),
        };
        let number = |column: &str| cell(column).parse::<u32>().map_err(|_| wrong(column));
        let flag = |column: &str| match cell(column) {
            "1" | "True" | "true" => Ok(true),
            "0" | "False" | "false" => Ok(false),
            _ => Err(wrong(column)),
        };
        let text = |column: &str| match cell(column) {
            "" => Err(wrong(column)),
            text => Ok(text.to_owned()),
        };
        let dtype = |column: &str| match text(column)?.as_str() {
            "dtypes.bf16" => Ok("torch.bfloat16".to_owned()),
            "dtypes.fp16" => Ok("torch.float16".to_owned()),
            "dtypes.i8" => Ok("torch.int8".to_owned()),
            "dtypes.fp4x2" => Ok("torch.float4_e2m1fn_x2".to_owned()),
            text if text.starts_with("torch.") => Ok(text.to_owned()),
            _ => Err(wrong(column)),
        };
        let optional = |column: &str| match cell(column) {
            "" => Ok(None),
            _ => number(column).map(Some),
        };
        calls.push(Counted {
            request: Request {
                tokens: number("token")?,
                ep: at("ep").map_or(Ok(false), |_| flag("ep"))?,
                problem: Problem {
                    model_dim: number("model_dim")?,
                    inter_dim: number("inter_dim")?,
                    expert: number("expert")?,
                    topk: number("topk")?,
                    activation: member(&text("act_type")?).to_owned(),
                    dtype: dtype("dtype")?,
                    q_dtype_a: dtype("q_dtype_a")?,
                    q_dtype_w: dtype("q_dtype_w")?,
                    q_type: member(&text("q_type")?).to_owned(),
                    use_g1u1: flag("use_g1u1")?,
                    doweight_stage1: flag("doweight_stage1")?,
                },
            },
            card: Card {
                gfx: Some(cell("gfx"))
                    .filter(|gfx| !gfx.is_empty())
                    .map(str::to_owned),
                cu_num: optional("cu_num")?,
            },
            records: optional("records")?.map_or(1, u64::from),
        });
    }
    Ok(calls)
}

/// The twelve cells of [`UNTUNED`] for a call looked up at `token` with `topk`.
pub fn untuned_cells(problem: &Problem, token: u32, topk: u32) -> String {
    format!(
        "{token},{},{},{},{topk},ActivationType.{},{},{},{},QuantType.{},{},{}",
        problem.model_dim,
        problem.inter_dim,
        problem.expert,
        problem.activation,
        problem.dtype,
        problem.q_dtype_a,
        problem.q_dtype_w,
        problem.q_type,
        u8::from(problem.use_g1u1),
        u8::from(problem.doweight_stage1),
    )
}

/// A tuner's input: exactly these columns, because `gemm_moe_tune.py` drops rows that are equal in all of them.
pub fn untuned(rows: impl IntoIterator<Item = (Problem, u32)>) -> String {
    let mut text = UNTUNED.join(",");
    text.push('\n');
    for (problem, token) in rows {
        let _ = writeln!(text, "{}", untuned_cells(&problem, token, problem.topk));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_for_the_tuner_is_read_back() {
        let problem = Problem {
            model_dim: 7168,
            inter_dim: 256,
            expert: 257,
            topk: 9,
            activation: "Silu".to_owned(),
            dtype: "torch.bfloat16".to_owned(),
            q_dtype_a: "torch.float8_e4m3fnuz".to_owned(),
            q_dtype_w: "torch.float8_e4m3fnuz".to_owned(),
            q_type: "per_1x128".to_owned(),
            use_g1u1: true,
            doweight_stage1: false,
        };
        let text = untuned([(problem.clone(), 64)]);
        assert_eq!(
            text.lines().nth(1).unwrap(),
            "64,7168,256,257,9,ActivationType.Silu,torch.bfloat16,torch.float8_e4m3fnuz,torch.float8_e4m3fnuz,QuantType.per_1x128,1,0"
        );
        let read = read(text.as_bytes()).unwrap();
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].request.problem, problem);
        assert_eq!((read[0].request.tokens, read[0].records), (64, 1));
    }

    #[test]
    fn a_cell_that_is_no_key_names_its_line_and_column() {
        let text = format!(
            "{}\n64,7168,256,257,9,ActivationType.Silu,torch.bfloat16,dtypes.fp8,dtypes.fp8,QuantType.per_1x128,1,0\n",
            UNTUNED.join(",")
        );
        let error = read(text.as_bytes()).unwrap_err().to_string();
        assert_eq!(error, "line 2: `dtypes.fp8` in column q_dtype_a");
        insta::assert_snapshot!(read(b"token,model_dim\n1,2\n").unwrap_err(), @"no column inter_dim, expert, topk, act_type, dtype, q_dtype_a, q_dtype_w, q_type, use_g1u1, doweight_stage1 in the header");
    }
}
