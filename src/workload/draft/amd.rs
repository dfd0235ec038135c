//! Which of aiter's kernels to tune for a server with aiter: those configured by CSV tables, or its Triton GEMM.

use serde_json::Value;

use super::experts::OnAiter;
use super::server::flag_is_on;
use super::{Made, Subject, experts};
use crate::table::serves::WithAiter;
use crate::workload::script::Word;

/// The variable that names the table of aiter's block-scaled operation.
const TABLE: &str = "AITER_CONFIG_GEMM_A8W8_BLOCKSCALE";

/// The backend that `init` proposes, with a remark.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Proposal {
    /// The value of `backend.kind`.
    pub(super) kind: &'static str,
    pub(super) why: Option<String>,
    /// Remarks for the reader.
    pub(super) notes: Vec<String>,
}

/// The backend to tune for the given server.
pub(super) fn proposal(subject: &Subject<'_>, made: &Made<'_>) -> Proposal {
    let version = subject.resolved("version").and_then(Value::as_str);
    let config = experts::model_config(subject, made);
    let quantized = &config["quantization_config"];
    let in_blocks = (!quantized.is_null()).then(|| quantized["weight_block_size"].is_array());
    let wants_ck = flag_is_on(subject, made, "SGLANG_AITER_GFX942_BLOCKSCALE_USE_CK");
    let has_table = subject.found.env.get(TABLE).and_then(Word::known).is_some();
    let gfx = made.gfx.as_deref();
    let dense = propose(version, gfx, wants_ck, (in_blocks, has_table));
    with_experts(dense, experts::on_aiter(subject, made))
}

/// The proposal for a model with these experts, most of whose GEMM time is their fused MoE.
fn with_experts(dense: Proposal, found: Option<OnAiter>) -> Proposal {
    let Some(found) = found else {
        return dense;
    };
    let takes_over = found.is_tuned && dense.kind != "aiter";
    Proposal {
        kind: if found.is_tuned { "aiter" } else { dense.kind },
        why: if takes_over {
            Some(experts::NOT_TRITON.to_owned())
        } else {
            dense.why
        },
        notes: dense.notes.into_iter().chain([found.note]).collect(),
    }
}

/// `in_blocks`: whether the weights have a scale for each block, if the model's config tells.
fn propose(
    version: Option<&str>,
    gfx: Option<&str>,
    wants_ck: bool,
    (in_blocks, has_table): (Option<bool>, bool),
) -> Proposal {
    let aiter = |note: Option<String>| Proposal {
        kind: "aiter",
        why: None,
        notes: note.into_iter().collect(),
    };
    if in_blocks == Some(false) {
        return aiter(None);
    }
    let unread = if has_table {
        format!(", so the table that `{TABLE}` names is not read there")
    } else {
        String::new()
    };
    let other = "`aiter` tunes kernels that CSV tables name and sends the GEMMs to them that become faster, `aiter-triton` tunes the rows of the \
                 Triton GEMM and switches nothing";
    match (
        version.map(|version| (version, WithAiter::on(version, gfx, wants_ck))),
        in_blocks,
    ) {
        (Some((version, Some(WithAiter::Triton))), Some(true)) => Proposal {
            kind: "aiter-triton",
            why: Some(format!(
                "SGLang {version} runs this model's block-FP8 GEMMs with aiter's Triton kernel{unread}"
            )),
            notes: vec![format!(
                "SGLang {version} runs block-FP8 GEMMs with aiter's Triton kernel here, which reads JSON files and no CSV table{unread}: {other}"
            )],
        },
        (Some((_, Some(WithAiter::Ck))), _) => aiter(None),
        (Some((version, Some(WithAiter::ByShape))), _) => aiter(Some(format!(
            "SGLang {version} on gfx950 runs some block-FP8 weights with aiter's Triton GEMM, which reads no CSV table: {other}"
        ))),
        (Some((version, Some(WithAiter::Triton))), _) => aiter(Some(format!(
            "if the weights have a scale for each block, SGLang {version} runs them with aiter's Triton GEMM, which reads no CSV table{unread}: {other}"
        ))),
        (Some((_, None)) | None, _) => aiter(Some(format!(
            "from 0.5.6 on SGLang runs block-FP8 GEMMs on MI300X and MI325X with aiter's Triton GEMM, which reads no CSV table{unread}: {other}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(
        version: Option<&str>,
        gfx: Option<&str>,
        in_blocks: Option<bool>,
    ) -> (&'static str, bool) {
        let found = propose(version, gfx, false, (in_blocks, false));
        (found.kind, !found.notes.is_empty())
    }

    #[test]
    fn the_triton_gemm_is_proposed_where_it_is_known_to_serve() {
        let (gfx942, gfx950) = (Some("gfx942"), Some("gfx950"));
        assert_eq!(
            kind(Some("0.5.16"), gfx942, Some(true)),
            ("aiter-triton", true)
        );
        // Before 0.5.10, on every architecture.
        assert_eq!(
            kind(Some("0.5.9"), None, Some(true)),
            ("aiter-triton", true)
        );
        // Where it is not known, or differs by architecture: a kind that works either way, and how to choose the
        // other.
        assert_eq!(kind(Some("0.5.16"), gfx950, Some(true)), ("aiter", true));
        assert_eq!(kind(Some("0.5.16"), gfx942, None), ("aiter", true));
        assert_eq!(kind(Some("0.5.16"), None, Some(true)), ("aiter", true));
        assert_eq!(kind(None, gfx942, Some(true)), ("aiter", true));
        // CK serves, or the weights are not scaled by block.
        assert_eq!(kind(Some("0.5.5"), gfx942, Some(true)), ("aiter", false));
        assert_eq!(kind(Some("0.5.16"), gfx942, Some(false)), ("aiter", false));
        let ck = propose(Some("0.5.22"), gfx942, true, (Some(true), false));
        assert_eq!((ck.kind, ck.notes.len()), ("aiter", 0));
    }

    #[test]
    fn a_table_that_the_path_does_not_read_is_named() {
        let found = propose(Some("0.5.16"), Some("gfx942"), false, (Some(true), true));
        insta::assert_snapshot!(found.notes.concat(), @"SGLang 0.5.16 runs block-FP8 GEMMs with aiter's Triton kernel here, which reads JSON files and no CSV table, so the table that `AITER_CONFIG_GEMM_A8W8_BLOCKSCALE` names is not read there: `aiter` tunes kernels that CSV tables name and sends the GEMMs to them that become faster, `aiter-triton` tunes the rows of the Triton GEMM and switches nothing");
    }

    #[test]
    fn what_tunes_the_experts_is_proposed_before_what_tunes_the_dense_gemms_alone() {
        let dense = || propose(Some("0.5.16"), Some("gfx942"), false, (Some(true), false));
        assert_eq!(dense().kind, "aiter-triton");
        let experts = |is_tuned| {
            let note = "of the experts".to_owned();
            with_experts(dense(), Some(OnAiter { is_tuned, note }))
        };
        let tuned = experts(true);
        assert_eq!(
            (tuned.kind, tuned.why.as_deref()),
            ("aiter", Some(super::experts::NOT_TRITON))
        );
        assert_eq!(tuned.notes.len(), 2);
        assert_eq!(experts(false).kind, "aiter-triton");
        assert_eq!(with_experts(dense(), None), dense());
    }
}
