//! The layers of a decoder: attention by kind, gated MLP, shared experts.

use super::config::{Config, ModelError};
use super::quant::{Ignored, Scheme};
use super::{Layer, Parallel};

/// No decoder has more layers.
const MOST_LAYERS: u64 = 4096;

/// Why shared experts' layers may be missing.
const FUSED: &str = "only with --disable-shared-experts-fusion, expert parallelism through DeepEP, or two-batch overlap";
/// Why `kv_b_proj` is rarely seen.
const PREFILL: &str =
    "only in prefill without weight absorption; M is the tokens of the prefix chunk";

pub(super) struct Builder<'a> {
    config: &'a Config,
    parallel: &'a Parallel,
    ignored: Ignored,
    block: Option<(u64, u64)>,
    hidden: u64,
    depth: u64,
    layers: Vec<Layer>,
    rejected: Vec<String>,
    notes: Vec<String>,
}

/// How a weight is split over ranks.
enum Split {
    /// Whole on every rank.
    Replicated,
    /// Output features over ranks: the parts that are merged, each on this rank.
    Column(Vec<u64>),
    /// Input features over ranks.
    Row,
}

/// One kind of layer before it is checked and counted.
struct Kind<'k> {
    name: &'static str,
    /// Names of the checkpoint's modules that are merged into it.
    modules: &'k [&'static str],
    n: u64,
    k: u64,
    split: Split,
    ranks: u64,
    condition: Option<&'static str>,
    present: bool,
}

impl<'a> Builder<'a> {
    pub(super) fn new(
        config: &'a Config,
        scheme: &Scheme,
        parallel: &'a Parallel,
    ) -> Result<Self, ModelError> {
        let depth = config.needed("num_hidden_layers")?;
        if depth > MOST_LAYERS {
            return Err(ModelError::NotANumber {
                key: "num_hidden_layers",
                value: depth.to_string(),
            });
        }
        Ok(Self {
            config,
            parallel,
            ignored: Ignored::of(config),
            block: match scheme {
                Scheme::Block { n, k } => Some((u64::from(*n), u64::from(*k))),
                Scheme::PerChannel => None,
            },
            hidden: config.needed("hidden_size")?,
            depth,
            layers: Vec::new(),
            rejected: Vec::new(),
            notes: Vec::new(),
        })
    }

    pub(super) fn finish(self) -> (Vec<Layer>, Vec<String>, Vec<String>) {
        (self.layers, self.rejected, self.notes)
    }

    /// Checks what the loader checks, counts the decoder layers that have the kind, and keeps it.
    fn add(&mut self, kind: &Kind<'_>, has: impl Fn(u64) -> bool) {
        let count = (0..self.depth)
            .filter(|index| has(*index))
            .filter(|index| {
                !kind
                    .modules
                    .iter()
                    .any(|module| self.ignored.has(*index, module))
            })
            .count();
        let all = (0..self.depth).filter(|index| has(*index)).count();
        if all == 0 {
            return;
        }
        if count == 0 {
            self.notes
                .push(format!("{} is not quantised in this checkpoint", kind.name));
            return;
        }
        if kind.n == 0 || kind.k == 0 {
            self.rejected
                .push(format!("{}: nothing is left of it on a rank", kind.name));
            return;
        }
        self.check_blocks(kind);
        let (Ok(n), Ok(k), Ok(count)) = (
            u32::try_from(kind.n),
            u32::try_from(kind.k),
            u32::try_from(count),
        ) else {
            self.rejected.push(format!(
                "{}: {} by {} is larger than any weight",
                kind.name, kind.n, kind.k
            ));
            return;
        };
        self.layers.push(Layer {
            name: kind.name,
            n,
            k,
            count,
            replicated: matches!(kind.split, Split::Replicated),
            condition: kind.condition,
            present: kind.present,
        });
    }

