//! What differs between releases of aiter in the look-up of a fused MoE.
//!
//! Source: `aiter/fused_moe.py` at every tag from v0.1.7 to v0.1.20.post1 and at the commits 303a583c and e4048607. Tags in
//! between behave as the last one named here; the letters are those of the dense look-up's revisions.

use std::fmt;
use std::str::FromStr;

use crate::table::revision::Revision;

/// A release whose look-up differs from the previous one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Release {
    /// v0.1.7, November 2025.
    V7,
    /// v0.1.9, December 2025.
    V9,
    /// v0.1.9.post1: another split of K on a miss.
    V9Post1,
    /// v0.1.10: no row of block-scaled FP8 is used.
    V10,
    /// v0.1.10.post2: only small ones are left out.
    V10Post2,
    /// v0.1.11: `_tag`, and rows for machines without FlyDSL.
    V11,
    /// v0.1.12, April 2026: powers of two up to 32768.
    V12,
    /// Commit 303a583c, April 2026: every row of block-scaled FP8 is used.
    P,
    /// v0.1.13: `xbf16`.
    V13,
    /// v0.1.14, May 2026: the activation is not compared; duplicates are allowed.
    V14,
    /// v0.1.16, June 2026: `gfx` in the key, one expert less under expert parallelism.
    V16,
    /// v0.1.16.post4: any tag except the fallback's.
    V16Post4,
    /// v0.1.17: Opus kernels on gfx950 only.
    V17,
    /// v0.1.18, July 2026: the activation is compared again.
    V18,
    /// v0.1.19.post1, August 2026: no longer compared.
    V19Post1,
    /// v0.1.20 and commit e4048607, August 2026.
    H,
}

/// Releases with the version from which they apply; commits between tags have none.
const RELEASES: [(Release, &str, [u32; 4]); 16] = [
    (Release::V7, "v0.1.7", [0, 1, 7, 0]),
    (Release::V9, "v0.1.9", [0, 1, 9, 0]),
    (Release::V9Post1, "v0.1.9.post1", [0, 1, 9, 1]),
    (Release::V10, "v0.1.10", [0, 1, 10, 0]),
    (Release::V10Post2, "v0.1.10.post2", [0, 1, 10, 2]),
    (Release::V11, "v0.1.11", [0, 1, 11, 0]),
    (Release::V12, "v0.1.12", [0, 1, 12, 0]),
    // In no tag: main between v0.1.12's branch and v0.1.13.
    (Release::P, "303a583c", [0, 1, 12, 1 << 20]),
    (Release::V13, "v0.1.13", [0, 1, 13, 0]),
    (Release::V14, "v0.1.14", [0, 1, 14, 0]),
    (Release::V16, "v0.1.16", [0, 1, 16, 0]),
    (Release::V16Post4, "v0.1.16.post4", [0, 1, 16, 4]),
    (Release::V17, "v0.1.17", [0, 1, 17, 0]),
    (Release::V18, "v0.1.18", [0, 1, 18, 0]),
    (Release::V19Post1, "v0.1.19.post1", [0, 1, 19, 1]),
    (Release::H, "v0.1.20", [0, 1, 20, 0]),
];

impl Release {
    /// The first tag, or the commit, that behaves this way.
    pub fn name(self) -> &'static str {
        RELEASES[self as usize].1
    }

    /// The one that a revision of the dense look-up belongs to. What main of September 2026 does was not read.
    pub fn of_revision(revision: Revision) -> Self {
        match revision {
            Revision::A => Self::V7,
            Revision::B => Self::V9,
            Revision::P => Self::P,
            Revision::H | Revision::N => Self::H,
        }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// The text does not name a release whose look-up is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "name the aiter release: `{0}` is no tag from v0.1.7 on, and neither 303a583c nor e4048607"
)]
pub struct UnknownRelease(pub String);

impl FromStr for Release {
    type Err = UnknownRelease;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(revision) = text.parse::<Revision>() {
            return Ok(Self::of_revision(revision));
        }
        let unknown = || UnknownRelease(text.to_owned());
        let version = text.strip_prefix('v').unwrap_or(text);
        let (numbers, post) = version.split_once(".post").unwrap_or((version, "0"));
        let mut parts = [0; 4];
        let mut given = numbers.split('.');
        for part in &mut parts[..3] {
            let text = given.next().ok_or_else(unknown)?;
            *part = text.parse().map_err(|_| unknown())?;
        }
        parts[3] = post.parse().map_err(|_| unknown())?;
        if given.next().is_some() || parts[3] >= 1 << 20 {
            return Err(unknown());
        }
        let known = RELEASES
            .iter()
            .rev()
            .find(|(.., from)| *from <= parts)
            .filter(|(release, ..)| *release != Self::P);
        known.map(|(release, ..)| *release).ok_or_else(unknown)
    }
}

/// How the tokens of a forward become the `token` of a key (`get_padded_M`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// 1 to 16 are 16; powers of two to 1024, which serves everything above.
    FromSixteen,
    /// Powers of two to 1024, then 1024 below 2048, 2048 below 16384, and 16384.
    Steps,
    /// Powers of two to 32768.
    Powers,
    /// Powers of two to 32768, which serves everything below 131072, and 131072.
    TwoTiers,
}

/// The token of the last tier, whose look-up falls back to [`LOWER_TIER`].
pub(super) const UPPER_TIER: u32 = 131_072;
/// The token from which on everything above shares one row.
pub(super) const LOWER_TIER: u32 = 32_768;

