//! Which architectures are known, and which keys of a config give a model weights other than its architecture's usual
//! ones.
//!
//! Classes are those that SGLang 0.5.23 registers, each compared with the linear layers that it builds there. What is
//! not known is refused: a plan of weights that a model does not have costs hours of tuning, and its rows are never
//! looked up.

use serde_json::Value;

use super::config::{Config, ModelError};

/// How the layers of a decoder are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// Grouped-query attention.
    Grouped,
    /// Multi-head latent attention.
    Latent,
    /// Gated delta-net layers, with grouped-query attention in between.
    GatedDelta,
    /// DeepSeek-V4: one KV head and a grouped low-rank output projection.
    DeepseekV4,
    /// Gemma-4: heads of two sizes, by the kind of layer.
    Gemma4,
}

/// Family, class, model type. A model type that two classes share is listed with the first of them.
const KNOWN: &[(Family, &str, &str)] = &[
    (Family::Grouped, "LlamaForCausalLM", "llama"),
    (Family::Grouped, "InternLM3ForCausalLM", "internlm3"),
    (Family::Grouped, "Phi3ForCausalLM", "phi3"),
    (Family::Grouped, "MistralForCausalLM", "mistral"),
    (Family::Grouped, "Ministral3ForCausalLM", "ministral3"),
    (
        Family::Grouped,
        "Mistral3ForConditionalGeneration",
        "mistral3",
    ),
    (Family::Grouped, "MixtralForCausalLM", "mixtral"),
    (Family::Grouped, "Qwen2ForCausalLM", "qwen2"),
    (Family::Grouped, "Qwen2MoeForCausalLM", "qwen2_moe"),
    (
        Family::Grouped,
        "Qwen2VLForConditionalGeneration",
        "qwen2_vl",
    ),
    (
        Family::Grouped,
        "Qwen2_5_VLForConditionalGeneration",
        "qwen2_5_vl",
    ),
    (Family::Grouped, "Qwen3ForCausalLM", "qwen3"),
    (Family::Grouped, "Qwen3MoeForCausalLM", "qwen3_moe"),
    (
        Family::Grouped,
        "Qwen3VLForConditionalGeneration",
        "qwen3_vl",
    ),
    (
        Family::Grouped,
        "Qwen3VLMoeForConditionalGeneration",
        "qwen3_vl_moe",
    ),
    (Family::Grouped, "MiMoForCausalLM", "mimo"),
    (Family::Grouped, "Glm4ForCausalLM", "glm4"),
    (Family::Grouped, "Glm4MoeForCausalLM", "glm4_moe"),
    (Family::Grouped, "Glm4vForConditionalGeneration", "glm4v"),
    (
        Family::Grouped,
        "Glm4vMoeForConditionalGeneration",
        "glm4v_moe",
    ),
    (Family::Grouped, "MiniMaxM2ForCausalLM", "minimax_m2"),
    (Family::Grouped, "CohereForCausalLM", "cohere"),
    (Family::Grouped, "Cohere2ForCausalLM", "cohere2"),
    (Family::Grouped, "GraniteForCausalLM", "granite"),
    (Family::Grouped, "Exaone4ForCausalLM", "exaone4"),
    (Family::Grouped, "Olmo2ForCausalLM", "olmo2"),
    (Family::Grouped, "Gemma3ForCausalLM", "gemma3_text"),
    (Family::Grouped, "Gemma3ForConditionalGeneration", "gemma3"),
    (Family::Latent, "DeepseekV2ForCausalLM", "deepseek_v2"),
    (Family::Latent, "DeepseekV3ForCausalLM", "deepseek_v3"),
    (Family::Latent, "DeepseekV32ForCausalLM", "deepseek_v32"),
    (Family::Latent, "GlmMoeDsaForCausalLM", "glm_moe_dsa"),
    (Family::Latent, "Glm4MoeLiteForCausalLM", "glm4_moe_lite"),
    // Kimi-K2 itself uses DeepseekV3ForCausalLM.
    (
        Family::Latent,
        "KimiK25ForConditionalGeneration",
        "kimi_k25",
    ),
    (Family::Latent, "KimiVLForConditionalGeneration", "kimi_vl"),
    (Family::GatedDelta, "Qwen3NextForCausalLM", "qwen3_next"),
    (
        Family::GatedDelta,
        "Qwen3_5ForConditionalGeneration",
        "qwen3_5",
    ),
    (
        Family::GatedDelta,
        "Qwen3_5MoeForConditionalGeneration",
        "qwen3_5_moe",
    ),
    (Family::GatedDelta, "Qwen3_5ForCausalLM", "qwen3_5_text"),
    (
        Family::GatedDelta,
        "Qwen3_5MoeForCausalLM",
        "qwen3_5_moe_text",
    ),
    (Family::DeepseekV4, "DeepseekV4ForCausalLM", "deepseek_v4"),
    (Family::Gemma4, "Gemma4ForConditionalGeneration", "gemma4"),
    (Family::Gemma4, "Gemma4ForCausalLM", "gemma4_text"),
];

