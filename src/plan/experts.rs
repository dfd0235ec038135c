//! Which weights a model's experts have, and so whether `run` tunes aiter's fused MoE of them.
//!
//! aiter's `fused_moe` runs experts of many kinds. `run` judges one of them, and names each of the others: from the model's `config.json`
//! before anything is served, and from the calls that were captured.

use serde_json::Value;

use super::model::{self, Scheme};
use crate::problem::dtype::FLOAT4;
use crate::problem::op::fused_moe_aiter::Problem;

/// Weights of routed experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// FP8 with a scale for each block of 128 by 128.
    Blocks,
    /// FP8 with a scale for each output channel, and activations with one for each token.
    PerToken,
    /// FP4, in groups with a scale each (MXFP4, NVFP4).
    Fp4,
    Plain,
    Other,
}

impl Weights {
    /// Those of the model that `config` is the `config.json` of; nothing where it has no routed experts.
    pub fn of_model(config: &Value) -> Option<Self> {
        if !are_there(config) {
            return None;
        }
        // A model that sees has its language model's numbers in a table of their own.
        let tables = [config, &config["text_config"]];
        let quantization = tables.iter().flat_map(|table| {
            ["quantization_config", "compression_config"].map(|name| &table[name])
        });
        let Some(quantization) = quantization.into_iter().find(|found| found.is_object()) else {
            return Some(Self::Plain);
        };
        // DeepSeek-V4 says FP8 and has experts in FP4 (`plan::model`).
        let named = tables
            .iter()
            .filter_map(|table| table["model_type"].as_str());
        if says_fp4(quantization) || named.into_iter().any(|name| name == "deepseek_v4") {
            return Some(Self::Fp4);
        }
        let per_channel = per_channel_by_quark(quantization);
        let bytes = serde_json::json!({ "quantization_config": quantization }).to_string();
        Some(match model::scheme(bytes.as_bytes()) {
            Ok(Scheme::Block { n: 128, k: 128 }) => Self::Blocks,
            Ok(Scheme::PerChannel) => Self::PerToken,
            Err(_) if per_channel => Self::PerToken,
            Ok(Scheme::Block { .. }) | Err(_) => Self::Other,
        })
    }

    /// Those of a call of aiter's `fused_moe`.
    pub fn of_call(problem: &Problem) -> Self {
        let is_fp8 = problem.q_dtype_w.starts_with("torch.float8_");
        match problem.q_type.as_str() {
            _ if FLOAT4.contains(&problem.q_dtype_w.as_str()) => Self::Fp4,
            "per_1x128" if is_fp8 => Self::Blocks,
            "per_Token" if is_fp8 => Self::PerToken,
            "No" => Self::Plain,
            _ => Self::Other,
        }
    }

    /// Why `run` leaves aiter's fused MoE of them as it is, and what can be done; nothing where it tunes them.
    pub fn why_left(self) -> Option<String> {
        let what = match self {
            Self::Blocks => return None,
            Self::PerToken => "FP8 experts with one scale per token and channel are",
            Self::Fp4 => "FP4 experts are",
            Self::Plain => "experts that are not quantised are",
            Self::Other => "experts of this kind are",
        };
        Some(format!(
            "{what} left to what serves them: `run` judges rows of FP8 experts with scales of 128x128 blocks. aiter's own tuner makes rows of others \
             from a server's log, which nothing here compares with what serves today: `gemmtune shapes LOG --fused-moe CALLS.csv`, then `gemmtune tune \
             --backend aiter --op fused_moe --shapes CALLS.csv`"
        ))
    }
}

/// Whether a model's config has several routed experts, under any of the names that SGLang's models read.
pub fn are_there(config: &Value) -> bool {
    const COUNTS: [&str; 3] = ["num_experts", "n_routed_experts", "num_local_experts"];
    [config, &config["text_config"]].into_iter().any(|table| {
        let mut counts = COUNTS.iter().filter_map(|name| table[*name].as_u64());
        counts.any(|count| count > 1)
    })
}

/// Whether a quantisation names FP4 anywhere: as a method (`mxfp4`, `modelopt_fp4`), a format (`nvfp4-pack-quantized`), a dtype (Quark's
/// `fp4`), or as floats of four bits.
fn says_fp4(quantization: &Value) -> bool {
    match quantization {
        Value::String(text) => text.to_ascii_lowercase().contains("fp4"),
        Value::Array(parts) => parts.iter().any(says_fp4),
        Value::Object(parts) => {
            (parts.get("num_bits").and_then(Value::as_u64) == Some(4)
                && parts.get("type").and_then(Value::as_str) == Some("float"))
                || parts.values().any(says_fp4)
        }
        _ => false,
    }
}

/// Whether Quark made FP8 weights with a scale for each channel.
fn per_channel_by_quark(quantization: &Value) -> bool {
    let weight = &quantization["global_quant_config"]["weight"];
    weight["dtype"].as_str() == Some("fp8_e4m3")
        && weight["qscheme"].as_str() == Some("per_channel")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(model: &str) -> Option<Weights> {
        let root = env!("CARGO_MANIFEST_DIR");
        let bytes = fs_err::read(format!("{root}/testdata/models/{model}.json")).unwrap();
        Weights::of_model(&serde_json::from_slice(&bytes).unwrap())
    }

    #[test]
    fn experts_are_known_by_the_names_of_each_model() {
        for (model, weights) in [
            ("qwen3-30b-a3b", Some(Weights::Blocks)),
            ("deepseek-v3", Some(Weights::Blocks)),
            ("minimax-m2.5", Some(Weights::Blocks)),
            ("qwen3.5-35b-a3b", Some(Weights::Blocks)),
            ("glm-4.6", Some(Weights::PerToken)),
            ("deepseek-v4-flash", Some(Weights::Fp4)),
            ("qwen3-8b", None),
        ] {
            assert_eq!(of(model), weights, "{model}");
        }
        assert!(are_there(&json!({"text_config": {"num_experts": 128}})));
        assert!(!are_there(&json!({"num_local_experts": 1})));
    }

    #[test]
    fn each_way_of_saying_a_kind_of_weights_is_understood() {
        let of = |quantization: Value| {
            let config = json!({"num_experts": 8, "quantization_config": quantization});
            Weights::of_model(&config).unwrap()
        };
        for fp4 in [
            json!({"quant_method": "mxfp4"}),
            json!({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4", "qscheme": "per_group"}}}),
            json!({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 4, "type": "float"}}}}),
        ] {
            assert_eq!(of(fp4.clone()), Weights::Fp4, "{fp4}");
        }
        let quark = json!({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_channel"}}});
        assert_eq!(of(quark), Weights::PerToken);
        assert_eq!(of(json!({"quant_method": "fp8"})), Weights::Other);
        assert_eq!(
            of(json!({"quant_method": "awq", "bits": 4})),
            Weights::Other
        );
        assert_eq!(of(Value::Null), Weights::Plain);
    }

    #[test]
    fn what_is_left_is_named_with_what_to_do() {
        assert_eq!(Weights::Blocks.why_left(), None);
        for (weights, named) in [
            (Weights::PerToken, "one scale per token and channel"),
            (Weights::Fp4, "FP4 experts"),
            (Weights::Plain, "not quantised"),
            (Weights::Other, "of this kind"),
        ] {
            let why = weights.why_left().unwrap();
            assert!(
                why.contains(named) && why.contains("gemmtune tune"),
                "{why}"
            );
        }
    }
}
