//! Fused-MoE problems, and how the shapes file represents them beside plain GEMMs.
//!
//! A line of the operation [`OP`] has M tokens, N columns between the GEMMs and K hidden columns, and after the
//! columns of a GEMM `E,topk,scales`. What the source does not tell is an empty cell: a log line of SGLang has only E
//! and N.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, de};

use super::name::TableName;
use crate::table::shapes::ShapesError;

/// The operation in a shapes file: SGLang's Triton kernel for fused MoE.
pub const OP: &str = "fused_moe_triton";

/// The same operation in aiter's fused MoE.
pub const AITER_OP: &str = "fused_moe_aiter";

/// How the weights of the experts are scaled, as far as it determines which table is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scales {
    /// One scale for a tensor, or none.
    #[default]
    None,
    /// One for each block: N side, K side.
    Block(u32, u32),
    /// One for each output channel.
    Channel,
}

impl fmt::Display for Scales {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Block(n, k) => write!(formatter, "{n}x{k}"),
            Self::Channel => formatter.write_str("channel"),
        }
    }
}

impl FromStr for Scales {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.trim() {
            "" => Ok(Self::None),
            "channel" => Ok(Self::Channel),
            block => {
                let (n, k) = block.split_once('x').ok_or(())?;
                let side = |text: &str| text.parse::<u32>().ok().filter(|side| *side > 0).ok_or(());
                Ok(Self::Block(side(n)?, side(k)?))
            }
        }
    }
}

impl Serialize for Scales {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Scales {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = |()| de::Error::custom(format!("`{text}` are no scales"));
        text.parse().map_err(wrong)
    }
}

/// A fused MoE on one rank.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MoeProblem {
    /// Local experts, a fused shared expert included.
    #[serde(rename = "E")]
    pub experts: u32,
    /// Columns between the GEMMs on this rank.
    #[serde(rename = "N")]
    pub n: u32,
    /// Hidden size, if the source has it.
    #[serde(rename = "K")]
    pub hidden: Option<u32>,
    /// Experts for each token, a fused shared expert included, if the source has it.
    pub topk: Option<u32>,
    /// dtype in the runtime's spelling (`fp8_w8a8`); empty for weights that are not quantised.
    pub dtype: String,
    /// Scales of the weights.
    pub scales: Scales,
    /// Experts of all ranks, if a call is given a mask of those that this rank has, because aiter's look-up depends
    /// on it. `None` if a rank has all, or if the operation is given no mask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts_of_all: Option<u32>,
}

impl MoeProblem {
    /// The name of the table of one projection on a device.
    pub fn table(&self, device_name: &str, down: bool) -> TableName {
        TableName {
            experts: self.experts,
            n: self.n,
            device_name: device_name.replace(' ', "_"),
            dtype: (!self.dtype.is_empty()).then(|| self.dtype.clone()),
            block_shape: match self.scales {
                Scales::Block(n, k) => Some((n, k)),
                _ => None,
            },
            per_channel: self.scales == Scales::Channel,
            down,
        }
    }

    /// A description of its sizes.
    pub fn sizes(&self) -> String {
        let mut text = format!("E={} N={}", self.experts, self.n);
        let more = [("K", self.hidden), ("topk", self.topk)];
        for (name, size) in more {
            if let Some(size) = size {
                let _ = write!(text, " {name}={size}");
            }
        }
        if let Some(all) = self.experts_of_all {
            let _ = write!(text, " of {all} experts");
        }
        text
    }

    /// The problem that a table is for.
    pub fn of_table(name: &TableName) -> Self {
        Self {
            experts: name.experts,
            n: name.n,
            hidden: None,
            topk: None,
            dtype: name.dtype.clone().unwrap_or_default(),
            scales: match name.block_shape {
                Some((n, k)) => Scales::Block(n, k),
                None if name.per_channel => Scales::Channel,
                None => Scales::None,
            },
            experts_of_all: None,
        }
    }
}

impl fmt::Display for MoeProblem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{OP} {}", self.sizes())
    }
}

/// A problem at one M, with the number of its calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountedProblem {
    pub problem: MoeProblem,
    /// Tokens of the forward, if the source has them.
    pub m: Option<u32>,
    pub records: u64,
}

/// Whether a cell of a shapes file names a fused MoE, which is not a plain GEMM.
pub fn is_op(cell: &str) -> bool {
    cell == OP || cell == AITER_OP
}

/// The fused-MoE lines of a shapes file; lines of plain GEMMs are skipped. Equal problems are added up; the result is
/// sorted.
pub fn read(bytes: &[u8]) -> Result<Vec<CountedProblem>, ShapesError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut reader = csv::ReaderBuilder::new()
        .flexible(true)
        .trim(csv::Trim::All)
        .from_reader(bytes);
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
        let name = |index: usize, down| problems[index].problem.table("NVIDIA H200", down);
        assert_eq!(
            name(0, true).to_string(),
            "E=128,N=768,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128]_down.json"
        );
        assert_eq!(
            name(1, false).to_string(),
            "E=161,N=192,device_name=NVIDIA_H200,dtype=fp8_w8a8,per_channel_quant=True.json"
        );
        assert_eq!(MoeProblem::of_table(&name(1, false)), problems[1].problem);
    }

    #[test]
    fn a_bad_cell_of_a_fused_moe_names_its_line_and_column() {
        let said = [
            "fused_moe_triton,1,768,2048,fp8_w8a8,1,0,8,128x128",
            "fused_moe_triton,1,,2048,fp8_w8a8,1,128,8,128x128",
            "fused_moe_triton,1,768,2048,fp8_w8a8,1,128,8,128",
            "fused_moe_triton,x,768,2048,fp8_w8a8,1,128,8,128x128",
            "fused_moe_triton,1,768,2048,fp8_w8a8,0,128,8,128x128",
        ]
        .map(|line| {
            let error = read(format!("{HEADER}{line}\n").as_bytes()).unwrap_err();
            error.to_string()
        });
        insta::assert_snapshot!(said.join("\n"), @"
        read `0` in column E of line 2 as an integer from 1 to 4294967295
        read `` in column N of line 2 as an integer from 1 to 4294967295
        read `128` in column scales of line 2 as `128x128`, `channel` or nothing
        read `x` in column M of line 2 as an integer from 1 to 4294967295
        read `0` in column records of line 2 as an integer from 1 to 4294967295
        ");
    }
}
