//! Decides whether a tuner is started again.

use std::time::Instant;

use super::attempt::Left;
use super::queue::EndReason;
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
    pub(super) fn over(&self) -> Option<EndReason> {
        if self.interrupt.is_raised() {
            return Some(EndReason::Interrupted);
        }
        let spent = self.until.is_some_and(|until| Instant::now() >= until);
        spent.then_some(EndReason::Budget)
    }

    /// The same after an attempt; an error with the exit code if the tuner is broken and would only fail again.
    pub(super) fn after(&mut self, left: &Left) -> Result<Option<EndReason>, u8> {
        if matches!(left.why, EndReason::Interrupted | EndReason::Budget) {
            return Ok(Some(left.why));
        }
        if !left.status.got_going() {
            self.failed += 1;
            let code = left.code.unwrap_or(0);
            // A signal (128 and more) may have come from anywhere.
            if left.why != EndReason::Silent && code < 128 || self.failed >= FALSE_STARTS {
                return Err(code);
            }
        }
        Ok(None)
    }
}
