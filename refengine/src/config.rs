//! A model's shape, from a Hugging-Face style `config.json`.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::fp8::BLOCK;

/// A model cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read model `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not a model configuration.
    #[error("read model `{path}`")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A value is missing, contradicts another, or is more than this engine does.
    #[error("serve the model: {0}")]
    Unfit(String),
}

/// The shape of a decoder-only model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the gated MLP.
    pub intermediate: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head; even.
    pub head_dim: usize,
    /// Tokens.
    pub vocab: usize,
    /// Added to the mean square under RMSNorm's root.
    pub rms_norm_eps: f32,
    /// Base of the rotary embedding.
    pub rope_theta: f32,
    /// Longest sequence, prompt and output.
    pub context: usize,
    /// Token that ends an answer, where the model has one.
    pub eos: Option<u32>,
    /// Whether queries and keys are normalised per head, as Qwen3 does.
    pub qk_norm: bool,
}

/// The part of `config.json` that is read; names are Hugging Face's.
#[derive(Deserialize)]
struct File {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    rms_norm_eps: Option<f32>,
    rope_theta: Option<f32>,
    max_position_embeddings: Option<usize>,
    eos_token_id: Option<u32>,
    model_type: Option<String>,
    quantization_config: Option<Quantisation>,
}

#[derive(Deserialize)]
struct Quantisation {
    quant_method: String,
    weight_block_size: Option<Vec<usize>>,
}

/// Parameters a model may have: 8 GiB of FP8, what a 16 GiB machine can hold beside everything else.
const MAX_PARAMETERS: usize = 8 << 30;

impl ModelConfig {
    /// Reads a model: a `config.json` or the folder that holds one.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let path = if path.is_dir() {
            path.join("config.json")
        } else {
            path.to_owned()
        };
        let text = std::fs::read(&path).map_err(|source| ConfigError::Read {
            path: path.clone(),
            source,
        })?;
        let file = serde_json::from_slice::<File>(&text)
            .map_err(|source| ConfigError::Parse { path, source })?;
        Self::check(&file)
    }

    fn check(file: &File) -> Result<Self, ConfigError> {
        let unfit = |text: String| Err(ConfigError::Unfit(text));
        match &file.quantization_config {
            Some(quantisation)
                if quantisation.quant_method == "fp8"
                    && quantisation.weight_block_size.as_deref() == Some(&[BLOCK, BLOCK]) => {}
            _ => {
                return unfit(
                    "quantization_config must say quant_method fp8 with weight_block_size [128, 128]".to_owned(),
                );
            }
        }
        let heads = file.num_attention_heads;
        let kv_heads = file.num_key_value_heads.unwrap_or(heads);
        let head_dim = file.head_dim.unwrap_or(file.hidden_size / heads.max(1));
        let config = Self {
            hidden: file.hidden_size,
            intermediate: file.intermediate_size,
            layers: file.num_hidden_layers,
            heads,
            kv_heads,
            head_dim,
            vocab: file.vocab_size,
            // Llama's defaults in Hugging Face transformers (LlamaConfig).
            rms_norm_eps: file.rms_norm_eps.unwrap_or(1e-6),
            rope_theta: file.rope_theta.unwrap_or(10_000.0),
            context: file.max_position_embeddings.unwrap_or(2048),
            eos: file.eos_token_id,
            qk_norm: file.model_type.as_deref() == Some("qwen3"),
        };
        let sizes = [
            config.hidden,
            config.intermediate,
            config.layers,
            heads,
            kv_heads,
            head_dim,
            config.vocab,
            config.context,
        ];
        if sizes.contains(&0) || sizes.iter().any(|size| *size > 1 << 24) {
            return unfit("every size must be between 1 and 16777216".to_owned());
        }
        if !heads.is_multiple_of(kv_heads) {
            return unfit(format!(
                "{kv_heads} key and value heads do not divide {heads} query heads"
            ));
        }
        if !head_dim.is_multiple_of(2) {
            return unfit(format!(
                "head_dim {head_dim} is odd, which the rotary embedding cannot use"
            ));
        }
        if config
            .parameters()
            .is_none_or(|count| count > MAX_PARAMETERS)
        {
            return unfit(format!("more than {MAX_PARAMETERS} parameters"));
        }
        Ok(config)
    }

    /// Columns of the fused query, key and value projection's output.
    pub fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// The block-FP8 linear layers of one decoder layer: name, N, K.
    pub fn linears(&self) -> [(&'static str, usize, usize); 4] {
        [
            ("self_attn.qkv_proj", self.qkv(), self.hidden),
            ("self_attn.o_proj", self.hidden, self.heads * self.head_dim),
            ("mlp.gate_up_proj", 2 * self.intermediate, self.hidden),
            ("mlp.down_proj", self.hidden, self.intermediate),
        ]
    }

    fn parameters(&self) -> Option<usize> {
        let mut layer = 0usize;
        for (_, n, k) in self.linears() {
            layer = layer.checked_add(n.checked_mul(k)?)?;
        }
        let vocabulary = self.vocab.checked_mul(self.hidden)?.checked_mul(2)?;
        layer.checked_mul(self.layers)?.checked_add(vocabulary)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(edit: impl FnOnce(&mut serde_json::Value)) -> Result<ModelConfig, ConfigError> {
        let mut value = serde_json::json!({
            "model_type": "qwen3", "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 100,
            "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}
        });
        edit(&mut value);
        ModelConfig::check(&serde_json::from_value(value).unwrap())
    }

    #[test]
    fn linears_have_the_shapes_of_fused_qwen_layers() {
        let config = parse(|_| ()).unwrap();
        assert!(config.qk_norm);
        assert_eq!(
            config.linears().map(|(_, n, k)| (n, k)),
            [(512, 256), (256, 256), (768, 256), (256, 384)]
        );
    }

    #[test]
    fn a_model_this_engine_cannot_serve_is_refused_with_the_reason() {
        let text = |edit: fn(&mut serde_json::Value)| parse(edit).unwrap_err().to_string();
        assert!(
            text(|v| v["quantization_config"] = serde_json::Value::Null)
                .contains("weight_block_size")
        );
        assert!(
            text(|v| v["quantization_config"]["weight_block_size"] = serde_json::json!([1, 128]))
                .contains("128")
        );
        assert!(text(|v| v["num_key_value_heads"] = 3.into()).contains("do not divide"));
        assert!(text(|v| v["head_dim"] = 63.into()).contains("odd"));
        assert!(text(|v| v["vocab_size"] = 0.into()).contains("between"));
        assert!(text(|v| v["num_hidden_layers"] = 16_000_000.into()).contains("parameters"));
    }
}
