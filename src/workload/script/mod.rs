//! Reads a simple launch script: what it starts, with which environment, without running it.
//!
//! Every other script can be watched instead (`init -- bash launch.sh`), so reading never guesses. It evaluates
//! assignments, arrays of arguments, `export`, `unset`, `cd`, arithmetic, and conditions and loops over known values.
//! A value that the text does not determine is [`Word::Unknown`] with the reason, and becomes a question. Anything
//! else that could affect what follows (a function call, `source`, `eval`, an undecided condition whose body does
//! more than print, wait or exit) makes everything after it uncertain. The text is split into commands and words by
//! `brush-parser`, which implements bash's rules. This module starts nothing and reads files only through the
//! [`Surroundings`] it is given.

mod commands;
mod reckon;
mod walk;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::channel;
use std::time::Duration;

use brush_parser::ast::Program;
use camino::{Utf8Path, Utf8PathBuf};

use super::container;
use super::role;
pub use super::role::Role;

/// Commands that may mention a server without starting it: they print, search or end something.
const TALK: [&str; 8] = [
    "echo", "printf", "pkill", "pgrep", "grep", "ps", "cat", "tee",
];

/// The longest text that is read. The longest public launch scripts have about 30 KB.
pub const LONGEST: usize = 256 * 1024;

/// The parser's time grows fourfold with each open bracket, and its stack with each open compound command.
const DEEPEST_BRACKETS: i32 = 7;
const DEEPEST_COMPOUNDS: i32 = 40;

/// Time limit for parsing a text within the other limits; usual scripts take milliseconds.
const PARSE_LIMIT: Duration = Duration::from_secs(5);

/// A word of the script after expansion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    Known(String),
    /// The script's text does not determine it.
    Unknown {
        /// The word as written.
        text: String,
        /// What it depends on.
        why: String,
    },
}

impl Word {
    /// The text, if it is known.
    pub fn known(&self) -> Option<&str> {
        match self {
            Self::Known(text) => Some(text),
            Self::Unknown { .. } => None,
        }
    }

    /// The text as far as it is known, for display.
    pub fn text(&self) -> &str {
        match self {
            Self::Known(text) | Self::Unknown { text, .. } => text,
        }
    }

    /// A word whose text is known.
    pub fn of(text: impl Into<String>) -> Self {
        Self::Known(text.into())
    }

    fn unknown(text: &str, why: impl Into<String>) -> Self {
        Self::Unknown {
            text: text.to_owned(),
            why: why.into(),
        }
    }
}

/// What a script can depend on besides its own text.
pub struct Surroundings<'a> {
    /// The text of a file, if it is a regular file of ordinary size and can be read.
    pub read: &'a dyn Fn(&Utf8Path) -> Option<String>,
    /// A variable of the environment the script would be started in.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// The folder the script would be started in, absolute.
    pub folder: Utf8PathBuf,
    /// The arguments it would be started with, where they were given.
    pub arguments: Option<Vec<String>>,
}

/// A command with a relevant role, and everything it would run with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is for.
    pub role: Role,
    /// Program and arguments, without a leading `exec`, `nohup` and the like.
    pub argv: Vec<Word>,
    /// Variables set for it.
    pub env: BTreeMap<String, Word>,
    /// Inherited variables that are removed.
    pub unset: Vec<String>,
    pub folder: Word,
    /// Line number in the script, from 1; 0 for a process.
    pub line: usize,
    /// Why it is uncertain, as a clause: `line 2 sources `env.sh`, which only running it follows`.
    pub clouded: Option<String>,
}

/// A command that starts something elsewhere, or through a program that is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// The wrapper: `docker run`, `srun`, `loadTracer.sh`.
    pub tool: String,
    pub line: usize,
    /// What runs inside, as far as the text tells.
    pub inside: Option<String>,
}

/// The result of reading a script.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Servers and benchmarks, in order.
    pub found: Vec<Found>,
    /// Commands that start something elsewhere: reported, but not followed.
    pub elsewhere: Vec<Elsewhere>,
    /// Lines that name SGLang's server but belong to no command that was followed.
    pub missed: Vec<usize>,
    /// Lines that name a benchmark but belong to no command that was followed.
    pub missed_benchmarks: Vec<usize>,
    /// Why not all of the script was followed, as a clause.
    pub clouded: Option<String>,
    /// Further remarks, as sentences.
    pub notes: Vec<String>,
}

impl Facts {
    /// The commands of one role.
    pub fn of(&self, role: Role) -> impl Iterator<Item = &Found> {
        self.found.iter().filter(move |found| found.role == role)
    }
}

/// Why a script cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// bash would reject it as well, or it is larger than a launch script.
    #[error("read the script: {0}")]
    Syntax(String),
}

