//! `gemmtune bench`: a closed-loop load on an OpenAI-style server, one line of results.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use camino::Utf8PathBuf;

use super::printer::Printer;
use crate::bench::line::{self, Extra};
use crate::bench::load::{self, Load, Progress};
use crate::bench::{client, prompt};
use crate::run::error::{Error, ErrorKind};
use crate::workload::secret::Secrets;

/// Arguments of `gemmtune bench`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code 12 when a request failed (the line is written all the same and says how \
    many), 13 when the server lists no model."
)]
pub struct BenchArgs {
    /// Base URL of the server, for example http://127.0.0.1:30000
    #[arg(long)]
    url: String,

    /// Model name as the server knows it [default: the first that /v1/models lists]
    #[arg(long)]
    model: Option<String>,

    /// Requests in flight at once
    #[arg(long, default_value_t = 8, value_name = "COUNT")]
    concurrency: usize,

    /// Requests measured
    #[arg(long, default_value_t = 64, value_name = "COUNT")]
    requests: usize,

    /// Requests sent before, with prompts of their own, not measured [default: one per concurrent request]
    #[arg(long, value_name = "COUNT")]
    warmup: Option<usize>,

    /// Length of each prompt in tokens, or in words with --words
    #[arg(long, default_value_t = 128, value_name = "LENGTH")]
    input_len: usize,

    /// Tokens generated for each; the end-of-text token is ignored
    #[arg(long, default_value_t = 128, value_name = "TOKENS")]
    output_len: usize,

    /// Names the prompts: the same seed is the same prompts everywhere
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Send English words instead of token ids
    #[arg(long)]
    words: bool,

    /// Range of the token ids in prompts, FIRST-LAST
    #[arg(long, default_value = "16-500", value_name = "RANGE", value_parser = ids, conflicts_with = "words")]
    token_ids: prompt::Kind,

    /// Seconds after which one request has failed
    #[arg(long, default_value_t = 600.0, value_name = "SECONDS", value_parser = seconds)]
    deadline: f64,

    /// Ask the server to empty its prefix cache first
    #[arg(long)]
    flush_cache: bool,

    /// Text kept under `tag`
    #[arg(long)]
    tag: Option<String>,

    /// Place of this run among the trials of both arms: `compare` pairs by it
    #[arg(long, value_name = "NUMBER")]
    sequence: Option<u64>,

    /// Write times and texts of every request too
    #[arg(long)]
    details: bool,

    /// File the line is appended to
    #[arg(short, long, value_name = "FILE")]
    output: Option<Utf8PathBuf>,
}

fn ids(text: &str) -> Result<prompt::Kind, String> {
    let range = text.split_once('-').and_then(|(first, last)| {
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first <= last).then_some(prompt::Kind::TokenIds { first, last })
    });
    range.ok_or_else(|| "expected FIRST-LAST, for example 16-500".to_owned())
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 1e7 => Ok(seconds),
        _ => Err("expected a number of seconds above 0".to_owned()),
    }
}

/// Runs the load and writes the line; an error with exit code 12 when a request failed.
pub fn run(args: &BenchArgs, printer: &Printer) -> Result<(), Error> {
    let model = match &args.model {
        Some(model) => model.clone(),
        None => client::first_model(&args.url).ok_or_else(|| {
            Error::new(
                ErrorKind::ServerNotReady,
                format!("`{}` lists no model under /v1/models", args.url),
            )
            .hint("check that the server runs and is ready, or name the model with --model")
        })?,
    };
    if args.flush_cache && !client::flush_cache(&args.url) {
        printer.warn("the server did not empty its prefix cache; measuring all the same");
    }
    let load = Load {
        url: args.url.clone(),
        model,
        concurrency: args.concurrency,
        requests: args.requests,
        warmup: args.warmup.unwrap_or(args.concurrency),
        input_len: args.input_len,
        output_len: args.output_len,
        seed: args.seed,
        prompt: if args.words {
            prompt::Kind::Words
        } else {
            args.token_ids
        },
        deadline: Duration::from_secs_f64(args.deadline),
    };
    let started = jiff::Timestamp::now().to_string();
    let outcome = load::run(&load, &AtomicBool::new(false), &|step| tell(printer, step))
        .map_err(|error| Error::to(ErrorKind::Usage, "measure", error))?;
    let line = line::document(
        &load,
        &outcome,
        &Extra {
            tag: args.tag.clone(),
            server_info: client::server_info(&args.url).map(|mut info| {
                Secrets::default().mask_json(&mut info);
                info
            }),
            sequence: args.sequence,
            started: Some(started),
            details: args.details,
        },
    );
    if let Some(path) = &args.output {
        line::append(path, &line).map_err(|error| {
            Error::to(ErrorKind::Usage, "append the result", error)
                .hint("choose a writable file with --output")
        })?;
    }
    if printer.is_json() {
        printer.json(&line)?;
    } else {
        printer.data(summary(&line).as_bytes())?;
    }
    let failed = outcome.failed();
    if failed == 0 {
        return Ok(());
    }
    let first = outcome
        .requests
        .iter()
        .find_map(|request| request.outcome.as_ref().err())
        .map_or_else(String::new, ToString::to_string);
    Err(Error::new(
        ErrorKind::WorkloadFailed,
        format!("{failed} of {} requests failed; the first: {first}", load.requests),
    )
    .hint("read the server's log; --deadline gives a slow server more time, --details keeps every error"))
}

/// Reports the end of the warm-up and each tenth of the requests.
fn tell(printer: &Printer, step: Progress) {
    match step {
        Progress::Answering => {}
        Progress::WarmedUp { failed: 0 } => printer.say("warmed up"),
        Progress::WarmedUp { failed } => printer.warn(format!("{failed} warm-up requests failed")),
        Progress::Answered { done, of, failed } => {
            let tenths = |done: usize| done * 10 / of;
            if tenths(done) > tenths(done - 1) {
                let failed = if failed == 0 {
                    String::new()
                } else {
                    format!(", {failed} failed")
                };
                printer.say(format!("{done} of {of} requests{failed}"));
            }
        }
    }
}

/// The headline numbers for display.
fn summary(line: &serde_json::Map<String, serde_json::Value>) -> String {
    let number = |key: &str| {
        line.get(key)
            .and_then(serde_json::Value::as_f64)
            .unwrap_or(0.0)
    };
    format!(
        "requests           {} completed, {} failed in {:.2} s\n\
         output throughput  {:.2} tok/s\n\
         TTFT               {:.2} ms median, {:.2} ms p99\n\
         TPOT               {:.2} ms median\n\
         ITL                {:.2} ms median\n\
         end to end         {:.2} ms median\n",
        number("completed"),
        number("failed"),
        number("duration"),
        number("output_throughput"),
        number("median_ttft_ms"),
        number("p99_ttft_ms"),
        number("median_tpot_ms"),
        number("median_itl_ms"),
        number("median_e2e_latency_ms"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_token_ids_reads() {
        assert_eq!(ids("3-9"), Ok(prompt::Kind::TokenIds { first: 3, last: 9 }));
        assert!(ids("9-3").is_err());
        assert!(ids("9").is_err());
        assert!(seconds("0").is_err());
        assert!(seconds("NaN").is_err());
    }
}
