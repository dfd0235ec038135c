//! The whole run: inspecting the installation, starting the tuner as often as needed, taking over rows, ending
//! properly.

mod ending;
mod libraries;
mod taking;

use std::collections::BTreeSet;
use std::time::Instant;

use camino::Utf8Path;

use super::accept::Place;
use super::attempt::{Attempt, Files, Left, Moved};
use super::kept::RowRecord;
use super::outcome::AiterOutcome;
use super::output::{TunerLine, TunerStatus};
use super::prepare::{Site, attempt_env};
use super::queue::{Queue, Round};
use super::session::{self, Judged, Run, Tuner, earlier_attempts};
use super::{AiterOrder, AiterTuneError, notices, rows};
use crate::problem::Shape;
use crate::problem::dtype;
use crate::problem::op::ERR_RATIO_LIMIT;
use crate::store::file::write_atomic;
use crate::table::aiter::Row;
use crate::tune::event::{TuneEvent, Unserved};

/// Tunes, reporting to `observer`. Every result is durable at once: the same order with the same folder continues
/// where it stopped.
pub fn tune(
    order: &AiterOrder<'_>,
    observer: &mut dyn FnMut(&TuneEvent),
) -> Result<AiterOutcome, AiterTuneError> {
    let began = Instant::now();
    let (site, folder, _lock) =
        session::enter(order.folder, |scratch| Site::look(order, scratch, true))?;
    let mut session = Session::open(order, &folder, site, began)?;
    session.begin(observer)?;
    session::work(&mut session, order.budget, order.interrupt, observer)?;
    session.end(observer)
}

/// A tuning run in progress.
struct Session<'a> {
    order: &'a AiterOrder<'a>,
    site: Site,
    run: Run<'a, Shape, RowRecord>,
    place: Place,
    asked: usize,
    first_batch: Option<Instant>,
    batch_began: Instant,
    settled: usize,
}

impl<'a> Session<'a> {
    fn open(
        order: &'a AiterOrder<'a>,
        folder: &'a Utf8Path,
        site: Site,
        began: Instant,
    ) -> Result<Self, AiterTuneError> {
        let seen = site.asked.seen.clone().unwrap_or_default();
        let options = serde_json::json!({
            "op": order.op,
            "err_ratio": order.limits.err_ratio,
            "libtype": order.settings.libtype,
            "split_k": site.split_k,
        });
        let digest = &site.script.digest;
        let mut run = Run::open(folder, &site.asked, digest, &options, began)?;
        run.remarks.extend(order.limits.lenient(ERR_RATIO_LIMIT));
        run.remarks.extend_from_slice(&site.asked.remarks);
        Ok(Self {
            order,
            run,
            place: Place {
                gfx: seen.gfx,
                cu_num: seen.cu_num,
                libraries: site.script.libraries.clone(),
            },
            asked: 0,
            first_batch: None,
            batch_began: began,
            settled: 0,
            site,
        })
    }

    /// Takes over the results of earlier runs, and reports what has to be done.
    fn begin(&mut self, observer: &mut dyn FnMut(&TuneEvent)) -> Result<(), AiterTuneError> {
        let shapes = self.distinct();
        for files in earlier_attempts(self.run.folder)? {
            // Rows that were written after gemmtune had ended.
            let landed = rows::read(&files.tuned, self.order.op);
            self.take(&files, &landed, &shapes, 0.0, &mut |_| ())?;
            self.run.count(&files);
        }
        let mut open = Vec::new();
        for shape in &shapes {
            if self.run.keep.of(shape).is_some() {
                self.run.resumed.push(shape.clone());
            } else if let Some(reason) = self.cannot_ask(shape) {
                self.run.unserved.push(Unserved {
                    shape: shape.clone(),
                    reason,
                });
            } else if let Some(failed) = self
                .run
                .keep
                .failed
                .iter()
                .find(|failed| failed.shape == *shape && !self.order.settings.retry_failed)
            {
                self.run.unserved.push(failed.clone());
            } else {
                open.push(shape.clone());
            }
        }
        self.asked = open.len();
        let first = !self.site.to_compile.is_empty();
        let repeats = self.site.script.counts_queueing();
        self.run.tell_start(shapes.len(), open.len(), observer);
        self.run.queue = Queue::new(open, self.site.batch, first, repeats);
        Ok(())
    }

