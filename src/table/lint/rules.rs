//! The rules: id, why it matters, what to do, and an example that triggers it.
//!
//! `docs/lint.md` is this list; a test compares the two, and another lints every example.

use std::fmt::Write as _;

use super::{Finding, Severity};

mod aiter_triton;
mod csv;
mod fmoe;
mod json;
mod moe;

pub use aiter_triton::*;
pub use csv::*;
pub use fmoe::*;
pub use json::*;
pub use moe::*;

/// A rule. The functions that apply it are in the sibling modules.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its id in findings.
    pub id: &'static str,
    /// How much its findings matter.
    pub severity: Severity,
    /// A headline for the finding.
    pub title: &'static str,
    pub why: &'static str,
    /// What to do about it.
    pub fix: &'static str,
    /// A file that triggers it.
    pub example: Example,
}

/// A small file that triggers a rule.
#[derive(Debug, PartialEq, Eq)]
pub struct Example {
    /// The file's name, which some rules check.
    pub file: &'static str,
    pub text: &'static str,
    /// Where such a file was found; empty if the example is modelled on a shipped row.
    pub found: &'static str,
}

impl Rule {
    /// A finding of this rule.
    pub(super) fn finding(
        &'static self,
        file: &str,
        line: Option<u64>,
        message: impl Into<String>,
    ) -> Finding {
        Finding {
            rule: self.id,
            severity: self.severity,
            file: file.to_owned(),
            line,
            message: message.into(),
            why: self.why,
            fix: self.fix,
        }
    }
}

/// The rules as the text of the reference page.
pub fn reference() -> String {
    let mut page = String::from(
        "# Rules of `gemmtune lint`\n\n\
         Errors make the command exit with 15; warnings do not. Each rule is shown with a file that\n\
         triggers it. Examples are shipped rows, or modelled on one if no table has the defect.\n\n\
         | rule | severity | what it says |\n|---|---|---|\n",
    );
    for rule in ALL {
        let severity = severity_word(rule.severity);
        let _ = writeln!(
            page,
            "| [`{id}`](#{id}) | {severity} | {title} |",
            id = rule.id,
            title = rule.title
        );
    }
    for rule in ALL {
        let Rule {
            id,
            severity,
            title,
            why,
            fix,
            example,
        } = rule;
        let language = if example.file.contains(".json") {
            "json"
        } else {
            "csv"
        };
        let severity = severity_word(*severity);
        let end = if example.text.ends_with('\n') {
            ""
        } else {
            "\n"
        };
        let _ = write!(
            page,
            "\n## {id}\n\n{title} ({severity}).\n\n{why}\n\n*Fix:* {fix}\n\n`{file}`:\n\n```{language}\n{text}{end}```\n",
            file = example.file,
            text = example.text,
        );
        if !example.found.is_empty() {
            let _ = write!(page, "\n*Found:* {}\n", example.found);
        }
    }
    page
}

fn severity_word(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

/// Every rule, in the order of the reference page.
pub const ALL: [&Rule; 66] = [
    &FILE_UNREADABLE,
    &LINE_UNREADABLE,
    &CELL_NOT_A_NUMBER,
    &COLUMN_MISSING,
    &COLUMN_OLDER_FORM,
    &COLUMN_EVIDENCE,
    &COLUMN_UNKNOWN,
    &COLUMN_UNIT,
    &COLUMN_PADDED,
    &NO_FINAL_NEWLINE,
    &TABLE_EMPTY,
    &DUPLICATE_EQUAL,
    &DUPLICATE_CONFLICTING,
    &DUPLICATE_ACROSS_FILES,
    &LIBTYPE_UNSET,
    &LIBTYPE_UNSUPPORTED,
    &LIBTYPE_BY_REVISION,
    &KERNEL_NAME_UNSET,
    &KERNEL_CONTRADICTS_LIBTYPE,
    &KERNEL_OF_OTHER_OP,
    &KERNEL_CONTRADICTS_ID,
    &KERNEL_ID_DRIFT,
    &KERNEL_NAME_OLD,
    &SPLIT_K_RANGE,
    &US_INVALID,
    &ERR_RATIO_HIGH,
    &ABOVE_ROOFLINE,
    &ABOVE_MEMORY,
    &TFLOPS_CONTRADICTS_US,
    &BW_CONTRADICTS_US,
    &ROW_UNREACHABLE,
    &CU_NUM_UNKNOWN,
    &SIZE_UNLIKELY,
    &SHADOWS_FASTER,
    &TIME_NOT_MONOTONE,
    &UNTUNED_EXTRA_COLUMN,
    &MOE_KEY_MISSPELT,
    &MOE_TOKEN_UNREACHABLE,
    &MOE_KEY_TWICE,
    &MOE_ACTIVATION_SHADOWED,
    &MOE_CELL_EMPTY,
    &MOE_GFX_EMPTY,
    &MOE_TIME_COPIED,
    &MOE_ERR_RATIO_HIGH,
    &MOE_EP_UNREACHABLE,
    &MOE_FALLBACK_ROW,
    &FILE_NAME_UNREAD,
    &DEVICE_NAME_UNKNOWN,
    &KEY_NOT_INTEGER,
    &CONFIG_EMPTY,
    &CONFIG_KEY_UNKNOWN,
    &CONFIG_KEY_MISSING,
    &CONFIG_VALUE_INVALID,
    &BLOCK_K_CLAMPED,
    &M_SET_TRUNCATED,
    &M_SET_SHORT,
    &M_SET_GAP,
    &SMALL_M_MISSING,
    &BLOCK_K_ABOVE_SCALE,
    &UP_DOWN_BLOCK_M,
    &DOWN_OF_OTHER_TRITON,
    &TRITON_FOLDER_UNREAD,
    &UP_ROW_TMA,
    &KEYS_INCOMPLETE,
    &KEY_NEVER_ASKED,
    &TILE_NOT_SCALE_BLOCK,
];
