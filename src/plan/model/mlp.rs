//! Gated MLP of dense layers, and shared experts; routed experts are not plain GEMMs.

use super::config::{Config, ModelError};
use super::known::Family;
use super::layers::{Builder, Kind};
use super::moe::Experts;
use super::quant::Scheme;

/// Why shared experts' layers may be missing.
const FUSED: &str = "only with --disable-shared-experts-fusion, expert parallelism through DeepEP, or two-batch overlap";
/// The same for Qwen, whose fusion was added later and for aiter first.
const FUSED_BY_AITER: &str =
    "not where the release computes it as one more routed expert (with aiter in newer releases)";

impl Builder<'_> {
    /// Gated MLP of dense layers, and shared experts; returns the routed experts, which are not plain GEMMs.
    pub(super) fn mlp(&mut self, scheme: &Scheme) -> Result<Option<Experts>, ModelError> {
        let config = self.config;
        let tp = u64::from(self.parallel.tp);
        let experts = config.first(&["n_routed_experts", "num_experts", "num_local_experts"])?;
        let dense_ranks = match (experts, self.parallel.moe_dense_tp) {
            (Some(_), Some(ranks)) => u64::from(ranks.max(1)),
            _ => tp,
        };
        // Gemma-4 has a dense MLP in addition to the experts in every layer.
        let instead = experts.is_some() && self.family != Family::Gemma4;
        let is_dense = DenseLayers::of(config, instead)?;
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
            return Ok(None);
        };
        self.note("routed experts run in the fused MoE operation, which has tables of its own");
        let moe_inter = config.first(&["moe_intermediate_size"])?;
        let count = config.count("n_shared_experts")?;
        let qwen = config.number("shared_expert_intermediate_size")?;
        let sparse = |index: u64| !is_dense.has(index);
        let layers = (0..self.depth).filter(|index| sparse(*index)).count();
        let routed = self.routed_experts(experts, layers, scheme)?;
        let names = ["shared_experts.gate_up_proj", "shared_experts.down_proj"];
        if let Some(inter) = qwen {
            // `can_fuse_shared_expert`: where both kinds of expert have one size.
            let condition = (moe_inter == Some(inter)).then_some(FUSED_BY_AITER);
            let modules: [&[&'static str]; 2] = [
                &["mlp.shared_expert.gate_proj"],
                &["mlp.shared_expert.down_proj"],
            ];
            self.gated(names, modules, inter, tp, (condition, true), sparse);
        } else if let (Some(inter), 1..) = (moe_inter, count) {
            // On by default for these expert counts on gfx942 and newer, and on SM80 and newer.
            let by_default = count == 1
                && match self.family {
                    // DeepSeek-V3.2's own class name is compared with V3's, in every release.
                    Family::Latent => {
                        experts == 256 && config.architecture() != "DeepseekV32ForCausalLM"
                    }
                    Family::DeepseekV4 => false,
                    _ => true,
                };
            let fused = self.parallel.shared_experts_fusion.unwrap_or(by_default);
            let condition = by_default.then_some(FUSED);
            let modules: [&[&'static str]; 2] = [
                &["mlp.shared_experts.gate_proj", "ffn.shared_experts.w1"],
                &["mlp.shared_experts.down_proj", "ffn.shared_experts.w2"],
            ];
            self.gated(
                names,
                modules,
                inter * count,
                tp,
                (condition, !fused),
                sparse,
            );
        }
        Ok(routed)
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
        let kind = Kind::column(names[0], modules[0], &[(part, 2)], hidden, ranks);
        self.add(&kind.only(condition, present), &has);
        let kind = Kind::row(names[1], modules[1], hidden, part, ranks);
        self.add(&kind.only(condition, present), &has);
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
        // Some configs specify for each layer whether it has experts.
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
        // transformers 5 writes the kind of each layer.
        if let Some(kinds) = config.words("mlp_layer_types") {
            let dense = (0u64..).zip(&kinds).filter(|(_, kind)| *kind == "dense");
            listed.extend(dense.map(|(index, _)| index));
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
