//! The hint of an error that came without one.

use crate::run::error::{Error, ErrorKind};

/// Ensures that every error names what to do next: one without a hint gets that of its kind. `command` is the
/// subcommand that failed.
pub(super) fn with_next_step(error: Error, command: &str) -> Error {
    if !error.hints().is_empty() {
        return error;
    }
    let hint = match error.kind() {
        ErrorKind::Bug => "this is a bug: report it with the command line".to_owned(),
        ErrorKind::Usage => format!("`gemmtune help {command}` describes the arguments"),
        ErrorKind::Environment | ErrorKind::TunerFailed => {
            format!("fix that, then run `gemmtune {command}` again")
        }
        ErrorKind::SourceNotRecognised => {
            "name another tree; `gemmtune trace ROOT` quotes the lines it does not understand"
                .to_owned()
        }
        ErrorKind::WorkloadFailed | ErrorKind::ServerNotReady => {
            format!("read the server's log, then run `gemmtune {command}` again")
        }
        ErrorKind::NoShapes => {
            "`gemmtune instrument apply ROOT` makes the server log its shapes".to_owned()
        }
        ErrorKind::NotBetter => "`gemmtune undo` takes a deployed table back".to_owned(),
        ErrorKind::NotResumable => {
            "`gemmtune status` says who has it; `gemmtune run --new` begins another run".to_owned()
        }
        ErrorKind::Interrupted => format!("`gemmtune {command}` resumes"),
    };
    error.hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_without_a_hint_gets_the_next_step_of_its_kind() {
        let bare = with_next_step(Error::new(ErrorKind::Usage, "no such file"), "lint");
        insta::assert_snapshot!(bare.hints()[0], @"`gemmtune help lint` describes the arguments");
        let hinted = Error::new(ErrorKind::Usage, "no such file").hint("look");
        assert_eq!(with_next_step(hinted, "lint").hints(), ["look"]);
    }
}
