//! `gemmtune shapes`: the GEMM shapes in server logs and record files.

mod fused_moe;
mod moe;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Read};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use serde::Serialize;

use super::files::{self, refuse_overwriting};
use super::printer::Printer;
use crate::log::scan::{Lines, number_lines, scan};
use crate::log::sections::{SECTION_MIN, scan_file, sections_here};
use crate::log::summary::{Malformed, NkOnly, Seen};
use crate::log::{Capture, CaptureUnit, Limits, LogSummary, input};
use crate::problem::Op;
use crate::problem::op::fused_moe_triton::OP;
use crate::run::error::{Error, ErrorKind};
use crate::table::moe::counted::{CountedProblem, with_problems};
use crate::table::shapes::{self, CountedShape};

/// Most shapes listed in a JSON document; the CSV always has all.
const LISTED: usize = 20_000;

/// Malformed records shown on the terminal.
const SHOWN: usize = 5;

/// Arguments of `gemmtune shapes`.
#[derive(Debug, clap::Args)]
pub struct ShapesArgs {
    /// Server logs, record files of the overlay, folders of either; `-` is standard input
    ///
    /// Files may be compressed (gzip, zstd) and may still be growing.
    #[arg(required = true, value_name = "LOG")]
    logs: Vec<Utf8PathBuf>,

    /// Write the shapes to this CSV file instead of standard output
    #[arg(short, long, value_name = "CSV")]
    output: Option<Utf8PathBuf>,

    /// Write the calls of aiter's fused MoE to this CSV file
    #[arg(long, value_name = "CSV")]
    fused_moe: Option<Utf8PathBuf>,

    /// Operation of shape-dump lines that do not name one
    ///
    /// Without it: `w8a8_block_fp8_matmul` if SGLang's Triton path is the only dispatch identity in the logs, else
    /// `gemm_a8w8_blockscale`.
    #[arg(long, value_name = "OP")]
    op: Option<Op>,
}

#[derive(Serialize)]
struct Summary<'log_summary> {
    bytes: u64,
    records: u64,
    malformed: u64,
    distinct: usize,
    dispatch: Vec<&'log_summary str>,
    seconds: f64,
    files: usize,
    /// Records of shapes beyond the number this program keeps.
    left_out: u64,
    shapes: Vec<ListedShape<'log_summary>>,
    /// Shapes that are in the CSV only.
    shapes_not_listed: usize,
    weights_nk: Vec<Weight<'log_summary>>,
    captures: Vec<&'log_summary Capture>,
    decode_batches: &'log_summary BTreeMap<u32, u64>,
    decode_eager: &'log_summary BTreeMap<u32, u64>,
    prefill_batches: &'log_summary BTreeMap<u32, u64>,
    limits: Vec<&'log_summary Limits>,
    hits: u64,
    misses: u64,
    tables_without_gfx: Vec<&'log_summary str>,
    /// Look-ups in tables of other families, by the stem of the family.
    other_families: &'log_summary BTreeMap<String, u64>,
    /// Keys that aiter's fused MoE looked up, at most as many as shapes.
    fused_moe_keys: Vec<&'log_summary str>,
    #[serde(flatten)]
    aiter_moe: fused_moe::AiterMoe<'log_summary>,
    /// Problems of SGLang's fused MoE, at most as many as shapes.
    fused_moe: Vec<moe::ListedMoe>,
    /// What servers logged about its tables.
    fused_moe_tables: Vec<moe::LookedFor<'log_summary>>,
    processes: usize,
    malformed_records: &'log_summary [Malformed],
}

#[derive(Serialize)]
struct ListedShape<'seen> {
    op: Op,
    #[serde(rename = "M")]
    m: u32,
    #[serde(rename = "N")]
    n: u32,
    #[serde(rename = "K")]
    k: u32,
    dtype: &'seen str,
    records: u64,
    hits: u64,
    misses: u64,
}

