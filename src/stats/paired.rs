//! The interval a verdict rests on: the median of paired log ratios between its own order statistics.
//!
//! If pairs are independent and each is as likely to fall below the true median as above it, the
//! number below it is binomial with p = 1/2, whatever the distribution. So the interval from the
//! k-th smallest to the k-th largest ratio holds the true median with exactly
//! 1 - 2·P(Bin(n, 1/2) < k): the sign test, turned round. At 95 % it exists from six pairs on.

use serde::{Deserialize, Serialize};

/// The fewest pairs with an exact interval of 95 %: smallest to largest of six covers 96.875 %, of
/// five 93.75 %.
pub const MIN_PAIRS: usize = 6;

/// The confidence an interval must reach to carry a verdict.
pub const LEVEL: f64 = 0.95;

/// A median with an interval between two order statistics and the exact confidence of that interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The median of the sample.
    pub median: f64,
    /// Lower end: the k-th smallest value.
    pub low: f64,
    /// Upper end: the k-th largest value.
    pub high: f64,
    /// Probability that such an interval holds the true median: exact, not nominal. At least
    /// [`LEVEL`] from [`MIN_PAIRS`] values on; below that, what smallest-to-largest has (0 for one).
    pub confidence: f64,
}

impl Interval {
    /// Applies an increasing function to the estimate and both ends; the confidence stays.
    #[must_use]
    pub fn map(self, increasing: impl Fn(f64) -> f64) -> Self {
        Self {
            median: increasing(self.median),
            low: increasing(self.low),
            high: increasing(self.high),
            confidence: self.confidence,
        }
    }
}

/// How many more pairs a verdict needs.
pub fn more_pairs_needed(pairs: usize) -> usize {
    MIN_PAIRS.saturating_sub(pairs)
}

/// The exact interval of the median of `values`: the narrowest symmetric pair of order statistics
/// whose confidence is at least `level`, or smallest-to-largest where none is. `None` for an empty
/// sample or one with a NaN.
pub fn median_interval(values: &[f64], level: f64) -> Option<Interval> {
    if values.iter().any(|value| value.is_nan()) {
        return None;
    }
    let sorted = super::sample::sorted(values);
    let median = super::sample::quantile_of_sorted(&sorted, 0.5)?;
    let (rank, confidence) = rank_and_confidence(sorted.len(), level);
    Some(Interval {
        median,
        low: sorted[rank - 1],
        high: sorted[sorted.len() - rank],
        confidence,
    })
}

/// The interval of the ratio `numerator / denominator` over pairs, computed on log ratios. `None`
/// when there is no pair or a value is not finite and positive (its ratio has no meaning).
pub fn ratio_interval(pairs: &[(f64, f64)], level: f64) -> Option<Interval> {
    let logs = pairs
        .iter()
        .map(|&(numerator, denominator)| log_ratio(numerator, denominator))
        .collect::<Option<Vec<f64>>>()?;
    Some(median_interval(&logs, level)?.map(f64::exp))
}

/// ln(numerator / denominator), when both are finite and positive.
pub fn log_ratio(numerator: f64, denominator: f64) -> Option<f64> {
    let usable = |value: f64| value.is_finite() && value > 0.0;
    (usable(numerator) && usable(denominator)).then(|| numerator.ln() - denominator.ln())
}

