//! What gemmtune says, as a snapshot can hold it: what differs from run to run stands as a name in brackets.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file includes this one and uses its part"
)]

use std::process::Output;

use regex::Regex;

/// What is told by its form, wherever it stands, and its name.
const FORMS: [(&str, &str); 12] = [
    (r"\d{8}T\d{6}Z", "[time]"),
    (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "[time]"),
    (r"process \d+ on \S+", "process [pid] on [host]"),
    (r"process \d+\b", "process [pid]"),
    (r"\b[0-9a-f]{40}\b", "[commit]"),
    (r"-[0-9a-f]{16}\b", "-[digest]"),
    (r"`[0-9a-f]{16}`", "`[digest]`"),
    (r"\d{10}\.\d+-", "[time]-"),
    (r"column \d+", "column [n]"),
    (r"127\.0\.0\.1:\d+", "127.0.0.1:[port]"),
    (r"MB, [\d.]+ s\b", "MB, [time]"),
    (r"/\S*/bin/python3[\d.]*", "[python]"),
];

/// What a run counts and times depends on how busy the machine is.
const FIGURES: [(&str, &str); 9] = [
    (
        r"(^|[ (])(\d+ of )?\d+ (calls|kernels|rows|shapes|sizes)\b",
        "$1[n] $3",
    ),
    (r"\bat \d+;", "at [n];"),
    (r"\bin \d+([,;])", "in [n]$1"),
    (r"\bM=\d+", "M=[m]"),
    (r"\btile_m\w+", "[kernel]"),
    (r"standin_(stage\d_)?\d+", "standin_${1}[id]"),
    (r"\d+x\d+x\d+, group \d+, \d+ warps, \d+ stages", "[row]"),
    (r"[\d.]+x (slower|faster)", "[ratio]x $1"),
    (r"instead of [\d.]+ us", "instead of [time]"),
];

/// `text` of a command that worked in `folder`.
pub fn plain(text: &str, folder: impl AsRef<str>) -> String {
    steady(&text.replace(folder.as_ref(), "[folder]"))
}

/// `text` of a command that names no folder of its own.
pub fn steady(text: &str) -> String {
    named(
        text.replace(env!("CARGO_MANIFEST_DIR"), "[project]"),
        &FORMS,
    )
}

/// `text` of a run, without its figures.
pub fn uncounted(text: &str) -> String {
    named(text.to_owned(), &FIGURES)
}

fn named(text: String, forms: &[(&str, &str)]) -> String {
    forms.iter().fold(text, |text, (form, name)| {
        let form = Regex::new(form).unwrap();
        form.replace_all(&text, *name).into_owned()
    })
}

/// What a command ended with: its error and the hints below, without what it said on the way and without figures.
pub fn refusal(output: &Output, folder: impl AsRef<str>) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let from = said.split_inclusive('\n');
    let from = from.skip_while(|line| !line.starts_with("error: "));
    let error: String = from.collect();
    assert!(!error.is_empty(), "no error: {said}");
    uncounted(&plain(&error, folder))
}

/// The line of `text` that has `part`.
pub fn line<'a>(text: &'a str, part: &str) -> &'a str {
    let found = text.lines().find(|line| line.contains(part));
    found.unwrap_or_else(|| panic!("no line has `{part}`: {text}"))
}
