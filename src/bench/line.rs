//! A load that was run, as one line of a result file: the keys and units of `sglang.bench_serving`.
//!
//! Rates are per second of the whole run, latencies milliseconds with `numpy`'s percentiles, arrays
//! under `details` seconds, and only answered requests count, all as SGLang writes them (0.5.16).
//! Where that script has no request-rate limit it writes a bare `Infinity`; here it is `null`, which
//! every JSON reader takes. What SGLang's format has no key for is under `gemmtune`.

use std::io::Write as _;

use camino::Utf8Path;
use serde_json::{Map, Value, json};

use super::client::Answer;
use super::load::{Load, Outcome};
use super::prompt::Kind;
use crate::stats::sample;

/// What goes into the line besides the measurement.
#[derive(Clone, Debug, Default)]
pub struct Extra {
    /// Free text under `tag`.
    pub tag: Option<String>,
    /// The server's resolved arguments.
    pub server_info: Option<Value>,
    /// Position of this trial among all trials of both arms, by which trials are paired.
    pub sequence: Option<u64>,
    /// When the run began, RFC 3339.
    pub started: Option<String>,
    /// Write the arrays of every request (`--output-details`).
    pub details: bool,
}

/// The line as a JSON object, with the keys and units of `sglang.bench_serving`.
pub fn document(load: &Load, outcome: &Outcome, extra: &Extra) -> Map<String, Value> {
    let answers: Vec<(f64, &Answer)> = outcome
        .requests
        .iter()
        .filter_map(|request| Some((request.sent, request.outcome.as_ref().ok()?)))
        .collect();
    let input: u64 = answers
        .iter()
        .map(|(_, answer)| prompt_tokens(load, answer))
        .sum();
    let output: u64 = answers.iter().map(|(_, answer)| answer.tokens()).sum();
    let per_second = |count: f64| {
        if outcome.duration > 0.0 {
            count / outcome.duration
        } else {
            0.0
        }
    };
    let e2e: Vec<f64> = answers.iter().map(|(_, answer)| answer.e2e).collect();
    let (dataset, text_only) = match load.prompt {
        Kind::TokenIds { .. } => ("random-ids", false),
        Kind::Words => ("random-words", true),
    };
    let mut line = object(json!({
        "tag": extra.tag,
        "backend": "gemmtune",
        "model": load.model,
        "dataset_name": dataset,
        "request_rate": null,
        "max_concurrency": load.concurrency,
        "sharegpt_output_len": null,
        "random_input_len": load.input_len,
        "random_output_len": load.output_len,
        "random_range_ratio": 1.0,
        "num_prompts": load.requests,
        "server_info": extra.server_info,
        "duration": outcome.duration,
        "completed": answers.len(),
        "failed": load.requests - answers.len().min(load.requests),
        "total_input_tokens": input,
        "total_input_text_tokens": input,
        "total_input_vision_tokens": 0,
        "total_output_tokens": output,
        "total_output_tokens_retokenized": output,
        "request_throughput": per_second(answers.len() as f64),
        "input_throughput": per_second(input as f64),
        "output_throughput": per_second(output as f64),
        "total_throughput": per_second((input + output) as f64),
    }));
    let tpots: Vec<f64> = answers
        .iter()
        .filter(|(_, answer)| answer.tokens() > 1)
        .map(|(_, answer)| (answer.e2e - answer.ttft) / (answer.tokens() - 1) as f64)
        .collect();
    let ttfts: Vec<f64> = answers.iter().map(|(_, answer)| answer.ttft).collect();
    let itls: Vec<f64> = answers
        .iter()
        .flat_map(|(_, answer)| answer.itls.iter().copied())
        .collect();
    summary(&mut line, "e2e_latency", &e2e);
    summary(&mut line, "ttft", &ttfts);
    summary(&mut line, "tpot", &tpots);
    summary(&mut line, "itl", &itls);
    line.insert(
        "concurrency".to_owned(),
        json!(per_second(e2e.iter().sum())),
    );
    line.insert("accept_length".to_owned(), Value::Null);
    let (tokens, at_once) = peaks(&answers);
    line.insert("max_output_tokens_per_s".to_owned(), json!(tokens as f64));
    line.insert("max_concurrent_requests".to_owned(), json!(at_once));
    line.insert(
        "gemmtune".to_owned(),
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "sequence": extra.sequence,
            "started": extra.started,
            "seed": load.seed,
            "prompt": if text_only { "words" } else { "token ids" },
            "warmup_requests": load.warmup,
            "warmup_failed": outcome.warmup_failed,
            "request_deadline_s": load.deadline.as_secs_f64(),
            "stopped": outcome.stopped,
        }),
    );
    if extra.details {
        details(&mut line, load, outcome);
    }
    line
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn prompt_tokens(load: &Load, answer: &Answer) -> u64 {
    answer.prompt_tokens.unwrap_or(load.input_len as u64)
}

