//! A part of a whole, as `gemmtune.toml` and the command line give it: a number from 0 to 1.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

/// A number from 0 to 1, such as 0.1.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Share(f64);

/// Every number from 0 to 1 equals itself.
impl Eq for Share {}

/// Why something is not a share.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("a number from 0 to 1 is expected, such as 0.1, and not {0}")]
pub struct ShareError(String);

impl Share {
    /// The number.
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for Share {
    type Error = ShareError;

    fn try_from(number: f64) -> Result<Self, Self::Error> {
        if (0.0..=1.0).contains(&number) {
            Ok(Self(number))
        } else {
            Err(ShareError(number.to_string()))
        }
    }
}

impl FromStr for Share {
    type Err = ShareError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number: f64 = text.parse().map_err(|_| ShareError(format!("`{text}`")))?;
        Self::try_from(number)
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = f64::deserialize(deserializer)?;
        Self::try_from(number).map_err(serde::de::Error::custom)
    }
}

/// As a percentage: `17.0 %`.
impl fmt::Display for Share {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:.1} %", self.0 * 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_part_of_a_whole_is_no_share() {
        for (text, number) in [("0", 0.0), ("0.17", 0.17), ("1", 1.0)] {
            assert_eq!(text.parse(), Ok(Share(number)));
        }
        let said = ["-0.1", "1.5", "17%", "NaN", "inf", ""]
            .map(|text| text.parse::<Share>().unwrap_err().to_string());
        insta::assert_snapshot!(said.join("\n"), @"
        a number from 0 to 1 is expected, such as 0.1, and not -0.1
        a number from 0 to 1 is expected, such as 0.1, and not 1.5
        a number from 0 to 1 is expected, such as 0.1, and not `17%`
        a number from 0 to 1 is expected, such as 0.1, and not NaN
        a number from 0 to 1 is expected, such as 0.1, and not inf
        a number from 0 to 1 is expected, such as 0.1, and not ``
        ");
        assert!(serde_json::from_str::<Share>("2").is_err());
        assert_eq!(Share(0.17).to_string(), "17.0 %");
    }
}
