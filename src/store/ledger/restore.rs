//! One change at a time: staging it, undoing it, and checking whether undoing it would lose work.

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use camino::Utf8Path;

use super::{LedgerError, Recorded, digest, io_at};
use crate::store::file::sync_folder;

/// A longer diff is cut: it is there to recognise an edit, not to store it.
const DIFF_LINES: usize = 200;

/// Mode bits of the file at `path`.
pub(super) fn mode(path: &Utf8Path) -> Result<u32, LedgerError> {
    let data = fs_err::metadata(path).map_err(io_at(path))?;
    if !data.is_file() {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "it is not a file");
        return Err(io_at(path)(source));
    }
    Ok(data.permissions().mode() & 0o7777)
}

/// Writes `bytes` to `staged`, with `mode` and the owner of `like`, and syncs it.
pub(super) fn stage(
    staged: &Utf8Path,
    bytes: &[u8],
    mode: u32,
    like: &Utf8Path,
) -> Result<(), LedgerError> {
    use std::io::Write as _;
    let failed = io_at(staged);
    let mut file = fs_err::File::create(staged).map_err(&failed)?;
    file.write_all(bytes).map_err(&failed)?;
    dress(staged, mode, like)?;
    file.sync_all().map_err(&failed)
}

fn dress(path: &Utf8Path, mode: u32, like: &Utf8Path) -> Result<(), LedgerError> {
    let failed = io_at(path);
    if let Ok(owner) = fs_err::metadata(like) {
        let own = fs_err::metadata(path).map_err(&failed)?;
        if (owner.uid(), owner.gid()) != (own.uid(), own.gid()) {
            // Only root can; for anyone else the owner is the same or the rename would fail anyway.
            let _ = std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid()));
        }
    }
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)
}

