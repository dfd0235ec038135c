//! The verdict in one sentence, the same on the page, in the summary and on the terminal.

use super::model::plain_name;
use crate::compare::{Better, Comparison, Verdict};

/// From this quotient of its ends on, an interval is shown as multiples: a percentage would claim digits that were
/// not measured. On an idle machine the demo's interval spans a factor of 1.02, on a busy one 1.4 and more.
const WIDE: f64 = 1.1;

/// The result, without a full stop.
pub fn sentence(comparison: &Comparison) -> String {
    let (Some(metric), Some(median), Some(low), Some(high), Some(confidence)) = (
        comparison.metrics.first(),
        comparison.ratio.median,
        comparison.ratio.low,
        comparison.ratio.high,
        comparison.ratio.confidence,
    ) else {
        return format!("Inconclusive: {}", comparison.because);
    };
    let what = plain_name(metric);
    let pairs = match comparison.pairs {
        1 => "1 pair".to_owned(),
        pairs => format!("{pairs} pairs"),
    };
    // The ratio is oriented so that above 1 is better; the sentence is about the value itself.
    let (times, from, to) = match metric.better {
        Better::Higher => (median, low, high),
        Better::Lower => (1.0 / median, 1.0 / high, 1.0 / low),
    };
    let moved = if times < 1.0 { "fell" } else { "rose" };
    let is_wide = high > low * WIDE;
    let decimals = if from < 1.3 { 2 } else { 1 };
    let [times_x, from_x, to_x] = [times, from, to].map(|times| format!("{times:.decimals$}x"));
    let measured = if comparison.more_pairs_needed > 0 {
        format!("ratio {median:.3} over {pairs}")
    } else if is_wide {
        format!("about {times_x}; {from_x} to {to_x}, {pairs}")
    } else {
        format!(
            "ratio {median:.3}, {:.1} % interval {low:.3} to {high:.3}, {pairs}",
            confidence * 100.0
        )
    };
    let change = if is_wide {
        format!("{what} {moved} to about {times_x} ({from_x} to {to_x}, {pairs})")
    } else {
        let percent = (times - 1.0).abs() * 100.0;
        format!("{what} {moved} by {percent:.1} % ({measured})")
    };
    let is_judged = comparison.more_pairs_needed == 0 && comparison.unfair.is_empty();
    match comparison.verdict {
        Verdict::Better => format!("Better: {change}"),
        Verdict::Worse => format!("Worse: {change}"),
        Verdict::Same => format!("Same: {what} did not change beyond the noise ({measured})"),
        Verdict::Inconclusive if is_judged && is_wide => format!(
            "Inconclusive: {what} {moved} to about {times_x}, and the interval, {from_x} to {to_x} over {pairs}, reaches \
             into the noise"
        ),
        Verdict::Inconclusive => format!("Inconclusive: {} ({measured})", comparison.because),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{Band, Question, Trial, Unit, compare, metric, trials};

    /// Pairs of both arms' values of one metric.
    fn comparison(key: &str, baseline: &[f64], tuned: &[f64]) -> Comparison {
        let folder = tempfile::tempdir().unwrap();
        let arm = |name: &str, values: &[f64]| -> Vec<Trial> {
            let files = values.iter().enumerate().map(|(index, value)| {
                let path = camino::Utf8PathBuf::try_from(
                    folder.path().join(format!("{name}{index}.jsonl")),
                )
                .unwrap();
                fs_err::write(&path, format!("{{\"{key}\": {value}, \"completed\": 1}}\n"))
                    .unwrap();
                crate::bench::result::read(&path).unwrap()
            });
            trials(files.collect(), Unit::File)
        };
        compare(&Question {
            baseline: &arm("a", baseline),
            tuned: &arm("b", tuned),
            metric: metric::named(key).unwrap(),
            band: Band::default(),
            expected: &[],
            requests: None,
            allow_unfair: true,
        })
        .unwrap()
    }

    #[test]
    fn a_narrow_interval_is_a_percentage_and_a_wide_one_a_multiple() {
        let untuned = [100.0; 6];
        let said = |key: &str, tuned: &[f64]| {
            let count = tuned.len();
            sentence(&comparison(key, &untuned[..count], tuned))
        };
        let throughput = "output_throughput";
        insta::assert_snapshot!(
            [
                said(throughput, &[110.0, 110.5, 110.2, 110.1, 110.4, 110.3]),
                said(throughput, &[160.0, 250.0, 260.0, 262.0, 300.0, 370.0]),
                said(throughput, &[40.0, 50.0, 55.0, 60.0, 65.0, 70.0]),
                said(throughput, &[100.0, 100.1, 99.9, 100.0, 100.2, 100.1]),
                said(throughput, &[35.0, 90.0, 150.0, 180.0, 300.0, 488.0]),
                said(throughput, &[150.0, 180.0]),
                said("median_tpot_ms", &[40.0, 45.0, 50.0, 55.0, 60.0, 62.0]),
                said("median_tpot_ms", &[90.0, 90.5, 90.2, 90.1, 90.4, 90.3]),
            ]
            .join("\n"),
            @"
            Better: output throughput rose by 10.2 % (ratio 1.102, 96.9 % interval 1.100 to 1.105, 6 pairs)
            Better: output throughput rose to about 2.6x (1.6x to 3.7x, 6 pairs)
            Worse: output throughput fell to about 0.57x (0.40x to 0.70x, 6 pairs)
            Same: output throughput did not change beyond the noise (ratio 1.000, 96.9 % interval 0.999 to 1.002, 6 pairs)
            Inconclusive: output throughput rose to about 1.64x, and the interval, 0.35x to 4.88x over 6 pairs, reaches into the noise
            Inconclusive: 2 pairs give a number but no verdict: 4 more needed (ratio 1.643 over 2 pairs)
            Better: median TPOT fell to about 0.52x (0.40x to 0.62x, 6 pairs)
            Better: median TPOT fell by 9.8 % (ratio 1.108, 96.9 % interval 1.105 to 1.111, 6 pairs)
            "
        );
    }
}
