//! What a running server was started with, from `/proc`: command line, environment, working directory, interpreter.
//!
//! Reads only; the process is neither signalled nor traced.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};

use super::quote::quoted;

/// A live process as it was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub argv: Vec<String>,
    /// Environment at its start; variables that are not UTF-8 are left out.
    pub env: BTreeMap<String, String>,
    pub folder: Utf8PathBuf,
    /// The program file: for a server, the interpreter with all links resolved.
    pub program: Utf8PathBuf,
}

impl Process {
    /// The program as it was invoked: the link in a virtual environment rather than the interpreter it leads to,
    /// which would import from elsewhere. Its first argument may be any text (`exec -a`), so a candidate must lead to
    /// the file that is really running.
    pub fn invoked(&self) -> Utf8PathBuf {
        let named = self.argv.first().map_or("", String::as_str);
        let mut candidates = Vec::new();
        if named.contains('/') {
            candidates.push(self.folder.join(named));
        }
        let path = self.env.get("PATH").map_or("", String::as_str);
        let own = self.program.file_name().unwrap_or_default();
        for name in [named, "python3", "python", own] {
            if !name.is_empty() && !name.contains('/') {
                let folders = path.split(':').filter(|folder| !folder.is_empty());
                candidates.extend(folders.map(|folder| self.folder.join(folder).join(name)));
            }
        }
        let is_it = |file: &&Utf8PathBuf| {
            file.canonicalize_utf8()
                .is_ok_and(|real| real == self.program)
        };
        candidates
            .iter()
            .find(is_it)
            .unwrap_or(&self.program)
            .clone()
    }

    /// Whether the program is a Python interpreter.
    pub fn is_python(&self) -> bool {
        let name = self.program.file_name().unwrap_or_default();
        name.starts_with("python") || name.starts_with("pypy")
    }

    /// The command line, with [`Self::invoked`] as its program.
    pub fn command(&self) -> Vec<String> {
        let mut command = self.argv.clone();
        if let Some(first) = command.first_mut() {
            *first = self.invoked().to_string();
        }
        command
    }
}

/// CPUs and memory nodes that a process may use, where they differ from ours: what `taskset` and `numactl` set, in
/// their own syntax.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// CPUs, as `taskset -c` takes them.
    pub cpus: Option<String>,
    /// Memory policy, as `numa_maps(5)` writes it: `bind:0`.
    pub memory: Option<String>,
    /// Limits that were raised or lowered, as `/proc/PID/limits` names them: `Max open files`.
    pub limits: Vec<String>,
}

/// How the placement of process `pid` differs from that of this one.
pub fn placement(pid: u32) -> Placement {
    let read = |pid: &str, name: &str| {
        fs_err::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default()
    };
    let cpus = |pid: &str| {
        let status = read(pid, "status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        line.map(|cpus| cpus.trim().to_owned())
    };
    let pid = pid.to_string();
    let memory = read(&pid, "numa_maps")
        .lines()
        .find_map(|line| Some(line.split_whitespace().nth(1)?.to_owned()));
    let limits = |pid: &str| -> Vec<(String, String)> {
        // The name is 26 columns wide (fs/proc/base.c).
        let text = read(pid, "limits");
        let rows = text
            .lines()
            .skip(1)
            .filter_map(|line| line.split_at_checked(26));
        rows.map(|(name, rest)| {
            let soft = rest.split_whitespace().next().unwrap_or_default();
            (name.trim().to_owned(), soft.to_owned())
        })
        .collect()
    };
    let ours = limits("self");
    Placement {
        cpus: cpus(&pid).filter(|theirs| cpus("self").as_ref() != Some(theirs)),
        memory: memory.filter(|policy| policy != "default"),
        limits: limits(&pid)
            .into_iter()
            .filter(|limit| !ours.is_empty() && !ours.contains(limit))
            .map(|(name, soft)| format!("{name} {soft}"))
            .collect(),
    }
}

/// Why a process cannot be observed.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// There is no such process, or it may not be inspected.
    #[error("look at process {pid}")]
    Read { pid: u32, source: std::io::Error },
    /// It changed its title, so its command line is lost.
    #[error(
        "look at process {pid}: it calls itself `{}`, which is no command line; \
         it was started by process {parent}, which may be the one meant",
        quoted(title)
    )]
    Renamed {
        pid: u32,
        /// Its title.
        title: String,
        parent: u32,
    },
    /// A kernel thread or a dead process.
    #[error("look at process {0}: it has no command line")]
    NoCommand(u32),
}

