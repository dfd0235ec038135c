//! Where the `sglang` package is, and its version according to its own files.

use camino::{Utf8Path, Utf8PathBuf};

use crate::pyedit::edit::{EditError, Patch};
use crate::pyedit::refusal::Refusal;
use crate::pyedit::source::{Source, SourceError};
use crate::pyedit::syntax::{ExprKind, StmtKind};

/// The dispatcher of block FP8 linear layers, in every release from 0.5.5 to 0.5.23.
pub const FP8_UTILS: &str = "srt/layers/quantization/fp8_utils.py";
/// The FP8 quantisation method that calls it.
pub const FP8: &str = "srt/layers/quantization/fp8.py";

/// Why a tree cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// There is no `sglang` package under the folder.
    #[error("`{root}` holds no `sglang` package")]
    NoPackage {
        /// The folder that was searched.
        root: Utf8PathBuf,
    },
    /// A file of the package cannot be read.
    #[error("{0}")]
    Read(#[from] std::io::Error),
    /// A file of the package is not Python, or not as expected.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The structure is not one of a known release.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The edits conflict, or the result is not valid Python.
    #[error("edit the tree: {0}")]
    Edit(#[from] EditError),
    /// The edited tree does not do what was requested: nothing was written.
    #[error("{0}")]
    NotAsAsked(String),
}

/// A file before and after an edit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEdit {
    pub path: Utf8PathBuf,
    /// Its bytes before the edit.
    pub before: Vec<u8>,
    /// Its bytes after the edit, which were parsed again.
    pub after: Vec<u8>,
}

impl FileEdit {
    /// Applies `patch` to `source` in memory; `None` if it has no edits.
    pub fn new(source: &Source, patch: &Patch) -> Result<Option<Self>, TreeError> {
        if patch.is_empty() {
            return Ok(None);
        }
        let edited = patch.apply(source)?;
        Ok(Some(Self {
            path: source.path().clone(),
            before: source.bytes_of(source.text()),
            after: edited.bytes_of(edited.text()),
        }))
    }

    /// Unified diff, for display.
    pub fn diff(&self) -> String {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        similar::TextDiff::from_lines(text(&self.before), text(&self.after))
            .unified_diff()
            .header(self.path.as_str(), self.path.as_str())
            .to_string()
    }
}

/// An `sglang` package on disk.
#[derive(Clone, Debug)]
pub struct Package {
    /// The folder named `sglang` (or whatever the user's copy is called), absolute.
    pub folder: Utf8PathBuf,
    /// The version according to the package's own files; `None` if they have no literal version.
    pub version: Option<String>,
}

impl Package {
    /// Finds the package: `root` may be the package, a folder that contains it (site-packages, the `python` folder),
    /// or a source checkout.
    pub fn find(root: &Utf8Path) -> Result<Self, TreeError> {
        let absolute = std::path::absolute(root)
            .ok()
            .and_then(|path| Utf8PathBuf::from_path_buf(path).ok())
            .unwrap_or_else(|| root.to_owned());
        let folder = [
            absolute.clone(),
            absolute.join("sglang"),
            absolute.join("python/sglang"),
        ]
        .into_iter()
        .find(|folder| folder.join("srt").is_dir())
        .ok_or_else(|| TreeError::NoPackage {
            root: root.to_owned(),
        })?;
        let version = version(&folder);
        Ok(Self { folder, version })
    }

    /// Where single commands store the ledger of this tree: beside the package, so that every caller finds it; it is
    /// removed once everything is undone.
    pub fn ledger_folder(&self) -> Utf8PathBuf {
        self.beside(".gemmtune-ledger")
    }

    /// Where single commands put the overlay of this tree.
    pub fn overlay_folder(&self) -> Utf8PathBuf {
        self.beside(".gemmtune-overlay")
    }

    fn beside(&self, name: &str) -> Utf8PathBuf {
        self.folder
            .parent()
            .map_or_else(|| Utf8PathBuf::from(name), |parent| parent.join(name))
    }

    /// Reads and parses a file of the package.
    pub fn read(&self, relative: &str) -> Result<Source, TreeError> {
        let path = self.folder.join(relative);
        let bytes = crate::store::file::read(&path)?;
        Ok(Source::parse(path, &bytes)?)
    }

    /// The first of `relatives` that exists, parsed.
    pub fn read_any(&self, relatives: &[&str]) -> Option<(String, Source)> {
        relatives.iter().find_map(|relative| {
            let source = self.read(relative).ok()?;
            Some(((*relative).to_owned(), source))
        })
    }
}

