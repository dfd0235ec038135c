//! A tuning run: a device worker for every device, and one coordinator that stores their results.
//!
//! Only the coordinator writes files and reports events. It stores a result durably before it reports it.

use std::io::Write as _;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;

use super::backends::Backend;
use super::device_worker::{DeviceWorker, Message, Shared, start_worker};
use super::event::{TuneEvent, TuneOutcome, Unserved};
use super::pace::Pace;
use super::points::Points;
use super::protocol::Device;
use super::results::{self, Identity, Quarantined, Results, ResultsError, Row};
use super::rules::Effort;
use super::task::Task;
use super::work_queue::{Limit, WorkQueue};
use super::worker::{Fault, WorkerCommand};
use crate::problem::Shape;
use crate::proc::{Interrupt, Keeper};

/// Name of the file with individual timings in the output folder: one JSON line for each, for replay.
pub const TIMINGS: &str = "timings.jsonl";

/// What to tune, how, and where to write results.
pub struct TuneRequest<'a, P: Task = Shape> {
    pub backend: &'a dyn Backend<P>,
    pub shapes: Vec<P>,
    /// The output folder; created if missing.
    pub folder: Utf8PathBuf,
    /// How to start workers.
    pub command: WorkerCommand,
    pub keeper: Keeper,
    /// Number of workers; `None` for one on each device that the first worker sees.
    pub workers: Option<u32>,
    /// No race starts after this time.
    pub budget: Option<Duration>,
    /// How hard to try.
    pub effort: Effort,
}