/// Observes process `pid` under `proc`, which is `/proc` outside tests.
pub fn observe(proc: &Utf8Path, pid: u32) -> Result<Process, ObserveError> {
    // A program that is just being started may have its new file but still its old command line.
    let mut seen = look(proc, pid)?;
    for _ in 0..5 {
        let again = look(proc, pid)?;
        if again == seen {
            break;
        }
        seen = again;
    }
    Ok(seen)
}

fn look(proc: &Utf8Path, pid: u32) -> Result<Process, ObserveError> {
    let folder = proc.join(pid.to_string());
    let failed = |source| ObserveError::Read { pid, source };
    let link = |name| folder.join(name).read_link_utf8().map_err(failed);
    let command = fs_err::read(folder.join("cmdline")).map_err(failed)?;
    let argv = strings(&command);
    let Some(first) = argv.first() else {
        return Err(ObserveError::NoCommand(pid));
    };
    // A title set later is one string, often padded with NULs; SGLang's ranks are `sglang::scheduler_TP0` and the
    // like.
    if argv.len() == 1 && (first.contains("::") || first.contains(' ')) {
        let title = first.trim().to_owned();
        return Err(ObserveError::Renamed {
            pid,
            title,
            parent: parent(&folder).unwrap_or(0),
        });
    }
    let environment = fs_err::read(folder.join("environ")).map_err(failed)?;
    let env = strings(&environment)
        .into_iter()
        .filter_map(|entry| {
            entry
                .split_once('=')
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
        })
        .collect();
    Ok(Process {
        pid,
        argv,
        env,
        folder: link("cwd")?,
        program: link("exe")?,
    })
}

/// NUL-separated strings; those that are not UTF-8 are left out.
fn strings(bytes: &[u8]) -> Vec<String> {
    let text = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    let trimmed = text
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(&[][..], |last| &text[..=last]);
    if trimmed.is_empty() {
        return Vec::new();
    }
    // An empty argument in the middle counts.
    trimmed
        .split(|byte| *byte == 0)
        .filter_map(|part| String::from_utf8(part.to_vec()).ok())
        .collect()
}

fn parent(folder: &Utf8Path) -> Option<u32> {
    let stat = fs_err::read_to_string(folder.join("stat")).ok()?;
    // `pid (name) state ppid …`; the name may hold blanks and brackets.
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_is_observed_as_it_was_started() {
        let process = observe(Utf8Path::new("/proc"), std::process::id()).unwrap();
        assert_eq!(process.argv, std::env::args().collect::<Vec<_>>());
        assert_eq!(
            process.folder.as_std_path(),
            std::env::current_dir().unwrap()
        );
        assert_eq!(
            process.program.as_std_path(),
            std::env::current_exe().unwrap()
        );
        assert!(process.env.contains_key("PATH"));
    }

    #[test]
    fn a_renamed_rank_names_its_parent() {
        let keep = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(keep.path()).unwrap();
        let folder = root.join("77");
        fs_err::create_dir(&folder).unwrap();
        let write = |name: &str, bytes: &[u8]| {
            crate::store::file::write_atomic(&folder.join(name), bytes).unwrap();
        };
        write("cmdline", b"sglang::scheduler_TP0\0\0\0\0");
        write("stat", b"77 (sglang::sched) S 42 77 0");
        insta::assert_snapshot!(observe(root, 77).unwrap_err(), @"look at process 77: it calls itself `sglang::scheduler_TP0`, which is no command line; it was started by process 42, which may be the one meant");
        write("cmdline", b"");
        assert!(matches!(
            observe(root, 77),
            Err(ObserveError::NoCommand(77))
        ));
        assert!(matches!(
            observe(root, 78),
            Err(ObserveError::Read { pid: 78, .. })
        ));
    }

    #[test]
    fn empty_arguments_are_kept_and_padding_is_not() {
        assert_eq!(strings(b"a\0\0b\0"), ["a", "", "b"]);
        assert_eq!(strings(b"title\0\0\0"), ["title"]);
        assert!(strings(b"\0\0").is_empty());
    }
}