    /// `Fp8LinearMethod.create_weights`: split sides have to be whole scale blocks.
    fn check_blocks(&mut self, kind: &Kind<'_>) {
        let Some((block_n, block_k)) = self.block else {
            return;
        };
        if kind.ranks <= 1 {
            return;
        }
        match &kind.split {
            Split::Row if !kind.k.is_multiple_of(block_k) => self.rejected.push(format!(
                "{}: K = {} on a rank is no multiple of {block_k}",
                kind.name, kind.k
            )),
            Split::Column(parts) => {
                if let Some(part) = parts.iter().find(|part| !part.is_multiple_of(block_n)) {
                    self.rejected.push(format!(
                        "{}: a part of N = {part} on a rank is no multiple of {block_n}",
                        kind.name
                    ));
                }
            }
            _ => {}
        }
    }

    /// `total` over `ranks`, or a reason and the rounded-down part.
    fn part(&mut self, what: &str, total: u64, ranks: u64) -> u64 {
        if !total.is_multiple_of(ranks) {
            self.rejected.push(format!(
                "{what} = {total} cannot be split over {ranks} ranks"
            ));
        }
        total / ranks
    }

    pub(super) fn attention(&mut self) -> Result<(), ModelError> {
        if self.config.number("kv_lora_rank")?.is_some() {
            self.latent_attention()
        } else {
            self.grouped_attention()
        }
    }

    /// Multi-head latent attention: DeepSeek, GLM-5, Kimi; with the indexer of DeepSeek sparse attention.
    fn latent_attention(&mut self) -> Result<(), ModelError> {
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
        let replicated = |name, modules, n, k| Kind {
            name,
            modules,
            n,
            k,
            split: Split::Replicated,
            ranks,
            condition: None,
            present: true,
        };
        let column = |name, modules, n, k| Kind {
            split: Split::Column(vec![n]),
            ..replicated(name, modules, n, k)
        };
        if let Some(q_lora) = q_lora {
            self.add(
                &replicated(
                    "fused_qkv_a_proj_with_mqa",
                    &["self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"],
                    q_lora + kv_lora + rope,
                    hidden,
                ),
                every,
            );
            self.add(
                &column(
                    "q_b_proj",
                    &["self_attn.q_b_proj"],
                    heads * (nope + rope),
                    q_lora,
                ),
                every,
            );
        } else {
            self.add(
                &column(
                    "q_proj",
                    &["self_attn.q_proj"],
                    heads * (nope + rope),
                    hidden,
                ),
                every,
            );
            self.add(
                &replicated(
                    "kv_a_proj_with_mqa",
                    &["self_attn.kv_a_proj_with_mqa"],
                    kv_lora + rope,
                    hidden,
                ),
                every,
            );
        }
        self.add(
            &Kind {
                condition: Some(PREFILL),
                ..column(
                    "kv_b_proj",
                    &["self_attn.kv_b_proj"],
                    heads * (nope + value),
                    kv_lora,
                )
            },
            every,
        );
        self.add(
            &Kind {
                split: Split::Row,
                ..replicated("o_proj", &["self_attn.o_proj"], hidden, heads * value)
            },
            every,
        );
        if let (Some(index_heads), Some(index_dim), Some(q_lora)) = (
            config.number("index_n_heads")?,
            config.number("index_head_dim")?,
            q_lora,
        ) {
            self.add(
                &replicated(
                    "indexer.wq_b",
                    &["self_attn.indexer.wq_b"],
                    index_heads * index_dim,
                    q_lora,
                ),
                every,
            );
            self.add(
                &Kind {
                    condition: Some("not where a release fuses wk with weights_proj in bf16"),
                    ..replicated("indexer.wk", &["self_attn.indexer.wk"], index_dim, hidden)
                },
                every,
            );
        }
        Ok(())
    }

