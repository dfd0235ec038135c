//! Which family of tables a file belongs to, judged by its name.
//!
//! aiter merges `configs/<stem>.csv` with every `model_configs/*<stem>*.csv`, with one stem for each family
//! (`aiter/jit/core.py`, `AITER_CONFIG.*_FILE`). So everything between the data types (`a8w8`) and the word `tuned`
//! is the family: `a8w8_blockscale_group32_tuned_gemm` is not a table of `a8w8_blockscale_tuned_gemm`. What precedes
//! and follows is a model's name.
//!
//! The stems of e4048607 and of main of September 2026 were read, and the names of the 422 CSV files that aiter's
//! branches have had below `aiter/configs`.

use crate::problem::Op;

/// A family of tables.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// The tables of an operation.
    Op(Op),
    /// Tables of something else, by the stem of their names, such as `a6w6_blockscale_tuned_gemm`.
    Other(String),
}

/// Words that begin a stem without data types, or precede them in one.
const BEGINNINGS: [&str; 13] = [
    "batched", "bf16", "conv3d", "fhmoe", "fmoe", "fp4", "fp8", "fp8fp4", "gdn", "gdr", "grouped",
    "mha", "moe",
];

/// Stems of other families that contain one of ours.
const LONGER: [&str; 1] = ["flydsl_a8w8_bpreshuffle_tuned_gemm"];

/// Words that belong to a stem after the data types: enough to identify a family if no `tuned` follows.
const PARTS: [&str; 14] = [
    "abpreshuffle",
    "asm",
    "blockscale",
    "bmm",
    "bpreshuffle",
    "cktile",
    "flydsl",
    "group32",
    "mxfp4",
    "mxfp8",
    "mxscale",
    "opus",
    "ptpc",
    "triton",
];

/// Words after `tuned` that make it another family; `gemm` is the usual one.
const KINDS: [&str; 6] = ["batched", "bmm", "fhmoe", "fmoe", "grouped", "moe"];

/// The stem of an operation's tables, which aiter globs for; `None` for an operation that aiter does not have.
pub fn stem(op: Op) -> Option<&'static str> {
    op.aiter().map(|aiter| aiter.stem)
}

/// The family of the last part of `path`; `None` for a name that is not one of aiter's, such as `table.csv`.
pub fn of_file_name(path: &str) -> Option<Family> {
    let file = path.rsplit('/').next().unwrap_or(path);
    let name = file.strip_suffix(".csv").unwrap_or(file);
    // This covers nearly every name in a log.
    if let Some(op) = Op::ALL.into_iter().find(|op| stem(*op) == Some(name)) {
        return Some(Family::Op(op));
    }
    let words: Vec<&str> = name.split(['_', '-', '.', ' ']).collect();
    let Some(tuned) = words
        .iter()
        .position(|word| matches!(*word, "tuned" | "untuned"))
    else {
        return by_parts(&words);
    };
    let kinds = words[tuned + 1..]
        .iter()
        .take_while(|word| KINDS.contains(word))
        .count();
    let kind = &words[tuned + 1..tuned + 1 + kinds];
    let tuned_name = name.replace("untuned", "tuned");
    if let Some(stem) = LONGER.iter().find(|stem| tuned_name.contains(**stem)) {
        return Some(Family::Other((*stem).to_owned()));
    }
    // What precedes data types is a model's name or arbitrary, with two exceptions.
    let head = &words[..tuned];
    let start = head
        .iter()
        .position(|word| matches!(*word, "batched" | "grouped") || is_types(word))
        .or_else(|| head.iter().position(|word| BEGINNINGS.contains(word)));
    let own = start.map_or(&[][..], |start| &words[start..tuned]);
    if own.is_empty() && kind.is_empty() {
        return by_parts(&words);
    }
    if kind.is_empty()
        && let Some(op) = op_of(own)
    {
        return Some(Family::Op(op));
    }
    let gemm = words.get(tuned + 1 + kinds) == Some(&"gemm");
    let mut stem = own.to_vec();
    stem.push("tuned");
    stem.extend_from_slice(kind);
    stem.extend(gemm.then_some("gemm"));
    Some(Family::Other(stem.join("_")))
}

/// The family of a name without `tuned`: its data types and the words after them that occur only in stems.
fn by_parts(words: &[&str]) -> Option<Family> {
    let types = words.iter().position(|word| is_types(word))?;
    let mut parts = vec![words[types]];
    let behind = words[types + 1..].iter();
    parts.extend(behind.filter(|word| PARTS.contains(word) || BEGINNINGS.contains(word)));
    Some(op_of(&parts).map_or_else(|| Family::Other(parts.join("_")), Family::Op))
}

fn op_of(words: &[&str]) -> Option<Op> {
    let words = words.join("_");
    Op::ALL.into_iter().find(|op| {
        op.aiter().is_some_and(|aiter| {
            aiter.stem.strip_suffix("_tuned_gemm") == Some(&words)
                || aiter.short_stems.contains(&words.as_str())
        })
    })
}