const STATE_SPACE: &str =
    "it mixes state-space (Mamba) layers with attention, and their projections are not predicted";
const DELTA: &str = "its linear-attention layers (KDA) merge their projections differently on each platform, which is not predicted";
const LINEAR: &str = "its linear-attention layers are not predicted";
const WINDOWS: &str = "its sliding-window layers have other heads than its full-attention layers, which is not predicted";
const OTHER: &str = "its attention is built another way, which is not predicted";
const PER_LAYER: &str = "its layers differ in size from each other, which is not predicted";

/// Prefixes of classes, and what cannot be predicted of them. Model types are compared by the same letters.
const REFUSED: &[(&str, &str)] = &[
    ("KimiLinear", DELTA),
    ("KimiK3", DELTA),
    ("Glm5Next", DELTA),
    ("BailingMoeV3", DELTA),
    ("BailingMoeV2_5", LINEAR),
    ("BailingMoeLinear", LINEAR),
    ("MiniMaxM1", LINEAR),
    ("MiniMaxText01", LINEAR),
    (
        "MiniMaxM3",
        "the index projections of its sparse attention are not predicted",
    ),
    ("NemotronH", STATE_SPACE),
    ("Mamba", STATE_SPACE),
    ("FalconMamba", STATE_SPACE),
    ("FalconH1", STATE_SPACE),
    ("Jamba", STATE_SPACE),
    ("Bamba", STATE_SPACE),
    ("Zamba", STATE_SPACE),
    ("Zaya", OTHER),
    ("GraniteMoeHybrid", STATE_SPACE),
    ("JetNemotron", OTHER),
    ("Lfm2", "its convolution layers are not predicted"),
    ("MiMoV2", WINDOWS),
    ("Step3", OTHER),
    ("Laguna", OTHER),
    ("Inkling", OTHER),
    (
        "GptOss",
        "its experts are MXFP4 and its attention is not quantised",
    ),
    ("DeciLM", PER_LAYER),
    ("Llama4", PER_LAYER),
    ("Gemma3n", PER_LAYER),
    (
        "LongcatFlash",
        "it has two attentions and two MLPs a layer, which is not predicted",
    ),
    (
        "DeepseekV41",
        "its compressors and engrams are not predicted",
    ),
    ("MiniCPM3", OTHER),
    ("Qwen4Exp", OTHER),
];

