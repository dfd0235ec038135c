//! `gemmtune run`: the loop, from one configuration file or on from an interrupted run.

use std::process::ExitCode;

use camino::{Utf8Path, Utf8PathBuf};

use super::printer::Printer;
use super::progress::RunProgress;
use crate::engine::{Engine, Finish, Surroundings, digest};
use crate::proc::Keeper;
use crate::run::error::{Error, ErrorKind};
use crate::run::stage::Stage;
use crate::store::run_dir::{LATEST, RUNS, RunDir};
use crate::workload::config::{Config, FILE_NAME};

/// Arguments of `gemmtune run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// A configuration file, or the folder of a run to go on with
    #[arg(default_value = FILE_NAME)]
    path: Utf8PathBuf,
    /// Stop after this stage
    #[arg(long, default_value = "report")]
    until: Stage,
    /// Say what would be run, and run nothing
    #[arg(long)]
    dry_run: bool,
    /// Wall time for the tune stage of a new run, for example 30m
    #[arg(long)]
    budget: Option<crate::workload::duration::Span>,
    /// Begin a new run although the latest one is not finished
    #[arg(long)]
    new: bool,
}

/// Begins or resumes a run.
pub fn run(args: &RunArgs, printer: &Printer) -> Result<ExitCode, Error> {
    if args.path.is_dir() {
        let run = open(&args.path)?;
        return if args.dry_run {
            dry_run_of(&run, printer)
        } else {
            go_on(run, args.until, printer)
        };
    }
    let config = read_config(&args.path, args.budget)?;
    if args.dry_run {
        return dry_run(&config, printer);
    }
    let runs = folder_of(&args.path).join(RUNS);
    if !args.new
        && let Some(run) = unfinished(&runs)?
    {
        refuse_other_configuration(&run, &config)?;
        printer.say(format!("resuming {}", run.path()));
        return go_on(run, args.until, printer);
    }
    begin(&runs, config, args.until, printer)
}

/// Begins a run of `config` in a new folder below `runs`.
pub(super) fn begin(
    runs: &Utf8Path,
    config: Config,
    until: Stage,
    printer: &Printer,
) -> Result<ExitCode, Error> {
    let run = RunDir::create(runs, &config.workload.name, jiff::Timestamp::now())
        .map_err(|error| Error::to(ErrorKind::Environment, "create the run folder", error))?;
    printer.say(format!("run folder {}", run.path()));
    drive(printer, run, until, |run, with| {
        Engine::begin(run, config, with)
    })
}

fn go_on(run: RunDir, until: Stage, printer: &Printer) -> Result<ExitCode, Error> {
    drive(printer, run, until, |run, with| Engine::resume(run, with))
}

