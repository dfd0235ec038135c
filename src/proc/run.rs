//! Running a short command to its end, with a deadline, and capturing its output.

use std::time::Duration;

use camino::Utf8PathBuf;

use super::interrupt::{Interrupt, Urgency};
use super::spawn::{Keeper, Spawn, SpawnError, WaitOutcome};

/// Exit code and output of a command that ended on its own.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Exit code; 128 + n for signal n.
    pub code: u8,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// Failed to run a command to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// It did not end in time and was ended.
    #[error("run `{program}`: no answer within {limit:?}")]
    DeadlinePassed {
        program: String,
        /// The limit it ran under.
        limit: Duration,
    },
    /// The user asked to stop.
    #[error("run `{0}`: interrupted")]
    Interrupted(String),
    /// Its output could not be stored or read.
    #[error("read the output of `{program}`")]
    Output {
        program: String,
        source: std::io::Error,
    },
}

/// Runs `argv` in `folder` with `env` on top of our own environment, for at most `limit`.
///
/// Output goes through files, so neither stream can block the command, however much it prints.
pub fn run(
    keeper: &Keeper,
    argv: &[String],
    folder: Option<Utf8PathBuf>,
    env: impl IntoIterator<Item = (String, Option<String>)>,
    limit: Duration,
    interrupt: &Interrupt,
) -> Result<Ran, RunError> {
    let program = argv.first().cloned().unwrap_or_default();
    let output = |source| RunError::Output {
        program: program.clone(),
        source,
    };
    let kept_output = tempfile::tempdir().map_err(output)?;
    let path = |name| {
        Utf8PathBuf::try_from(kept_output.path().join(name))
            .map_err(|error| output(std::io::Error::other(error)))
    };
    let (stdout, stderr) = (path("stdout")?, path("stderr")?);
    let spawn = Spawn {
        argv: argv.to_vec(),
        folder,
        env: env.into_iter().collect(),
        stdout: stdout.clone(),
        stderr: stderr.clone(),
        grace: Duration::from_secs(2),
        linger: false,
    };
    let mut kept = spawn.start(keeper)?;
    match kept.wait(limit, interrupt) {
        WaitOutcome::Exited(code) => Ok(Ran {
            code,
            stdout: fs_err::read(&stdout).map_err(output)?,
            stderr: fs_err::read(&stderr).map_err(output)?,
        }),
        WaitOutcome::DeadlinePassed => {
            kept.stop(Urgency::Stop, interrupt);
            Err(RunError::DeadlinePassed { program, limit })
        }
        WaitOutcome::Interrupted(urgency) => {
            kept.stop(urgency, interrupt);
            Err(RunError::Interrupted(program))
        }
    }
}
