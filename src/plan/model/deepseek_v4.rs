//! DeepSeek-V4: one KV head, a grouped low-rank output projection, compressed attention
//! (`MqaAttentionBase` and `C4Indexer` of SGLang 0.5.23).

use super::config::{Config, ModelError};
use super::layers::{Builder, Kind};

impl Builder<'_> {
    pub(super) fn grouped_output_attention(&mut self) -> Result<(), ModelError> {
        let ranks = u64::from(self.parallel.attention_tp());
        let config = self.config;
        let (hidden, depth) = (self.hidden, self.depth);
        let every = |_: u64| true;
        let heads = config.needed("num_attention_heads")?;
        let heads = self.part("num_attention_heads", heads, ranks);
        let dim = config.needed("head_dim")?;
        let q_lora = config.needed("q_lora_rank")?;
        let o_lora = config.needed("o_lora_rank")?;
        let groups = config.needed("o_groups")?;
        let groups = self.part("o_groups", groups, ranks);

        let modules = ["attn.wq_a", "attn.wkv", "self_attn.wq_a", "self_attn.wkv"];
        let kind = Kind::replicated("wqkv_a", &modules, q_lora + dim, hidden);
        let fused =
            "two weights, of N = q_lora_rank and N = head_dim, with SGLANG_OPT_FUSE_WQA_WKV=0";
        self.add(&kind.only(Some(fused), true), every);
        let (modules, parts) = (["attn.wq_b", "self_attn.wq_b"], [(heads * dim, 1)]);
        let kind = Kind::column("wq_b", &modules, &parts, q_lora, ranks);
        self.add(&kind, every);
        let modules = ["attn.wo_b", "self_attn.wo_b"];
        let kind = Kind::row("wo_b", &modules, hidden, groups * o_lora, ranks);
        self.add(&kind, every);
        self.note(
            "wo_a is a batched GEMM over groups of heads, which has tables of its own; compressors stay bf16",
        );

        let ratios = Ratios::of(config, depth)?;
        let index = config.needed("index_n_heads")? * config.needed("index_head_dim")?;
        let modules = ["attn.indexer.wq_b", "self_attn.indexer.wq_b"];
        let kind = Kind::replicated("indexer.wq_b", &modules, index, q_lora);
        self.add(&kind, |layer| ratios.has_indexer(layer));
        Ok(())
    }
}

/// Which layers select compressed tokens: those that compress by 4.
struct Ratios(Vec<bool>);

impl Ratios {
    fn of(config: &Config, depth: u64) -> Result<Self, ModelError> {
        let ratios = config
            .get("compress_ratios")
            .and_then(serde_json::Value::as_array);
        let chooses: Vec<bool> = match (ratios, config.words("layer_types")) {
            (Some(ratios), _) => ratios
                .iter()
                .map(|ratio| ratio.as_u64() == Some(4))
                .collect(),
            // As transformers 5 spells it.
            (None, Some(kinds)) => kinds
                .iter()
                .map(|kind| kind == "compressed_sparse_attention")
                .collect(),
            (None, None) => return Err(ModelError::Missing("compress_ratios")),
        };
        let known = u64::try_from(chooses.len()).unwrap_or(u64::MAX);
        if known < depth {
            return Err(ModelError::TooShort {
                key: "compress_ratios",
                layers: depth,
            });
        }
        Ok(Self(chooses))
    }

    fn has_indexer(&self, layer: u64) -> bool {
        usize::try_from(layer).is_ok_and(|layer| self.0.get(layer) == Some(&true))
    }
}
