//! aiter's fused MoE: `fused_moe` of `aiter/fused_moe.py`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Its name in files.
pub const OP: &str = "fused_moe_aiter";

/// Its name as an operation of aiter's tuner, on the command line and in that tuner's documents.
pub const TUNED_OP: &str = "fused_moe";

/// The variable that names its table (`aiter/jit/core.py`); one that is set replaces every table that aiter ships.
pub const VARIABLE: &str = "AITER_CONFIG_FMOE";

/// What the names of the shipped tables contain.
pub const STEM: &str = "tuned_fmoe";

/// The script that tunes it, from 303a583c to e4048607.
pub const TUNER: &str = "csrc/ck_gemm_moe_2stages_codegen/gemm_moe_tune.py";

/// Share of wrong elements up to which the tuner accepts a kernel at e4048607 (`--errRatio` of `gemm_moe_tune.py`; it
/// was 0.5 at 303a583c).
pub const ERR_LIMIT: f64 = 0.1;

/// The fixed part of a fused MoE on one rank: everything a key holds besides the card and the tokens.
///
/// In records and documents it has the names of the key's columns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Problem {
    /// Hidden size: columns of the first weight.
    pub model_dim: u32,
    /// Intermediate size on this rank, after the gate: columns of the second weight.
    pub inter_dim: u32,
    /// Experts whose weights this rank holds, a fused shared one included.
    pub expert: u32,
    /// Experts for each token: columns of `topk_ids`, before a look-up subtracts one.
    pub topk: u32,
    /// `Silu`, `Gelu`, `Swiglu` or `Situv2`, without the enumeration's name.
    #[serde(rename = "act_type")]
    pub activation: String,
    /// dtype of the output as torch prints it, such as `torch.bfloat16`.
    pub dtype: String,
    /// dtype the activation is quantised to, likewise.
    pub q_dtype_a: String,
    /// dtype of the weights, likewise.
    pub q_dtype_w: String,
    /// `per_1x128`, `per_Token`, `No` …, without the enumeration's name.
    pub q_type: String,
    /// Whether gate and up projection are one weight of twice [`Problem::inter_dim`] rows.
    pub use_g1u1: bool,
    /// Whether the router's weight is applied to the input.
    pub doweight_stage1: bool,
}

/// One call of `fused_moe`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Request {
    /// The weights and how they are used.
    pub problem: Problem,
    /// Tokens of the forward: rows of the input, neither times `topk` nor per expert.
    pub tokens: u32,
    /// Whether an `expert_mask` is passed, as under expert parallelism.
    pub ep: bool,
}

impl Problem {
    /// The same with the names of the enumerations, as in the cells of a row: `ActivationType.Silu`, `QuantType.per_1x128`.
    #[must_use]
    pub fn in_a_row(&self) -> Self {
        Self {
            activation: format!("ActivationType.{}", self.activation),
            q_type: format!("QuantType.{}", self.q_type),
            ..self.clone()
        }
    }

    /// The same without the names of the enumerations.
    #[must_use]
    pub fn of_a_row(&self) -> Self {
        Self {
            activation: member(&self.activation).to_owned(),
            q_type: member(&self.q_type).to_owned(),
            ..self.clone()
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "model_dim={} inter_dim={} expert={} topk={} {} {} {}",
            self.model_dim,
            self.inter_dim,
            self.expert,
            self.topk,
            self.activation,
            self.q_dtype_w,
            self.q_type
        )
    }
}

/// `text` without the enumeration's name before its last dot.
pub fn member(text: &str) -> &str {
    text.rsplit('.').next().unwrap_or(text)
}
