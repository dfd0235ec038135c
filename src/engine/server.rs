//! Starting a server, waiting until it is ready, and querying its resolved arguments.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};

use super::port::{PATIENCE as PORT_PATIENCE, wait_for_port};
use crate::proc::interrupt::Urgency;
use crate::proc::{Interrupt, Keeper, KeptChild, Spawn, WaitOutcome, tree};
use crate::run::error::{Error, ErrorKind};
use crate::workload::env::Environment;
use crate::workload::loopback::{agent, take_no_proxy};

/// How a server is started and recognised as ready.
#[derive(Clone, Debug)]
pub struct ServerOrder {
    pub argv: Vec<String>,
    pub folder: Utf8PathBuf,
    /// Environment relative to our own.
    pub env: Environment,
    /// Loopback port it will listen on.
    pub port: u16,
    /// URL that returns 200 once the server is up.
    pub ready_url: String,
    /// Text that its log must contain as well.
    pub ready_log: Option<String>,
    /// How long it may take to become ready.
    pub ready_limit: Duration,
    /// Grace period for its processes between SIGTERM and SIGKILL.
    pub grace: Duration,
}

/// A server that is up. Dropping it ends its whole process tree.
#[derive(Debug)]
pub struct RunningServer {
    kept: KeptChild,
    log: Utf8PathBuf,
    base_url: String,
    ready_seconds: f64,
}

/// How often readiness is checked. A cold SGLang needs minutes, the reference engine milliseconds.
const POLL: Duration = Duration::from_millis(50);

/// After Ctrl-C requests in flight may finish for this long before the server is ended.
const PATIENCE: Duration = Duration::from_secs(2);

/// Time limit of one readiness check: an idle SGLang generates a token to respond.
const ASK: Duration = Duration::from_secs(5);

impl RunningServer {
    /// Starts a server, its output appended to `log`, and waits until it is ready.
    pub fn start(
        order: &ServerOrder,
        log: &Utf8Path,
        keeper: &Keeper,
        interrupt: &Interrupt,
    ) -> Result<Self, Error> {
        wait_for_port(order.port, PORT_PATIENCE, interrupt)?;
        let mut spawn = Spawn::new(order.argv.clone(), log);
        spawn.folder = Some(order.folder.clone());
        spawn.env = order.env.clone();
        take_no_proxy(&mut spawn.env);
        spawn.grace = order.grace;
        let started = Instant::now();
        let kept = spawn
            .start(keeper)
            .map_err(|error| Error::caused(ErrorKind::Environment, &error))?;
        let mut server = Self {
            kept,
            log: log.to_owned(),
            base_url: format!("http://127.0.0.1:{}", order.port),
            ready_seconds: 0.0,
        };
        server.wait_ready(order, started, interrupt)?;
        server.ready_seconds = started.elapsed().as_secs_f64();
        Ok(server)
    }

    fn wait_ready(
        &mut self,
        order: &ServerOrder,
        started: Instant,
        interrupt: &Interrupt,
    ) -> Result<(), Error> {
        let agent = agent(ASK);
        let mut tail = order
            .ready_log
            .as_deref()
            .map(|text| LogTail::new(&self.log, text));
        loop {
            match self.kept.wait(POLL, interrupt) {
                WaitOutcome::Exited(code) => {
                    return Err(Error::new(
                        ErrorKind::ServerNotReady,
                        format!(
                            "the server exited with code {code} before it was ready{}",
                            self.last_words()
                        ),
                    )
                    .hint(format!("read its log: {}", self.log)));
                }
                WaitOutcome::Interrupted(urgency) => {
                    self.kept.stop(urgency, interrupt);
                    return Err(Error::interrupted());
                }
                WaitOutcome::DeadlinePassed => {}
            }
            let logged = tail.as_mut().is_none_or(LogTail::has_come);
            if logged && answers(&agent, &order.ready_url) {
                return Ok(());
            }
            if started.elapsed() > order.ready_limit {
                self.kept.stop(Urgency::Stop, interrupt);
                let missing = if logged {
                    format!("`{}` never answered 200", order.ready_url)
                } else {
                    format!(
                        "its log never said {:?}",
                        order.ready_log.as_deref().unwrap_or_default()
                    )
                };
                return Err(Error::new(
                    ErrorKind::ServerNotReady,
                    format!(
                        "the server was not ready after {:.0} s: {missing}",
                        order.ready_limit.as_secs_f64()
                    ),
                )
                .hint(format!(
                    "read its log: {}; a slow first start needs a larger `server.ready_timeout_s`",
                    self.log
                )));
            }
        }
    }

    /// The URL that requests go to, `http://127.0.0.1:PORT`.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Path of its log.
    pub fn log(&self) -> &Utf8Path {
        &self.log
    }

    /// Seconds from start to ready.
    pub fn ready_seconds(&self) -> f64 {
        self.ready_seconds
    }

    /// An error if the server has ended unexpectedly.
    pub fn check_alive(&mut self) -> Result<(), Error> {
        match self.kept.exited() {
            None => Ok(()),
            Some(code) => Err(Error::new(
                ErrorKind::WorkloadFailed,
                format!(
                    "the server exited with code {code} while it was serving{}",
                    self.last_words()
                ),
            )
            .hint(format!("read its log: {}", self.log))),
        }
    }

