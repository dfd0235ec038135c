//! Checks of tuned tables: what a runtime would fail on, never find, or be slowed down by.
//!
//! A rule is an entry of [`rules::ALL`] and a small function in one of the sibling modules; a finding is a rule, a
//! place and one sentence. This room reads files but writes none.

mod aiter_triton;
mod csv_columns;
mod csv_keys;
mod csv_rows;
mod csv_series;
mod fmoe;
mod json;
mod json_name;
mod moe;
pub mod rules;
mod walk;

use serde::Serialize;

use super::aiter::{Fault, Row, Table, TableError, is_unset};
use super::moe::release::Release;
use super::revision::Revision;
use rules::Rule;

pub(in crate::table) use moe::judge_row as judge_moe_row;
pub use walk::{LintError, ReleaseOf, RevisionOf, lint_paths};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The table, or this row, is harmful or useless.
    Error,
    /// It works, but worse than it could, or only with some revisions.
    Warning,
}

/// A problem found at one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Id of the rule.
    pub rule: &'static str,
    /// Severity of the rule.
    pub severity: Severity,
    pub file: String,
    /// 1-based line, where the finding has one.
    pub line: Option<u64>,
    pub message: String,
    pub why: &'static str,
    /// What to do about it.
    pub fix: &'static str,
}

/// What was checked, and the findings.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    pub files: usize,
    /// Rows of CSV files and entries of JSON files checked.
    pub rows: usize,
    /// Files that look like tables but are of a kind without rules, with the reason.
    pub skipped: Vec<Skipped>,
    /// Findings by file and line.
    pub findings: Vec<Finding>,
}

/// A file of a kind without rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    pub file: String,
    /// Why there are no rules for it.
    pub reason: String,
}

impl Report {
    /// Whether any finding is an error.
    pub fn has_errors(&self) -> bool {
        self.findings
            .iter()
            .any(|finding| finding.severity == Severity::Error)
    }

    /// Checks a CSV file's bytes; `name` is used in findings and may determine the operation. Without a `revision` a
    /// row must be valid for every current aiter.
    pub fn check_csv(
        &mut self,
        name: &str,
        bytes: &[u8],
        revision: Option<Revision>,
    ) -> Option<Table> {
        let mut sink = Sink {
            file: name,
            revisions: revisions(revision.as_ref()),
            findings: &mut self.findings,
        };
        if csv_columns::is_untuned(bytes) {
            self.files += 1;
            self.rows += csv_columns::untuned(bytes, &mut sink);
            return None;
        }
        if is_fused_moe(name, bytes) {
            self.files += 1;
            self.rows += fmoe::check(name, bytes, &mut sink);
            return None;
        }
        match Table::read(name, bytes, None) {
            Ok(table) => {
                self.files += 1;
                self.rows += table.rows.len();
                check_table(&table, &mut sink);
                Some(table)
            }
            Err(TableError::NotGemm { kind, .. }) => {
                self.skipped.push(Skipped {
                    file: name.to_owned(),
                    reason: format!("a {kind} table: no rule is for its columns"),
                });
                None
            }
            Err(TableError::OtherFamily { family, .. }) => {
                self.skipped.push(Skipped {
                    file: name.to_owned(),
                    reason: format!(
                        "a table of `{family}`, a family of its own: no rule is for it"
                    ),
                });
                None
            }
            Err(error) => {
                self.files += 1;
                let rule = match error {
                    TableError::MissingColumns { .. } => &rules::COLUMN_MISSING,
                    _ => &rules::FILE_UNREADABLE,
                };
                sink.add(rule, Some(1), error.to_string());
                None
            }
        }
    }

    /// Checks a JSON configuration's bytes; the last part of `name` is the file name that is checked.
    pub fn check_json(&mut self, name: &str, bytes: &[u8]) {
        self.check_config(name, bytes, None, None);
    }

    /// The same for a release of SGLang, or a revision of aiter if the file is aiter's (without one it must be valid
    /// for every current aiter); returns a fused-MoE table for the rules about several tables.
    fn check_config(
        &mut self,
        name: &str,
        bytes: &[u8],
        release: Option<Release>,
        revision: Option<Revision>,
    ) -> Option<moe::MoeFile> {
        self.files += 1;
        let mut sink = Sink {
            file: name,
            revisions: revisions(revision.as_ref()),
            findings: &mut self.findings,
        };
        if is_aiter_triton(name) {
            self.rows += aiter_triton::check(bytes, &mut sink);
            return None;
        }
        if moe::is_name(name.rsplit('/').next().unwrap_or(name)) {
            let (rows, file) = moe::check(name, bytes, release, &mut sink);
            self.rows += rows;
            return file;
        }
        self.rows += json::check(name, bytes, &mut sink);
        None
    }

