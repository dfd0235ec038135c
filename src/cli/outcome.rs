//! The final output of a completed run, for users and scripts.

use std::process::ExitCode;

use camino::Utf8Path;
use serde_json::{Value, json};

use super::printer::Printer;
use crate::compare::Verdict;
use crate::proc::quoted;
use crate::report::{self, Report};
use crate::run::error::{Error, ErrorKind};

/// Shows the result of the finished run in `run`; the exit code tells whether tuning was worth it.
pub(super) fn show(run: &Utf8Path, printer: &Printer) -> Result<ExitCode, Error> {
    let found = report::read(run)
        .map_err(|error| Error::to(ErrorKind::Bug, "read the run's report", error))?;
    let page = run.join(report::PAGE);
    if printer.is_json() {
        printer.json(&summary(run, &found)?)?;
    } else {
        printer.data(in_three_lines(&found, &page).as_bytes())?;
    }
    let deployed = found.undo.is_some();
    match &found.comparison {
        // Without a deployment both arms are the untuned server, and the noise between them is the result.
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
                "read {page}; `gemmtune undo {}` takes the deployment back",
                quoted(run)
            )))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// The result, where it is written, and what to do with it.
fn in_three_lines(report: &Report, page: &Utf8Path) -> String {
    let is_worse = report
        .comparison
        .as_ref()
        .is_some_and(|comparison| comparison.verdict == Verdict::Worse);
    let next = match (&report.keep, &report.undo) {
        (Some(keep), Some(undo)) if !is_worse => format!("keep it: {keep}   undo it: {undo}"),
        (_, Some(undo)) => format!("undo it: {undo}"),
        _ => "nothing was deployed: the server runs as before".to_owned(),
    };
    format!(
        "verdict   {}\nreport    {page}\nnext      {next}\n",
        report.sentence()
    )
}

/// A document of the run, or null if its stage was skipped.
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
fn summary(run: &Utf8Path, report: &Report) -> Result<Value, Error> {
    let comparison = document(&run.join("compare.json"))?;
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
        ("report", json!(run.join(report::PAGE))),
        ("keep", json!(report.keep)),
        ("undo", json!(report.undo)),
        ("shapes", field(&capture, "/distinct")),
        ("tuned_rows", field(&deploy, "/rows")),
        ("hit_rate", field(&verify, "/hit_rate")),
        ("parity", parity.unwrap_or(Value::Null)),
    ] {
        whole[name] = value;
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Report {
        serde_json::from_str(include_str!("../../testdata/report/sample.json")).unwrap()
    }

    #[test]
    fn a_run_ends_with_three_lines() {
        let page = Utf8Path::new("runs/1-x/report.html");
        let better = sample();
        let mut worse = sample();
        if let Some(comparison) = &mut worse.comparison {
            comparison.verdict = Verdict::Worse;
        }
        let nothing = Report {
            ended_early: Some("Nothing to gain: every shape has a good row".to_owned()),
            ..Report::default()
        };
        let texts = [better, worse, nothing].map(|report| in_three_lines(&report, page));
        insta::assert_snapshot!(texts.join("\n"), @"
        verdict   Better: output throughput rose by 17.7 % (ratio 1.177, 98.4 % interval 1.162 to 1.208, 7 pairs)
        report    runs/1-x/report.html
        next      keep it: export PYTHONPATH=runs/sample/overlay   undo it: gemmtune undo runs/sample

        verdict   Worse: output throughput rose by 17.7 % (ratio 1.177, 98.4 % interval 1.162 to 1.208, 7 pairs)
        report    runs/1-x/report.html
        next      undo it: gemmtune undo runs/sample

        verdict   Nothing to gain: every shape has a good row
        report    runs/1-x/report.html
        next      nothing was deployed: the server runs as before
        ");
    }
}
