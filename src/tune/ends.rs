//! Whether a row of aiter's Triton GEMM that won at one M is valid for the whole bucket that it would serve.
//!
//! The race uses one M of a bucket, but the file's row serves all of them. So a winner is tried at the first and the
//! last M of its bucket before it is written: there it is the incumbent and today's row the challenger, so it is kept
//! unless today's row is proven faster or its own numbers are wrong. If a row fails, its bucket keeps today's.

use std::collections::BTreeMap;
use std::time::Instant;

use camino::Utf8Path;

use super::backends::aiter_triton::AiterTriton;
use super::backends::{Backend, Field, Pace, Written};
use super::points::Refine;
use super::protocol::{Candidate, Device};
use super::race::Rules;
use super::results::Row;
use super::{Effort, TuneError, TuneEvent, TuneOutcome, TuneRequest};
use crate::problem::{Op, Shape};
use crate::proc::Interrupt;
use crate::table::aiter_triton::Rules as Buckets;

/// Folder for the trials at the ends, in the output folder.
const FOLDER: &str = "ends";

/// Share of a budget for the races: at an end two rows compete, in a race 32 or more.
const RACES: f64 = 0.8;

/// [`super::run`] for shapes each of which represents its bucket.
///
/// In the outcome, rows that fail at an end are replaced by today's, with the reason in the remarks; rows that could
/// not be tried there, because the budget was spent or the user interrupted, count as not reached.
pub fn run(
    request: &TuneRequest<'_>,
    events: &mut dyn FnMut(&TuneEvent),
    interrupt: &Interrupt,
) -> Result<TuneOutcome, TuneError> {
    let started = Instant::now();
    let races = Ends::of(request.backend, Vec::new(), Buckets::Bounds { from: 1 });
    let mut outcome = super::run(
        &TuneRequest {
            backend: &races,
            shapes: request.shapes.clone(),
            command: request.command.clone(),
            folder: request.folder.clone(),
            keeper: request.keeper.clone(),
            budget: request.budget.map(|budget| budget.mul_f64(RACES)),
            ..*request
        },
        events,
        interrupt,
    )?;
    let buckets = AiterTriton::rules(&outcome.device);
    let won = outcome.rows.iter().filter(|row| !row.incumbent_kept);
    let ends = Ends::of(request.backend, won.cloned().collect(), buckets);
    let shapes = ends.shapes();
    if !shapes.is_empty() && !outcome.interrupted {
        let mut few = |event: &TuneEvent| {
            if let Some(event) = of_ends(event, ends.won.len()) {
                events(&event);
            }
        };
        let tried = super::run(
            &TuneRequest {
                backend: &ends,
                shapes: shapes.clone(),
                command: request.command.clone(),
                folder: request.folder.join(FOLDER),
                keeper: request.keeper.clone(),
                budget: request
                    .budget
                    .map(|budget| budget.saturating_sub(started.elapsed())),
                ..*request
            },
            &mut few,
            interrupt,
        )?;
        ends.judge(&mut outcome, &tried);
        add(&mut outcome, tried);
    } else if !shapes.is_empty() {
        let nothing = TuneOutcome::new(outcome.device.clone());
        ends.judge(&mut outcome, &nothing);
    }
    let written = request
        .backend
        .write(&request.folder, &outcome.device, &outcome.rows);
    let written = written.map_err(|source| TuneError::Write {
        folder: request.folder.clone(),
        source,
    })?;
    (outcome.files, outcome.tables) = (written.files, written.tables);
    for path in &outcome.files {
        events(&TuneEvent::Wrote { path: path.clone() });
    }
    Ok(outcome)
}

/// The part of an event at the ends that is passed on: there are many short races.
fn of_ends(event: &TuneEvent, rows: usize) -> Option<TuneEvent> {
    match event {
        TuneEvent::Started { races_at_most, .. } if *races_at_most > 0 => Some(TuneEvent::Remark {
            text: format!("trying {rows} faster rows at the first and the last M of their buckets"),
        }),
        TuneEvent::Quarantined(_)
        | TuneEvent::WorkerRestarted { .. }
        | TuneEvent::DeviceLost { .. } => Some(event.clone()),
        _ => None,
    }
}

/// Adds the cost of trying the ends, and its events.
fn add(outcome: &mut TuneOutcome, tried: TuneOutcome) {
    outcome.quarantined.extend(tried.quarantined);
    outcome.lost.extend(tried.lost);
    outcome.restarts += tried.restarts;
    outcome.clocks.add(&tried.clocks);
    outcome.busy_s += tried.busy_s;
    outcome.active_s += tried.active_s;
    outcome.seconds += tried.seconds;
    outcome.interrupted |= tried.interrupted;
}

/// A backend that writes nothing and, where rows have won, has only these and today's as candidates.
struct Ends<'a> {
    backend: &'a dyn Backend,
    won: Vec<Row>,
    buckets: Buckets,
}

