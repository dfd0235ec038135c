//! What makes two arms incomparable: other arguments, another server, failed or missing requests.
//!
//! Every finding is one line of text with both sides' values; nothing is repaired here. [`is_reading`] lists the keys
//! that may differ between two starts of one server.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::trial::{LOAD_KEYS, Pairing, Trial, load};
use crate::bench::result::Run;

/// The key for the number of requests of a load.
const PROMPTS_KEY: &str = "num_prompts";

/// Arguments of the benchmark that must agree besides the load itself. `model…`, `num_prompts` and
/// `endpoint…` are written by vLLM's script and by `gemmtune bench`.
const ARGUMENT_KEYS: [&str; 9] = [
    "backend",
    "model",
    "model_id",
    "tokenizer_id",
    "endpoint",
    "endpoint_type",
    PROMPTS_KEY,
    "burstiness",
    "goodput_slos_ms",
];

/// How far two totals of tokens may differ before the arms did different work: lengths sampled from a data set and
/// early end-of-text tokens differ by less.
const TOKEN_TOLERANCE: f64 = 0.02;

/// How far two capacities of the key-value cache may differ: they follow the memory that happened to be free at the
/// start, and a few pages make no difference.
const CAPACITY_TOLERANCE: f64 = 0.05;

/// Capacities computed from free memory (SGLang `server_info`).
const CAPACITY_KEYS: [&str; 3] = [
    "max_total_num_tokens",
    "max_req_input_len",
    "token_capacity",
];

#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Reasons not to compare.
    pub(super) unfair: Vec<String>,
    /// Differences that the caller declared as expected.
    pub(super) expected: Vec<String>,
    /// Remarks that do not prevent a comparison.
    pub(super) notes: Vec<String>,
}

/// Examines every run of both arms.
pub(super) fn examine(
    baseline: &[Trial],
    tuned: &[Trial],
    pairing: &Pairing<'_>,
    expected: &[String],
    requests: Option<u64>,
) -> Findings {
    let mut findings = Findings::default();
    match pairing.alone {
        (0, 0) => {}
        _ => findings.unfair.push(format!(
            "trials: baseline has {}, tuned {}: {} without a partner",
            baseline.len(),
            tuned.len(),
            pairing.alone.0 + pairing.alone.1
        )),
    }
    let arms = [all_runs(baseline), all_runs(tuned)];
    requests_completed(&arms, requests, &mut findings);
    if pairing.points.is_empty() {
        for key in LOAD_KEYS {
            same_value(
                key,
                &arms,
                |run| run.fields.get(key).cloned(),
                expected,
                &mut findings,
            );
        }
        same_work(&arms, &mut findings);
    } else {
        for point in &pairing.points {
            let at = arms.each_ref().map(|arm| -> Vec<&Run> {
                arm.iter()
                    .copied()
                    .filter(|run| load(run) == *point)
                    .collect()
            });
            same_work(&at, &mut findings);
            same_value(
                PROMPTS_KEY,
                &at,
                |run| run.fields.get(PROMPTS_KEY).cloned(),
                expected,
                &mut findings,
            );
        }
        whole_sweeps(baseline, tuned, pairing, &mut findings);
    }
    for key in ARGUMENT_KEYS {
        // Each load of a sweep has its own number of prompts.
        if key == PROMPTS_KEY && !pairing.points.is_empty() {
            continue;
        }
        same_value(
            key,
            &arms,
            |run| run.fields.get(key).cloned(),
            expected,
            &mut findings,
        );
    }
    same_server(&arms, expected, &mut findings);
    findings
}

fn all_runs(trials: &[Trial]) -> Vec<&Run> {
    trials.iter().flat_map(Trial::runs).collect()
}

/// Failed requests, and runs that completed fewer requests than they were given.
fn requests_completed(arms: &[Vec<&Run>; 2], requests: Option<u64>, findings: &mut Findings) {
    for run in arms.iter().flatten() {
        let completed = run.fields.get("completed").and_then(Value::as_u64);
        let asked = requests.or_else(|| run.fields.get("num_prompts").and_then(Value::as_u64));
        if let Some(failed @ 1..) = run.failed() {
            findings
                .unfair
                .push(format!("errors: {failed} failed in {}", run.source));
        }
        match (completed, asked) {
            (Some(completed), Some(asked)) if completed < asked => findings.unfair.push(format!(
                "completed: {completed} of {asked} requests in {}",
                run.source
            )),
            (Some(0), None) => findings
                .unfair
                .push(format!("completed: no request in {}", run.source)),
            _ => {}
        }
    }
}

