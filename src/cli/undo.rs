//! `gemmtune undo`: undoes what a run deployed.

use std::process::ExitCode;

use camino::{Utf8Path, Utf8PathBuf};

use super::printer::Printer;
use super::progress::RunProgress;
use crate::engine::{Engine, Surroundings, damage, undo_damaged};
use crate::proc::quoted;
use crate::run::error::Error;
use crate::run::event::{Event, Notice};
use crate::run::stage::Stage;
use crate::store::run_dir::RunDir;

/// Arguments of `gemmtune undo`.
#[derive(Debug, clap::Args)]
pub struct UndoArgs {
    /// A run folder; the latest of this folder's runs when absent
    run: Option<Utf8PathBuf>,
    /// Say what would be taken back, and touch nothing
    #[arg(long)]
    dry_run: bool,
}

/// Undoes what the run deployed, to the byte.
pub fn run(args: &UndoArgs, printer: &Printer) -> Result<ExitCode, Error> {
    let run = super::run::open(&super::status::chosen(args.run.as_ref()))?;
    let path = run.path().to_owned();
    let command = format!("gemmtune undo {}", quoted(&path));
    if let Some(damage) = damage(&run) {
        return by_the_ledger(&run, &damage, &command, args, printer);
    }
    let interrupt = super::interrupt()?;
    let mut progress = RunProgress::new(printer, None);
    let mut observer = |notice: &Notice| {
        // The run is opened as for resuming, but is not resumed.
        if !matches!(notice, Notice::Recorded(Event::RunResumed { .. })) {
            progress.show(notice);
        }
    };
    let with = Surroundings {
        backend: crate::backend::of,
        keeper: super::run::keeper()?,
        interrupt,
        observer: &mut observer,
        command,
    };
    let result = Engine::resume(run, with).and_then(|mut engine| {
        let taken_back = engine.deployed()?;
        let deployed = engine.state().has_finished(Stage::Deploy) || !taken_back.is_empty();
        if deployed && !args.dry_run {
            engine.undo("asked for with `gemmtune undo`")?;
        }
        Ok((deployed, taken_back))
    });
    drop(progress);
    let (deployed, taken_back) = result?;
    tell(args, printer, &path, deployed, taken_back)
}

/// Undoes what is in the ledger, if the journal or the configuration of the run cannot be relied on.
fn by_the_ledger(
    run: &RunDir,
    damage: &Error,
    command: &str,
    args: &UndoArgs,
    printer: &Printer,
) -> Result<ExitCode, Error> {
    let taken_back = undo_damaged(run, command, args.dry_run)?;
    printer.warn(format!(
        "{damage}: what was changed outside the run folder is known from its ledger alone"
    ));
    let changed = !taken_back.is_empty();
    tell(args, printer, run.path(), changed, taken_back)
}

fn tell(
    args: &UndoArgs,
    printer: &Printer,
    path: &Utf8Path,
    deployed: bool,
    taken_back: Vec<String>,
) -> Result<ExitCode, Error> {
    if printer.is_json() {
        printer.json(&serde_json::json!({
            "run_dir": path,
            "deployed": deployed,
            "undone": deployed && !args.dry_run,
            "what": taken_back,
        }))?;
    } else if !deployed {
        printer.say("nothing is deployed by this run");
    } else {
        let word = if args.dry_run {
            "would take back"
        } else {
            "took back"
        };
        for what in taken_back {
            printer.say(format!("{word} {what}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}
