//! The run folder, which holds the inputs, the progress and the results of one run of the loop.
//!
//! Every file name is a constant here and nowhere else. A run folder can be copied to another machine and reported on
//! there: nothing in it refers to files outside, except for paths of the measured installation.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};

/// Folder of runs, beside the configuration file.
pub const RUNS: &str = "runs";

/// Link in [`RUNS`] to the newest run.
pub const LATEST: &str = "latest";

/// A run folder: resolves the name of everything in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    path: Utf8PathBuf,
}

impl RunDir {
    /// Creates `parent/<UTC stamp>-<name>` and points `parent/latest` at it.
    ///
    /// Of two runs started in the same second the later one gets a number appended.
    pub fn create(parent: &Utf8Path, name: &str, now: jiff::Timestamp) -> io::Result<Self> {
        fs_err::create_dir_all(parent)?;
        let parent = &parent.canonicalize_utf8()?;
        let stamp = now.strftime("%Y%m%dT%H%M%SZ");
        let mut serial = 1;
        let path = loop {
            let suffix = if serial == 1 {
                String::new()
            } else {
                format!("-{serial}")
            };
            let path = parent.join(format!("{stamp}-{name}{suffix}"));
            match std::fs::create_dir(&path) {
                Ok(()) => break path,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => serial += 1,
                Err(error) => {
                    return Err(io::Error::new(
                        error.kind(),
                        format!("create `{path}`: {error}"),
                    ));
                }
            }
        };
        let run = Self { path };
        run.lay_out()?;
        run.link_latest(parent)?;
        Ok(run)
    }

    /// The run folder at `path`, which must hold a journal.
    pub fn open(path: &Utf8Path) -> io::Result<Self> {
        // `latest` is resolved once, so that a run started meanwhile does not redirect this one.
        let path = path.canonicalize_utf8().map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("open the run folder `{path}`: {error}"),
            )
        })?;
        let run = Self { path };
        if !run.journal().is_file() {
            let text = format!(
                "open `{}`: it is no run folder (no journal.jsonl)",
                run.path
            );
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        Ok(run)
    }

    fn lay_out(&self) -> io::Result<()> {
        for folder in [self.trials(), self.capture(), self.tune()] {
            fs_err::create_dir_all(folder)?;
        }
        Ok(())
    }

    fn link_latest(&self, parent: &Utf8Path) -> io::Result<()> {
        let Some(name) = self.path.file_name() else {
            return Ok(());
        };
        // A link is replaced by renaming a new one over it, so that it always points somewhere.
        let fresh = parent.join(format!(".{LATEST}-{}", std::process::id()));
        let _ = std::fs::remove_file(&fresh);
        fs_err::os::unix::fs::symlink(name, &fresh)?;
        fs_err::rename(&fresh, parent.join(LATEST))
    }

    /// Path of the folder.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// The append-only journal of the run.
    pub fn journal(&self) -> Utf8PathBuf {
        self.path.join("journal.jsonl")
    }

    /// The configuration with paths resolved, readable by its owner only.
    pub fn config(&self) -> Utf8PathBuf {
        self.path.join("run.toml")
    }

    /// The lock file, which names the process at work on the run.
    pub fn lock(&self) -> Utf8PathBuf {
        self.path.join("lock")
    }

    /// Saved originals of everything edited.
    pub fn ledger(&self) -> Utf8PathBuf {
        self.path.join("ledger")
    }

    /// The folder with one folder for each trial.
    pub fn trials(&self) -> Utf8PathBuf {
        self.path.join("trials")
    }

    /// Folder of trial `number`, playing the role `role`.
    pub fn trial(&self, number: u32, role: &str) -> Utf8PathBuf {
        self.trials().join(format!("{number:02}-{role}"))
    }

    /// Records written by instrumented processes.
    pub fn capture(&self) -> Utf8PathBuf {
        self.path.join("capture")
    }

    /// Files of the deployment.
    pub fn deploy(&self) -> Utf8PathBuf {
        self.path.join("deploy")
    }

    /// The overlay of this run's servers.
    pub fn overlay(&self) -> Utf8PathBuf {
        self.path.join("overlay")
    }

    /// Record files of the verify trial.
    pub fn engagement(&self) -> Utf8PathBuf {
        self.path.join("engagement")
    }

    /// Traces of the baseline server's profiler, while they are read.
    pub fn profile(&self) -> Utf8PathBuf {
        self.path.join("profile")
    }

    /// The captured shapes as CSV.
    pub fn shapes(&self) -> Utf8PathBuf {
        self.path.join("shapes.csv")
    }

    pub fn plan(&self) -> Utf8PathBuf {
        self.path.join("plan.json")
    }

    /// Durable results of the tuner.
    pub fn tune(&self) -> Utf8PathBuf {
        self.path.join("tune")
    }

    /// The tuned table as the runtime reads it.
    pub fn table(&self) -> Utf8PathBuf {
        self.path.join("table.csv")
    }

    /// What `stage` found, as JSON.
    pub fn stage(&self, stage: &str) -> Utf8PathBuf {
        self.path.join(format!("{stage}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_runs_of_one_second_get_two_folders_and_latest_is_the_second() {
        let keep = tempfile::tempdir().unwrap();
        let parent = Utf8PathBuf::try_from(keep.path().join("runs")).unwrap();
        let now = jiff::Timestamp::UNIX_EPOCH;
        let first = RunDir::create(&parent, "demo", now).unwrap();
        let second = RunDir::create(&parent, "demo", now).unwrap();
        assert_eq!(first.path().file_name(), Some("19700101T000000Z-demo"));
        assert_eq!(second.path().file_name(), Some("19700101T000000Z-demo-2"));
        let latest = parent.join(LATEST).canonicalize_utf8().unwrap();
        assert_eq!(latest, second.path().canonicalize_utf8().unwrap());
    }

    #[test]
    fn a_folder_without_a_journal_is_not_opened() {
        let keep = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::try_from(keep.path().to_owned()).unwrap();
        let error = RunDir::open(&path).unwrap_err();
        insta::assert_snapshot!(error.to_string().replace(path.as_str(), "[folder]"), @"open `[folder]`: it is no run folder (no journal.jsonl)");
    }
}
