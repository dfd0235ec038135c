//! Records of SGLang's Triton fused MoE.

use serde::Deserialize;

use super::{Line, Record, RecordError};
use crate::log::plausible;
use crate::problem::fused_moe::{MoeProblem, Scales};

/// The rows that served a fused MoE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoeServed {
    /// Whether they come from tables that the overlay put in place.
    pub injected: bool,
    pub up: serde_json::Value,
    /// The down projection's; null where the up projection's row serves both.
    pub down: serde_json::Value,
}

/// `{"served_moe": {…}}`, written by the overlay where it captures or injects.
#[derive(Deserialize)]
pub(super) struct MoeServedLine {
    #[serde(rename = "E")]
    experts: u32,
    #[serde(rename = "N")]
    n: u32,
    #[serde(rename = "K")]
    hidden: Option<u32>,
    topk: Option<u32>,
    #[serde(rename = "M")]
    m: u32,
    dtype: Option<String>,
    #[serde(default)]
    block: Vec<u32>,
    #[serde(default)]
    per_channel: bool,
    source: String,
    #[serde(default)]
    up: serde_json::Value,
    #[serde(default)]
    down: serde_json::Value,
}

pub(super) fn calls(line: Line, count: u64) -> Result<Record, RecordError> {
    let missing = |field: &str| RecordError::Json(format!("`{field}` is missing"));
    let scales = line.scales.unwrap_or_default();
    let problem = MoeProblem {
        experts: line.experts.ok_or_else(|| missing("E"))?,
        n: line.n.ok_or_else(|| missing("N"))?,
        hidden: line.k,
        topk: line.topk,
        dtype: line.dtype.unwrap_or_default(),
        scales: scales
            .parse()
            .map_err(|()| RecordError::Json(format!("`{scales}` are no scales")))?,
        experts_of_all: None,
    };
    let m = line.m.ok_or_else(|| missing("M"))?;
    plausible::m(m)
        .and_then(|()| plausible::experts(problem.experts, problem.n))
        .map_err(RecordError::Impossible)?;
    Ok(Record::MoeCalls {
        problem,
        m,
        kind: line.kind.ok_or_else(|| missing("kind"))?,
        bs: line.bs,
        count,
    })
}

pub(super) fn served(line: MoeServedLine) -> Result<Record, RecordError> {
    plausible::m(line.m)
        .and_then(|()| plausible::experts(line.experts, line.n))
        .map_err(RecordError::Impossible)?;
    Ok(Record::MoeServed {
        problem: MoeProblem {
            experts: line.experts,
            n: line.n,
            hidden: line.hidden,
            topk: line.topk,
            dtype: line.dtype.unwrap_or_default(),
            scales: match line.block[..] {
                [n, k] if n > 0 && k > 0 => Scales::Block(n, k),
                _ if line.per_channel => Scales::Channel,
                _ => Scales::None,
            },
            experts_of_all: None,
        },
        m: line.m,
        served: MoeServed {
            injected: line.source == "injected",
            up: line.up,
            down: line.down,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::super::{CallKind, parse};
    use super::*;

    #[test]
    fn records_of_a_fused_moe_read_as_documented() {
        let moe = br#"{"fused_moe":"fused_moe_triton","M":32,"E":128,"N":768,"K":2048,"topk":8,"dtype":"fp8_w8a8","scales":"128x128","kind":"capture","bs":7,"count":48}"#;
        let problem = MoeProblem {
            experts: 128,
            n: 768,
            hidden: Some(2048),
            topk: Some(8),
            dtype: "fp8_w8a8".to_owned(),
            scales: Scales::Block(128, 128),
            experts_of_all: None,
        };
        assert_eq!(
            parse(moe),
            Ok(Record::MoeCalls {
                problem: problem.clone(),
                m: 32,
                kind: CallKind::Capture,
                bs: Some(7),
                count: 48
            })
        );
        let line = br#"{"served_moe":{"E":128,"N":768,"K":2048,"topk":8,"M":32,"dtype":"fp8_w8a8","block":[128,128],"source":"sglang","up":{"BLOCK_SIZE_M":16},"down":null}}"#;
        let Ok(Record::MoeServed {
            problem: of,
            m: 32,
            served,
        }) = parse(line)
        else {
            panic!("no record of what served");
        };
        assert_eq!((of, served.injected), (problem, false));
        assert_eq!(
            (&served.up["BLOCK_SIZE_M"], served.down.is_null()),
            (&16.into(), true)
        );
        let no_expert =
            br#"{"fused_moe":"fused_moe_triton","M":32,"E":0,"N":768,"kind":"eager","bs":null}"#;
        assert!(matches!(parse(no_expert), Err(RecordError::Impossible(_))));
    }
}
