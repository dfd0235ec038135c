//! `gemmtune lint`: checks tuned tables.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;

use super::printer::Printer;
use crate::run::error::{Error, ErrorKind};
use crate::table::lint::{self, Finding, LintError, Report, Severity, rules};
use crate::table::moe::release::Release;
use crate::table::revision::Revision;
use crate::tree::aiter::revision_around;
use crate::tree::package::release_around;

/// Findings of one rule in one file that are shown on the terminal; `--json` and `--all` show every one.
const SHOWN: usize = 3;

/// Arguments of `gemmtune lint`.
#[derive(Debug, clap::Args)]
pub struct LintArgs {
    /// Tables, or folders of them: aiter's CSV files, JSON configurations of SGLang, vLLM and aiter's Triton GEMM; `-` is a CSV on standard input
    #[arg(required_unless_present = "rules", value_name = "PATH")]
    paths: Vec<Utf8PathBuf>,

    /// Show every finding, not only the first few of a rule in a file
    #[arg(long)]
    all: bool,

    /// aiter revision that is to run the tables: A (v0.1.7), B (v0.1.9), P (303a583c), H (e4048607) or N (after aiter#5586)
    ///
    /// Without it: that of the aiter tree a table lies in; elsewhere a row has to do for both H and N.
    #[arg(long, value_name = "REV")]
    revision: Option<Revision>,

    /// SGLang release that is to read fused-MoE tables, for example 0.5.23
    ///
    /// Without it: that of the package a table lies in; elsewhere a table has to do for every release.
    #[arg(long, value_name = "VERSION")]
    sglang: Option<Release>,

    /// Print the reference of all rules as Markdown; with --json, what each says
    #[arg(long, conflicts_with = "paths")]
    rules: bool,
}

/// Checks the tables and fails if a finding is an error.
pub fn run(args: &LintArgs, printer: &Printer) -> Result<(), Error> {
    if args.rules && printer.is_json() {
        let rules = rules::ALL.map(|rule| {
            json!({
                "rule": rule.id,
                "severity": rule.severity,
                "title": rule.title,
                "why": rule.why,
                "fix": rule.fix,
            })
        });
        return printer.json(&json!({ "rules": &rules[..] }));
    }
    if args.rules {
        return printer.data(rules::reference().as_bytes());
    }
    let known = RefCell::new(BTreeMap::<Utf8PathBuf, Option<Revision>>::new());
    let revision = |path: &Utf8Path| {
        args.revision.or_else(|| {
            let folder = path.parent().unwrap_or(path).to_owned();
            *known
                .borrow_mut()
                .entry(folder)
                .or_insert_with(|| revision_around(path))
        })
    };
    let releases = RefCell::new(BTreeMap::<Utf8PathBuf, Option<Release>>::new());
    let release = |path: &Utf8Path| {
        args.sglang.or_else(|| {
            let folder = path.parent().unwrap_or(path).to_owned();
            let mut releases = releases.borrow_mut();
            *releases
                .entry(folder)
                .or_insert_with(|| release_around(path)?.parse().ok())
        })
    };
    let report = lint::lint_paths(&args.paths, std::io::stdin().lock(), &revision, &release)
        .map_err(|error| refused(&error))?;
    if printer.is_json() {
        printer.json(&report)?;
    } else {
        printer.data(shown(&report, args.all).as_bytes())?;
        for skipped in &report.skipped {
            printer.say(format!("skipped `{}`: {}", skipped.file, skipped.reason));
        }
        printer.say(summary(&report));
    }
    // A gate that found nothing to check must not pass.
    if report.files == 0 {
        return Err(Error::new(ErrorKind::Usage, "no table was found there")
            .hint("name the tables themselves, or the folder that holds them"));
    }
    if report.has_errors() {
        let rule = first_error(&report).map_or("", |finding| finding.rule);
        return Err(Error::new(
            ErrorKind::TunerFailed,
            "the tables have findings of severity error",
        )
        .hint(format!(
            "`gemmtune lint --rules` explains each rule; the first is `{rule}`"
        ))
        .hint("`gemmtune merge TABLE -o OUT.csv` keeps the rows that can be relied on"));
    }
    Ok(())
}

fn refused(error: &LintError) -> Error {
    let hint = match error {
        LintError::Read { .. } => "give existing files or folders",
        LintError::TooLarge { .. } => "a table is at most 1 GiB",
        LintError::UnknownKind { path } if path == "-" => {
            "a JSON configuration says in its name what it is for: give the file"
        }
        LintError::UnknownKind { .. } => "rename the file to end in .csv or .json",
    };
    let text = match std::error::Error::source(error) {
        Some(source) => format!("failed to {error}: {source}"),
        None => format!("failed to {error}"),
    };
    Error::new(ErrorKind::Usage, text).hint(hint)
}

fn first_error(report: &Report) -> Option<&Finding> {
    report
        .findings
        .iter()
        .find(|finding| finding.severity == Severity::Error)
}

fn summary(report: &Report) -> String {
    let errors = report
        .findings
        .iter()
        .filter(|finding| finding.severity == Severity::Error)
        .count();
    format!(
        "{} files, {} rows: {errors} errors, {} warnings",
        report.files,
        report.rows,
        report.findings.len() - errors,
    )
}

fn shown(report: &Report, all: bool) -> String {
    // Findings are sorted by file and line; a rule is truncated within its file.
    let mut counts = BTreeMap::<(&str, &str), usize>::new();
    for finding in &report.findings {
        *counts.entry((&finding.file, finding.rule)).or_default() += 1;
    }
    let mut seen = BTreeMap::<(&str, &str), usize>::new();
    let mut text = String::new();
    for finding in &report.findings {
        let key = (finding.file.as_str(), finding.rule);
        let nth = seen.entry(key).or_default();
        *nth += 1;
        if !all && *nth > SHOWN {
            continue;
        }
        let line = finding
            .line
            .map_or_else(String::new, |line| format!(":{line}"));
        let severity = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let _ = writeln!(
            text,
            "{}{line}: {severity}[{}]: {}",
            finding.file, finding.rule, finding.message
        );
        let total = counts.get(&key).copied().unwrap_or(0);
        if !all && *nth == SHOWN.min(total) {
            if total > SHOWN {
                let _ = writeln!(text, "    and {} more of {}", total - SHOWN, finding.rule);
            }
            let _ = writeln!(text, "    why: {}\n    fix: {}", finding.why, finding.fix);
        }
    }
    text
}
