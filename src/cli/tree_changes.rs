//! What `instrument` and `switch` share: edits of a tree through its ledger, the overlay beside it, and their errors.

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;

use super::printer::Printer;
use super::trace;
use crate::overlay;
use crate::run::error::{Error, ErrorKind};
use crate::store::file::write_atomic;
use crate::store::ledger::{Change, Ledger, LedgerError, Operation, PathState, Progress};
use crate::store::lock::LockError;
use crate::tree::package::{FileEdit, Package};

/// The tree, for what needs to know no more.
#[derive(Debug, clap::Args)]
pub(super) struct RootArgs {
    /// A folder that holds the `sglang` package, the package itself, or a source checkout
    pub(super) root: Utf8PathBuf,
}

/// A file of an operation, and its current state.
#[derive(Debug, Serialize)]
pub(super) struct FileState {
    path: String,
    state: PathState,
}

/// The record of one command in the ledger of a tree.
#[derive(Debug, Serialize)]
pub(super) struct Recorded {
    /// When it was applied.
    at: jiff::Timestamp,
    progress: Progress,
    /// The request.
    pub(super) detail: serde_json::Value,
    /// The files it changed.
    pub(super) files: Vec<FileState>,
}

/// The operation `name` that is in place on `package`.
pub(super) fn recorded(package: &Package, name: &str) -> Result<Option<Recorded>, Error> {
    let operations =
        Ledger::read(&package.ledger_folder()).map_err(|error| failure(error, package))?;
    let Some(operation) = operations
        .iter()
        .rev()
        .find(|operation| operation.name == name && operation.is_live())
    else {
        return Ok(None);
    };
    let files = operation
        .changes
        .iter()
        .map(|change| {
            Ok(FileState {
                path: change.path().to_string(),
                state: change.state().map_err(|error| failure(error, package))?,
            })
        })
        .collect::<Result<_, Error>>()?;
    Ok(Some(Recorded {
        at: operation.at,
        progress: operation.progress,
        detail: operation.detail.clone(),
        files,
    }))
}

/// Rolls back what a killed process left in `package`, before anything is read from the tree.
pub(super) fn recover(package: &Package, command: &str) -> Result<(), Error> {
    let folder = package.ledger_folder();
    let unfinished = Ledger::read(&folder)
        .map_err(|error| failure(error, package))?
        .iter()
        .any(|operation| {
            matches!(
                operation.progress,
                Progress::Interrupted | Progress::UndoInterrupted
            )
        });
    if unfinished {
        Ledger::open(&folder, command)
            .and_then(Ledger::close)
            .map_err(|error| failure(error, package))?;
    }
    Ok(())
}

/// Writes `edits` as the operation `name`: all or none.
pub(super) fn apply(
    package: &Package,
    name: &str,
    detail: serde_json::Value,
    edits: &[FileEdit],
) -> Result<(), Error> {
    let changes: Vec<Change> = edits
        .iter()
        .map(|edit| Change::Edit {
            path: edit.path.clone(),
            before: edit.before.clone(),
            after: edit.after.clone(),
        })
        .collect();
    let mut ledger = Ledger::open(&package.ledger_folder(), &format!("gemmtune {name} apply"))
        .map_err(|error| failure(error, package))?;
    let applied = ledger.apply(name, detail, &changes);
    let closed = ledger.close();
    applied.map_err(|error| failure(error, package))?;
    closed.map_err(|error| failure(error, package))
}

/// Undoes the operation `name`; returns whether there was one.
pub(super) fn undo(package: &Package, name: &str) -> Result<bool, Error> {
    let folder = package.ledger_folder();
    let live = |operation: &Operation| operation.name == name && operation.is_live();
    let operations = Ledger::read(&folder).map_err(|error| failure(error, package))?;
    if !operations.iter().any(live) {
        // Left by a process that was killed before it recorded anything, or while it was cleaning up.
        if folder.exists() && !operations.iter().any(Operation::is_live) {
            Ledger::open(&folder, &format!("gemmtune {name} undo"))
                .and_then(Ledger::close)
                .map_err(|error| failure(error, package))?;
        }
        return Ok(false);
    }
    let mut ledger = Ledger::open(&folder, &format!("gemmtune {name} undo"))
        .map_err(|error| failure(error, package))?;
    let ids: Vec<u32> = ledger
        .operations()
        .iter()
        .rev()
        .filter(|operation| live(operation))
        .map(|operation| operation.id)
        .collect();
    let undone = ids.into_iter().try_for_each(|id| ledger.undo(id));
    let closed = ledger.close();
    undone.map_err(|error| failure(error, package))?;
    closed.map_err(|error| failure(error, package))?;
    Ok(true)
}