fn drive(
    printer: &Printer,
    run: RunDir,
    until: Stage,
    open: impl FnOnce(RunDir, Surroundings<'_>) -> Result<Engine<'_>, Error>,
) -> Result<ExitCode, Error> {
    let path = run.path().to_owned();
    let interrupt = super::interrupt()?;
    let mut progress = RunProgress::new(printer);
    let mut observer = |notice: &crate::run::event::Notice| progress.show(notice);
    let with = Surroundings {
        keeper: keeper()?,
        interrupt,
        observer: &mut observer,
        command: format!("gemmtune run {path}"),
    };
    let finish = open(run, with).and_then(|mut engine| engine.run(until));
    drop(progress);
    match finish {
        Ok(Finish::Complete) => super::outcome::show(&path, printer),
        Ok(Finish::Paused) => {
            printer.say(format!(
                "done up to {until}; go on with `gemmtune run {path}`"
            ));
            if printer.is_json() {
                printer.json(&serde_json::json!({ "run_dir": path, "finished": until.name() }))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => Err(error.hint(format!("go on with `gemmtune run {path}`"))),
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

fn read_config(
    path: &Utf8Path,
    budget: Option<crate::workload::duration::Span>,
) -> Result<Config, Error> {
    let text = fs_err::read_to_string(path).map_err(|error| {
        Error::to(ErrorKind::Usage, "read the configuration", error)
            .hint("write one with `gemmtune init SCRIPT`, or try `gemmtune demo`")
    })?;
    let mut config = Config::parse(&text)
        .map_err(|error| Error::to(ErrorKind::Usage, &error.to_string(), error))?;
    if let Some(budget) = budget {
        config.budget.tune = budget;
    }
    let folder = folder_of(path)
        .canonicalize_utf8()
        .map_err(|error| Error::to(ErrorKind::Usage, "find the configuration's folder", error))?;
    config.resolve(&folder);
    Ok(config)
}

fn folder_of(path: &Utf8Path) -> &Utf8Path {
    match path.parent() {
        Some(folder) if !folder.as_str().is_empty() => folder,
        _ => Utf8Path::new("."),
    }
}

/// The latest run below `runs`, when it has begun and not written its report.
fn unfinished(runs: &Utf8Path) -> Result<Option<RunDir>, Error> {
    let latest = runs.join(LATEST);
    // A process killed while it laid the folder out has left nothing to go on with.
    let Ok(run) = RunDir::open(&latest) else {
        return Ok(None);
    };
    let events = crate::engine::read_events(&run)?;
    let state = crate::run::stage::State::fold(events.iter().map(|record| &record.event));
    Ok((!events.is_empty() && !state.has_finished(Stage::Report)).then_some(run))
}

fn refuse_other_configuration(run: &RunDir, config: &Config) -> Result<(), Error> {
    let recorded = fs_err::read(run.config()).map_err(|error| {
        Error::to(
            ErrorKind::NotResumable,
            "read the run's configuration",
            error,
        )
    })?;
    let wanted = config.to_toml();
    if digest(&recorded) == digest(wanted.as_bytes()) {
        return Ok(());
    }
    let diff = similar::TextDiff::from_lines(&*String::from_utf8_lossy(&recorded), &wanted)
        .unified_diff()
        .context_radius(0)
        .to_string();
    Err(Error::new(
        ErrorKind::NotResumable,
        format!(
            "the unfinished run {} was begun with another configuration:\n{diff}",
            run.path()
        ),
    )
    .hint(format!(
        "go on with it as it was: `gemmtune run {}`; or begin a new one: `gemmtune run --new`",
        run.path()
    )))
}

fn dry_run_of(run: &RunDir, printer: &Printer) -> Result<ExitCode, Error> {
    let text = fs_err::read_to_string(run.config()).map_err(|error| {
        Error::to(
            ErrorKind::NotResumable,
            "read the run's configuration",
            error,
        )
    })?;
    let config = Config::parse(&text)
        .map_err(|error| Error::to(ErrorKind::NotResumable, &error.to_string(), error))?;
    dry_run(&config, printer)
}

fn dry_run(config: &Config, printer: &Printer) -> Result<ExitCode, Error> {
    use crate::workload::config::{Launch, Measure};
    let quoted = |argv: &[String]| {
        shlex::try_join(argv.iter().map(String::as_str)).unwrap_or_else(|_| argv.join(" "))
    };
    let server = match config.launch() {
        Ok(Launch::Command(command)) => quoted(command),
        Ok(Launch::Script(script)) => format!("bash {script}"),
        Err(error) => return Err(Error::to(ErrorKind::Usage, &error.to_string(), error)),
    };
    let benchmark = match config.measure() {
        Ok(Measure::Command { command, results }) => {
            format!("{} (results: {results})", quoted(command))
        }
        Ok(Measure::Builtin(loads)) => loads.iter().map(in_words).collect::<Vec<_>>().join("; "),
        Err(error) => return Err(Error::to(ErrorKind::Usage, &error.to_string(), error)),
    };
    let starts = 3 + config.compare.pairs * 2;
    if printer.is_json() {
        printer.json(&serde_json::json!({
            "server": server,
            "ready": config.ready_url(),
            "benchmark": benchmark,
            "stages": Stage::ALL.map(Stage::name),
            "server_starts": starts,
            "tune_budget": config.budget.tune.to_string(),
        }))?;
    } else {
        printer.say(format!(
            "would start   {server}\n\
             until ready   {}\n\
             and run       {benchmark}\n\
             stages        {}\n\
             server starts {starts}: baseline, capture, verify and {} interleaved pairs\n\
             tune budget   {}\n\
             nothing was run",
            config.ready_url(),
            Stage::ALL.map(Stage::name).join(", "),
            config.compare.pairs,
            config.budget.tune,
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn in_words(load: &crate::workload::config::Load) -> String {
    let name = load.name.as_deref().unwrap_or("built in");
    format!(
        "{name}: {} requests, {} at once, {} tokens in, {} out",
        load.prompts, load.concurrency, load.input_len, load.output_len
    )
}
