//! What serves a shape today against the row that was tuned for it, and which of the two should serve it.
//!
//! Pure. Both times are of SGLang's own linear, so that a kernel that needs another quantiser or a copy is charged
//! for it.

use serde::{Deserialize, Serialize};

use super::found::KernelTime;
use super::serving::{Served, TODAY, TUNED};
use crate::problem::Shape;
use crate::stats::paired::{LEVEL, MIN_PAIRS, ratio_interval};
use crate::stats::sample::median;

/// Minimum gain beyond the interval: `min_gain` of the race's rules for a GPU (`src/tune/rules.rs`).
const BAND: f64 = 0.005;

/// The outcome for one shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// The tuned row is faster beyond the noise.
    Faster,
    /// The two cannot be distinguished.
    Same,
    /// The tuned row is slower beyond the noise.
    Slower,
    /// One of them was not timed.
    NotTimed,
}

/// How much faster the tuned row is, with its interval. Above 1 is faster.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gain {
    /// Time today over time tuned.
    pub median: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

/// A shape, what serves it today, and what was tuned for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Contest {
    pub shape: Shape,
    /// What serves it today, for display: `Triton`, `the row in use`.
    pub today: String,
    /// The kernel in it that took longest, by the profiler's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub today_kernel: Option<String>,
    /// The library of the tuned row: `CK`, `CKTile`.
    pub tuned: String,
    /// A call of SGLang's linear today, µs.
    pub today_us: Option<f64>,
    /// The same with the tuned row, µs.
    pub tuned_us: Option<f64>,
    /// Time today divided by time tuned.
    pub gain: Option<Gain>,
    /// Whether the two were timed alternately in one process.
    pub in_turn: bool,
    pub finding: Finding,
    /// Whether the tuned row serves the shape from now on.
    pub takes_over: bool,
    /// Why it takes over although it is not faster, or does not although it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
    /// Why there is no time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<String>,
}

impl Contest {
    /// Judges `tuned`, the times on the tuned path, against `today`: alternate rounds where `tuned` has both,
    /// otherwise the rounds of two processes.
    pub fn judge(
        shape: &Shape,
        names: (&str, &str),
        today: Option<&Served>,
        tuned: Option<&Served>,
    ) -> Self {
        let times = |served: Option<&Served>, way: &str| {
            served
                .filter(|served| served.said.is_none())
                .and_then(|served| served.us.get(way))
                .filter(|times| !times.is_empty())
                .cloned()
                .unwrap_or_default()
        };
        let in_turn = tuned.is_some_and(|served| served.us.contains_key(TODAY));
        let before_from = if in_turn { tuned } else { today };
        let (before, after) = (times(before_from, TODAY), times(tuned, TUNED));
        let gain = if in_turn {
            in_turn_gain(&before, &after)
        } else {
            apart_gain(&before, &after)
        };
        let said = match gain {
            Some(_) => None,
            None => [today, tuned]
                .into_iter()
                .flatten()
                .find_map(|served| served.said.clone())
                .or_else(|| Some("it was not timed".to_owned())),
        };
        // Two processes may differ by as much as one kernel's times do.
        let band = if in_turn { BAND } else { KernelTime::TOLERANCE };
        let finding = match gain {
            None => Finding::NotTimed,
            Some(gain) if gain.low > 1.0 + band => Finding::Faster,
            Some(gain) if gain.high < 1.0 / (1.0 + band) => Finding::Slower,
            Some(_) => Finding::Same,
        };
        Self {
            shape: shape.clone(),
            today: names.0.to_owned(),
            today_kernel: before_from.and_then(|served| served.kernels.get(TODAY).cloned()),
            tuned: names.1.to_owned(),
            today_us: median(&before),
            tuned_us: median(&after),
            gain,
            in_turn,
            finding,
            takes_over: finding == Finding::Faster,
            because: None,
            said,
        }
    }

    /// The outcome for the tuned row, as a clause.
    pub fn outcome(&self) -> String {
        let ratio = self.gain.map(|gain| gain.median);
        match (self.finding, ratio) {
            (Finding::Faster, Some(ratio)) => format!("{} {ratio:.2}x faster", self.tuned),
            (Finding::Slower, Some(ratio)) => {
                format!("{} {:.2}x slower", self.tuned, 1.0 / ratio)
            }
            (Finding::Same, Some(ratio)) => {
                format!("{} no faster beyond the noise ({ratio:.3}x)", self.tuned)
            }
            _ => format!(
                "not timed: {}",
                self.said.as_deref().unwrap_or("no row was tuned")
            ),
        }
    }
}

