//! The whole run: inspecting the installation, starting the tuner as often as needed, taking over rows, ending
//! properly.

mod ending;
mod libraries;
mod taking;

use std::collections::BTreeSet;
use std::time::Instant;

use camino::{Utf8Path, Utf8PathBuf};

use super::accept::Place;
use super::attempt::{Attempt, Files, Left, Moved};
use super::keep::Keep;
use super::kept::RowRecord;
use super::outcome::AiterOutcome;
use super::output::{TunerLine, TunerStatus};
use super::prepare::{ATTEMPTS, Site, attempt_env};
use super::queue::{EndReason, Queue, Round, RoundResult};
use super::starts::Starts;
use super::{AiterOrder, AiterTuneError, BACKEND, memory, notices, rows};
use crate::problem::Shape;
use crate::problem::dtype;
use crate::problem::op::ERR_RATIO_LIMIT;
use crate::store::file::entries;
use crate::table::aiter::Row;
use crate::tune::event::{TuneEvent, Unserved};
use crate::tune::protocol::{self, Device};
use crate::tune::results::{self, Identity};
use taking::Taken;

/// Where the kernel driver reports GPU memory.
pub(super) const SYS: &str = "/sys";

/// Tunes, reporting to `observer`. Every result is durable at once: the same order with the same folder continues
/// where it stopped.
pub fn tune(
    order: &AiterOrder<'_>,
    observer: &mut dyn FnMut(&TuneEvent),
) -> Result<AiterOutcome, AiterTuneError> {
    let began = Instant::now();
    // An order that is refused here leaves no folder behind.
    let scratch = tempfile::tempdir().map_err(AiterTuneError::Write)?;
    let scratch_folder = Utf8PathBuf::try_from(scratch.path().to_owned())
        .map_err(|error| AiterTuneError::Write(std::io::Error::other(error)))?;
    let site = Site::look(order, &scratch_folder, true)?;
    fs_err::create_dir_all(order.folder).map_err(AiterTuneError::Write)?;
    let folder = order
        .folder
        .canonicalize_utf8()
        .map_err(AiterTuneError::Write)?;
    let _lock = results::lock(&folder)?;
    let mut session = Session::open(order, &folder, site, began)?;
    session.begin(observer)?;
    session.work(observer)?;
    session.end(observer)
}

/// A tuning run in progress.
struct Session<'a> {
    order: &'a AiterOrder<'a>,
    folder: &'a Utf8Path,
    site: Site,
    device: Device,
    place: Place,
    keep: Keep<Shape, RowRecord>,
    queue: Queue,
    /// Shapes with a row from an earlier run.
    resumed: Vec<Shape>,
    /// Shapes that the tuner does not support, or that failed in an earlier run.
    unserved: Vec<Unserved>,
    asked: usize,
    remarks: Vec<String>,
    logs: Vec<Utf8PathBuf>,
    attempts: u32,
    busy_s: f64,
    began: Instant,
    first_batch: Option<Instant>,
    batch_began: Instant,
    settled: usize,
    stopped: Option<EndReason>,
}

impl<'a> Session<'a> {
    fn open(
        order: &'a AiterOrder<'a>,
        folder: &'a Utf8Path,
        site: Site,
        began: Instant,
    ) -> Result<Self, AiterTuneError> {
        let seen = site.asked.seen.clone().unwrap_or_default();
        let device = Device {
            protocol: protocol::VERSION,
            backend: BACKEND.to_owned(),
            name: seen.name.clone(),
            arch: seen.gfx.clone(),
            cu_num: seen.cu_num,
            index: 0,
            visible: site.asked.devices.unwrap_or(1),
            l2_bytes: 0,
            smem_bytes: 0,
            versions: seen.versions.clone(),
            kernel_hash: site.script.digest.clone(),
            capabilities: Vec::new(),
            prepare_slots: 0,
            candidates: Vec::new(),
            shipped: String::new(),
            taken_bytes: None,
        };
        let options = serde_json::json!({
            "op": order.op,
            "err_ratio": order.limits.err_ratio,
            "libtype": order.settings.libtype,
            "split_k": site.split_k,
        });
        let keep = Keep::open(folder, &Identity::of(&device, &options))?;
        Ok(Self {
            order,
            folder,
            place: Place {
                gfx: seen.gfx,
                cu_num: seen.cu_num,
                libraries: site.script.libraries.clone(),
            },
            device,
            keep,
            queue: Queue::default(),
            resumed: Vec::new(),
            unserved: Vec::new(),
            asked: 0,
            remarks: [
                order.limits.lenient(ERR_RATIO_LIMIT).as_slice(),
                &site.asked.remarks,
            ]
            .concat(),
            logs: Vec::new(),
            attempts: 0,
            busy_s: 0.0,
            began,
            first_batch: None,
            batch_began: began,
            settled: 0,
            stopped: None,
            site,
        })
    }

