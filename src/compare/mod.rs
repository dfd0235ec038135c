//! Compares two arms of benchmark trials; the verdict is *better*, *worse*, *same* or *inconclusive*.
//!
//! One metric, chosen before the trials ran, decides. Its verdict needs the whole exact interval of the median paired
//! ratio on one side of a noise band; other metrics are reported beside it. Arms that differ in anything but the
//! tuning get no verdict unless the caller allows it. Pure: files are read by `bench::result`, and the command
//! formats the text.

mod fairness;
pub mod metric;
mod trial;

use serde::{Deserialize, Serialize};

pub use metric::{Better, METRICS, Metric};
pub use trial::{Trial, Unit, trials};

use crate::stats::{paired, sample};

/// The noise band used when no A/A pairs were measured: 1 %. Starts of one unchanged SGLang server on
/// one H100 differed by 0.7 to 1.8 % in median TPOT (SGLang 0.5.16, concurrencies 1 to 32).
pub const DEFAULT_BAND: f64 = 0.01;

/// The narrowest band that A/A pairs can give: a gain below 0.5 % is not worth a deployed table, however little the
/// machine's noise.
pub const LEAST_BAND: f64 = 0.005;

/// Keys listed for a run without any metric, and letters shown of each.
const KEYS_SHOWN: usize = 12;
const KEY_SHOWN: usize = 40;

/// Values farther than this many scaled median absolute deviations from the median log ratio are named as outliers.
/// They are not dropped.
const OUTLIER_LIMIT: f64 = 5.0;

/// Pairs that differ by this factor tell more about the machine than about the table. The six pairs of a demo on an
/// idle machine are within 1.03 of one another (README), those of SGLang on one H200 within 1.02
/// (docs/evidence/sglang-h200).
const BUSY: f64 = 1.25;

/// The outcome of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The whole interval lies above the noise band.
    Better,
    /// The whole interval lies below the noise band.
    Worse,
    /// The whole interval lies inside the noise band.
    Same,
    /// None of these, too few pairs, or arms that cannot be compared.
    Inconclusive,
}

impl Verdict {
    /// The word for it, as JSON spells it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Same => "same",
            Self::Inconclusive => "inconclusive",
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(self.word())
    }
}

/// How far a ratio may be from 1 without being significant: from `1 / (1 + width)` to `1 + width`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Band {
    /// Width: 0.01 is 1 %.
    pub width: f64,
    /// Where the width comes from, for display.
    pub source: String,
}

impl Default for Band {
    fn default() -> Self {
        Self {
            width: DEFAULT_BAND,
            source: "default, no A/A pairs given".to_owned(),
        }
    }
}

impl Band {
    /// A band that the user chose.
    pub fn chosen(width: f64) -> Self {
        Self {
            width,
            source: "chosen by the user".to_owned(),
        }
    }

    /// The band measured by A/A trials (all of one arm, in the order they ran) for `metric`: successive trials are
    /// paired, and the band extends as far from 1 as the interval of their median ratio, or as the most distant pair
    /// where there are fewer than six. At least [`LEAST_BAND`]. `None` when no pair has a usable value.
    pub fn from_aa(trials: &[Trial], metric: &Metric) -> Option<Self> {
        let logs: Vec<f64> = trials
            .as_chunks::<2>()
            .0
            .iter()
            .filter_map(|[first, second]| {
                let pairing =
                    trial::pair(std::slice::from_ref(first), std::slice::from_ref(second));
                let value = trial::pair_value(metric, (first, second), &pairing.points).ok()?;
                Some(value.log_ratio)
            })
            .collect();
        let interval = paired::median_interval(&logs, paired::LEVEL)?;
        let reach = interval.low.abs().max(interval.high.abs()).exp() - 1.0;
        Some(Self {
            width: reach.max(LEAST_BAND),
            source: format!(
                "{} A/A pairs, median ratio {:.4} to {:.4}",
                logs.len(),
                interval.low.exp(),
                interval.high.exp()
            ),
        })
    }

    /// Where an interval is relative to this band.
    pub fn verdict(&self, ratio: &paired::Interval) -> Verdict {
        let (floor, ceiling) = (1.0 / (1.0 + self.width), 1.0 + self.width);
        if ratio.low > ceiling {
            Verdict::Better
        } else if ratio.high < floor {
            Verdict::Worse
        } else if ratio.low >= floor && ratio.high <= ceiling {
            Verdict::Same
        } else {
            Verdict::Inconclusive
        }
    }
}

