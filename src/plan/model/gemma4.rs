//! Gemma-4: heads of two sizes, by the kind of layer (`Gemma4Attention` of SGLang 0.5.23).

use super::attention::Heads;
use super::config::ModelError;
use super::layers::Builder;

impl Builder<'_> {
    pub(super) fn sliding_and_global_attention(&mut self) -> Result<(), ModelError> {
        // `Gemma4Attention` splits over all ranks, regardless of attention data parallelism.
        let ranks = u64::from(self.parallel.tp);
        let config = self.config;
        let kinds = config
            .words("layer_types")
            .ok_or(ModelError::Missing("layer_types"))?;
        if u64::try_from(kinds.len()).unwrap_or(u64::MAX) < self.depth {
            return Err(ModelError::TooShort {
                key: "layer_types",
                layers: self.depth,
            });
        }
        let is_global = |layer: u64| {
            usize::try_from(layer)
                .is_ok_and(|at| kinds.get(at).is_some_and(|kind| kind == "full_attention"))
        };
        let query = config.needed("num_attention_heads")?;
        let kv = config.number("num_key_value_heads")?.unwrap_or(query);
        let sliding = Heads {
            query,
            kv,
            dim: config.needed("head_dim")?,
            gated: false,
        };
        // The number of global KV heads applies only where K doubles as V (transformers' `Gemma4TextConfig`); the
        // weight has V's rows nevertheless, filled from K.
        let shared = config
            .get("attention_k_eq_v")
            .and_then(serde_json::Value::as_bool)
            == Some(true);
        let global = Heads {
            kv: config
                .number("num_global_key_value_heads")?
                .filter(|_| shared)
                .unwrap_or(kv),
            dim: config.number("global_head_dim")?.unwrap_or(512),
            ..sliding
        };
        let names = ["qkv_proj (sliding)", "o_proj (sliding)"];
        self.grouped(names, &sliding, ranks, |layer| !is_global(layer));
        let names = ["qkv_proj (global)", "o_proj (global)"];
        self.grouped(names, &global, ranks, is_global);
        Ok(())
    }
}
