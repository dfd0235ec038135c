//! `gemmtune run`: the loop, started from a configuration file or continued after an interruption.

use std::process::ExitCode;

use camino::{Utf8Path, Utf8PathBuf};

use super::dry_run;
use super::eta::RunEta;
use super::printer::Printer;
use super::progress::RunProgress;
use crate::engine::{Engine, Finish, Surroundings};
use crate::proc::{Keeper, quoted};
use crate::run::error::{Error, ErrorKind};
use crate::run::event::Event;
use crate::run::stage::{Stage, State, Trial, TrialEnd};
use crate::store::digest::short as digest;
use crate::store::file;
use crate::store::journal::Record;
use crate::store::run_dir::{LATEST, RUNS, RunDir};
use crate::workload::config::{self, Config, ConfigError, FILE_NAME};
use crate::workload::env;
use crate::workload::secret::Secrets;

/// Arguments of `gemmtune run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// A configuration file, or the folder of a run to resume; without it gemmtune.toml, or else the latest run
    path: Option<Utf8PathBuf>,
    /// Stop after this stage
    #[arg(long, default_value = "report")]
    until: Stage,
    /// Say what would be run, and run nothing
    #[arg(long)]
    dry_run: bool,
    /// Wall time for the tune stage of a new run, for example 30m
    #[arg(long)]
    budget: Option<crate::workload::duration::Span>,
    /// A table or route from elsewhere: it is deployed and judged as it is, and nothing is tuned
    #[arg(long, value_name = "TABLE")]
    table: Option<Utf8PathBuf>,
    /// Begin a new run although the latest one is not finished
    #[arg(long)]
    new: bool,
}

/// Starts or resumes a run.
pub fn run(args: &RunArgs, printer: &Printer) -> Result<ExitCode, Error> {
    let path = match &args.path {
        Some(path) => path.clone(),
        // A demo has no configuration file.
        None if !args.new && !Utf8Path::new(FILE_NAME).exists() => {
            latest_unfinished()?.unwrap_or_else(|| FILE_NAME.into())
        }
        None => FILE_NAME.into(),
    };
    if path.is_dir() {
        if args.table.is_some() {
            return Err(Error::new(
                ErrorKind::Usage,
                "a run goes on with the table it was begun with",
            )
            .hint("`gemmtune run --new --table TABLE` begins another"));
        }
        let run = open(&path)?;
        keep_secrets(&run, printer);
        return if args.dry_run {
            dry_run::of_run(&run, printer)
        } else {
            printer.say(format!("resuming {}", run.path()));
            go_on(run, args.until, printer)
        };
    }
    let config = read_config(&path, args)?;
    printer.keep(Secrets::of(&config, env::all()));
    let runs = folder_of(&path).join(RUNS);
    if args.dry_run {
        return dry_run::of_config(&config, &runs, printer);
    }
    if !args.new
        && let Some(run) = unfinished(&runs)?
    {
        if is_as_begun(&run, &config)? {
            printer.say(format!("resuming {}", run.path()));
            return go_on(run, args.until, printer);
        }
        printer.say(format!(
            "the configuration was changed since {} began, which had measured nothing yet: beginning a new run",
            run.path()
        ));
    }
    dry_run::refuse_contradictions(&config)?;
    begin(&runs, config, args.until, printer)
}

/// The latest run below the current folder, if it is not finished. A complete one is an error.
fn latest_unfinished() -> Result<Option<Utf8PathBuf>, Error> {
    let runs = Utf8Path::new(RUNS);
    if let Some(run) = unfinished(runs)? {
        return Ok(Some(run.path().to_owned()));
    }
    match RunDir::open(&runs.join(LATEST)) {
        Err(_) => Ok(None),
        Ok(run) => Err(Error::new(
            ErrorKind::Usage,
            format!(
                "there is no `{FILE_NAME}` here, and the latest run, {}, is complete",
                run.path()
            ),
        )
        .hint(format!("its report is {}", run.path().join("report.html")))
        .hint(
            "write a configuration with `gemmtune init SCRIPT`, or begin another `gemmtune demo`",
        )),
    }
}

