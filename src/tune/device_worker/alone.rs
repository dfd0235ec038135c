//! Tries each candidate of a failed request again with nothing else in flight.

use std::time::{Duration, Instant};

use super::talk::{check_time, garbled, launch_time};
use super::{DeviceWorker, Entrant, Stop};
use crate::tune::protocol::{Answer, Numerics, Outcome, RequestKind, Samples, Timing};
use crate::tune::task::Task;
use crate::tune::worker::Fault;

impl<P: Task> DeviceWorker<'_, P> {
    /// Tries each entrant of a failed request once more, alone, on a fresh worker. Returns the outcomes of those that
    /// survived; the others are out and quarantined.
    pub(super) fn each_alone(
        &mut self,
        index: usize,
        entrants: &[Entrant],
        timing: Timing,
        fault: &Fault,
    ) -> Result<Vec<(Entrant, Outcome<Samples>)>, Stop> {
        self.restart(&fault.to_string())?;
        let mut lived = Vec::new();
        for entrant in entrants {
            match self.ask_times(index, &[*entrant], timing) {
                Ok(mut outcomes) => lived.extend(outcomes.pop().map(|outcome| (*entrant, outcome))),
                Err(Fault::Interrupted) => return Err(Stop::Interrupted),
                Err(again) => {
                    self.restart(&again.to_string())?;
                    self.open[index].race.out(*entrant);
                    self.quarantine(index, *entrant, &format!("{fault}; alone: {again}"));
                }
            }
        }
        Ok(lived)
    }

    /// Checks the candidate of a failed check once more, on a fresh worker.
    pub(super) fn check_alone(
        &mut self,
        index: usize,
        entrant: Entrant,
        fault: &Fault,
    ) -> Result<(), Stop> {
        self.restart(&fault.to_string())?;
        match self.ask_numerics(index, entrant) {
            Ok(outcome) => self.checked(index, entrant, outcome),
            Err(Fault::Interrupted) => return Err(Stop::Interrupted),
            Err(again) => {
                self.restart(&again.to_string())?;
                self.open[index].race.out(entrant);
                self.quarantine(index, entrant, &format!("{fault}; alone: {again}"));
            }
        }
        Ok(())
    }

    /// If the run-off fails repeatedly although every entrant survives alone: those that fail together with the first
    /// are out; if none does, all except the first are.
    pub(super) fn blame_pairs(
        &mut self,
        index: usize,
        entrants: &[Entrant],
        timing: Timing,
    ) -> Result<(), Stop> {
        let mut blamed = false;
        for other in &entrants[1..] {
            match self.ask_times(index, &[entrants[0], *other], timing) {
                Ok(_) => {}
                Err(Fault::Interrupted) => return Err(Stop::Interrupted),
                Err(fault) => {
                    self.restart(&fault.to_string())?;
                    self.open[index].race.out(*other);
                    self.quarantine(index, *other, &format!("beside another: {fault}"));
                    blamed = true;
                }
            }
        }
        if !blamed {
            for other in &entrants[1..] {
                self.refuse(index, *other, "the run-off died again and again".to_owned());
            }
        }
        Ok(())
    }

    fn ask_times(
        &mut self,
        index: usize,
        entrants: &[Entrant],
        timing: Timing,
    ) -> Result<Vec<Outcome<Samples>>, Fault> {
        let open = &self.open[index];
        let ask = RequestKind::Time {
            shape: open.shape.clone(),
            candidates: entrants
                .iter()
                .map(|entrant| open.candidates[*entrant].clone())
                .collect(),
            timing,
        };
        let deadlines = self.shared.backend.pace().deadlines;
        let limit = deadlines.floor + launch_time(&deadlines, open, entrants.len(), timing);
        match self.ask_device(ask, limit)? {
            Answer::Timed {
                outcomes,
                busy_s,
                clocks_mhz,
                throttle_reasons,
            } if outcomes.len() == entrants.len() => {
                self.tell_clocks(&clocks_mhz, throttle_reasons);
                self.held(index, busy_s);
                Ok(outcomes)
            }
            other => Err(garbled(&other)),
        }
    }

    fn ask_numerics(&mut self, index: usize, entrant: Entrant) -> Result<Outcome<Numerics>, Fault> {
        let open = &self.open[index];
        let ask = RequestKind::Check {
            shape: open.shape.clone(),
            candidates: vec![open.candidates[entrant].clone()],
        };
        let deadlines = self.shared.backend.pace().deadlines;
        let limit = deadlines.floor + check_time(&deadlines, &open.shape);
        match self.ask_device(ask, limit)? {
            Answer::Checked { outcomes, busy_s } if outcomes.len() == 1 => {
                self.held(index, busy_s);
                outcomes
                    .into_iter()
                    .next()
                    .ok_or_else(|| Fault::Failed("the worker checked nothing".to_owned()))
            }
            other => Err(garbled(&other)),
        }
    }

    /// Sends a request with nothing else in flight, and waits for its answer.
    fn ask_device(&mut self, ask: RequestKind<P>, limit: Duration) -> Result<Answer, Fault> {
        let _alone = self.shared.gate.as_ref().map(|gate| {
            gate.lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
        });
        let Some(worker) = self.worker.as_mut() else {
            return Err(Fault::Start("no worker could be started".to_owned()));
        };
        let answer = worker
            .send(ask, 2)
            .and_then(|id| worker.reply_to(id, limit, self.shared.interrupt))
            .map(|reply| reply.answer);
        if answer.is_ok() {
            self.alive = Instant::now();
        }
        match answer {
            Ok(Answer::Failed { error }) => Err(Fault::Failed(error)),
            other => other,
        }
    }
}
