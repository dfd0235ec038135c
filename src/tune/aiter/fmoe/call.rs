//! One row of the tuner's input.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::problem::op::fused_moe_aiter::{Problem, Request};
use crate::table::fmoe::requests::untuned_cells;
use crate::table::fmoe::table::Row;

/// A call of the fused MoE as it is looked up: the key of a row without the card.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Call {
    /// Tokens, rounded as a look-up does.
    pub token: u32,
    /// The rest of the key as its cells have it, with the names of the enumerations; `topk` is that of the key.
    #[serde(flatten)]
    pub key: Problem,
}

impl Call {
    /// The call that `request` looks up at `token` with `topk`.
    pub fn of(request: &Request, token: u32, topk: u32) -> Self {
        let mut key = Problem {
            topk,
            ..request.problem.clone()
        };
        // For a layer with 128x128 blocks the look-up uses the activation's quantisation (`quant_remap` of
        // `aiter/fused_moe.py`).
        if key.q_type == "per_128x128" {
            "per_1x128".clone_into(&mut key.q_type);
        }
        let key = key.in_a_row();
        Self { token, key }
    }

    fn problem(&self) -> Problem {
        self.key.of_a_row()
    }

    /// Its line of the tuner's input, in the columns of [`crate::table::fmoe::table::UNTUNED`].
    pub(super) fn cells(&self) -> String {
        untuned_cells(&self.problem(), self.token, self.key.topk)
    }

    /// Whether `row` was tuned for it.
    pub(super) fn is_of(&self, row: &Row) -> bool {
        row.token == self.token && row.problem() == self.problem()
    }

    /// The sizes by which the tuner's log lines identify calls, as [`crate::tune::aiter::output`] parses them.
    pub(super) const fn size(&self) -> (u32, u32, u32) {
        (self.token, self.key.model_dim, self.key.inter_dim)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "token={} {}", self.token, self.problem())
    }
}
