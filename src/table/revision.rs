//! What differs between aiter revisions: columns, keys, and how a file says which operation it is for.
//!
//! Source of every list: aiter, the tuner scripts under `csrc/` and `aiter/ops/gemm_op_a8w8.py`,
//! `gemm_op_a4w4.py`, read at the four commits below and at main of late September 2026.

use std::fmt;
use std::str::FromStr;

use crate::shape::Op;

/// An aiter revision whose rules this program knows, oldest first.
///
/// Trees in between behave like one of these per feature; what a tree can do is read from its files,
/// never from its version number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Revision {
    /// Tag v0.1.7, commit de14bec0ca, November 2025.
    A,
    /// Tag v0.1.9, commit 2d714384fa, December 2025.
    B,
    /// Commit 303a583c89, April 2026: libtype, strict merges, no gfx column.
    P,
    /// Commit e4048607a5, August 2026: gfx column, kernels passed by name.
    H,
    /// Main after ROCm/aiter#5586, September 2026: a block-scaled GEMM without a row runs Triton above an M of its
    /// architecture, a row may name Triton, and the largest row of a per-channel GEMM serves every larger M.
    N,
}

impl Revision {
    /// Every revision, oldest first.
    pub const ALL: [Self; 5] = [Self::A, Self::B, Self::P, Self::H, Self::N];

    /// Those that a table or a log of today may belong to, where nobody says which.
    pub const TODAY: [Self; 2] = [Self::H, Self::N];

    /// Tag or commit, as a person would look it up.
    pub const fn name(self) -> &'static str {
        match self {
            Self::A => "v0.1.7",
            Self::B => "v0.1.9",
            Self::P => "303a583c89",
            Self::H => "e4048607a5",
            Self::N => "aiter#5586",
        }
    }

    /// The letter by which arguments name it.
    pub const fn letter(self) -> char {
        match self {
            Self::A => 'A',
            Self::B => 'B',
            Self::P => 'P',
            Self::H => 'H',
            Self::N => 'N',
        }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// The text names no known revision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "name the aiter revision: `{0}` is none of A, B, P, H, N, v0.1.7, v0.1.9, 303a583c, e4048607, aiter#5586"
)]
pub struct UnknownRevision(pub String);

impl FromStr for Revision {
    type Err = UnknownRevision;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Commits are accepted at any length of at least seven digits, with or without `HEAD-`.
        let commit = text.strip_prefix("HEAD-").unwrap_or(text);
        let abbreviates = |whole: &str| commit.len() >= 7 && whole.starts_with(commit);
        match text {
            "A" | "a" | "v0.1.7" => Ok(Self::A),
            "B" | "b" | "v0.1.9" => Ok(Self::B),
            "P" | "p" => Ok(Self::P),
            "H" | "h" => Ok(Self::H),
            "N" | "n" | "aiter#5586" => Ok(Self::N),
            _ if abbreviates("303a583c89fe392a39cad7e45d616cc43bde3278") => Ok(Self::P),
            _ if abbreviates("e4048607a535ace3a2b51ded31b1c8c2d45c0879") => Ok(Self::H),
            _ => Err(UnknownRevision(text.to_owned())),
        }
    }
}

/// The last columns of every tuned table: which kernel, and what was measured of it.
pub const RESULT_COLUMNS: [&str; 7] = [
    "kernelId",
    "splitK",
    "us",
    "kernelName",
    "tflops",
    "bw",
    "errRatio",
];

/// Columns any tuner of any revision may write besides: no look-up compares them.
pub const NOTE_COLUMNS: [&str; 1] = ["_tag"];

/// The columns of a tuned table, in the order that revision's tuner writes them.
///
/// [`Op::TritonBlockFp8`] has no CSV at any revision; it gets the columns of [`Op::Blockscale`], so
/// that its results can be recorded in the same form.
pub fn tuned_columns(op: Op, revision: Revision) -> Vec<&'static str> {
    let mut columns = Vec::with_capacity(14);
    if revision >= Revision::H {
        columns.push("gfx");
    }
    columns.extend(["cu_num", "M", "N", "K"]);
    if has_weight_dtype(op, revision) {
        columns.push("q_dtype_w");
    }
    if has_libtype(op, revision) {
        columns.push("libtype");
    }
    columns.extend(RESULT_COLUMNS);
    columns
}

