//! Release numbers, and which SGLang releases are supported.
//!
//! A number is a hint: forks, nightlies and patched trees keep the number of the release they are based on. What a
//! tree *does* is read from its code ([`super::era`]); the number only decides what is refused outright.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// Oldest SGLang release that gemmtune tunes.
pub const OLDEST_SGLANG: &str = "0.5.6";

/// The fallback of setuptools-scm and `sglang/version.py` for an unknown version (0.5.7 and later).
const UNKNOWN: &str = "0.0.0.dev0";

/// A release number as Python packages write it (PEP 440): `0.5.10.post1`, `0.5.6rc1`, `0.1.12.post2.dev33+g303a583c8`.
///
/// Ordered as PEP 440 orders them, except that the local part after `+` is ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    text: String,
    numbers: Vec<u64>,
    /// Alpha, beta or candidate, with its number; absent sorts after any.
    pre: Option<(u8, u64)>,
    post: Option<u64>,
    /// Absent sorts after any.
    dev: Option<u64>,
}

/// A text that is not a release number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("read `{0}` as a release number")]
pub struct ReleaseError(String);

impl FromStr for Release {
    type Err = ReleaseError;

    fn from_str(text: &str) -> Result<Self, ReleaseError> {
        let wrong = || ReleaseError(text.to_owned());
        let plain = text.trim().trim_start_matches('v').to_ascii_lowercase();
        let plain = plain.split('+').next().unwrap_or_default();
        let mut release = Self {
            text: text.trim().to_owned(),
            numbers: Vec::new(),
            pre: None,
            post: None,
            dev: None,
        };
        let digits_end = |part: &str| {
            part.find(|character: char| !character.is_ascii_digit())
                .unwrap_or(part.len())
        };
        for part in plain.split(['.', '-', '_']) {
            let (number, mut rest) = part.split_at(digits_end(part));
            if !number.is_empty() {
                release.numbers.push(number.parse().map_err(|_| wrong())?);
            }
            // `6rc1` has a number and a marker, `post1` only a marker.
            while !rest.is_empty() {
                let word_end = rest
                    .find(|character: char| !character.is_ascii_alphabetic())
                    .unwrap_or(rest.len());
                let (word, tail) = rest.split_at(word_end);
                let (count, tail) = tail.split_at(digits_end(tail));
                let count = if count.is_empty() {
                    0
                } else {
                    count.parse().map_err(|_| wrong())?
                };
                match word {
                    "a" | "alpha" => release.pre = Some((0, count)),
                    "b" | "beta" => release.pre = Some((1, count)),
                    "rc" | "c" | "pre" => release.pre = Some((2, count)),
                    "post" => release.post = Some(count),
                    "dev" => release.dev = Some(count),
                    _ => return Err(wrong()),
                }
                rest = tail;
            }
        }
        if release.numbers.is_empty() {
            return Err(wrong());
        }
        Ok(release)
    }
}

impl Release {
    /// Whether the tree does not know its own number.
    pub fn is_unknown(&self) -> bool {
        self.numbers.iter().all(|number| *number == 0)
    }

    fn key(&self) -> (Vec<u64>, (u8, u64), u64, u64) {
        let mut numbers = self.numbers.clone();
        while numbers.last() == Some(&0) {
            numbers.pop();
        }
        let pre = match (self.pre, self.post, self.dev) {
            (Some(pre), ..) => pre,
            // `1.0.dev1` comes before `1.0a1`.
            (None, None, Some(_)) => (0, 0),
            _ => (3, 0),
        };
        let post = self.post.map_or(0, |post| post + 1);
        (numbers, pre, post, self.dev.unwrap_or(u64::MAX))
    }
}

impl Ord for Release {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key()
            .cmp(&other.key())
            .then_with(|| self.text.cmp(&other.text))
    }
}

impl PartialOrd for Release {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Release {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// Why an SGLang release is not tuned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unserved {
    #[error(
        "SGLang {0} is older than {OLDEST_SGLANG}: its block-FP8 linear calls CK as its default, with no Triton \
         path beside it, so there is no safe baseline to compare with"
    )]
    TooOld(Release),
}

/// Whether the SGLang release that a tree claims to be can be tuned. A tree that does not know its number (`None`,
/// `0.0.0.dev0`, something unreadable) is accepted: its code decides.
pub fn served(version: Option<&str>) -> Result<(), Unserved> {
    let Some(Ok(release)) = version
        .filter(|text| *text != UNKNOWN)
        .map(str::parse::<Release>)
    else {
        return Ok(());
    };
    let oldest: Release = OLDEST_SGLANG.parse().expect("a constant of this file");
    if release.is_unknown() || release >= oldest {
        Ok(())
    } else {
        Err(Unserved::TooOld(release))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(text: &str) -> Release {
        text.parse().unwrap()
    }

    #[test]
    fn releases_are_ordered_as_python_orders_them() {
        let ordered = [
            "0.5.5",
            "0.5.6.dev3",
            "0.5.6a1",
            "0.5.6rc1",
            "0.5.6",
            "0.5.6.post2.dev12",
            "0.5.6.post2",
            "0.5.7",
            "0.5.10.post1",
            "v0.5.11",
            "0.6",
        ];
        for pair in ordered.windows(2) {
            assert!(release(pair[0]) < release(pair[1]), "{pair:?}");
        }
        assert_eq!(release("0.6").key(), release("0.6.0").key());
    }

    #[test]
    fn only_releases_known_to_be_too_old_are_refused() {
        for version in [
            None,
            Some("0.0.0.dev0"),
            Some("main"),
            Some("0.5.6"),
            Some("0.5.23+rocm720"),
        ] {
            assert_eq!(served(version), Ok(()), "{version:?}");
        }
        let said = ["0.5.5", "0.4.9.post6", "0.5.6.dev1", "0.5.6rc1"]
            .map(|version| served(Some(version)).unwrap_err().to_string());
        insta::assert_snapshot!(said.join("\n"), @"
        SGLang 0.5.5 is older than 0.5.6: its block-FP8 linear calls CK as its default, with no Triton path beside it, so there is no safe baseline to compare with
        SGLang 0.4.9.post6 is older than 0.5.6: its block-FP8 linear calls CK as its default, with no Triton path beside it, so there is no safe baseline to compare with
        SGLang 0.5.6.dev1 is older than 0.5.6: its block-FP8 linear calls CK as its default, with no Triton path beside it, so there is no safe baseline to compare with
        SGLang 0.5.6rc1 is older than 0.5.6: its block-FP8 linear calls CK as its default, with no Triton path beside it, so there is no safe baseline to compare with
        ");
    }
}