/// The version of the `sglang` package that contains `path`.
pub fn release_around(path: &Utf8Path) -> Option<String> {
    let absolute = std::path::absolute(path).ok()?;
    let absolute = Utf8PathBuf::from_path_buf(absolute).ok()?;
    let is_package =
        |folder: &&Utf8Path| folder.file_name() == Some("sglang") && folder.join("srt").is_dir();
    version(absolute.ancestors().find(is_package)?)
}

/// `triton.__version__` of the site-packages that contains `path`.
pub fn triton_around(path: &Utf8Path) -> Option<String> {
    let absolute = std::path::absolute(path).ok()?;
    let absolute = Utf8PathBuf::from_path_buf(absolute).ok()?;
    let mut above = absolute.ancestors();
    above.find_map(|folder| literal_version(&folder.join("triton/__init__.py")))
}

/// `__version__ = "…"` of `version.py`, then of `_version.py`, then the metadata beside the package.
///
/// Releases up to 0.5.6.post2 have the literal; later ones resolve it at import through
/// `_version.py` and `importlib.metadata`, and a source checkout may hold neither.
fn version(folder: &Utf8Path) -> Option<String> {
    ["version.py", "_version.py"]
        .iter()
        .find_map(|name| literal_version(&folder.join(name)))
        .or_else(|| metadata_version(folder))
}

fn literal_version(path: &Utf8Path) -> Option<String> {
    let source = Source::parse(path, &crate::store::file::read(path).ok()?).ok()?;
    source.body().iter().find_map(|stmt| match &stmt.kind {
        StmtKind::Assign {
            targets,
            value: Some(value),
        } => match &value.kind {
            ExprKind::Str(text)
                if targets
                    .iter()
                    .any(|target| target.dotted().as_deref() == Some("__version__")) =>
            {
                Some(text.clone())
            }
            _ => None,
        },
        _ => None,
    })
}

/// The version of the only `sglang-*.dist-info` beside the package; `None` if there are two.
fn metadata_version(folder: &Utf8Path) -> Option<String> {
    let beside = folder.parent()?;
    let mut found = fs_err::read_dir(beside)
        .ok()?
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with("sglang-") && name.ends_with(".dist-info"));
    let (name, None) = (found.next()?, found.next()) else {
        return None;
    };
    let text = crate::store::file::read_text(&beside.join(name).join("METADATA")).ok()?;
    text.lines()
        .take_while(|line| !line.is_empty())
        .find_map(|line| line.strip_prefix("Version:"))
        .map(|version| version.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::try_from(folder.path().to_owned()).unwrap();
        (folder, path)
    }

    fn write(path: &Utf8Path, text: &str) {
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        crate::store::file::write_atomic(path, text.as_bytes()).unwrap();
    }

    #[test]
    fn a_package_is_found_from_any_of_its_usual_parents() {
        let (_keep, root) = folder();
        write(&root.join("python/sglang/srt/x.py"), "");
        for start in [
            root.clone(),
            root.join("python"),
            root.join("python/sglang"),
        ] {
            assert_eq!(
                Package::find(&start).unwrap().folder,
                root.join("python/sglang")
            );
        }
        let error = Package::find(&root.join("python/sglang/srt")).unwrap_err();
        insta::assert_snapshot!(error.to_string().replace(root.as_str(), "[root]"), @"`[root]/python/sglang/srt` holds no `sglang` package");
    }

    #[test]
    fn the_version_is_read_from_files_and_never_guessed() {
        let (_keep, root) = folder();
        write(&root.join("sglang/srt/x.py"), "");
        write(
            &root.join("sglang/version.py"),
            "try:\n    from sglang._version import __version__\nexcept ImportError:\n    __version__ = '0.0.0'\n",
        );
        assert_eq!(Package::find(&root).unwrap().version, None);
        write(
            &root.join("sglang-0.5.9.dist-info/METADATA"),
            "Metadata-Version: 2.4\nName: sglang\nVersion: 0.5.9\n\nVersion: 9\n",
        );
        assert_eq!(
            Package::find(&root).unwrap().version.as_deref(),
            Some("0.5.9")
        );
        write(
            &root.join("sglang/_version.py"),
            "__version__ = version = '0.5.9.post1'\n",
        );
        assert_eq!(
            Package::find(&root).unwrap().version.as_deref(),
            Some("0.5.9.post1")
        );
    }
}
