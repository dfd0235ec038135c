//! Groups the runs of result files into trials, and pairs the trials of both arms.
//!
//! The unit of replication is the trial. An arm given as several files has one trial for each file, and the lines of
//! a file are runs of that trial. An arm given as one file has one trial for each line. Lines that differ in their
//! workload arguments (a sweep over concurrencies) are points of one trial: the r-th line of each point belongs to
//! trial r. The same holds for an arm whose files have one load each, not all the same: the r-th file of each load
//! belongs to trial r.

use std::collections::{BTreeMap, BTreeSet};

use super::metric::{Metric, Reading};
use crate::bench::result::Run;
use crate::stats::{paired, sample};

/// The arguments of `bench_serving` that identify the load; the last three are InferenceX's.
pub(super) const LOAD_KEYS: [&str; 10] = [
    "dataset_name",
    "request_rate",
    "max_concurrency",
    "sharegpt_output_len",
    "random_input_len",
    "random_output_len",
    "random_range_ratio",
    "isl",
    "osl",
    "conc",
];

/// What counts as one trial in the files of one arm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unit {
    /// A line where the arm has one file, a file where it has several; where each file has one of several loads, one
    /// file of each load.
    #[default]
    Auto,
    /// Each file is one trial, however many lines it has.
    File,
    /// Each line is one trial (per point of a sweep).
    Line,
}

/// One server start with its benchmark runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// The runs; never empty.
    runs: Vec<Run>,
}

impl Trial {
    /// A trial of these runs; `None` when there are none.
    pub fn new(runs: Vec<Run>) -> Option<Self> {
        (!runs.is_empty()).then_some(Self { runs })
    }

    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The runs of the load named `load`, as a trial of their own.
    pub fn of_load(&self, load: &str) -> Option<Self> {
        let named = |run: &&Run| run.fields.get("tag").and_then(|tag| tag.as_str()) == Some(load);
        Self::new(self.runs.iter().filter(named).cloned().collect())
    }

    /// Where the trial was read from, for display: `T.jsonl:3`, or the file for all of its lines.
    pub fn name(&self) -> String {
        match self.runs.as_slice() {
            [run] => run.source.to_string(),
            [first, .., last] if first.source.file == last.source.file => {
                format!(
                    "{}:{}-{}",
                    first.source.file, first.source.line, last.source.line
                )
            }
            [first, rest @ ..] => {
                let others: BTreeSet<&str> =
                    rest.iter().map(|run| run.source.file.as_str()).collect();
                format!("{} and {} more", first.source.file, others.len())
            }
            [] => String::new(),
        }
    }

    /// Position of this trial in time among those of both arms, where the runs recorded it.
    pub fn sequence(&self) -> Option<u64> {
        self.runs.iter().find_map(Run::sequence)
    }

    fn readings<'a>(
        &'a self,
        metric: &'a Metric,
        point: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Run, Reading)> {
        self.runs
            .iter()
            .filter(move |run| point.is_none_or(|point| load(run) == point))
            .map(|run| (run, metric.reading(run)))
    }
}

/// The load of a run, as text that is equal for equal loads.
pub(super) fn load(run: &Run) -> String {
    let arguments: Vec<String> = LOAD_KEYS
        .iter()
        .filter_map(|key| Some(format!("{key}={}", run.fields.get(*key)?)))
        .collect();
    arguments.join(" ")
}

/// Groups the runs of one arm, given by file, into trials.
pub fn trials(files: Vec<Vec<Run>>, unit: Unit) -> Vec<Trial> {
    match unit {
        Unit::Auto if files.len() > 1 => {
            if one_load_each(&files) {
                rounds(files)
            } else {
                files.into_iter().filter_map(Trial::new).collect()
            }
        }
        Unit::File => files.into_iter().filter_map(Trial::new).collect(),
        Unit::Auto | Unit::Line => {
            let lines = |file: Vec<Run>| file.into_iter().map(|run| vec![run]).collect();
            files
                .into_iter()
                .flat_map(|file| rounds(lines(file)))
                .collect()
        }
    }
}

