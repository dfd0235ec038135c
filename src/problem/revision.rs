//! The aiter revisions whose rules are known.

use std::fmt;
use std::str::FromStr;

/// An aiter revision whose rules this program knows, oldest first.
///
/// Trees in between behave like one of these, feature by feature; what a tree can do is read from its files, never
/// from its version number.
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

    /// The revisions that a current table or log may belong to, where nothing names one.
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

/// The text does not name a known revision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "name the aiter revision: `{0}` is not one of A, B, P, H, N, v0.1.7, v0.1.9, 303a583c, e4048607, aiter#5586"
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

#[cfg(test)]
mod tests {
    use super::*;

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
