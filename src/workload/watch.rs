//! Watches what a launch script actually starts: servers, benchmark clients, and commands that start something
//! elsewhere.
//!
//! The script runs as the user runs it; nothing is added to its environment but the keeper's mark. Each program is
//! inspected in `/proc` within milliseconds of its start, before a process title can replace its command line.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use camino::Utf8Path;
use serde_json::Value;

use super::observe::{self, Placement, Process};
use super::role::{self, Role};
use crate::bench::client;
use crate::proc::watch::{Event, Watcher};
use crate::proc::{Interrupt, KeptChild, ports};

/// If no benchmark starts for this long after one has ended, it was the last: a script that sweeps starts the next
/// one within seconds.
const SETTLED: Duration = Duration::from_secs(20);

/// Within this time a script may restart a server that ended before it was ready.
const RESTART: Duration = Duration::from_secs(5);

/// How often servers are checked for readiness.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// Time limit of one response: a server that is loading responds late or not at all.
const ASK: Duration = Duration::from_secs(5);

/// When to stop watching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// The server is ready.
    Ready,
    /// The benchmarks have ended.
    Benchmark,
    /// The command and all that it started have ended.
    Exit,
}

/// What ended the watching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The awaited event has occurred.
    Reached,
    /// Everything the command started has ended.
    Exited,
    /// Every server ended before it was ready, and none was started again.
    ServerEnded,
    Interrupted,
}

/// The response of a server that is up.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub address: SocketAddr,
    /// Its resolved arguments, if it reports them.
    pub info: Option<Value>,
}

/// A server or a benchmark that was started.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// Its role.
    pub role: Role,
    /// How it was started.
    pub process: Process,
    /// The command that preceded it and became it through `execve`: `numactl …`.
    pub front: Vec<String>,
    /// Name of a program that started it with the rest of its own command line: `rocprofv3`.
    pub under: Option<String>,
    /// CPUs, memory and limits, where they differ from ours.
    pub placement: Placement,
    /// Its response once it was ready.
    pub answer: Option<Answer>,
    /// Whether it is still running.
    pub is_alive: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Watched {
    /// Servers and benchmarks in the order of their starts.
    pub seen: Vec<Seen>,
    /// Commands that start something elsewhere, by the wrapper's name: `docker run`.
    pub elsewhere: Vec<(String, Vec<String>)>,
    /// Why the watching ended.
    pub ending: Ending,
}

impl Watched {
    /// What was started in one role.
    pub fn of(&self, role: Role) -> impl Iterator<Item = &Seen> {
        self.seen.iter().filter(move |seen| seen.role == role)
    }
}

