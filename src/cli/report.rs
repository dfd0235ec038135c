//! `gemmtune report`: makes the page and the summary again from a run's `report.json`.

use camino::Utf8PathBuf;

use super::printer::Printer;
use crate::report::{self, ReportError};
use crate::run::error::{Error, ErrorKind};

/// Arguments of `gemmtune report`.
#[derive(Debug, clap::Args)]
pub struct ReportArgs {
    /// Run folder that holds report.json
    #[arg(default_value = "runs/latest", value_name = "RUN_DIR")]
    folder: Utf8PathBuf,
}

/// Reads `report.json`, writes both files, and prints the path of the page, or the document with `--json`.
pub fn run(args: &ReportArgs, printer: &Printer) -> Result<(), Error> {
    let report = report::read(&args.folder).map_err(|error| {
        let hint = match error {
            ReportError::Newer { .. } => "use the gemmtune that wrote it, or a newer one",
            _ => {
                "name a run folder that has finished its report stage; `gemmtune status RUN_DIR` says how \
                 far one has got, `gemmtune run` resumes it"
            }
        };
        Error::to(ErrorKind::Usage, "make the report", error).hint(hint)
    })?;
    let page = report::write(&report, &args.folder)
        .map_err(|error| Error::to(ErrorKind::Environment, "make the report", error))?;
    if printer.is_json() {
        printer.json(&report)
    } else {
        printer.data(format!("{page}\n").as_bytes())
    }
}