/// Mean, median, standard deviation and percentiles of `seconds`, in milliseconds. Nothing answered
/// gives 0, as `bench_serving` writes it.
fn summary(line: &mut Map<String, Value>, name: &str, seconds: &[f64]) {
    let milliseconds: Vec<f64> = seconds.iter().map(|second| second * 1e3).collect();
    let mut put = |statistic: &str, value: Option<f64>| {
        line.insert(
            format!("{statistic}_{name}_ms"),
            json!(value.unwrap_or(0.0)),
        );
    };
    put("mean", sample::mean(&milliseconds));
    put("median", sample::median(&milliseconds));
    put("std", sample::std(&milliseconds));
    for percent in [90, 95, 99] {
        let share = f64::from(percent) / 100.0;
        put(
            &format!("p{percent}"),
            sample::quantile(&milliseconds, share),
        );
    }
}

/// The most pieces that arrived, and the most requests that were open, in one second of the run.
fn peaks(answers: &[(f64, &Answer)]) -> (u64, u64) {
    let seconds = answers
        .iter()
        .map(|(sent, answer)| (sent + answer.e2e) as usize + 1)
        .max()
        .unwrap_or(0);
    let (mut tokens, mut open) = (vec![0_u64; seconds], vec![0_u64; seconds]);
    for (sent, answer) in answers {
        let mut moment = sent + answer.ttft;
        tokens[moment as usize] += 1;
        for gap in &answer.itls {
            moment += gap;
            tokens[(moment as usize).min(seconds - 1)] += 1;
        }
        for second in &mut open[*sent as usize..=(sent + answer.e2e) as usize] {
            *second += 1;
        }
    }
    let most = |counts: Vec<u64>| counts.into_iter().max().unwrap_or(0);
    (most(tokens), most(open))
}

fn details(line: &mut Map<String, Value>, load: &Load, outcome: &Outcome) {
    let each = |of: &dyn Fn(&Answer) -> Value, absent: Value| -> Value {
        outcome
            .requests
            .iter()
            .map(|request| request.outcome.as_ref().map_or_else(|_| absent.clone(), of))
            .collect()
    };
    let none = json!([]);
    let arrays = [
        (
            "input_lens",
            each(
                &|answer| json!(prompt_tokens(load, answer)),
                json!(load.input_len),
            ),
        ),
        (
            "output_lens",
            each(&|answer| json!(answer.tokens()), json!(0)),
        ),
        ("ttfts", each(&|answer| json!(answer.ttft), json!(0.0))),
        ("itls", each(&|answer| json!(answer.itls), none)),
        (
            "generated_texts",
            each(&|answer| json!(answer.text()), json!("")),
        ),
        (
            "errors",
            outcome
                .requests
                .iter()
                .map(|request| match &request.outcome {
                    Ok(_) => Value::from(""),
                    Err(error) => Value::from(error.to_string()),
                })
                .collect(),
        ),
    ];
    for (key, array) in arrays {
        line.insert(key.to_owned(), array);
    }
}

