//! A device worker owns one worker process and races shapes on it.
//!
//! Several shapes are open at once: candidates of all of them are compiled ahead, and whichever is ready is timed. If
//! the backend allows it, a worker is sent the next request, of another race, before it has answered the last, so
//! that its device does not idle. A fault ends the worker; requests that were in flight together are sent again one
//! at a time; each candidate of a request that fails by itself is tried once more alone on a fresh worker, and
//! quarantined if that fails too. A device worker whose worker cannot be started again returns its shapes to the
//! queue.

mod alone;
mod talk;
mod under_way;
mod used;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;

use self::under_way::{UnderWay, Work};
use super::backends::Backend;
use super::clocks::Clocks;
use super::event::DeviceTime;
use super::protocol::{Candidate, Device, Outcome, Samples};
use super::race::{Decision, Entrant, Race, Step};
use super::results::{Quarantined, Row};
use super::rules::Effort;
use super::task::Task;
use super::work_queue::{Taken, WorkQueue};
use super::worker::{Worker, WorkerCommand};
use crate::proc::{Interrupt, Keeper};

/// What all device workers share.
pub(super) struct Shared<'a, P: Task> {
    pub(super) backend: &'a dyn Backend<P>,
    pub(super) effort: Effort,
    pub(super) command: &'a WorkerCommand,
    pub(super) keeper: &'a Keeper,
    pub(super) interrupt: &'a Interrupt,
    pub(super) logs: Utf8PathBuf,
    pub(super) gate: Option<Mutex<()>>,
    /// Candidates that must not be tried again.
    pub(super) quarantined: Vec<Quarantined<P>>,
}

/// A message from a device worker to the coordinator.
#[derive(Debug)]
pub(super) enum Message<P> {
    /// A candidate is the fastest so far.
    Leads { shape: P, us: f64, entrants: usize },
    /// A candidate was timed.
    Timed {
        shape: P,
        candidate: Candidate,
        us: Vec<f64>,
    },
    /// A timing request was answered; the device's clock during it.
    Clocks(Clocks),
    /// A race, finished or not, held the device for this many more seconds.
    Held(f64),
    /// A race is over.
    Finished(Box<Row<P>>),
    /// A race ended without a winner.
    NoWinner { shape: P, reason: String },
    /// A candidate faulted twice.
    Quarantined(Quarantined<P>),
    /// A worker died and a fresh one took its place.
    Restarted { worker: u32, reason: String },
    /// What a person should know of the device.
    Remark(String),
    /// The device worker gave up.
    Lost { worker: u32, reason: String },
    /// The device worker has ended.
    Ended(DeviceTime),
}

/// Why a device worker stops before the work is done.
enum Stop {
    Interrupted,
    Lost(String),
}

enum Readiness {
    Unasked,
    Asked,
    Ready,
}

struct OpenRace<P> {
    key: u64,
    shape: P,
    race: Race,
    candidates: Vec<Candidate>,
    readiness: Vec<Readiness>,
    incumbent: Option<Candidate>,
    timed: u32,
    busy_s: f64,
    led_us: f64,
    opened: Instant,
    /// Of the time since, what was not its own doing.
    lost: Duration,
    run_off_faults: u32,
    last_refusal: String,
}

pub(super) use talk::start_worker;

/// One device's worker and the races open on it.
pub(super) struct DeviceWorker<'a, P: Task> {
    index: u32,
    shared: &'a Shared<'a, P>,
    queue: &'a WorkQueue<P>,
    messages: Sender<Message<P>>,
    device: Device,
    worker: Option<Worker>,
    open: Vec<OpenRace<P>>,
    next_key: u64,
    /// Prepare requests in flight: race and entrant by request id.
    asked: BTreeMap<u64, (u64, Entrant)>,
    /// After a death between timings: how many candidates to compile one at a time, to find the one whose compilation
    /// kills the worker.
    careful: usize,
    /// When a prepare request was last answered, or the first one sent.
    heard: Instant,
    /// Requests in flight that use the device, in the order they were sent; each of a different race.
    under_way: Vec<UnderWay<'a>>,
    /// When one of them was last answered.
    answered: Instant,
    /// When the worker last answered anything, or came up.
    alive: Instant,
    /// After a death with several possible causes: how many requests to run with nothing else in flight, not even
    /// compiling, to find the cause.
    single_file: usize,
    busy_s: f64,
}

impl<'a, P: Task> DeviceWorker<'a, P> {
    /// A device worker for device `index`; its device must match `device`.
    pub(super) fn new(
        index: u32,
        shared: &'a Shared<'a, P>,
        queue: &'a WorkQueue<P>,
        messages: Sender<Message<P>>,
        device: Device,
        worker: Option<Worker>,
    ) -> Self {
        Self {
            index,
            shared,
            queue,
            messages,
            device,
            worker,
            open: Vec::new(),
            next_key: 0,
            asked: BTreeMap::new(),
            careful: 0,
            heard: Instant::now(),
            under_way: Vec::new(),
            answered: Instant::now(),
            alive: Instant::now(),
            single_file: 0,
            busy_s: 0.0,
        }
    }

