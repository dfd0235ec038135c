//! The ledger: everything gemmtune changed in files that are not its own, and how to change it back.
//!
//! It is a folder with a journal and the saved bytes. An operation is recorded before anything is touched, the new
//! bytes are staged beside each file before the first is renamed into place, and opening the ledger finishes or rolls
//! back whatever a killed process left: at any moment every file is either the old one or the new one, and what undo
//! needs is on disk. Undoing restores bytes, mode and owner exactly, and refuses a file that was edited since.
//!
//! Files are replaced by renaming, so a file that shares its inode with a package cache (as `uv` and `conda` link
//! them) is separated from the cache instead of changing it.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use super::digest::whole as digest;
use super::file::{sync_folder, write_atomic};
use super::journal::{Journal, Record};
use super::lock::{Holder, Lock, LockError};

mod error;
mod restore;

pub use error::LedgerError;
pub use restore::PathState;

const JOURNAL: &str = "ledger.jsonl";
/// Saved bytes, by digest.
const SAVED: &str = "saved";
const LOCK: &str = "lock";

/// One change to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Replaces the bytes of a file.
    Edit {
        /// The file; a link is followed.
        path: Utf8PathBuf,
        /// Its bytes as the caller read them.
        before: Vec<u8>,
        /// Its bytes afterwards.
        after: Vec<u8>,
    },
    /// Moves a file or folder aside, to a name beside it that no build looks for.
    MoveAside {
        path: Utf8PathBuf,
        /// Whether what appears at `path` later is a build product, which undoing deletes.
        regenerated: bool,
    },
}

/// A change as the journal records it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Recorded {
    /// See [`Change::Edit`].
    Edit {
        /// The file, links resolved.
        path: Utf8PathBuf,
        before: String,
        after: String,
        /// Mode bits.
        mode: u32,
        /// Where the new bytes are staged.
        staged: Utf8PathBuf,
    },
    /// See [`Change::MoveAside`].
    MoveAside {
        /// The file or folder.
        path: Utf8PathBuf,
        aside: Utf8PathBuf,
        /// Whether undoing deletes what appeared at `path`.
        regenerated: bool,
    },
}

impl Recorded {
    /// The path that changed.
    pub fn path(&self) -> &Utf8PathBuf {
        match self {
            Self::Edit { path, .. } | Self::MoveAside { path, .. } => path,
        }
    }

    /// The current state of the path, compared with this change.
    pub fn state(&self) -> Result<PathState, LedgerError> {
        restore::state(self)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event {
    Begun {
        id: u32,
        name: String,
        detail: serde_json::Value,
        changes: Vec<Recorded>,
    },
    Done {
        id: u32,
    },
    UndoBegun {
        id: u32,
    },
    Undone {
        id: u32,
    },
}

/// How far an operation has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// Begun and never finished: the process was killed.
    Interrupted,
    Applied,
    /// Being undone when the process was killed.
    UndoInterrupted,
    Undone,
}

/// One operation: all its changes are in place, or none.
#[derive(Clone, Debug, Serialize)]
pub struct Operation {
    /// Number within the ledger.
    pub id: u32,
    /// What the caller named it, such as `instrument`.
    pub name: String,
    /// What the caller stores with it.
    pub detail: serde_json::Value,
    /// When it began, UTC.
    pub at: jiff::Timestamp,
    /// Its changes, in order.
    pub changes: Vec<Recorded>,
    /// How far it got.
    pub progress: Progress,
}

impl Operation {
    /// Whether its changes are in place, in full or in part.
    pub fn is_live(&self) -> bool {
        self.progress != Progress::Undone
    }
}

/// An open ledger; one process at a time.
#[derive(Debug)]
pub struct Ledger {
    folder: Utf8PathBuf,
    journal: Journal,
    operations: Vec<Operation>,
    _lock: Lock,
}

impl Ledger {
    /// The operations of the ledger in `folder`, oldest first, without writing anything. A folder
    /// that is not there has none.
    pub fn read(folder: &Utf8Path) -> Result<Vec<Operation>, LedgerError> {
        let path = folder.join(JOURNAL);
        if !path.exists() {
            return Ok(Vec::new());
        }
        Ok(fold(&Journal::read(&path)?))
    }

    /// Opens or creates the ledger in `folder` for `command`, and rolls back or finishes what a
    /// killed process left.
    pub fn open(folder: &Utf8Path, command: &str) -> Result<Self, LedgerError> {
        let is_new = !folder.join(JOURNAL).exists();
        let opened = Self::open_folder(folder, command);
        match &opened {
            // Another process is creating it at this moment.
            Err(LedgerError::Lock(LockError::Held { .. })) | Ok(_) => {}
            Err(_) if is_new => {
                // The lock was taken before the journal existed, so nothing is recorded yet.
                let _ = fs_err::remove_dir_all(folder);
            }
            Err(_) => {}
        }
        opened
    }