    /// Runs `work` against this server on another thread, so that an interrupt or the server's death ends it: the
    /// flag passed to `work` is set, and soon after the server is ended, which aborts hanging requests.
    pub fn ask<T: Send>(
        &mut self,
        interrupt: &Interrupt,
        work: impl FnOnce(&AtomicBool) -> T + Send,
    ) -> Result<T, Error> {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let (sender, done) = channel();
            let stop = &stop;
            scope.spawn(move || {
                // The receiver waits for this or for the end of the thread.
                let _ = sender.send(work(stop));
            });
            let mut asked_to_stop: Option<Instant> = None;
            loop {
                match done.recv_timeout(POLL) {
                    Ok(answer) if asked_to_stop.is_none() => return Ok(answer),
                    Ok(_) => return Err(Error::interrupted()),
                    Err(RecvTimeoutError::Disconnected) => {
                        return Err(Error::new(
                            ErrorKind::Bug,
                            "a thread that asked the server ended without an answer",
                        ));
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                }
                if self.kept.exited().is_some() {
                    stop.store(true, Ordering::Relaxed);
                }
                match (interrupt.urgency(), asked_to_stop) {
                    (Some(_), None) => {
                        stop.store(true, Ordering::Relaxed);
                        asked_to_stop = Some(Instant::now());
                    }
                    (Some(urgency), Some(since))
                        if urgency == Urgency::Kill || since.elapsed() > PATIENCE =>
                    {
                        self.kept.stop(urgency, interrupt);
                    }
                    _ => {}
                }
            }
        })
    }

    /// The resolved arguments that the server reports, if it does.
    pub fn info(&self) -> Option<serde_json::Value> {
        crate::bench::client::server_info(&self.base_url)
    }

    /// The first of its processes that was started with one of `variables` set to the value given here, and which
    /// variable.
    pub fn carrying<'a>(
        &self,
        mut variables: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Option<(u32, &'a str)> {
        let processes = tree::descendants(self.kept.pid());
        variables.find_map(|(name, value)| {
            let carries = |pid: &u32| {
                let environ = fs_err::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                String::from_utf8_lossy(&environ)
                    .split('\0')
                    .filter_map(|variable| variable.strip_prefix(name)?.strip_prefix('='))
                    .any(|carried| is_same(carried, value))
            };
            let pid = processes.iter().copied().find(carries)?;
            Some((pid, name))
        })
    }

    /// Ends the server and everything it started.
    pub fn stop(mut self, interrupt: &Interrupt) {
        self.kept.stop(Urgency::Stop, interrupt);
    }

    /// The last line of its log, as the end of a sentence.
    fn last_words(&self) -> String {
        let text = fs_err::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        text.split(['\n', '\r'])
            .rev()
            .find(|line| !line.trim().is_empty())
            .map_or_else(String::new, |line| {
                let shown: String = line.trim().chars().take(200).collect();
                format!("; its last words: {shown}")
            })
    }
}

/// Whether two values are equal, or lead to the same file: `runs/latest` is a link.
fn is_same(one: &str, other: &str) -> bool {
    let real = |value: &str| Utf8Path::new(value).canonicalize_utf8().ok();
    one == other || real(one).is_some_and(|path| real(other) == Some(path))
}

fn answers(agent: &ureq::Agent, url: &str) -> bool {
    agent
        .get(url)
        .call()
        .is_ok_and(|response| response.status() == 200)
}

/// Searches a growing file for a text, starting where the last search ended.
struct LogTail<'a> {
    path: &'a Utf8Path,
    text: &'a [u8],
    read: u64,
    end: Vec<u8>,
    has_come: bool,
}

impl<'a> LogTail<'a> {
    fn new(path: &'a Utf8Path, text: &'a str) -> Self {
        Self {
            path,
            text: text.as_bytes(),
            read: 0,
            end: Vec::new(),
            has_come: text.is_empty(),
        }
    }

    fn has_come(&mut self) -> bool {
        if self.has_come {
            return true;
        }
        let mut fresh = std::mem::take(&mut self.end);
        if let Ok(mut file) = fs_err::File::open(self.path)
            && file.seek(SeekFrom::Start(self.read)).is_ok()
            && let Ok(read) = file.read_to_end(&mut fresh)
        {
            self.read += read as u64;
        }
        self.has_come = memchr::memmem::find(&fresh, self.text).is_some();
        // The text may span two reads.
        let keep = fresh.len().saturating_sub(self.text.len());
        self.end = fresh.split_off(keep);
        self.has_come
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_arrives_in_two_pieces_is_found() {
        let keep = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::try_from(keep.path().join("log")).unwrap();
        let mut tail = LogTail::new(&path, "ready to roll!");
        assert!(!tail.has_come());
        fs_err::write(&path, "loading\nready to").unwrap();
        assert!(!tail.has_come());
        fs_err::write(&path, "loading\nready to roll!\n").unwrap();
        assert!(tail.has_come());
    }
}