/// Median ratio and its interval, above 1 when the tuned arm is better. All `None` when no pair has
/// usable values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// Median of the paired ratios.
    pub median: Option<f64>,
    pub low: Option<f64>,
    pub high: Option<f64>,
    /// Exact probability that the interval holds the true median; below 0.95 with fewer than six
    /// pairs, where the ends are the smallest and the largest ratio.
    pub confidence: Option<f64>,
}

impl From<paired::Interval> for Ratio {
    fn from(interval: paired::Interval) -> Self {
        Self {
            median: Some(interval.median),
            low: Some(interval.low),
            high: Some(interval.high),
            confidence: Some(interval.confidence),
        }
    }
}

/// One pair of trials.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// Value of the baseline trial, in the metric's unit.
    pub baseline: f64,
    /// Value of the tuned trial.
    pub tuned: f64,
    /// Ratio, above 1 when the tuned trial is better.
    pub ratio: f64,
    /// Where the baseline trial was read from.
    pub baseline_source: String,
    /// Where the tuned trial was read from.
    pub tuned_source: String,
}

/// One metric over all pairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricResult {
    /// Key in the result files.
    pub metric: String,
    /// Unit of the values.
    pub unit: String,
    /// The direction in which it improves.
    pub better: Better,
    /// Whether it is shown by default.
    pub headline: bool,
    /// Whether this is the metric that decides.
    pub decides: bool,
    /// Median over the baseline trials of the pairs.
    pub baseline: Option<f64>,
    /// Median over the tuned trials of the pairs.
    pub tuned: Option<f64>,
    /// Pairs with usable values on both sides.
    pub pairs: usize,
    pub ratio: Ratio,
    /// Where the interval lies; a verdict only where `decides`.
    pub reading: Verdict,
    pub each: Vec<Pair>,
    /// Values from which no ratio can be computed, by name.
    pub problems: Vec<String>,
}

/// The result of a comparison: the document `gemmtune compare --json` prints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The metric that decides.
    pub metric: String,
    /// Pairs with usable values of it.
    pub pairs: usize,
    pub ratio: Ratio,
    pub verdict: Verdict,
    /// Why the arms cannot be compared; the verdict is `inconclusive` while this is not empty, unless
    /// the caller allowed it.
    pub unfair: Vec<String>,
    /// One sentence that explains the verdict.
    pub because: String,
    /// Pairs still missing for a verdict.
    pub more_pairs_needed: usize,
    pub band: Band,
    /// Differences that the caller declared as expected (the tuning itself).
    pub expected_differences: Vec<String>,
    /// Remarks that do not prevent a comparison.
    pub notes: Vec<String>,
    /// Every metric in the files, the deciding one first.
    pub metrics: Vec<MetricResult>,
    /// The result for each of several loads; empty where there was one load.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loads: Vec<LoadComparison>,
}

/// One of several loads, judged by its own metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadComparison {
    pub load: String,
    /// The ratio predicted from kernel times before anything was deployed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted: Option<f64>,
    /// The result for this load.
    pub comparison: Comparison,
}

impl LoadComparison {
    /// How far the prediction was off: measured over predicted, minus one.
    pub fn off(&self) -> Option<f64> {
        Some(self.comparison.ratio.median? / self.predicted? - 1.0)
    }
}

/// What to compare, and under which rules.
#[derive(Debug)]
pub struct Question<'a> {
    /// Trials of the untuned arm, in order.
    pub baseline: &'a [Trial],
    /// Trials of the tuned arm, in order.
    pub tuned: &'a [Trial],
    /// The metric that decides, chosen before the trials ran.
    pub metric: &'a Metric,
    pub band: Band,
    /// Keys whose difference between the arms is the tuning itself.
    pub expected: &'a [String],
    /// Requests that each run was given, where the files do not record it.
    pub requests: Option<u64>,
    /// Give a verdict although the arms differ.
    pub allow_unfair: bool,
}

/// There is nothing that can be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// An arm has no trial.
    #[error("compare: the {0} arm has no trial")]
    NoTrial(&'static str),
    /// The deciding metric is in no run of an arm.
    #[error("compare: `{metric}` is in no run of the {arm} arm; the runs have: {}", .present.join(", "))]
    MetricAbsent {
        /// The metric asked for.
        metric: String,
        /// The arm without it.
        arm: &'static str,
        /// Metrics that this arm has.
        present: Vec<String>,
    },
    /// No run of an arm has any metric.
    #[error("compare: the {arm} arm has no metric of a benchmark; its keys are: {}", .keys.join(", "))]
    NoMetric {
        arm: &'static str,
        /// The first keys of its first run.
        keys: Vec<String>,
    },
}

