//! Attention that several families share: grouped-query, multi-head latent, gated delta-net.

use super::config::{Config, ModelError};
use super::layers::{Builder, Kind};

/// The condition on `kv_b_proj`: why it is rarely called.
const PREFILL: &str =
    "only in prefill without weight absorption; M is the tokens of the prefix chunk";

impl Builder<'_> {
    /// Multi-head latent attention: DeepSeek, GLM-5, Kimi-K2; with the indexer of DeepSeek sparse attention.
    pub(super) fn latent_attention(&mut self) -> Result<(), ModelError> {
        let ranks = u64::from(self.parallel.attention_tp());
        let config = self.config;
        let heads = config.needed("num_attention_heads")?;
        let heads = self.part("num_attention_heads", heads, ranks);
        let kv_lora = config.needed("kv_lora_rank")?;
        let nope = config.needed("qk_nope_head_dim")?;
        let rope = config.needed("qk_rope_head_dim")?;
        let value = config.needed("v_head_dim")?;
        let q_lora = config.number("q_lora_rank")?;
        let every = |_: u64| true;
        let hidden = self.hidden;
        let q = heads * (nope + rope);
        let kv_a = "self_attn.kv_a_proj_with_mqa";
        if let Some(q_lora) = q_lora {
            let modules = ["self_attn.q_a_proj", kv_a];
            let n = q_lora + kv_lora + rope;
            let name = "fused_qkv_a_proj_with_mqa";
            self.add(&Kind::replicated(name, &modules, n, hidden), every);
            let modules = ["self_attn.q_b_proj"];
            let parts = [(q, 1)];
            let kind = Kind::column("q_b_proj", &modules, &parts, q_lora, ranks);
            self.add(&kind, every);
        } else {
            let modules = ["self_attn.q_proj"];
            let parts = [(q, 1)];
            let kind = Kind::column("q_proj", &modules, &parts, hidden, ranks);
            self.add(&kind, every);
            let (n, name) = (kv_lora + rope, "kv_a_proj_with_mqa");
            self.add(&Kind::replicated(name, &[kv_a], n, hidden), every);
        }
        let parts = [(heads * (nope + value), 1)];
        let modules = ["self_attn.kv_b_proj"];
        let kind = Kind::column("kv_b_proj", &modules, &parts, kv_lora, ranks);
        self.add(&kind.only(Some(PREFILL), true), every);
        let modules = ["self_attn.o_proj"];
        let kind = Kind::row("o_proj", &modules, hidden, heads * value, ranks);
        self.add(&kind, every);
        if let (Some(index_heads), Some(index_dim), Some(q_lora)) = (
            config.number("index_n_heads")?,
            config.number("index_head_dim")?,
            q_lora,
        ) {
            let own = IndexerLayers::of(config)?;
            let has = |index: u64| own.has(index);
            let n = index_heads * index_dim;
            let modules = ["self_attn.indexer.wq_b"];
            let kind = Kind::replicated("indexer.wq_b", &modules, n, q_lora);
            self.add(&kind, has);
            let modules = ["self_attn.indexer.wk"];
            let kind = Kind::replicated("indexer.wk", &modules, index_dim, hidden);
            let condition = "not where a release fuses wk with weights_proj in bf16";
            self.add(&kind.only(Some(condition), true), has);
        }
        Ok(())
    }

    /// Grouped-query attention, and the linear attention that Qwen3-Next and Qwen3.5 combine with it.
    pub(super) fn grouped_attention(&mut self) -> Result<(), ModelError> {
        let ranks = u64::from(self.parallel.attention_tp());
        let config = self.config;
        let all_heads = config.needed("num_attention_heads")?;
        let kv_heads = config.number("num_key_value_heads")?.unwrap_or(all_heads);
        let dim = config
            .number("head_dim")?
            .unwrap_or(self.hidden / all_heads)
            .max(1);
        let linear = LinearAttention::of(config)?;
        // Qwen3-Next and Qwen3.5 gate the output unless the config disables that.
        let gate = config.get("attn_output_gate");
        let gated = gate
            .and_then(serde_json::Value::as_bool)
            .unwrap_or(linear.is_some());
        let full = |index: u64| linear.as_ref().is_none_or(|linear| linear.is_full(index));
        let heads = Heads {
            query: all_heads,
            kv: kv_heads,
            dim,
            gated,
        };
        self.grouped(["qkv_proj", "o_proj"], &heads, ranks, full);
        if let Some(linear) = &linear {
            self.linear_attention(linear, ranks);
        }
        Ok(())
    }

    /// The two projections of grouped-query attention in the layers that have these heads.
    pub(super) fn grouped(
        &mut self,
        names: [&'static str; 2],
        heads: &Heads,
        ranks: u64,
        has: impl Fn(u64) -> bool,
    ) {
        let query = self.part("num_attention_heads", heads.query, ranks);
        // Fewer KV heads than ranks are replicated.
        let kv = if heads.kv >= ranks {
            self.part("num_key_value_heads", heads.kv, ranks)
        } else {
            if !ranks.is_multiple_of(heads.kv) {
                self.reject(format!(
                    "num_key_value_heads = {} cannot be repeated over {ranks} ranks",
                    heads.kv
                ));
            }
            1
        };
        let (hidden, dim) = (self.hidden, heads.dim);
        let q = query * if heads.gated { 2 } else { 1 };
        let modules = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
        let parts = [(q * dim, 1), (kv * dim, 2)];
        let kind = Kind::column(names[0], &modules, &parts, hidden, ranks);
        self.add(&kind, &has);
        let modules = ["self_attn.o_proj"];
        let kind = Kind::row(names[1], &modules, hidden, query * dim, ranks);
        self.add(&kind, &has);
    }

    fn linear_attention(&mut self, linear: &LinearAttention, ranks: u64) {
        let key = self.part(
            "linear_num_key_heads * linear_key_head_dim",
            linear.key,
            ranks,
        );
        let value = self.part(
            "linear_num_value_heads * linear_value_head_dim",
            linear.value,
            ranks,
        );
        let other = |index: u64| !linear.is_full(index);
        let hidden = self.hidden;
        // Qwen3-Next's checkpoints have one weight, those of Qwen3.5 two that are merged at load.
        let modules = [
            "linear_attn.in_proj_qkvz",
            "linear_attn.in_proj_qkv",
            "linear_attn.in_proj_z",
        ];
        let parts = [(key, 2), (value, 2)];
        let name = "linear_attn.in_proj_qkvz";
        self.add(&Kind::column(name, &modules, &parts, hidden, ranks), other);
        let (modules, name) = (["linear_attn.out_proj"], "linear_attn.out_proj");
        self.add(&Kind::row(name, &modules, hidden, value, ranks), other);
        self.note(
            "linear_attn.in_proj_ba has too few outputs for a scale block and stays unquantised",
        );
    }
}

