//! `gemmtune status`: the status of a run, even while another process works on it.

use std::process::ExitCode;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;

use super::printer::Printer;
use crate::proc::quoted;
use crate::run::error::Error;
use crate::run::stage::{Stage, StageStatus, State, TrialEnd, spent};
use crate::store::lock::Lock;
use crate::store::run_dir::{LATEST, RUNS};
use crate::workload::duration::spoken;

/// Arguments of `gemmtune status`.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// A run folder; the latest of this folder's runs when absent
    run: Option<Utf8PathBuf>,
}

/// The run folder to use: the one given, else the latest below the current folder.
pub(super) fn chosen(run: Option<&Utf8PathBuf>) -> Utf8PathBuf {
    run.cloned()
        .unwrap_or_else(|| Utf8Path::new(RUNS).join(LATEST))
}

/// Prints the status of the run.
pub fn run(args: &StatusArgs, printer: &Printer) -> Result<ExitCode, Error> {
    let run = super::run::open(&chosen(args.run.as_ref()))?;
    let records = crate::engine::read_events(&run)?;
    let state = State::fold(records.iter().map(|record| &record.event));
    let spent = spent(records.iter().map(|record| (record.at, &record.event)));
    let seconds = |stage: Stage| spent.get(&stage).copied().unwrap_or_default();
    // The process that works on a run holds its lock.
    let at_work = Lock::holder(&run.lock());
    let last = records.last().map(|record| record.at);
    if printer.is_json() {
        printer.json(&document(
            run.path(),
            &state,
            &seconds,
            at_work.as_deref(),
            last,
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    printer.say(format!("run       {}", run.path()));
    printer.say(match &at_work {
        Some(holder) => format!("at work   {holder}"),
        None if state.has_finished(Stage::Report) => {
            format!(
                "at work   no process: the run is complete, {}",
                run.path().join("report.html")
            )
        }
        None => format!(
            "at work   no process; resume with `gemmtune run {}`",
            quoted(run.path())
        ),
    });
    for stage in Stage::ALL {
        let (attempts, status) = state.status(stage);
        let text = match status {
            StageStatus::Pending => "-".to_owned(),
            StageStatus::InDoubt if at_work.is_some() => format!("running (attempt {attempts})"),
            StageStatus::InDoubt => "interrupted; will be run again".to_owned(),
            StageStatus::Failed { reason } => format!("failed: {reason}"),
            StageStatus::Finished { summary } => {
                let took = spoken(seconds(stage));
                match attempts {
                    0 | 1 => format!("{summary} ({took})"),
                    attempts => format!("{summary} ({took} in {attempts} attempts)"),
                }
            }
        };
        printer.say(format!("{stage:<9} {text}"));
    }
    let finished = state
        .trials()
        .iter()
        .filter(|trial| matches!(trial.end, TrialEnd::Finished { .. }));
    printer.say(format!(
        "trials    {} finished of {} started",
        finished.count(),
        state.trials().len()
    ));
    for reason in state.undone() {
        printer.say(format!("undone    {reason}"));
    }
    Ok(ExitCode::SUCCESS)
}

fn document(
    path: &Utf8Path,
    state: &State,
    spent: &dyn Fn(Stage) -> f64,
    at_work: Option<&str>,
    last: Option<jiff::Timestamp>,
) -> serde_json::Value {
    let stages: Vec<_> = Stage::ALL
        .into_iter()
        .map(|stage| {
            let (attempts, status) = state.status(stage);
            let (word, text, seconds) = match status {
                StageStatus::Pending => ("pending", None, None),
                StageStatus::InDoubt if at_work.is_some() => ("running", None, None),
                StageStatus::InDoubt => ("interrupted", None, None),
                StageStatus::Failed { reason } => ("failed", Some(reason), None),
                StageStatus::Finished { summary } => {
                    ("finished", Some(summary), Some(spent(stage)))
                }
            };
            json!({
                "stage": stage.name(),
                "standing": word,
                "attempts": attempts,
                "text": text,
                "seconds": seconds,
            })
        })
        .collect();
    let trials: Vec<_> = state
        .trials()
        .iter()
        .map(|trial| {
            let end = match &trial.end {
                TrialEnd::InDoubt => "in_doubt",
                TrialEnd::Failed { .. } => "failed",
                TrialEnd::Finished { .. } => "finished",
            };
            json!({ "trial": trial.number, "role": trial.role.name(), "host": trial.host, "end": end })
        })
        .collect();
    json!({
        "run_dir": path,
        "at_work": at_work,
        "last_record": last.map(|at| at.to_string()),
        "stages": stages,
        "trials": trials,
        "identity": state.identity(),
        "nothing_to_gain": state.nothing_to_gain(),
        "undone": state.undone(),
    })
}