    /// Races until there is nothing left.
    pub(super) fn run(mut self) {
        let mut active = Duration::ZERO;
        let stop = loop {
            let turn = Instant::now();
            if self.shared.interrupt.is_raised() || self.queue.is_closed() {
                break Some(Stop::Interrupted);
            }
            match self.fill() {
                Taken::Finished if self.open.is_empty() => break None,
                Taken::Nothing if self.open.is_empty() => {
                    self.queue.wait(Duration::from_millis(50));
                    continue;
                }
                _ => {}
            }
            if let Err(stop) = self.turn() {
                break Some(stop);
            }
            active += turn.elapsed();
        };
        for open in self.open.drain(..) {
            self.queue.give_back(open.shape);
        }
        if let Some(Stop::Lost(reason)) = stop {
            let worker = self.index;
            self.tell(Message::Lost { worker, reason });
        } else if let Some(worker) = self.worker.take() {
            worker.quit(self.shared.interrupt);
        }
        self.tell(Message::Ended(DeviceTime {
            device: self.index,
            busy_s: self.busy_s,
            active_s: active.as_secs_f64(),
        }));
    }

    /// Adds seconds for which race `index` held the device.
    fn held(&mut self, index: usize, busy_s: f64) {
        self.busy_s += busy_s;
        self.open[index].busy_s += busy_s;
        self.tell(Message::Held(busy_s));
    }

    /// Books time that no open race is to blame for.
    fn lost(&mut self, time: Duration) {
        for open in &mut self.open {
            open.lost += time;
        }
    }

    fn tell(&self, message: Message<P>) {
        // The coordinator outlives every device worker.
        let _ = self.messages.send(message);
    }

    /// Opens races up to the concurrency limit; returns the queue's last answer.
    fn fill(&mut self) -> Taken<P> {
        while self.open.len() < self.shared.backend.pace().side_by_side {
            match self.queue.take() {
                Taken::Race(shape, neighbours) => self.open_race(shape, &neighbours),
                other => return other,
            }
        }
        Taken::Nothing
    }

    fn open_race(&mut self, shape: P, neighbours: &[Candidate]) {
        let backend = self.shared.backend;
        let effort = self.shared.effort;
        let field = backend.field(&self.device, &shape, neighbours, effort);
        let race = Race::new(
            backend.rules(effort),
            field.candidates.len(),
            field.has_incumbent,
        );
        let mut open = OpenRace {
            key: self.next_key,
            incumbent: field.has_incumbent.then(|| field.candidates[0].clone()),
            readiness: field
                .candidates
                .iter()
                .map(|_| Readiness::Unasked)
                .collect(),
            candidates: field.candidates,
            shape,
            race,
            timed: 0,
            busy_s: 0.0,
            led_us: f64::INFINITY,
            opened: Instant::now(),
            lost: Duration::ZERO,
            run_off_faults: 0,
            last_refusal: String::new(),
        };
        for entry in &self.shared.quarantined {
            let known = open
                .candidates
                .iter()
                .position(|candidate| entry.shape == open.shape && *candidate == entry.candidate);
            if let Some(entrant) = known {
                open.race.out(entrant);
            }
        }
        self.next_key += 1;
        self.open.push(open);
    }

    /// One iteration: process prepare replies, do one step of one race.
    fn turn(&mut self) -> Result<(), Stop> {
        if self.worker.is_none() {
            self.restart("it was not started yet")?;
        }
        self.hurry_late_races();
        self.ask_to_prepare()?;
        while self.hear(Duration::ZERO)? {}
        if self.has_room() {
            for index in 0..self.open.len() {
                if !self.is_under_way(index) && self.advance(index)? {
                    return Ok(());
                }
            }
        }
        if self.asked.is_empty() && self.under_way.is_empty() {
            self.queue.wait(Duration::from_millis(20));
            return Ok(());
        }
        self.hear(Duration::from_millis(500))?;
        self.watch_deadlines()
    }

    /// Moves a race that has used up its share of the budget to its run-off.
    fn hurry_late_races(&mut self) {
        let over = self.queue.is_over();
        let allowance = self.queue.allowance();
        let side_by_side = self.open.len() as u32;
        for index in 0..self.open.len() {
            if self.is_under_way(index) {
                continue; // what it asked for comes first
            }
            let open = &mut self.open[index];
            let late = allowance.is_some_and(|allowance| {
                used::is_late(open.opened.elapsed(), open.lost, allowance * side_by_side)
            });
            if (late || over) && open.race.best().is_some() {
                open.race.hurry();
            }
        }
    }

