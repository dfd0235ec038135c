//! Finding the tables below a path.

use std::io::{self, Read as _};

use camino::{Utf8Path, Utf8PathBuf};

use super::super::aiter::Table;
use super::super::moe::release::Release;
use super::super::revision::Revision;
use super::moe::{self, MoeFile};
use super::{Report, Skipped};
use crate::store::file;

/// Larger files are refused: no table comes close, and a file is read into memory as a whole.
const LARGEST: u64 = 1 << 30;

/// Why a path cannot be checked.
#[derive(Debug, thiserror::Error)]
pub enum LintError {
    /// The path, or a file below it, cannot be read.
    #[error("read `{path}`")]
    Read {
        path: Utf8PathBuf,
        #[source]
        source: io::Error,
    },
    /// A file larger than any table.
    #[error("check `{path}`: {bytes} bytes are no table")]
    TooLarge { path: Utf8PathBuf, bytes: u64 },
    /// A file that was named but is neither CSV nor JSON.
    #[error("check `{path}`: neither a .csv nor a .json file")]
    UnknownKind { path: Utf8PathBuf },
}

/// The revision of aiter that will run a table, if it is known.
pub type RevisionOf<'a> = &'a dyn Fn(&Utf8Path) -> Option<Revision>;

/// The release of SGLang that will read a table, if it is known.
pub type ReleaseOf<'a> = &'a dyn Fn(&Utf8Path) -> Option<Release>;

/// Checks files, and every table in and below folders, in the order of their names.
///
/// A file that is named is always checked. In folders only files that look like a table are: CSV files with M, N and
/// K in the header or `tuned` in the name, and JSON files with a name or contents like SGLang's.
///
/// The path `-` is `input`, an aiter table, because SGLang's configurations need their names.
pub fn lint_paths(
    paths: &[Utf8PathBuf],
    mut input: impl io::Read,
    revision: RevisionOf<'_>,
    release: ReleaseOf<'_>,
) -> Result<Report, LintError> {
    let mut report = Report::default();
    let mut tables: Vec<Table> = Vec::new();
    let mut moe_files: Vec<MoeFile> = Vec::new();
    let mut check = |path: &Utf8Path, named, report: &mut Report, tables: &mut Vec<Table>| {
        check(
            path,
            named,
            (revision, release),
            report,
            (tables, &mut moe_files),
        )
    };
    for path in paths {
        let read = |source| LintError::Read {
            path: path.clone(),
            source,
        };
        if path == "-" {
            let mut bytes = Vec::new();
            input
                .by_ref()
                .take(LARGEST + 1)
                .read_to_end(&mut bytes)
                .map_err(read)?;
            if bytes.len() as u64 > LARGEST {
                return Err(LintError::TooLarge {
                    path: path.clone(),
                    bytes: bytes.len() as u64,
                });
            }
            if bytes.trim_ascii_start().starts_with(b"{") {
                return Err(LintError::UnknownKind { path: path.clone() });
            }
            tables.extend(report.check_csv(path.as_str(), &bytes, revision(path)));
        } else if path.metadata().map_err(read)?.is_dir() {
            let mut files = Vec::new();
            collect(path, &mut files)?;
            files.sort();
            for file in files {
                check(&file, false, &mut report, &mut tables)?;
            }
        } else {
            check(path, true, &mut report, &mut tables)?;
        }
    }
    report.check_together(&tables);
    moe::together(&moe_files, &mut report.findings);
    report.sort();
    Ok(report)
}

fn collect(folder: &Utf8Path, files: &mut Vec<Utf8PathBuf>) -> Result<(), LintError> {
    let read = |source| LintError::Read {
        path: folder.to_owned(),
        source,
    };
    for entry in folder.read_dir_utf8().map_err(read)? {
        let entry = entry.map_err(read)?;
        let kind = entry.file_type().map_err(read)?;
        let hidden = entry.file_name().starts_with('.');
        // Links to folders are not followed, so that a cycle of them ends.
        if kind.is_dir() && !hidden {
            collect(entry.path(), files)?;
        } else if !kind.is_dir() && matches!(extension(entry.path()).as_str(), "csv" | "json") {
            files.push(entry.into_path());
        }
    }
    Ok(())
}

