//! How a checkpoint's weights are quantised, and which modules are not.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::{Config, ModelError};

/// Scales of an FP8 checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    /// One scale per block of the weight: `gemm_a8w8_blockscale` and its variants.
    Block {
        /// Output features of a block.
        n: u32,
        /// Input features of a block.
        k: u32,
    },
    /// One scale per output channel and per token: `gemm_a8w8_bpreshuffle`.
    PerChannel,
}

/// The quantisation scheme, or why there is none that is tuned here.
pub(super) fn scheme(config: &Config) -> Result<Scheme, ModelError> {
    let not = |text: &str| Err(ModelError::NotFp8(text.to_owned()));
    let Some(quantization) = quantization(config) else {
        return not("the config has no `quantization_config`, so the weights are not quantised");
    };
    let method = quantization
        .get("quant_method")
        .and_then(Value::as_str)
        .unwrap_or("");
    match method {
        "fp8" => match block(quantization.get("weight_block_size")) {
            Some((n, k)) => Ok(Scheme::Block { n, k }),
            None => not(
                "`weight_block_size` is missing or no pair of numbers: one scale per tensor, which no tuned table serves",
            ),
        },
        "compressed-tensors" | "compressed_tensors" => compressed(quantization),
        "" => not("`quantization_config` names no `quant_method`"),
        "quark" | "modelopt" | "modelopt_fp8" | "modelopt_fp4" => not(&format!(
            "quantisation method `{method}` does not reach the blockscale operations"
        )),
        other => {
            let other: String = other.chars().take(40).collect();
            not(&format!(
                "quantisation method `{other}` is not FP8 as SGLang's block or channel kernels want it"
            ))
        }
    }
}

fn compressed(quantization: &Value) -> Result<Scheme, ModelError> {
    let groups = quantization.get("config_groups").and_then(Value::as_object);
    let weights = groups
        .into_iter()
        .flat_map(serde_json::Map::values)
        .filter_map(|group| group.get("weights"));
    for weights in weights {
        let bits = weights.get("num_bits").and_then(Value::as_u64);
        let kind = weights.get("type").and_then(Value::as_str);
        if bits != Some(8) || kind != Some("float") {
            continue;
        }
        match weights.get("strategy").and_then(Value::as_str) {
            Some("channel") => return Ok(Scheme::PerChannel),
            Some("block") => {
                if let Some((n, k)) = block(weights.get("block_structure")) {
                    return Ok(Scheme::Block { n, k });
                }
            }
            _ => {}
        }
    }
    Err(ModelError::NotFp8(
        "no group of `config_groups` has 8-bit float weights with one scale per channel or block"
            .to_owned(),
    ))
}

fn block(value: Option<&Value>) -> Option<(u32, u32)> {
    let side = |index: usize| {
        let side = value?.get(index)?.as_u64()?;
        u32::try_from(side)
            .ok()
            .filter(|side| (1..=65536).contains(side))
    };
    Some((side(0)?, side(1)?))
}

fn quantization(config: &Config) -> Option<&Value> {
    config
        .get("quantization_config")
        .or_else(|| config.get("compression_config"))
}

/// Modules that the checkpoint left unquantised.
#[derive(Debug)]
pub(super) struct Ignored(Vec<String>);

impl Ignored {
    pub(super) fn of(config: &Config) -> Self {
        let lists = ["modules_to_not_convert", "ignored_layers", "ignore"];
        let entries = quantization(config)
            .into_iter()
            .flat_map(|quantization| lists.iter().filter_map(|key| quantization.get(*key)))
            .filter_map(Value::as_array)
            .flatten()
            .filter_map(Value::as_str)
            .map(|entry| {
                entry
                    .strip_prefix("re:")
                    .map_or_else(|| entry.to_owned(), glob)
            });
        Self(entries.collect())
    }

    /// Whether `module` of decoder layer `index` is left unquantised, either itself or with a module that contains
    /// it.
    pub(super) fn has(&self, index: u64, module: &str) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let path = format!("layers.{index}.{module}");
        self.0.iter().any(|entry| {
            let entry = entry.trim_end_matches('.');
            if entry.contains('*') {
                return AROUND
                    .iter()
                    .any(|around| matches(entry, &format!("{around}{path}")));
            }
            if !entry.contains('.') {
                return path.rsplit('.').next() == Some(entry);
            }
            // `model.layers.3.mlp` covers `model.layers.3.mlp.down_proj`.
            AROUND.iter().any(|around| {
                let rest = entry
                    .strip_prefix(around)
                    .and_then(|entry| path.strip_prefix(entry));
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            })
        })
    }
}

/// What precedes `layers` in the names of a decoder's modules: nothing, or the prefix of a model or a multimodal
/// wrapper. Vision towers have other names, and layers with the same numbers.
const AROUND: [&str; 5] = [
    "model.",
    "",
    "model.language_model.",
    "language_model.model.",
    "language_model.",
];

/// Converts the subset of regular expressions used in such lists to a pattern with `*`.
fn glob(expression: &str) -> String {
    expression
        .replace(".*", "*")
        .replace("\\.", ".")
        .replace(['^', '$', '\\'], "")
}

/// Whether `text` matches `pattern`, in which `*` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    for (index, part) in parts.iter().enumerate() {
        if index + 1 == parts.len() && !part.is_empty() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapper_around_the_decoder_changes_no_name_and_a_tower_is_not_the_decoder() {
        let ignored = |entry: &str| Ignored(vec![entry.to_owned()]);
        for (entry, expected) in [
            ("model.layers.3.mlp.down_proj", true),
            ("layers.3.mlp.down_proj", true),
            ("model.language_model.layers.3.mlp", true),
            ("language_model.model.layers.3.mlp.down_proj", true),
            ("model.layers.3", true),
            ("down_proj", true),
            ("model.layers.30.mlp.down_proj", false),
            ("model.layers.3.mlp.down", false),
            ("visual.encoder.layers.3.mlp.down_proj", false),
            ("mtp.layers.3.mlp.down_proj", false),
            ("model.visual.layers.3.mlp.down_proj", false),
            ("model.language_model.layers.*.mlp.down_proj", true),
        ] {
            assert_eq!(ignored(entry).has(3, "mlp.down_proj"), expected, "{entry}");
        }
    }

    #[test]
    fn patterns_with_stars_match_as_the_expressions_they_stand_for() {
        for (pattern, text, expected) in [
            ("re:.*self_attn.*", "model.layers.1.self_attn.o_proj", true),
            ("re:.*lm_head", "model.layers.1.mlp.gate", false),
            ("re:.*mlp\\.gate$", "model.layers.1.mlp.gate", true),
            ("re:.*mlp\\.gate$", "model.layers.1.mlp.gate_up_proj", false),
            ("re:model\\.layers\\.[0-9]", "model.layers.1.mlp", false),
        ] {
            let pattern = glob(&pattern[3..]);
            assert_eq!(matches(&pattern, text), expected, "{pattern} {text}");
        }
    }
}