/// A tuning run that could not take place. Shapes that failed are not such an error; they are in the outcome.
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    #[error("find a shape to tune")]
    NoShapes,
    /// A shape of an operation that the backend does not tune.
    #[error("tune `{shape}` with backend {backend}, which tunes {op}")]
    OtherOperation {
        shape: String,
        backend: &'static str,
        op: String,
    },
    /// No worker came up.
    #[error("start a worker on the first device")]
    Worker(#[source] Fault),
    /// Results cannot be stored, or belong to something else.
    #[error(transparent)]
    Results(#[from] ResultsError),
    /// The output folder or the table cannot be written.
    #[error("write into `{folder}`")]
    Write {
        folder: Utf8PathBuf,
        source: std::io::Error,
    },
    /// The user requested a stop before anything was measured.
    #[error("tune: interrupted")]
    Interrupted,
}

/// Tunes the shapes of `request`, reporting to `events`.
///
/// Whatever ends the run (the budget, `interrupt`, a kill), finished shapes are in the output folder, and a second
/// run there continues where the first ended.
pub fn run<P: Task>(
    request: &TuneRequest<'_, P>,
    events: &mut dyn FnMut(&TuneEvent<P>),
    interrupt: &Interrupt,
) -> Result<TuneOutcome<P>, TuneError> {
    let backend = request.backend;
    if request.shapes.is_empty() {
        return Err(TuneError::NoShapes);
    }
    if let Some(other) = request
        .shapes
        .iter()
        .find(|shape| shape.op() != backend.op())
    {
        return Err(TuneError::OtherOperation {
            shape: other.to_string(),
            backend: backend.name(),
            op: backend.op().to_string(),
        });
    }
    let started = Instant::now();
    let write = |source| TuneError::Write {
        folder: request.folder.clone(),
        source,
    };
    let logs = request.folder.join("workers");
    fs_err::create_dir_all(&logs).map_err(write)?;
    let _lock = results::lock(&request.folder)?;
    let mut shared = Shared {
        backend,
        effort: request.effort,
        command: &request.command,
        keeper: &request.keeper,
        interrupt,
        logs,
        gate: None,
        quarantined: Vec::new(),
    };
    let (worker, device) = start_worker(&shared, 0).map_err(|fault| match fault {
        Fault::Interrupted => TuneError::Interrupted,
        fault => TuneError::Worker(fault),
    })?;
    let kept = Results::open(&request.folder, &Identity::of(&device, &backend.options()))?;
    shared.quarantined.clone_from(&kept.quarantined);

    let done = |task: &P| {
        let incumbent = backend.incumbent(&device, task);
        let row = kept.done(task, request.effort, incumbent.as_ref())?;
        Some(row.candidate.clone())
    };
    let (resumed, left): (Vec<P>, Vec<P>) = {
        let shapes = request.shapes.iter().cloned();
        shapes.partition(|shape| done(shape).is_some())
    };
    // The parts of shapes that were done earlier are not needed again.
    let parts = left.iter().flat_map(Task::parts);
    let tasks: Vec<P> = parts.chain(left.iter().cloned()).collect();
    let all: Vec<P> = resumed.iter().chain(&tasks).cloned().collect();
    let mut points = Points::new(&all, backend.refine(request.effort));
    for task in &all {
        if let Some(winner) = done(task) {
            points.finished(task, Some(winner));
        }
    }
    let workers = request.workers.unwrap_or(device.visible).max(1);
    // With a launcher each worker has its own cores or device.
    if backend.pace().one_at_a_time && request.command.launcher.is_empty() && workers > 1 {
        shared.gate = Some(Mutex::new(()));
    }
    let queue = WorkQueue::new(
        points,
        workers as usize,
        request
            .budget
            .map(|budget| Limit::new(started + budget, &tasks)),
    );
    events(&TuneEvent::Started {
        device: Box::new(device.clone()),
        workers,
        shapes: request.shapes.len(),
        resumed: resumed.len(),
        races_at_most: queue.may_come().len(),
    });
    let timings = fs_err::OpenOptions::new()
        .create(true)
        .append(true)
        .open(request.folder.join(TIMINGS))
        .map_err(write)?;

    let (sender, messages) = channel();
    let mut coordinator = Coordinator {
        queue: &queue,
        results: kept,
        timings: std::io::BufWriter::new(timings.into_parts().0),
        events,
        began: Instant::now(),
        pace: Pace::default(),
        outcome: TuneOutcome::new(device.clone()),
        broken: None,
    };
    if let Some(text) = device.is_shared() {
        coordinator.remark(text);
    }
    thread::scope(|scope| {
        let mut first = Some(worker);
        for index in 0..workers {
            let (worker, sender, device) = (first.take(), sender.clone(), device.clone());
            let (shared, queue) = (&shared, &queue);
            scope.spawn(move || {
                DeviceWorker::new(index, shared, queue, sender, device, worker).run();
            });
        }
        drop(sender);
        coordinator.listen(&messages);
    });
    let Coordinator {
        results: mut kept,
        mut timings,
        mut outcome,
        broken,
        ..
    } = coordinator;
    timings.flush().map_err(write)?;
    if let Some(error) = broken {
        return Err(error.into());
    }
    outcome.interrupted = interrupt.is_raised();
    outcome.seconds = started.elapsed().as_secs_f64();
    kept.rows.sort_by(|a, b| a.shape.cmp(&b.shape));
    outcome.resumed = resumed;
    account_for_the_rest(&mut outcome, &queue);
    // The table includes all results in this folder, not only those of this run.
    let mut rows = kept.rows.clone();
    rows.extend(rows_of_neighbours(
        &kept.rows,
        &outcome.served_by_neighbours,
    ));
    let written = backend.write(&request.folder, &outcome.device, &rows);
    let written = written.map_err(write)?;
    (outcome.files, outcome.tables) = (written.files, written.tables);
    for path in &outcome.files {
        (events)(&TuneEvent::Wrote { path: path.clone() });
    }
    let wanted = |shape: &P| request.shapes.contains(shape);
    // A part for which nothing runs only leaves fewer combinations, and is not a failure.
    outcome.failed.retain(|failed| wanted(&failed.shape));
    outcome.not_reached.retain(wanted);
    outcome.served_by_neighbours.retain(wanted);
    outcome.rows = kept
        .rows
        .into_iter()
        .filter(|row| wanted(&row.shape))
        .collect();
    outcome.quarantined = kept
        .quarantined
        .into_iter()
        .filter(|entry| wanted(&entry.shape) || tasks.contains(&entry.shape))
        .collect();
    Ok(outcome)
}

/// For each shape that needed no race the row of the nearest raced M (by ratio): its neighbours on both sides agree,
/// or are too close for a race between them to be worthwhile.
fn rows_of_neighbours<P: Task>(raced: &[Row<P>], shapes: &[P]) -> Vec<Row<P>> {
    let ratio =
        |row: &Row<P>, shape: &P| (f64::from(row.shape.m()) / f64::from(shape.m())).ln().abs();
    shapes
        .iter()
        .filter_map(|shape| {
            let nearest = raced
                .iter()
                .filter(|row| row.shape.weights() == shape.weights())
                .min_by(|a, b| ratio(a, shape).total_cmp(&ratio(b, shape)))?;
            Some(Row {
                shape: shape.clone(),
                ..nearest.clone()
            })
        })
        .collect()
}

/// Classifies the shapes without a row: left over, or served by the row of a neighbouring M.
fn account_for_the_rest<P: Task>(outcome: &mut TuneOutcome<P>, queue: &WorkQueue<P>) {
    let (waiting, never_asked) = queue.unraced();
    let finished = waiting.is_empty() && queue.may_come().is_empty();
    outcome.not_reached = waiting;
    if finished {
        outcome.served_by_neighbours = never_asked;
    } else {
        outcome.not_reached.extend(never_asked);
    }
    let failed: Vec<P> = outcome
        .failed
        .iter()
        .map(|failed| failed.shape.clone())
        .collect();
    outcome.not_reached.retain(|shape| !failed.contains(shape));
    outcome.not_reached.sort();
}

/// Processes the device workers' messages: stores results and reports events.
struct Coordinator<'a, P: Task> {
    queue: &'a WorkQueue<P>,
    results: Results<P>,
    timings: std::io::BufWriter<std::fs::File>,
    events: &'a mut dyn FnMut(&TuneEvent<P>),
    /// When the first race could begin, not counting the time to open the device.
    began: Instant,
    pace: Pace,
    outcome: TuneOutcome<P>,
    broken: Option<ResultsError>,
}