/// Whether every file has runs of one load, and not all of the same.
fn one_load_each(files: &[Vec<Run>]) -> bool {
    let mut loads = BTreeSet::new();
    for file in files {
        let Some(first) = file.first().map(load) else {
            return false;
        };
        if file.iter().any(|run| load(run) != first) {
            return false;
        }
        loads.insert(first);
    }
    loads.len() > 1
}

/// Trials from groups of runs that have one load each: the r-th group of each load belongs to trial r.
fn rounds(groups: Vec<Vec<Run>>) -> Vec<Trial> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut rounds: Vec<Vec<Run>> = Vec::new();
    for group in groups {
        let Some(first) = group.first() else {
            continue;
        };
        let round = seen.entry(load(first)).or_default();
        if *round == rounds.len() {
            rounds.push(Vec::new());
        }
        rounds[*round].extend(group);
        *round += 1;
    }
    rounds.into_iter().filter_map(Trial::new).collect()
}

/// Trials of both arms, paired.
#[derive(Debug)]
pub(super) struct Pairing<'a> {
    /// (baseline, tuned), in comparison order.
    pub(super) pairs: Vec<(&'a Trial, &'a Trial)>,
    /// Trials without a partner: of the baseline, and of the tuned arm.
    pub(super) alone: (usize, usize),
    /// Whether the trials are known to have been run A B or B A, pair by pair; `None` when the files do not record
    /// it.
    pub(super) interleaved: Option<bool>,
    /// The points of the sweep that both arms were run over; empty when each trial is taken as a whole.
    pub(super) points: Vec<String>,
}

/// Pairs the i-th trial of one arm with the i-th of the other: in the order they were run when every trial has its
/// position in time, else in the order given.
pub(super) fn pair<'a>(baseline: &'a [Trial], tuned: &'a [Trial]) -> Pairing<'a> {
    let mut arms = [
        baseline.iter().collect::<Vec<&Trial>>(),
        tuned.iter().collect(),
    ];
    let places: Vec<Option<u64>> = arms
        .iter()
        .flatten()
        .map(|trial| trial.sequence())
        .collect();
    let distinct: BTreeSet<u64> = places.iter().flatten().copied().collect();
    let ordered = !places.is_empty() && distinct.len() == places.len();
    if ordered {
        for arm in &mut arms {
            arm.sort_by_key(|trial| trial.sequence());
        }
    }
    let [baseline, tuned] = arms;
    let pairs: Vec<(&Trial, &Trial)> = baseline
        .iter()
        .copied()
        .zip(tuned.iter().copied())
        .collect();
    let interleaved = ordered.then(|| {
        let mut spans: Vec<(u64, u64)> = pairs
            .iter()
            .filter_map(|(one, other)| {
                let (one, other) = (one.sequence()?, other.sequence()?);
                Some((one.min(other), one.max(other)))
            })
            .collect();
        spans.sort_unstable();
        spans.windows(2).all(|two| two[0].1 < two[1].0)
    });
    let points = |arm: &[&Trial]| -> BTreeSet<String> {
        arm.iter().flat_map(|trial| &trial.runs).map(load).collect()
    };
    let (ours, theirs) = (points(&baseline), points(&tuned));
    Pairing {
        alone: (baseline.len() - pairs.len(), tuned.len() - pairs.len()),
        interleaved,
        points: if ours == theirs && ours.len() > 1 {
            ours.into_iter().collect()
        } else {
            Vec::new()
        },
        pairs,
    }
}

/// One pair's values of one metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct PairValue {
    /// The baseline trial: median of its runs; over a sweep, the geometric mean of the points.
    pub(super) baseline: f64,
    /// The tuned trial, likewise.
    pub(super) tuned: f64,
    /// Natural logarithm of the ratio that is above 1 when the tuned trial is better.
    pub(super) log_ratio: f64,
}