/// Appends `line` to the result file at `path` as `bench_serving` does, in one write, and syncs it. If an earlier
/// program left the last line without a line end, that is added first, so that only that line is damaged.
pub fn append(path: &Utf8Path, line: &Map<String, Value>) -> std::io::Result<()> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let mut file = fs_err::OpenOptions::new()
        .create(true)
        .read(true)
        .append(true)
        .open(path)?;
    let mut text = String::new();
    if file.metadata()?.len() > 0 {
        file.seek(SeekFrom::End(-1))?;
        let mut last = [0];
        file.read_exact(&mut last)?;
        if last != [b'\n'] {
            text.push('\n');
        }
    }
    text.push_str(&serde_json::to_string(line)?);
    text.push('\n');
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::super::client::RequestError;
    use super::super::load::Request;
    use super::super::result;
    use super::*;

    fn answered(sent: f64, ttft: f64, itls: &[f64]) -> Request {
        Request {
            sent,
            outcome: Ok(Answer {
                ttft,
                itls: itls.to_vec(),
                e2e: ttft + itls.iter().sum::<f64>(),
                pieces: vec![" a".to_owned(); itls.len() + 1],
                prompt_tokens: Some(8),
                completion_tokens: None,
            }),
        }
    }

    fn load() -> Load {
        Load {
            url: "http://127.0.0.1:1".to_owned(),
            model: "m".to_owned(),
            concurrency: 2,
            requests: 3,
            warmup: 1,
            input_len: 8,
            output_len: 3,
            seed: 5,
            prompt: Kind::default(),
            deadline: std::time::Duration::from_secs(9),
        }
    }

    fn outcome() -> Outcome {
        Outcome {
            duration: 2.0,
            requests: vec![
                answered(0.0, 0.5, &[0.1, 0.2]),
                answered(0.0, 0.7, &[0.1, 0.1]),
                Request {
                    sent: 0.8,
                    outcome: Err(RequestError::CutOff {
                        pieces: 1,
                        cause: "reset".to_owned(),
                    }),
                },
            ],
            warmup_failed: 0,
            stopped: false,
        }
    }

    #[test]
    fn the_line_has_the_keys_sglang_writes_and_the_numbers_that_follow() {
        let line = document(&load(), &outcome(), &Extra::default());
        let recorded = include_str!("../../testdata/bench/bench-base.jsonl");
        let recorded = result::parse("recorded", recorded).unwrap();
        for key in recorded[0].fields.keys() {
            assert!(line.contains_key(key), "{key} is missing");
        }
        let number = |key: &str| line[key].as_f64().unwrap();
        let near = |key: &str, value: f64| {
            assert!((number(key) - value).abs() < 1e-9, "{key}: {}", number(key));
        };
        near("completed", 2.0);
        near("failed", 1.0);
        near("total_input_tokens", 16.0);
        near("total_output_tokens", 6.0);
        near("output_throughput", 3.0);
        near("request_throughput", 1.0);
        near("median_ttft_ms", 600.0);
        near("median_e2e_latency_ms", 850.0);
        near("median_tpot_ms", 125.0);
        near("median_itl_ms", 100.0);
        near("concurrency", 0.85);
        near("max_concurrent_requests", 2.0);
        assert!(!line.contains_key("ttfts"));
    }

    #[test]
    fn details_keep_failed_requests_in_their_place() {
        let extra = Extra {
            details: true,
            ..Extra::default()
        };
        let line = document(&load(), &outcome(), &extra);
        assert_eq!(line["ttfts"], json!([0.5, 0.7, 0.0]));
        assert_eq!(
            line["errors"][2],
            "the answer ended early, after 1 pieces: reset"
        );
        assert_eq!(line["output_lens"], json!([3, 3, 0]));
    }

    #[test]
    fn no_answer_at_all_still_gives_a_line() {
        let nothing = Outcome {
            duration: 0.0,
            requests: Vec::new(),
            warmup_failed: 1,
            stopped: true,
        };
        let line = document(&load(), &nothing, &Extra::default());
        assert_eq!(line["completed"], 0);
        assert_eq!(line["output_throughput"], 0.0);
        assert_eq!(line["median_ttft_ms"], 0.0);
    }

    #[test]
    fn lines_are_appended_and_a_torn_one_stays_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = camino::Utf8PathBuf::try_from(folder.path().join("b.jsonl")).unwrap();
        let line = document(&load(), &outcome(), &Extra::default());
        append(&path, &line).unwrap();
        append(&path, &line).unwrap();
        assert_eq!(result::read(&path).unwrap().len(), 2);
        let mut torn = fs_err::read(&path).unwrap();
        torn.truncate(torn.len() - 40);
        fs_err::write(&path, &torn).unwrap();
        append(&path, &line).unwrap();
        let text = fs_err::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 3);
        assert_eq!(
            result::parse("last", text.lines().last().unwrap())
                .unwrap()
                .len(),
            1
        );
    }
}
