//! Whether a tuned row should serve: times the operation as a whole, in two processes that differ only in the table.

use crate::probe::contest::{Finding, Gain};
use crate::probe::found::KernelTime;
use crate::stats::paired::{LEVEL, MIN_PAIRS, ratio_interval};
use crate::stats::sample::median;

/// Largest accepted error against float32, in norm. Both sides quantise the activations to FP8 twice, and where one
/// rounds a tie the other way an element changes by an eighth: SGLang's Triton kernel has 0.004 to 0.018 on an H200
/// (docs/evidence/fused-moe-tune-h200). Nothing of it was measured on an AMD GPU. A scale mistaken for its neighbour
/// costs 0.3 or more.
pub(super) const LIMIT: f64 = 0.05;

/// By how much all times may deviate by one common factor and still be attributed to the device's clock (as in
/// `probe::ran`).
const CLOCK: f64 = 0.10;

/// The result for a tuned row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Judged {
    pub(super) finding: Finding,
    pub(super) gain: Option<Gain>,
}

/// Compares rounds of both processes, which use the same routings. Two processes may differ by as much as one
/// kernel's times do, so the row has to be faster by more than that.
pub(super) fn judge(today: &[f64], tuned: &[f64]) -> Judged {
    let pairs: Vec<(f64, f64)> = today.iter().copied().zip(tuned.iter().copied()).collect();
    let interval = (pairs.len() >= MIN_PAIRS)
        .then(|| ratio_interval(&pairs, LEVEL))
        .flatten();
    let gain = interval.map(|interval| Gain {
        median: interval.median,
        low: interval.low,
        high: interval.high,
    });
    let band = 1.0 + KernelTime::TOLERANCE;
    let finding = match gain {
        None => Finding::NotTimed,
        Some(gain) if gain.low > band => Finding::Faster,
        Some(gain) if gain.high < 1.0 / band => Finding::Slower,
        Some(_) => Finding::Same,
    };
    Judged { finding, gain }
}

/// Why a row does not serve, in words.
pub(super) fn why_not(judged: Judged) -> String {
    match (judged.finding, judged.gain) {
        (Finding::Slower, Some(gain)) => format!("{:.2}x slower end to end", 1.0 / gain.median),
        (_, Some(gain)) => format!(
            "no faster beyond the noise end to end ({:.3}x)",
            gain.median
        ),
        _ => "it was not timed on both ways".to_owned(),
    }
}

/// Spread of the paired ratios about their median.
pub(super) fn noise(judged: Judged) -> f64 {
    judged.gain.map_or(0.0, |gain| {
        (gain.high - gain.low) / gain.median.max(f64::MIN_POSITIVE) / 2.0
    })
}

/// The first row whose time differs from the one with which it was judged, after a factor common to all is removed;
/// each row is (name, time now, time then). A name in a log line tells what was requested, a time what ran.
pub(super) fn other_time<'r>(rows: &[(&'r str, f64, f64)]) -> Option<(&'r str, f64, f64)> {
    let factors: Vec<f64> = rows.iter().map(|(_, now, then)| now / then).collect();
    let common = median(&factors)?.clamp(1.0 / (1.0 + CLOCK), 1.0 + CLOCK);
    let slower = |(_, now, then): &&(&str, f64, f64)| now / then / common > 1.0 + CLOCK;
    rows.iter().find(slower).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(us: f64, routing: f64) -> Vec<f64> {
        // Every other routing has popular experts, and takes a different time.
        let time = |i: i32| us * if i % 2 == 0 { 1.0 } else { routing };
        (0..6).map(time).collect()
    }

    #[test]
    fn rounds_of_one_routing_are_compared_with_each_other() {
        let won = judge(&rounds(50.0, 3.0), &rounds(45.0, 3.0));
        assert_eq!(won.finding, Finding::Faster);
        let same = judge(&rounds(50.0, 3.0), &rounds(49.0, 3.0));
        assert_eq!(same.finding, Finding::Same, "2 % is within the band");
        insta::assert_snapshot!(why_not(same), @"no faster beyond the noise end to end (1.020x)");
        let lost = judge(&rounds(50.0, 1.0), &rounds(60.0, 1.0));
        assert_eq!(lost.finding, Finding::Slower);
        assert_eq!(why_not(lost), "1.20x slower end to end");
        // Being faster with one routing only does not count.
        let some = judge(&rounds(50.0, 3.0), &rounds(45.0, 3.4));
        assert_eq!(some.finding, Finding::Same);
        let few = judge(&rounds(50.0, 1.0)[..5], &rounds(40.0, 1.0)[..5]);
        assert_eq!(few.finding, Finding::NotTimed);
        assert_eq!(judge(&[], &[]).finding, Finding::NotTimed);
    }

    #[test]
    fn a_row_that_takes_longer_than_the_others_do_is_another_kernel() {
        assert_eq!(other_time(&[("a", 40.0, 40.0), ("b", 31.0, 30.0)]), None);
        // A device at a lower clock affects all.
        assert_eq!(other_time(&[("a", 43.0, 40.0), ("b", 32.0, 30.0)]), None);
        let rows = [("a", 40.0, 40.0), ("b", 30.0, 30.0), ("c", 60.0, 40.0)];
        assert_eq!(other_time(&rows), Some(rows[2]));
        // With a single row there is no common factor.
        assert_eq!(other_time(&[("a", 60.0, 40.0)]), Some(("a", 60.0, 40.0)));
        assert_eq!(other_time(&[]), None);
    }
}
