//! Why a run cannot go on.

use std::error::Error;
use std::fmt;

/// What kind of trouble; each has an exit code of its own at the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// gemmtune contradicts itself.
    Internal,
    /// The configuration asks for something that cannot be.
    Usage,
    /// The environment is wrong: tree, version, device, a port that is taken, a disk that is full.
    Environment,
    /// Source code whose structure is not recognised.
    SourceNotRecognised,
    /// The workload failed: a server died, a request failed, a deadline passed.
    WorkloadFailed,
    /// The server did not become ready.
    ServerNotReady,
    /// No GEMM shapes were captured.
    NoShapes,
    /// The tuner failed.
    TunerFailed,
    /// The tuned arm is wrong, or not better.
    NotBetter,
    /// The run cannot be resumed.
    NotResumable,
    /// The user stopped the run.
    Interrupted,
}

/// Why a run cannot go on, and what to do about it.
#[derive(Debug)]
pub struct Trouble {
    /// What kind.
    pub class: Class,
    /// A sentence without its full stop.
    pub reason: String,
    /// The next command, or what to change.
    pub hint: Option<String>,
}

impl Trouble {
    /// Trouble of a class, for a reason.
    pub fn new(class: Class, reason: impl Into<String>) -> Self {
        Self {
            class,
            reason: reason.into(),
            hint: None,
        }
    }

    /// Trouble caused by an error: "failed to" and the error's chain of causes.
    pub fn caused(class: Class, error: &dyn Error) -> Self {
        let text = error.to_string();
        // Errors of files begin with it already.
        let mut reason = if text.starts_with("failed to ") {
            text
        } else {
            format!("failed to {text}")
        };
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            if !reason.contains(&text) {
                reason.push_str(": ");
                reason.push_str(&text);
            }
            source = cause.source();
        }
        Self::new(class, reason)
    }

    /// A file of the run that could not be read or written.
    pub fn file(error: &std::io::Error) -> Self {
        Self::caused(Class::Environment, error)
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.reason)
    }
}

impl Error for Trouble {}
