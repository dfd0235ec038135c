//! Verdicts on made-up trials whose right answer is known.

use super::*;
use crate::bench::result::{Run, parse};
use crate::stats::rng::SplitMix64;

fn line(throughput: f64, more: &str) -> String {
    format!(
        r#"{{"output_throughput": {throughput}, "completed": 96, "request_rate": Infinity, "max_concurrency": 32{more}}}"#
    )
}

fn one_file(name: &str, lines: &[String]) -> Vec<Trial> {
    trials(vec![parse(name, &lines.join("\n")).unwrap()], Unit::Auto)
}

fn arm(name: &str, values: &[f64]) -> Vec<Trial> {
    let lines: Vec<String> = values.iter().map(|&value| line(value, "")).collect();
    one_file(name, &lines)
}

fn question<'a>(baseline: &'a [Trial], tuned: &'a [Trial]) -> Question<'a> {
    Question {
        baseline,
        tuned,
        metric: metric::named(metric::DEFAULT).unwrap(),
        band: Band::default(),
        expected: &[],
        requests: None,
        allow_unfair: false,
    }
}

fn answer(baseline: &[Trial], tuned: &[Trial]) -> Comparison {
    compare(&question(baseline, tuned)).unwrap()
}

const STEADY: [f64; 6] = [100.0, 101.0, 99.5, 100.5, 100.2, 99.8];

#[test]
fn a_clear_gain_is_better_and_its_mirror_worse() {
    let slow = arm("b", &STEADY);
    let fast = arm("t", &STEADY.map(|value| value * 1.17));
    let gain = answer(&slow, &fast);
    assert_eq!(gain.verdict, Verdict::Better);
    assert_eq!(gain.pairs, 6);
    assert!((gain.ratio.median.unwrap() - 1.17).abs() < 1e-9);
    assert!((gain.ratio.confidence.unwrap() - 0.96875).abs() < 1e-12);
    assert!(gain.unfair.is_empty(), "{:?}", gain.unfair);
    assert_eq!(answer(&fast, &slow).verdict, Verdict::Worse);
}

#[test]
fn equal_arms_are_the_same_and_a_wide_spread_is_inconclusive() {
    let baseline = arm("b", &STEADY);
    let shuffled = arm("t", &[100.2, 100.9, 99.7, 100.1, 100.4, 99.6]);
    assert_eq!(answer(&baseline, &shuffled).verdict, Verdict::Same);
    let wild = arm("t", &[90.0, 120.0, 99.0, 105.0, 110.0, 95.0]);
    assert_eq!(answer(&baseline, &wild).verdict, Verdict::Inconclusive);
}

#[test]
fn a_gain_that_touches_the_band_is_not_better() {
    let baseline = arm("b", &[100.0; 6]);
    let tuned = arm("t", &[101.0, 103.0, 103.0, 103.0, 103.0, 103.0]);
    let touching = answer(&baseline, &tuned);
    assert_eq!(touching.verdict, Verdict::Inconclusive, "{touching:?}");
    let mut narrow = question(&baseline, &tuned);
    narrow.band = Band::chosen(0.005);
    assert_eq!(compare(&narrow).unwrap().verdict, Verdict::Better);
}

#[test]
fn five_pairs_give_a_number_no_verdict_and_the_missing_count() {
    let few = answer(&arm("b", &STEADY[..5]), &arm("t", &[150.0; 5]));
    assert_eq!(few.verdict, Verdict::Inconclusive);
    assert_eq!(few.more_pairs_needed, 1);
    assert!(few.ratio.median.unwrap() > 1.4);
    assert!((few.ratio.confidence.unwrap() - 0.9375).abs() < 1e-12);
    assert_eq!(
        few.because,
        "5 pairs give a number but no verdict: 1 more needed"
    );
}

