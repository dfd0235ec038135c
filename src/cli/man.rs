//! `gemmtune man`: manual pages from the argument definitions.

use camino::Utf8PathBuf;
use clap::CommandFactory as _;
use serde_json::json;

use super::printer::Printer;
use crate::run::error::{Error, ErrorKind};

/// Arguments of `gemmtune man`.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Folder for the pages, made when absent; `man DIR/gemmtune.1` reads one
    dir: Utf8PathBuf,
}

/// Writes one page for the program and one for each subcommand.
pub fn run(args: &ManArgs, printer: &Printer) -> Result<(), Error> {
    fs_err::create_dir_all(&args.dir)
        .map_err(|error| Error::to(ErrorKind::Environment, "create the folder", error))?;
    clap_mangen::generate_to(super::Cli::command(), &args.dir)
        .map_err(|error| Error::to(ErrorKind::Environment, "write the manual pages", error))?;
    let page = args.dir.join("gemmtune.1");
    if printer.is_json() {
        return printer.json(&json!({ "page": page }));
    }
    printer.say(format!("read it with `man {page}`"));
    Ok(())
}