/// Keys that change weights: the key's prefix, what it concerns, and for which families it is predicted.
const CHANGES: &[(&str, &str, &[Family])] = &[
    (
        "o_lora_rank",
        "a low-rank output projection",
        &[Family::DeepseekV4],
    ),
    (
        "o_groups",
        "a grouped output projection",
        &[Family::DeepseekV4],
    ),
    (
        "compress_ratios",
        "compressed attention",
        &[Family::DeepseekV4],
    ),
    (
        "kv_lora_rank",
        "latent attention",
        &[Family::Latent, Family::DeepseekV4],
    ),
    (
        "q_lora_rank",
        "low-rank queries",
        &[Family::Latent, Family::DeepseekV4],
    ),
    (
        "index_n_heads",
        "an indexer of sparse attention",
        &[Family::Latent, Family::DeepseekV4],
    ),
    (
        "global_head_dim",
        "heads of another size in full-attention layers",
        &[Family::Gemma4],
    ),
    (
        "num_global_key_value_heads",
        "other KV heads in full-attention layers",
        &[Family::Gemma4],
    ),
    (
        "attention_k_eq_v",
        "keys that are values too",
        &[Family::Gemma4],
    ),
    ("hidden_size_per_layer_input", "per-layer inputs", &[]),
    (
        "num_kv_shared_layers",
        "layers without KV of their own",
        &[],
    ),
    ("use_double_wide_mlp", "MLPs of two sizes", &[]),
    ("linear_attn_config", "linear attention", &[]),
    ("linear_num_", "linear attention", &[Family::GatedDelta]),
    (
        "linear_key_head_dim",
        "linear attention",
        &[Family::GatedDelta],
    ),
    (
        "linear_value_head_dim",
        "linear attention",
        &[Family::GatedDelta],
    ),
    (
        "attn_output_gate",
        "a gate beside each query",
        &[Family::GatedDelta],
    ),
    ("use_output_gate", "a gate beside each query", &[]),
    ("kda_", "Kimi Delta Attention", &[]),
    ("mamba_", "state-space layers", &[]),
    ("ssm_", "state-space layers", &[]),
    ("hybrid_override_pattern", "layers of several kinds", &[]),
    ("hybrid_layer_pattern", "layers of several kinds", &[]),
    ("layers_block_type", "layers of several kinds", &[]),
    ("attn_type_list", "layers of several kinds", &[]),
    ("full_attn_idxs", "layers of several kinds", &[]),
    ("block_configs", "layers of several sizes", &[]),
    ("per_layer_config", "layers of several sizes", &[]),
    ("swa_", "other heads in sliding-window layers", &[]),
    (
        "v_head_dim",
        "values of another size than keys",
        &[Family::Latent, Family::DeepseekV4],
    ),
    ("moe_latent_size", "experts of a smaller width", &[]),
    (
        "routed_expert_hidden_size",
        "experts of a smaller width",
        &[],
    ),
    ("shared_intermediate_size", "a shared MLP", &[]),
    ("intermediate_size_mlp", "MLPs of two sizes", &[]),
    ("interleave_moe_layer_step", "MLPs of two sizes", &[]),
    ("zero_expert_num", "experts that compute nothing", &[]),
    ("engram_", "engrams", &[]),
];

/// Keys that match a prefix in `CHANGES` but change no weight: parameters of the recurrence or of a kernel.
const NO_CHANGE: &[&str] = &[
    "swa_rope_theta",
    "mamba_ssm_dtype",
    "linear_conv_kernel_dim",
];

/// Kinds of layer that the families have.
const LAYER_KINDS: &[&str] = &[
    "full_attention",
    "sliding_attention",
    "chunked_attention",
    "linear_attention",
    "deepseek_sparse_attention",
    "compressed_sparse_attention",
    "heavily_compressed_attention",
];

/// Keys that name a size but are either read, or do not size a linear layer of a decoder.
const HARMLESS: &[&str] = &[
    "bos_token_id",
    "decoder_sparse_step",
    "expert_layer_period",
    "first_k_dense_replace",
    "full_attention_interval",
    "hc_mult",
    "head_dim",
    "hidden_size",
    "index_head_dim",
    "index_topk_freq",
    "index_topk_pattern",
    "intermediate_size",
    "layer_types",
    "linear_conv_kernel_dim",
    "max_window_layers",
    "mlp_layer_types",
    "mlp_only_layers",
    "moe_intermediate_size",
    "moe_layer_freq",
    "mtp_num_hidden_layers",
    "n_group",
    "n_routed_experts",
    "n_shared_experts",
    "num_attention_heads",
    "num_experts",
    "num_hash_layers",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_local_experts",
    "num_nextn_predict_layers",
    "num_mtp_modules",
    "mtp_transformer_layers",
    "qk_head_dim",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "rotary_dim",
    "shared_expert_intermediate_size",
    "sliding_window_pattern",
    "top_k_experts",
    "ep_size",
    "chunk_size",
    "kernel_size",
    "sliding_window_size",
    "sparse_block_size",
    "query_pre_attn_scalar",
    "compress_rates",
    "vocab_size",
    "unpadded_vocab_size",
    "vocab_size_per_layer_input",
];

