//! Why files could not be changed or changed back.

use std::io;

use camino::Utf8PathBuf;

use super::super::journal::JournalError;
use super::super::lock::LockError;

/// Failed to change files or to change them back. Nothing is left half done.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A file or folder could not be read, written or renamed.
    #[error("change `{path}`")]
    Io {
        /// The file or folder.
        path: Utf8PathBuf,
        source: io::Error,
    },
    /// The journal of the ledger.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Another process uses the ledger.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The file has no write permission for anyone, so it is meant to stay as it is.
    #[error("change `{path}`: it is read-only")]
    ReadOnly { path: Utf8PathBuf },
    /// The file changed since the caller read it.
    #[error("change `{path}`: it changed while it was being read")]
    Moving { path: Utf8PathBuf },
    /// A path to be created or moved to is taken.
    #[error("create `{path}`: it exists")]
    Exists { path: Utf8PathBuf },
    /// The file was edited after gemmtune changed it.
    #[error("undo `{name}`: `{path}` was edited since\n{diff}")]
    Edited {
        name: String,
        path: Utf8PathBuf,
        /// Unified diff from what gemmtune wrote to what is there.
        diff: String,
    },
    /// A file that gemmtune changed is gone.
    #[error("undo `{name}`: `{path}` is gone")]
    Missing { name: String, path: Utf8PathBuf },
    /// A later operation changed the same file and must be undone first.
    #[error("undo `{name}`: `{later}` changed `{path}` after it")]
    Stacked {
        name: String,
        later: String,
        path: Utf8PathBuf,
    },
    /// The saved bytes are damaged.
    #[error("undo `{name}`: the saved copy of `{path}` is damaged")]
    Damaged { name: String, path: Utf8PathBuf },
}