impl<P: Task> Coordinator<'_, P> {
    /// Processes messages until every device worker has ended.
    fn listen(&mut self, messages: &Receiver<Message<P>>) {
        for message in messages {
            if let Message::Ended(time) = message {
                self.outcome.busy_s += time.busy_s;
                self.outcome.active_s += time.active_s;
                self.outcome.devices.push(time);
                continue;
            }
            if self.broken.is_some() {
                continue; // the workers have been stopped
            }
            if let Err(error) = self.handle(message) {
                self.broken = Some(error);
                self.queue.close();
            }
        }
        self.outcome.devices.sort_by_key(|time| time.device);
    }

    fn handle(&mut self, message: Message<P>) -> Result<(), ResultsError> {
        match message {
            Message::Leads {
                shape,
                us,
                entrants,
            } => (self.events)(&TuneEvent::Leads {
                shape,
                us,
                entrants,
            }),
            Message::Timed {
                shape,
                candidate,
                us,
            } => self.keep_timing(&shape, &candidate, &us),
            Message::Clocks(clocks) => self.outcome.clocks.add(&clocks),
            Message::Held(seconds) => self.pace.held(seconds),
            Message::Finished(row) => self.keep_row(&row)?,
            Message::NoWinner { shape, reason } => {
                self.queue.finished(&shape, None);
                let failed = Unserved { shape, reason };
                (self.events)(&TuneEvent::Failed(failed.clone()));
                self.outcome.failed.push(failed);
            }
            Message::Quarantined(quarantined) => self.keep_quarantined(quarantined)?,
            Message::Restarted { worker, reason } => {
                self.outcome.restarts += 1;
                (self.events)(&TuneEvent::WorkerRestarted { worker, reason });
            }
            Message::Remark(text) => self.remark(text),
            Message::Lost { worker, reason } => {
                (self.events)(&TuneEvent::DeviceLost {
                    worker,
                    reason: reason.clone(),
                });
                self.outcome.lost.push(reason);
            }
            Message::Ended(_) => {}
        }
        Ok(())
    }

    fn remark(&mut self, text: String) {
        self.outcome.remarks.push(text.clone());
        (self.events)(&TuneEvent::Remark { text });
    }

    /// Individual timings are for replay and analysis, so losing the last few in a crash loses no result.
    fn keep_timing(&mut self, shape: &P, candidate: &serde_json::Value, us: &[f64]) {
        let mut line = shape.sizes();
        line.insert("candidate".to_owned(), candidate.clone());
        line.insert("us".to_owned(), us.into());
        let _ = writeln!(self.timings, "{}", serde_json::Value::Object(line));
    }

    fn keep_row(&mut self, row: &Row<P>) -> Result<(), ResultsError> {
        self.results.keep(row)?;
        self.pace.add(row.shape.cost(), row.busy_s);
        self.queue.finished(&row.shape, Some(row.candidate.clone()));
        let left = self.queue.may_come();
        let costs: Vec<f64> = left.iter().map(Task::cost).collect();
        let eta_s = self.pace.left_s(&costs, self.began.elapsed().as_secs_f64());
        let event = TuneEvent::Finished {
            row: Box::new(row.clone()),
            done: self.pace.races(),
            left_at_most: left.len(),
            eta_s: match self.queue.remaining() {
                Some(remaining) => eta_s.min(remaining.as_secs_f64()),
                None => eta_s,
            },
        };
        (self.events)(&event);
        Ok(())
    }

    fn keep_quarantined(&mut self, quarantined: Quarantined<P>) -> Result<(), ResultsError> {
        self.results.keep_quarantined(&quarantined)?;
        (self.events)(&TuneEvent::Quarantined(quarantined));
        Ok(())
    }
}

/// The device that a run would use, queried from a worker that is then ended.
pub fn look_at_device<P: Task>(
    request: &TuneRequest<'_, P>,
    interrupt: &Interrupt,
) -> Result<Device, TuneError> {
    let logs = tempfile::tempdir().map_err(|source| TuneError::Write {
        folder: request.folder.clone(),
        source,
    })?;
    let shared = Shared {
        backend: request.backend,
        effort: request.effort,
        command: &request.command,
        keeper: &request.keeper,
        interrupt,
        logs: Utf8PathBuf::try_from(logs.path().to_owned()).map_err(|error| TuneError::Write {
            folder: request.folder.clone(),
            source: std::io::Error::other(error),
        })?,
        gate: None,
        quarantined: Vec::new(),
    };
    let (worker, device) = start_worker(&shared, 0).map_err(TuneError::Worker)?;
    worker.quit(interrupt);
    Ok(device)
}