/// Renames `from` to `to` and makes that durable.
pub(super) fn rename(from: &Utf8Path, to: &Utf8Path) -> Result<(), LedgerError> {
    fs_err::rename(from, to).map_err(io_at(to))?;
    match to.parent() {
        Some(folder) => sync_folder(folder).map_err(io_at(folder)),
        None => Ok(()),
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

enum Now {
    Missing,
    Before,
    After,
    Else(Vec<u8>),
}

fn now(path: &Utf8Path, before: &str, after: &str) -> Result<Now, LedgerError> {
    let bytes = match fs_err::read(path) {
        Ok(bytes) => bytes,
        Err(error) if is_missing(&error) => return Ok(Now::Missing),
        Err(error) => return Err(io_at(path)(error)),
    };
    let found = digest(&bytes);
    Ok(if found == after {
        Now::After
    } else if found == before {
        Now::Before
    } else {
        Now::Else(bytes)
    })
}

/// The current state of a changed path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PathState {
    /// As the operation left it.
    Changed,
    /// As it was before the operation.
    Original,
    Edited,
    Missing,
}

/// The current state of the path of `change`.
pub(super) fn state(change: &Recorded) -> Result<PathState, LedgerError> {
    let of = |now: Now| match now {
        Now::Missing => PathState::Missing,
        Now::Before => PathState::Original,
        Now::After => PathState::Changed,
        Now::Else(_) => PathState::Edited,
    };
    match change {
        Recorded::Edit {
            path,
            before,
            after,
            ..
        } => Ok(of(now(path, before, after)?)),
        Recorded::MoveAside { path, aside, .. } => {
            let there = |path: &Utf8Path| path.symlink_metadata().is_ok();
            Ok(match (there(aside), there(path)) {
                (true, _) => PathState::Changed,
                (false, true) => PathState::Original,
                (false, false) => PathState::Missing,
            })
        }
    }
}

/// Succeeds if `change` can be undone without losing an edit made since.
pub(super) fn check(change: &Recorded, name: &str, saved: &Utf8Path) -> Result<(), LedgerError> {
    let missing = |path: &Utf8Path| LedgerError::Missing {
        name: name.to_owned(),
        path: path.to_owned(),
    };
    match change {
        Recorded::Edit {
            path,
            before,
            after,
            ..
        } => match now(path, before, after)? {
            Now::Before => Ok(()),
            Now::After => {
                if mode(path)? & 0o222 == 0 {
                    return Err(LedgerError::ReadOnly { path: path.clone() });
                }
                saved_bytes(saved, before, name, path).map(drop)
            }
            Now::Missing => Err(missing(path)),
            Now::Else(bytes) => Err(edited(name, path, saved, after, &bytes)),
        },
        Recorded::MoveAside {
            path,
            aside,
            regenerated,
        } => {
            let there = |path: &Utf8Path| path.symlink_metadata().is_ok();
            match (there(path), there(aside)) {
                (false, false) => Err(missing(path)),
                (true, true) if !regenerated => Err(LedgerError::Exists { path: path.clone() }),
                _ => Ok(()),
            }
        }
    }
}

/// Undoes `change`. What is already restored is left alone, and so is a file that is neither the old nor the new one
/// (an interrupted operation whose file was edited meanwhile).
pub(super) fn restore(change: &Recorded, name: &str, saved: &Utf8Path) -> Result<(), LedgerError> {
    match change {
        Recorded::Edit {
            path,
            before,
            after,
            mode,
            staged,
        } => {
            if let Now::After = now(path, before, after)? {
                let bytes = saved_bytes(saved, before, name, path)?;
                if stage(staged, &bytes, *mode, path).is_ok() {
                    rename(staged, path)?;
                } else {
                    // No space for a copy: move the saved file itself back, if it is on the same file system.
                    let kept = saved.join(before);
                    dress(&kept, *mode, path)?;
                    rename(&kept, path)?;
                }
            }
            remove_file(staged)
        }
        Recorded::MoveAside {
            path,
            aside,
            regenerated,
        } => {
            if aside.symlink_metadata().is_err() {
                return Ok(());
            }
            if let Ok(data) = path.symlink_metadata() {
                if !regenerated {
                    return Err(LedgerError::Exists { path: path.clone() });
                }
                let removed = if data.is_dir() {
                    fs_err::remove_dir_all(path)
                } else {
                    fs_err::remove_file(path)
                };
                removed.map_err(io_at(path))?;
            }
            rename(aside, path)
        }
    }
}

fn remove_file(path: &Utf8Path) -> Result<(), LedgerError> {
    match fs_err::remove_file(path) {
        Err(error) if !is_missing(&error) => Err(io_at(path)(error)),
        _ => Ok(()),
    }
}

fn saved_bytes(
    saved: &Utf8Path,
    wanted: &str,
    name: &str,
    path: &Utf8Path,
) -> Result<Vec<u8>, LedgerError> {
    let kept = saved.join(wanted);
    let bytes = fs_err::read(&kept).map_err(io_at(&kept))?;
    if digest(&bytes) == wanted {
        Ok(bytes)
    } else {
        Err(LedgerError::Damaged {
            name: name.to_owned(),
            path: path.to_owned(),
        })
    }
}

fn edited(name: &str, path: &Utf8Path, saved: &Utf8Path, after: &str, bytes: &[u8]) -> LedgerError {
    let wrote = fs_err::read(saved.join(after)).unwrap_or_default();
    let diff = match (std::str::from_utf8(&wrote), std::str::from_utf8(bytes)) {
        (Ok(wrote), Ok(found)) => {
            let diff = similar::TextDiff::from_lines(wrote, found)
                .unified_diff()
                .header("as gemmtune left it", "as it is now")
                .to_string();
            let lines = diff.lines().count();
            let mut text: String = diff.split_inclusive('\n').take(DIFF_LINES).collect();
            if lines > DIFF_LINES {
                text.push_str("(cut)\n");
            }
            text
        }
        _ => "(not text)".to_owned(),
    };
    LedgerError::Edited {
        name: name.to_owned(),
        path: path.to_owned(),
        diff,
    }
}