    /// Does or starts one step of race `index` if the candidates for it are ready; returns whether it did.
    fn advance(&mut self, index: usize) -> Result<bool, Stop> {
        let open = &mut self.open[index];
        match open.race.step() {
            Step::Time { entrants, timing } => {
                let ready: Vec<Entrant> = entrants
                    .into_iter()
                    .filter(|entrant| matches!(open.readiness[*entrant], Readiness::Ready))
                    .take(self.shared.backend.pace().batch)
                    .collect();
                if ready.is_empty() {
                    return Ok(false);
                }
                self.begin(index, Work::Time(ready, timing))?;
            }
            Step::Expand { around } => self.expand(index, &around),
            Step::RunOff { entrants, timing } => {
                if !self.all_ready(index, &entrants) {
                    return Ok(false);
                }
                self.begin(index, Work::RunOff(entrants, timing))?;
            }
            Step::Check { entrant } => {
                if !self.all_ready(index, &[entrant]) {
                    return Ok(false);
                }
                self.begin(index, Work::Check(entrant))?;
            }
            Step::Done(decision) => self.finish(index, &decision),
        }
        Ok(true)
    }

    fn all_ready(&self, index: usize, entrants: &[Entrant]) -> bool {
        entrants
            .iter()
            .all(|entrant| matches!(self.open[index].readiness[*entrant], Readiness::Ready))
    }

    fn expand(&mut self, index: usize, around: &[Entrant]) {
        let open = &mut self.open[index];
        let mut added: Vec<Candidate> = Vec::new();
        for leader in around {
            let relatives =
                self.shared
                    .backend
                    .relatives(&self.device, &open.shape, &open.candidates[*leader]);
            for relative in relatives {
                let barred = self
                    .shared
                    .quarantined
                    .iter()
                    .any(|entry| entry.shape == open.shape && entry.candidate == relative);
                if !open.candidates.contains(&relative) && !added.contains(&relative) && !barred {
                    added.push(relative);
                }
            }
        }
        open.race.add(added.len());
        open.readiness
            .extend(added.iter().map(|_| Readiness::Unasked));
        open.candidates.extend(added);
    }

    fn record(&mut self, index: usize, entrant: Entrant, outcome: Outcome<Samples>) {
        match outcome {
            Outcome::Done { result } => {
                let open = &mut self.open[index];
                open.timed += 1;
                open.race.timed(entrant, &result.us);
                let best = open.race.best().unwrap_or(f64::INFINITY);
                if best < open.led_us {
                    open.led_us = best;
                    let (shape, entrants) = (open.shape.clone(), open.race.entrants());
                    self.tell(Message::Leads {
                        shape,
                        us: best,
                        entrants,
                    });
                }
                self.tell_timed(index, entrant, result.us);
            }
            Outcome::Refused { reason, detail } => {
                self.refuse(index, entrant, format!("{reason:?}: {detail}"));
            }
        }
    }

    fn tell_timed(&self, index: usize, entrant: Entrant, us: Vec<f64>) {
        let open = &self.open[index];
        self.tell(Message::Timed {
            shape: open.shape.clone(),
            candidate: open.candidates[entrant].clone(),
            us,
        });
    }

    fn tell_clocks(&self, mhz: &[f64], reasons: Option<u64>) {
        self.tell(Message::Clocks(Clocks::of_request(mhz, reasons)));
    }

    fn refuse(&mut self, index: usize, entrant: Entrant, why: String) {
        let open = &mut self.open[index];
        open.last_refusal = why;
        open.race.out(entrant);
    }

    fn quarantine(&mut self, index: usize, entrant: Entrant, evidence: &str) {
        let open = &mut self.open[index];
        evidence.clone_into(&mut open.last_refusal);
        let quarantined = Quarantined {
            shape: open.shape.clone(),
            candidate: open.candidates[entrant].clone(),
            evidence: evidence.to_owned(),
        };
        self.tell(Message::Quarantined(quarantined));
    }

    fn finish(&mut self, index: usize, decision: &Decision) {
        let open = self.open.remove(index);
        let message = match decision {
            Decision::Winner(winner) => Message::Finished(Box::new(Row {
                candidate: open.candidates[winner.entrant].clone(),
                incumbent_kept: winner.incumbent,
                us: winner.us,
                incumbent: open.incumbent,
                incumbent_us: winner.incumbent_us,
                noise: winner.noise,
                err_ratio: winner.err_ratio,
                timed: open.timed,
                busy_s: open.busy_s,
                effort: self.shared.effort,
                shape: open.shape,
            })),
            Decision::NoneRuns => Message::NoWinner {
                reason: if open.candidates.is_empty() {
                    "there is no candidate".to_owned()
                } else {
                    format!(
                        "no candidate ran with right numbers; last: {}",
                        open.last_refusal
                    )
                },
                shape: open.shape,
            },
        };
        self.tell(message);
    }
}
