//! The keeper: a small process between gemmtune and one child.
//!
//! It runs in the hidden subcommand `gemmtune keeper`. It starts no process other than its child and ends no process
//! other than its own descendants.

use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use super::tree;

/// The byte on the lifeline that asks the keeper to end the tree with its grace period; closing the lifeline asks the
/// same.
pub(super) const STOP: u8 = b's';

/// The byte on the lifeline that means: kill now, without a grace period. It may follow a [`STOP`].
pub(super) const KILL_NOW: u8 = b'k';

/// The keeper's exit code when its child could not be started; the reason is on standard error.
pub const CANNOT_START: u8 = 127;

/// How often a lingering keeper checks whether any descendant is left.
const LINGER_POLL: Duration = Duration::from_millis(100);

enum Woken {
    Exited(std::io::Result<ExitStatus>),
    Lifeline { kill_now: bool },
}

/// Runs `command` until it exits or the lifeline closes, then ends every process it left running. With `linger`, such
/// processes may outlive it until they exit or the lifeline closes.
///
/// `lifeline` is the number of an inherited descriptor: the read end of a pipe whose write end only gemmtune holds.
/// The return value is the exit code for this process: the child's own, 128 plus the signal that ended it, or
/// [`CANNOT_START`] with the error.
pub fn keep(
    lifeline: u32,
    grace: Duration,
    linger: bool,
    command: &[String],
) -> (u8, Option<std::io::Error>) {
    let Some((program, arguments)) = command.split_first() else {
        return (CANNOT_START, Some(std::io::Error::other("keep no command")));
    };
    if let Err(error) = nix::sys::prctl::set_child_subreaper(true) {
        return (CANNOT_START, Some(error.into()));
    }
    // Opening the descriptor by name gives an owned one without unsafe code. The child inherits the
    // original, a read end, which cannot hold the lifeline open.
    let mut pipe = match fs_err::File::open(format!("/proc/self/fd/{lifeline}")) {
        Ok(pipe) => pipe,
        Err(error) => return (CANNOT_START, Some(error)),
    };
    let mut child = match Command::new(program).args(arguments).spawn() {
        Ok(child) => child,
        Err(error) => {
            let named = std::io::Error::new(error.kind(), format!("start `{program}`: {error}"));
            return (CANNOT_START, Some(named));
        }
    };
    let (sender, receiver) = channel();
    let lifeline_sender = sender.clone();
    thread::spawn(move || {
        let mut byte = [STOP];
        loop {
            let open = matches!(pipe.read(&mut byte), Ok(1));
            let kill_now = open && byte[0] == KILL_NOW;
            if lifeline_sender.send(Woken::Lifeline { kill_now }).is_err() || !open {
                return;
            }
        }
    });
    thread::spawn(move || {
        let _ = sender.send(Woken::Exited(child.wait()));
    });
    let status = match receiver.recv() {
        Ok(Woken::Exited(status)) => {
            let mut kill_now = false;
            while linger && !tree::descendants(std::process::id()).is_empty() {
                match receiver.recv_timeout(LINGER_POLL) {
                    Ok(Woken::Lifeline { kill_now: now }) => {
                        kill_now = now;
                        break;
                    }
                    Ok(Woken::Exited(_)) | Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            end_all(if kill_now { Duration::ZERO } else { grace }, &receiver);
            status.ok()
        }
        Ok(Woken::Lifeline { kill_now }) => {
            end_all(if kill_now { Duration::ZERO } else { grace }, &receiver)
        }
        Err(_) => None,
    };
    (status.map_or(CANNOT_START, exit_code), None)
}

/// Ends all descendants; returns the child's status if it arrives meanwhile.
fn end_all(grace: Duration, receiver: &Receiver<Woken>) -> Option<ExitStatus> {
    let mut status = None;
    let mut kill_now = false;
    let mut take = |kill_now: &mut bool| {
        for woken in receiver.try_iter() {
            match woken {
                Woken::Exited(exited) => status = exited.ok(),
                Woken::Lifeline { kill_now: now } => *kill_now |= now,
            }
        }
        *kill_now
    };
    tree::end_descendants(std::process::id(), grace, || take(&mut kill_now));
    // The waiting thread reports within moments once the child is dead.
    for _ in 0..20 {
        take(&mut kill_now);
        thread::sleep(Duration::from_millis(1));
    }
    status
}

fn exit_code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code as u8,
        (None, Some(signal)) => 128_u8.wrapping_add(signal as u8),
        (None, None) => CANNOT_START,
    }
}