/// Lists the files that were changed, or would be.
pub(super) fn tell(changed: &[String], dry_run: bool, printer: &Printer) {
    let verb = if dry_run { "would change" } else { "changed" };
    for path in changed {
        printer.say(format!("{verb} {path}"));
    }
}

/// Undoes `name` in the tree, and removes `ours` from the overlay folder and then the folder, unless `other` is in it. `gone` is the
/// message if only the overlay was in use.
pub(super) fn undo_all(
    args: &RootArgs,
    name: &str,
    [ours, other]: [&str; 2],
    gone: &str,
    printer: &Printer,
) -> Result<(), Error> {
    let package = Package::find(&args.root).map_err(trace::failure)?;
    let patch = undo(&package, name)?;
    let folder = package.overlay_folder();
    let overlay = folder.join(ours).exists();
    if overlay {
        fs_err::remove_file(folder.join(ours))
            .map_err(|error| Error::to(ErrorKind::Environment, "remove the overlay", error))?;
        if !folder.join(other).exists() {
            remove_overlay(&package)?;
        }
    }
    if printer.is_json() {
        return printer.json(&serde_json::json!({ "patch": patch, "overlay": overlay }));
    }
    printer.say(match (patch, overlay) {
        (false, false) => "nothing to undo",
        (true, _) => "the tree is as it was before, to the byte",
        (false, true) => gone,
    });
    Ok(())
}

/// The file in the overlay folder with the kernel that `switch` forces.
pub(super) const DECISION: &str = "switch.json";

/// The file in the overlay folder that marks it as capturing.
pub(super) const CAPTURING: &str = "capture.json";

/// A file in every overlay folder; only a folder that contains it is ever removed.
pub(super) const OVERLAY_MARK: &str = "gemmtune_overlay/__init__.py";

/// Writes the overlay, and `wish` into its folder as `path`; if that fails, a newly created folder is removed again.
pub(super) fn write_overlay(folder: &Utf8Path, path: &Utf8Path, wish: &[u8]) -> Result<(), Error> {
    let was_there = folder.exists();
    let written = overlay::write(folder)
        .and_then(|()| write_atomic(&folder.join(".gitignore"), b"*\n"))
        .and_then(|()| write_atomic(path, wish));
    written.map_err(|error| {
        if !was_there {
            // An incomplete overlay would do harm on PYTHONPATH; if it cannot be removed, the first error is
            // sufficient.
            let _ = fs_err::remove_dir_all(folder);
        }
        Error::to(ErrorKind::Environment, "write the overlay", error)
            .hint("the tree is as it was: make room beside it, then run the command again")
    })
}

/// Removes the overlay folder of `package`, if it is one.
fn remove_overlay(package: &Package) -> Result<(), Error> {
    let folder = package.overlay_folder();
    if !folder.join(OVERLAY_MARK).exists() {
        return Ok(());
    }
    fs_err::remove_dir_all(&folder)
        .map_err(|error| Error::to(ErrorKind::Environment, "remove the overlay", error))
}

fn failure(error: LedgerError, package: &Package) -> Error {
    let root = &package.folder;
    let hint = match &error {
        LedgerError::Edited { .. } => {
            "put the file back as gemmtune left it (`patch -R` with this diff) and undo again".to_owned()
        }
        LedgerError::Stacked { later, .. } => {
            format!("run `gemmtune {later} undo {root}` first")
        }
        LedgerError::ReadOnly { path } => format!(
            "`chmod u+w {path}`, or use `--mode overlay`, which leaves the tree alone"
        ),
        LedgerError::Missing { .. } => format!(
            "the package was removed or replaced: reinstall it, or delete `{}` to forget the change",
            package.ledger_folder()
        ),
        LedgerError::Lock(LockError::Held { .. }) => "wait for the other process, or end it".to_owned(),
        LedgerError::Damaged { .. } => "reinstall this SGLang release".to_owned(),
        LedgerError::Lock(LockError::Io { .. })
        | LedgerError::Io { .. }
        | LedgerError::Journal(_) => {
            "every file is as it was before this command, or the next gemmtune command puts it back; \
             `--mode overlay` leaves the tree alone"
                .to_owned()
        }
        LedgerError::Moving { .. } | LedgerError::Exists { .. } => "run the command again".to_owned(),
    };
    Error::to(ErrorKind::Environment, "change the tree", error).hint(hint)
}