/// Reads the script `text`, whose path is `path`.
pub fn read(
    text: &str,
    path: &Utf8Path,
    surroundings: &Surroundings<'_>,
) -> Result<Facts, ScriptError> {
    let program = parse(text)?;
    let mut shell = walk::Shell::new(surroundings, path);
    for list in &program.complete_commands {
        shell.list(list);
    }
    let (mut facts, followed) = (shell.facts, shell.followed);
    let lines: Vec<&str> = text.lines().collect();
    let covered: BTreeSet<usize> = followed
        .iter()
        .flat_map(|start| *start..=last_line(&lines, *start))
        .collect();
    let missed = |names: fn(&str) -> bool| {
        let numbered = (1..).zip(&lines);
        let named = numbered.filter(|(_, line)| {
            let first = line.split_whitespace().next().unwrap_or_default();
            !first.starts_with('#') && !TALK.contains(&first) && names(line)
        });
        let lines = named.map(|(line, _)| line);
        lines.filter(|line| !covered.contains(line)).collect()
    };
    facts.missed = missed(container::names_sglang);
    facts.missed_benchmarks = missed(names_benchmark);
    Ok(facts)
}

fn names_benchmark(text: &str) -> bool {
    ["bench_serving", "benchmark_serving", "vllm bench"]
        .iter()
        .any(|name| text.contains(name))
}

/// The last line of the command that starts at `line`: it continues while lines end with a backslash or a quote is
/// open.
fn last_line(lines: &[&str], line: usize) -> usize {
    let mut open = false;
    let goes_on = |content: &&&str| {
        open ^= content.matches(['"', '\'']).count() % 2 == 1;
        open || content.trim_end().ends_with('\\')
    };
    let from = lines.get(line.saturating_sub(1)..).unwrap_or_default();
    line + from.iter().take_while(goes_on).count()
}

/// Splits a text into commands.
fn parse(text: &str) -> Result<Program, ScriptError> {
    let refused = |why: &str| ScriptError::Syntax(why.to_owned());
    if text.len() > LONGEST {
        return Err(refused("it is longer than a launch script is (256 KiB)"));
    }
    if nests_too_deeply(text) {
        return Err(refused("brackets or conditions nest too deeply"));
    }
    let (sender, answer) = channel();
    let owned = text.to_owned();
    // A recursive parser needs stack, and one that hangs must not block us: the process ends soon after anyway.
    std::thread::Builder::new()
        .stack_size(128 << 20)
        .spawn(move || {
            let options = brush_parser::ParserOptions::default();
            let parsed = brush_parser::Parser::new(owned.as_bytes(), &options).parse_program();
            let _ = sender.send(parsed.map_err(|error| error.to_string()));
        })
        .map_err(|error| ScriptError::Syntax(error.to_string()))?;
    match answer.recv_timeout(PARSE_LIMIT) {
        Ok(parsed) => parsed.map_err(|error| {
            ScriptError::Syntax(format!(
                "it does not seem to be bash: {}",
                super::quote::quoted(&error)
            ))
        }),
        Err(_) => Err(refused("it is too involved to be read")),
    }
}

fn nests_too_deeply(text: &str) -> bool {
    let (mut brackets, mut deepest) = (0, 0);
    for byte in text.bytes() {
        match byte {
            b'(' => brackets += 1,
            b')' => brackets -= 1,
            // In a `case` label there are only closing brackets.
            b'\n' => brackets = brackets.max(0),
            _ => {}
        }
        deepest = deepest.max(brackets);
    }
    let (mut compounds, mut deepest_compound) = (0, 0);
    for word in text.split([' ', '\t', '\n', ';', '(', ')', '&', '|']) {
        match word {
            "if" | "case" | "while" | "until" | "for" | "select" | "{" | "!" => compounds += 1,
            "fi" | "esac" | "done" | "}" => compounds = (compounds - 1).max(0),
            _ => {}
        }
        deepest_compound = deepest_compound.max(compounds);
    }
    let pairs = ["${", "`", "[["].map(|open| longest_run(text, open));
    deepest > DEEPEST_BRACKETS
        || deepest_compound > DEEPEST_COMPOUNDS
        || pairs.iter().any(|run| *run > DEEPEST_COMPOUNDS)
}

/// The highest number of occurrences of `part` in one line.
fn longest_run(text: &str, part: &str) -> i32 {
    let counts = text.lines().map(|line| line.matches(part).count());
    i32::try_from(counts.max().unwrap_or(0)).unwrap_or(i32::MAX)
}

/// The value of a flag among words, found as [`role::flag`] does; an unknown word may be its value.
pub fn flag(argv: &[Word], names: &[&str]) -> Option<Word> {
    let texts: Vec<&str> = argv.iter().map(Word::text).collect();
    let value = role::flag(&texts, names)?;
    let is_it = |word: &&Word| word.text().ends_with(value);
    match argv.iter().rev().find(is_it) {
        Some(Word::Unknown { why, .. }) => Some(Word::unknown(value, why.clone())),
        _ => Some(Word::of(value)),
    }
}

#[cfg(test)]
mod tests;
