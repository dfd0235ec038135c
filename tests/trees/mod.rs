//! Trees on disk for the tests: copies of the reduced fixtures, and unpacked wheels.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file includes this one and uses its part"
)]

use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};

pub const FP8_UTILS: &str = "sglang/srt/layers/quantization/fp8_utils.py";
pub const FP8: &str = "sglang/srt/layers/quantization/fp8.py";

/// A tree of its own in a temporary folder.
pub struct Tree {
    pub root: Utf8PathBuf,
    pub version: String,
    _keep: tempfile::TempDir,
}

impl Tree {
    /// A copy of `testdata/trees/NAME`.
    pub fn fixture(name: &str) -> Self {
        let from = Utf8Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("testdata/trees")
            .join(name);
        Self::copy(&from, name)
    }

    fn copy(from: &Utf8Path, version: &str) -> Self {
        let keep = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::try_from(keep.path().join("tree")).unwrap();
        copy_folder(from, &root);
        Self {
            root,
            version: version.to_owned(),
            _keep: keep,
        }
    }

    pub fn path(&self, relative: &str) -> Utf8PathBuf {
        self.root.join(relative)
    }

    /// `text` as a snapshot can hold it.
    pub fn said(&self, text: &str) -> String {
        text.replace(self.root.as_str(), "[tree]")
    }

    pub fn text(&self, relative: &str) -> String {
        fs_err::read_to_string(self.path(relative)).unwrap()
    }

    pub fn bytes(&self, relative: &str) -> Vec<u8> {
        fs_err::read(self.path(relative)).unwrap()
    }

    pub fn write(&self, relative: &str, text: &str) {
        fs_err::write(self.path(relative), text).unwrap();
    }

    /// Replaces the one occurrence of `from`.
    pub fn replace(&self, relative: &str, from: &str, to: &str) {
        let text = self.text(relative);
        assert_eq!(text.matches(from).count(), 1, "`{from}` in {relative}");
        self.write(relative, &text.replace(from, to));
    }

    /// Every file under the root with a hash of its bytes and its mode, hidden ones too.
    pub fn snapshot(&self) -> Vec<(String, u64, u32)> {
        let mut files = Vec::new();
        snapshot(&self.root, &mut files);
        files.sort();
        files
    }

    /// The same for the package alone.
    pub fn package_snapshot(&self) -> Vec<(String, u64, u32)> {
        let mut files = Vec::new();
        snapshot(&self.root.join("sglang"), &mut files);
        files.sort();
        files
    }
}

pub fn snapshot(folder: &Utf8Path, files: &mut Vec<(String, u64, u32)>) {
    use std::hash::{Hash as _, Hasher as _};
    use std::os::unix::fs::PermissionsExt as _;
    for entry in fs_err::read_dir(folder).unwrap() {
        let path = Utf8PathBuf::try_from(entry.unwrap().path()).unwrap();
        let data = fs_err::symlink_metadata(&path).unwrap();
        if data.is_dir() {
            snapshot(&path, files);
        } else {
            let mut hasher = std::hash::DefaultHasher::new();
            fs_err::read(&path).unwrap().hash(&mut hasher);
            files.push((
                path.into_string(),
                hasher.finish(),
                data.permissions().mode(),
            ));
        }
    }
}

pub fn copy_folder(from: &Utf8Path, to: &Utf8Path) {
    fs_err::create_dir_all(to).unwrap();
    for entry in fs_err::read_dir(from).unwrap() {
        let path = Utf8PathBuf::try_from(entry.unwrap().path()).unwrap();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            fs_err::copy(&path, &target).unwrap();
        }
    }
}

/// The unpacked wheels of `GEMMTUNE_WHEELS`, each copied.
pub fn wheels() -> Vec<Tree> {
    let folder = std::env::var_os("GEMMTUNE_WHEELS").expect("GEMMTUNE_WHEELS names a folder");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fetch_wheels.py");
    let status = Command::new("python3")
        .args([script.as_ref(), "--unpack".as_ref(), folder.as_os_str()])
        .status()
        .unwrap();
    assert!(status.success());
    let mut trees: Vec<Tree> = fs_err::read_dir(&folder)
        .unwrap()
        .map(|entry| Utf8PathBuf::try_from(entry.unwrap().path()).unwrap())
        .filter(|path| path.join(".unpacked").exists())
        .map(|path| Tree::copy(&path, path.file_name().unwrap()))
        .collect();
    trees.sort_by(|left, right| left.version.cmp(&right.version));
    assert!(!trees.is_empty(), "no wheels in {}", folder.display());
    trees
}

/// Runs the binary: exit code, standard output, standard error.
pub fn gemmtune(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_gemmtune"))
        .args(arguments)
        .output()
        .unwrap();
    (
        output.status.code().expect("an exit code"),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}