/// Every run of one load has the same requests and nearly the same number of tokens.
fn same_work(arms: &[Vec<&Run>; 2], findings: &mut Findings) {
    same_value(
        "completed",
        arms,
        |run| run.fields.get("completed").cloned(),
        &[],
        findings,
    );
    for key in ["total_input_tokens", "total_output_tokens"] {
        let totals = arms.each_ref().map(|arm| spread(arm, key));
        let [Some(ours), Some(theirs)] = totals else {
            continue;
        };
        let (least, most) = (ours.0.min(theirs.0), ours.1.max(theirs.1));
        if most > least * (1.0 + TOKEN_TOLERANCE) {
            findings.unfair.push(format!(
                "{key}: baseline {}, tuned {}",
                range_text(ours),
                range_text(theirs)
            ));
        }
    }
}

fn spread(runs: &[&Run], key: &str) -> Option<(f64, f64)> {
    runs.iter()
        .filter_map(|run| run.number(key))
        .filter(|number| number.is_finite())
        .fold(None, |spread, number| match spread {
            None => Some((number, number)),
            Some((least, most)) => Some((number.min(least), number.max(most))),
        })
}

fn range_text((least, most): (f64, f64)) -> String {
    if least.to_bits() == most.to_bits() {
        format!("{least}")
    } else {
        format!("{least} to {most}")
    }
}

/// Every trial of a sweep has every point.
fn whole_sweeps(
    baseline: &[Trial],
    tuned: &[Trial],
    pairing: &Pairing<'_>,
    findings: &mut Findings,
) {
    for trial in baseline.iter().chain(tuned) {
        let have: BTreeSet<String> = trial.runs().iter().map(load).collect();
        for point in pairing.points.iter().filter(|point| !have.contains(*point)) {
            findings
                .unfair
                .push(format!("sweep: {} has no run with {point}", trial.name()));
        }
    }
}

/// `key` has one value in every run of both arms, else it is a finding (absent counts as null).
fn same_value(
    key: &str,
    arms: &[Vec<&Run>; 2],
    value: impl Fn(&Run) -> Option<Value>,
    expected: &[String],
    findings: &mut Findings,
) {
    let values = arms.each_ref().map(|arm| {
        let mut seen: BTreeMap<String, &Run> = BTreeMap::new();
        for run in arm {
            let value = value(run).unwrap_or(Value::Null);
            seen.entry(value.to_string()).or_insert(run);
        }
        seen
    });
    report_difference(key, &values, expected, findings);
}

type Seen<'a> = BTreeMap<String, &'a Run>;

fn report_difference(
    key: &str,
    [ours, theirs]: &[Seen<'_>; 2],
    expected: &[String],
    findings: &mut Findings,
) {
    let all: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    if all.len() < 2 {
        return;
    }
    let text = format!(
        "{key}: baseline {}, tuned {}",
        values_text(ours),
        values_text(theirs)
    );
    if is_expected(key, expected) {
        findings.expected.push(text);
    } else {
        findings.unfair.push(text);
    }
}

/// Whether a difference is expected: its key, or the last part of it, was named.
fn is_expected(key: &str, expected: &[String]) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    expected.iter().any(|name| name == key || name == last)
}

fn values_text(seen: &Seen<'_>) -> String {
    let mut texts: Vec<String> = seen
        .iter()
        .map(|(value, run)| {
            let value = shortened(value);
            if seen.len() == 1 {
                value
            } else {
                format!("{value} ({})", run.source)
            }
        })
        .collect();
    if texts.len() > 3 {
        let more = texts.len() - 3;
        texts.truncate(3);
        texts.push(format!("{more} more"));
    }
    if texts.is_empty() {
        return "nothing".to_owned();
    }
    texts.join(" and ")
}

/// A JSON value in at most 60 characters; an `Infinity` that was bare is shown bare.
fn shortened(value: &str) -> String {
    let value = match value {
        "\"Infinity\"" => "Infinity",
        value => value,
    };
    if value.chars().count() <= 60 {
        return value.to_owned();
    }
    let start: String = value.chars().take(59).collect();
    format!("{start}…")
}

/// The resolved server arguments agree, key by key; so does the configuration recorded in a wrapped result.
fn same_server(arms: &[Vec<&Run>; 2], expected: &[String], findings: &mut Findings) {
    same_settings("server_info", arms, expected, findings);
    same_settings("config", arms, expected, findings);
}

