//! Record files of instrumented processes, and the logs beside them.

use camino::{Utf8DirEntry, Utf8Path, Utf8PathBuf};

use crate::log::scan::{Lines, scan};
use crate::log::summary::LogSummary;
use crate::run::error::Error;
use crate::store::file::entries;

/// Empties `folder`: records of an earlier, killed attempt would be counted twice.
pub(super) fn clear(folder: &Utf8Path) -> Result<(), Error> {
    let cleared = fs_err::create_dir_all(folder).and_then(|()| {
        fs_err::read_dir(folder)?.try_for_each(|entry| fs_err::remove_file(entry?.path()))
    });
    cleared.map_err(|error| Error::file(&error))
}

/// The files in `folder`.
pub(super) fn files(folder: &Utf8Path) -> Result<Vec<Utf8PathBuf>, Error> {
    let found = entries(folder).map_err(|error| Error::file(&error))?;
    Ok(found.into_iter().map(Utf8DirEntry::into_path).collect())
}

/// Adds the contents of `file`, up to `most` bytes.
pub(super) fn add(file: &Utf8Path, most: u64, log_summary: &mut LogSummary) -> Result<(), Error> {
    use std::io::Read as _;

    fs_err::File::open(file)
        .and_then(|open| scan(open.take(most), file.as_str(), Lines::Count, log_summary))
        .map(drop)
        .map_err(|error| Error::file(&error))
}
