//! What a running server was started with, from `/proc`: command line, environment, working directory, interpreter.
//!
//! Reads only; the process is neither signalled nor traced.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};

/// A live process as it was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Argument vector.
    pub argv: Vec<String>,
    /// Environment at its start; a variable that is not UTF-8 is left out.
    pub env: BTreeMap<String, String>,
    /// Working directory.
    pub folder: Utf8PathBuf,
    /// The program file: for a server, the interpreter behind all links.
    pub program: Utf8PathBuf,
}

/// Why a process cannot be observed.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// No such process, or not ours to look at.
    #[error("look at process {pid}")]
    Read {
        /// The process.
        pid: u32,
        /// The cause.
        source: std::io::Error,
    },
    /// It renamed itself, so how it was started is no longer there.
    #[error(
        "look at process {pid}: it calls itself `{title}`, which is no command line; \
         it was started by process {parent}, which may be the one meant"
    )]
    Renamed {
        /// The process.
        pid: u32,
        /// What it calls itself.
        title: String,
        /// Its parent.
        parent: u32,
    },
    /// A kernel thread or a dead process.
    #[error("look at process {0}: it has no command line")]
    NoCommand(u32),
}

/// Observes process `pid` under `proc`, which is `/proc` outside tests.
pub fn observe(proc: &Utf8Path, pid: u32) -> Result<Process, ObserveError> {
    let folder = proc.join(pid.to_string());
    let failed = |source| ObserveError::Read { pid, source };
    let link = |name| folder.join(name).read_link_utf8().map_err(failed);
    let command = fs_err::read(folder.join("cmdline")).map_err(failed)?;
    let argv = strings(&command);
    let Some(first) = argv.first() else {
        return Err(ObserveError::NoCommand(pid));
    };
    // A title set later is one string, often padded with NULs; SGLang's ranks are `sglang::scheduler_TP0` and the like.
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
    // An empty argument in the middle is an argument.
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
        let error = observe(root, 77).unwrap_err().to_string();
        assert!(
            error.contains("`sglang::scheduler_TP0`") && error.contains("process 42"),
            "{error}"
        );
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
