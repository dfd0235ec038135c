//! Decides whether a tuner is started again.

use std::time::Instant;

use super::attempt::Left;
use super::queue::Why;
use crate::proc::Interrupt;

/// How often the tuner may be ended by a signal before it has begun a batch.
const FALSE_STARTS: u32 = 3;

/// The starts of one run.
pub(super) struct Starts<'a> {
    interrupt: &'a Interrupt,
    until: Option<Instant>,
    failed: u32,
}

impl<'a> Starts<'a> {
    /// Starts of a run that ends with `interrupt`, or at `until`.
    pub(super) fn new(interrupt: &'a Interrupt, until: Option<Instant>) -> Self {
        Self {
            interrupt,
            until,
            failed: 0,
        }
    }

    /// Why there is no further start.
    pub(super) fn over(&self) -> Option<Why> {
        if self.interrupt.is_raised() {
            return Some(Why::Interrupted);
        }
        let spent = self.until.is_some_and(|until| Instant::now() >= until);
        spent.then_some(Why::Budget)
    }

    /// The same after an attempt; an error with the exit code if the tuner is broken and would only fail again.
    pub(super) fn after(&mut self, left: &Left) -> Result<Option<Why>, u8> {
        if matches!(left.why, Why::Interrupted | Why::Budget) {
            return Ok(Some(left.why));
        }
        if !left.heard.got_going() {
            self.failed += 1;
            let code = left.code.unwrap_or(0);
            // A signal (128 and more) may have come from anywhere.
            if left.why != Why::Silent && code < 128 || self.failed >= FALSE_STARTS {
                return Err(code);
            }
        }
        Ok(None)
    }
}