    fn open_folder(folder: &Utf8Path, command: &str) -> Result<Self, LedgerError> {
        create_folder(&folder.join(SAVED))?;
        let lock = Lock::take(&folder.join(LOCK), &Holder::this_process(command))?;
        let path = folder.join(JOURNAL);
        let (journal, operations) = if path.exists() {
            let (journal, records) = Journal::open(&path)?;
            (journal, fold(&records))
        } else {
            // The ledger may be inside a checkout, where git should not list it.
            let ignore = folder.join(".gitignore");
            write_atomic(&ignore, b"*\n").map_err(io_at(&ignore))?;
            (Journal::create(&path)?, Vec::new())
        };
        let mut ledger = Self {
            folder: folder.to_owned(),
            journal,
            operations,
            _lock: lock,
        };
        ledger.recover()?;
        Ok(ledger)
    }

    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// Makes all of `changes` or none, and returns the operation's number.
    pub fn apply(
        &mut self,
        name: &str,
        detail: serde_json::Value,
        changes: &[Change],
    ) -> Result<u32, LedgerError> {
        let id = self.operations.last().map_or(1, |last| last.id + 1);
        let recorded = changes
            .iter()
            .enumerate()
            .map(|(index, change)| record(change, id, index))
            .collect::<Result<Vec<_>, _>>()?;
        let at = jiff::Timestamp::now();
        self.append(
            at,
            Event::Begun {
                id,
                name: name.to_owned(),
                detail: detail.clone(),
                changes: recorded.clone(),
            },
        )?;
        self.operations.push(Operation {
            id,
            name: name.to_owned(),
            detail,
            at,
            changes: recorded.clone(),
            progress: Progress::Interrupted,
        });
        let made = self
            .make(changes, &recorded)
            .and_then(|()| self.append(jiff::Timestamp::now(), Event::Done { id }));
        if let Err(error) = made {
            // If rolling back fails too, opening the ledger again continues it.
            let _ = self.take_back(id);
            return Err(error);
        }
        self.set_progress(id, Progress::Applied);
        Ok(id)
    }

    fn make(&self, changes: &[Change], recorded: &[Recorded]) -> Result<(), LedgerError> {
        // Everything that needs disk space first; renames need none.
        for (change, record) in changes.iter().zip(recorded) {
            if let Change::Edit { before, after, .. } = change
                && let Recorded::Edit {
                    staged, path, mode, ..
                } = record
            {
                self.save(before)?;
                self.save(after)?;
                restore::stage(staged, after, *mode, path)?;
            }
        }
        for record in recorded {
            match record {
                Recorded::Edit { staged, path, .. } => restore::rename(staged, path)?,
                Recorded::MoveAside { path, aside, .. } => restore::rename(path, aside)?,
            }
        }
        Ok(())
    }

    /// Undoes operation `id`: bytes, modes and names are as before it. Undoing twice changes
    /// nothing. Refuses, with nothing touched, when a file was edited since or a later operation changed the same file.
    pub fn undo(&mut self, id: u32) -> Result<(), LedgerError> {
        let Some(operation) = self
            .operations
            .iter()
            .find(|operation| operation.id == id && operation.is_live())
            .cloned()
        else {
            return Ok(());
        };
        self.refuse_stacked(&operation)?;
        for change in &operation.changes {
            restore::check(change, &operation.name, &self.folder.join(SAVED))?;
        }
        self.append(jiff::Timestamp::now(), Event::UndoBegun { id })?;
        self.set_progress(id, Progress::UndoInterrupted);
        self.take_back(id)
    }

    /// Closes the ledger; with no operation in place its folder is removed.
    pub fn close(self) -> Result<(), LedgerError> {
        if self.operations.iter().any(Operation::is_live) {
            return Ok(());
        }
        fs_err::remove_dir_all(&self.folder).map_err(io_at(&self.folder))
    }