pub fn compare(question: &Question<'_>) -> Result<Comparison, CompareError> {
    for (arm, trials) in [("baseline", question.baseline), ("tuned", question.tuned)] {
        if trials.is_empty() {
            return Err(CompareError::NoTrial(arm));
        }
        if !has(trials, question.metric) {
            let present = METRICS.iter().filter(|metric| has(trials, metric));
            let present: Vec<String> = present.map(|metric| metric.key.to_owned()).collect();
            return Err(if present.is_empty() {
                let first = trials.first().and_then(|trial| trial.runs().first());
                let keys = first.into_iter().flat_map(|run| run.fields.keys());
                let short = |key: &String| key.chars().take(KEY_SHOWN).collect();
                CompareError::NoMetric {
                    arm,
                    keys: keys.take(KEYS_SHOWN).map(short).collect(),
                }
            } else {
                CompareError::MetricAbsent {
                    metric: question.metric.key.to_owned(),
                    arm,
                    present,
                }
            });
        }
    }
    let pairing = trial::pair(question.baseline, question.tuned);
    let findings = fairness::examine(
        question.baseline,
        question.tuned,
        &pairing,
        question.expected,
        question.requests,
    );
    let mut unfair = findings.unfair;
    let mut notes = findings.notes;
    let decisive = measure(question.metric, &pairing, &question.band, true);
    unfair.extend(decisive.problems.iter().cloned());
    match pairing.interleaved {
        Some(false) => notes.push(
            "the arms were not run pair by pair: a drift of the machine between them is not cancelled"
                .to_owned(),
        ),
        None if pairing.pairs.len() > 1 => notes.push(
            "the files do not say when each trial ran: the i-th of one arm is paired with the i-th of the other"
                .to_owned(),
        ),
        _ => {}
    }
    if !pairing.points.is_empty() {
        notes.push(format!(
            "a sweep of {} loads: each pair's ratio is the geometric mean over them",
            pairing.points.len()
        ));
    }
    if [question.baseline, question.tuned]
        .iter()
        .any(|arm| of_one_file(arm))
    {
        notes.push(
            "each line of a file is taken as one trial: where the lines are runs of one server start, \
             the difference between starts is not in the interval"
                .to_owned(),
        );
    }
    notes.extend(spread_note(&decisive));
    notes.extend(outlier_notes(&decisive));
    notes.extend(repeated_runs(question));

    let needed = paired::more_pairs_needed(decisive.pairs);
    let refused = !unfair.is_empty() && !question.allow_unfair;
    let verdict = if refused || needed > 0 {
        Verdict::Inconclusive
    } else {
        decisive.reading
    };
    let because = because(
        &decisive,
        &question.band,
        needed,
        refused.then_some(unfair.len()),
    );
    let (metric, pairs, ratio) = (decisive.metric.clone(), decisive.pairs, decisive.ratio);
    let mut metrics = vec![decisive];
    metrics.extend(
        METRICS
            .iter()
            .filter(|other| other.key != question.metric.key)
            .filter(|other| has(question.baseline, other) || has(question.tuned, other))
            .map(|other| measure(other, &pairing, &question.band, false)),
    );
    notes.extend(metrics.iter().filter_map(|other| against(other, verdict)));
    Ok(Comparison {
        metric,
        pairs,
        ratio,
        verdict,
        unfair,
        because,
        more_pairs_needed: needed,
        band: question.band.clone(),
        expected_differences: findings.expected,
        notes,
        metrics,
        loads: Vec::new(),
    })
}

/// Whether several trials were read from the same file.
fn of_one_file(trials: &[Trial]) -> bool {
    let file = |trial: &Trial| trial.runs().first().map(|run| run.source.file.clone());
    trials.len() > 1 && trials.iter().all(|trial| file(trial) == file(&trials[0]))
}

fn has(trials: &[Trial], metric: &Metric) -> bool {
    trials
        .iter()
        .flat_map(Trial::runs)
        .any(|run| metric.reading(run) != metric::Reading::Missing)
}

