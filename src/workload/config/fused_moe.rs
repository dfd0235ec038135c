//! What is done about a fused MoE beside dense GEMMs.

use serde::{Deserialize, Serialize};

use super::Config;

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

/// Which token goes to which experts while the rows of a fused MoE are raced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Routing {
    /// Every expert is as likely as any other, as in a balanced model.
    #[default]
    Uniform,
    /// The r-th expert is r times less likely than the first.
    Skewed,
}

impl Routing {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde asks for")]
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Config {
    /// Whether the fused MoE of a model with experts is tuned. A table from elsewhere is judged by itself.
    pub fn tunes_fused_moe(&self) -> bool {
        self.backend.fused_moe == FusedMoe::Tune && self.backend.table.is_none()
    }
}

impl FusedMoe {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde asks for")]
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use crate::workload::config::{Config, Routing};

    fn parsed(kind: &str, choice: &str) -> Result<Config, String> {
        let text = format!(
            "[workload]\nname = \"x\"\n[server]\ncommand = [\"serve\"]\n[benchmark]\ncommand = [\"bench\"]\nresults = \"r.jsonl\"\n\
             [backend]\nkind = \"{kind}\"\npython = \"python3\"\n{choice}\n"
        );
        Config::parse(&text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_routing_is_taken_where_a_fused_moe_is_raced_under_one() {
        let skewed = "expert_routing = \"skewed\"";
        for kind in ["sglang-moe", "sglang-triton", "sglang-families"] {
            assert_eq!(
                parsed(kind, skewed).unwrap().backend.expert_routing,
                Routing::Skewed
            );
        }
        let said = ["aiter", "aiter-triton"].map(|kind| parsed(kind, skewed).unwrap_err());
        insta::assert_snapshot!(said.join("\n"), @r#"
        accept the configuration: `backend.expert_routing = "skewed"`: only the fused MoE of SGLang's Triton kernel is raced under a routing: kinds `sglang-moe`, `sglang-triton` and `sglang-families`
        accept the configuration: `backend.expert_routing = "skewed"`: only the fused MoE of SGLang's Triton kernel is raced under a routing: kinds `sglang-moe`, `sglang-triton` and `sglang-families`
        "#);
    }

    #[test]
    fn a_limit_of_aiters_tuner_is_taken_where_that_runs() {
        let limit = "err_ratio = 0.2";
        let share = parsed("aiter", limit).unwrap().backend.err_ratio;
        assert_eq!(share.map(crate::workload::share::Share::get), Some(0.2));
        let said = ["reference", "sglang-moe", "sglang-triton", "aiter-triton"]
            .map(|kind| parsed(kind, limit).unwrap_err());
        insta::assert_snapshot!(said.join("\n"), @"
        accept the configuration: `backend.err_ratio = 0.2`: it is a limit of aiter's own tuners: kind `aiter`
        accept the configuration: `backend.err_ratio = 0.2`: it is a limit of aiter's own tuners: kind `aiter`
        accept the configuration: `backend.err_ratio = 0.2`: it is a limit of aiter's own tuners: kind `aiter`
        accept the configuration: `backend.err_ratio = 0.2`: it is a limit of aiter's own tuners: kind `aiter`
        ");
    }
}