    /// Takes over the results of earlier runs, and reports what has to be done.
    fn begin(&mut self, observer: &mut dyn FnMut(&TuneEvent)) -> Result<(), AiterTuneError> {
        let shapes = self.distinct();
        for folder in earlier_attempts(self.folder)? {
            // Rows that were written after gemmtune had ended.
            let files = Files::new(folder);
            let landed = rows::read(&files.tuned, self.order.op);
            self.take(&files, &landed, &shapes, 0.0, &mut |_| ())?;
            // A removed folder leaves a gap: no name is used twice.
            let number = files.folder.file_name().and_then(|name| name.parse().ok());
            self.attempts = self.attempts.max(number.unwrap_or(0));
        }
        let mut open = Vec::new();
        for shape in &shapes {
            if self.keep.of(shape).is_some() {
                self.resumed.push(shape.clone());
            } else if let Some(reason) = self.cannot_ask(shape) {
                self.unserved.push(Unserved {
                    shape: shape.clone(),
                    reason,
                });
            } else if let Some(failed) = self
                .keep
                .failed
                .iter()
                .find(|failed| failed.shape == *shape && !self.order.settings.retry_failed)
            {
                self.unserved.push(failed.clone());
            } else {
                open.push(shape.clone());
            }
        }
        self.asked = open.len();
        let first = !self.site.to_compile.is_empty();
        let repeats = self.site.script.counts_queueing();
        observer(&TuneEvent::Started {
            device: Box::new(self.device.clone()),
            workers: self.device.visible,
            shapes: shapes.len(),
            resumed: self.resumed.len(),
            races_at_most: open.len(),
        });
        for text in &self.remarks {
            observer(&TuneEvent::Remark { text: text.clone() });
        }
        self.queue = Queue::new(open, self.site.batch, first, repeats);
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

    /// Starts the tuner until nothing is left, the budget is spent or the user interrupts.
    fn work(&mut self, observer: &mut dyn FnMut(&TuneEvent)) -> Result<(), AiterTuneError> {
        let sys = Utf8Path::new(SYS);
        let memory_before = memory::taken(sys);
        if let Some(text) = memory::before(sys) {
            self.remark(text, observer);
        }
        let until = self.order.budget.map(|budget| self.began + budget);
        let mut starts = Starts::new(self.order.interrupt, until);
        loop {
            self.stopped = self.stopped.or_else(|| starts.over());
            if self.stopped.is_some() {
                break;
            }
            let Some(round) = self.queue.next() else {
                break;
            };
            let (files, left, taken) = self.attempt(&round, until, observer)?;
            let found = memory::after(
                sys,
                files.folder.as_str(),
                memory_before,
                self.order.interrupt,
            );
            for text in found {
                self.remark(text, observer);
            }
            match starts.after(&left) {
                Ok(why) => self.stopped = why,
                Err(code) => return Err(files.broken(&self.site.script.path, code)),
            }
            if self.keep.rows.is_empty() && !left.status.broken_modules.is_empty() {
                return Err(files.broken(&self.site.script.path, left.code.unwrap_or(0)));
            }
            self.settle(round, &left, taken, observer)?;
        }
        Ok(())
    }

    fn attempt(
        &mut self,
        round: &Round,
        until: Option<Instant>,
        observer: &mut dyn FnMut(&TuneEvent),
    ) -> Result<(Files, Left, Taken), AiterTuneError> {
        self.attempts += 1;
        let files = Files::new(
            self.folder
                .join(ATTEMPTS)
                .join(format!("{:02}", self.attempts)),
        );
        fs_err::create_dir_all(&files.folder).map_err(AiterTuneError::Write)?;
        let write = |path: &Utf8Path, text: &str| {
            crate::store::file::write_atomic(path, text.as_bytes()).map_err(AiterTuneError::Write)
        };
        write(&files.untuned, &self.untuned_csv(&round.shapes))?;
        let (task, patience) = self.site.patience(self.order, round);
        let line = self.site.line(self.order, &files, round, task)?;
        write(
            &files.folder.join("command.json"),
            &serde_json::json!({ "argv": line.argv }).to_string(),
        )?;
        for remark in line.remarks {
            self.remark(remark, observer);
        }
        self.logs
            .extend([files.stdout.clone(), files.stderr.clone()]);
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
        let mut taken = Taken::default();
        let mut since = Instant::now();
        // The time for starting is part of the time for shapes.
        self.first_batch.get_or_insert(since);
        let left = attempt.run(keeper, interrupt, &mut |moved| {
            match moved {
                Moved::Line(parsed, status) => self.on_line(parsed, status, round, observer),
                Moved::Rows(rows) => {
                    let busy = since.elapsed().as_secs_f64() * f64::from(self.device.visible)
                        / rows.len().max(1) as f64;
                    since = Instant::now();
                    let now = self.take(&files, &rows, &round.shapes, busy, observer)?;
                    taken.merge(now);
                }
            }
            Ok(())
        })?;
        self.busy_s += left.seconds * f64::from(self.device.visible);
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
            self.remark(text, observer);
        }
    }

