//! A worker process: starting it, sending requests, waiting for replies with a deadline, and ending its whole process
//! tree.
//!
//! This file handles lines and deadlines. Which requests to send, and what a fault means for a candidate, is decided
//! by [`super::device_worker`].

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, PipeReader, PipeWriter, Read, Write as _};
use std::os::fd::AsRawFd as _;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;

use super::protocol::{Reply, Request, RequestKind, STDOUT_MARKER};
use crate::proc::interrupt::Urgency;
use crate::proc::{Interrupt, Keeper, KeptChild, Pipes, Spawn, SpawnError};

/// A longer reply is invalid: the longest, `hello` with a list of kernels, is some tens of kilobytes.
const LONGEST_REPLY: u64 = 16 << 20;

/// How much of the end of a worker's log goes into the evidence of a fault, bytes.
const LOG_TAIL: u64 = 2000;

/// How to start workers.
#[derive(Clone, Debug)]
pub struct WorkerCommand {
    /// Program and arguments of the worker itself.
    pub argv: Vec<String>,
    /// What precedes it: empty for this host, `["srun", "--ntasks=1", "--gpus-per-task=1"]` for Slurm. With a
    /// launcher, replies are marked lines on standard output.
    pub launcher: Vec<String>,
    /// Variables set or removed relative to our own environment.
    pub env: std::collections::BTreeMap<String, Option<String>>,
}

impl WorkerCommand {
    /// The command line of the worker for device `index` that replies on `reply_fd`.
    fn command_line(&self, index: u32, reply_fd: &str) -> Vec<String> {
        let mut argv = self.launcher.clone();
        argv.extend(self.argv.iter().cloned());
        argv.extend(["--device".to_owned(), index.to_string()]);
        argv.extend(["--reply-fd".to_owned(), reply_fd.to_owned()]);
        argv
    }
}

/// What went wrong with a worker.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Fault {
    /// It could not be started.
    #[error("start the worker: {0}")]
    Start(String),
    /// It ended, or closed its replies.
    #[error("hear from the worker: it exited with code {code}{log}")]
    Died {
        /// Exit code, 128 + n for signal n.
        code: u8,
        /// The end of its log, on lines of its own.
        log: String,
    },
    /// It did not reply in time.
    #[error("hear from the worker: no reply within {limit:?}{log}")]
    Late {
        limit: Duration,
        /// The end of its log.
        log: String,
    },
    /// It wrote something that is not a reply to the request.
    #[error("understand the worker: `{line}`{log}")]
    Garbled {
        /// The beginning of what it wrote.
        line: String,
        /// The end of its log.
        log: String,
    },
    /// It reported that it could not serve the request.
    #[error("serve the request: {0}")]
    Failed(String),
    /// The user requested a stop while we waited.
    #[error("wait for the worker: interrupted")]
    Interrupted,
}

/// A running worker. Dropping it ends its whole process tree at once.
#[derive(Debug)]
pub struct Worker {
    kept: KeptChild,
    stdin: PipeWriter,
    replies: Receiver<Line>,
    early: VecDeque<Reply>,
    next_id: u64,
    log: Utf8PathBuf,
    /// Where this worker's output begins in the log; what precedes it is an earlier worker's.
    log_start: u64,
}

#[derive(Debug)]
enum Line {
    Reply(Box<Reply>),
    Garbled(String),
    End,
}

/// Held while a worker is started: a reply pipe that a second child inherits would stay open when its own worker
/// dies. (Its death is noticed nevertheless, but later.)
static STARTING: Mutex<()> = Mutex::new(());

