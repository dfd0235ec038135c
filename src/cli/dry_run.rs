//! `gemmtune run --dry-run`: what would be run, for how long, and whether the configuration is consistent.

use std::process::ExitCode;

use camino::{Utf8Path, Utf8PathBuf};

use super::printer::Printer;
use crate::proc::paste::line;
use crate::proc::quoted;
use crate::run::error::{Error, ErrorKind};
use crate::run::event::Role;
use crate::run::stage::{Stage, State, TrialEnd};
use crate::store::file::{self, entries};
use crate::store::run_dir::RunDir;
use crate::workload::config::{Config, Launch, Load, Measure};
use crate::workload::duration::spoken;
use crate::workload::env;
use crate::workload::secret::masked_command;

/// Most earlier runs that are searched for the duration of a server start.
const LOOKED_AT: usize = 20;

/// The durations of an earlier server start.
struct Seen {
    run: Utf8PathBuf,
    seconds: f64,
}

/// Describes what continuing `run` would do.
pub(super) fn of_run(run: &RunDir, printer: &Printer) -> Result<ExitCode, Error> {
    let text = file::read_text(&run.config()).map_err(|error| {
        Error::to(
            ErrorKind::NotResumable,
            "read the run's configuration",
            error,
        )
    })?;
    let config = Config::parse(&text)
        .map_err(|error| Error::to(ErrorKind::NotResumable, &error.to_string(), error))?;
    show(&config, seen_in(run, &config).as_ref(), printer)
}

/// Describes what a run of `config` would do; earlier runs are below `runs`.
pub(super) fn of_config(
    config: &Config,
    runs: &Utf8Path,
    printer: &Printer,
) -> Result<ExitCode, Error> {
    show(config, seen(runs, config).as_ref(), printer)
}

/// Refuses a configuration that contradicts itself.
pub(super) fn refuse_contradictions(config: &Config) -> Result<(), Error> {
    let found = contradictions(config);
    match found.as_slice() {
        [] => Ok(()),
        found => Err(Error::new(
            ErrorKind::Usage,
            format!("the configuration contradicts itself: {}", found.join("; ")),
        )
        .hint("make the two agree in gemmtune.toml")),
    }
}

fn contradictions(config: &Config) -> Vec<String> {
    config.contradictions(&|program, path| {
        let path = path.map_or_else(|| env::variable("PATH"), |path| Some(path.to_owned()))?;
        super::init::find(program, &path)
    })
}

fn show(config: &Config, seen: Option<&Seen>, printer: &Printer) -> Result<ExitCode, Error> {
    let server = match config.launch() {
        Ok(Launch::Command(command)) => line(&masked_command(command)),
        Ok(Launch::Script(script)) => format!("bash {}", quoted(script)),
        Err(error) => return Err(Error::to(ErrorKind::Usage, &error.to_string(), error)),
    };
    let benchmark = match config.measure() {
        Ok(Measure::Command { command, results }) => {
            format!("{} (results: {results})", line(&masked_command(command)))
        }
        Ok(Measure::Builtin(loads)) => loads.iter().map(in_words).collect::<Vec<_>>().join("; "),
        Err(error) => return Err(Error::to(ErrorKind::Usage, &error.to_string(), error)),
    };
    // Baseline, capture and verify start the server once each.
    let starts = 3 + config.compare.pairs * 2;
    let seconds = seen.map(|seen| seen.seconds * f64::from(starts));
    let notes = notes(config);
    if printer.is_json() {
        printer.json(&serde_json::json!({
            "server": server,
            "ready": config.ready_url(),
            "benchmark": benchmark,
            "stages": Stage::ALL.map(Stage::name),
            "server_starts": starts,
            "tune_budget": config.budget.tune.to_string(),
            "seconds_per_start": seen.map(|seen| seen.seconds),
            "seconds_without_tuning": seconds,
            "contradictions": contradictions(config),
            "notes": notes,
        }))?;
    } else {
        let budget = config.budget.tune;
        let how_long = match (seen, seconds) {
            (Some(seen), Some(seconds)) => format!(
                "about {} for {starts} starts of {} each (as in {}), and at most {budget} for tuning",
                spoken(seconds),
                spoken(seen.seconds),
                seen.run
            ),
            _ => format!(
                "{starts} times a server start with its benchmark, and at most {budget} for tuning; \
                 `gemmtune run --until baseline` measures one, and the run continues from there"
            ),
        };
        printer.say(format!(
            "would start   {server}\n\
             until ready   {}\n\
             and run       {benchmark}\n\
             stages        {}\n\
             server starts {starts}: baseline, capture, verify and {} interleaved pairs\n\
             how long      {how_long}\n\
             {}nothing was run",
            config.ready_url(),
            Stage::ALL.map(Stage::name).join(", "),
            config.compare.pairs,
            notes.iter().fold(String::new(), |text, note| text
                + "note          "
                + note
                + "\n"),
        ));
    }
    refuse_contradictions(config)?;
    Ok(ExitCode::SUCCESS)
}

/// Remarks to make before a server is started.
fn notes(config: &Config) -> Vec<String> {
    let taken = config.backend.table.as_ref();
    let taken = taken.map(|table| format!("nothing would be tuned: {table} is judged as it is"));
    let unread = super::init::gpu().and_then(|gpu| config.unread_tables(&gpu));
    let loads = match config.measure() {
        Ok(Measure::Builtin(loads)) => loads,
        _ => &[],
    };
    let few = loads.iter().filter_map(Load::remark);
    taken.into_iter().chain(unread).chain(few).collect()
}

/// The newest run of this workload that has served its baseline, and how long that took.
fn seen(runs: &Utf8Path, config: &Config) -> Option<Seen> {
    let mut folders: Vec<Utf8PathBuf> = entries(runs)
        .ok()?
        .into_iter()
        .filter(|entry| entry.file_name().contains(&config.workload.name))
        .map(camino::Utf8DirEntry::into_path)
        .collect();
    // Their names begin with the time.
    folders.sort();
    let newest = folders.into_iter().rev().take(LOOKED_AT);
    newest
        .filter_map(|folder| RunDir::open(&folder).ok())
        .find_map(|run| seen_in(&run, config))
}

fn seen_in(run: &RunDir, config: &Config) -> Option<Seen> {
    let text = file::read_text(&run.config()).ok()?;
    let begun = Config::parse(&text).ok()?;
    if (&begun.server, &begun.benchmark) != (&config.server, &config.benchmark) {
        return None;
    }
    let events = crate::engine::read_events(run).ok()?;
    let state = State::fold(events.iter().map(|record| &record.event));
    match state.finished_trial(Role::Baseline)?.end {
        TrialEnd::Finished { seconds, .. } => Some(Seen {
            run: run.path().to_owned(),
            seconds,
        }),
        _ => None,
    }
}

fn in_words(load: &Load) -> String {
    let name = load.name.as_deref().unwrap_or("built in");
    format!(
        "{name}: {} requests, {} at once, {} tokens in, {} out",
        load.prompts, load.concurrency, load.input_len, load.output_len
    )
}