    /// Updates the time of a candidate from the tasks of the current batch.
    fn learn_pace(&mut self, parsed: &TunerLine) {
        /// With fewer, the time would reflect a worker's start rather than candidates.
        const ENOUGH: usize = 4;
        match parsed {
            TunerLine::Waiting { .. } => self.batch_began = Instant::now(),
            TunerLine::TaskDone { done, .. } if *done >= ENOUGH => {
                let all = self.batch_began.elapsed() * self.device.visible;
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

    fn settle(
        &mut self,
        round: Round,
        left: &Left,
        taken: Taken,
        observer: &mut dyn FnMut(&TuneEvent),
    ) -> Result<(), AiterTuneError> {
        let mut reasons = taken.refused;
        for shape in &round.shapes {
            if !taken.landed.contains(shape) && !reasons.contains_key(shape) {
                let size = (shape.m, shape.n, shape.k);
                if let Some(reason) = left.status.reason(size) {
                    reasons.insert(shape.clone(), reason);
                }
            }
        }
        let kind = round.kind;
        let ended = RoundResult {
            why: left.why,
            landed: taken.landed,
            doubtful: taken.doubtful,
            passed: left.status.passed,
            reasons,
        };
        let repeats = self.queue.repeats_left();
        for failed in self.queue.settle(round, &ended) {
            self.keep.fail(&failed)?;
            self.settled += 1;
            observer(&TuneEvent::Failed(failed));
        }
        if let Some(text) = notices::restarted(left.why, kind) {
            self.remark(text, observer);
        }
        let more = self.queue.repeats_left().saturating_sub(repeats);
        if more > 0 {
            self.remark(
                format!("{more} shapes lost candidates to time-outs and are looked at again"),
                observer,
            );
        }
        Ok(())
    }

    fn remark(&mut self, text: String, observer: &mut dyn FnMut(&TuneEvent)) {
        if !self.remarks.contains(&text) {
            observer(&TuneEvent::Remark { text: text.clone() });
            self.remarks.push(text);
        }
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

/// The folders of earlier starts below `folder`, oldest first.
pub(super) fn earlier_attempts(folder: &Utf8Path) -> Result<Vec<Utf8PathBuf>, AiterTuneError> {
    let folder = folder.join(ATTEMPTS);
    fs_err::create_dir_all(&folder).map_err(AiterTuneError::Write)?;
    let mut found = Vec::new();
    for entry in entries(&folder).map_err(AiterTuneError::Write)? {
        let path = entry.into_path();
        if path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