impl Worker {
    /// Starts the worker for device `index`; its other output is written to `log`.
    pub fn start(
        command: &WorkerCommand,
        index: u32,
        log: &Utf8Path,
        keeper: &Keeper,
    ) -> Result<Self, Fault> {
        let broken = |error: std::io::Error| Fault::Start(error.to_string());
        let (child_stdin, stdin) = std::io::pipe().map_err(broken)?;
        let (reader, reply_end) = std::io::pipe().map_err(broken)?;
        let log_start = fs_err::metadata(log).map_or(0, |data| data.len());
        let marked = !command.launcher.is_empty();
        let reply_fd = if marked {
            "stdout".to_owned()
        } else {
            reply_end.as_raw_fd().to_string()
        };
        let mut spawn = Spawn::new(command.command_line(index, &reply_fd), log);
        spawn.env.clone_from(&command.env);
        spawn.grace = Duration::from_secs(2);
        let mut pipes = Pipes {
            stdin: Some(child_stdin),
            ..Pipes::default()
        };
        if marked {
            pipes.stdout = Some(reply_end);
        } else {
            pipes.inherited = Some(reply_end);
        }
        let kept = {
            let _one_at_a_time = STARTING
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            spawn.start_piped(keeper, pipes)
        }
        .map_err(|error| Fault::Start(with_cause(&error)))?;
        Ok(Self {
            kept,
            stdin,
            replies: listen(reader, marked, log.to_owned()).map_err(broken)?,
            early: VecDeque::new(),
            next_id: 1,
            log: log.to_owned(),
            log_start,
        })
    }

    /// Sends a request and returns its id.
    pub fn send<P: Serialize>(&mut self, ask: RequestKind<P>, attempt: u32) -> Result<u64, Fault> {
        let id = self.next_id;
        self.next_id += 1;
        let request = Request { id, attempt, ask };
        let mut line = serde_json::to_string(&request)
            .map_err(|error| Fault::Start(format!("write the request: {error}")))?;
        line.push('\n');
        // A broken pipe is less informative than the exit code that explains it.
        match self.stdin.write_all(line.as_bytes()) {
            Ok(()) => Ok(id),
            Err(_) => Err(self.death()),
        }
    }

    /// Waits for at most `limit` for the reply to `id`. Other replies are kept for [`Worker::other`].
    pub fn reply_to(
        &mut self,
        id: u64,
        limit: Duration,
        interrupt: &Interrupt,
    ) -> Result<Reply, Fault> {
        let until = Instant::now() + limit;
        loop {
            match self.next_line(until, interrupt)? {
                Some(reply) if reply.id == id => return Ok(reply),
                Some(reply) => self.early.push_back(reply),
                None => return Err(self.late(limit)),
            }
        }
    }

    /// The fault of a worker that did not reply within `limit`.
    pub fn late(&self, limit: Duration) -> Fault {
        let log = self.log_tail();
        Fault::Late { limit, log }
    }

    /// Waits for at most `limit` for any reply; `None` if there was none.
    pub fn other(
        &mut self,
        limit: Duration,
        interrupt: &Interrupt,
    ) -> Result<Option<Reply>, Fault> {
        if let Some(reply) = self.early.pop_front() {
            return Ok(Some(reply));
        }
        self.next_line(Instant::now() + limit, interrupt)
    }

    /// Asks the worker to end and waits a little; if it does not, dropping it ends it.
    pub fn quit(mut self, interrupt: &Interrupt) {
        if self.send(RequestKind::<()>::Quit, 1).is_ok() {
            let _ = self.kept.wait(Duration::from_secs(2), interrupt);
        }
        self.kept.stop(Urgency::Kill, interrupt);
    }

