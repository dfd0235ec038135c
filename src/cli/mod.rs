//! The command line: arguments, messages, progress and exit codes. One file per subcommand.
//!
//! Only this room prints. Messages go to standard error, data to standard output.

pub mod bench;
pub mod compare;
pub mod completions;
pub mod demo;
pub mod doctor;
mod dry_run;
mod eta;
mod files;
mod help;
pub mod init;
pub mod instrument;
pub mod keeper;
pub mod lint;
pub mod lookup;
pub mod man;
pub mod merge;
mod next_step;
mod outcome;
mod plain;
pub mod plan;
mod plan_thin;
pub mod printer;
pub mod probe;
pub mod profile;
pub mod progress;
#[cfg(test)]
mod reference;
pub mod reference_server;
pub mod reference_worker;
pub mod report;
pub mod run;
pub mod shapes;
pub mod status;
pub mod switch;
pub mod trace;
mod tree_changes;
pub mod tune;
mod tune_aiter;
mod tune_moe;
pub mod tune_progress;
pub mod undo;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::run::error::{Error, ErrorKind};
use printer::Printer;

/// Make the FP8 GEMMs of an LLM server measurably faster, and prove it
#[derive(Debug, Parser)]
#[command(name = "gemmtune", version, max_term_width = 100, help_template = help::template(), after_long_help = crate::run::error::EXIT_CODES)]
struct Cli {
    /// Print exactly one JSON document on standard output
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the whole loop on the built-in reference engine
    Demo(demo::DemoArgs),
    /// Write gemmtune.toml from a launch script or a running server
    Init(init::InitArgs),
    /// Check this machine and its trees; --fix realigns aiter
    Doctor(doctor::DoctorArgs),
    /// Run the loop of a gemmtune.toml, or resume a run
    Run(run::RunArgs),
    /// Show the progress of a run
    Status(status::StatusArgs),
    /// Undo everything a run deployed
    Undo(undo::UndoArgs),
    /// Regenerate a run's report page from its report.json
    Report(report::ReportArgs),
    /// Show which GEMM kernel an SGLang tree calls, and why
    Trace(trace::TraceArgs),
    /// Log GEMM shapes and the dispatch, by overlay or by edits
    Instrument(instrument::InstrumentArgs),
    /// Find the GEMM shapes in server logs and record files
    Shapes(shapes::ShapesArgs),
    /// Plan what to tune, from shapes, tables or a model's config
    Plan(Box<plan::PlanArgs>),
    /// Show which table row the runtime uses for each shape
    Lookup(lookup::LookupArgs),
    /// Check tuned tables: aiter's CSV and SGLang's JSON files
    Lint(lint::LintArgs),
    /// Merge tuned tables: the best valid row per key
    Merge(merge::MergeArgs),
    /// Find the fastest kernel for each shape and write the table
    Tune(tune::TuneArgs),
    /// Force CK or Triton in an SGLang tree, and undo it
    Switch(switch::SwitchArgs),
    /// Check the numerics and speed of what a run deployed
    Probe(probe::ProbeArgs),
    /// Show where a step's time goes, from a server's traces
    Profile(profile::ProfileArgs),
    /// Measure a running OpenAI-style server under load
    Bench(bench::BenchArgs),
    /// Compare the benchmark results of two arms, with a verdict
    Compare(compare::CompareArgs),
    /// Serve a model with the reference engine, on the CPU
    ReferenceServer(reference_server::ReferenceServerArgs),
    /// Print shell completions
    Completions(completions::CompletionsArgs),
    /// Write manual pages
    Man(man::ManArgs),
    /// Time the reference engine's kernels; started by `gemmtune tune`
    #[command(hide = true)]
    ReferenceWorker(reference_worker::ReferenceWorkerArgs),
    /// Keep one child process; started by gemmtune itself
    #[command(hide = true)]
    Keeper(keeper::KeeperArgs),
}

/// Parses the command line, runs the command and reports how it ended.
pub fn main() -> std::process::ExitCode {
    let matches = Cli::command()
        .try_get_matches()
        .unwrap_or_else(|error| refused(&error));
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| refused(&error));
    let printer = Printer::new(cli.json);
    match perform(cli.command, &printer) {
        Ok(code) => code,
        Err(error) => {
            let error =
                next_step::with_next_step(error, matches.subcommand_name().unwrap_or_default());
            printer.error(&error);
            error.exit_code()
        }
    }
}

/// Exits with clap's message about an invalid command line, or with the requested help.
fn refused(error: &clap::Error) -> ! {
    if error.use_stderr() && std::env::args_os().any(|argument| argument == "--json") {
        let failure = Error::new(ErrorKind::Usage, error.render().to_string().trim_end());
        // clap's own message goes to standard error below, and its exit code is that of `ErrorKind::Usage`.
        let _ = Printer::new(true).json(&serde_json::json!({ "error": failure }));
    }
    error.exit()
}

fn perform(command: Command, printer: &Printer) -> Result<std::process::ExitCode, Error> {
    match command {
        Command::Demo(args) => demo::run(&args, printer),
        Command::Init(args) => init::run(&args, printer).map(success),
        Command::Doctor(args) => doctor::run(&args, printer).map(success),
        Command::Run(args) => run::run(&args, printer),
        Command::Status(args) => status::run(&args, printer),
        Command::Undo(args) => undo::run(&args, printer),
        Command::Report(args) => report::run(&args, printer).map(success),
        Command::Trace(args) => trace::run(&args, printer).map(success),
        Command::Instrument(args) => instrument::run(&args, printer).map(success),
        Command::Shapes(args) => shapes::run(&args, printer).map(success),
        Command::Plan(args) => plan::run(&args, printer).map(success),
        Command::Lookup(args) => lookup::run(&args, printer).map(success),
        Command::Lint(args) => lint::run(&args, printer).map(success),
        Command::Merge(args) => merge::run(&args, printer).map(success),
        Command::Tune(args) => tune::run(&args, printer).map(success),
        Command::Switch(args) => switch::run(&args, printer).map(success),
        Command::Probe(args) => probe::run(&args, printer),
        Command::Profile(args) => profile::run(&args, printer).map(success),
        Command::Bench(args) => bench::run(&args, printer).map(success),
        Command::Compare(args) => compare::run(&args, printer).map(success),
        Command::ReferenceServer(args) => reference_server::run(args, printer).map(success),
        Command::Completions(args) => completions::run(&args, printer).map(success),
        Command::Man(args) => man::run(&args, printer).map(success),
        Command::ReferenceWorker(args) => reference_worker::run(&args).map(success),
        Command::Keeper(args) => Ok(keeper::run(&args, printer)),
    }
}

/// The exit code of a command that can only succeed or fail.
fn success((): ()) -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}

/// Ctrl-C as a value, for a command that starts processes or takes long.
fn interrupt() -> Result<crate::proc::Interrupt, Error> {
    let interrupt = crate::proc::Interrupt::new();
    interrupt
        .on_signals()
        .map_err(|error| Error::to(ErrorKind::Environment, "watch for Ctrl-C", error))?;
    Ok(interrupt)
}