/// The columns of an untuned table: exactly the ones the tuner reads, because a further column makes
/// it tune the same shape twice (it drops duplicates before it drops columns).
pub fn untuned_columns(op: Op, revision: Revision) -> &'static [&'static str] {
    if has_weight_dtype(op, revision) {
        &["M", "N", "K", "q_dtype_w"]
    } else {
        &["M", "N", "K"]
    }
}

/// The columns that identify a row at look-up. `gfx` counts only when the table has that column.
pub fn key_columns(op: Op, revision: Revision) -> Vec<&'static str> {
    let mut columns = Vec::with_capacity(6);
    if revision >= Revision::H {
        columns.push("gfx");
    }
    columns.extend(["cu_num", "M", "N", "K"]);
    if has_weight_dtype(op, revision) {
        columns.push("q_dtype_w");
    }
    columns
}

/// Whether the tables of `op` are keyed by the weight's dtype too.
pub fn has_weight_dtype(op: Op, revision: Revision) -> bool {
    match op {
        Op::Bpreshuffle => true,
        Op::A8w8 => revision >= Revision::P,
        Op::Blockscale | Op::BlockscaleBpreshuffle | Op::A4w4 | Op::TritonBlockFp8 => false,
    }
}

/// Whether the tables of `op` say which library a kernel comes from.
pub fn has_libtype(op: Op, revision: Revision) -> bool {
    match op {
        Op::Blockscale | Op::BlockscaleBpreshuffle | Op::TritonBlockFp8 => revision >= Revision::P,
        Op::Bpreshuffle => revision >= Revision::B,
        Op::A8w8 | Op::A4w4 => false,
    }
}

/// The operation a kernel name of aiter's own naming belongs to, where the name alone says it.
///
/// CKTile blockscale names are shared by the plain and the pre-shuffled operation, so they say nothing.
pub fn op_of_kernel_name(name: &str) -> Option<Op> {
    const PREFIXES: [(&str, Op); 5] = [
        ("a8w8_blockscale_bpreshuffle_", Op::BlockscaleBpreshuffle),
        ("a8w8_blockscale_1x128x128_", Op::Blockscale),
        ("a8w8_bpreshuffle_", Op::Bpreshuffle),
        ("a8w8_rowwise_", Op::A8w8),
        ("a4w4_", Op::A4w4),
    ];
    PREFIXES
        .into_iter()
        .find(|(prefix, _)| name.starts_with(prefix))
        .map(|(_, op)| op)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_those_of_the_tuners() {
        let joined = |op, revision| tuned_columns(op, revision).join(",");
        assert_eq!(
            joined(Op::Blockscale, Revision::A),
            "cu_num,M,N,K,kernelId,splitK,us,kernelName,tflops,bw,errRatio"
        );
        assert_eq!(
            joined(Op::Blockscale, Revision::H),
            "gfx,cu_num,M,N,K,libtype,kernelId,splitK,us,kernelName,tflops,bw,errRatio"
        );
        assert_eq!(
            joined(Op::Bpreshuffle, Revision::B),
            "cu_num,M,N,K,q_dtype_w,libtype,kernelId,splitK,us,kernelName,tflops,bw,errRatio"
        );
        assert_eq!(
            joined(Op::A8w8, Revision::P),
            "cu_num,M,N,K,q_dtype_w,kernelId,splitK,us,kernelName,tflops,bw,errRatio"
        );
        assert_eq!(
            joined(Op::A4w4, Revision::H),
            "gfx,cu_num,M,N,K,kernelId,splitK,us,kernelName,tflops,bw,errRatio"
        );
    }

    #[test]
    fn revisions_read_back_by_letter_tag_and_commit() {
        for revision in Revision::ALL {
            assert_eq!(revision.name().parse(), Ok(revision));
        }
        assert_eq!("303a583c89fe".parse(), Ok(Revision::P));
        assert_eq!("HEAD-e4048607a5".parse(), Ok(Revision::H));
        assert!(
            "303a".parse::<Revision>().is_err(),
            "too short to name a commit"
        );
        assert!(
            "HEAD".parse::<Revision>().is_err(),
            "whatever it is today, it is another tomorrow"
        );
    }
}