/// The object under `name` agrees, key by key.
fn same_settings(name: &str, arms: &[Vec<&Run>; 2], expected: &[String], findings: &mut Findings) {
    let has = |run: &&Run| run.fields.get(name).is_some_and(Value::is_object);
    let with = arms
        .iter()
        .flatten()
        .copied()
        .filter(|run| has(run))
        .count();
    let all = arms.iter().flatten().count();
    if with == 0 && name != "server_info" {
        return;
    }
    if with == 0 {
        findings.notes.push(
            "no run carries server_info: that both servers had the same arguments is not proven"
                .to_owned(),
        );
        return;
    }
    if with < all {
        let missing: Vec<String> = arms
            .iter()
            .flatten()
            .filter(|run| !has(run))
            .map(|run| run.source.to_string())
            .collect();
        findings.unfair.push(format!(
            "{name}: not in {} of {all} runs ({})",
            all - with,
            missing.first().map_or("", String::as_str)
        ));
    }
    let mut seen: BTreeMap<String, [Seen<'_>; 2]> = BTreeMap::new();
    let mut runs_with = [0_usize; 2];
    let mut times: BTreeMap<String, [usize; 2]> = BTreeMap::new();
    for (arm, runs) in arms.iter().enumerate() {
        for run in runs.iter().copied().filter(|run| has(run)) {
            runs_with[arm] += 1;
            let mut leaves = Vec::new();
            flatten(name, &run.fields[name], &mut leaves);
            for (key, value) in leaves {
                times.entry(key.clone()).or_default()[arm] += 1;
                seen.entry(key).or_default()[arm]
                    .entry(value)
                    .or_insert(run);
            }
        }
    }
    // A key that some runs lack counts as null there, unless no run of either arm has another value.
    for (arm, runs) in arms.iter().enumerate() {
        let Some(first) = runs.iter().copied().find(|run| has(run)) else {
            continue;
        };
        for (key, values) in &mut seen {
            if times.get(key).map_or(0, |times| times[arm]) < runs_with[arm] {
                values[arm].entry("null".to_owned()).or_insert(first);
            }
        }
    }
    let mut told: BTreeSet<(String, Vec<String>)> = BTreeSet::new();
    for (key, values) in &seen {
        if values.iter().any(BTreeMap::is_empty) {
            continue; // the whole arm lacks the object: reported above
        }
        let all: BTreeSet<&String> = values.iter().flat_map(BTreeMap::keys).collect();
        if all.len() < 2 || within_tolerance(key, &all) {
            continue;
        }
        // `internal_states` repeats the arguments: report the same difference once.
        let plain = key
            .split_once("internal_states[")
            .and_then(|(_, rest)| rest.split_once("]."))
            .map_or_else(
                || key.trim_start_matches(&format!("{name}.")).to_owned(),
                |(_, plain)| plain.to_owned(),
            );
        let sides = values
            .iter()
            .flat_map(|side| side.keys().cloned().chain(["|".to_owned()]))
            .collect();
        if told.insert((plain.clone(), sides)) {
            report_difference(&format!("{name}.{plain}"), values, expected, findings);
        }
    }
}

/// Every leaf of `value` that a restart must not change, with its path.
fn flatten(path: &str, value: &Value, leaves: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                if !is_reading(key) {
                    flatten(&format!("{path}.{key}"), value, leaves);
                }
            }
        }
        Value::Array(elements) if !elements.is_empty() => {
            for (index, element) in elements.iter().enumerate() {
                flatten(&format!("{path}[{index}]"), element, leaves);
            }
        }
        leaf => leaves.push((path.to_owned(), leaf.to_string())),
    }
}

/// Whether a key of `server_info` is a measurement or a name that differs with each start of a server, rather than a
/// setting: ports and addresses, process ids, seeds, memory and speed readings, times, names of output files. Keys
/// that begin with `_` are SGLang's notes on how a setting was resolved (0.5.16 writes sets there, in any order); the
/// settings themselves are compared.
fn is_reading(key: &str) -> bool {
    const NAMES: [&str; 27] = [
        "host",
        "port",
        "ports",
        "url",
        "base_url",
        "dist_init_addr",
        "ipc_name",
        "pid",
        "pids",
        "seed",
        "random_seed",
        "last_gen_throughput",
        "avg_spec_accept_length",
        "step_time_dict",
        "timestamp",
        "time",
        "start_time",
        "started",
        "started_at",
        "created",
        "uptime",
        "uptime_s",
        "tag",
        "output_file",
        "crash_dump_folder",
        "file_storage_path",
        "log_file",
    ];
    const ENDINGS: [&str; 10] = [
        "_port",
        "_ports",
        "_ipc_name",
        "_pid",
        "_pids",
        "_seed",
        "_timestamp",
        "_start_time",
        "_log_file",
        "_uptime",
    ];
    const PARTS: [&str; 7] = [
        "memory_usage",
        "mem_usage",
        "available_mem",
        "avail_mem",
        "free_mem",
        "memory_free",
        "mem_free",
    ];
    key.starts_with('_')
        || NAMES.contains(&key)
        || ENDINGS.iter().any(|ending| key.ends_with(ending))
        || PARTS.iter().any(|part| key.contains(part))
}

/// Whether the values of a capacity, which follows free memory, are close enough.
fn within_tolerance(key: &str, values: &BTreeSet<&String>) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    if !CAPACITY_KEYS.contains(&last) {
        return false;
    }
    let numbers: Option<Vec<f64>> = values.iter().map(|value| value.parse().ok()).collect();
    numbers.is_some_and(|numbers| {
        let least = numbers.iter().copied().fold(f64::INFINITY, f64::min);
        let most = numbers.iter().copied().fold(0.0, f64::max);
        most <= least * (1.0 + CAPACITY_TOLERANCE)
    })
}
