//! The rules of a race for each kind of device and effort.

use super::protocol::Timing;
use super::race::{Rules, Rung};
use crate::problem::op::ERR_RATIO_LIMIT;

/// How thorough a race is.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Default,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    /// Two rungs, few samples: for a first table in minutes.
    #[default]
    Quick,
    /// Three rungs, many samples, wide search.
    Full,
}

/// Drop factors of the rungs: ×2.0 after a few launches costs nothing (an estimate from five
/// iterations is within 10–20 % of the final one, as TileLang's autotuner found), ×1.05 is as fine as the
/// last rung can see.
const KEEP_WITHIN: [f64; 3] = [2.0, 1.25, 1.05];

fn timing(samples: u32, min_sample_us: f64) -> Timing {
    Timing {
        warmups: 1,
        samples,
        min_sample_us,
        stop_above_us: None,
    }
}

/// Rung `index` of up to `samples` samples, at least `at_least` of them.
fn rung(
    index: usize,
    samples: u32,
    at_least: u32,
    min_sample_us: f64,
    keep_at_most: usize,
) -> Rung {
    Rung {
        timing: timing(samples, min_sample_us),
        at_least,
        keep_within: KEEP_WITHIN[index],
        keep_at_most,
    }
}

/// Rules for a GPU, where one sample is tens of microseconds to milliseconds and jitter is small.
pub fn gpu_rules(effort: Effort) -> Rules {
    match effort {
        Effort::Quick => Rules {
            rungs: vec![rung(0, 3, 3, 50.0, 16), rung(1, 9, 5, 100.0, 6)],
            patience: 64,
            enough_us: 20e3,
            expansions: 2,
            expansion_gain: 0.01,
            expand_around: 2,
            finalists: 3,
            run_off: timing(11, 200.0),
            run_off_at_least: 9,
            looks: 2,
            min_gain: 0.005,
            false_wins: FALSE_WINS,
            max_err_ratio: ERR_RATIO_LIMIT,
        },
        Effort::Full => Rules {
            rungs: vec![
                rung(0, 3, 3, 50.0, 32),
                rung(1, 10, 5, 100.0, 12),
                rung(2, 40, 10, 200.0, 6),
            ],
            patience: usize::MAX,
            enough_us: 100e3,
            expansions: 6,
            expansion_gain: 0.002,
            expand_around: 3,
            finalists: 5,
            run_off: timing(25, 400.0),
            run_off_at_least: 11,
            looks: 3,
            min_gain: 0.005,
            false_wins: FALSE_WINS,
            max_err_ratio: ERR_RATIO_LIMIT,
        },
    }
}

/// Rules for CPU kernels: calls take up to a second, the machine is shared, and all kernels are in the
/// list from the start (expansion adds split-K only).
pub fn cpu_rules(effort: Effort) -> Rules {
    match effort {
        // Two challengers and two looks: 7 of 7 pairs is the least that proves a win at
        // 0.05 / 4 (1/2^7 = 0.008).
        Effort::Quick => Rules {
            rungs: vec![rung(0, 2, 1, 300.0, 6), rung(1, 4, 2, 500.0, 3)],
            patience: 12,
            enough_us: 40e3,
            expansions: 1,
            finalists: 2,
            run_off: timing(9, 1000.0),
            run_off_at_least: 7,
            min_gain: 0.01,
            ..gpu_rules(effort)
        },
        Effort::Full => Rules {
            rungs: vec![
                rung(0, 3, 2, 500.0, 16),
                rung(1, 7, 3, 1000.0, 6),
                rung(2, 15, 5, 2000.0, 4),
            ],
            enough_us: 500e3,
            finalists: 3,
            run_off: timing(15, 2000.0),
            run_off_at_least: 9,
            min_gain: 0.01,
            ..gpu_rules(effort)
        },
    }
}

/// Largest probability that equal candidates unseat the incumbent: the tuner's promise, divided among challengers and
/// looks.
const FALSE_WINS: f64 = 0.05;