/// What is reported while watching.
#[derive(Clone, Copy, Debug)]
pub enum WatchEvent<'a> {
    /// A server or a benchmark was started.
    Started(&'a Seen),
    /// A server is ready.
    Ready(&'a Seen),
    /// A command that starts something elsewhere was started.
    Elsewhere(&'a str),
    /// Nothing new; an opportunity to forward output.
    Tick,
}

/// Watches the tree of `kept` until there is nothing more to wait for.
pub fn watch(
    kept: &mut KeptChild,
    until: Until,
    interrupt: &Interrupt,
    tell: &mut dyn FnMut(WatchEvent<'_>),
) -> Watched {
    let (sender, raised) = channel();
    interrupt.subscribe(sender);
    let prober = Prober::start();
    let mut view = View::new(kept.pid());
    let ending = loop {
        view.look(tell);
        prober.ask(view.candidates());
        for (pid, answer) in prober.answers.try_iter() {
            view.answered(pid, answer, tell);
        }
        tell(WatchEvent::Tick);
        if let Some(ending) = view.ending(until, kept.exited().is_some()) {
            break ending;
        }
        match raised.recv_timeout(view.watcher.pace()) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => break Ending::Interrupted,
        }
    };
    Watched {
        seen: view.seen,
        elsewhere: view.elsewhere,
        ending,
    }
}

/// What is known of the process tree at one moment.
struct View {
    watcher: Watcher,
    seen: Vec<Seen>,
    elsewhere: Vec<(String, Vec<String>)>,
    /// Every process's command lines, the latest last.
    lines: BTreeMap<u32, Vec<Vec<String>>>,
    /// Python programs whose command line is not that of a server.
    others: BTreeMap<u32, (Process, Placement)>,
    /// The command itself, and whether it has ended.
    command: Option<(u32, bool)>,
    /// When a benchmark or a server ended last.
    quiet_since: Instant,
}

impl View {
    fn new(keeper: u32) -> Self {
        Self {
            watcher: Watcher::new(keeper),
            seen: Vec::new(),
            elsewhere: Vec::new(),
            lines: BTreeMap::new(),
            others: BTreeMap::new(),
            command: None,
            quiet_since: Instant::now(),
        }
    }

    fn look(&mut self, tell: &mut dyn FnMut(WatchEvent<'_>)) {
        for event in self.watcher.look() {
            match event {
                Event::Runs { pid, parent } => {
                    self.command.get_or_insert((pid, false));
                    // A process that changed its title or has just ended shows nothing.
                    if let Ok(process) = observe::observe(Utf8Path::new("/proc"), pid) {
                        self.runs(parent, process, tell);
                    }
                }
                Event::Ended(pid) => self.ended(pid),
            }
        }
    }

    fn runs(&mut self, parent: u32, process: Process, tell: &mut dyn FnMut(WatchEvent<'_>)) {
        let pid = process.pid;
        let mut argv: Vec<&str> = process.argv.iter().map(String::as_str).collect();
        if process.is_python() && !argv.is_empty() {
            argv[0] = "python"; // whatever title it was given
        }
        self.others.remove(&pid);
        let before = self.lines.entry(pid).or_default().clone();
        self.lines
            .entry(pid)
            .or_default()
            .push(process.argv.clone());
        // `docker` may be a shell script, as podman's is.
        let is_shell = matches!(
            argv.first().map(|first| role::name_of(first)),
            Some("sh" | "bash" | "dash")
        );
        let inner = if is_shell { &argv[1..] } else { &argv[..] };
        if let Some(tool) = role::elsewhere(inner) {
            // The shell that became it, and a second look at it, are the same command.
            let found = (tool, process.argv.clone());
            if !self.elsewhere.contains(&found) {
                tell(WatchEvent::Elsewhere(&found.0));
                self.elsewhere.push(found);
            }
            return;
        }
        match role::role(&argv) {
            Some(Role::Probe) | None => {
                if process.is_python() {
                    let placement = observe::placement(pid);
                    self.others.insert(pid, (process, placement));
                }
            }
            Some(role) => {
                let placement = observe::placement(pid);
                let seen = Seen {
                    role,
                    front: front(&before, &process),
                    under: self.under(parent, &process),
                    placement,
                    process,
                    answer: None,
                    is_alive: true,
                };
                self.add(seen, tell);
            }
        }
    }

    fn add(&mut self, seen: Seen, tell: &mut dyn FnMut(WatchEvent<'_>)) {
        let pid = seen.process.pid;
        self.watcher.leave_alone(pid);
        tell(WatchEvent::Started(&seen));
        self.seen.push(seen);
    }

    /// The program that started `process` with the rest of its own command line.
    fn under(&self, parent: u32, process: &Process) -> Option<String> {
        let line = self.lines.get(&parent)?.last()?;
        let rest = &process.argv[1..];
        let starts_it = line.len() > rest.len() + 1 && !rest.is_empty() && line.ends_with(rest);
        let name = line
            .iter()
            .find(|word| {
                !matches!(role::name_of(word), "bash" | "sh" | "env") && !word.starts_with('-')
            })
            .filter(|_| starts_it)?;
        let name = role::name_of(name);
        (!HARMLESS.contains(&name)).then(|| name.to_owned())
    }

    fn ended(&mut self, pid: u32) {
        if let Some((command, has_ended)) = &mut self.command
            && *command == pid
        {
            *has_ended = true;
        }
        self.others.remove(&pid);
        self.lines.remove(&pid);
        let of_it = |seen: &&mut Seen| seen.process.pid == pid && seen.is_alive;
        for seen in self.seen.iter_mut().filter(of_it) {
            seen.is_alive = false;
            self.quiet_since = Instant::now();
        }
    }

    /// Processes that may be servers about to listen: id, and the port of a server that names it.
    fn candidates(&self) -> Vec<Candidate> {
        let servers = self
            .seen
            .iter()
            .filter(|seen| seen.role == Role::Server && seen.is_alive && seen.answer.is_none())
            .map(|seen| {
                let argv: Vec<&str> = seen.process.argv.iter().map(String::as_str).collect();
                let port = role::flag(&argv, &["--port"]).and_then(|port| port.parse().ok());
                (seen.process.pid, Some(port.unwrap_or(0)))
            });
        servers
            .chain(self.others.keys().map(|pid| (*pid, None)))
            .collect()
    }

    fn answered(&mut self, pid: u32, answer: Answer, tell: &mut dyn FnMut(WatchEvent<'_>)) {
        if let Some((process, placement)) = self.others.remove(&pid) {
            let seen = Seen {
                role: Role::Server,
                front: Vec::new(),
                under: None,
                placement,
                process,
                answer: None,
                is_alive: true,
            };
            self.add(seen, tell);
        }
        if let Some(seen) = self
            .seen
            .iter_mut()
            .find(|seen| seen.process.pid == pid && seen.answer.is_none())
        {
            seen.answer = Some(answer);
            tell(WatchEvent::Ready(seen));
        }
    }

    fn ending(&self, until: Until, all_ended: bool) -> Option<Ending> {
        let of = |role| self.seen.iter().filter(move |seen| seen.role == role);
        let is_ready = of(Role::Server).any(|seen| seen.answer.is_some());
        let benchmarks = of(Role::Benchmark).count() > 0;
        let busy = of(Role::Benchmark).any(|seen| seen.is_alive);
        let serving = of(Role::Server).any(|seen| seen.is_alive);
        let quiet = |least| self.quiet_since.elapsed() >= least;
        let command_ended = self.command.is_some_and(|(_, has_ended)| has_ended);
        if all_ended {
            return Some(Ending::Exited);
        }
        if until == Until::Ready && is_ready {
            return Some(Ending::Reached);
        }
        // The script has exited and left its server running, so nothing more will come.
        if command_ended && is_ready && serving && !busy {
            return Some(Ending::Reached);
        }
        if until == Until::Benchmark && benchmarks && !busy && is_ready && quiet(SETTLED) {
            return Some(Ending::Reached);
        }
        let servers = of(Role::Server).count() > 0;
        if servers && !serving && !is_ready && !busy && quiet(RESTART) {
            return Some(Ending::ServerEnded);
        }
        None
    }
}

/// Programs that start the rest of their line and change only its environment or its lifetime.
const HARMLESS: [&str; 22] = [
    "timeout",
    "time",
    "uv",
    "uvx",
    "conda",
    "mamba",
    "micromamba",
    "poetry",
    "pixi",
    "pdm",
    "sudo",
    "doas",
    "setsid",
    "nohup",
    "script",
    "stdbuf",
    "xargs",
    "parallel",
    "env",
    "tini",
    "dumb-init",
    "su",
];

/// The command that preceded a process and became it: an earlier command line of the same process that ends with this
/// one and begins with a relevant wrapper.
fn front(before: &[Vec<String>], process: &Process) -> Vec<String> {
    let wrapped = before.iter().find(|line| {
        let first = line.first().map_or("", |first| role::name_of(first));
        // `timeout` remains the parent process, and its child is a copy of it for a moment.
        first != "timeout"
            && role::KEPT.iter().any(|(name, _)| *name == first)
            && line.ends_with(&process.argv)
    });
    wrapped.map_or_else(Vec::new, |line| {
        line[..line.len() - process.argv.len()].to_vec()
    })
}

/// A process that may be a server about to listen: its id, and the port if it is a server by its command line, 0 if
/// that names none.
type Candidate = (u32, Option<u16>);

/// Polls candidates for readiness in a thread of its own, because a response may take seconds.
struct Prober {
    wanted: Arc<Mutex<Vec<Candidate>>>,
    answers: Receiver<(u32, Answer)>,
    stop: Arc<AtomicBool>,
}

impl Prober {
    fn start() -> Self {
        let (sender, answers) = channel();
        let wanted = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (asked, stopped) = (Arc::clone(&wanted), Arc::clone(&stop));
        thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let candidates: Vec<Candidate> =
                    asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
                for (pid, port) in candidates {
                    if !probe(pid, port, &sender) {
                        return;
                    }
                }
                thread::sleep(ASK_EVERY);
            }
        });
        Self {
            wanted,
            answers,
            stop,
        }
    }

    fn ask(&self, candidates: Vec<Candidate>) {
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) = candidates;
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Polls one candidate; `false` when the receiver is gone.
///
/// Only sockets of the process itself are tried, never those of its ranks, which may be rendezvous ports and should
/// not receive HTTP.
fn probe(pid: u32, server: Option<u16>, answers: &Sender<(u32, Answer)>) -> bool {
    let named = server.filter(|port| *port != 0);
    for address in ports::listening(&[pid]) {
        if named.is_some_and(|port| port != address.port()) {
            continue;
        }
        let url = url(address);
        let is_up = client::is_up(&url, ASK);
        let info = is_up.then(|| client::server_info(&url)).flatten();
        let is_sglang = info
            .as_ref()
            .is_some_and(|info| info["model_path"].is_string());
        if is_up && (server.is_some() || is_sglang) {
            return answers.send((pid, Answer { address, info })).is_ok();
        }
    }
    true
}

/// Where a listener is reached from this machine.
fn url(address: SocketAddr) -> String {
    let host = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        // A socket on any IPv6 address accepts IPv4 as well by default.
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    format!("http://{}", SocketAddr::new(host, address.port()))
}

/// Checks once whether a running process is a server: for `init --pid`.
pub fn ask(pid: u32) -> Option<Answer> {
    let (sender, answers) = channel();
    probe(pid, None, &sender);
    answers.try_recv().ok().map(|(_, answer)| answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(line: &str) -> Process {
        Process {
            pid: 7,
            argv: line.split(' ').map(str::to_owned).collect(),
            env: BTreeMap::new(),
            folder: "/".into(),
            program: "/usr/bin/python3".into(),
        }
    }

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_wrapper_that_became_the_server_stays_in_front_of_it() {
        let server = process("python3 -m sglang.launch_server");
        let before = [
            words("bash launch.sh"),
            words("numactl -N 0 python3 -m sglang.launch_server"),
        ];
        assert_eq!(front(&before, &server), words("numactl -N 0"));
        assert!(front(&before[..1], &server).is_empty());
    }

    #[test]
    fn what_a_server_runs_under_is_named_unless_it_changes_nothing() {
        let server = process("python3 -m sglang.launch_server");
        let under = |line: &str| {
            let mut view = View::new(1);
            view.lines.insert(3, vec![words(line)]);
            view.under(3, &server)
        };
        assert_eq!(
            under("bash loadTracer.sh python3 -m sglang.launch_server").as_deref(),
            Some("loadTracer.sh")
        );
        assert_eq!(
            under("rocprofv3 --stats -- python3 -m sglang.launch_server").as_deref(),
            Some("rocprofv3")
        );
        assert_eq!(under("timeout 60 python3 -m sglang.launch_server"), None);
        assert_eq!(under("bash launch.sh"), None);
    }
}
