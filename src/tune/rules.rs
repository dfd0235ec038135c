//! How hard to try: the rules of a race for each kind of device and effort.

use super::protocol::Timing;
use super::race::{Rules, Rung};

/// How hard to try.
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

/// Drop factors of the rungs: ×2.0 after a handful of launches costs nothing (an estimate from five
/// iterations is within 10–20 % of the final one, as TileLang's autotuner found), ×1.05 is as fine as the
/// last rung can see.
const KEEP_WITHIN: [f64; 3] = [2.0, 1.25, 1.05];

/// Rules for a GPU, where one sample is tens of microseconds to milliseconds and jitter is small.
pub fn gpu_rules(effort: Effort) -> Rules {
    let timing = |samples, min_sample_us| Timing {
        warmups: 1,
        samples,
        min_sample_us,
        stop_above_us: None,
    };
    let rung = |index: usize, samples, min_sample_us, keep_at_most| Rung {
        timing: timing(samples, min_sample_us),
        keep_within: KEEP_WITHIN[index],
        keep_at_most,
    };
    match effort {
        Effort::Quick => Rules {
            rungs: vec![rung(0, 3, 50.0, 16), rung(1, 9, 100.0, 6)],
            expansions: 2,
            expansion_gain: 0.01,
            expand_around: 2,
            finalists: 3,
            run_off: timing(11, 200.0),
            looks: 2,
            min_gain: 0.005,
            false_wins: 0.05,
            max_err_ratio: MAX_ERR_RATIO,
        },
        Effort::Full => Rules {
            rungs: vec![
                rung(0, 3, 50.0, 32),
                rung(1, 10, 100.0, 12),
                rung(2, 40, 200.0, 6),
            ],
            expansions: 6,
            expansion_gain: 0.002,
            expand_around: 3,
            finalists: 5,
            run_off: timing(25, 400.0),
            looks: 3,
            min_gain: 0.005,
            false_wins: 0.05,
            max_err_ratio: MAX_ERR_RATIO,
        },
    }
}

/// Rules for CPU kernels: calls are longer, the machine is shared, and there is nothing to expand
/// because every kernel is in the list.
pub fn cpu_rules(effort: Effort) -> Rules {
    let timing = |samples, min_sample_us| Timing {
        warmups: 1,
        samples,
        min_sample_us,
        stop_above_us: None,
    };
    let rung = |index: usize, samples, min_sample_us, keep_at_most| Rung {
        timing: timing(samples, min_sample_us),
        keep_within: KEEP_WITHIN[index],
        keep_at_most,
    };
    match effort {
        Effort::Quick => Rules {
            rungs: vec![rung(0, 2, 300.0, 8), rung(1, 4, 500.0, 3)],
            finalists: 2,
            run_off: timing(9, 1000.0),
            looks: 2,
            ..gpu_rules(effort)
        },
        Effort::Full => Rules {
            rungs: vec![
                rung(0, 3, 500.0, 16),
                rung(1, 7, 1000.0, 6),
                rung(2, 15, 2000.0, 4),
            ],
            finalists: 3,
            run_off: timing(15, 2000.0),
            ..gpu_rules(effort)
        },
    }
}

/// The tuner of aiter rejects candidates with `errRatio` above 0.05 (`--errRatio`, default 0.05, aiter
/// `aiter/utility/base_tuner.py`). A kernel that rounds as the reference does is far below.
pub const MAX_ERR_RATIO: f64 = 0.05;