    /// The order's shapes, without those that the tuner cannot distinguish from an earlier one.
    fn distinct(&self) -> Vec<Shape> {
        let by_dtype = self
            .site
            .script
            .untuned_columns
            .iter()
            .any(|column| column == "q_dtype_w");
        let mut seen = BTreeSet::new();
        self.order
            .untuned
            .iter()
            .filter(|shape| {
                let dtype = if by_dtype { shape.dtype.as_str() } else { "" };
                seen.insert((shape.m, shape.n, shape.k, dtype))
            })
            .cloned()
            .collect()
    }

    /// Why the tuner would create no task for `shape`.
    fn cannot_ask(&self, shape: &Shape) -> Option<String> {
        let script = &self.site.script;
        let own = dtype::fp8_of(&self.place.gfx);
        (script
            .untuned_columns
            .iter()
            .any(|column| column == "q_dtype_w")
            && !shape.dtype.is_empty()
            && shape.dtype != own
            && shape.dtype != "torch.int8")
            .then(|| {
                format!(
                    "on {} this tuner takes weights of {own} or torch.int8, not {}",
                    self.place.gfx, shape.dtype
                )
            })
    }

    fn on_line(
        &mut self,
        parsed: &TunerLine,
        status: &TunerStatus,
        round: &Round,
        observer: &mut dyn FnMut(&TuneEvent),
    ) {
        if let TunerLine::Waiting { tasks } = parsed
            && !self.site.is_grouped()
        {
            // The last batch may be smaller, and shapes differ in their splits, so the largest number seen is used.
            let shapes = round.batch.min(round.shapes.len()).max(1);
            let seen = u32::try_from(tasks.div_ceil(shapes)).ok();
            self.site.candidates = self.site.candidates.max(seen);
        }
        self.learn_pace(parsed);
        if matches!(
            parsed,
            TunerLine::Waiting { .. } | TunerLine::TaskDone { .. }
        ) && let Some((done, of)) = status.tasks
        {
            observer(&TuneEvent::Batch {
                done,
                of,
                left_at_most: self.left(),
                eta_s: self.eta(),
            });
        }
        if let Some(event) = notices::event(parsed, status) {
            observer(&event);
        }
        if let Some(text) = notices::remark(parsed) {
            self.run.remark(text, observer);
        }
    }

    /// Updates the time of a candidate from the tasks of the current batch.
    fn learn_pace(&mut self, parsed: &TunerLine) {
        /// With fewer, the time would reflect a worker's start rather than candidates.
        const ENOUGH: usize = 4;
        match parsed {
            TunerLine::Waiting { .. } => self.batch_began = Instant::now(),
            TunerLine::TaskDone { done, .. } if *done >= ENOUGH => {
                let all = self.batch_began.elapsed() * self.run.device.visible;
                self.site.pace = u32::try_from(*done).ok().map(|done| all / done);
            }
            _ => {}
        }
    }

    /// Number of shapes without a result yet.
    fn left(&self) -> usize {
        self.asked.saturating_sub(self.settled)
    }

    fn eta(&self) -> Option<f64> {
        let began = self.first_batch?;
        (self.settled > 0)
            .then(|| began.elapsed().as_secs_f64() / self.settled as f64 * self.left() as f64)
    }