    /// Restores what `id` changed and records that in the journal.
    fn take_back(&mut self, id: u32) -> Result<(), LedgerError> {
        let Some(operation) = self.operations.iter().find(|found| found.id == id).cloned() else {
            return Ok(());
        };
        // A change that cannot be undone is no reason to keep the others.
        let mut failed = None;
        for change in operation.changes.iter().rev() {
            if let Err(error) = restore::restore(change, &operation.name, &self.folder.join(SAVED))
            {
                failed.get_or_insert(error);
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        self.set_progress(id, Progress::Undone);
        self.append(jiff::Timestamp::now(), Event::Undone { id })
    }

    /// Finishes interrupted undos and rolls back interrupted operations, newest first. A file that
    /// was edited in between is left alone and stays in the ledger.
    fn recover(&mut self) -> Result<(), LedgerError> {
        let unfinished: Vec<u32> = self
            .operations
            .iter()
            .rev()
            .filter(|operation| {
                matches!(
                    operation.progress,
                    Progress::Interrupted | Progress::UndoInterrupted
                )
            })
            .map(|operation| operation.id)
            .collect();
        for id in unfinished {
            self.take_back(id)?;
        }
        Ok(())
    }

    fn refuse_stacked(&self, operation: &Operation) -> Result<(), LedgerError> {
        let later = self
            .operations
            .iter()
            .filter(|other| other.id > operation.id && other.is_live());
        for other in later {
            for change in &operation.changes {
                if other
                    .changes
                    .iter()
                    .any(|newer| newer.path() == change.path())
                {
                    return Err(LedgerError::Stacked {
                        name: operation.name.clone(),
                        later: other.name.clone(),
                        path: change.path().clone(),
                    });
                }
            }
        }
        Ok(())
    }

    fn save(&self, bytes: &[u8]) -> Result<(), LedgerError> {
        let path = self.folder.join(SAVED).join(digest(bytes));
        if path.exists() {
            return Ok(());
        }
        write_atomic(&path, bytes).map_err(io_at(&path))
    }

    fn append(&mut self, at: jiff::Timestamp, event: Event) -> Result<(), LedgerError> {
        Ok(self.journal.append(&Record { at, event })?)
    }

    fn set_progress(&mut self, id: u32, progress: Progress) {
        for operation in &mut self.operations {
            if operation.id == id {
                operation.progress = progress;
            }
        }
    }
}

/// The journal's record of a change, after checking that it can be made.
fn record(change: &Change, id: u32, index: usize) -> Result<Recorded, LedgerError> {
    match change {
        Change::Edit {
            path,
            before,
            after,
        } => {
            let path = path.canonicalize_utf8().map_err(io_at(path))?;
            let mode = restore::mode(&path)?;
            if mode & 0o222 == 0 {
                return Err(LedgerError::ReadOnly { path });
            }
            if fs_err::read(&path).map_err(io_at(&path))? != *before {
                return Err(LedgerError::Moving { path });
            }
            Ok(Recorded::Edit {
                staged: staged(&path, id, index),
                before: digest(before),
                after: digest(after),
                mode,
                path,
            })
        }
        Change::MoveAside { path, regenerated } => {
            path.symlink_metadata().map_err(io_at(path))?;
            let name = path.file_name().unwrap_or_default();
            let aside = path.with_file_name(format!("{name}.gemmtune-aside-{id}-{index}"));
            if aside.symlink_metadata().is_ok() {
                return Err(LedgerError::Exists { path: aside });
            }
            Ok(Recorded::MoveAside {
                path: path.clone(),
                aside,
                regenerated: *regenerated,
            })
        }
    }
}

/// The name under which new bytes wait beside `path`.
fn staged(path: &Utf8Path, id: u32, index: usize) -> Utf8PathBuf {
    let name = path.file_name().unwrap_or_default();
    path.with_file_name(format!(".gemmtune-staged-{id}-{index}-{name}"))
}

fn fold(records: &[Record<Event>]) -> Vec<Operation> {
    let mut operations: Vec<Operation> = Vec::new();
    let set = |operations: &mut Vec<Operation>, id: u32, progress: Progress| {
        for operation in operations.iter_mut().filter(|found| found.id == id) {
            operation.progress = progress;
        }
    };
    for record in records {
        match &record.event {
            Event::Begun {
                id,
                name,
                detail,
                changes,
            } => operations.push(Operation {
                id: *id,
                name: name.clone(),
                detail: detail.clone(),
                at: record.at,
                changes: changes.clone(),
                progress: Progress::Interrupted,
            }),
            Event::Done { id } => set(&mut operations, *id, Progress::Applied),
            Event::UndoBegun { id } => set(&mut operations, *id, Progress::UndoInterrupted),
            Event::Undone { id } => set(&mut operations, *id, Progress::Undone),
        }
    }
    operations
}

fn create_folder(folder: &Utf8Path) -> Result<(), LedgerError> {
    fs_err::create_dir_all(folder).map_err(io_at(folder))?;
    sync_folder(folder).map_err(io_at(folder))
}

fn io_at(path: &Utf8Path) -> impl Fn(io::Error) -> LedgerError {
    let path = path.to_owned();
    move |source| LedgerError::Io {
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests;
