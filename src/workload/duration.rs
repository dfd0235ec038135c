//! Durations as people read them, and as they write them in `gemmtune.toml` and on the command line: `90s`, `30m`, `1h30m`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration for people: `4.2 ms`, `0.42 s`, `12 s`, `3 min 05 s`, `2 h 03 min`; `–` for what is none.
pub fn spoken(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "–".to_owned();
    }
    if seconds < 0.1 {
        // A sum of nothing is -0.0; adding zero takes the sign off.
        return format!("{:.1} ms", seconds * 1e3 + 0.0);
    }
    if seconds < 10.0 {
        return format!("{seconds:.2} s");
    }
    in_whole_seconds(seconds)
}

/// The same for an estimate, of which no part of a second is known: `6 s`, `3 min 05 s`.
pub fn in_whole_seconds(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

/// A span of time with whole seconds, written as `1h30m`, `45m`, `90s` or `2d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(Duration);

/// Why a text is not a span of time.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("read `{text}` as a span of time such as `90s`, `30m` or `1h30m`: {reason}")]
pub struct SpanError {
    text: String,
    reason: &'static str,
}

impl Span {
    /// A span of `seconds`.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// The span as the standard library's duration.
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        let wrong = |reason| SpanError {
            text: text.to_owned(),
            reason,
        };
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(wrong("it is empty"));
        }
        let mut total: u64 = 0;
        // Largest unit first and each at most once, so that `30m1h` is caught as a slip.
        let mut last_unit = u64::MAX;
        while !rest.is_empty() {
            let digits = rest
                .find(|character: char| !character.is_ascii_digit())
                .ok_or_else(|| wrong("a unit is missing: s, m, h or d"))?;
            let count: u64 = rest[..digits]
                .parse()
                .map_err(|_| wrong("a whole number is expected before each unit"))?;
            let unit = match rest.as_bytes()[digits] {
                b's' => 1,
                b'm' => 60,
                b'h' => 3600,
                b'd' => 86_400,
                _ => return Err(wrong("the units are s, m, h and d")),
            };
            if unit >= last_unit {
                return Err(wrong("units go from large to small, each once"));
            }
            last_unit = unit;
            total = count
                .checked_mul(unit)
                .and_then(|seconds| total.checked_add(seconds))
                .ok_or_else(|| wrong("it is too long"))?;
            rest = &rest[digits + 1..];
        }
        if total == 0 {
            return Err(wrong("it is zero"));
        }
        Ok(Self::seconds(total))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = self.0.as_secs();
        for (unit, letter) in [(86_400, 'd'), (3600, 'h'), (60, 'm'), (1, 's')] {
            if left >= unit {
                write!(formatter, "{}{letter}", left / unit)?;
                left %= unit;
            }
        }
        Ok(())
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_say_them() {
        for (seconds, text) in [
            (-0.0, "0.0 ms"),
            (0.0042, "4.2 ms"),
            (0.5, "0.50 s"),
            (12.4, "12 s"),
            (59.96, "1 min 00 s"),
            (185.2, "3 min 05 s"),
            (7400.0, "2 h 03 min"),
            (f64::NAN, "–"),
        ] {
            assert_eq!(spoken(seconds), text);
        }
        assert_eq!(in_whole_seconds(6.07), "6 s", "an estimate");
    }

    #[test]
    fn spans_are_read_and_written_back_in_their_shortest_form() {
        for (text, seconds, written) in [
            ("90s", 90, "1m30s"),
            ("30m", 1800, "30m"),
            ("1h30m", 5400, "1h30m"),
            ("2d", 172_800, "2d"),
        ] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span, Span::seconds(seconds));
            assert_eq!(span.to_string(), written);
        }
    }

    #[test]
    fn slips_are_refused_with_the_reason() {
        let said = [
            "",
            "30",
            "m",
            "30m1h",
            "1.5h",
            "-3m",
            "0s",
            "30µ",
            "99999999999999999999d",
            "999999999999999999d",
        ]
        .map(|text| text.parse::<Span>().unwrap_err().to_string());
        insta::assert_snapshot!(said.join("\n"), @"
        read `` as a span of time such as `90s`, `30m` or `1h30m`: it is empty
        read `30` as a span of time such as `90s`, `30m` or `1h30m`: a unit is missing: s, m, h or d
        read `m` as a span of time such as `90s`, `30m` or `1h30m`: a whole number is expected before each unit
        read `30m1h` as a span of time such as `90s`, `30m` or `1h30m`: units go from large to small, each once
        read `1.5h` as a span of time such as `90s`, `30m` or `1h30m`: the units are s, m, h and d
        read `-3m` as a span of time such as `90s`, `30m` or `1h30m`: a whole number is expected before each unit
        read `0s` as a span of time such as `90s`, `30m` or `1h30m`: it is zero
        read `30µ` as a span of time such as `90s`, `30m` or `1h30m`: the units are s, m, h and d
        read `99999999999999999999d` as a span of time such as `90s`, `30m` or `1h30m`: a whole number is expected before each unit
        read `999999999999999999d` as a span of time such as `90s`, `30m` or `1h30m`: it is too long
        ");
    }
}