impl Rounding {
    /// The `token` looked up for a forward of `tokens` rows.
    pub fn token(self, tokens: u32) -> u32 {
        let power = tokens
            .max(1)
            .checked_next_power_of_two()
            .unwrap_or(u32::MAX);
        match self {
            Self::FromSixteen if tokens <= 16 => 16,
            Self::FromSixteen => power.min(1024),
            Self::Steps => match tokens {
                0..1024 => power,
                1024..2048 => 1024,
                2048..16384 => 2048,
                _ => 16384,
            },
            Self::TwoTiers if tokens >= UPPER_TIER => UPPER_TIER,
            Self::Powers | Self::TwoTiers => power.min(LOWER_TIER),
        }
    }

    /// The tokens at which rows can be found, ascending.
    pub fn tokens(self) -> Vec<u32> {
        let mut tokens: Vec<u32> = (0..=17).map(|power| self.token(1 << power)).collect();
        tokens.dedup();
        tokens
    }
}

/// How a look-up treats a row's activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationRule {
    Matched,
    /// It is compared; if no row has it, the first row with any activation serves.
    MatchedFirst,
    /// It is not compared: the first row in file order serves.
    Ignored,
}

/// Which rows are used, by their `_tag` column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagRule {
    /// All: the column is not known.
    All,
    /// Untagged ones; those tagged `flydsl_fallback` serve where FlyDSL is needed but missing.
    Untagged,
    /// All except those tagged `flydsl_fallback`.
    NoFallback,
}

/// The tag of rows for machines without FlyDSL.
pub const FALLBACK_TAG: &str = "flydsl_fallback";

/// Rows of block-scaled FP8 with Silu that are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bypass {
    Nothing,
    /// Those with a token times topk of up to 128.
    Small,
    All,
}

/// The look-up rules of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    pub release: Release,
    /// How tokens are rounded.
    pub rounding: Rounding,
    /// Whether the architecture is part of the key.
    pub keys_gfx: bool,
    /// How the activation is treated.
    pub activation: ActivationRule,
    /// Whether a look-up with an expert mask uses one expert less than `topk_ids` has columns.
    pub drops_expert: bool,
    /// How tags are treated.
    pub tags: TagRule,
    /// Whether two rows with one key make the first call raise.
    pub repeats_raise: bool,
    /// Rows that are ignored.
    pub bypass: Bypass,
    /// Whether `xbf16` of a one-stage row is read.
    pub reads_xbf16: bool,
}

impl Rules {
    /// The rules of `release`.
    pub fn new(release: Release) -> Self {
        use Release as R;
        Self {
            release,
            rounding: match release {
                R::V7 => Rounding::FromSixteen,
                R::V9 | R::V9Post1 | R::V10 | R::V10Post2 | R::V11 => Rounding::Steps,
                R::V12 | R::P | R::V13 => Rounding::Powers,
                _ => Rounding::TwoTiers,
            },
            keys_gfx: release >= R::V16,
            activation: match release {
                R::V18 => ActivationRule::MatchedFirst,
                _ if release >= R::V14 => ActivationRule::Ignored,
                _ => ActivationRule::Matched,
            },
            drops_expert: release >= R::V16,
            tags: match release {
                _ if release < R::V11 => TagRule::All,
                // v0.1.16.post4 has it from main, v0.1.17 was branched off before that.
                R::V16Post4 => TagRule::NoFallback,
                _ if release >= R::V18 => TagRule::NoFallback,
                _ => TagRule::Untagged,
            },
            repeats_raise: release < R::V14,
            bypass: match release {
                R::V10 => Bypass::All,
                R::V9 | R::V9Post1 | R::V10Post2 | R::V11 | R::V12 => Bypass::Small,
                _ => Bypass::Nothing,
            },
            reads_xbf16: release >= R::V13,
        }
    }

    /// `topk` of the key for a call with `topk` columns, with or without an expert mask.
    pub fn topk(self, topk: u32, ep: bool) -> u32 {
        topk - u32::from(ep && self.drops_expert && topk > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_between_two_releases_behave_as_the_older() {
        let of = |text: &str| text.parse::<Release>();
        assert_eq!(of("v0.1.7.post3"), Ok(Release::V7));
        assert_eq!(of("0.1.12.post2"), Ok(Release::V12));
        assert_eq!(of("v0.1.15.post3"), Ok(Release::V14));
        assert_eq!(of("v0.1.16.post6"), Ok(Release::V16Post4));
        assert_eq!(of("v0.1.20.post1"), Ok(Release::H));
        assert_eq!(of("303a583c89fe"), Ok(Release::P));
        assert_eq!(of("H"), Ok(Release::H));
        for text in [
            "",
            "v0.1",
            "v0.1.6",
            "main",
            "v0.1.x",
            "v0.1.16.post",
            "v0.1.12.3",
        ] {
            assert!(of(text).is_err(), "{text}");
        }
    }

    #[test]
    fn releases_stand_in_the_order_of_their_versions() {
        for (at, (release, ..)) in RELEASES.iter().enumerate() {
            assert_eq!(*release as usize, at);
        }
        assert!(RELEASES.is_sorted_by_key(|(.., version)| *version));
    }

    #[test]
    fn tokens_round_as_each_release_does() {
        assert_eq!(Rounding::Powers.tokens().len(), 16);
        assert_eq!(Rounding::TwoTiers.tokens().len(), 17);
        assert_eq!(
            Rounding::FromSixteen.tokens(),
            [16, 32, 64, 128, 256, 512, 1024]
        );
        assert_eq!(Rounding::Steps.token(8192), 2048);
        assert_eq!(Rounding::TwoTiers.token(131_071), 32_768);
        assert_eq!(Rounding::Powers.token(u32::MAX), 32_768);
    }
}
