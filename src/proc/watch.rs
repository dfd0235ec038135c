//! Which programs run in a process tree, read from `/proc` often enough that a short-lived one is not missed.
//!
//! No event source works without privileges: the process connector and fanotify's exec events need root, and a tracer
//! or a preloaded library would change what is watched. But `/proc/loadavg` has the process id that was assigned
//! last: one small read tells whether anything was started since, and which ids to check.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::tree;

/// How often to check. A Python program lives for at least 10 ms, a child of a shell for about one.
pub const PACE: Duration = Duration::from_millis(2);

/// The same where `/proc/loadavg` has no process id (gVisor, LXCFS), so that every check lists all processes.
const SLOW_PACE: Duration = Duration::from_millis(10);

/// How often all processes are listed nevertheless: this finds a process that was seen before its parent was known.
const FULL: Duration = Duration::from_millis(250);

/// Beyond this many new ids, all processes are listed instead of checking each id.
const MANY: u32 = 2000;

/// How often an id without a process is checked again: it is assigned a moment before the process becomes visible.
const TRIES: u8 = 5;

/// Something that happened in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A process runs a program, or changed its title, which looks the same.
    Runs { pid: u32, parent: u32 },
    /// A process has ended.
    Ended(u32),
}

/// Watches the descendants of a process.
#[derive(Debug)]
pub struct Watcher {
    root: u32,
    last: Option<u32>,
    listed: Option<Instant>,
    known: BTreeMap<u32, Node>,
    pending: BTreeMap<u32, u8>,
}

#[derive(Debug)]
struct Node {
    parent: u32,
    line: Vec<u8>,
    is_leaf: bool,
}

impl Watcher {
    /// Watches the descendants of `root`, which itself is not reported.
    pub fn new(root: u32) -> Self {
        Self {
            root,
            last: last_pid(),
            listed: None,
            known: BTreeMap::new(),
            pending: BTreeMap::new(),
        }
    }

    /// How long to wait between two checks.
    pub fn pace(&self) -> Duration {
        if self.last.is_some() { PACE } else { SLOW_PACE }
    }

    /// What has happened since the last call.
    pub fn look(&mut self) -> Vec<Event> {
        self.find_new();
        let mut events = Vec::new();
        let mut ended = Vec::new();
        for (&pid, node) in &mut self.known {
            match fs_err::read(format!("/proc/{pid}/cmdline")) {
                Ok(line) if line.is_empty() => {
                    // A zombie, or a program that is just being started.
                    if tree::parent(pid).is_none_or(|(_, is_dead)| is_dead) {
                        ended.push(pid);
                    }
                }
                Ok(line) if !node.is_leaf && line != node.line => {
                    node.line = line;
                    // An orphan gets a new parent; the one that started it is reported.
                    events.push(Event::Runs {
                        pid,
                        parent: node.parent,
                    });
                }
                Ok(_) => {}
                Err(_) => ended.push(pid),
            }
        }
        for pid in ended {
            self.known.remove(&pid);
            events.push(Event::Ended(pid));
        }
        events
    }

    /// Stops following what a process starts: from now on only its end is reported.
    pub fn leave_alone(&mut self, pid: u32) {
        if let Some(node) = self.known.get_mut(&pid) {
            node.is_leaf = true;
        }
    }

    fn find_new(&mut self) {
        let now = last_pid();
        let due = self.listed.is_none_or(|listed| listed.elapsed() >= FULL);
        let few = match (self.last, now) {
            (Some(last), Some(now)) if now >= last && now - last < MANY => Some(last + 1..=now),
            _ => None,
        };
        if due || few.is_none() {
            self.listed = Some(Instant::now());
            let new = tree::processes().filter(|pid| !self.known.contains_key(pid));
            self.pending.extend(new.map(|pid| (pid, 1)));
        }
        let few = few.into_iter().flatten();
        self.pending.extend(few.map(|pid| (pid, TRIES)));
        self.last = now;
        for (pid, tries) in std::mem::take(&mut self.pending) {
            // A zombie that was not reaped yet is not new.
            let parent = tree::parent(pid).filter(|(_, is_dead)| !is_dead);
            let parent = parent.map(|(parent, _)| parent);
            let is_ours = parent.is_some_and(|parent| {
                parent == self.root || self.known.get(&parent).is_some_and(|node| !node.is_leaf)
            });
            if let Some(parent) = parent.filter(|_| is_ours && !is_thread(pid)) {
                self.known.insert(
                    pid,
                    Node {
                        parent,
                        line: Vec::new(),
                        is_leaf: false,
                    },
                );
            } else if tries > 1 && parent.is_none() {
                self.pending.insert(pid, tries - 1);
            }
        }
    }
}

/// The process id that was assigned last (the fifth field of `/proc/loadavg`, proc(5)).
fn last_pid() -> Option<u32> {
    let text = fs_err::read_to_string("/proc/loadavg").ok()?;
    let last = text.split_ascii_whitespace().nth(4)?.parse().ok()?;
    (last > 0).then_some(last)
}

/// Whether an id belongs to a thread other than its process's main thread.
fn is_thread(pid: u32) -> bool {
    let status = fs_err::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("Tgid:"))
        .is_some_and(|group| group.trim() != pid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn short_programs_of_the_tree_are_seen_and_its_end_is_reported() {
        // Twenty Python programs that end at once, under a shell that starts them one after another.
        let script = "for i in $(seq 20); do python3 -S -c pass \"mark$i\"; done; exec sleep 0.05";
        let mut child = Command::new("bash").args(["-c", script]).spawn().unwrap();
        let (mut seen, mut ended) = (std::collections::BTreeSet::new(), 0);
        let mut watcher = Watcher::new(std::process::id());
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            for event in watcher.look() {
                match event {
                    Event::Runs { pid, .. } => {
                        let line = fs_err::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                        let line = String::from_utf8_lossy(&line).replace('\0', " ");
                        // `python3` may be found through a script of its own (pyenv), which is not counted.
                        let program = line.split(' ').next().unwrap_or_default();
                        if program.ends_with("python3") {
                            seen.extend(
                                line.split(' ')
                                    .find(|word| word.starts_with("mark"))
                                    .map(str::to_owned),
                            );
                        }
                    }
                    Event::Ended(pid) => ended += u32::from(pid == child.id()),
                }
            }
            if ended > 0 || Instant::now() > until {
                break;
            }
            std::thread::sleep(watcher.pace());
        }
        child.wait().unwrap();
        assert_eq!(ended, 1);
        assert_eq!(seen.len(), 20, "{seen:?}");
    }

    #[test]
    fn what_a_left_alone_process_starts_is_not_reported() {
        let mut child = Command::new("bash")
            .args(["-c", "sleep 0.3; sleep 0.3 & wait"])
            .spawn()
            .unwrap();
        let mut watcher = Watcher::new(std::process::id());
        let mut runs = std::collections::BTreeSet::new();
        while child.try_wait().unwrap().is_none() {
            for event in watcher.look() {
                if let Event::Runs { pid, .. } = event {
                    if pid == child.id() {
                        watcher.leave_alone(pid);
                    }
                    runs.insert(pid);
                }
            }
            std::thread::sleep(watcher.pace());
        }
        assert!(runs.contains(&child.id()));
        let own = |pid: &u32| tree::parent(*pid).is_some_and(|(parent, _)| parent == child.id());
        assert!(!runs.iter().any(own), "{runs:?}");
    }
}