impl<'a> Ends<'a> {
    fn of(backend: &'a dyn Backend, won: Vec<Row>, buckets: Buckets) -> Self {
        Self {
            backend,
            won,
            buckets,
        }
    }

    /// The ends of a row's bucket, except for the M it was raced at.
    fn of_row(&self, row: &Row) -> Vec<Shape> {
        let (first, last) = self.buckets.ends(row.shape.m);
        let mut ends = vec![first, last];
        ends.dedup();
        ends.retain(|m| *m != row.shape.m);
        let at = |m| row.shape.weight().with_m(m);
        ends.into_iter().map(at).collect()
    }

    fn shapes(&self) -> Vec<Shape> {
        self.won.iter().flat_map(|row| self.of_row(row)).collect()
    }

    /// What won in the bucket of `shape`.
    fn winner(&self, shape: &Shape) -> Option<&Row> {
        let bucket = |shape: &Shape| (shape.weight(), self.buckets.bucket(shape.m));
        self.won
            .iter()
            .find(|row| bucket(&row.shape) == bucket(shape))
    }

    /// Replaces each row that failed by today's.
    fn judge(&self, outcome: &mut TuneOutcome, tried: &TuneOutcome) {
        let rows: BTreeMap<&Shape, &Row> = tried.rows.iter().map(|row| (&row.shape, row)).collect();
        let (mut rest, mut left) = (Vec::new(), Vec::new());
        for row in std::mem::take(&mut outcome.rows) {
            if row.incumbent_kept {
                rest.push(row);
                continue;
            }
            let ends = self.of_row(&row);
            let failed = |end: &Shape| tried.failed.iter().any(|failed| failed.shape == *end);
            if ends
                .iter()
                .any(|end| !rows.contains_key(end) && !failed(end))
            {
                left.push(row.shape);
                continue;
            }
            let why = ends
                .iter()
                .find_map(|end| falls(&row, end, rows.get(end).copied()));
            let Some(why) = why else {
                rest.push(row);
                continue;
            };
            outcome.remarks.push(why);
            if let (Some(today), Some(us)) = (row.incumbent.clone(), row.incumbent_us) {
                rest.push(Row {
                    candidate: today,
                    incumbent_kept: true,
                    us,
                    ..row
                });
            }
        }
        outcome.rows = rest;
        outcome.not_reached.extend(left);
        outcome.not_reached.sort();
    }
}

/// Why `row` cannot serve its bucket, given the result `found` at an end; `None` if it can.
fn falls(row: &Row, at: &Shape, found: Option<&Row>) -> Option<String> {
    let why = match found {
        Some(found) if found.candidate == row.candidate => return None,
        Some(found) => match found.incumbent_us {
            Some(us) => format!(
                "is {:.2}x as fast as today's at M={} and today's {:.2}x as fast at M={}",
                row.incumbent_us.unwrap_or(row.us) / row.us,
                row.shape.m,
                us / found.us,
                at.m
            ),
            None => format!(
                "wins at M={} and does not run with right numbers at M={}",
                row.shape.m, at.m
            ),
        },
        None => format!(
            "wins at M={} and nothing runs with right numbers at M={}",
            row.shape.m, at.m
        ),
    };
    let (n, k) = (row.shape.n, row.shape.k);
    Some(format!(
        "N={n} K={k}: the row found {why}, both in one bucket, which is left as it is"
    ))
}

impl Backend for Ends<'_> {
    fn name(&self) -> &'static str {
        self.backend.name()
    }

    fn options(&self) -> serde_json::Value {
        self.backend.options()
    }

    fn op(&self) -> Op {
        self.backend.op()
    }

    fn refine(&self, effort: Effort) -> Refine {
        self.backend.refine(effort)
    }

    fn rules(&self, effort: Effort) -> Rules {
        self.backend.rules(effort)
    }

    fn pace(&self) -> Pace {
        self.backend.pace()
    }

    fn incumbent(&self, device: &Device, shape: &Shape) -> Option<Candidate> {
        match self.winner(shape) {
            Some(row) => Some(row.candidate.clone()),
            None => self.backend.incumbent(device, shape),
        }
    }

    fn field(
        &self,
        device: &Device,
        shape: &Shape,
        neighbours: &[Candidate],
        effort: Effort,
    ) -> Field {
        match self.winner(shape) {
            Some(row) => {
                let today = self.backend.incumbent(device, shape);
                Field::new(Some(row.candidate.clone()), today, 2)
            }
            None => self.backend.field(device, shape, neighbours, effort),
        }
    }

    fn relatives(&self, device: &Device, shape: &Shape, candidate: &Candidate) -> Vec<Candidate> {
        match self.winner(shape) {
            Some(_) => Vec::new(),
            None => self.backend.relatives(device, shape, candidate),
        }
    }

    fn write(&self, _: &Utf8Path, _: &Device, _: &[Row]) -> std::io::Result<Written> {
        Ok(Written::default())
    }
}
