//! Which GEMM weights a model has on each rank, from its `config.json` alone.
//!
//! The formulas are those of SGLang's model code (0.5.5 to 0.5.23): how projections are merged, which layers are
//! replicated, where tensor parallelism splits. An unknown architecture, or a key that changes weights, is refused by
//! name: a wrong guess would be tuned for hours and serve nothing. A dump of a running server is the better source;
//! this one needs no server and predicts what a dump should contain. No file is read here.

mod attention;
mod config;
mod deepseek_v4;
mod gemma4;
mod known;
mod layers;
mod mlp;
mod moe;
mod quant;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::table::moe::release::Release;

pub use config::ModelError;
pub use moe::Experts;
pub use quant::Scheme;

use config::Config;
use known::Family;

/// The parallelism and options with which the server is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parallel {
    /// `--tp-size`: ranks of tensor parallelism.
    pub tp: u32,
    /// `--dp-size` with `--enable-dp-attention`; 1 without. Attention is split over tp / dp ranks.
    pub dp_attention: u32,
    /// `--moe-dense-tp-size`, where given: the split of dense MLP layers in MoE models.
    pub moe_dense_tp: Option<u32>,
    /// Whether shared experts are computed as routed ones; `None` for SGLang's default.
    pub shared_experts_fusion: Option<bool>,
    /// `--ep-size`: routed experts are split over this many ranks, and their width over tp / ep.
    pub ep: u32,
    /// SGLang's release, which determines whether a shared expert is fused by default.
    pub release: Release,
    /// Whether the server runs on AMD with aiter, which also affects that.
    pub is_hip: bool,
}

impl Parallel {
    /// Tensor parallelism over `tp` ranks, with all else at its default.
    pub fn tp(tp: u32) -> Self {
        Self {
            tp,
            dp_attention: 1,
            moe_dense_tp: None,
            shared_experts_fusion: None,
            ep: 1,
            release: Release::NEWEST,
            is_hip: false,
        }
    }

    /// How a server is split over ranks by the arguments that it reports as resolved (SGLang's `/server_info`, 0.5.5 to 0.5.23). What
    /// they leave out is taken from [`Parallel::tp`].
    pub fn resolved(arguments: &Value, tp: u32, is_hip: bool) -> Self {
        let number = |name: &str| {
            let number = arguments.get(name).and_then(Value::as_u64);
            number
                .and_then(|number| u32::try_from(number).ok())
                .filter(|number| *number > 0)
        };
        let is_set = |name: &str| arguments.get(name).and_then(Value::as_bool) == Some(true);
        let default = Self::tp(number("tp_size").unwrap_or(tp));
        Self {
            dp_attention: number("dp_size")
                .filter(|_| is_set("enable_dp_attention"))
                .unwrap_or(1),
            moe_dense_tp: number("moe_dense_tp_size"),
            shared_experts_fusion: is_set("disable_shared_experts_fusion").then_some(false),
            ep: number("ep_size").unwrap_or(1),
            release: arguments
                .get("version")
                .and_then(Value::as_str)
                .and_then(|version| version.parse().ok())
                .unwrap_or(default.release),
            is_hip,
            ..default
        }
    }

    /// Ranks that attention is split over.
    pub fn attention_tp(&self) -> u32 {
        self.tp / self.dp_attention.max(1)
    }
}

/// One kind of linear layer, on each rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Its name in SGLang's model code.
    pub name: Cow<'static, str>,
    /// Output features on this rank.
    #[serde(rename = "N")]
    pub n: u32,
    /// Input features on this rank.
    #[serde(rename = "K")]
    pub k: u32,
    /// How many layers of the model have it; each is one call per forward.
    pub count: u32,
    /// Whether every rank has the whole weight.
    pub replicated: bool,
    /// Under which condition the layer exists or runs; `None` for always.
    pub condition: Option<Cow<'static, str>>,
    /// Whether the layer exists in a server started this way.
    pub present: bool,
}

/// The linear layers of a model on each rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Architecture, as the config names it.
    pub architecture: String,
    /// How the weights are quantised.
    pub scheme: Scheme,
    /// `--tp-size` of the server.
    pub tp: u32,
    /// Ranks that attention is split over.
    pub attention_tp: u32,
    /// The layers in the order of a forward pass; those not present have the condition under which they would be.
    pub layers: Vec<Layer>,
    /// The routed experts, which run in the fused MoE operation; `None` in dense models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<Experts>,
    /// Why the server would refuse to load the model this way, one reason for each layer.
    pub rejected: Vec<String>,
    /// Further remarks.
    pub notes: Vec<String>,
}

impl Prediction {
    /// The distinct (N, K) of the layers that are present, with the number of calls in a forward pass.
    pub fn weights(&self) -> Vec<(u32, u32, u32)> {
        let mut weights = std::collections::BTreeMap::<(u32, u32), u32>::new();
        for layer in self.layers.iter().filter(|layer| layer.present) {
            let count = weights.entry((layer.n, layer.k)).or_default();
            *count = count.saturating_add(layer.count);
        }
        weights
            .into_iter()
            .map(|((n, k), count)| (n, k, count))
            .collect()
    }
}

/// How a checkpoint's weights are quantised, from the bytes of its `config.json`.
pub fn scheme(bytes: &[u8]) -> Result<Scheme, ModelError> {
    quant::scheme(&Config::read(bytes)?)
}

/// Predicts a model's layers from the bytes of its `config.json`.
pub fn predict(bytes: &[u8], parallel: &Parallel) -> Result<Prediction, ModelError> {
    let config = Config::read(bytes)?;
    let (tp, dp) = (parallel.tp, parallel.dp_attention);
    if tp == 0 || dp == 0 || tp % dp != 0 || tp > 1024 {
        return Err(ModelError::BadParallel { tp, dp });
    }
    if parallel.ep == 0 || !tp.is_multiple_of(parallel.ep) {
        return Err(ModelError::BadExpertParallel {
            tp,
            ep: parallel.ep,
        });
    }
    known::refuse(&config)?;
    let scheme = quant::scheme(&config)?;
    let (family, remarks) = known::family(&config)?;
    let mut builder = layers::Builder::new(&config, &scheme, parallel, family)?;
    match family {
        Family::Grouped | Family::GatedDelta => builder.grouped_attention()?,
        Family::Latent => builder.latent_attention()?,
        Family::DeepseekV4 => builder.grouped_output_attention()?,
        Family::Gemma4 => builder.sliding_and_global_attention()?,
    }
    let experts = builder.mlp(&scheme)?;
    let (layers, rejected, mut notes) = builder.finish();
    notes.extend(remarks);
    if let Scheme::PerChannel = scheme {
        notes.push(
            "per-channel weights never reach gemm_a8w8_blockscale: they need gemm_a8w8_bpreshuffle tuned".to_owned(),
        );
    }
    Ok(Prediction {
        architecture: config.architecture(),
        scheme,
        tp,
        attention_tp: parallel.attention_tp(),
        experts,
        layers,
        rejected,
        notes,
    })
}

#[cfg(test)]
mod tests;