#[derive(Serialize)]
struct Weight<'log_summary> {
    #[serde(rename = "N")]
    n: u32,
    #[serde(rename = "K")]
    k: u32,
    #[serde(flatten)]
    only: &'log_summary NkOnly,
}

/// A shape with the number of its look-ups that found a row, and of those that did not.
type LookedUp = (CountedShape, (u64, u64));

/// Reads the logs and writes the shapes.
pub fn run(args: &ShapesArgs, printer: &Printer) -> Result<(), Error> {
    let start = Instant::now();
    let files = logs(&args.logs)?;
    if let Some(output) = &args.output {
        refuse_overwriting(output, files.iter().map(Utf8PathBuf::as_path))?;
    }
    if let Some(output) = &args.fused_moe {
        let others = files.iter().chain(&args.output);
        refuse_overwriting(output, others.map(Utf8PathBuf::as_path))?;
    }
    let mut log_summary = LogSummary::default();
    let progress = Progress::new();
    for file in &files {
        read(file, &mut log_summary, &progress, printer)?;
    }
    progress.finish();
    let seen = log_summary.shapes(args.op);
    let ends = log_summary.hits_and_misses_of(&seen);
    let shapes: Vec<LookedUp> = seen
        .into_iter()
        .map(|Seen { shape, records }| CountedShape { shape, records })
        .zip(ends)
        .collect();
    let problems = log_summary.moe.problems();
    let found = (shapes.as_slice(), problems.as_slice());
    let summary = summary(&log_summary, found, files.len(), start.elapsed());

    // If nothing was found no file is written. If the logs only name weights it has the header alone, so that an
    // older file of that name is not mistaken for their shapes.
    if !log_summary.is_empty() {
        let csv = if summary.hits + summary.misses > 0 {
            shapes::write_looked_up(&shapes)
        } else {
            // There are no look-ups, so there are no columns for them.
            shapes::write(shapes.iter().map(|(shape, _)| shape))
        };
        let csv = with_problems(&csv, OP, &problems);
        match &args.output {
            Some(path) => files::write(path, csv.as_bytes(), printer)?,
            None if printer.is_json() => {}
            None => printer.data(csv.as_bytes())?,
        }
    }
    let wrote_calls = fused_moe::write(&log_summary, args, printer)?;
    if printer.is_json() {
        printer.json(&summary)?;
    }
    if log_summary.is_empty() {
        // The calls were requested, and exist.
        if wrote_calls {
            fused_moe::tell(&log_summary, args, printer);
            return Ok(());
        }
        return Err(nothing_found(&log_summary, files.len()));
    }
    tell(&log_summary, &summary, args, printer);
    for line in moe::told(&log_summary, &problems) {
        printer.say(line);
    }
    Ok(())
}

fn logs(logs: &[Utf8PathBuf]) -> Result<Vec<Utf8PathBuf>, Error> {
    let mut files: Vec<Utf8PathBuf> = Vec::new();
    for log in logs {
        if log == "-" {
            if files.contains(log) {
                return Err(Error::new(
                    ErrorKind::Usage,
                    "standard input (`-`) can be read once only",
                ));
            }
            files.push(log.clone());
            continue;
        }
        let found = input::files(log).map_err(|error| {
            Error::to(ErrorKind::Usage, &format!("find the log `{log}`"), error)
        })?;
        files.extend(found);
    }
    Ok(files)
}

fn read(
    file: &Utf8PathBuf,
    log_summary: &mut LogSummary,
    progress: &Progress,
    printer: &Printer,
) -> Result<(), Error> {
    let opening = |error| Error::to(ErrorKind::Usage, &format!("read the log `{file}`"), error);
    let read = if file != "-" && input::is_plain_file(file) {
        let count = |bytes| progress.add(bytes);
        let read = scan_file(file, sections_here(), SECTION_MIN, log_summary, &count);
        // Line numbers are optional: a log that has vanished meanwhile has none.
        let _ = input::open(file).and_then(|input| number_lines(input, file.as_str(), log_summary));
        read
    } else {
        let input = if file == "-" {
            input::decompressed(io::stdin())
        } else {
            input::open(file)
        };
        let input = input.map_err(opening)?;
        scan(
            Counted { input, progress },
            file.as_str(),
            Lines::Count,
            log_summary,
        )
    };
    if let Err(error) = read {
        progress.finish();
        printer.warn(format!(
            "`{file}` was read only up to an error, what came before it counts: {error}"
        ));
    }
    Ok(())
}