/// Heads of grouped-query attention over all ranks.
pub(super) struct Heads {
    pub(super) query: u64,
    pub(super) kv: u64,
    /// Elements of one head.
    pub(super) dim: u64,
    /// Whether each query head also has a gate.
    pub(super) gated: bool,
}

/// Which layers select tokens themselves; the others reuse the selection of an earlier layer and have no indexer
/// (`dsa_layer_skips_topk` of SGLang 0.5.23).
struct IndexerLayers {
    kinds: Option<Vec<String>>,
    pattern: Option<String>,
    every: u64,
    offset: u64,
}

impl IndexerLayers {
    fn of(config: &Config) -> Result<Self, ModelError> {
        let pattern = config.get("index_topk_pattern");
        Ok(Self {
            kinds: config.words("indexer_types"),
            pattern: pattern.and_then(|text| text.as_str().map(str::to_owned)),
            every: config.number("index_topk_freq")?.unwrap_or(1),
            // Without the key layers 0 and 1 select, and so on from there.
            offset: config.number("index_skip_topk_offset")?.unwrap_or(2),
        })
    }

    fn has(&self, index: u64) -> bool {
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        if let Some(kinds) = &self.kinds {
            return kinds.get(at).is_none_or(|kind| kind != "shared");
        }
        if let Some(pattern) = &self.pattern {
            return pattern.as_bytes().get(at) != Some(&b'S');
        }
        (index + 1)
            .saturating_sub(self.offset)
            .is_multiple_of(self.every)
    }
}

/// Gated delta-net layers: sizes over all ranks, and the interval at which full attention layers occur.
struct LinearAttention {
    key: u64,
    value: u64,
    interval: u64,
    kinds: Option<Vec<String>>,
}

impl LinearAttention {
    fn of(config: &Config) -> Result<Option<Self>, ModelError> {
        let Some(key_heads) = config.number("linear_num_key_heads")? else {
            return Ok(None);
        };
        let kinds = config.words("layer_types");
        Ok(Some(Self {
            key: key_heads * config.needed("linear_key_head_dim")?,
            value: config.needed("linear_num_value_heads")?
                * config.needed("linear_value_head_dim")?,
            interval: config.number("full_attention_interval")?.unwrap_or(4),
            kinds,
        }))
    }

    fn is_full(&self, index: u64) -> bool {
        let listed = self
            .kinds
            .as_ref()
            .and_then(|kinds| kinds.get(usize::try_from(index).ok()?));
        listed.map_or((index + 1).is_multiple_of(self.interval), |kind| {
            kind == "full_attention"
        })
    }
}