/// Alternate rounds form pairs.
fn in_turn_gain(before: &[f64], after: &[f64]) -> Option<Gain> {
    let pairs: Vec<(f64, f64)> = before.iter().copied().zip(after.iter().copied()).collect();
    if pairs.len() < MIN_PAIRS {
        return None;
    }
    ratio_interval(&pairs, LEVEL).map(|interval| Gain {
        median: interval.median,
        low: interval.low,
        high: interval.high,
    })
}

/// Rounds of two processes cannot be paired: the interval spans from the worst case to the best.
fn apart_gain(before: &[f64], after: &[f64]) -> Option<Gain> {
    if before.len().min(after.len()) < MIN_PAIRS {
        return None;
    }
    let usable = |times: &[f64]| times.iter().all(|us| us.is_finite() && *us > 0.0);
    let least = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
    let most = |times: &[f64]| times.iter().copied().fold(0.0, f64::max);
    (usable(before) && usable(after)).then(|| Gain {
        median: median(before).unwrap_or(f64::NAN) / median(after).unwrap_or(f64::NAN),
        low: least(before) / most(after),
        high: most(before) / least(after),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Op;

    fn shape() -> Shape {
        Shape {
            op: Op::Blockscale,
            m: 4096,
            n: 512,
            k: 7168,
            dtype: String::new(),
        }
    }

    fn served(ways: &[(&str, f64, f64)]) -> Served {
        Served {
            m: 4096,
            n: 512,
            k: 7168,
            us: ways
                .iter()
                .map(|(way, us, spread)| {
                    let round = |i: i32| us * (1.0 + spread * (f64::from(i) - 2.5) / 2.5);
                    ((*way).to_owned(), (0..6).map(round).collect())
                })
                .collect(),
            kernels: [(TODAY.to_owned(), "_gemm_kernel".to_owned())].into(),
            clock: "device".to_owned(),
            said: None,
        }
    }

    fn judged(today: Option<&Served>, tuned: Option<&Served>) -> Contest {
        Contest::judge(&shape(), ("Triton", "CK"), today, tuned)
    }

    #[test]
    fn rounds_in_turn_are_judged_as_pairs() {
        let both = |today, tuned| served(&[(TODAY, today, 0.05), (TUNED, tuned, 0.05)]);
        // Both of a pair drift together, and a common drift is no noise in their ratio.
        let won = judged(None, Some(&both(50.0, 49.0)));
        assert_eq!(won.finding, Finding::Faster);
        assert!(won.in_turn && won.takes_over);
        assert_eq!(won.today_kernel.as_deref(), Some("_gemm_kernel"));
        let same = judged(None, Some(&both(50.0, 49.9)));
        assert_eq!(same.finding, Finding::Same, "0.2 % is within the band");
        assert_eq!(same.outcome(), "CK no faster beyond the noise (1.002x)");
        let lost = judged(None, Some(&both(50.0, 59.0)));
        assert_eq!(lost.finding, Finding::Slower);
        assert_eq!(lost.outcome(), "CK 1.18x slower");
    }

    #[test]
    fn two_processes_must_differ_by_more_than_their_rounds_and_the_tolerance() {
        let today = |us, spread| served(&[(TODAY, us, spread)]);
        let tuned = |us, spread| served(&[(TUNED, us, spread)]);
        let finding = |one: &Served, other: &Served| judged(Some(one), Some(other)).finding;
        assert_eq!(
            finding(&today(50.0, 0.001), &tuned(45.0, 0.001)),
            Finding::Faster
        );
        assert_eq!(
            finding(&today(50.0, 0.001), &tuned(49.0, 0.001)),
            Finding::Same,
            "2 % apart"
        );
        assert_eq!(
            finding(&today(50.0, 0.1), &tuned(45.0, 0.1)),
            Finding::Same,
            "rounds overlap"
        );
        assert_eq!(
            finding(&today(50.0, 0.001), &tuned(59.0, 0.001)),
            Finding::Slower
        );
    }

    #[test]
    fn what_has_no_time_wins_nothing() {
        let failed = Served {
            us: std::collections::BTreeMap::new(),
            said: Some("today: out of resource".to_owned()),
            ..served(&[])
        };
        let contest = judged(Some(&failed), Some(&served(&[(TUNED, 1.0, 0.0)])));
        assert_eq!(contest.finding, Finding::NotTimed);
        assert_eq!(contest.outcome(), "not timed: today: out of resource");
        assert!(!judged(None, None).takes_over);
        // With too few rounds there is no interval.
        let mut few = served(&[(TODAY, 50.0, 0.0), (TUNED, 10.0, 0.0)]);
        for times in few.us.values_mut() {
            times.truncate(5);
        }
        assert!(!judged(None, Some(&few)).takes_over);
    }
}
