//! How the shapes file represents fused MoE beside plain GEMMs.
//!
//! A line of the operation [`OP`] has M tokens, N columns between the GEMMs and K hidden columns, and after the
//! columns of a GEMM `E,topk,scales`. What the source does not tell is an empty cell: a log line of SGLang has only E
//! and N.

use std::collections::BTreeMap;

use crate::problem::fused_moe::MoeProblem;
use crate::problem::op::fused_moe_triton::OP;
use crate::table::csv_text;
use crate::table::shapes::ShapesError;

/// A problem at one M, with the number of its calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountedProblem {
    pub problem: MoeProblem,
    /// Tokens of the forward, if the source has them.
    pub m: Option<u32>,
    pub records: u64,
}

/// The fused-MoE lines of a shapes file; lines of plain GEMMs are skipped. Equal problems are added up; the result is
/// sorted.
pub fn read(bytes: &[u8]) -> Result<Vec<CountedProblem>, ShapesError> {
    let mut reader = csv_text::trimmed(bytes);
    let wrong = |error: &csv::Error| ShapesError::Csv {
        line: error.position().map_or(0, csv::Position::line),
        message: error.to_string(),
    };
    let header = reader.headers().map_err(|error| wrong(&error))?.clone();
    let column = |name: &'static str| header.iter().position(|column| column == name);
    let Some(op) = column("op") else {
        return Ok(Vec::new());
    };
    let columns =
        ["M", "N", "K", "E", "topk", "dtype", "scales", "records"].map(|name| (name, column(name)));
    let mut counted: BTreeMap<(MoeProblem, Option<u32>), u64> = BTreeMap::new();
    for record in reader.records() {
        let record = record.map_err(|error| wrong(&error))?;
        if record.get(op) != Some(OP) {
            continue;
        }
        let line = record.position().map_or(0, csv::Position::line);
        let cell = |name: &str| {
            let index = columns
                .iter()
                .find(|(known, _)| *known == name)
                .and_then(|(_, index)| *index);
            index.and_then(|index| record.get(index)).unwrap_or("")
        };
        let bad = |column: &'static str| ShapesError::BadNumber {
            line,
            column,
            text: cell(column).to_owned(),
        };
        let size = |column: &'static str| match cell(column) {
            "" => Ok(None),
            text => text
                .parse::<u32>()
                .ok()
                .filter(|number| *number > 0)
                .map(Some)
                .ok_or_else(|| bad(column)),
        };
        let problem = MoeProblem {
            experts: size("E")?.ok_or_else(|| bad("E"))?,
            n: size("N")?.ok_or_else(|| bad("N"))?,
            hidden: size("K")?,
            topk: size("topk")?,
            dtype: cell("dtype").to_owned(),
            scales: cell("scales")
                .parse()
                .map_err(|()| ShapesError::BadScales {
                    line,
                    text: cell("scales").to_owned(),
                })?,
            experts_of_all: None,
        };
        let records = match cell("records") {
            "" => 1,
            text => text
                .parse::<u64>()
                .ok()
                .filter(|number| *number > 0)
                .ok_or_else(|| bad("records"))?,
        };
        let count = counted.entry((problem, size("M")?)).or_default();
        *count = count.saturating_add(records);
    }
    Ok(counted
        .into_iter()
        .map(|((problem, m), records)| CountedProblem {
            problem,
            m,
            records,
        })
        .collect())
}

/// A shapes file of GEMMs with the lines of `problems` and the columns they need, which come after those of a GEMM.
pub fn with_problems(gemms: &str, op: &str, problems: &[CountedProblem]) -> String {
    let (header, rows) = gemms.split_once('\n').unwrap_or((gemms, ""));
    if problems.is_empty() {
        return gemms.to_owned();
    }
    // Columns of a GEMM after `records`: how its look-ups ended.
    let blank = ",".repeat(header.matches(',').count().saturating_sub(5));
    let lines = lines(op, problems, &blank).concat();
    format!("{header},E,topk,scales\n{rows}{lines}")
}

