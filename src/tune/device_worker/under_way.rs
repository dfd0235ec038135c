//! Requests that use a device worker's device: sent, answered, overdue, or failed.

use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::talk::{check_time, garbled, launch_time};
use super::{DeviceWorker, Entrant, Stop, used};
use crate::tune::protocol::{Answer, Numerics, Outcome, RequestKind, Samples, Timing};
use crate::tune::task::Task;
use crate::tune::worker::Fault;

/// Failed run-offs of one race without an identified cause before pairs are tried.
const RUN_OFF_FAULTS: u32 = 2;

/// The work that a request does for a race.
#[derive(Clone, Debug)]
pub(super) enum Work {
    /// See [`super::Step::Time`]; the candidates are compiled.
    Time(Vec<Entrant>, Timing),
    /// See [`super::Step::RunOff`].
    RunOff(Vec<Entrant>, Timing),
    /// See [`super::Step::Check`].
    Check(Entrant),
}

impl Work {
    fn entrants(&self) -> &[Entrant] {
        match self {
            Self::Time(entrants, _) | Self::RunOff(entrants, _) => entrants,
            Self::Check(entrant) => std::slice::from_ref(entrant),
        }
    }
}

/// A request that was sent and not answered yet.
#[derive(Debug)]
pub(super) struct UnderWay<'a> {
    id: u64,
    /// The race it belongs to.
    key: u64,
    work: Work,
    sent: Instant,
    /// Device time that it may take.
    takes: Duration,
    /// Prevents other device workers from measuring, if only one may at a time.
    _alone: Option<MutexGuard<'a, ()>>,
}

