//! Whether the deployed files are still in place.
//!
//! A tuned arm whose files are gone serves exactly as the baseline does, so a comparison would call a lost deployment
//! "same". Before each start of a tuned server every file that `deploy` left in the run folder is therefore checked.

use std::collections::BTreeMap;
use std::io;

use camino::{Utf8Path, Utf8PathBuf};

use super::{read_json, write_json};
use crate::proc::quoted;
use crate::run::error::{Error, ErrorKind};
use crate::store::digest::short as digest;
use crate::store::file::entries;
use crate::store::run_dir::RunDir;

/// Digests of the deployed files, by path inside the run folder.
type Files = BTreeMap<Utf8PathBuf, String>;

/// Name of the document in the run folder.
const DOCUMENT: &str = "in-place";

/// Records the files and their digests, right after they were deployed.
pub(crate) fn record(run: &RunDir) -> Result<(), Error> {
    let mut files = Files::new();
    for folder in [run.deploy(), run.overlay()] {
        if folder.is_dir() {
            add(run.path(), &folder, &mut files).map_err(|error| Error::file(&error))?;
        }
    }
    write_json(&run.stage(DOCUMENT), &files)
}

/// Refuses to start a server with a deployment that is no longer complete.
pub(crate) fn check(run: &RunDir) -> Result<(), Error> {
    let document = run.stage(DOCUMENT);
    if !document.is_file() {
        return Ok(());
    }
    for (path, deployed) in read_json::<Files>(&document)? {
        let path = run.path().join(path);
        let found = match fs_err::read(&path) {
            Ok(bytes) if digest(&bytes) == deployed => continue,
            Ok(_) => "was changed since it was deployed",
            Err(error) if error.kind() == io::ErrorKind::NotFound => "is gone",
            Err(error) => return Err(Error::file(&error)),
        };
        return Err(Error::new(
            ErrorKind::NotResumable,
            format!("the deployed file {path} {found}: the tuned arm would not be what was tuned"),
        )
        .hint(format!(
            "a run folder is copied whole, `deploy` and `overlay` included; else start again: `gemmtune undo {0}`, then \
             `gemmtune run {0}`",
            quoted(run.path())
        )));
    }
    Ok(())
}

/// Adds the files below `folder`, except for bytecode that Python caches beside its sources.
fn add(root: &Utf8Path, folder: &Utf8Path, files: &mut Files) -> io::Result<()> {
    for entry in entries(folder)? {
        if entry.file_name() == "__pycache__" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            add(root, entry.path(), files)?;
        } else if let Ok(path) = entry.path().strip_prefix(root) {
            files.insert(path.to_owned(), digest(&fs_err::read(entry.path())?));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deployed_file_that_is_gone_or_changed_is_named() {
        let keep = tempfile::tempdir().unwrap();
        let parent = Utf8PathBuf::try_from(keep.path().to_owned()).unwrap();
        let run = RunDir::create(&parent, "run", jiff::Timestamp::UNIX_EPOCH).unwrap();
        check(&run).unwrap();
        let hook = run.overlay().join("inner/hooks.py");
        for (file, text) in [(run.deploy().join("t.csv"), "1"), (hook.clone(), "2")] {
            fs_err::create_dir_all(file.parent().unwrap()).unwrap();
            fs_err::write(file, text).unwrap();
        }
        fs_err::create_dir_all(run.overlay().join("__pycache__")).unwrap();
        fs_err::write(run.overlay().join("__pycache__/x.pyc"), "3").unwrap();
        record(&run).unwrap();
        fs_err::remove_dir_all(run.overlay().join("__pycache__")).unwrap();
        check(&run).unwrap();

        fs_err::write(&hook, "4").unwrap();
        let refusal = || {
            let error = check(&run).unwrap_err();
            error.to_string().replace(run.path().as_str(), "[run]")
        };
        insta::assert_snapshot!(refusal(), @"the deployed file [run]/overlay/inner/hooks.py was changed since it was deployed: the tuned arm would not be what was tuned");
        fs_err::remove_dir_all(run.overlay()).unwrap();
        insta::assert_snapshot!(refusal(), @"the deployed file [run]/overlay/inner/hooks.py is gone: the tuned arm would not be what was tuned");
    }
}