fn summary<'log_summary>(
    log_summary: &'log_summary LogSummary,
    (shapes, problems): (&'log_summary [LookedUp], &[CountedProblem]),
    files: usize,
    elapsed: Duration,
) -> Summary<'log_summary> {
    let listed =
        shapes
            .iter()
            .take(LISTED)
            .map(
                |(CountedShape { shape, records }, (hits, misses))| ListedShape {
                    op: shape.op,
                    m: shape.m,
                    n: shape.n,
                    k: shape.k,
                    dtype: &shape.dtype,
                    records: *records,
                    hits: *hits,
                    misses: *misses,
                },
            );
    let (hits, misses) = log_summary.hits_and_misses();
    Summary {
        bytes: log_summary.bytes,
        records: log_summary.records(),
        malformed: log_summary.malformed,
        distinct: shapes.len(),
        dispatch: log_summary.dispatch.keys().map(String::as_str).collect(),
        seconds: elapsed.as_secs_f64(),
        files,
        left_out: log_summary.left_out,
        shapes: listed.collect(),
        shapes_not_listed: shapes.len().saturating_sub(LISTED),
        weights_nk: log_summary
            .nk_only
            .iter()
            .map(|(&(n, k), only)| Weight { n, k, only })
            .collect(),
        captures: log_summary.captures.keys().collect(),
        decode_batches: &log_summary.decode_batches,
        decode_eager: &log_summary.decode_eager,
        prefill_batches: &log_summary.prefill_batches,
        limits: log_summary.limits.keys().collect(),
        hits,
        misses,
        tables_without_gfx: log_summary
            .legacy_tables
            .keys()
            .map(String::as_str)
            .collect(),
        other_families: &log_summary.others,
        fused_moe_keys: log_summary
            .fused_moe
            .iter()
            .take(LISTED)
            .map(String::as_str)
            .collect(),
        aiter_moe: fused_moe::listed(log_summary),
        fused_moe: moe::listed(problems, LISTED),
        fused_moe_tables: moe::looked_for(log_summary),
        processes: log_summary.hellos.len(),
        malformed_records: &log_summary.malformed_shown,
    }
}

/// Prints what was found, with remarks.
fn tell(log_summary: &LogSummary, summary: &Summary<'_>, args: &ShapesArgs, printer: &Printer) {
    let megabytes = summary.bytes as f64 / 1e6;
    printer.say(format!(
        "{} shapes in {} records of {} files ({megabytes:.1} MB, {:.2} s)",
        summary.distinct, summary.records, summary.files, summary.seconds
    ));
    for identity in &summary.dispatch {
        printer.say(format!("dispatch: {identity}"));
    }
    if summary.hits + summary.misses > 0 {
        printer.say(format!(
            "aiter's look-ups: {} found a row, {} did not",
            summary.hits, summary.misses
        ));
    }
    fused_moe::tell(log_summary, args, printer);
    if let Some(others) = other_operations(log_summary) {
        printer.say(others);
    }
    if summary.malformed > 0 {
        printer.warn(malformed(log_summary));
    }
    if summary.left_out > 0 {
        printer.warn(format!(
            "{} records are of shapes beyond the first {}, and are left out",
            summary.left_out, summary.distinct
        ));
    }
    if summary.distinct == 0 && !summary.weights_nk.is_empty() {
        let mut text = String::from(
            "the logs name weights but no M, so there are no shapes: SGLang's Triton kernel logs (N, K) only\n",
        );
        for weight in &summary.weights_nk {
            let NkOnly {
                default_config,
                tuned_config,
                device,
                ..
            } = weight.only;
            let _ = writeln!(
                text,
                "  N={} K={} on {device}: {}",
                weight.n,
                weight.k,
                match (default_config, tuned_config) {
                    (_, 0) => "no file, the default configuration".to_owned(),
                    (0, _) => "served from a file".to_owned(),
                    (misses, hits) =>
                        format!("served from a file {hits} times, {misses} times without one"),
                }
            );
        }
        let _ = write!(
            text,
            "\nhint: run the server instrumented (`gemmtune instrument apply`), or plan from the model and what \
             this log says: `{}`",
            plan_command(summary)
        );
        printer.warn(text);
    } else if let Some(path) = &args.output {
        printer.say(format!("written to `{path}`"));
    }
}

