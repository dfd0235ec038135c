//! A fused MoE: the operations that compute it, how its weights are scaled, and its sizes on one rank.

use std::fmt;
use std::fmt::Write as _;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, de};

use super::op::{fused_moe_aiter, fused_moe_triton};

/// The operation, as shapes files and documents name it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum MoeOp {
    /// SGLang's Triton kernel for fused MoE.
    #[default]
    #[serde(rename = "fused_moe_triton")]
    FusedMoeTriton,
    /// aiter's fused MoE, tuned as a whole.
    #[serde(rename = "fused_moe_aiter")]
    FusedMoeAiter,
}

impl MoeOp {
    /// Both.
    pub const ALL: [Self; 2] = [Self::FusedMoeTriton, Self::FusedMoeAiter];

    /// Its name in files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FusedMoeTriton => fused_moe_triton::OP,
            Self::FusedMoeAiter => fused_moe_aiter::OP,
        }
    }

    /// Whether a cell of a shapes file names a fused MoE, which is not a plain GEMM.
    pub fn is_named(cell: &str) -> bool {
        Self::ALL.into_iter().any(|op| op.name() == cell)
    }
}

impl fmt::Display for MoeOp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

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
}

impl fmt::Display for MoeProblem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", MoeOp::FusedMoeTriton, self.sizes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_named_in_documents_as_in_shapes_files() {
        for op in MoeOp::ALL {
            assert_eq!(serde_json::to_value(op).unwrap(), op.name());
            assert!(MoeOp::is_named(op.name()));
        }
        assert!(!MoeOp::is_named("gemm_a8w8_blockscale"));
    }
}
