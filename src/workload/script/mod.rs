//! Reads a launch script: what it starts, with which interpreter and environment, without running it.
//!
//! Reading is tolerant and honest: a value that depends on something the text does not hold (an argument, a
//! command's output, a condition) is [`Word::Unknown`] with the reason, and becomes a question. Nothing is guessed,
//! because a workload that differs from the user's in one flag makes the comparison worthless. This module starts
//! nothing and reads files only through the [`Surroundings`] it is given.

mod command;
mod flow;
mod shell;
mod starts;
mod words;

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};

pub use command::{Role, flag};

/// A word of the script after expansion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// Its text.
    Known(String),
    /// It cannot be told from the script.
    Unknown {
        /// As written.
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

    /// The text as far as it is known, for people.
    pub fn text(&self) -> &str {
        match self {
            Self::Known(text) | Self::Unknown { text, .. } => text,
        }
    }

    fn unknown(text: &str, why: impl Into<String>) -> Self {
        Self::Unknown {
            text: text.to_owned(),
            why: why.into(),
        }
    }
}

/// What a script can look at besides its own text.
pub struct Surroundings<'a> {
    /// The text of a file, if it can be read.
    pub read: &'a dyn Fn(&Utf8Path) -> Option<String>,
    /// A variable of the environment the script would be started in.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// The folder the script would be started in, absolute.
    pub folder: Utf8PathBuf,
}

/// A command that matters, with everything it would run with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is for.
    pub role: Role,
    /// Program and arguments, without `exec`, `nohup` and the like in front.
    pub argv: Vec<Word>,
    /// Variables the script sets for it.
    pub env: BTreeMap<String, Word>,
    /// Inherited variables the script takes away.
    pub unset: Vec<String>,
    /// Working directory.
    pub folder: Word,
    /// Virtual environment that was activated before it.
    pub venv: Option<Word>,
    /// Line in the file it stands in, from 1.
    pub line: usize,
    /// What decides whether, or how often, it runs: `the condition at line 12`, `the loop at line 30`.
    pub depends_on: Option<String>,
}

/// What a script says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Servers, benchmarks and readiness probes, in order.
    pub found: Vec<Found>,
    /// Wrappers that start things elsewhere (`docker exec`, `srun`), with their lines: named, not entered.
    pub wrappers: Vec<(String, usize)>,
    /// Things that could not be followed, as sentences.
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
    /// The grammar does not fit.
    #[error("read the script: line {line} is not bash: `{text}`")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// The grammar cannot be loaded.
    #[error("load the bash grammar")]
    Grammar(#[from] tree_sitter::LanguageError),
}

/// Reads the script `text`, which stands in the file `path`.
pub fn read(
    text: &str,
    path: &Utf8Path,
    surroundings: &Surroundings<'_>,
) -> Result<Facts, ScriptError> {
    let mut shell = shell::Shell::new(surroundings, path);
    shell.run(text)?;
    Ok(shell.into_facts())
}

#[cfg(test)]
mod tests;
