//! `gemmtune keeper`: the hidden process between gemmtune and a child; see [`crate::proc`].

use std::process::ExitCode;
use std::time::Duration;

use super::printer::Printer;

/// Arguments of `gemmtune keeper`.
#[derive(Debug, clap::Args)]
pub struct KeeperArgs {
    /// Inherited descriptor: the read end of the lifeline pipe
    #[arg(long)]
    lifeline_fd: u32,
    /// Milliseconds between SIGTERM and SIGKILL
    #[arg(long)]
    grace_ms: u64,
    /// What the command leaves running outlives it
    #[arg(long)]
    linger: bool,
    /// The command to keep
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Runs the command as its keeper; the exit code is the command's.
pub fn run(args: &KeeperArgs, printer: &Printer) -> ExitCode {
    let grace = Duration::from_millis(args.grace_ms);
    let (code, error) =
        crate::proc::keeper::keep(args.lifeline_fd, grace, args.linger, &args.command);
    if let Some(error) = error {
        printer.say(format!("gemmtune keeper: failed to {error}"));
    }
    ExitCode::from(code)
}
