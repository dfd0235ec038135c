//! A checkout as seen through the `git` command, so that the user's configuration and credentials apply.
//!
//! Reading never changes the checkout, not even its index.

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;

use crate::proc::{Interrupt, Keeper, RunError, run};

/// Time limit of commands that only read the disk.
const LOCAL: Duration = Duration::from_secs(120);

/// Time limit of commands that contact a remote: a clone with submodules is gigabytes.
pub const REMOTE: Duration = Duration::from_secs(1800);

#[derive(Clone, Debug)]
pub struct Checkout<'a> {
    keeper: &'a Keeper,
    interrupt: &'a Interrupt,
    /// Top folder of the work tree.
    pub root: Utf8PathBuf,
}

/// How a commit relates to what is checked out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ancestry {
    /// It is checked out, or an ancestor of what is.
    Ancestor,
    /// It is newer than what is checked out, or on another branch of the same history.
    NotAncestor,
    /// The histories have no commit in common: one of them was rewritten.
    Unrelated,
    /// The repository does not have it.
    Absent,
    /// The clone is shallow, so history cannot tell.
    Shallow,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Submodule {
    /// Its folder, relative to the root.
    pub path: String,
    /// The commit that is checked out there, or the recorded one if none is.
    pub commit: String,
    pub state: SubmoduleState,
}

/// How a submodule relates to the commit recorded for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SubmoduleState {
    /// At the recorded commit.
    Current,
    Missing,
    /// At a commit other than the recorded one.
    Other,
    Conflict,
}

/// Why git gives no answer.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// It cannot be run.
    #[error("run git")]
    Run(#[from] RunError),
    #[error("`git {command}` in `{root}`: {said}")]
    Failed {
        command: String,
        root: Utf8PathBuf,
        /// The end of its output.
        said: String,
    },
}

impl<'a> Checkout<'a> {
    /// The checkout that contains `folder`, or `None` where there is none (a wheel).
    pub fn of(folder: &Utf8Path, keeper: &'a Keeper, interrupt: &'a Interrupt) -> Option<Self> {
        // In a worktree or a submodule `.git` is a file.
        let root = folder
            .ancestors()
            .find(|folder| folder.join(".git").exists())?;
        Some(Self {
            keeper,
            interrupt,
            root: root.to_owned(),
        })
    }

    /// Runs git and returns its standard output.
    pub fn git(&self, arguments: &[&str], limit: Duration) -> Result<String, GitError> {
        let (code, stdout, stderr) = self.try_git(arguments, limit)?;
        if code == 0 {
            return Ok(stdout);
        }
        let lines: Vec<_> = stderr
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        Err(GitError::Failed {
            command: arguments.join(" "),
            root: self.root.clone(),
            said: lines[lines.len().saturating_sub(3)..].join("; "),
        })
    }

    fn try_git(
        &self,
        arguments: &[&str],
        limit: Duration,
    ) -> Result<(u8, String, String), GitError> {
        let argv: Vec<_> = ["git", "-C", self.root.as_str()]
            .iter()
            .chain(arguments)
            .map(ToString::to_string)
            .collect();
        let set = |name: &str, value: &str| (name.to_owned(), Some(value.to_owned()));
        let env = [
            set("LC_ALL", "C"),
            set("GIT_TERMINAL_PROMPT", "0"), // a question that no one sees is a hang
            set("GIT_OPTIONAL_LOCKS", "0"),
            // Set where gemmtune is started from a hook; they would redirect git to another repository.
            ("GIT_DIR".to_owned(), None),
            ("GIT_WORK_TREE".to_owned(), None),
            ("GIT_INDEX_FILE".to_owned(), None),
        ];
        let ran = run(self.keeper, &argv, None, env, limit, self.interrupt)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((ran.code, text(&ran.stdout), text(&ran.stderr)))
    }

    fn local(&self, arguments: &[&str]) -> Result<String, GitError> {
        Ok(self.git(arguments, LOCAL)?.trim().to_owned())
    }

    fn holds(&self, arguments: &[&str]) -> Result<bool, GitError> {
        Ok(self.try_git(arguments, LOCAL)?.0 == 0)
    }

    /// The commit that is checked out.
    pub fn head(&self) -> Result<String, GitError> {
        self.local(&["rev-parse", "HEAD"])
    }

    /// The branch that is checked out; `None` when the head is detached.
    pub fn branch(&self) -> Result<Option<String>, GitError> {
        let (code, stdout, _) = self.try_git(&["symbolic-ref", "--short", "-q", "HEAD"], LOCAL)?;
        Ok((code == 0).then(|| stdout.trim().to_owned()))
    }