    fn next_line(&mut self, until: Instant, interrupt: &Interrupt) -> Result<Option<Reply>, Fault> {
        loop {
            // In slices, because an interrupt, and a death whose pipe stays open, are noticed differently.
            let now = Instant::now();
            let slice = until
                .saturating_duration_since(now)
                .min(Duration::from_millis(50));
            match self.replies.recv_timeout(slice) {
                Ok(Line::Reply(reply)) => return Ok(Some(*reply)),
                Ok(Line::Garbled(line)) => {
                    return Err(Fault::Garbled {
                        line,
                        log: self.log_tail(),
                    });
                }
                Ok(Line::End) | Err(RecvTimeoutError::Disconnected) => return Err(self.death()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if interrupt.is_raised() {
                return Err(Fault::Interrupted);
            }
            if self.kept.exited().is_some() {
                // Its last reply may still be in the channel.
                return match self.replies.recv_timeout(Duration::from_millis(100)) {
                    Ok(Line::Reply(reply)) => Ok(Some(*reply)),
                    _ => Err(self.death()),
                };
            }
            if Instant::now() >= until {
                return Ok(None);
            }
        }
    }

    /// The fault of a worker that closed its pipes; ends what is left of it.
    fn death(&mut self) -> Fault {
        let ended = self.kept.wait(Duration::from_secs(2), &Interrupt::new());
        let code = match ended {
            crate::proc::WaitOutcome::Exited(code) => code,
            _ => self.kept.stop(Urgency::Kill, &Interrupt::new()),
        };
        Fault::Died {
            code,
            log: self.log_tail(),
        }
    }

    fn log_tail(&self) -> String {
        log_tail(&self.log, self.log_start)
    }
}

/// The end of the log at `path` from byte `start` on, indented, on lines of its own; empty when there is
/// nothing to read.
fn log_tail(path: &Utf8Path, start: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        use std::io::{Seek as _, SeekFrom};
        let mut file = fs_err::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(start.max(length.saturating_sub(LOG_TAIL))))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim();
    if text.is_empty() {
        return String::new();
    }
    format!("\n    {}", text.replace('\n', "\n    "))
}

fn with_cause(error: &SpawnError) -> String {
    use std::error::Error as _;
    error
        .source()
        .map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// Reads reply lines on a separate thread until the pipe ends.
fn listen(reader: PipeReader, marked: bool, log: Utf8PathBuf) -> std::io::Result<Receiver<Line>> {
    let (sender, receiver) = channel();
    thread::Builder::new()
        .name("replies".to_owned())
        .spawn(move || {
            let mut reader = BufReader::new(reader);
            let mut bytes = Vec::new();
            loop {
                bytes.clear();
                let read = (&mut reader)
                    .take(LONGEST_REPLY)
                    .read_until(b'\n', &mut bytes);
                let line = match read {
                    Ok(0) | Err(_) => Line::End,
                    // A last line without a line end was cut off by a death.
                    Ok(_)
                        if bytes.last() != Some(&b'\n') && (bytes.len() as u64) < LONGEST_REPLY =>
                    {
                        Line::End
                    }
                    Ok(_) => {
                        let Some(line) = understood(&bytes, marked) else {
                            append_to_log(&log, &bytes);
                            continue;
                        };
                        line
                    }
                };
                let last = !matches!(line, Line::Reply(_));
                if sender.send(line).is_err() || last {
                    return;
                }
            }
        })?;
    Ok(receiver)
}

/// Parses a line as a reply; `None` for a stray print on a shared stream.
fn understood(bytes: &[u8], marked: bool) -> Option<Line> {
    let line = if marked {
        bytes.strip_prefix(STDOUT_MARKER.as_bytes())?
    } else {
        bytes
    };
    Some(match serde_json::from_slice::<Reply>(line) {
        Ok(reply) => Line::Reply(Box::new(reply)),
        Err(_) => Line::Garbled(
            String::from_utf8_lossy(&bytes[..bytes.len().min(200)])
                .trim_end()
                .to_owned(),
        ),
    })
}

fn append_to_log(log: &Utf8Path, bytes: &[u8]) {
    let opened = fs_err::OpenOptions::new().append(true).open(log);
    if let Ok(mut file) = opened {
        let _ = file.write_all(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_marked_lines_count_on_a_shared_stream() {
        let reply = r#"{"id":1,"attempt":1,"answer":{"kind":"bye"}}"#;
        assert!(understood(b"srun: job 7 queued\n", true).is_none());
        assert!(matches!(
            understood(format!("{STDOUT_MARKER}{reply}\n").as_bytes(), true),
            Some(Line::Reply(_))
        ));
        assert!(matches!(
            understood(b"hello from a library\n", false),
            Some(Line::Garbled(line)) if line == "hello from a library"
        ));
    }

    #[test]
    fn the_launcher_goes_first_and_moves_replies_to_standard_output() {
        let command = WorkerCommand {
            argv: vec!["worker".to_owned(), "serve".to_owned()],
            launcher: vec!["srun".to_owned(), "-n1".to_owned()],
            env: std::collections::BTreeMap::new(),
        };
        assert_eq!(
            command.command_line(2, "stdout").join(" "),
            "srun -n1 worker serve --device 2 --reply-fd stdout"
        );
    }
}
