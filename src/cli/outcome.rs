//! What people and scripts are told when a run is complete.

use std::process::ExitCode;

use camino::Utf8Path;
use serde_json::{Value, json};

use super::printer::Printer;
use crate::compare::{Comparison, Verdict};
use crate::proc::quoted;
use crate::run::error::{Error, ErrorKind};

/// Shows the outcome of the finished run in `run`; the exit code says whether tuning was worth it.
pub(super) fn show(run: &Utf8Path, printer: &Printer) -> Result<ExitCode, Error> {
    let document = document(&run.join("compare.json"))?;
    let comparison = document
        .clone()
        .map(serde_json::from_value::<Comparison>)
        .transpose()
        .map_err(|error| Error::to(ErrorKind::Bug, "read the run's comparison", error))?;
    let report = run.join("report.html");
    if printer.is_json() {
        printer.json(&summary(run, document)?)?;
    } else {
        if let Some(comparison) = &comparison {
            printer.data(super::compare::text(comparison, false).as_bytes())?;
        }
        printer.say(format!("report    {report}"));
    }
    let deployed = run.join("deploy.json").is_file();
    match comparison {
        // Without a deployment both arms are the untuned server: the noise it shows is the result.
        Some(comparison)
            if deployed && !matches!(comparison.verdict, Verdict::Better | Verdict::Same) =>
        {
            Err(Error::new(
                ErrorKind::NotBetter,
                format!(
                    "the verdict is {}: {}",
                    comparison.verdict, comparison.because
                ),
            )
            .hint(format!(
                "read {report}; `gemmtune undo {}` takes the deployment back",
                quoted(run)
            )))
        }
        _ => {
            if deployed && !printer.is_json() {
                printer.say(format!(
                    "the report says how to keep the table; `gemmtune undo {}` takes it back",
                    quoted(run)
                ));
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// A document of the run, or nothing where its stage was skipped.
fn document(path: &Utf8Path) -> Result<Option<Value>, Error> {
    if !path.is_file() {
        return Ok(None);
    }
    let text = crate::store::file::read_text(path)
        .map_err(|error| Error::to(ErrorKind::Bug, "read a document of the run", error))?;
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|error| Error::to(ErrorKind::Bug, &format!("read `{path}`"), error))
}

/// The comparison's document and what `demo --json` adds to it.
fn summary(run: &Utf8Path, comparison: Option<Value>) -> Result<Value, Error> {
    let stage = |name: &str| document(&run.join(format!("{name}.json")));
    let (capture, deploy, verify) = (stage("capture")?, stage("deploy")?, stage("verify")?);
    let field = |document: &Option<Value>, pointer: &str| {
        document
            .as_ref()
            .and_then(|value| value.pointer(pointer))
            .cloned()
            .unwrap_or(Value::Null)
    };
    let parity = verify.as_ref().map(|verify| {
        Value::Bool(
            verify
                .pointer("/parity/relation")
                .is_some_and(|relation| relation != "refused"),
        )
    });
    let mut whole = comparison.unwrap_or_else(|| json!({}));
    for (name, value) in [
        ("run_dir", json!(run)),
        ("report", json!(run.join("report.html"))),
        ("shapes", field(&capture, "/distinct")),
        ("tuned_rows", field(&deploy, "/rows")),
        ("hit_rate", field(&verify, "/hit_rate")),
        ("parity", parity.unwrap_or(Value::Null)),
    ] {
        whole[name] = value;
    }
    Ok(whole)
}