/// The largest rank k (1-based, from each end) whose interval has at least `level`, and its exact
/// confidence; rank 1 where none has.
fn rank_and_confidence(count: usize, level: f64) -> (usize, f64) {
    // 2^-count underflows past 1074; no benchmark has a thousand pairs, and the log form keeps the
    // recurrence exact enough far beyond.
    let log_half_power = -(count as f64) * std::f64::consts::LN_2;
    let mut log_choose = 0.0_f64;
    let mut below = 0.0_f64;
    let mut chosen = (1, 0.0);
    for rank in 1..=count.div_ceil(2) {
        // Add P(Bin = rank - 1).
        if rank > 1 {
            let drawn = (rank - 1) as f64;
            log_choose += ((count as f64 - drawn + 1.0) / drawn).ln();
        }
        below += (log_choose + log_half_power).exp();
        let confidence = (1.0 - 2.0 * below).max(0.0);
        if rank == 1 || confidence >= level {
            chosen = (rank, confidence);
        }
        if confidence < level {
            break;
        }
    }
    chosen
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::rng::SplitMix64;
    use super::*;

    /// The cases of one section of the values computed with scipy.
    pub(in super::super) fn reference(section: &str) -> Vec<serde_json::Value> {
        let document: serde_json::Value =
            serde_json::from_str(include_str!("../../testdata/stats/reference.json")).unwrap();
        let cases = document[section].as_array().unwrap().clone();
        assert!(!cases.is_empty());
        cases
    }

    /// A standard normal number (Box and Muller).
    fn normal(rng: &mut SplitMix64) -> f64 {
        let radius = (-2.0 * (1.0 - rng.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * rng.unit()).cos()
    }

    #[test]
    fn confidences_agree_with_the_binomial_of_scipy() {
        for case in reference("ranks") {
            let count = case["n"].as_u64().unwrap() as usize;
            let (rank, confidence) = rank_and_confidence(count, LEVEL);
            assert_eq!(rank as u64, case["rank"].as_u64().unwrap(), "n = {count}");
            assert!(
                (confidence - case["confidence"].as_f64().unwrap()).abs() < 1e-12,
                "n = {count}: {confidence}"
            );
        }
    }

    #[test]
    fn intervals_agree_with_the_quantile_test_of_scipy() {
        for case in reference("intervals") {
            let values: Vec<f64> = serde_json::from_value(case["values"].clone()).unwrap();
            let interval = median_interval(&values, LEVEL).unwrap();
            assert_eq!(Some(interval.low), case["low"].as_f64(), "{values:?}");
            assert_eq!(Some(interval.high), case["high"].as_f64(), "{values:?}");
        }
    }

    #[test]
    fn five_pairs_cannot_reach_the_level_and_six_can() {
        let five = median_interval(&[1.0, 2.0, 3.0, 4.0, 5.0], LEVEL).unwrap();
        assert_eq!((five.low, five.high), (1.0, 5.0));
        assert!((five.confidence - 0.9375).abs() < 1e-12);
        let six = median_interval(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], LEVEL).unwrap();
        assert!((six.confidence - 0.96875).abs() < 1e-12);
        assert_eq!(more_pairs_needed(5), 1);
        assert_eq!(more_pairs_needed(6), 0);
        assert_eq!(more_pairs_needed(0), 6);
    }

    #[test]
    fn one_value_has_no_confidence_at_all() {
        let one = median_interval(&[3.0], LEVEL).unwrap();
        assert_eq!((one.low, one.median, one.high), (3.0, 3.0, 3.0));
        assert_eq!(one.confidence.to_bits(), 0.0_f64.to_bits());
        assert_eq!(median_interval(&[], LEVEL), None);
        assert_eq!(median_interval(&[1.0, f64::NAN], LEVEL), None);
    }

    #[test]
    fn a_ratio_and_its_inverse_mirror_each_other() {
        let pairs = [
            (2.0, 1.0),
            (3.0, 1.0),
            (4.0, 1.0),
            (5.0, 1.0),
            (6.0, 1.0),
            (7.0, 1.0),
        ];
        let swapped = pairs.map(|(numerator, denominator)| (denominator, numerator));
        let there = ratio_interval(&pairs, LEVEL).unwrap();
        let back = ratio_interval(&swapped, LEVEL).unwrap();
        assert!((there.low * back.high - 1.0).abs() < 1e-12);
        assert!((there.median * back.median - 1.0).abs() < 1e-12);
        assert!((there.median - 20.0_f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn values_a_ratio_says_nothing_about_give_no_interval() {
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(log_ratio(bad, 1.0), None);
            assert_eq!(log_ratio(1.0, bad), None);
            assert_eq!(ratio_interval(&[(1.0, 1.0), (bad, 1.0)], LEVEL), None);
        }
    }

    #[test]
    fn a_thousand_pairs_still_have_an_exact_interval() {
        let values: Vec<f64> = (0..5000).map(f64::from).collect();
        let interval = median_interval(&values, LEVEL).unwrap();
        assert!(interval.confidence >= LEVEL && interval.confidence < 0.96);
        assert!(interval.low > 2400.0 && interval.high < 2600.0);
    }

    /// Coverage of the true median over `runs` seeded samples of size `count`.
    fn coverage(
        count: usize,
        runs: usize,
        draw: impl Fn(&mut SplitMix64) -> f64,
        truth: f64,
    ) -> f64 {
        let mut rng = SplitMix64::for_item(20_260_101, count as u64);
        let covered = (0..runs)
            .filter(|_| {
                let values: Vec<f64> = (0..count).map(|_| draw(&mut rng)).collect();
                let interval = median_interval(&values, LEVEL).unwrap();
                interval.low <= truth && truth <= interval.high
            })
            .count();
        covered as f64 / runs as f64
    }

    #[test]
    fn the_interval_covers_as_often_as_it_claims_for_every_small_n() {
        // The claim is exact, so only Monte-Carlo error is allowed: four standard errors.
        let runs = 4000;
        for count in MIN_PAIRS..=20 {
            let (_, claimed) = rank_and_confidence(count, LEVEL);
            assert!(claimed >= LEVEL);
            let error = 4.0 * (claimed * (1.0 - claimed) / runs as f64).sqrt();
            let on_normal = coverage(count, runs, normal, 0.0);
            assert!(
                (on_normal - claimed).abs() < error,
                "normal, n = {count}: {on_normal}"
            );
            // Skewed with a long tail, as latencies are; its median is 1.
            let on_skewed = coverage(count, runs, |rng| (1.5 * normal(rng)).exp(), 1.0);
            assert!(
                (on_skewed - claimed).abs() < error,
                "skewed, n = {count}: {on_skewed}"
            );
        }
    }
}
