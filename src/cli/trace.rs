//! `gemmtune trace`: which GEMM kernel an SGLang tree calls.

use camino::Utf8PathBuf;

use super::printer::Printer;
use crate::run::error::{Error, ErrorKind};
use crate::tree::package::{Package, TreeError};
use crate::tree::route::{self, Trace};

/// Arguments of `gemmtune trace`.
#[derive(Debug, clap::Args)]
pub struct TraceArgs {
    /// A folder that holds the `sglang` package, the package itself, or a source checkout
    root: Utf8PathBuf,
}

/// Traces the tree and prints what was found.
pub fn run(args: &TraceArgs, printer: &Printer) -> Result<(), Error> {
    let package = Package::find(&args.root).map_err(failure)?;
    let trace = route::trace(&package).map_err(failure)?;
    if printer.is_json() {
        return printer.json(&trace);
    }
    printer.data(text(&trace).as_bytes())
}

/// The error of a command whose tree cannot be read or is not recognised.
pub(super) fn failure(error: TreeError) -> Error {
    match error {
        TreeError::NoPackage { .. } => Error::new(ErrorKind::Environment, error.to_string()).hint(
            "give the folder that `python -c \"import sglang; print(sglang.__path__)\"` prints",
        ),
        TreeError::Read(error) => Error::to(ErrorKind::Environment, "read the tree", error),
        TreeError::Source(error) => not_recognised(error),
        TreeError::Refused(error) => not_recognised(error),
        TreeError::Edit(_) | TreeError::NotAsAsked(_) => {
            Error::new(ErrorKind::SourceNotRecognised, error.to_string())
                .hint("nothing was changed; `--mode overlay` leaves the tree alone")
        }
    }
}

fn not_recognised(error: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::SourceNotRecognised, error.to_string())
        .hint("known are SGLang 0.5.5 to 0.5.23; nothing was changed, and nothing is guessed")
}

fn text(trace: &Trace) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let version = trace.sglang_version.as_deref().unwrap_or("unknown version");
    let _ = writeln!(text, "SGLang {version}, era {}", trace.era.as_str());
    let _ = writeln!(text, "{}\n", trace.dispatch);
    for path in &trace.paths {
        let rocm = match path.rocm {
            "any" => "any ROCm".to_owned(),
            bound => format!("ROCm {bound}"),
        };
        let _ = writeln!(
            text,
            "{} {rocm}: {}\n    {}",
            path.arch.as_str(),
            path.kernel,
            path.because
        );
    }
    text.push_str("\nforcing CK:\n");
    for force in &trace.force_ck {
        let _ = writeln!(
            text,
            "{}: {:?}: {}",
            force.arch.as_str(),
            force.means,
            force.detail
        );
    }
    text.push_str("\nevidence:\n");
    for line in &trace.evidence {
        let _ = writeln!(text, "{}:{}: {}", line.file, line.line, line.text);
    }
    let sides = &trace.sides;
    for (title, sides) in [
        ("early exits", &sides.side_exits),
        ("per-token path", &sides.per_token),
        ("compressed-tensors", &sides.compressed_tensors),
        ("routed experts", &sides.moe),
    ] {
        if !sides.is_empty() {
            let _ = writeln!(text, "\n{title}:");
        }
        for side in sides {
            let _ = writeln!(text, "{}:{}: {}", side.file, side.line, side.what);
        }
    }
    text.push('\n');
    for note in &trace.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}
