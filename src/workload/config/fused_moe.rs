//! What is done about a fused MoE beside dense GEMMs.

use serde::{Deserialize, Serialize};

/// What is done about the fused MoE of a model with experts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum FusedMoe {
    /// Its tables, SGLang's for its Triton kernel or aiter's, are tuned beside the dense GEMMs.
    #[default]
    Tune,
    /// It is left to what serves it today.
    Leave,
}

impl FusedMoe {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde asks for")]
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
