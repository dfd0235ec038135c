//! A device worker's communication with its worker: fresh workers, compiling ahead, replies, time limits.

use std::time::{Duration, Instant};

use super::{DeviceWorker, Message, OpenRace, Readiness, Shared, Stop};
use crate::tune::backends::Deadlines;
use crate::tune::protocol::{Answer, Device, Outcome, RequestKind, Timing, VERSION};
use crate::tune::race::Step;
use crate::tune::results::Identity;
use crate::tune::task::Task;
use crate::tune::worker::{Fault, Worker};

/// A candidate much slower than the best may take this multiple of its time before it counts as hanging.
const SLOWEST_RATIO: f64 = 50.0;

/// Delays before the second, third and last attempt to start a worker.
const RESTART_AFTER: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(3),
];

/// Starts a worker and queries its device.
pub(in crate::tune) fn start_worker<P: Task>(
    shared: &Shared<'_, P>,
    index: u32,
) -> Result<(Worker, Device), Fault> {
    let log = shared.logs.join(format!("worker-{index}.log"));
    let mut worker = Worker::start(shared.command, index, &log, shared.keeper)?;
    let options = shared.backend.options();
    let id = worker.send(RequestKind::<P>::Hello { options }, 1)?;
    let limit = shared.backend.pace().deadlines.hello;
    match worker.reply_to(id, limit, shared.interrupt)?.answer {
        Answer::Hello { device } if device.protocol != VERSION => Err(Fault::Failed(format!(
            "the worker speaks protocol {}, this is {VERSION}",
            device.protocol
        ))),
        Answer::Hello { device } if device.backend != shared.backend.name() => {
            Err(Fault::Failed(format!(
                "the worker is of backend `{}`, not `{}`",
                device.backend,
                shared.backend.name()
            )))
        }
        Answer::Hello { device } => Ok((worker, device)),
        Answer::Failed { error } => Err(Fault::Failed(error)),
        other => Err(garbled(&other)),
    }
}

/// The fault of a reply that does not match the request.
pub(super) fn garbled(answer: &Answer) -> Fault {
    Fault::Garbled {
        line: format!("{answer:?}").chars().take(200).collect(),
        log: String::new(),
    }
}

