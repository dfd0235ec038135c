//! How a command fails: a kind that is the exit code, a cause, and what to do next.

use std::error::Error;
use std::fmt::{self, Write as _};

use serde::ser::{Serialize, SerializeStruct as _, Serializer};

/// Exit codes. Scripts rely on them; each variant's number never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A bug in gemmtune.
    Bug = 1,
    /// The command line, a configuration file or an input file is wrong.
    Usage = 2,
    /// The environment is wrong: tree, version, device.
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
    /// Interrupted; what was finished is kept.
    Interrupted = 130,
}

/// [`Kind`] for the help text.
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

/// A failed command.
#[derive(Debug)]
pub struct Failure {
    kind: Kind,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
    hints: Vec<String>,
}

impl Failure {
    /// A failure with a message that is a full sentence without its full stop.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
            hints: Vec::new(),
        }
    }

    /// A failure to do `what` (a lower-case verb phrase), caused by `source`.
    pub fn to(kind: Kind, what: &str, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            kind,
            message: format!("failed to {what}"),
            source: Some(source.into()),
            hints: Vec::new(),
        }
    }

    /// Adds a hint: the next command to run, or what to change.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Every failure names what to do next: one that came without a hint gets that of its kind.
    #[must_use]
    pub fn or_next_step(self, command: &str) -> Self {
        if !self.hints.is_empty() {
            return self;
        }
        let hint = match self.kind {
            Kind::Bug => "this is a bug: report it with the command line".to_owned(),
            Kind::Usage => format!("mend that; `gemmtune help {command}` says what it takes"),
            Kind::Environment | Kind::TunerFailed => {
                format!("mend that, then `gemmtune {command}` again")
            }
            Kind::SourceNotRecognised => {
                "name another tree; `gemmtune trace ROOT` quotes the lines it stumbles over"
                    .to_owned()
            }
            Kind::WorkloadFailed | Kind::ServerNotReady => {
                format!("read the server's log, then `gemmtune {command}` again")
            }
            Kind::NoShapes => {
                "`gemmtune instrument apply ROOT` makes the server log its shapes".to_owned()
            }
            Kind::NotBetter => "`gemmtune undo` takes a deployed table back".to_owned(),
            Kind::NotResumable => {
                "`gemmtune status` says who has it; `gemmtune run --new` begins another run"
                    .to_owned()
            }
            Kind::Interrupted => format!("`gemmtune {command}` goes on"),
        };
        self.hint(hint)
    }

    /// The kind of this failure.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The process exit code.
    pub fn exit_code(&self) -> std::process::ExitCode {
        std::process::ExitCode::from(self.kind as u8)
    }
}

impl Failure {
    /// What happened and why, in one line of causes.
    fn causes(&self) -> String {
        let mut text = self.message.clone();
        let mut cause: Option<&(dyn Error + 'static)> = self
            .source
            .as_ref()
            .map(|source| source.as_ref() as &(dyn Error + 'static));
        while let Some(error) = cause {
            let line = error.to_string();
            // A cause that its parent already quotes is not said twice.
            if !text.contains(&line) {
                let _ = write!(text, ": {line}");
            }
            cause = error.source();
        }
        text
    }
}

/// What `--json` prints instead of a result: `{"exit_code": 10, "message": "…", "hints": ["…"]}`.
impl Serialize for Failure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut document = serializer.serialize_struct("Failure", 3)?;
        document.serialize_field("exit_code", &(self.kind as u8))?;
        document.serialize_field("message", &self.causes())?;
        document.serialize_field("hints", &self.hints)?;
        document.end()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.causes())?;
        for hint in &self.hints {
            write!(formatter, "\n\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_without_a_hint_gets_the_next_step_of_its_kind() {
        let bare = Failure::new(Kind::Usage, "no such file").or_next_step("lint");
        assert!(bare.to_string().contains("`gemmtune help lint`"), "{bare}");
        let hinted = Failure::new(Kind::Usage, "no such file")
            .hint("look")
            .or_next_step("lint");
        assert_eq!(hinted.to_string(), "no such file\n\nhint: look");
    }

    #[test]
    fn a_failure_reads_as_cause_chain_then_hints() {
        let failure = Failure::to(
            Kind::Environment,
            "read the table",
            std::io::Error::other("disk on fire"),
        )
        .hint("run `gemmtune doctor`");
        assert_eq!(
            failure.to_string(),
            "failed to read the table: disk on fire\n\nhint: run `gemmtune doctor`"
        );
    }
}