/// The values of `metric` in one pair, or the reason why no ratio can be computed.
pub(super) fn pair_value(
    metric: &Metric,
    (baseline, tuned): (&Trial, &Trial),
    points: &[String],
) -> Result<PairValue, Vec<String>> {
    let whole = [None];
    let each: Vec<Option<&str>> = points.iter().map(|point| Some(point.as_str())).collect();
    let points = if each.is_empty() { &whole[..] } else { &each };
    let (mut logs, mut problems) = (Vec::new(), Vec::new());
    for point in points {
        let ours = trial_value(metric, baseline, *point);
        let theirs = trial_value(metric, tuned, *point);
        match (ours, theirs) {
            (Ok(ours), Ok(theirs)) => {
                let (above, below) = metric.oriented(ours, theirs);
                if let Some(log) = paired::log_ratio(above, below) {
                    logs.push((ours.ln(), theirs.ln(), log));
                }
            }
            (ours, theirs) => {
                problems.extend(ours.err());
                problems.extend(theirs.err());
            }
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let mean = |of: fn(&(f64, f64, f64)) -> f64| {
        sample::mean(&logs.iter().map(of).collect::<Vec<f64>>()).unwrap_or(f64::NAN)
    };
    Ok(PairValue {
        baseline: mean(|logs| logs.0).exp(),
        tuned: mean(|logs| logs.1).exp(),
        log_ratio: mean(|logs| logs.2),
    })
}

fn trial_value(metric: &Metric, trial: &Trial, point: Option<&str>) -> Result<f64, String> {
    let mut values = Vec::new();
    for (run, reading) in trial.readings(metric, point) {
        match reading {
            Reading::Usable(value) => values.push(value),
            Reading::Unusable(value) => {
                return Err(format!("{} is {value} in {}", metric.key, run.source));
            }
            Reading::Missing => return Err(format!("{} is not in {}", metric.key, run.source)),
        }
    }
    sample::median(&values).ok_or_else(|| {
        format!(
            "{} has no run with {}",
            trial.name(),
            point.unwrap_or("any load")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::metric;
    use super::*;
    use crate::bench::result::parse;

    fn file(name: &str, lines: &[&str]) -> Vec<Run> {
        parse(name, &lines.join("\n")).unwrap()
    }

    #[test]
    fn one_file_has_a_trial_a_line_and_several_have_a_trial_a_file() {
        let lines = [
            r#"{"duration": 1}"#,
            r#"{"duration": 2}"#,
            r#"{"duration": 9}"#,
        ];
        let one = trials(vec![file("b", &lines)], Unit::Auto);
        assert_eq!(one.len(), 3);
        assert_eq!(one[1].name(), "b:2");
        let two = trials(vec![file("b", &lines), file("c", &lines)], Unit::Auto);
        assert_eq!(two.len(), 2);
        assert_eq!(two[1].name(), "c:1-3");
        let duration = metric::named("duration").unwrap();
        assert_eq!(
            trial_value(duration, &two[0], None),
            Ok(2.0),
            "median of the runs"
        );
        assert_eq!(trials(vec![file("b", &lines)], Unit::File).len(), 1);
        assert_eq!(
            trials(vec![file("b", &lines), file("c", &lines)], Unit::Line).len(),
            6
        );
    }

    #[test]
    fn lines_of_a_sweep_are_points_of_one_trial() {
        let sweep = |name, scale: f64| {
            let line = |concurrency, value: f64| {
                format!(r#"{{"max_concurrency": {concurrency}, "duration": {value}}}"#)
            };
            let lines = [
                line(1, scale),
                line(8, 4.0 * scale),
                line(1, scale),
                line(8, 4.0 * scale),
            ];
            trials(
                vec![file(name, &lines.each_ref().map(String::as_str))],
                Unit::Auto,
            )
        };
        let (baseline, tuned) = (sweep("b", 2.0), sweep("t", 1.0));
        assert_eq!(baseline.len(), 2);
        let pairing = pair(&baseline, &tuned);
        assert_eq!(pairing.points.len(), 2);
        let duration = metric::named("duration").unwrap();
        let value = pair_value(duration, pairing.pairs[0], &pairing.points).unwrap();
        assert!((value.log_ratio.exp() - 2.0).abs() < 1e-12);
        assert!(
            (value.baseline - 4.0).abs() < 1e-12,
            "geometric mean of 2 and 8"
        );
    }

    #[test]
    fn files_of_one_load_each_are_rounds_of_a_sweep_in_any_order() {
        let of = |name: &str, concurrency: u32| {
            let line = format!(r#"{{"max_concurrency": {concurrency}, "duration": 1}}"#);
            file(name, &[&line])
        };
        let by_round = [of("1a", 4), of("1b", 8), of("2a", 4), of("2b", 8)];
        let by_load = [of("1a", 4), of("2a", 4), of("1b", 8), of("2b", 8)];
        for files in [by_round, by_load] {
            let found = trials(files.to_vec(), Unit::Auto);
            let sources: Vec<Vec<&str>> = found
                .iter()
                .map(|trial| {
                    let runs = trial.runs().iter();
                    runs.map(|run| run.source.file.as_str()).collect()
                })
                .collect();
            assert_eq!(sources, [["1a", "1b"], ["2a", "2b"]]);
            assert_eq!(found[0].name(), "1a and 1 more");
        }
        // One load in every file: each file is a trial, as usual, and also when requested.
        assert_eq!(trials(vec![of("1", 4), of("2", 4)], Unit::Auto).len(), 2);
        assert_eq!(trials(vec![of("1", 4), of("2", 8)], Unit::File).len(), 2);
        // A file with a whole sweep is one trial too.
        let sweep = [of("1", 4), of("1", 8)].concat();
        assert_eq!(trials(vec![sweep.clone(), sweep], Unit::Auto).len(), 2);
    }

    #[test]
    fn trials_that_say_when_they_ran_are_paired_in_that_order() {
        let arm = |name, places: &[u64]| -> Vec<Trial> {
            let lines: Vec<String> = places
                .iter()
                .map(|place| format!(r#"{{"gemmtune": {{"sequence": {place}}}}}"#))
                .collect();
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            trials(vec![file(name, &lines)], Unit::Auto)
        };
        let (baseline, tuned) = (arm("b", &[4, 1, 5]), arm("t", &[2, 3, 6]));
        let pairing = pair(&baseline, &tuned);
        let places: Vec<_> = pairing
            .pairs
            .iter()
            .map(|(one, other)| (one.sequence().unwrap(), other.sequence().unwrap()))
            .collect();
        assert_eq!(places, [(1, 2), (4, 3), (5, 6)]);
        assert_eq!(pairing.interleaved, Some(true));
        let (first, last) = (arm("b", &[1, 2, 3]), arm("t", &[4, 5, 6]));
        assert_eq!(pair(&first, &last).interleaved, Some(false));
    }

    #[test]
    fn values_no_ratio_can_be_made_of_are_named() {
        let value = |line: &str| {
            let (baseline, tuned) = (
                trials(vec![file("b", &[r#"{"duration": 1}"#])], Unit::Auto),
                trials(vec![file("t", &[line])], Unit::Auto),
            );
            let pairing = pair(&baseline, &tuned);
            let metric = metric::named("duration").unwrap();
            pair_value(metric, pairing.pairs[0], &pairing.points).unwrap_err()
        };
        assert_eq!(value(r#"{"duration": 0}"#), ["duration is 0 in t:1"]);
        assert_eq!(value(r#"{"duration": NaN}"#), ["duration is NaN in t:1"]);
        assert_eq!(value(r#"{"other": 1}"#), ["duration is not in t:1"]);
    }
}