/// Whether `word` is the data types of activation and weight: `a8w8`, `a16w4`, `a16wi4`.
fn is_types(word: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    word.strip_prefix('a')
        .and_then(|rest| rest.split_once('w'))
        .is_some_and(|(a, w)| digits(a) && digits(w.strip_prefix('i').unwrap_or(w)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(name: &str) -> String {
        match of_file_name(name) {
            Some(Family::Other(stem)) => stem,
            found => panic!("{name}: {found:?}"),
        }
    }

    #[test]
    fn names_of_aiters_own_stems_are_the_operations_whatever_the_model() {
        for (name, op) in [
            ("configs/a8w8_blockscale_tuned_gemm.csv", Op::Blockscale),
            ("a8w8_blockscale_untuned_gemm_ds_v3.csv", Op::Blockscale),
            ("dsv4_a8w8_blockscale_tuned_gemm.csv", Op::Blockscale),
            ("a8w8_blockscale_tuned_gemm_gfx1201.csv", Op::Blockscale),
            ("minimax_a8w8_blockscale_tuned.csv", Op::Blockscale),
            ("my_a8w8_blockscale.csv", Op::Blockscale),
            ("tuned_a8w8_blockscale.csv", Op::Blockscale),
            ("asm_a8w8_blockscale_tuned_gemm.csv", Op::Blockscale),
            ("triton_a8w8_blockscale_tuned_gemm.csv", Op::Blockscale),
            ("asm_a8w8_gemm.csv", Op::A8w8),
            ("my-a8w8_blockscale_tuned_gemm-01ab.csv", Op::Blockscale),
            (
                "glm5_a8w8_blockscale_bpreshuffle_tuned_gemm.csv",
                Op::BlockscaleBpreshuffle,
            ),
            (
                "a8w8_blockscale_bpreshuffle_tuned_gemm_qwen3.5_397b.csv",
                Op::BlockscaleBpreshuffle,
            ),
            ("dsv3_a8w8_bpreshuffle_tuned_gemm.csv", Op::Bpreshuffle),
            (
                "a8w8_bpreshuffle_tuned_gemm_qwen3_5_397b_a17b_mxfp4_attnfp8.csv",
                Op::Bpreshuffle,
            ),
            ("a8w8_tuned_gemm.csv", Op::A8w8),
            ("kimik3_a4w4_blockscale_tuned_gemm.csv", Op::A4w4),
            ("a4w4_blockscale_untuned_gemm.csv", Op::A4w4),
        ] {
            assert_eq!(of_file_name(name), Some(Family::Op(op)), "{name}");
        }
    }

    #[test]
    fn a_longer_stem_is_a_family_of_its_own() {
        // Each of these names existed below `aiter/configs` in some branch of ROCm/aiter.
        for (name, stem) in [
            (
                "dsv41_a8w8_blockscale_group32_tuned_gemm.csv",
                "a8w8_blockscale_group32_tuned_gemm",
            ),
            (
                "dsv4_a8w8_blockscale_mxscale_bpreshuffle_tuned_gemm.csv",
                "a8w8_blockscale_mxscale_bpreshuffle_tuned_gemm",
            ),
            (
                "dsv4_a8w8_blockscale_bpreshuffle_opus_tuned_gemm.csv",
                "a8w8_blockscale_bpreshuffle_opus_tuned_gemm",
            ),
            (
                "a8w8_blockscale_abpreshuffle_tuned_gemm.csv",
                "a8w8_blockscale_abpreshuffle_tuned_gemm",
            ),
            (
                "a8w8_bpreshuffle_mxfp8_untuned_gemm.csv",
                "a8w8_bpreshuffle_mxfp8_tuned_gemm",
            ),
            (
                "a8w8_bpreshuffle_cktile_tuned_gemm.csv",
                "a8w8_bpreshuffle_cktile_tuned_gemm",
            ),
            (
                "flydsl_a8w8_bpreshuffle_tuned_gemm.csv",
                "flydsl_a8w8_bpreshuffle_tuned_gemm",
            ),
            (
                "a6w6_blockscale_tuned_gemm_flux.csv",
                "a6w6_blockscale_tuned_gemm",
            ),
            (
                "dsv41_a16w8_mxfp8_asm_tuned_gemm.csv",
                "a16w8_mxfp8_asm_tuned_gemm",
            ),
            ("a6w4_flydsl_tuned_gemm.csv", "a6w4_flydsl_tuned_gemm"),
            (
                "a8w8_blockscale_bpreshuffle_tuned_bmm.csv",
                "a8w8_blockscale_bpreshuffle_tuned_bmm",
            ),
            ("a8w8_tuned_batched_gemm.csv", "a8w8_tuned_batched_gemm"),
            (
                "dsv4_batched_gemm_a8w8_blockscale_mxscale_tuned.csv",
                "batched_gemm_a8w8_blockscale_mxscale_tuned",
            ),
            (
                "a8w8_blockscale_tuned_fmoe_glm5.csv",
                "a8w8_blockscale_tuned_fmoe",
            ),
            ("grouped_gemm_mxfp8_tuned.csv", "grouped_gemm_mxfp8_tuned"),
            ("dsv3_bf16_tuned_gemm.csv", "bf16_tuned_gemm"),
            ("kimik2_fp4_tuned_fmoe.csv", "fp4_tuned_fmoe"),
            ("untuned_fmoe.csv", "tuned_fmoe"),
            (
                "mine_a8w8_blockscale_group32.csv",
                "a8w8_blockscale_group32",
            ),
            (
                "asm_a8w8_blockscale_mxscale_tuned_gemm.csv",
                "a8w8_blockscale_mxscale_tuned_gemm",
            ),
        ] {
            assert_eq!(other(name), stem);
        }
    }

    #[test]
    fn a_name_that_is_not_of_aiters_making_says_nothing() {
        for name in [
            "table.csv",
            "tuned.csv",
            "my_tuned_gemm.csv",
            "blockscale.csv",
            "/a8w8_bpreshuffle/mine.csv",
            "",
            "_",
            "awards_tuned.csv",
        ] {
            assert_eq!(of_file_name(name), None, "{name}");
        }
    }
}