impl<P: Task> DeviceWorker<'_, P> {
    /// Replaces the worker by a fresh one; what was prepared must be prepared again.
    pub(super) fn restart(&mut self, reason: &str) -> Result<(), Stop> {
        let had_one = self.worker.take().is_some();
        self.asked.clear();
        for open in &mut self.open {
            for readiness in &mut open.readiness {
                *readiness = Readiness::Unasked;
            }
        }
        let mut last = String::new();
        for wait in RESTART_AFTER {
            if !wait.is_zero() && self.shared.interrupt.sleep(wait) {
                return Err(Stop::Interrupted);
            }
            match start_worker(self.shared, self.index) {
                Ok((worker, device)) => {
                    let options = self.shared.backend.options();
                    let ours = Identity::of(&self.device, &options);
                    let theirs = Identity::of(&device, &options);
                    if let Some((field, ours, theirs)) = ours.difference(&theirs) {
                        return Err(Stop::Lost(format!(
                            "its device differs in {field}: `{theirs}`, the others have `{ours}`"
                        )));
                    }
                    self.worker = Some(worker);
                    self.lost(self.alive.elapsed());
                    self.alive = Instant::now();
                    // Memory of a worker that died may not be free yet.
                    if let Some(shared) = device.is_shared().filter(|_| !had_one) {
                        self.tell(Message::Remark(shared));
                    }
                    if had_one {
                        self.tell(Message::Restarted {
                            worker: self.index,
                            reason: reason.to_owned(),
                        });
                    }
                    return Ok(());
                }
                Err(Fault::Interrupted) => return Err(Stop::Interrupted),
                Err(fault) => last = fault.to_string(),
            }
        }
        Err(Stop::Lost(format!("{reason}; then failed to {last}")))
    }

    /// Keeps the compilers busy: twice as many requests in flight as there are slots.
    pub(super) fn ask_to_prepare(&mut self) -> Result<(), Stop> {
        if self.single_file > 0 && !self.under_way.is_empty() {
            return Ok(());
        }
        let slots = self.device.prepare_slots as usize;
        let window = if self.careful > 0 { 1 } else { 2 * slots };
        for index in 0..self.open.len() {
            let wanted = match self.open[index].race.step() {
                Step::Time { entrants, .. } | Step::RunOff { entrants, .. } => entrants,
                Step::Check { entrant } => vec![entrant],
                Step::Expand { .. } | Step::Done(_) => continue,
            };
            for entrant in wanted {
                let open = &mut self.open[index];
                if !matches!(open.readiness[entrant], Readiness::Unasked) {
                    continue;
                }
                if slots == 0 {
                    open.readiness[entrant] = Readiness::Ready;
                    continue;
                }
                if self.asked.len() >= window {
                    return Ok(());
                }
                let ask = RequestKind::Prepare {
                    shape: open.shape.clone(),
                    candidate: open.candidates[entrant].clone(),
                };
                let key = open.key;
                let Some(worker) = self.worker.as_mut() else {
                    return Ok(());
                };
                match worker.send(ask, 1) {
                    Ok(id) => {
                        if self.asked.is_empty() {
                            self.heard = Instant::now();
                        }
                        self.asked.insert(id, (key, entrant));
                        self.open[index].readiness[entrant] = Readiness::Asked;
                    }
                    Err(fault) => return self.died(&fault),
                }
            }
        }
        Ok(())
    }

    /// Waits for at most `limit` for a reply and processes it; returns whether there was one.
    pub(super) fn hear(&mut self, limit: Duration) -> Result<bool, Stop> {
        let Some(worker) = self.worker.as_mut() else {
            return Ok(false);
        };
        if self.asked.is_empty() && self.under_way.is_empty() {
            return Ok(false);
        }
        let reply = match worker.other(limit, self.shared.interrupt) {
            Ok(Some(reply)) => reply,
            Ok(None) => return Ok(false),
            Err(fault) => return self.died(&fault).map(|()| false),
        };
        self.alive = Instant::now();
        let Some(answer) = self.answer(reply.id, reply.answer)? else {
            return Ok(true);
        };
        self.heard = Instant::now();
        let Some((key, entrant)) = self.asked.remove(&reply.id) else {
            return Ok(true);
        };
        self.careful = self.careful.saturating_sub(1);
        let Some(index) = self.open.iter().position(|open| open.key == key) else {
            return Ok(true); // its race ended meanwhile
        };
        match answer {
            Answer::Prepared {
                outcome: Outcome::Done { .. },
            } => self.open[index].readiness[entrant] = Readiness::Ready,
            Answer::Prepared {
                outcome: Outcome::Refused { reason, detail },
            } => self.refuse(index, entrant, format!("{reason:?}: {detail}")),
            Answer::Failed { error } => self.refuse(index, entrant, error),
            other => return self.died(&garbled(&other)).map(|()| false),
        }
        Ok(true)
    }

    /// The worker died while compiling; a candidate that was compiled alone is the cause.
    pub(super) fn died_preparing(&mut self, fault: &Fault) -> Result<(), Stop> {
        let mut asked = self.asked.values();
        if let (true, Some((key, entrant)), None) = (self.careful > 0, asked.next(), asked.next()) {
            let (key, entrant) = (*key, *entrant);
            if let Some(index) = self.open.iter().position(|open| open.key == key) {
                self.open[index].race.out(entrant);
                self.quarantine(index, entrant, &format!("while compiling alone: {fault}"));
            }
        }
        let known = |readiness: &&Readiness| !matches!(readiness, Readiness::Unasked);
        self.careful = self
            .open
            .iter()
            .map(|open| open.readiness.iter().filter(known).count())
            .sum();
        self.restart(&fault.to_string())
    }
}

/// Time limit of a `time` request: what its launches should take at the speed of the best so far, and a generous
/// multiple for the first launches of a slow candidate.
pub(super) fn launch_time<P: Task>(
    deadlines: &Deadlines,
    open: &OpenRace<P>,
    candidates: usize,
    timing: Timing,
) -> Duration {
    let slowest_us = open.shape.flops() / deadlines.slowest_flops * 1e6;
    let launches = f64::from(timing.warmups + timing.samples);
    let each_us = match open.race.best() {
        Some(best) => {
            let sample = best.max(timing.min_sample_us);
            let first = f64::from(timing.warmups + 1) * (best * SLOWEST_RATIO).max(sample);
            launches * sample * 4.0 + first
        }
        None => launches * slowest_us.max(timing.min_sample_us),
    };
    Duration::from_secs_f64(candidates as f64 * each_us / 1e6)
}

/// Time limit of a `check` request: a minimum of its own, because the reference is computed anew, and the time for
/// the arithmetic.
pub(super) fn check_time<P: Task>(deadlines: &Deadlines, shape: &P) -> Duration {
    deadlines.floor + Duration::from_secs_f64(shape.flops() / deadlines.check_flops)
}