/// Keeps secrets in the configuration of `run` off the terminal.
fn keep_secrets(run: &RunDir, printer: &Printer) {
    // If it cannot be read, the caller that needs the configuration reports that.
    let text = file::read_text(&run.config()).unwrap_or_default();
    if let Ok(config) = Config::parse(&text) {
        printer.keep(Secrets::of(&config, env::all()));
    }
}

/// Starts a run of `config` in a new folder below `runs`.
pub(super) fn begin(
    runs: &Utf8Path,
    config: Config,
    until: Stage,
    printer: &Printer,
) -> Result<ExitCode, Error> {
    let run = RunDir::create(runs, &config.workload.name, jiff::Timestamp::now())
        .map_err(|error| Error::to(ErrorKind::Environment, "create the run folder", error))?;
    printer.say(format!("run folder {}", run.path()));
    let eta = RunEta::new(&config, []);
    drive(printer, run, until, Some(eta), |run, with| {
        Engine::begin(run, config, with)
    })
}

fn go_on(run: RunDir, until: Stage, printer: &Printer) -> Result<ExitCode, Error> {
    let eta = eta(&run);
    drive(printer, run, until, eta, |run, with| {
        Engine::resume(run, with)
    })
}

/// The estimated time left, if the run's records can be read; otherwise the resuming engine reports the error.
fn eta(run: &RunDir) -> Option<RunEta> {
    let config = Config::parse(&file::read_text(&run.config()).ok()?).ok()?;
    let records = crate::engine::read_events(run).ok()?;
    let events = records.iter().map(|record| &record.event);
    Some(RunEta::new(&config, events))
}

