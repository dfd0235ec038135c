//! Records of aiter's fused MoE (`python/overlay/gemmtune_overlay/capture_aiter_moe.py`).

use serde::Deserialize;

use super::{CallKind, Record, RecordError};
use crate::log::plausible;
use crate::problem::op::fused_moe_aiter::{Problem, Request};

/// A call of aiter's fused MoE as it was made: tokens not rounded, `topk` as wide as `topk_ids`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AiterMoe {
    /// What is looked up.
    pub request: Request,
    /// Experts of all ranks, if an expert mask selects those of this rank.
    pub experts_of_all: Option<u32>,
    /// Whether the weights are marked as shuffled.
    pub is_shuffled: bool,
}

/// The result of the look-up for a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AiterMoeServed {
    /// Whether one kernel does both stages.
    pub one_stage: bool,
    /// The kernels that are requested by name; empty where aiter chose.
    pub kernels: [String; 2],
    /// Rows of activation in one tile.
    pub block_m: u32,
    /// The file that was searched.
    pub table: String,
}

#[derive(Deserialize)]
struct CallLine {
    #[serde(rename = "M")]
    m: u32,
    #[serde(flatten)]
    problem: Problem,
    experts_of_all: Option<i64>,
    is_shuffled: bool,
}

impl CallLine {
    fn read(self) -> Result<AiterMoe, RecordError> {
        let problem = self.problem;
        plausible::m(self.m)
            .and_then(|()| plausible::experts(problem.expert, problem.inter_dim))
            .and_then(|()| plausible::experts(problem.topk, problem.model_dim))
            .map_err(RecordError::Impossible)?;
        Ok(AiterMoe {
            request: Request {
                tokens: self.m,
                ep: self.experts_of_all.is_some(),
                problem,
            },
            experts_of_all: self
                .experts_of_all
                .and_then(|experts| u32::try_from(experts).ok()),
            is_shuffled: self.is_shuffled,
        })
    }
}

#[derive(Deserialize)]
struct Counted {
    #[serde(flatten)]
    call: CallLine,
    kind: CallKind,
    bs: Option<u32>,
}

/// The call record in `line`, which was made `count` times.
pub(super) fn calls(line: &[u8], count: u64) -> Result<Record, RecordError> {
    let Counted { call, kind, bs } =
        serde_json::from_slice(line).map_err(|error| RecordError::Json(error.to_string()))?;
    Ok(Record::AiterMoeCalls {
        call: call.read()?,
        kind,
        bs,
        count,
    })
}

/// The line `{"served_aiter_moe": {…}}`.
#[derive(Deserialize)]
pub(super) struct ServedLine {
    #[serde(flatten)]
    call: CallLine,
    one_stage: bool,
    kernels: [String; 2],
    block_m: u32,
    table: String,
}

impl ServedLine {
    pub(super) fn read(self) -> Result<Record, RecordError> {
        Ok(Record::AiterMoeServed {
            call: self.call.read()?,
            served: AiterMoeServed {
                one_stage: self.one_stage,
                kernels: self.kernels,
                block_m: self.block_m,
                table: self.table,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    /// As the overlay writes a problem.
    const PROBLEM: &str = r#""M":5,"model_dim":7168,"inter_dim":256,"expert":33,"topk":9,"act_type":"Silu","dtype":"torch.bfloat16","q_dtype_a":"torch.float8_e4m3fnuz","q_dtype_w":"torch.float8_e4m3fnuz","q_type":"per_1x128","use_g1u1":true,"doweight_stage1":false,"experts_of_all":256,"is_shuffled":true"#;

    #[test]
    fn calls_and_what_served_them_read_as_documented() {
        let line = format!(
            r#"{{"fused_moe":"fused_moe_aiter",{PROBLEM},"kind":"capture","bs":7,"count":58}}"#
        );
        let Ok(Record::AiterMoeCalls {
            call,
            kind: CallKind::Capture,
            bs: Some(7),
            count: 58,
        }) = parse(line.as_bytes())
        else {
            panic!("{:?}", parse(line.as_bytes()));
        };
        assert_eq!((call.request.tokens, call.request.ep), (5, true));
        assert_eq!((call.experts_of_all, call.is_shuffled), (Some(256), true));
        assert_eq!(
            call.request.problem.to_string(),
            "model_dim=7168 inter_dim=256 expert=33 topk=9 Silu torch.float8_e4m3fnuz per_1x128"
        );
        let line = format!(
            r#"{{"served_aiter_moe":{{"fused_moe":"fused_moe_aiter",{PROBLEM},"one_stage":false,"kernels":["a","b"],"block_m":32,"table":"/t.csv"}}}}"#
        );
        let Ok(Record::AiterMoeServed { call: of, served }) = parse(line.as_bytes()) else {
            panic!("{:?}", parse(line.as_bytes()));
        };
        assert_eq!(of, call);
        assert_eq!((served.kernels[1].as_str(), served.block_m), ("b", 32));
    }

    #[test]
    fn a_mask_of_unknown_length_is_a_mask_and_no_token_is_no_call() {
        let unknown = PROBLEM.replace(":256,\"is", ":-1,\"is");
        let line = |problem: &str| {
            format!(
                r#"{{"fused_moe":"fused_moe_aiter",{problem},"kind":"eager","bs":null,"count":1}}"#
            )
        };
        let Ok(Record::AiterMoeCalls { call, .. }) = parse(line(&unknown).as_bytes()) else {
            panic!("a mask of unknown length");
        };
        assert_eq!((call.request.ep, call.experts_of_all), (true, None));
        let none = PROBLEM.replace("\"M\":5", "\"M\":0");
        assert!(matches!(
            parse(line(&none).as_bytes()),
            Err(RecordError::Impossible(_))
        ));
    }
}
