//! Starting a child under a keeper, waiting for it, ending it.

use std::collections::BTreeMap;
use std::io::{PipeReader, PipeWriter, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::interrupt::{Interrupt, Urgency};
use super::keeper::{CANNOT_START, KILL_NOW, STOP};
use super::tree;

/// The binary whose hidden subcommand `keeper` supervises children: gemmtune itself.
#[derive(Clone, Debug)]
pub struct Keeper {
    program: Utf8PathBuf,
}

impl Keeper {
    /// The keeper in the binary at `program`.
    pub fn new(program: Utf8PathBuf) -> Self {
        Self { program }
    }

    /// The keeper in the running binary, which must be gemmtune.
    pub fn this_binary() -> std::io::Result<Self> {
        let program = std::env::current_exe()?;
        let program = Utf8PathBuf::try_from(program).map_err(std::io::Error::other)?;
        Ok(Self { program })
    }

    pub fn program(&self) -> &Utf8Path {
        &self.program
    }
}

/// Failed to start a child.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The keeper itself could not be started, or its files could not be opened.
    #[error("start `{program}`")]
    Start {
        program: String,
        source: std::io::Error,
    },
    /// An empty command line.
    #[error("start a command that is empty")]
    Empty,
}

/// A command to start: argument vector, working folder, environment, and where its output goes.
#[derive(Clone, Debug)]
pub struct Spawn {
    pub argv: Vec<String>,
    /// Working folder; that of this process when absent.
    pub folder: Option<Utf8PathBuf>,
    /// Variables set (`Some`) or removed (`None`) relative to the environment of this process.
    pub env: BTreeMap<String, Option<String>>,
    /// File that standard output is appended to.
    pub stdout: Utf8PathBuf,
    /// File that standard error is appended to; may be the same one.
    pub stderr: Utf8PathBuf,
    /// Time between SIGTERM and SIGKILL for the descendants.
    pub grace: Duration,
    /// Whether processes that the command leaves running outlive it, until [`KeptChild::stop`] or until they exit.
    pub linger: bool,
}

impl Spawn {
    /// A command with both streams appended to `log`, and a grace period of ten seconds.
    pub fn new(argv: Vec<String>, log: &Utf8Path) -> Self {
        Self {
            argv,
            folder: None,
            env: BTreeMap::new(),
            stdout: log.to_owned(),
            stderr: log.to_owned(),
            grace: Duration::from_secs(10),
            linger: false,
        }
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), Some(value.to_owned()));
        self
    }

    pub fn start(&self, keeper: &Keeper) -> Result<KeptChild, SpawnError> {
        self.start_piped(keeper, Pipes::default())
    }

    /// Starts the command under `keeper`, with `pipes` in place of some of its streams.
    pub fn start_piped(&self, keeper: &Keeper, pipes: Pipes) -> Result<KeptChild, SpawnError> {
        let program = self.argv.first().ok_or(SpawnError::Empty)?;
        self.start_inner(keeper, pipes)
            .map_err(|source| SpawnError::Start {
                program: program.clone(),
                source,
            })
    }

    fn start_inner(&self, keeper: &Keeper, pipes: Pipes) -> std::io::Result<KeptChild> {
        let (read_end, lifeline) = std::io::pipe()?;
        let read_end = OwnedFd::from(read_end);
        // Both ends were created close-on-exec. Only the read end is passed on to the keeper; a child that another
        // thread starts at this moment would inherit a read end, which is harmless.
        fcntl(&read_end, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let mut command = Command::new(keeper.program());
        command
            .args(["keeper", "--lifeline-fd"])
            .arg(read_end.as_raw_fd().to_string())
            .arg("--grace-ms")
            .arg(self.grace.as_millis().to_string())
            .args(self.linger.then_some("--linger"))
            .arg("--")
            .args(&self.argv)
            .stdin(pipes.stdin.map_or_else(Stdio::null, Stdio::from))
            .stdout(match pipes.stdout {
                Some(pipe) => Stdio::from(pipe),
                None => append(&self.stdout)?,
            })
            .stderr(append(&self.stderr)?)
            .process_group(0);
        let mark = fresh_mark();
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        for (name, value) in &self.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.env(MARK, &mark);
        if let Some(pipe) = &pipes.inherited {
            fcntl(pipe, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        let child = command.spawn()?;
        Ok(KeptChild::new(child, mark, lifeline, self.grace))
    }
}

/// Pipe ends for a child to communicate with; absent ones leave the stream as [`Spawn`] sets it.
#[derive(Debug, Default)]
pub struct Pipes {
    pub stdin: Option<PipeReader>,
    pub stdout: Option<PipeWriter>,
    /// A descriptor the child inherits under the number it has here; the caller passes it that number.
    ///
    /// A child that another thread starts in the same moment inherits it too and holds it open, so
    /// its reader must not take the end of file as the only sign that the child is gone.
    pub inherited: Option<PipeWriter>,
}

/// Set in every keeper, and so in its tree, to a unique value, by which the tree of a killed keeper is found.
const MARK: &str = "GEMMTUNE_KEEPER";

fn fresh_mark() -> String {
    static STARTED: AtomicU64 = AtomicU64::new(0);
    let serial = STARTED.fetch_add(1, Ordering::Relaxed);
    // Process ids are reused, but not within the same nanosecond.
    let at = jiff::Timestamp::now().as_nanosecond();
    format!("{}-{serial}-{at}", std::process::id())
}

fn append(path: &Utf8Path) -> std::io::Result<Stdio> {
    use fs_err::os::unix::fs::OpenOptionsExt as _;

    // Private, because a server prints the arguments it was started with, API keys included.
    let file = fs_err::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)?;
    Ok(Stdio::from(file.into_parts().0))
}

/// How a wait for a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitOutcome {
    /// It exited with this code; 128 + n for signal n.
    Exited(u8),
    /// The deadline passed; it still runs.
    DeadlinePassed,
    /// The user asked to stop; it still runs.
    Interrupted(Urgency),
}