fn measure(
    metric: &Metric,
    pairing: &trial::Pairing<'_>,
    band: &Band,
    decides: bool,
) -> MetricResult {
    let (mut each, mut logs, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    for &(baseline, tuned) in &pairing.pairs {
        match trial::pair_value(metric, (baseline, tuned), &pairing.points) {
            Ok(value) => {
                logs.push(value.log_ratio);
                each.push(Pair {
                    baseline: value.baseline,
                    tuned: value.tuned,
                    ratio: value.log_ratio.exp(),
                    baseline_source: baseline.name(),
                    tuned_source: tuned.name(),
                });
            }
            Err(found) => problems.extend(found),
        }
    }
    let ratio = paired::median_interval(&logs, paired::LEVEL).map(|logs| logs.map(f64::exp));
    let median = |of: fn(&Pair) -> f64| sample::median(&each.iter().map(of).collect::<Vec<f64>>());
    MetricResult {
        metric: metric.key.to_owned(),
        unit: metric.unit.to_owned(),
        better: metric.better,
        headline: metric.headline,
        decides,
        baseline: median(|pair| pair.baseline),
        tuned: median(|pair| pair.tuned),
        pairs: each.len(),
        reading: match ratio {
            Some(ratio) if each.len() >= paired::MIN_PAIRS => band.verdict(&ratio),
            _ => Verdict::Inconclusive,
        },
        ratio: ratio.map(Ratio::from).unwrap_or_default(),
        each,
        problems,
    }
}

/// A remark that another headline metric contradicts the verdict.
fn against(metric: &MetricResult, verdict: Verdict) -> Option<String> {
    let opposite = matches!(
        (verdict, metric.reading),
        (Verdict::Better | Verdict::Same, Verdict::Worse) | (Verdict::Worse, Verdict::Better)
    );
    (opposite && metric.headline && !metric.decides).then(|| {
        let ratio = metric.ratio.median.unwrap_or(f64::NAN);
        format!(
            "{} reads {} (ratio {ratio:.4})",
            metric.metric, metric.reading
        )
    })
}

/// One sentence that explains the verdict on `decisive`.
fn because(decisive: &MetricResult, band: &Band, needed: usize, refused: Option<usize>) -> String {
    if let Some(reasons) = refused {
        let makes = if reasons == 1 {
            "thing makes"
        } else {
            "things make"
        };
        return format!("{reasons} {makes} the comparison unfair, so no verdict is given");
    }
    if needed > 0 {
        let pairs = if decisive.pairs == 1 {
            "pair gives"
        } else {
            "pairs give"
        };
        return format!(
            "{} {pairs} a number but no verdict: {needed} more needed",
            decisive.pairs
        );
    }
    let (Some(low), Some(high)) = (decisive.ratio.low, decisive.ratio.high) else {
        return "no pair has usable values".to_owned();
    };
    let (floor, ceiling) = (1.0 / (1.0 + band.width), 1.0 + band.width);
    let place = match decisive.reading {
        Verdict::Better => "lies wholly above",
        Verdict::Worse => "lies wholly below",
        Verdict::Same => "lies wholly inside",
        Verdict::Inconclusive => "reaches across an edge of",
    };
    format!(
        "the interval of the ratio, {low:.4} to {high:.4}, {place} the noise band {floor:.4} to {ceiling:.4}"
    )
}

/// A remark that the pairs are far apart, so that the median is known to about one digit.
fn spread_note(result: &MetricResult) -> Option<String> {
    let ratios = result.each.iter().map(|pair| pair.ratio);
    let least = ratios.clone().fold(f64::INFINITY, f64::min);
    let spread = ratios.fold(0.0, f64::max) / least;
    (result.each.len() > 1 && spread.is_finite() && spread >= BUSY).then(|| {
        format!("pairs differ by {spread:.1}x: this machine was busy; on a quiet one the interval is narrower")
    })
}

fn outlier_notes(result: &MetricResult) -> Vec<String> {
    if result.pairs < paired::MIN_PAIRS {
        return Vec::new();
    }
    let logs: Vec<f64> = result.each.iter().map(|pair| pair.ratio.ln()).collect();
    sample::outliers(&logs, OUTLIER_LIMIT)
        .into_iter()
        .map(|index| {
            let pair = &result.each[index];
            format!(
                "pair {} stands out with a ratio of {:.4} ({} against {}); it is kept",
                index + 1,
                pair.ratio,
                pair.tuned_source,
                pair.baseline_source
            )
        })
        .collect()
}

/// Runs that appear twice in the input: a measured duration does not repeat to the last digit.
fn repeated_runs(question: &Question<'_>) -> Option<String> {
    let mut seen = std::collections::BTreeMap::new();
    let mut repeats = Vec::new();
    for run in question
        .baseline
        .iter()
        .chain(question.tuned)
        .flat_map(Trial::runs)
    {
        let text = serde_json::to_string(&run.fields).ok()?;
        if let Some(first) = seen.insert(text, &run.source) {
            repeats.push(format!("{} repeats {first}", run.source));
        }
    }
    let first = repeats.first()?;
    let more = match repeats.len() - 1 {
        0 => String::new(),
        more => format!(", and {more} more like it"),
    };
    Some(format!(
        "{first}{more}: repeated lines are no independent measurements"
    ))
}

#[cfg(test)]
mod tests;
