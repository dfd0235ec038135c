//! What an aiter tree reads and does for a call of its fused MoE.
//!
//! Source: `aiter/fused_moe.py` and `aiter/jit/core.py` at every tag from v0.1.7 to v0.1.20.post1, at 303a583c and at e4048607. Reads
//! files, changes none.

use camino::{Utf8Path, Utf8PathBuf};

use super::aiter::{self, AiterError, Tables};
use crate::problem::op::fused_moe_aiter::{STEM, VARIABLE};
use crate::table::fmoe::rules::Release;

/// Failed to determine what a tree does.
#[derive(Debug, thiserror::Error)]
pub enum AiterMoeError {
    /// The tree does not read the variable.
    #[error(
        "find where `{0}` reads a table of the fused MoE: no `{VARIABLE}` in aiter/jit/core.py"
    )]
    NoVariable(Utf8PathBuf),
    /// The look-up is not one of the known ones.
    #[error("tell how `{path}` looks a fused MoE up: {why}")]
    Unknown {
        path: Utf8PathBuf,
        why: &'static str,
    },
    /// A file cannot be read.
    #[error(transparent)]
    Aiter(#[from] AiterError),
    #[error(transparent)]
    Read(#[from] std::io::Error),
}

/// The tables that the tree of `package` uses, where `set` returns the value of an environment variable.
pub fn tables(
    package: &Utf8Path,
    set: impl Fn(&str) -> Option<String>,
) -> Result<Tables, AiterMoeError> {
    aiter::named_by(package, VARIABLE, STEM, set)?
        .ok_or_else(|| AiterMoeError::NoVariable(package.to_owned()))
}

/// The release whose look-up the tree of `package` has, judged by the passages in which they differ. Trees before
/// v0.1.12 are refused: 303a583c is the oldest that `run` tunes.
pub fn release(package: &Utf8Path) -> Result<Release, AiterMoeError> {
    let path = package.join("fused_moe.py");
    let text = crate::store::file::read(&path)?;
    of_text(&text).map_err(|why| AiterMoeError::Unknown { path, why })
}

fn of_text(text: &[u8]) -> Result<Release, &'static str> {
    let has = |mark: &str| memchr::memmem::find(text, mark.as_bytes()).is_some();
    if !has("def get_2stage_cfgs(") {
        return Err("it has no `get_2stage_cfgs`");
    }
    // The largest token, in `get_padded_M`.
    if !has("32768") {
        return Err("it is older than v0.1.12");
    }
    if !has("_ACT_TYPE_DISABLED") {
        return Ok(if has("(token * topk) <= 128") {
            Release::V12
        } else if has("xbf16") {
            Release::V13
        } else {
            Release::P
        });
    }
    if !has("topk -= int(is_ep)") {
        return Ok(Release::V14);
    }
    // The key includes the activation as text again.
    if has("        str(activation),\n        str(dtype),") {
        return Ok(Release::V18);
    }
    let any_tag = has("[\"_tag\"].fillna(\"\") != \"flydsl_fallback\"");
    Ok(match (any_tag, has("is_opus_a8w4_stage2_kernel")) {
        (false, false) => Release::V16,
        (true, false) => Release::V16Post4,
        (false, true) => Release::V17,
        (true, true) if has("both w1 and w2 must be marked") => Release::H,
        (true, true) => Release::V19Post1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_look_up_is_told_by_the_texts_it_alone_has() {
        let key = "        activation,\n        str(dtype),\n";
        let text_key = "        str(activation),\n        str(dtype),\n";
        let (untagged, any) = (
            "[\"_tag\"].fillna(\"\") == \"\"",
            "[\"_tag\"].fillna(\"\") != \"flydsl_fallback\"",
        );
        let opus = "is_opus_a8w4_stage2_kernel";
        let newer = format!("_ACT_TYPE_DISABLED topk -= int(is_ep){key}");
        for (marks, release) in [
            (format!("(token * topk) <= 128 {text_key}"), Release::V12),
            (text_key.to_owned(), Release::P),
            (format!("xbf16 {text_key}"), Release::V13),
            (format!("xbf16 _ACT_TYPE_DISABLED {key}"), Release::V14),
            (format!("{newer}{untagged}"), Release::V16),
            (format!("{newer}{any}"), Release::V16Post4),
            (format!("{newer}{untagged}{opus}"), Release::V17),
            (
                format!("_ACT_TYPE_DISABLED topk -= int(is_ep){text_key}{any}{opus}"),
                Release::V18,
            ),
            (format!("{newer}{any}{opus}"), Release::V19Post1),
            (
                format!("{newer}{any}{opus} both w1 and w2 must be marked"),
                Release::H,
            ),
        ] {
            let text = format!("def get_2stage_cfgs(\n32768\n{marks}");
            assert_eq!(of_text(text.as_bytes()), Ok(release), "{marks}");
        }
        assert!(of_text(b"def get_2stage_cfgs(\n16384").is_err());
        assert!(of_text(b"32768").is_err());
    }
}
