//! `gemmtune completions`: shell completions from the argument definitions.

use clap::CommandFactory as _;
use clap_complete::Shell;
use serde_json::json;

use super::printer::Printer;
use crate::run::error::Error;

/// Arguments of `gemmtune completions`.
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell to write completions for
    shell: Shell,
}

/// Prints the completion script.
pub fn run(args: &CompletionsArgs, printer: &Printer) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(
        args.shell,
        &mut super::Cli::command(),
        "gemmtune",
        &mut script,
    );
    if printer.is_json() {
        let script = String::from_utf8_lossy(&script);
        return printer.json(&json!({ "shell": args.shell.to_string(), "script": script }));
    }
    printer.data(&script)
}
