//! One process works on a run folder at a time; a second one fails with the id of the first.

use std::fmt;
use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use camino::Utf8Path;
use serde::{Deserialize, Serialize};

/// How long to retry before a lock counts as held.
const PATIENCE: Duration = Duration::from_millis(200);

const POLL: Duration = Duration::from_millis(10);

/// The process that holds a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub pid: u32,
    pub host: String,
    /// What it does: its command line.
    pub command: String,
    /// Since when, UTC.
    pub since: jiff::Timestamp,
}

impl Holder {
    /// This process, with `command` as what it does.
    pub fn this_process(command: &str) -> Self {
        Self {
            pid: std::process::id(),
            host: host_name(),
            command: command.to_owned(),
            since: jiff::Timestamp::now(),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "process {} on {} since {:.0} (`{}`)",
            self.pid, self.host, self.since, self.command
        )
    }
}

/// The name of this host, as the kernel has it.
pub fn host_name() -> String {
    fs_err::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}

/// The name of this host and its boot id: machines that are rented by the hour often share one name.
pub fn host_and_boot() -> String {
    let boot = fs_err::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    match boot.trim().get(..8) {
        Some(boot) => format!("{} (boot {boot})", host_name()),
        None => host_name(),
    }
}

/// Failed to lock a folder.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error("lock `{path}`: held by {holder}")]
    Held {
        path: String,
        /// A description: process, host, since when, doing what.
        holder: String,
    },
    /// The file could not be opened or locked.
    #[error("lock `{path}`")]
    Io { path: String, source: io::Error },
}

/// A held lock. It is released when dropped or when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock file at `path` for `holder`, or returns an error that names its holder.
    ///
    /// The lock belongs to the open file, so a killed process never leaves it held; the text inside
    /// only names the holder and is not what locks.
    pub fn take(path: &Utf8Path, holder: &Holder) -> Result<Self, LockError> {
        let failed = |source| LockError::Io {
            path: path.to_string(),
            source,
        };
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        // A process that only checks holds it for a moment.
        let patience = Instant::now() + PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < patience => thread::sleep(POLL),
                Err(TryLockError::WouldBlock) => {
                    return Err(LockError::Held {
                        path: path.to_string(),
                        holder: in_words(&mut file),
                    });
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
        let text = serde_json::to_string(holder).map_err(|error| failed(error.into()))?;
        file.set_len(0).map_err(failed)?;
        file.rewind().map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)?;
        Ok(Self { _file: file })
    }

    /// A description of the process that holds the lock file at `path`, if one does. Writes nothing.
    pub fn holder(path: &Utf8Path) -> Option<String> {
        let mut file = File::open(path).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => Some(in_words(&mut file)),
            _ => None,
        }
    }
}

/// What the holder wrote into the lock file.
fn in_words(file: &mut File) -> String {
    let mut text = String::new();
    let _ = file.read_to_string(&mut text);
    serde_json::from_str::<Holder>(&text)
        .map_or_else(|_| "another process".to_owned(), |held| held.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_taker_is_told_who_holds_the_lock() {
        let keep = tempfile::tempdir().unwrap();
        let path = camino::Utf8PathBuf::try_from(keep.path().join("lock")).unwrap();
        let held = Lock::take(&path, &Holder::this_process("gemmtune run")).unwrap();
        let error = Lock::take(&path, &Holder::this_process("gemmtune run")).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(&format!("process {}", std::process::id())),
            "{text}"
        );
        assert!(text.contains("`gemmtune run`"), "{text}");
        assert_eq!(
            Lock::holder(&path).as_deref(),
            text.split("held by ").nth(1)
        );
        drop(held);
        assert_eq!(Lock::holder(&path), None);
        Lock::take(&path, &Holder::this_process("gemmtune run")).unwrap();
    }

    #[test]
    fn whoever_only_looks_keeps_nobody_from_taking_the_lock() {
        let keep = tempfile::tempdir().unwrap();
        let path = camino::Utf8PathBuf::try_from(keep.path().join("lock")).unwrap();
        drop(Lock::take(&path, &Holder::this_process("a")).unwrap());
        let looking = File::open(&path).unwrap();
        looking.lock_shared().unwrap();
        let taken = thread::scope(|scope| {
            let taker = scope.spawn(|| Lock::take(&path, &Holder::this_process("b")).is_ok());
            thread::sleep(Duration::from_millis(30));
            drop(looking);
            taker.join().unwrap()
        });
        assert!(taken);
    }
}
