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
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::process::{Command, Stdio};

    use super::*;

    /// The word that begins with `mark` in the command line of a Python program. `python3` may be found through a script of its own
    /// (pyenv), which does not count; nor do programs of the tests beside this one.
    fn marked(pid: u32, mark: &str) -> Option<String> {
        let line = fs_err::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let is_python = line.split(' ').next()?.ends_with("python3");
        let marked = line.split(' ').find(|word| word.starts_with(mark));
        marked.filter(|_| is_python).map(str::to_owned)
    }

    #[test]
    fn a_program_that_lives_for_one_look_is_seen_and_the_end_of_its_tree_is_reported() {
        // Each waits until it was looked at once, under a shell that starts them one after another.
        let script = "for i in $(seq 20); do python3 -S -c 'print(1, flush=True); input()' \"slow$i\"; done; exec cat";
        let mut child = Command::new("bash")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut release = child.stdin.take().unwrap();
        let mut is_up = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut watcher = Watcher::new(std::process::id());
        // The shell, which is the parent that the programs are known by.
        while !watcher.known.contains_key(&child.id()) {
            watcher.look();
        }
        for number in 1..=20 {
            is_up.next().unwrap().unwrap();
            let seen = watcher.look().into_iter().find_map(|event| match event {
                Event::Runs { pid, .. } => marked(pid, "slow"),
                Event::Ended(_) => None,
            });
            assert_eq!(seen, Some(format!("slow{number}")));
            writeln!(release).unwrap();
        }
        drop(release);
        child.wait().unwrap();
        assert!(watcher.look().contains(&Event::Ended(child.id())));
    }

    /// A look that comes late may miss what lived meanwhile, and on a busy machine looks come late: nothing else is an excuse.
    #[test]
    fn a_short_program_is_missed_only_where_a_look_came_late() {
        let least = Duration::from_millis(5); // half of what a Python program lives at the least
        let script = "for i in $(seq 20); do python3 -S -c pass \"short$i\"; done; exec sleep 0.05";
        let mut child = Command::new("bash").args(["-c", script]).spawn().unwrap();
        let (mut seen, mut ended, mut excused) = (std::collections::BTreeSet::new(), 0, 0);
        let mut watcher = Watcher::new(std::process::id());
        let until = Instant::now() + Duration::from_secs(60);
        let mut looked = Instant::now();
        while ended == 0 && Instant::now() < until {
            for event in watcher.look() {
                match event {
                    Event::Runs { pid, .. } => seen.extend(marked(pid, "short")),
                    Event::Ended(pid) => ended += u32::from(pid == child.id()),
                }
            }
            // The next look reads which processes there are at its beginning, their names at its end.
            excused += looked.elapsed().as_micros() / least.as_micros();
            looked = Instant::now();
            std::thread::sleep(watcher.pace());
        }
        child.wait().unwrap();
        assert_eq!(ended, 1);
        assert!(
            seen.len() as u128 + excused >= 20,
            "{seen:?}, {excused} looks came late"
        );
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
