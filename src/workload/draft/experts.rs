//! Whether the served model has experts, which account for most of its GEMM time.

use camino::Utf8Path;
use serde_json::Value;

use super::server::served;
use super::{Made, Subject};
use crate::plan::experts::{Weights, are_there};
use crate::workload::script::{Word, flag};

/// Why only the fused MoE is proposed where the server chooses its kernels itself.
pub(super) const ALONE: &str = "the model has experts, whose fused MoE is most of its FP8 GEMM time; `sglang-families` tunes its dense GEMMs in the same run";

/// The remark where the server's flags select a kind for its dense GEMMs.
pub(super) const TOO: &str = "the model has experts: their fused MoE is tuned in the same run where it is on SGLang's Triton kernel (`backend.fused_moe = \"leave\"` \
     leaves it); `backend.kind = \"sglang-moe\"` tunes it alone";

/// What is said where a server on AMD runs without aiter.
pub(super) const IN_TRITON: &str = "the model has experts, whose fused MoE then is SGLang's Triton kernel too: `backend.kind = \"sglang-moe\"` tunes it";

/// Why `aiter` is proposed for experts that it tunes, where the dense GEMMs alone would say `aiter-triton`.
pub(super) const NOT_TRITON: &str =
    "the model has experts, and their fused MoE is tuned with `aiter` only";

/// What a server with aiter does with the model's experts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OnAiter {
    /// Whether `backend.kind = "aiter"` tunes them.
    pub(super) is_tuned: bool,
    /// What is said of it.
    pub(super) note: String,
}

/// What is said of the experts of a server with aiter; nothing where the model's config names none.
pub(super) fn on_aiter(subject: &Subject<'_>, made: &Made<'_>) -> Option<OnAiter> {
    let weights = Weights::of_model(&model_config(subject, made))?;
    let runner = flag(&subject.found.argv, &["--moe-runner-backend"]);
    of_weights(weights, runner.as_ref().map(Word::text))
}

/// `runner` is what `--moe-runner-backend` says.
fn of_weights(weights: Weights, runner: Option<&str>) -> Option<OnAiter> {
    let left = |note: String| {
        Some(OnAiter {
            is_tuned: false,
            note,
        })
    };
    match (runner, weights.why_left()) {
        // Up to 0.5.10 aiter served whatever the flag said (`Fp8MoEMethod.apply`).
        (Some("triton"), None) => left(
            "the server says `--moe-runner-backend triton`: from 0.5.11 on its experts then run in SGLang's Triton kernel, whose tables \
             `backend.kind = \"sglang-moe\"` tunes; without the flag `aiter` tunes aiter's fused MoE in the same run as the dense GEMMs"
                .to_owned(),
        ),
        (None | Some("auto" | "aiter"), None) => Some(OnAiter {
            is_tuned: true,
            note: "the model has experts: aiter's fused MoE of them is tuned in the same run, and alone where no dense GEMM of the model is one that \
                   is tuned (`backend.fused_moe = \"leave\"` leaves it)"
                .to_owned(),
        }),
        (Some(_), None) => None,
        (_, Some(why)) => left(format!("of the model's experts nothing is tuned: {why}")),
    }
}

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
    are_there(&config) && matches!(runner, None | Some("auto" | "triton"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_experts_on_aiter_it_is_said_whether_they_are_tuned() {
        let said =
            |weights, runner| of_weights(weights, runner).map(|said| (said.is_tuned, said.note));
        for runner in [None, Some("auto"), Some("aiter")] {
            let (is_tuned, note) = said(Weights::Blocks, runner).unwrap();
            assert!(is_tuned && note.contains("backend.fused_moe"), "{note}");
        }
        let (is_tuned, note) = said(Weights::Blocks, Some("triton")).unwrap();
        assert!(!is_tuned && note.contains("sglang-moe"), "{note}");
        assert_eq!(said(Weights::Blocks, Some("flashinfer_trtllm")), None);
        for weights in [Weights::PerToken, Weights::Fp4] {
            let (is_tuned, note) = said(weights, None).unwrap();
            assert!(!is_tuned && note.contains("nothing is tuned"), "{note}");
        }
    }
}