    fn untuned_csv(&self, shapes: &[Shape]) -> String {
        let columns = &self.site.script.untuned_columns;
        let mut text = columns.join(",") + "\n";
        for shape in shapes {
            let cells: Vec<String> = columns
                .iter()
                .map(|column| match column.as_str() {
                    "M" => shape.m.to_string(),
                    "N" => shape.n.to_string(),
                    "K" => shape.k.to_string(),
                    "q_dtype_w" if shape.dtype.is_empty() => {
                        dtype::fp8_of(&self.place.gfx).to_owned()
                    }
                    "q_dtype_w" => shape.dtype.clone(),
                    _ => String::new(),
                })
                .collect();
            text += &cells.join(",");
            text.push('\n');
        }
        text
    }
}

impl<'a> Tuner<'a> for Session<'a> {
    type Problem = Shape;
    type Row = RowRecord;

    fn run(&mut self) -> &mut Run<'a, Shape, RowRecord> {
        &mut self.run
    }

    fn broken(&self, files: &Files, code: u8) -> AiterTuneError {
        files.broken(&self.site.script.path, code)
    }

    fn is_broken(&self, left: &Left) -> bool {
        self.run.keep.rows.is_empty() && !left.status.broken_modules.is_empty()
    }

    fn attempt(
        &mut self,
        round: &Round,
        until: Option<Instant>,
        observer: &mut dyn FnMut(&TuneEvent),
    ) -> Result<(Files, Left, Judged), AiterTuneError> {
        let files = self.run.next_files()?;
        write_atomic(&files.untuned, self.untuned_csv(&round.shapes).as_bytes())
            .map_err(AiterTuneError::Write)?;
        let (task, patience) = self.site.patience(self.order, round);
        let line = self.site.line(self.order, &files, round, task)?;
        self.run.record(&files, &line, observer)?;
        let op = self.order.op;
        let attempt = Attempt {
            rows: &|path| {
                let rows = rows::read(path, op).into_iter();
                rows.map(|row| Row { line: 0, ..row }).collect()
            },
            argv: line.argv,
            env: attempt_env(&self.site, &files),
            files: &files,
            patience,
            until,
        };
        let (keeper, interrupt) = (self.order.keeper, self.order.interrupt);
        let mut taken = Judged::default();
        let mut since = Instant::now();
        // The time for starting is part of the time for shapes.
        self.first_batch.get_or_insert(since);
        let left = attempt.run(keeper, interrupt, &mut |moved| {
            match moved {
                Moved::Line(parsed, status) => self.on_line(parsed, status, round, observer),
                Moved::Rows(rows) => {
                    let busy = since.elapsed().as_secs_f64() * f64::from(self.run.device.visible)
                        / rows.len().max(1) as f64;
                    since = Instant::now();
                    let now = self.take(&files, &rows, &round.shapes, busy, observer)?;
                    taken.merge(now);
                }
            }
            Ok(())
        })?;
        self.run.busy_s += left.seconds * f64::from(self.run.device.visible);
        // Candidates of rows that appeared while the tuner was rewriting its profile are counted now.
        let rows = rows::read(&files.tuned, self.order.op);
        let now = self.take(&files, &rows, &round.shapes, 0.0, observer)?;
        taken.merge(now);
        if left.status.ended {
            let passed = left.status.passed * round.batch;
            let measured = &round.shapes[..passed.min(round.shapes.len())];
            let now = self.recover(&files, measured, &taken, observer)?;
            taken.merge(now);
        }
        Ok((files, left, taken))
    }

    fn settle(
        &mut self,
        round: Round,
        left: &Left,
        judged: Judged,
        observer: &mut dyn FnMut(&TuneEvent),
    ) -> Result<(), AiterTuneError> {
        let kind = round.kind;
        let repeats = self.run.queue.repeats_left();
        let size = |shape: &Shape| (shape.m, shape.n, shape.k);
        self.settled += self.run.settle(round, left, judged, size, observer)?;
        if let Some(text) = notices::restarted(left.why, kind) {
            self.run.remark(text, observer);
        }
        let more = self.run.queue.repeats_left().saturating_sub(repeats);
        if more > 0 {
            self.run.remark(
                format!("{more} shapes lost candidates to time-outs and are looked at again"),
                observer,
            );
        }
        Ok(())
    }
}
