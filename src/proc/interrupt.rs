//! Ctrl-C as a value: waiters are woken, and nothing polls a global flag.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// How urgently the user wants gemmtune to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Finish what is being written, terminate children gracefully, keep the journal.
    Stop,
    /// End children at once.
    Kill,
}

/// A request to stop, shared by everything that waits. Clones are the same request.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    urgency: Option<Urgency>,
    waiters: Vec<Sender<Urgency>>,
}

impl Interrupt {
    /// A request that has not been made yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Turns SIGINT, SIGTERM and SIGHUP of this process into this request: the first means
    /// [`Urgency::Stop`], any later one [`Urgency::Kill`].
    pub fn on_signals(&self) -> std::io::Result<()> {
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
        let interrupt = self.clone();
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                for _ in signals.forever() {
                    interrupt.raise();
                }
            })?;
        Ok(())
    }

    /// Requests a stop; the second call requests an immediate one.
    pub fn raise(&self) {
        let mut state = self.lock();
        let urgency = match state.urgency {
            None => Urgency::Stop,
            Some(_) => Urgency::Kill,
        };
        state.urgency = Some(urgency);
        state.waiters.retain(|waiter| waiter.send(urgency).is_ok());
    }

    /// How urgently a stop was requested; `None` if none was.
    pub fn urgency(&self) -> Option<Urgency> {
        self.lock().urgency
    }

    /// Whether a stop was requested.
    pub fn is_raised(&self) -> bool {
        self.urgency().is_some()
    }

    /// Sends every later request to `waiter`, and an earlier one at once.
    pub fn subscribe(&self, waiter: Sender<Urgency>) {
        let mut state = self.lock();
        let already = state.urgency;
        if already.is_none_or(|urgency| waiter.send(urgency).is_ok()) {
            state.waiters.push(waiter);
        }
    }

    /// Sleeps for `duration`, or until a stop is requested; returns whether one was.
    pub fn sleep(&self, duration: std::time::Duration) -> bool {
        let (sender, receiver) = std::sync::mpsc::channel();
        self.subscribe(sender);
        receiver.recv_timeout(duration).is_ok()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // A panicking waiter cannot leave the two fields inconsistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn the_second_request_is_urgent_and_late_waiters_hear_of_the_first() {
        let interrupt = Interrupt::new();
        assert!(!interrupt.is_raised());
        interrupt.raise();
        let (sender, receiver) = channel();
        interrupt.subscribe(sender);
        interrupt.raise();
        assert_eq!(
            receiver.try_iter().collect::<Vec<_>>(),
            [Urgency::Stop, Urgency::Kill]
        );
    }

    #[test]
    fn a_raised_interrupt_ends_a_sleep_at_once() {
        let interrupt = Interrupt::new();
        interrupt.raise();
        let start = Instant::now();
        assert!(interrupt.sleep(Duration::from_secs(60)));
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}