    /// Grouped-query attention, and the linear attention that Qwen3-Next and Qwen3.5 mix it with.
    fn grouped_attention(&mut self) -> Result<(), ModelError> {
        let ranks = u64::from(self.parallel.attention_tp());
        let config = self.config;
        let all_heads = config.needed("num_attention_heads")?;
        let kv_heads = config.number("num_key_value_heads")?.unwrap_or(all_heads);
        let dim = config
            .number("head_dim")?
            .unwrap_or(self.hidden / all_heads)
            .max(1);
        let heads = self.part("num_attention_heads", all_heads, ranks);
        // Fewer KV heads than ranks are repeated.
        let kv = if kv_heads >= ranks {
            self.part("num_key_value_heads", kv_heads, ranks)
        } else {
            if !ranks.is_multiple_of(kv_heads) {
                self.rejected.push(format!(
                    "num_key_value_heads = {kv_heads} cannot be repeated over {ranks} ranks"
                ));
            }
            1
        };
        let linear = LinearAttention::of(config)?;
        let gated = linear.is_some()
            || config
                .get("attn_output_gate")
                .and_then(serde_json::Value::as_bool)
                == Some(true);
        let q = heads * if gated { 2 } else { 1 };
        let full = |index: u64| linear.as_ref().is_none_or(|linear| linear.is_full(index));
        let hidden = self.hidden;
        self.add(
            &Kind {
                name: "qkv_proj",
                modules: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
                n: (q + 2 * kv) * dim,
                k: hidden,
                split: Split::Column(vec![q * dim, kv * dim]),
                ranks,
                condition: None,
                present: true,
            },
            full,
        );
        self.add(
            &Kind {
                name: "o_proj",
                modules: &["self_attn.o_proj"],
                n: hidden,
                k: heads * dim,
                split: Split::Row,
                ranks,
                condition: None,
                present: true,
            },
            full,
        );
        if let Some(linear) = &linear {
            self.linear_attention(linear, ranks);
        }
        Ok(())
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
        self.add(
            &Kind {
                name: "linear_attn.in_proj_qkvz",
                modules: &["linear_attn.in_proj_qkvz"],
                n: 2 * key + 2 * value,
                k: hidden,
                split: Split::Column(vec![key, value]),
                ranks,
                condition: None,
                present: true,
            },
            other,
        );
        self.add(
            &Kind {
                name: "linear_attn.out_proj",
                modules: &["linear_attn.out_proj"],
                n: hidden,
                k: value,
                split: Split::Row,
                ranks,
                condition: None,
                present: true,
            },
            other,
        );
        self.notes.push(
            "linear_attn.in_proj_ba has too few outputs for a scale block and stays unquantised"
                .to_owned(),
        );
    }

