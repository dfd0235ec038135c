//! The URLs in a checkout's git configuration, which `git submodule sync` rewrites, and how to restore them.

use std::collections::BTreeMap;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::store::file::entries;
use crate::tree::git::{Checkout, GitError};

/// What `git submodule init` and `sync` write.
const KEYS: &str = r"^(submodule\..*\.(url|active)|remote\..*\.url)$";

const LOCAL: Duration = Duration::from_secs(60);

/// One configuration file's URLs, by key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Urls {
    pub file: Utf8PathBuf,
    pub values: BTreeMap<String, String>,
}

/// The URLs of the repository in `git_folder` and of its submodules, nested ones included.
pub fn read(checkout: &Checkout<'_>, git_folder: &Utf8Path) -> Vec<Urls> {
    let mut files = Vec::new();
    configurations(git_folder, &mut files);
    files
        .into_iter()
        .map(|file| Urls {
            values: values(checkout, &file),
            file,
        })
        .collect()
}

/// Restores values that have changed.
pub fn restore(checkout: &Checkout<'_>, before: &[Urls]) -> Result<(), GitError> {
    for urls in before.iter().filter(|urls| urls.file.is_file()) {
        let now = values(checkout, &urls.file);
        let config = |arguments: &[&str]| {
            let all = [&["config", "--file", urls.file.as_str()], arguments].concat();
            checkout.git(&all, LOCAL).map(drop)
        };
        for (key, value) in &urls.values {
            if now.get(key) != Some(value) {
                config(&[key, value])?;
            }
        }
        for key in now.keys().filter(|key| !urls.values.contains_key(*key)) {
            config(&["--unset-all", key])?;
        }
    }
    Ok(())
}

fn values(checkout: &Checkout<'_>, file: &Utf8Path) -> BTreeMap<String, String> {
    // git fails where the key does not exist.
    let said = checkout
        .git(
            &["config", "--file", file.as_str(), "--get-regexp", KEYS],
            LOCAL,
        )
        .unwrap_or_default();
    said.lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn configurations(git_folder: &Utf8Path, found: &mut Vec<Utf8PathBuf>) {
    let file = git_folder.join("config");
    if file.is_file() {
        found.push(file);
    }
    below(&git_folder.join("modules"), found);
}

/// Git folders below a `modules` folder; a submodule's name may contain slashes.
fn below(folder: &Utf8Path, found: &mut Vec<Utf8PathBuf>) {
    for entry in entries(folder).unwrap_or_default() {
        let path = entry.into_path();
        if path.join("HEAD").is_file() {
            configurations(&path, found);
        } else if path.is_dir() {
            below(&path, found);
        }
    }
}