fn lines(op: &str, problems: &[CountedProblem], blank: &str) -> Vec<String> {
    let number = |number: Option<u32>| number.map(|number| number.to_string()).unwrap_or_default();
    problems
        .iter()
        .map(
            |CountedProblem {
                 problem,
                 m,
                 records,
             }| {
                let MoeProblem {
                    experts,
                    n,
                    hidden,
                    topk,
                    dtype,
                    scales,
                    experts_of_all: _,
                } = problem;
                let (m, hidden, topk) = (number(*m), number(*hidden), number(*topk));
                format!(
                    "{op},{m},{n},{hidden},{dtype},{records}{blank},{experts},{topk},{scales}\n"
                )
            },
        )
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::moe::name::TableName;

    const HEADER: &str = "op,M,N,K,dtype,records,E,topk,scales\n";
    const FILE: &str = "op,M,N,K,dtype,records,E,topk,scales\n\
        gemm_a8w8_blockscale,1,512,7168,torch.float8_e4m3fn,5\n\
        fused_moe_triton,64,768,2048,fp8_w8a8,3,128,8,128x128\n\
        fused_moe_triton,64,768,2048,fp8_w8a8,4,128,8,128x128\n\
        fused_moe_triton,,192,,fp8_w8a8,1,161,,channel\n";

    #[test]
    fn fused_moe_lines_stand_beside_gemms_and_read_back() {
        let problems = read(FILE.as_bytes()).unwrap();
        assert_eq!(problems.len(), 2);
        assert_eq!((problems[0].m, problems[0].records), (Some(64), 7));
        assert_eq!((problems[1].m, problems[1].problem.topk), (None, None));
        let gemms = crate::table::shapes::read(FILE.as_bytes(), None).unwrap();
        assert_eq!(gemms.len(), 1, "a reader of GEMMs passes them over");
        let looked_up: Vec<_> = gemms.iter().map(|gemm| (gemm.clone(), (2, 1))).collect();
        for plain in [
            crate::table::shapes::write(&gemms),
            crate::table::shapes::write_looked_up(&looked_up),
        ] {
            let written = with_problems(&plain, OP, &problems);
            assert_eq!(read(written.as_bytes()).unwrap(), problems, "{written}");
            assert_eq!(
                crate::table::shapes::read(written.as_bytes(), None).unwrap(),
                gemms
            );
            assert_eq!(with_problems(&plain, OP, &[]), plain);
        }
    }

    #[test]
    fn a_problem_names_its_tables_as_sglang_does() {
        let problems = read(FILE.as_bytes()).unwrap();
        let name =
            |index: usize, down| TableName::of(&problems[index].problem, "NVIDIA H200", down);
        assert_eq!(
            name(0, true).to_string(),
            "E=128,N=768,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128]_down.json"
        );
        assert_eq!(
            name(1, false).to_string(),
            "E=161,N=192,device_name=NVIDIA_H200,dtype=fp8_w8a8,per_channel_quant=True.json"
        );
        assert_eq!(name(1, false).problem(), problems[1].problem);
    }

    #[test]
    fn a_bad_cell_of_a_fused_moe_names_its_line_and_column() {
        for (line, column) in [
            ("fused_moe_triton,1,768,2048,fp8_w8a8,1,0,8,128x128", "E"),
            ("fused_moe_triton,1,,2048,fp8_w8a8,1,128,8,128x128", "N"),
            ("fused_moe_triton,1,768,2048,fp8_w8a8,1,128,8,128", "scales"),
            ("fused_moe_triton,x,768,2048,fp8_w8a8,1,128,8,128x128", "M"),
            (
                "fused_moe_triton,1,768,2048,fp8_w8a8,0,128,8,128x128",
                "records",
            ),
        ] {
            let error = read(format!("{HEADER}{line}\n").as_bytes())
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(&format!("in column {column} of line 2")),
                "{error}"
            );
        }
    }
}