#[test]
fn a_lower_latency_is_a_ratio_above_one() {
    let latency = |name, factor: f64| {
        let lines: Vec<String> = STEADY
            .iter()
            .map(|&value| line(100.0, &format!(r#", "median_tpot_ms": {}"#, value * factor)))
            .collect();
        one_file(name, &lines)
    };
    let (baseline, tuned) = (latency("b", 1.0), latency("t", 0.5));
    let mut asked = question(&baseline, &tuned);
    asked.metric = metric::named("median_tpot_ms").unwrap();
    let found = compare(&asked).unwrap();
    assert_eq!(found.verdict, Verdict::Better);
    assert!((found.ratio.median.unwrap() - 2.0).abs() < 1e-9);
    assert_eq!(found.metrics[0].metric, "median_tpot_ms");
    assert!(found.metrics[0].decides && !found.metrics[1].decides);
}

#[test]
fn a_metric_that_reads_the_other_way_is_said() {
    let with = |name, throughput: f64, ttft: f64| {
        let lines: Vec<String> = STEADY
            .iter()
            .map(|value| {
                let more = format!(
                    r#", "median_ttft_ms": {}, "mean_ttft_ms": {ttft}"#,
                    value * ttft
                );
                line(value * throughput, &more)
            })
            .collect();
        one_file(name, &lines)
    };
    let found = answer(&with("b", 1.0, 1.0), &with("t", 1.2, 2.0));
    assert_eq!(found.verdict, Verdict::Better);
    let said: Vec<&String> = found
        .notes
        .iter()
        .filter(|note| note.contains("reads"))
        .collect();
    assert_eq!(said, ["median_ttft_ms reads worse (ratio 0.5000)"]);
}

#[test]
fn several_files_of_one_line_each_are_trials_too() {
    let files = |name: &str, factor: f64| {
        let runs = |(index, value): (usize, &f64)| {
            parse(&format!("{name}{index}"), &line(value * factor, "")).unwrap()
        };
        trials(STEADY.iter().enumerate().map(runs).collect(), Unit::Auto)
    };
    let found = answer(&files("b", 1.0), &files("t", 1.2));
    assert_eq!((found.pairs, found.verdict), (6, Verdict::Better));
    assert_eq!(found.metrics[0].each[2].tuned_source, "t2:1");
}

#[test]
fn each_difference_besides_the_tuning_is_listed_and_refuses_the_verdict() {
    let with = |name: &str, more: &str, factor: f64| {
        let lines: Vec<String> = STEADY
            .iter()
            .map(|&value| line(value * factor, more))
            .collect();
        one_file(name, &lines)
    };
    let info = |backend: &str, port: u32, seed: u32, pool: u32| {
        format!(
            r#", "server_info": {{"attention_backend": "{backend}", "port": {port}, "random_seed": {seed},
            "max_total_num_tokens": {pool}, "internal_states": [{{"attention_backend": "{backend}",
            "_locked": ["{seed}"], "memory_usage": {{"weight": {seed}.5}}, "last_gen_throughput": {port}}}]}}"#
        )
        .replace('\n', " ")
    };
    let baseline = with("b", &info("triton", 30000, 1, 393_044), 1.0);
    let alike = with("t", &info("triton", 30001, 7, 393_900), 1.2);
    let found = answer(&baseline, &alike);
    assert_eq!(found.unfair, Vec::<String>::new());
    assert_eq!(found.verdict, Verdict::Better);

    let other = with("t", &info("aiter", 30001, 7, 200_000), 1.2);
    let found = answer(&baseline, &other);
    assert_eq!(
        found.unfair,
        [
            r#"server_info.attention_backend: baseline "triton", tuned "aiter""#,
            "server_info.max_total_num_tokens: baseline 393044, tuned 200000",
        ]
    );
    assert_eq!(found.verdict, Verdict::Inconclusive);
    assert!(found.ratio.median.is_some(), "the number is still given");

    let mut insisting = question(&baseline, &other);
    insisting.allow_unfair = true;
    let insisted = compare(&insisting).unwrap();
    assert_eq!(insisted.verdict, Verdict::Better);
    assert_eq!(insisted.unfair.len(), 2);

    let names = [
        "attention_backend".to_owned(),
        "max_total_num_tokens".to_owned(),
    ];
    let mut tuned_by_flag = question(&baseline, &other);
    tuned_by_flag.expected = &names;
    let by_flag = compare(&tuned_by_flag).unwrap();
    assert_eq!(by_flag.verdict, Verdict::Better);
    assert_eq!(by_flag.expected_differences.len(), 2);
}

#[test]
fn a_server_info_that_one_arm_lacks_is_unfair_and_none_at_all_a_note() {
    let with = |name, more| {
        let lines: Vec<String> = STEADY.iter().map(|&value| line(value, more)).collect();
        one_file(name, &lines)
    };
    let (bare, told) = (
        with("b", ""),
        with("t", r#", "server_info": {"tp_size": 1}"#),
    );
    let found = answer(&bare, &told);
    assert_eq!(found.unfair, ["server_info: not in 6 of 12 runs (b:1)"]);
    let found = answer(&bare, &with("t", ""));
    assert!(found.unfair.is_empty());
    insta::assert_snapshot!(found.notes[0], @"no run carries server_info: that both servers had the same arguments is not proven");
}

#[test]
fn failed_requests_other_counts_and_other_loads_are_unfair() {
    let baseline = arm("b", &STEADY);
    let mut lines: Vec<String> = STEADY.iter().map(|&value| line(value * 1.2, "")).collect();
    lines[3] = lines[3].replace(
        "\"completed\": 96",
        "\"completed\": 95, \"errors\": [\"\", \"timeout\"]",
    );
    let found = answer(&baseline, &one_file("t", &lines));
    assert_eq!(
        found.unfair,
        [
            "errors: 1 failed in t:4",
            "completed: baseline 96, tuned 95 (t:4) and 96 (t:1)"
        ]
    );
    assert_eq!(found.verdict, Verdict::Inconclusive);

    let fewer = arm("t", &STEADY);
    let mut counted = question(&baseline, &fewer);
    counted.requests = Some(100);
    assert_eq!(compare(&counted).unwrap().unfair.len(), 12);

    let lines: Vec<String> = STEADY
        .iter()
        .map(|&value| line(value, "").replace(": 32", ": 64"))
        .collect();
    let found = answer(&baseline, &one_file("t", &lines));
    assert_eq!(found.unfair, ["max_concurrency: baseline 32, tuned 64"]);
    assert_eq!(found.pairs, 6, "still paired, for the number");
}

#[test]
fn arms_of_unequal_length_are_unfair() {
    let found = answer(&arm("b", &[100.0; 8]), &arm("t", &[120.0; 6]));
    assert_eq!(found.pairs, 6);
    assert_eq!(
        found.unfair,
        ["trials: baseline has 8, tuned 6: 2 without a partner"]
    );
}

#[test]
fn zero_and_nan_values_are_named_and_absent_metrics_refused() {
    let baseline = arm("b", &STEADY);
    let mut lines: Vec<String> = STEADY.iter().map(|&value| line(value, "")).collect();
    lines[0] = lines[0].replace("\"output_throughput\": 100", "\"output_throughput\": NaN");
    lines[1] = line(0.0, "");
    let found = answer(&baseline, &one_file("t", &lines));
    assert_eq!(
        found.unfair,
        [
            "output_throughput is NaN in t:1",
            "output_throughput is 0 in t:2"
        ]
    );
    assert_eq!(found.pairs, 4);

    let mut absent = question(&baseline, &baseline);
    absent.metric = metric::named("median_itl_ms").unwrap();
    assert_eq!(
        compare(&absent).unwrap_err().to_string(),
        "compare: `median_itl_ms` is in no run of the baseline arm; the runs have: output_throughput"
    );
}

#[test]
fn the_band_follows_aa_pairs() {
    let metric = metric::named(metric::DEFAULT).unwrap();
    let quiet = Band::from_aa(&arm("a", &[100.0, 100.1, 100.0, 99.9]), metric).unwrap();
    assert!((quiet.width - LEAST_BAND).abs() < 1e-12);
    let noisy = Band::from_aa(&arm("a", &[100.0, 103.0, 100.0, 98.0]), metric).unwrap();
    assert!((noisy.width - 0.03).abs() < 1e-9, "{noisy:?}");
    assert!(noisy.source.starts_with("2 A/A pairs"));
    assert_eq!(Band::from_aa(&arm("a", &[100.0]), metric), None);
    let gain = answer(&arm("b", &[100.0; 6]), &arm("t", &[102.0; 6]));
    assert_eq!(gain.verdict, Verdict::Better);
    let (slow, fast) = (arm("b", &[100.0; 6]), arm("t", &[102.0; 6]));
    let mut wide = question(&slow, &fast);
    wide.band = noisy;
    assert_eq!(compare(&wide).unwrap().verdict, Verdict::Same);
}

#[test]
fn pairs_that_are_far_apart_say_that_the_machine_was_busy() {
    let baseline = arm("b", &STEADY);
    let notes = |tuned: [f64; 6]| answer(&baseline, &arm("t", &tuned)).notes.join("\n");
    let busy = notes([100.0, 101.0, 240.0, 100.5, 100.2, 99.8]);
    insta::assert_snapshot!(busy, @"
    no run carries server_info: that both servers had the same arguments is not proven
    the files do not say when each trial ran: the i-th of one arm is paired with the i-th of the other
    each line of a file is taken as one trial: where the lines are runs of one server start, the difference between starts is not in the interval
    pairs differ by 2.4x: this machine was busy; on a quiet one the interval is narrower
    t:1 repeats b:1, and 4 more like it: repeated lines are no independent measurements
    ");
    let quiet = notes([110.0, 112.0, 109.0, 111.0, 110.5, 108.0]);
    insta::assert_snapshot!(quiet, @"
    no run carries server_info: that both servers had the same arguments is not proven
    the files do not say when each trial ran: the i-th of one arm is paired with the i-th of the other
    each line of a file is taken as one trial: where the lines are runs of one server start, the difference between starts is not in the interval
    ");
}

#[test]
fn outliers_and_repeated_lines_are_named_and_kept() {
    let baseline = arm("b", &[100.0, 100.2, 99.9, 100.1, 100.0, 99.8]);
    let tuned = arm("t", &[120.0, 120.3, 119.8, 120.2, 60.0, 120.1]);
    let found = answer(&baseline, &tuned);
    assert_eq!(found.pairs, 6);
    assert!(
        found
            .notes
            .iter()
            .any(|note| note.starts_with("pair 5 stands out")),
        "{:?}",
        found.notes
    );
    assert_eq!(found.verdict, Verdict::Inconclusive);
    assert!(
        found
            .notes
            .iter()
            .any(|note| note.starts_with("b:5 repeats b:1"))
    );
}

/// Trials whose throughput has normal noise of `spread` around `centre`.
fn noisy(name: &str, count: usize, centre: f64, spread: f64, rng: &mut SplitMix64) -> Vec<Trial> {
    (0..count)
        .map(|index| {
            let radius = (-2.0 * (1.0 - rng.unit()).ln()).sqrt();
            let noise = radius * (std::f64::consts::TAU * rng.unit()).cos();
            let fields =
                serde_json::json!({ "output_throughput": centre * (1.0 + spread * noise) });
            let run = Run {
                source: crate::bench::result::Source {
                    file: name.to_owned(),
                    line: index + 1,
                },
                fields: fields.as_object().unwrap().clone(),
            };
            Trial::new(vec![run]).unwrap()
        })
        .collect()
}

#[test]
fn arms_that_do_not_differ_are_hardly_ever_called_different() {
    // At the level of the interval 5 % would be false alarms, half of them "better"; the band makes them rarer. 400
    // seeded comparisons for each setting.
    let mut rng = SplitMix64::new(77);
    for (count, spread) in [(6, 0.002), (6, 0.02), (8, 0.01), (12, 0.01), (20, 0.005)] {
        let runs = 400;
        let alarms = (0..runs)
            .filter(|_| {
                let baseline = noisy("b", count, 100.0, spread, &mut rng);
                let tuned = noisy("t", count, 100.0, spread, &mut rng);
                let verdict = answer(&baseline, &tuned).verdict;
                !matches!(verdict, Verdict::Same | Verdict::Inconclusive)
            })
            .count();
        assert!(
            alarms <= runs / 20,
            "n = {count}, spread {spread}: {alarms} of {runs}"
        );
    }
}

#[test]
fn a_real_gain_above_the_noise_is_found() {
    let mut rng = SplitMix64::new(78);
    let found = (0..200)
        .filter(|_| {
            let baseline = noisy("b", 8, 100.0, 0.01, &mut rng);
            let tuned = noisy("t", 8, 108.0, 0.01, &mut rng);
            answer(&baseline, &tuned).verdict == Verdict::Better
        })
        .count();
    assert!(found >= 190, "{found} of 200");
}

#[test]
fn the_document_has_the_fixed_keys() {
    let found = answer(&arm("b", &STEADY), &arm("t", &STEADY));
    let document = serde_json::to_value(&found).unwrap();
    for key in ["metric", "pairs", "ratio", "verdict", "unfair"] {
        assert!(document.get(key).is_some(), "{key}");
    }
    assert_eq!(document["verdict"], "same");
    assert_eq!(document["ratio"]["median"], 1.0);
    let back: Comparison = serde_json::from_value(document).unwrap();
    assert_eq!(back, found);
}
