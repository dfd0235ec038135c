//! Whether the served model has experts, which account for most of its GEMM time.

use camino::Utf8Path;
use serde_json::Value;

use super::server::served;
use super::{Made, Subject};
use crate::workload::script::{Word, flag};

/// Why only the fused MoE is proposed where the server chooses its kernels itself.
pub(super) const ALONE: &str = "the model has experts, whose fused MoE is most of its FP8 GEMM time; `sglang-families` tunes its dense GEMMs in the same run";

/// The remark where the server's flags select a kind for its dense GEMMs.
pub(super) const TOO: &str = "the model has experts: their fused MoE is tuned in the same run where it is on SGLang's Triton kernel (`backend.fused_moe = \"leave\"` \
     leaves it); `backend.kind = \"sglang-moe\"` tunes it alone";

/// The `config.json` of the model's folder; null if it cannot be read.
pub(super) fn model_config(subject: &Subject<'_>, made: &Made<'_>) -> Value {
    let argv = &subject.found.argv;
    let model = flag(argv, &["--model-path", "--model"]).or_else(|| served(argv));
    let Some(model) = model.as_ref().and_then(Word::known) else {
        return Value::Null;
    };
    let folder = match &subject.found.folder {
        Word::Known(folder) => Utf8Path::new(folder).join(model),
        Word::Unknown { .. } => Utf8Path::new(model).to_owned(),
    };
    let text = (made.surroundings.read)(&folder.join("config.json"));
    text.and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default()
}

/// Whether the model's config has routed experts, and no flag moves them off SGLang's Triton kernel.
pub(super) fn there(subject: &Subject<'_>, made: &Made<'_>) -> bool {
    let argv = &subject.found.argv;
    let config = model_config(subject, made);
    let runner = flag(argv, &["--moe-runner-backend"]);
    let runner = runner.as_ref().map(|word| word.known().unwrap_or_default());
    names_experts(&config) && matches!(runner, None | Some("auto" | "triton"))
}

/// Whether a model's config has several routed experts, under any of the names that SGLang's models read.
fn names_experts(config: &Value) -> bool {
    const COUNTS: [&str; 3] = ["num_experts", "n_routed_experts", "num_local_experts"];
    // A vision model has its language model's numbers in a nested table.
    [config, &config["text_config"]].into_iter().any(|table| {
        let mut counts = COUNTS.iter().filter_map(|name| table[*name].as_u64());
        counts.any(|count| count > 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_known_by_the_names_of_each_model() {
        let of = |model: &str| {
            let path = format!(
                "{}/testdata/models/{model}.json",
                env!("CARGO_MANIFEST_DIR")
            );
            names_experts(&serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap())
        };
        for model in [
            "qwen3-30b-a3b",
            "deepseek-v3",
            "minimax-m2.5",
            "qwen3.5-35b-a3b",
        ] {
            assert!(of(model), "{model}");
        }
        assert!(!of("qwen3-8b"));
        assert!(names_experts(
            &serde_json::json!({"text_config": {"num_experts": 128}})
        ));
        assert!(!names_experts(&serde_json::json!({"num_local_experts": 1})));
    }
}