    /// Checks what no single file shows: the same key in several tables of one operation.
    pub fn check_together(&mut self, tables: &[Table]) {
        csv_keys::across(tables, &mut self.findings);
    }

    /// Sorts findings by file and line.
    pub fn sort(&mut self) {
        self.findings
            .sort_by(|a, b| (&a.file, a.line, a.rule).cmp(&(&b.file, b.line, b.rule)));
    }
}

/// Whether a file is a tuned table of the fused MoE. Grouped tables and those with a separate shared expert (`fhmoe`)
/// have further key columns and a look-up of their own.
fn is_fused_moe(name: &str, bytes: &[u8]) -> bool {
    use super::fmoe::table::{is_of_moe, is_untuned};
    let file = name.rsplit('/').next().unwrap_or(name);
    let other = ["fhmoe", "grouped", "untuned"]
        .iter()
        .any(|part| file.contains(part));
    // A torn header lacks the columns that would tell.
    let named = file.contains("tuned_fmoe");
    !other && (named || is_of_moe(bytes) && !is_untuned(bytes))
}

fn check_table(table: &Table, sink: &mut Sink<'_>) {
    csv_columns::check(table, sink);
    for fault in &table.faults {
        match fault {
            // The row rules report times and error ratios themselves.
            Fault::BadNumber {
                column: "us" | "errRatio",
                ..
            } => {}
            Fault::BadNumber { .. } => {
                sink.add(
                    &rules::CELL_NOT_A_NUMBER,
                    Some(fault.line()),
                    fault.to_string(),
                );
            }
            _ => sink.add(
                &rules::LINE_UNREADABLE,
                Some(fault.line()),
                fault.to_string(),
            ),
        }
    }
    for row in &table.rows {
        for rule in csv_rows::RULES {
            rule(table, row, sink);
        }
    }
    csv_keys::within(table, sink);
    csv_series::check(table, sink);
}

/// Why `row` of `table` should not be given to any runtime: `merge` checks this before a row may win, with the same
/// rules. The error limit is not checked here, because a merge has its own.
pub(in crate::table) fn judge(
    table: &Table,
    row: &Row,
    revision: Option<Revision>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut sink = Sink {
        file: &table.name,
        revisions: revisions(revision.as_ref()),
        findings: &mut findings,
    };
    for rule in csv_rows::RULES {
        rule(table, row, &mut sink);
    }
    // For a whole table the parser's own faults cover this.
    for column in ["kernelId", "splitK", "tflops", "bw"] {
        if let Some(text) = row.extra(column).filter(|text| !is_unset(text)) {
            sink.add(
                &rules::CELL_NOT_A_NUMBER,
                Some(row.line),
                format!("`{text}` in column {column} is no number"),
            );
        }
    }
    findings.retain(|finding| {
        let unfit =
            finding.severity == Severity::Error || finding.rule == rules::LIBTYPE_BY_REVISION.id;
        unfit && finding.rule != rules::ERR_RATIO_HIGH.id
    });
    findings
}

/// Whether a path names a file of aiter's Triton GEMM.
fn is_aiter_triton(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.parse::<super::aiter_triton::FileName>().is_ok()
}

fn revisions(given: Option<&Revision>) -> &[Revision] {
    given.map_or(&Revision::TODAY, std::slice::from_ref)
}

/// Collects the findings about one file.
struct Sink<'a> {
    file: &'a str,
    /// The revisions of aiter for which a row must be valid.
    revisions: &'a [Revision],
    findings: &'a mut Vec<Finding>,
}

impl Sink<'_> {
    fn add(&mut self, rule: &'static Rule, line: Option<u64>, message: impl Into<String>) {
        self.findings.push(rule.finding(self.file, line, message));
    }

    /// The same with a severity other than the rule's own.
    fn add_as(
        &mut self,
        rule: &'static Rule,
        severity: Severity,
        line: Option<u64>,
        message: impl Into<String>,
    ) {
        let finding = rule.finding(self.file, line, message);
        self.findings.push(Finding {
            severity,
            ..finding
        });
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