impl<P: Task> DeviceWorker<'_, P> {
    /// Whether the worker may be sent another request.
    pub(super) fn has_room(&self) -> bool {
        if self.single_file > 0 {
            return self.under_way.is_empty() && self.asked.is_empty();
        }
        self.under_way.len() < self.shared.backend.pace().under_way
    }

    /// Whether race `index` is waiting for an answer.
    pub(super) fn is_under_way(&self, index: usize) -> bool {
        let key = self.open[index].key;
        self.under_way.iter().any(|request| request.key == key)
    }

    /// Sends a request of race `index`.
    pub(super) fn begin(&mut self, index: usize, work: Work) -> Result<(), Stop> {
        let shared = self.shared;
        let gate = shared.gate.as_ref();
        let alone = gate.map(|gate| gate.lock().unwrap_or_else(PoisonError::into_inner));
        let open = &self.open[index];
        let shape = open.shape.clone();
        let candidates = work
            .entrants()
            .iter()
            .map(|entrant| open.candidates[*entrant].clone())
            .collect();
        let deadlines = shared.backend.pace().deadlines;
        let (ask, takes) = match work {
            Work::Time(ref entrants, timing) | Work::RunOff(ref entrants, timing) => (
                RequestKind::Time {
                    shape,
                    candidates,
                    timing,
                },
                launch_time(&deadlines, open, entrants.len(), timing),
            ),
            Work::Check(_) => (
                RequestKind::Check { shape, candidates },
                check_time(&deadlines, &open.shape),
            ),
        };
        let sent = match self.worker.as_mut() {
            Some(worker) => worker.send(ask, 1),
            None => Err(Fault::Start("no worker could be started".to_owned())),
        };
        self.under_way.push(UnderWay {
            // A request that could not be sent is never answered, so its number does not matter.
            id: sent.as_ref().copied().unwrap_or_default(),
            key: open.key,
            work,
            sent: Instant::now(),
            takes,
            _alone: alone,
        });
        match sent {
            Ok(_) => Ok(()),
            Err(fault) => self.died(&fault),
        }
    }

    /// Processes an answer to one of the requests in flight; returns any other.
    pub(super) fn answer(&mut self, id: u64, answer: Answer) -> Result<Option<Answer>, Stop> {
        let Some(place) = self.under_way.iter().position(|request| request.id == id) else {
            return Ok(Some(answer));
        };
        let request = &self.under_way[place];
        let Some(index) = self.race(request.key) else {
            self.under_way.remove(place);
            return Ok(None);
        };
        let work = request.work.clone();
        let count = work.entrants().len();
        let fault = match (&work, answer) {
            (
                Work::Time(entrants, _),
                Answer::Timed {
                    outcomes,
                    busy_s,
                    clocks_mhz,
                    throttle_reasons,
                },
            ) if outcomes.len() == count => {
                self.tell_clocks(&clocks_mhz, throttle_reasons);
                self.answered(place, index, busy_s);
                for (entrant, outcome) in entrants.iter().zip(outcomes) {
                    self.record(index, *entrant, outcome);
                }
                return Ok(None);
            }
            (
                Work::RunOff(entrants, timing),
                Answer::Timed {
                    outcomes,
                    busy_s,
                    clocks_mhz,
                    throttle_reasons,
                },
            ) if outcomes.len() == count => {
                self.tell_clocks(&clocks_mhz, throttle_reasons);
                self.answered(place, index, busy_s);
                self.ran_off(index, entrants, *timing, outcomes);
                return Ok(None);
            }
            (
                Work::Check(entrant),
                Answer::Checked {
                    mut outcomes,
                    busy_s,
                },
            ) if outcomes.len() == count => {
                self.answered(place, index, busy_s);
                self.checked(index, *entrant, outcomes.remove(0));
                return Ok(None);
            }
            (_, Answer::Failed { error }) => Fault::Failed(error),
            (_, other) => garbled(&other),
        };
        self.died(&fault).map(|()| None)
    }

    /// Removes request number `place`, which belonged to race `index`.
    fn answered(&mut self, place: usize, index: usize, busy_s: f64) {
        // Requests take turns. What they take of the device is reckoned generously: what is beyond was no launch.
        let takes = self.under_way.iter().map(|request| request.takes).sum();
        let request = self.under_way.remove(place);
        let waited = request.sent.max(self.answered).elapsed();
        self.lost(used::beyond(waited, takes));
        self.answered = Instant::now();
        self.single_file = self.single_file.saturating_sub(1);
        self.held(index, busy_s);
    }

    /// The index of the race `key`; a race that is waiting for an answer stays open until it has it.
    fn race(&self, key: u64) -> Option<usize> {
        self.open.iter().position(|open| open.key == key)
    }

    fn ran_off(
        &mut self,
        index: usize,
        entrants: &[Entrant],
        timing: Timing,
        outcomes: Vec<Outcome<Samples>>,
    ) {
        let mut samples = Vec::new();
        for (entrant, outcome) in entrants.iter().zip(outcomes) {
            match outcome {
                Outcome::Done { result } if result.us.len() == timing.samples as usize => {
                    samples.push(result.us);
                }
                Outcome::Done { result } => self.refuse(
                    index,
                    *entrant,
                    format!("{} of {} samples", result.us.len(), timing.samples),
                ),
                Outcome::Refused { reason, detail } => {
                    self.refuse(index, *entrant, format!("{reason:?}: {detail}"));
                }
            }
        }
        if samples.len() == entrants.len() {
            for (entrant, us) in entrants.iter().zip(&samples) {
                self.tell_timed(index, *entrant, us.clone());
            }
            self.open[index].race.ran_off(&samples);
        }
    }

    pub(super) fn checked(&mut self, index: usize, entrant: Entrant, outcome: Outcome<Numerics>) {
        match outcome {
            Outcome::Done { result } => {
                if !self.open[index].race.checked(entrant, result) {
                    let evidence = format!(
                        "wrong numbers: {} elements not finite, {:.4} of the elements off, repeatable: {}",
                        result.not_finite, result.err_ratio, result.repeatable
                    );
                    self.quarantine(index, entrant, &evidence);
                }
            }
            Outcome::Refused { reason, detail } => {
                self.refuse(index, entrant, format!("{reason:?}: {detail}"));
            }
        }
    }

    /// Gives up a worker that is late with a request or with compiling.
    pub(super) fn watch_deadlines(&mut self) -> Result<(), Stop> {
        let deadlines = self.shared.backend.pace().deadlines;
        let (limit, since) = match self.under_way.first() {
            // Requests in flight together take turns: the first may have to wait for all of another.
            Some(first) => (
                deadlines.floor + self.under_way.iter().map(|request| request.takes).sum(),
                first.sent.max(self.answered),
            ),
            None if self.asked.is_empty() => return Ok(()),
            None => (deadlines.prepare, self.heard),
        };
        match self.worker.as_ref() {
            Some(worker) if since.elapsed() > limit => {
                let late = worker.late(limit);
                self.died(&late)
            }
            _ => Ok(()),
        }
    }

    /// The worker is lost: determines the cause.
    pub(super) fn died(&mut self, fault: &Fault) -> Result<(), Stop> {
        if *fault == Fault::Interrupted {
            return Err(Stop::Interrupted);
        }
        let mut lost = std::mem::take(&mut self.under_way);
        // A candidate can be tried alone; a run-off cannot, and may have been killed by what was being compiled.
        let run_off = matches!(
            lost[..],
            [UnderWay {
                work: Work::RunOff(..),
                ..
            }]
        );
        if lost.len() > 1 || run_off && !self.asked.is_empty() {
            // Their races will send them again.
            self.single_file = lost.len();
            return self.restart(&fault.to_string());
        }
        let Some(UnderWay { key, work, .. }) = lost.pop() else {
            return self.died_preparing(fault);
        };
        self.single_file = self.single_file.saturating_sub(1);
        let Some(index) = self.race(key) else {
            return self.restart(&fault.to_string());
        };
        match work {
            Work::Time(entrants, timing) => {
                for (entrant, outcome) in self.each_alone(index, &entrants, timing, fault)? {
                    self.record(index, entrant, outcome);
                }
            }
            Work::RunOff(entrants, timing) => {
                // An entrant that fails alone too is out, and the run-off restarts without it.
                let lived = self.each_alone(index, &entrants, timing, fault)?;
                let open = &mut self.open[index];
                open.run_off_faults += u32::from(lived.len() == entrants.len());
                if open.run_off_faults > RUN_OFF_FAULTS {
                    self.blame_pairs(index, &entrants, timing)?;
                }
            }
            Work::Check(entrant) => self.check_alone(index, entrant, fault)?,
        }
        Ok(())
    }
}