fn drive(
    printer: &Printer,
    run: RunDir,
    until: Stage,
    eta: Option<RunEta>,
    open: impl FnOnce(RunDir, Surroundings<'_>) -> Result<Engine<'_>, Error>,
) -> Result<ExitCode, Error> {
    let path = run.path().to_owned();
    let interrupt = super::interrupt()?;
    let mut progress = RunProgress::new(printer, eta);
    let mut observer = |notice: &crate::run::event::Notice| progress.show(notice);
    let with = Surroundings {
        backend: crate::backend::of,
        keeper: keeper()?,
        interrupt,
        observer: &mut observer,
        command: format!("gemmtune run {}", quoted(&path)),
    };
    let finish = open(run, with).and_then(|mut engine| engine.run(until));
    drop(progress);
    match finish {
        Ok(Finish::Complete) => super::outcome::show(&path, printer),
        Ok(Finish::Paused) => {
            printer.say(format!(
                "done up to {until}; continue with `gemmtune run {}`",
                quoted(&path)
            ));
            if printer.is_json() {
                printer.json(&serde_json::json!({ "run_dir": path, "finished": until.name() }))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => Err(failed(error, &path)),
    }
}

/// The error of a failed run, with what to do next: never the command that would fail again.
fn failed(error: Error, path: &Utf8Path) -> Error {
    let again = format!("`gemmtune run {}`", quoted(path));
    let nothing_measured = || {
        RunDir::open(path)
            .and_then(|run| crate::engine::read_events(&run).map_err(std::io::Error::other))
            .is_ok_and(|events| has_only_inspected(&events))
    };
    match error.kind() {
        ErrorKind::NotResumable | ErrorKind::Bug => error,
        ErrorKind::NotBetter => error.hint(format!(
            "the server runs as before; `gemmtune status {}` says what was found",
            quoted(path)
        )),
        ErrorKind::Interrupted => error.hint(format!("resume with {again}")),
        ErrorKind::Usage => error.hint("change the configuration, then `gemmtune run --new`"),
        _ if nothing_measured() => error.hint(
            "nothing was measured yet, so the configuration may be changed too: then `gemmtune run` again",
        ),
        _ => error.hint(format!("fix that, then resume with {again}")),
    }
}

/// This binary as the keeper of children.
pub(super) fn keeper() -> Result<Keeper, Error> {
    Keeper::this_binary()
        .map_err(|error| Error::to(ErrorKind::Environment, "find gemmtune's own binary", error))
}

/// Opens the run folder at `path`.
pub(super) fn open(path: &Utf8Path) -> Result<RunDir, Error> {
    RunDir::open(path).map_err(|error| {
        Error::to(ErrorKind::Usage, "open the run", error)
            .hint("begin one with `gemmtune run gemmtune.toml` or `gemmtune demo`")
    })
}

fn read_config(path: &Utf8Path, args: &RunArgs) -> Result<Config, Error> {
    let text = file::read_text(path).map_err(|error| {
        let is_gone = error.kind() == std::io::ErrorKind::NotFound;
        let failure = Error::to(ErrorKind::Usage, "read the configuration", error);
        if is_gone {
            failure.hint("write one with `gemmtune init SCRIPT`, or try `gemmtune demo`")
        } else {
            failure
        }
    })?;
    let mut config = Config::parse(&text).map_err(|error| incomplete(path, &text, error))?;
    if let Some(budget) = args.budget {
        config.budget.tune = budget;
    }
    let folder = folder_of(path)
        .canonicalize_utf8()
        .map_err(|error| Error::to(ErrorKind::Usage, "find the configuration's folder", error))?;
    config.resolve(&folder);
    if let Some(table) = &args.table {
        // A path on the command line is relative to the current folder.
        let table = table.canonicalize_utf8().map_err(|error| {
            Error::to(
                ErrorKind::Usage,
                &format!("find the table `{table}`"),
                error,
            )
        })?;
        config.backend.table = Some(table);
    }
    Ok(config)
}

/// The error for a configuration that cannot be parsed: everything it lacks, if that is the reason, instead of the
/// parser's first error.
fn incomplete(path: &Utf8Path, text: &str, error: ConfigError) -> Error {
    let missing = config::missing(text);
    if missing.is_empty() {
        return Error::to(ErrorKind::Usage, &error.to_string(), error);
    }
    let lines: Vec<String> = missing
        .iter()
        .map(|missing| format!("\n  {missing}"))
        .collect();
    Error::new(
        ErrorKind::Usage,
        format!("`{path}` is not complete; it lacks{}", lines.concat()),
    )
    .hint(format!(
        "fill them in (the lines that start with `# ?`), then `gemmtune run --dry-run {}`",
        quoted(path)
    ))
}

fn folder_of(path: &Utf8Path) -> &Utf8Path {
    match path.parent() {
        Some(folder) if !folder.as_str().is_empty() => folder,
        _ => Utf8Path::new("."),
    }
}

/// The latest run below `runs`, if it has begun but not written its report.
fn unfinished(runs: &Utf8Path) -> Result<Option<RunDir>, Error> {
    let latest = runs.join(LATEST);
    // A process that was killed while creating the folder has left nothing to resume.
    let Ok(run) = RunDir::open(&latest) else {
        return Ok(None);
    };
    let events = crate::engine::read_events(&run)?;
    let state = crate::run::stage::State::fold(events.iter().map(|record| &record.event));
    Ok((!events.is_empty() && !state.has_finished(Stage::Report)).then_some(run))
}

/// Whether the unfinished `run` was started with `config`. Another configuration is refused once something was
/// measured, because the run would compare two workloads.
fn is_as_begun(run: &RunDir, config: &Config) -> Result<bool, Error> {
    let recorded = file::read(&run.config()).map_err(|error| {
        Error::to(
            ErrorKind::NotResumable,
            "read the run's configuration",
            error,
        )
    })?;
    let wanted = config.to_toml();
    if digest(&recorded) == digest(wanted.as_bytes()) {
        return Ok(true);
    }
    let events = crate::engine::read_events(run)?;
    if has_only_inspected(&events) {
        return Ok(false);
    }
    let diff = similar::TextDiff::from_lines(&*String::from_utf8_lossy(&recorded), &wanted)
        .unified_diff()
        .context_radius(0)
        .to_string();
    Err(Error::new(
        ErrorKind::NotResumable,
        format!(
            "the unfinished run {} began with another configuration:\n{diff}",
            run.path()
        ),
    )
    .hint(format!(
        "resume it as it was: `gemmtune run {}`; or begin a new one: `gemmtune run --new`",
        quoted(run.path())
    )))
}

/// Whether nothing beyond `inspect` has finished, so that nothing is lost by starting over.
fn has_only_inspected(events: &[Record<Event>]) -> bool {
    let state = State::fold(events.iter().map(|record| &record.event));
    let measured = |trial: &Trial| matches!(trial.end, TrialEnd::Finished { .. });
    !state.trials().iter().any(measured)
        && Stage::ALL
            .into_iter()
            .all(|stage| stage == Stage::Inspect || !state.has_finished(stage))
}