    /// Gated MLP of dense layers, and shared experts; routed experts are no plain GEMM.
    pub(super) fn mlp(&mut self) -> Result<(), ModelError> {
        let config = self.config;
        let tp = u64::from(self.parallel.tp);
        let experts = config.first(&["n_routed_experts", "num_experts", "num_local_experts"])?;
        let dense_ranks = match (experts, self.parallel.moe_dense_tp) {
            (Some(_), Some(ranks)) => u64::from(ranks.max(1)),
            _ => tp,
        };
        let is_dense = DenseLayers::of(config, experts.is_some())?;
        if (0..self.depth).any(|index| is_dense.has(index)) {
            let inter = config.needed("intermediate_size")?;
            let dense = |index: u64| is_dense.has(index);
            self.gated(
                ["gate_up_proj", "down_proj"],
                [&["mlp.gate_proj", "mlp.up_proj"], &["mlp.down_proj"]],
                inter,
                dense_ranks,
                (None, true),
                dense,
            );
        }
        let Some(experts) = experts else {
            return Ok(());
        };
        self.notes.push(
            "routed experts run in the fused MoE operation, which has tables of its own".to_owned(),
        );
        let moe_inter = config.first(&["moe_intermediate_size"])?;
        let count = config.count("n_shared_experts")?;
        let shared = match config.number("shared_expert_intermediate_size")? {
            Some(inter) => Some((inter, false)),
            None if count > 0 => moe_inter.map(|inter| (inter * count, true)),
            None => None,
        };
        if let Some((inter, fusible)) = shared {
            // On by default for these expert counts on gfx942 and newer, and on SM80 and newer.
            let latent = config.number("kv_lora_rank")?.is_some();
            let by_default = fusible && count == 1 && (experts == 256 || !latent);
            let fused = fusible && self.parallel.shared_experts_fusion.unwrap_or(by_default);
            let condition = (fusible && by_default).then_some(FUSED);
            let sparse = |index: u64| !is_dense.has(index);
            let (one, many) = (
                "mlp.shared_expert.down_proj",
                "mlp.shared_experts.down_proj",
            );
            let down: &[&'static str] = if fusible { &[many] } else { &[one] };
            let gate: &[&'static str] = if fusible {
                &["mlp.shared_experts.gate_proj"]
            } else {
                &["mlp.shared_expert.gate_proj"]
            };
            self.gated(
                ["shared_experts.gate_up_proj", "shared_experts.down_proj"],
                [gate, down],
                inter,
                tp,
                (condition, !fused),
                sparse,
            );
        }
        Ok(())
    }

    fn gated(
        &mut self,
        names: [&'static str; 2],
        modules: [&[&'static str]; 2],
        inter: u64,
        ranks: u64,
        (condition, present): (Option<&'static str>, bool),
        has: impl Fn(u64) -> bool,
    ) {
        let part = self.part("the MLP's intermediate size", inter, ranks);
        let hidden = self.hidden;
        self.add(
            &Kind {
                name: names[0],
                modules: modules[0],
                n: 2 * part,
                k: hidden,
                split: Split::Column(vec![part]),
                ranks,
                condition,
                present,
            },
            &has,
        );
        self.add(
            &Kind {
                name: names[1],
                modules: modules[1],
                n: hidden,
                k: part,
                split: Split::Row,
                ranks,
                condition,
                present,
            },
            &has,
        );
    }
}

/// Which decoder layers have a dense MLP.
struct DenseLayers {
    moe: bool,
    first_dense: u64,
    step: u64,
    listed: Vec<u64>,
    by_frequency: bool,
}

impl DenseLayers {
    fn of(config: &Config, moe: bool) -> Result<Self, ModelError> {
        let listed = config
            .get("mlp_only_layers")
            .and_then(serde_json::Value::as_array);
        let mut listed: Vec<u64> = listed
            .into_iter()
            .flatten()
            .filter_map(serde_json::Value::as_u64)
            .collect();
        // Some configs say per layer whether it has experts.
        let per_layer = config
            .get("moe_layer_freq")
            .and_then(serde_json::Value::as_array);
        if let Some(flags) = per_layer {
            listed.extend(
                (0u64..)
                    .zip(flags)
                    .filter(|(_, flag)| flag.as_u64() == Some(0))
                    .map(|(index, _)| index),
            );
        }
        let by_frequency = per_layer.is_none() && config.get("moe_layer_freq").is_some();
        let step = if by_frequency {
            "moe_layer_freq"
        } else {
            "decoder_sparse_step"
        };
        Ok(Self {
            moe,
            first_dense: config.count("first_k_dense_replace")?,
            step: config.number(step)?.unwrap_or(1),
            listed,
            by_frequency,
        })
    }

    fn has(&self, index: u64) -> bool {
        if !self.moe {
            return true;
        }
        // Qwen counts from 1 (`(layer + 1) % step`), DeepSeek from 0 (`layer % freq`).
        let position = if self.by_frequency { index } else { index + 1 };
        index < self.first_dense
            || self.listed.contains(&index)
            || !position.is_multiple_of(self.step)
    }
}

/// Gated delta-net layers: sizes over all ranks, and every how many layers full attention stands.
struct LinearAttention {
    key: u64,
    value: u64,
    interval: u64,
    kinds: Option<Vec<bool>>,
}

impl LinearAttention {
    fn of(config: &Config) -> Result<Option<Self>, ModelError> {
        let Some(key_heads) = config.number("linear_num_key_heads")? else {
            return Ok(None);
        };
        let kinds = config
            .get("layer_types")
            .and_then(serde_json::Value::as_array)
            .map(|kinds| {
                kinds
                    .iter()
                    .map(|kind| kind.as_str() == Some("full_attention"))
                    .collect()
            });
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
        listed
            .copied()
            .unwrap_or((index + 1).is_multiple_of(self.interval))
    }
}
