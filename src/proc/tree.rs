//! Process trees, read from `/proc`, and how a whole tree is ended.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// How often the process table is read again while a tree is being ended.
const POLL: Duration = Duration::from_millis(10);

/// A process that survives SIGKILL this long is in an uninterruptible system call.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// The live descendants of `root`, without `root` itself, parents before children.
pub fn descendants(root: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<(u32, bool)>> = BTreeMap::new();
    for pid in processes() {
        // A process that ended since the listing has no entry any more.
        let Ok(stat) = fs_err::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        if let Some((parent, is_zombie)) = parent_and_state(&stat) {
            let is_dead = is_zombie && !has_threads(pid);
            children.entry(parent).or_default().push((pid, is_dead));
        }
    }
    let mut found = Vec::new();
    let mut queue = vec![root];
    while let Some(parent) = queue.pop() {
        for &(pid, is_dead) in children.get(&parent).map_or(&[][..], Vec::as_slice) {
            if is_dead {
                // Only this process's own children can be reaped here; for others the call fails.
                let _ = waitpid(Pid::from_raw(pid.cast_signed()), Some(WaitPidFlag::WNOHANG));
            } else {
                found.push(pid);
            }
            queue.push(pid);
        }
    }
    found
}

/// Whether a process whose main thread has exited still has other threads: until they exit too, its memory, devices
/// and ports stay in use.
fn has_threads(pid: u32) -> bool {
    fs_err::read_dir(format!("/proc/{pid}/task")).is_ok_and(|threads| threads.count() > 1)
}

/// Parent and zombie state from the text of `/proc/PID/stat`. The command name is in parentheses and may itself
/// contain blanks and parentheses, so fields are counted from the last one.
fn parent_and_state(stat: &str) -> Option<(u32, bool)> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    Some((parent, matches!(state, "Z" | "X")))
}

/// Ends every descendant of `root`: SIGTERM, then SIGKILL after `grace`. Returns what could not be
/// ended. `hurry` is called between rounds; once it returns true the grace period is over.
pub fn end_descendants(root: u32, grace: Duration, mut hurry: impl FnMut() -> bool) -> Vec<u32> {
    if !grace.is_zero() {
        for pid in descendants(root) {
            send(pid, Signal::SIGTERM);
        }
        let until = Instant::now() + grace;
        while Instant::now() < until && !hurry() {
            if descendants(root).is_empty() {
                return Vec::new();
            }
            thread::sleep(POLL);
        }
    }
    kill_all(|| descendants(root))
}

/// Kills what `alive` lists until it lists nothing; returns what cannot be killed. `alive` is called before every
/// round, because a process may fork between the listing and the signal.
pub fn kill_all(alive: impl Fn() -> Vec<u32>) -> Vec<u32> {
    let until = Instant::now() + KILL_PATIENCE;
    loop {
        let left = alive();
        if left.is_empty() || Instant::now() > until {
            return left;
        }
        for pid in left {
            send(pid, Signal::SIGKILL);
        }
        thread::sleep(POLL);
    }
}

/// Processes of this user that carry `name=value` in the environment they were started with, other
/// than this one.
pub fn marked(name: &str, value: &str) -> Vec<u32> {
    let mark = format!("{name}={value}");
    let this = std::process::id();
    processes()
        .filter(|&pid| pid != this)
        .filter(|pid| {
            // Other users' environments cannot be read; zombies have none.
            fs_err::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| {
                environ
                    .split(|&byte| byte == 0)
                    .any(|variable| variable == mark.as_bytes())
            })
        })
        .collect()
}

/// Whether a process is a keeper.
pub fn is_keeper(pid: u32) -> bool {
    fs_err::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| line.split(|&byte| byte == 0).nth(1) == Some(b"keeper"))
}

/// The parent of a process, and whether it is a zombie; `None` when there is no such process.
pub(super) fn parent(pid: u32) -> Option<(u32, bool)> {
    parent_and_state(&fs_err::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

pub(super) fn processes() -> impl Iterator<Item = u32> {
    fs_err::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
        })
}

fn send(pid: u32, signal: Signal) {
    // The only possible error for a descendant is that it has just ended.
    let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_parentheses_does_not_shift_the_fields() {
        assert_eq!(
            parent_and_state("12 (a) b (c) S 7 12 12 0"),
            Some((7, false))
        );
        assert_eq!(parent_and_state("12 (x) Z 9 12"), Some((9, true)));
        assert_eq!(parent_and_state("torn"), None);
    }

    #[test]
    fn a_process_lives_as_long_as_one_of_its_threads() {
        let leave = "import ctypes, threading, time\n\
            threading.Thread(target=time.sleep, args=(30,)).start()\n\
            ctypes.CDLL(None).pthread_exit(None)\n";
        let mut child = std::process::Command::new("python3")
            .args(["-c", leave])
            .spawn()
            .unwrap();
        let pid = child.id();
        let is_zombie = || {
            let stat = fs_err::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            parent_and_state(&stat).is_some_and(|(_, zombie)| zombie)
        };
        let until = Instant::now() + Duration::from_secs(20);
        while !is_zombie() && Instant::now() < until {
            thread::sleep(POLL);
        }
        assert!(is_zombie(), "its first thread has not ended");
        assert!(descendants(std::process::id()).contains(&pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!descendants(std::process::id()).contains(&pid));
    }

    #[test]
    fn a_marked_process_is_found_by_its_exact_mark() {
        let mut child = std::process::Command::new("sleep")
            .arg("30")
            .env("GEMMTUNE_TEST_MARK", "a/b")
            .spawn()
            .unwrap();
        // The variable appears only once the new program has replaced the fork.
        let until = Instant::now() + Duration::from_secs(5);
        while marked("GEMMTUNE_TEST_MARK", "a/b").is_empty() && Instant::now() < until {
            thread::sleep(POLL);
        }
        assert_eq!(marked("GEMMTUNE_TEST_MARK", "a/b"), [child.id()]);
        assert!(marked("GEMMTUNE_TEST_MARK", "a").is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn children_of_this_process_are_found() {
        let mut child = std::process::Command::new("sleep")
            .arg("30")
            .spawn()
            .unwrap();
        assert!(descendants(std::process::id()).contains(&child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!descendants(std::process::id()).contains(&child.id()));
    }
}