/// Refuses what is known to be unpredictable, whatever else the config contains.
pub(super) fn refuse(config: &Config) -> Result<(), ModelError> {
    let class = config.class();
    let named = class.as_deref().into_iter().chain(config.model_types());
    let why = named.into_iter().find_map(refused);
    why.map_or(Ok(()), |why| {
        Err(ModelError::Refused {
            architecture: config.architecture(),
            why,
        })
    })
}

/// The family of a config, or why its layers cannot be predicted; and remarks on its keys.
pub(super) fn family(config: &Config) -> Result<(Family, Vec<String>), ModelError> {
    let class = config.class();
    let name = config.architecture();
    let family = match &class {
        Some(class) => KNOWN.iter().find(|(_, known, _)| known == class),
        // The model type of the whole model before that of its text part.
        None => config
            .model_types()
            .find_map(|kind| KNOWN.iter().find(|(_, _, known)| *known == kind)),
    };
    let Some(&(family, _, _)) = family else {
        return Err(ModelError::Unknown(name));
    };
    let keys = config.text();
    let same = |key: &str, value: &Value| match key {
        "v_head_dim" => keys.get("head_dim") == Some(value),
        // MiniMax: 1 for each layer with full attention, which all of M2 have.
        "attn_type_list" => value
            .as_array()
            .is_some_and(|kinds| kinds.iter().all(|kind| kind.as_u64() == Some(1))),
        _ => false,
    };
    for (key, value) in keys.iter().chain(config.around()) {
        let change = CHANGES.iter().find(|(change, _, _)| begins(key, change));
        if let Some((_, what, families)) = change
            && !families.contains(&family)
            && !nothing(value)
            && !NO_CHANGE.contains(&key.as_str())
            && !same(key, value)
        {
            return Err(ModelError::Key {
                architecture: name,
                key: key.chars().take(60).collect(),
                what,
            });
        }
    }
    if let Some(other) = config
        .words("layer_types")
        .into_iter()
        .flatten()
        .find(|kind| !LAYER_KINDS.contains(&kind.as_str()))
    {
        return Err(ModelError::Layer {
            architecture: name,
            kind: other.chars().take(60).collect(),
        });
    }
    let unknown: Vec<&str> = keys
        .iter()
        .filter(|(key, value)| sizes(key) && !nothing(value) && !HARMLESS.contains(&key.as_str()))
        .filter(|(key, _)| !CHANGES.iter().any(|(change, _, _)| begins(key, change)))
        .map(|(key, _)| key.as_str())
        .take(8)
        .collect();
    let mut remarks = Vec::new();
    if !unknown.is_empty() {
        remarks.push(format!(
            "the config has keys that may size a layer and that gemmtune does not know: {}; compare the plan with the shapes of a server's log",
            unknown.join(", ")
        ));
    }
    Ok((family, remarks))
}

/// Whether `name`, a class or a model type, belongs to a refused architecture.
fn refused(name: &str) -> Option<&'static str> {
    let letters = |text: &str| text.replace('_', "").to_ascii_lowercase();
    let plain = letters(name);
    let found = REFUSED
        .iter()
        .find(|(begin, _)| plain.starts_with(&letters(begin)));
    found.map(|(_, why)| *why)
}

/// Whether a key matches an entry of `CHANGES`: exactly, or by prefix where the entry ends in `_`.
fn begins(key: &str, change: &str) -> bool {
    key == change || (change.ends_with('_') && key.starts_with(change))
}

/// Values that disable a key.
fn nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Array(list) => list.is_empty(),
        Value::Object(keys) => keys.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(true) => false,
    }
}

/// Whether a key's name suggests that it sizes something.
fn sizes(key: &str) -> bool {
    const ENDS: &[&str] = &[
        "_rank",
        "_dim",
        "_heads",
        "_groups",
        "_size",
        "_sizes",
        "_layers",
        "_experts",
        "_pattern",
        "_width",
        "_proj",
        "_layer_types",
        "_layer_freq",
    ];
    const OTHERS: &[&str] = &[
        "vision", "audio", "image", "video", "mm_", "rope_", "max_", "aux_", "patch_",
    ];
    ENDS.iter().any(|end| key.ends_with(end)) && !OTHERS.iter().any(|other| key.starts_with(other))
}