/// The command for a plan that needs no M from the log: the model's weights, with the graphs, the chunk and the
/// device that the log names.
fn plan_command(summary: &Summary<'_>) -> String {
    let mut command = "gemmtune plan --model config.json --tp N".to_owned();
    let decode = summary
        .captures
        .iter()
        .find(|capture| capture.role.ends_with("decode") && capture.unit == CaptureUnit::Bs);
    if let Some(capture) = decode {
        let tokens = capture.tokens_per_request.unwrap_or(1);
        let sizes: Vec<String> = capture
            .sizes
            .iter()
            .map(|size| size.saturating_mul(tokens).to_string())
            .collect();
        let _ = write!(command, " --capture {}", sizes.join(","));
    }
    let chunk = summary
        .limits
        .iter()
        .find_map(|limits| limits.chunked_prefill_size);
    if let Some(chunk) = chunk {
        let _ = write!(command, " --chunked-prefill {chunk}");
    }
    if let Some(weight) = summary.weights_nk.first() {
        let _ = write!(command, " --device {}", weight.only.device);
    }
    command + " -o untuned.csv"
}

fn malformed(log_summary: &LogSummary) -> String {
    let mut text = format!("{} records are torn or impossible:", log_summary.malformed);
    for shown in log_summary.malformed_shown.iter().take(SHOWN) {
        let line = match shown.line {
            Some(line) => line.to_string(),
            None => format!("byte {}", shown.offset),
        };
        let excerpt: String = shown
            .text
            .chars()
            .map(|letter| if letter.is_control() { ' ' } else { letter })
            .take(80)
            .collect();
        let _ = write!(
            text,
            "\n  {}:{line}: {}: {excerpt}",
            shown.source, shown.reason
        );
    }
    let more = log_summary.malformed.saturating_sub(SHOWN as u64);
    if more > 0 {
        let _ = write!(text, "\n  and {more} more");
    }
    text
}

/// What the logs report about operations that this program does not tune.
fn other_operations(log_summary: &LogSummary) -> Option<String> {
    let count = |count: u64, one: &str, many: &str| match count {
        1 => format!("1 {one}"),
        _ => format!("{count} {many}"),
    };
    let mut named: Vec<String> = log_summary
        .others
        .iter()
        .map(|(family, &times)| match family.as_str() {
            "bf16_tuned_gemm" => count(times, "bf16 look-up", "bf16 look-ups"),
            "a8w8_tuned_batched_gemm" => count(times, "batched look-up", "batched look-ups"),
            "bf16_tuned_batched_gemm" => {
                count(times, "batched bf16 look-up", "batched bf16 look-ups")
            }
            other => count(
                times,
                &format!("look-up in `{other}`"),
                &format!("look-ups in `{other}`"),
            ),
        })
        .collect();
    let keys = log_summary.fused_moe.len() as u64;
    if keys > 0 {
        named.push(count(
            keys,
            "fused-MoE key of aiter",
            "fused-MoE keys of aiter",
        ));
    }
    let way = if log_summary.fmoe.is_empty() {
        ""
    } else {
        "; `--fused-moe FILE` writes the fused-MoE keys as rows for aiter's tuner"
    };
    (!named.is_empty()).then(|| format!("{}: not tuned here yet{way}", named.join(", ")))
}

