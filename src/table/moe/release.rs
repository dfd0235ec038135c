//! What differs between SGLang's releases in how a fused-MoE table is found and used.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// An SGLang release by the first three numbers of its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Release(pub u32, pub u32, pub u32);

/// The text does not name a release.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read `{0}` as a version of SGLang, such as 0.5.23 or 0.5.12.post1")]
pub struct BadRelease(pub String);

impl FromStr for Release {
    type Err = BadRelease;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim().trim_start_matches('v');
        let mut numbers = text.splitn(4, '.').map(|part| {
            let digits = part.bytes().take_while(u8::is_ascii_digit).count();
            part.get(..digits)?.parse::<u32>().ok()
        });
        let mut next = || numbers.next().flatten();
        match (next(), next(), next()) {
            (Some(major), Some(minor), Some(patch)) => Ok(Self(major, minor, patch)),
            _ => Err(BadRelease(text.to_owned())),
        }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Serialize for Release {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Where a release looks if the folder of the running Triton version does not have a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// In the folders of these versions, in this order, whatever else is on disk: up to 0.5.11.
    Listed(&'static [&'static str]),
    /// In every folder on disk, newest version first: from 0.5.12 on.
    EveryFolder,
}

/// The effect of an up and a down row with different `BLOCK_SIZE_M`; both GEMMs share one sort of the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// An `AssertionError` at the first call: up to 0.5.12.
    Raises,
    /// The down row gets the up row's value: from 0.5.13 on.
    Overridden,
}

const LISTED: &[&str] = &["3.4.0", "3.3.1", "3.2.0", "3.1.0"];

impl Release {
    /// The newest release whose rules are known here.
    pub const NEWEST: Self = Self(0, 5, 23);

    /// Where tables of other Triton versions are looked for.
    pub fn fallback(self) -> Fallback {
        if self < Self(0, 5, 12) {
            Fallback::Listed(LISTED)
        } else {
            Fallback::EveryFolder
        }
    }

    /// The effect of rows with different `BLOCK_SIZE_M`.
    pub fn mismatch(self) -> Mismatch {
        if self < Self(0, 5, 13) {
            Mismatch::Raises
        } else {
            Mismatch::Overridden
        }
    }

    /// Whether an up row may have `USE_TMA`. Before 0.5.18 it is removed only from the down row, and the launch
    /// raises on the name.
    pub fn takes_tma_of_up_row(self) -> bool {
        self >= Self(0, 5, 18)
    }

    /// The M by which rows are selected for a forward of `tokens`. Up to 0.5.10 the operation works in chunks of 64
    /// Ki tokens and looks up once for all complete ones (`CHUNK_SIZE` in `fused_moe.py`).
    pub fn looked_up_m(self, tokens: u32) -> u32 {
        if self < Self(0, 5, 11) {
            tokens.min(65536)
        } else {
            tokens
        }
    }

    /// Whether names that are looked for contain `per_channel_quant`: 0.5.5 does not pass it on.
    pub fn names_channels(self) -> bool {
        self >= Self(0, 5, 6)
    }

    /// Whether FP8 without scale blocks has another default on devices with little shared memory.
    pub fn knows_small_shared_memory(self) -> bool {
        self >= Self(0, 5, 14)
    }

    /// The Triton version of the PyTorch that the release requires (`Requires-Dist: torch==` of its wheels, and the
    /// Triton that PyTorch's CUDA wheel requires). A ROCm build may have another, which only the serving interpreter
    /// knows.
    pub fn required_triton(self) -> Option<&'static str> {
        match self {
            Self(0, 5, 5) => Some("3.4.0"),
            Self(0, 5, 6..=10) => Some("3.5.1"),
            Self(0, 5, 11..=17) => Some("3.6.0"),
            _ => None,
        }
    }
}

/// Module folder up to 0.5.10.
pub const OLD_FOLDER: &str = "srt/layers/moe/fused_moe_triton";
/// Module folder from 0.5.11 on.
pub const NEW_FOLDER: &str = "srt/layers/moe/moe_runner/triton_utils";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_read_by_its_first_three_numbers() {
        let read = |text: &str| text.parse::<Release>().ok();
        assert_eq!(read("0.5.12.post1"), Some(Release(0, 5, 12)));
        assert_eq!(read("v0.5.9"), Some(Release(0, 5, 9)));
        assert_eq!(read("0.5.24rc1"), Some(Release(0, 5, 24)));
        for bad in ["main", "", "0.5", "0.x.1", "99999999999.1.1"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_eras_end_where_the_wheels_change() {
        let of = |patch| Release(0, 5, patch);
        assert_eq!(of(11).fallback(), Fallback::Listed(LISTED));
        assert_eq!(of(12).fallback(), Fallback::EveryFolder);
        assert_eq!(of(12).mismatch(), Mismatch::Raises);
        assert_eq!(of(13).mismatch(), Mismatch::Overridden);
        assert_eq!(
            (of(10).looked_up_m(70_000), of(11).looked_up_m(70_000)),
            (65536, 70_000)
        );
    }
}
