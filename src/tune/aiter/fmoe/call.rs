//! One row of the tuner's input.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::problem::op::fused_moe_aiter::{Problem, Request, member};
use crate::table::fmoe::requests::untuned_cells;
use crate::table::fmoe::table::Row;

/// A call of the fused MoE as it is looked up: the key of a row without the card.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Call {
    /// Tokens, rounded as a look-up does.
    pub token: u32,
    /// Hidden size.
    pub model_dim: u32,
    /// Intermediate size on the rank.
    pub inter_dim: u32,
    /// Experts on the rank.
    pub expert: u32,
    /// Experts for each token, as in the key.
    pub topk: u32,
    /// The enumeration value, such as `ActivationType.Silu`.
    pub act_type: String,
    /// dtype of the output.
    pub dtype: String,
    /// dtype of the quantised activation.
    pub q_dtype_a: String,
    /// dtype of the weights.
    pub q_dtype_w: String,
    /// The enumeration value, such as `QuantType.per_1x128`.
    pub q_type: String,
    /// Whether gate and up projection are one weight.
    pub use_g1u1: bool,
    /// Whether the router's weight is applied to the input.
    pub doweight_stage1: bool,
}

impl Call {
    /// The call that `request` looks up at `token` with `topk`.
    pub fn of(request: &Request, token: u32, topk: u32) -> Self {
        let Problem {
            model_dim,
            inter_dim,
            expert,
            topk: _,
            activation,
            dtype,
            q_dtype_a,
            q_dtype_w,
            q_type,
            use_g1u1,
            doweight_stage1,
        } = request.problem.clone();
        // For a layer with 128x128 blocks the look-up uses the activation's quantisation (`quant_remap` of
        // `aiter/fused_moe.py`).
        let q_type = match q_type.as_str() {
            "per_128x128" => "per_1x128",
            other => other,
        };
        Self {
            token,
            model_dim,
            inter_dim,
            expert,
            topk,
            act_type: format!("ActivationType.{activation}"),
            dtype,
            q_dtype_a,
            q_dtype_w,
            q_type: format!("QuantType.{q_type}"),
            use_g1u1,
            doweight_stage1,
        }
    }

    fn problem(&self) -> Problem {
        Problem {
            model_dim: self.model_dim,
            inter_dim: self.inter_dim,
            expert: self.expert,
            topk: self.topk,
            activation: member(&self.act_type).to_owned(),
            dtype: self.dtype.clone(),
            q_dtype_a: self.q_dtype_a.clone(),
            q_dtype_w: self.q_dtype_w.clone(),
            q_type: member(&self.q_type).to_owned(),
            use_g1u1: self.use_g1u1,
            doweight_stage1: self.doweight_stage1,
        }
    }

    /// Its line of the tuner's input, in the columns of [`crate::table::fmoe::table::UNTUNED`].
    pub(super) fn cells(&self) -> String {
        untuned_cells(&self.problem(), self.token, self.topk)
    }

    /// Whether `row` was tuned for it.
    pub(super) fn is_of(&self, row: &Row) -> bool {
        row.token == self.token && row.problem() == self.problem()
    }

    /// The sizes by which the tuner's log lines identify calls, as [`crate::tune::aiter::output`] parses them.
    pub(super) const fn size(&self) -> (u32, u32, u32) {
        (self.token, self.model_dim, self.inter_dim)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "token={} {}", self.token, self.problem())
    }
}