/// The error for an empty result, with the variable or stage that may be the cause.
fn nothing_found(log_summary: &LogSummary, files: usize) -> Error {
    let failure = |text: &str| {
        Error::new(
            ErrorKind::NoShapes,
            format!("no GEMM shapes were found: {text}"),
        )
    };
    if files == 0 {
        return failure("the folder holds no files")
            .hint("give the server's log, or the folder of the capture stage");
    }
    if log_summary.bytes == 0 {
        return failure("the logs are empty")
            .hint("look at the capture stage: the server wrote nothing, or wrote elsewhere (SGLang logs to standard error)");
    }
    if log_summary.malformed > 0 {
        return failure(&malformed(log_summary)).hint(
            "write the log to a file instead of through a pipe, or use the overlay's record files",
        );
    }
    if !log_summary.hellos.is_empty() {
        return failure(&format!(
            "the overlay was loaded in {} processes, and none ran a block-FP8 GEMM",
            log_summary.hellos.len()
        ))
        .hint("send requests before the server stops, and check that the checkpoint is block FP8 (`weight_block_size` in its config.json)");
    }
    if let Some(others) = other_operations(log_summary) {
        return failure(&others)
            .hint("serve a block-FP8 or per-channel FP8 model whose GEMMs this program tunes");
    }
    let triton = |identity: &String| identity.starts_with("triton_w8a8_block_fp8_linear");
    match log_summary.dispatch.keys().next() {
        Some(identity) if triton(identity) => failure(&format!("the server serves with `{identity}`, which the dump does not hook"))
            .hint("set SGLANG_USE_AITER=1 before the server starts, on ROCm")
            .hint("or capture with the overlay: `gemmtune instrument apply --mode overlay`"),
        Some(identity) => failure(&format!("the dispatch identity is there (`{identity}`), the shape dump is not"))
            .hint("set SGLANG_DUMP_AITER_FP8_GEMM_SHAPES=1 in the server's environment, and send requests"),
        None => failure("neither shape-dump lines nor look-up lines of aiter")
            .hint("instrument the tree that the server really imports (`gemmtune instrument apply`), then start it with SGLANG_DUMP_AITER_FP8_GEMM_SHAPES=1 and SGLANG_LOG_FP8_BLOCK_GEMM_DISPATCH=1")
            .hint("a server started with --log-level warning or error, or AITER_LOG_LEVEL above INFO, hides these lines"),
    }
}

/// Displays the progress of reading, only on a terminal and after a second. Several threads may read.
struct Progress {
    drawn: Mutex<Drawn>,
    start: Instant,
    wanted: bool,
}

#[derive(Default)]
struct Drawn {
    bar: Option<indicatif::ProgressBar>,
    bytes: u64,
}

impl Progress {
    fn new() -> Self {
        Self {
            drawn: Mutex::default(),
            start: Instant::now(),
            wanted: io::stderr().is_terminal(),
        }
    }

    fn add(&self, bytes: u64) {
        if !self.wanted {
            return;
        }
        let mut drawn = self.drawn();
        drawn.bytes += bytes;
        if drawn.bar.is_none() && self.start.elapsed() > Duration::from_secs(1) {
            let style = indicatif::ProgressStyle::with_template("read {bytes} ({bytes_per_sec})");
            let bar = indicatif::ProgressBar::new_spinner();
            drawn.bar = Some(match style {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            });
        }
        if let Some(bar) = &drawn.bar {
            bar.set_position(drawn.bytes);
        }
    }

    fn finish(&self) {
        if let Some(bar) = self.drawn().bar.take() {
            bar.finish_and_clear();
        }
    }

    fn drawn(&self) -> MutexGuard<'_, Drawn> {
        self.drawn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reader that reports the number of bytes read.
struct Counted<'progress> {
    input: Box<dyn Read>,
    progress: &'progress Progress,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.progress.add(read as u64);
        Ok(read)
    }
}
