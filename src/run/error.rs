//! Why a command or a run cannot continue: the kind of error, what happened, and what to do next.

use std::error::Error as StdError;
use std::fmt;

use serde::ser::{Serialize, SerializeStruct as _, Serializer};

/// The kind of an error; the number is the process exit code. Scripts rely on the numbers, so they never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ErrorKind {
    /// A bug: an internal contradiction in gemmtune.
    Bug = 1,
    /// The command line, a configuration file or an input file is wrong.
    Usage = 2,
    /// The environment is wrong: tree, version, device, a port that is taken, a disk that is full.
    Environment = 10,
    /// Source code whose structure is not recognised.
    SourceNotRecognised = 11,
    /// The workload failed: a server died, a request failed, a deadline passed.
    WorkloadFailed = 12,
    /// The server did not become ready.
    ServerNotReady = 13,
    /// No GEMM shapes were found.
    NoShapes = 14,
    /// The tuner failed for some shapes, or a check has findings of severity error.
    TunerFailed = 15,
    /// The comparison is worse or inconclusive, or verification failed and was undone.
    NotBetter = 16,
    /// The run cannot be resumed: another process holds it, or its identity changed.
    NotResumable = 17,
    /// Interrupted by the user; what was finished is kept.
    Interrupted = 130,
}

/// [`ErrorKind`] for the help text.
pub const EXIT_CODES: &str = "\
Exit codes:
    0  done; of a comparison: better or same
    1  a bug in gemmtune
    2  the command line, a configuration or an input file is wrong
   10  the environment is wrong: tree, version, device
   11  source code whose structure is not recognised
   12  the workload failed: a server died, a request failed, a deadline passed
   13  the server did not become ready
   14  no GEMM shapes were found
   15  the tuner failed for some shapes, or a check has findings of severity error
   16  worse or inconclusive, or taken back at verify
   17  the run cannot be resumed: another process holds it, or its identity changed
  130  interrupted; what was finished is kept";

/// Why a command or a run cannot continue.
///
/// Displayed as one line: the message, then each cause that the message does not already include. Hints are not part
/// of that line, because journals and reports quote the error without them.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
    hints: Vec<String>,
}

impl Error {
    /// An error with a message that is a full sentence without its full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
            hints: Vec::new(),
        }
    }

    /// Failed to do `what` (a lower-case verb phrase), because of `source`.
    pub fn to(
        kind: ErrorKind,
        what: &str,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self {
            source: Some(source.into()),
            ..Self::new(kind, format!("failed to {what}"))
        }
    }

    /// An error whose text is `error` and its chain of causes. Library errors are fragments that follow "failed to";
    /// those of files begin with it already.
    pub fn caused(kind: ErrorKind, error: &dyn StdError) -> Self {
        let text = error.to_string();
        let message = if text.starts_with("failed to ") {
            text
        } else {
            format!("failed to {text}")
        };
        Self::new(kind, with_causes(message, error.source()))
    }

    /// A file of the run that could not be read or written.
    pub fn file(error: &std::io::Error) -> Self {
        Self::caused(ErrorKind::Environment, error)
    }

    /// The error of a run that the user interrupted.
    pub fn interrupted() -> Self {
        Self::new(
            ErrorKind::Interrupted,
            "interrupted; what was finished is kept",
        )
    }

    /// Adds a hint: the next command to run, or what to change.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// The same error with its text and hints rewritten, for example without secrets.
    #[must_use]
    pub fn rewritten(self, rewrite: impl Fn(&str) -> String) -> Self {
        Self {
            kind: self.kind,
            message: rewrite(&self.to_string()),
            source: None,
            hints: self.hints.iter().map(|hint| rewrite(hint)).collect(),
        }
    }

    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What to do next, most useful first.
    pub fn hints(&self) -> &[String] {
        &self.hints
    }

    /// The process exit code.
    pub fn exit_code(&self) -> std::process::ExitCode {
        std::process::ExitCode::from(self.kind as u8)
    }
}

/// `text` followed by each cause that it does not already include.
fn with_causes(mut text: String, mut cause: Option<&(dyn StdError + 'static)>) -> String {
    while let Some(error) = cause {
        let line = error.to_string();
        if !text.contains(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        cause = error.source();
    }
    text
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = self.source.as_ref();
        let cause = source.map(|source| source.as_ref() as &(dyn StdError + 'static));
        formatter.write_str(&with_causes(self.message.clone(), cause))
    }
}

impl StdError for Error {}

/// What `--json` prints instead of a result: `{"exit_code": 10, "message": "…", "hints": ["…"]}`.
impl Serialize for Error {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut document = serializer.serialize_struct("Error", 3)?;
        document.serialize_field("exit_code", &(self.kind as u8))?;
        document.serialize_field("message", &self.to_string())?;
        document.serialize_field("hints", &self.hints)?;
        document.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_reads_as_one_line_of_causes_without_its_hints() {
        let error = Error::to(
            ErrorKind::Environment,
            "read the table",
            std::io::Error::other("disk on fire"),
        )
        .hint("run `gemmtune doctor`");
        assert_eq!(error.to_string(), "failed to read the table: disk on fire");
        assert_eq!(error.hints(), ["run `gemmtune doctor`"]);
    }

    #[test]
    fn a_library_error_becomes_what_failed() {
        let io = std::io::Error::other("failed to open `a`: no such file");
        assert_eq!(
            Error::file(&io).to_string(),
            "failed to open `a`: no such file"
        );
        let plain = std::io::Error::other("parse line 3");
        assert_eq!(
            Error::caused(ErrorKind::Usage, &plain).to_string(),
            "failed to parse line 3"
        );
    }

    #[test]
    fn the_help_text_has_every_exit_code() {
        for kind in [
            ErrorKind::Bug,
            ErrorKind::Usage,
            ErrorKind::Environment,
            ErrorKind::SourceNotRecognised,
            ErrorKind::WorkloadFailed,
            ErrorKind::ServerNotReady,
            ErrorKind::NoShapes,
            ErrorKind::TunerFailed,
            ErrorKind::NotBetter,
            ErrorKind::NotResumable,
            ErrorKind::Interrupted,
        ] {
            let line = format!("\n{:>5}  ", kind as u8);
            assert!(EXIT_CODES.contains(&line), "{kind:?}");
        }
    }
}