    /// Tracked files with changes that are nowhere committed, submodules' own included. A submodule that is merely at
    /// another commit does not count as a change.
    pub fn changed_files(&self) -> Result<Vec<String>, GitError> {
        let own = self.git(
            &[
                "status",
                "--porcelain",
                "--untracked-files=no",
                "--ignore-submodules=all",
            ],
            LOCAL,
        )?;
        let theirs = "git status --porcelain --untracked-files=no --ignore-submodules=all | sed \"s|^...|   $displaypath/|\"";
        let nested = self.git(
            &["submodule", "foreach", "--quiet", "--recursive", theirs],
            LOCAL,
        )?;
        Ok(own
            .lines()
            .chain(nested.lines())
            .filter_map(|line| Some(line.get(3..)?.to_owned()))
            .collect())
    }

    /// The remote to fetch from: `origin`, or the only remote if none has that name.
    pub fn remote(&self) -> Result<String, GitError> {
        let listed = self.local(&["remote"])?;
        let remotes: Vec<&str> = listed.lines().collect();
        Ok(match remotes[..] {
            [only] => only,
            _ => "origin",
        }
        .to_owned())
    }

    /// Whether the clone is shallow.
    pub fn is_shallow(&self) -> Result<bool, GitError> {
        Ok(self.local(&["rev-parse", "--is-shallow-repository"])? == "true")
    }

    /// The full name of a commit that the repository has; `None` if it does not.
    pub fn commit(&self, name: &str) -> Result<Option<String>, GitError> {
        let (code, stdout, _) = self.try_git(
            &[
                "rev-parse",
                "--verify",
                "--quiet",
                &format!("{name}^{{commit}}"),
            ],
            LOCAL,
        )?;
        Ok((code == 0).then(|| stdout.trim().to_owned()))
    }

    /// How `commit` relates to what is checked out.
    pub fn ancestry(&self, commit: &str) -> Result<Ancestry, GitError> {
        if self.commit(commit)?.is_none() {
            return Ok(if self.is_shallow()? {
                Ancestry::Shallow
            } else {
                Ancestry::Absent
            });
        }
        if self.holds(&["merge-base", "--is-ancestor", commit, "HEAD"])? {
            return Ok(Ancestry::Ancestor);
        }
        if self.is_shallow()? {
            return Ok(Ancestry::Shallow);
        }
        let related = self.holds(&["merge-base", commit, "HEAD"])?;
        Ok(if related {
            Ancestry::NotAncestor
        } else {
            Ancestry::Unrelated
        })
    }

    /// The submodules, nested ones included.
    pub fn submodules(&self) -> Result<Vec<Submodule>, GitError> {
        let status = self.git(&["submodule", "status", "--recursive"], LOCAL)?;
        Ok(status.lines().filter_map(submodule).collect())
    }

    /// When the head was last moved to another commit, in seconds since 1970, from the reflog.
    pub fn head_moved_at(&self) -> Result<Option<i64>, GitError> {
        let (code, stdout, _) = self.try_git(
            &[
                "log",
                "-1",
                "--walk-reflogs",
                "--format=%gd",
                "--date=unix",
                "HEAD",
            ],
            LOCAL,
        )?;
        let time = stdout
            .trim()
            .strip_prefix("HEAD@{")
            .and_then(|rest| rest.strip_suffix('}'));
        Ok(time
            .filter(|_| code == 0)
            .and_then(|time| time.parse().ok()))
    }
}

/// One line of `git submodule status`: a mark, the commit, the path.
fn submodule(line: &str) -> Option<Submodule> {
    let state = match line.bytes().next()? {
        b' ' => SubmoduleState::Current,
        b'-' => SubmoduleState::Missing,
        b'+' => SubmoduleState::Other,
        b'U' => SubmoduleState::Conflict,
        _ => return None,
    };
    let (commit, path) = line.get(1..)?.split_once(' ')?;
    // `path (describe)`, where a path may contain blanks and a missing submodule has no description.
    let path = path.rsplit_once(" (").map_or(path, |(path, _)| path);
    Some(Submodule {
        path: path.to_owned(),
        commit: commit.to_owned(),
        state,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn submodule_lines_are_read_in_every_state() {
        let states = [
            (
                " 020b6f435e 3rdparty/composable_kernel (rocm-6.4-12-g020b6f4)",
                SubmoduleState::Current,
            ),
            (
                "-020b6f435e 3rdparty/composable_kernel",
                SubmoduleState::Missing,
            ),
            (
                "+020b6f435e 3rdparty/composable_kernel (heads/x)",
                SubmoduleState::Other,
            ),
            (
                "U0000000000 3rdparty/composable_kernel",
                SubmoduleState::Conflict,
            ),
        ];
        for (line, state) in states {
            let found = submodule(line).unwrap();
            assert_eq!(found.path, "3rdparty/composable_kernel");
            assert_eq!((found.state, found.commit.len()), (state, 10), "{line}");
        }
        assert_eq!(submodule(""), None);
        assert_eq!(submodule("?x"), None);
    }
}