/// A child under its keeper. Dropping it ends the whole process tree at once.
#[derive(Debug)]
pub struct KeptChild {
    pid: u32,
    lifeline: PipeWriter,
    exit: Receiver<u8>,
    code: Option<u8>,
    grace: Duration,
}

impl KeptChild {
    fn new(mut child: Child, mark: String, lifeline: PipeWriter, grace: Duration) -> Self {
        let (sender, exit) = channel();
        let pid = child.id();
        thread::spawn(move || {
            let code = child.wait().ok().and_then(|status| status.code());
            if code.is_none() {
                // A keeper that was itself killed has no exit code and left its tree running.
                tree::kill_all(|| tree::marked(MARK, &mark));
            }
            let _ = sender.send(code.map_or(CANNOT_START, |code| code as u8));
        });
        Self {
            pid,
            lifeline,
            exit,
            code: None,
            grace,
        }
    }

    /// Process id of the keeper; its descendants are the command's tree.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The exit code, once there is one.
    pub fn exited(&mut self) -> Option<u8> {
        if self.code.is_none() {
            self.code = self.exit.try_recv().ok();
        }
        self.code
    }

    /// Waits until the child exits, `limit` passes or the user requests a stop.
    pub fn wait(&mut self, limit: Duration, interrupt: &Interrupt) -> WaitOutcome {
        let (sender, raised) = channel();
        interrupt.subscribe(sender);
        let until = Instant::now() + limit;
        loop {
            if let Some(code) = self.exited() {
                return WaitOutcome::Exited(code);
            }
            if let Ok(urgency) = raised.try_recv() {
                return WaitOutcome::Interrupted(urgency);
            }
            let now = Instant::now();
            if now >= until {
                return WaitOutcome::DeadlinePassed;
            }
            // Two channels, one thread: wait for the exit in slices too short for a person to notice, and check for
            // an interrupt between them.
            let slice = (until - now).min(Duration::from_millis(50));
            match self.exit.recv_timeout(slice) {
                Ok(code) => self.code = Some(code),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.code = Some(CANNOT_START),
            }
        }
    }

    /// Ends the whole tree: gracefully, or at once when `urgency` is [`Urgency::Kill`] or the user requests that
    /// meanwhile. Returns the exit code.
    pub fn stop(&mut self, urgency: Urgency, interrupt: &Interrupt) -> u8 {
        if let Some(code) = self.exited() {
            return code;
        }
        let (sender, raised) = channel();
        interrupt.subscribe(sender);
        self.ask(if urgency == Urgency::Kill {
            KILL_NOW
        } else {
            STOP
        });
        // The keeper's grace period, and the time after which it gives up killing.
        let until = Instant::now() + self.grace + Duration::from_secs(15);
        while Instant::now() < until {
            if let Ok(code) = self.exit.recv_timeout(Duration::from_millis(20)) {
                self.code = Some(code);
                return code;
            }
            if raised.try_iter().any(|urgency| urgency == Urgency::Kill) {
                self.ask(KILL_NOW);
            }
        }
        CANNOT_START
    }

    fn ask(&mut self, what: u8) {
        // A keeper that has already exited closed its end, and its exit code is collected below.
        let _ = self.lifeline.write_all(&[what]);
    }
}

impl Drop for KeptChild {
    fn drop(&mut self) {
        if self.exited().is_none() {
            self.stop(Urgency::Kill, &Interrupt::new());
        }
    }
}
