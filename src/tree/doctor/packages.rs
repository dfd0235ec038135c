//! What an installation needs from a registry, and what it changes in the interpreter.

use std::collections::BTreeMap;
use std::time::Duration;

use camino::Utf8Path;
use serde::{Deserialize, Serialize};

use crate::proc::{Interrupt, Keeper, Ran, run};
use crate::pyedit::source::Source;
use crate::pyedit::syntax::{ExprKind, StmtKind};

/// Time limit for pip to query its registry, or to restore one distribution.
const PIP: Duration = Duration::from_secs(600);

/// Lists every distribution as `name==version`, without pip, which an interpreter may lack.
const LIST: &str = "import importlib.metadata as m\n\
    for d in m.distributions():\n    print((d.metadata['Name'] or '?').lower().replace('_', '-'), d.version, sep='==')";

/// A distribution that differs from before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub name: String,
    /// Its version before; absent where it was not installed.
    pub before: Option<String>,
    /// Its version after; absent where it is no longer installed.
    pub after: Option<String>,
}

impl std::fmt::Display for Change {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let version =
            |version: &Option<String>| version.clone().unwrap_or_else(|| "none".to_owned());
        write!(
            formatter,
            "{}: {} -> {}",
            self.name,
            version(&self.before),
            version(&self.after)
        )
    }
}

/// The distributions of an interpreter: versions by name.
pub type Installed = BTreeMap<String, String>;

/// An interpreter to install into.
#[derive(Clone, Copy, Debug)]
pub struct Python<'a> {
    pub path: &'a Utf8Path,
    pub keeper: &'a Keeper,
    pub interrupt: &'a Interrupt,
}

impl Python<'_> {
    fn ask(&self, arguments: &[&str]) -> Option<Ran> {
        let argv: Vec<String> = std::iter::once(self.path.as_str())
            .chain(arguments.iter().copied())
            .map(str::to_owned)
            .collect();
        let env = [(
            "PIP_DISABLE_PIP_VERSION_CHECK".to_owned(),
            Some("1".to_owned()),
        )];
        // Not in the tree, whose own folder would count as installed.
        run(
            self.keeper,
            &argv,
            Some("/".into()),
            env,
            PIP,
            self.interrupt,
        )
        .ok()
    }

    /// The installed distributions; empty where the interpreter cannot list them.
    pub fn installed(&self) -> Installed {
        let said = self.ask(&["-c", LIST]);
        let text = said.map_or_else(String::new, |ran| {
            String::from_utf8_lossy(&ran.stdout).into_owned()
        });
        text.lines()
            .filter_map(|line| line.split_once("=="))
            .map(|(name, version)| (name.to_owned(), version.to_owned()))
            .collect()
    }

    /// Versions of `requirement` that the registry has instead, where it does not have that one. `None` where pip
    /// would install it, and where the registry cannot be queried: then the installation itself will tell.
    pub fn lacking(&self, requirement: &str) -> Option<Vec<String>> {
        let ran = self.ask(&[
            "-m",
            "pip",
            "install",
            "--dry-run",
            "--no-deps",
            "--quiet",
            requirement,
        ])?;
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        if ran.code == 0 || !said.contains("No matching distribution found") {
            return None;
        }
        let versions = said
            .split_once("(from versions: ")
            .and_then(|(_, rest)| rest.split_once(')'))
            .map_or("", |(versions, _)| versions);
        Some(
            versions
                .split(", ")
                .filter(|version| !version.is_empty() && *version != "none")
                .map(str::to_owned)
                .collect(),
        )
    }

    /// Restores distributions to their earlier versions; returns those that could not be, each with the reason.
    pub fn take_back(&self, changes: &[Change]) -> Vec<String> {
        let one = |change: &Change| -> Option<String> {
            let ran = match &change.before {
                Some(before) => {
                    let exact = format!("{}=={before}", change.name);
                    self.ask(&["-m", "pip", "install", "--no-deps", "--quiet", &exact])
                }
                None => self.ask(&["-m", "pip", "uninstall", "--yes", "--quiet", &change.name]),
            };
            match ran {
                Some(ran) if ran.code == 0 => None,
                ran => Some(format!(
                    "{change} ({})",
                    ran.map_or_else(
                        || "pip could not be run".to_owned(),
                        |ran| last_lines(&ran, 1),
                    )
                )),
            }
        };
        changes.iter().filter_map(one).collect()
    }
}

/// The differences between two lists, except for the tree's own distribution where it was installed before: that one
/// points to its folder, whatever is checked out there.
pub fn changes(before: &Installed, after: &Installed) -> Vec<Change> {
    let own = ["aiter", "amd-aiter"];
    let names: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    names
        .into_iter()
        .filter(|name| before.get(*name) != after.get(*name))
        .filter(|name| !own.contains(&name.as_str()) || !before.contains_key(*name))
        .map(|name| Change {
            name: name.clone(),
            before: before.get(name).cloned(),
            after: after.get(name).cloned(),
        })
        .collect()
}

/// The exact requirements that a `setup.py` has in variables of its own, such as `flydsl==0.1.2`: aiter's installs
/// them by pip while it is being read.
pub fn pinned(setup: &[u8]) -> Vec<String> {
    let Ok(source) = Source::parse("setup.py", setup) else {
        return Vec::new();
    };
    let is_exact = |text: &str| {
        text.split_once("==").is_some_and(|(name, version)| {
            let plain = |text: &str| {
                !text.is_empty()
                    && text
                        .chars()
                        .all(|letter| letter.is_ascii_alphanumeric() || "._-+".contains(letter))
            };
            plain(name) && plain(version)
        })
    };
    source
        .body()
        .iter()
        .filter_map(|stmt| match &stmt.kind {
            StmtKind::Assign {
                value: Some(value), ..
            } => match &value.kind {
                ExprKind::Str(text) if is_exact(text) => Some(text.clone()),
                _ => None,
            },
            _ => None,
        })
        .collect()
}

/// The last lines of a program's output, both streams.
pub fn last_lines(ran: &Ran, count: usize) -> String {
    let text = String::from_utf8_lossy(&ran.stdout).into_owned()
        + "\n"
        + &String::from_utf8_lossy(&ran.stderr);
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    if lines.is_empty() {
        return "it said nothing".to_owned();
    }
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_the_strings_that_a_setup_gives_names_to() {
        let setup = b"FLYDSL_VERSION = \"flydsl==0.1.2\"\nPACKAGE = \"amd-aiter\"\nx = \"a == b\"\ny = f(\"z==1\")\n";
        assert_eq!(pinned(setup), ["flydsl==0.1.2"]);
        assert!(pinned(b"def (").is_empty());
    }

    #[test]
    fn changes_are_what_came_went_or_moved_but_not_the_tree_itself() {
        let list = |all: &[(&str, &str)]| -> Installed {
            all.iter()
                .map(|(name, version)| ((*name).to_owned(), (*version).to_owned()))
                .collect()
        };
        let before = list(&[("amd-aiter", "0.1"), ("numpy", "1"), ("old", "1")]);
        let after = list(&[("amd-aiter", "0.2"), ("numpy", "2"), ("flydsl", "0.1.5")]);
        let told: Vec<String> = changes(&before, &after)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            told,
            ["flydsl: none -> 0.1.5", "numpy: 1 -> 2", "old: 1 -> none"]
        );
    }
}