/// The extension in lower case: the runtime never reads `.JSON`, which must be reported.
fn extension(path: &Utf8Path) -> String {
    path.extension().unwrap_or("").to_ascii_lowercase()
}

fn check(
    path: &Utf8Path,
    named: bool,
    (revision, release): (RevisionOf<'_>, ReleaseOf<'_>),
    report: &mut Report,
    (tables, moe_files): (&mut Vec<Table>, &mut Vec<MoeFile>),
) -> Result<(), LintError> {
    let read = |source| LintError::Read {
        path: path.to_owned(),
        source,
    };
    let metadata = match fs_err::metadata(path) {
        Ok(metadata) if metadata.is_dir() => return Ok(()), // a link to a folder
        Ok(metadata) if !named && !metadata.is_file() => return Ok(()), // a pipe: reading it may never end
        Ok(metadata) => metadata,
        Err(error) if !named && error.kind() == io::ErrorKind::NotFound => return Ok(()), // a dead link
        Err(error) => return Err(read(error)),
    };
    if metadata.len() > LARGEST && !named {
        report.skipped.push(Skipped {
            file: path.to_string(),
            reason: format!("{} bytes are no table", metadata.len()),
        });
        return Ok(());
    }
    if metadata.len() > LARGEST {
        return Err(LintError::TooLarge {
            path: path.to_owned(),
            bytes: metadata.len(),
        });
    }
    match extension(path).as_str() {
        "csv" => {
            let bytes = file::read(path).map_err(read)?;
            if named || looks_like_csv_table(path, &bytes) {
                tables.extend(report.check_csv(path.as_str(), &bytes, revision(path)));
            }
            Ok(())
        }
        "json" => {
            let bytes = file::read(path).map_err(read)?;
            if named || looks_like_config(path, &bytes) {
                moe_files.extend(report.check_config(
                    path.as_str(),
                    &bytes,
                    release(path),
                    revision(path),
                ));
            }
            Ok(())
        }
        _ => Err(LintError::UnknownKind {
            path: path.to_owned(),
        }),
    }
}

fn looks_like_csv_table(path: &Utf8Path, bytes: &[u8]) -> bool {
    let name = path.file_name().unwrap_or("");
    if name.ends_with(".provenance.csv") {
        return false; // gemmtune's own record of a merge
    }
    let end = memchr::memchr(b'\n', bytes).unwrap_or(bytes.len());
    let header = String::from_utf8_lossy(&bytes[..end]);
    let has = |column: &str| header.split(',').any(|cell| cell.trim() == column);
    name.contains("tuned") || (has("M") && has("N") && has("K"))
}

fn looks_like_config(path: &Utf8Path, bytes: &[u8]) -> bool {
    let name = path.file_name().unwrap_or("");
    if super::is_aiter_triton(name) {
        return true;
    }
    let first = name.split(['=', ',', '.']).next().unwrap_or("");
    if name.contains('=') {
        // Other kernels' files start with other names: `world=`, `provider=`, `lora_shrink,`.
        if moe::is_name(name) {
            return true;
        }
        let ours = ["n", "k", "m", "device_name", "dtype", "block_shape"];
        if !ours.contains(&first.trim().to_ascii_lowercase().as_str()) {
            return false;
        }
    }
    if name.contains("device_name=") || name.contains("block_shape") {
        return true;
    }
    memchr::memmem::find(bytes, b"BLOCK_SIZE_M").is_some()
        && super::super::sglang_json::Config::read(name, bytes)
            .is_ok_and(|config| config.entries.iter().any(|entry| entry.m.is_some()))
}
