//! The whole run: starting the tuner as often as needed, taking over rows, ending properly.

use std::collections::BTreeSet;
use std::time::Instant;

use camino::Utf8Path;

use super::FmoeOrder;
use super::call::Call;
use super::outcome::{FmoeOutcome, Refused, Taken};
use super::prepare::{Site, write_input};
use super::row::{self, Line};
use crate::problem::op::fused_moe_aiter::{ERR_LIMIT, TUNED_OP};
use crate::tune::aiter::attempt::{Attempt, Files, Left, Moved};
use crate::tune::aiter::output::{TunerLine, TunerStatus};
use crate::tune::aiter::queue::{EndReason, Queue, Round};
use crate::tune::aiter::session::{self, Judged, Run, Tuner, earlier_attempts};
use crate::tune::aiter::{AiterTuneError, notices};
use crate::tune::event::TuneEvent;

/// File name of the resulting table.
const TABLE: &str = "tuned_fmoe.csv";

/// The remark on every table of this tuner.
const NOT_END_TO_END: &str = "times are the tuner's: those of the stages added up, without what runs between them, so whether a row is \
     faster than what serves today shows only end to end";

/// Tunes, reporting to `observer`. Every result is durable at once: the same order with the same folder continues
/// where it stopped.
pub fn tune(
    order: &FmoeOrder<'_>,
    observer: &mut dyn FnMut(&TuneEvent<Call>),
) -> Result<FmoeOutcome, AiterTuneError> {
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
    order: &'a FmoeOrder<'a>,
    site: Site,
    run: Run<'a, Call, Line>,
}

impl<'a> Session<'a> {
    fn open(
        order: &'a FmoeOrder<'a>,
        folder: &'a Utf8Path,
        site: Site,
        began: Instant,
    ) -> Result<Self, AiterTuneError> {
        let options = serde_json::json!({ "op": TUNED_OP, "err_ratio": order.limits.err_ratio });
        let digest = &site.script.digest;
        let mut run = Run::open(folder, &site.asked, digest, &options, began)?;
        run.unserved.extend_from_slice(&site.unserved);
        run.remarks.extend_from_slice(&site.asked.remarks);
        run.remarks.push(NOT_END_TO_END.to_owned());
        run.remarks.extend(order.limits.lenient(ERR_LIMIT));
        Ok(Self { order, site, run })
    }

    /// Takes over the results of earlier runs, and reports what has to be done.
    fn begin(&mut self, observer: &mut dyn FnMut(&TuneEvent<Call>)) -> Result<(), AiterTuneError> {
        for files in earlier_attempts(self.run.folder)? {
            // Rows that were written after gemmtune had ended.
            self.take(&row::read(&files.tuned), &mut |_| ())?;
            self.run.count(&files);
        }
        let mut open = Vec::new();
        for call in &self.site.calls {
            let failed = self
                .run
                .keep
                .failed
                .iter()
                .find(|failed| failed.shape == *call);
            if self.run.keep.of(call).is_some() {
                self.run.resumed.push(call.clone());
            } else if let Some(failed) = failed.filter(|_| !self.order.retry_failed) {
                self.run.unserved.push(failed.clone());
            } else {
                open.push(call.clone());
            }
        }
        let shapes = self.site.calls.len() + self.site.unserved.len();
        self.run.tell_start(shapes, open.len(), observer);
        for unserved in &self.site.unserved {
            observer(&TuneEvent::Failed(unserved.clone()));
        }
        // Its modules are compiled when they are first called, and no file of the tree tells which they are.
        let first = self.run.keep.rows.is_empty() && open.len() > 1;
        self.run.queue = Queue::new(open, self.site.batch, first, false);
        Ok(())
    }

    fn on_line(
        &mut self,
        parsed: &TunerLine,
        status: &TunerStatus,
        round: &Round<Call>,
        observer: &mut dyn FnMut(&TuneEvent<Call>),
    ) {
        match parsed {
            TunerLine::Waiting { tasks } => {
                let calls = round.batch.min(round.shapes.len()).max(1);
                let seen = u32::try_from(tasks.div_ceil(calls)).ok();
                self.site.candidates = self.site.candidates.max(seen);
            }
            TunerLine::TaskDone { .. } => {
                if let Some((done, of)) = status.tasks {
                    observer(&TuneEvent::Batch {
                        done,
                        of,
                        left_at_most: self
                            .site
                            .calls
                            .len()
                            .saturating_sub(self.run.keep.rows.len()),
                        eta_s: None,
                    });
                }
            }
            _ => {}
        }
        if let Some(event) = notices::event(parsed, status) {
            observer(&event);
        }
        if let Some(text) = notices::remark(parsed) {
            self.run.remark(text, observer);
        }
    }

    /// Checks rows and stores good ones; they are durable before `observer` is notified.
    fn take(
        &mut self,
        lines: &[Line],
        observer: &mut dyn FnMut(&TuneEvent<Call>),
    ) -> Result<Judged<Call>, AiterTuneError> {
        let mut judged = Judged::default();
        for line in lines {
            let Some(row) = line.row() else {
                continue;
            };
            let calls = &self.site.calls;
            let Some(call) = calls.iter().find(|call| call.is_of(&row)).cloned() else {
                continue;
            };
            let (gfx, cu_num) = (&self.run.device.arch, self.run.device.cu_num);
            if let Some(reason) = row::refusal(line, gfx, cu_num, self.order.limits.err_ratio) {
                if self.run.keep.refuse(&call, line, &reason)? {
                    observer(&TuneEvent::Remark {
                        text: format!("{call}: a row is refused, {reason}"),
                    });
                }
                let reason = format!("its only row was refused: {reason}");
                judged.refused.insert(call, reason);
                continue;
            }
            if self.run.keep.of(&call).is_none() {
                self.run.keep.put(&call, line.clone())?;
                let doubt = if row::is_above_default(line) {
                    ", with more wrong numbers than are taken by default"
                } else {
                    ""
                };
                let names: Vec<&str> = row.kernels.iter().flatten().map(AsRef::as_ref).collect();
                observer(&TuneEvent::Remark {
                    text: format!(
                        "{call}: {:.1} us by {}{doubt}",
                        row.us[2].unwrap_or(f64::INFINITY),
                        names.join(" and ")
                    ),
                });
            }
            judged.landed.insert(call);
        }
        Ok(judged)
    }

    /// Writes the table and summarises the run.
    fn end(
        self,
        observer: &mut dyn FnMut(&TuneEvent<Call>),
    ) -> Result<FmoeOutcome, AiterTuneError> {
        let calls = &self.site.calls;
        let left: BTreeSet<Call> = self.run.queue.left().into_iter().collect();
        let row = |call: &Call| {
            let row = self.run.keep.of(call)?;
            Some(Taken {
                above_default: row::is_above_default(row),
                shape: call.clone(),
                row: row.clone(),
            })
        };
        let rows: Vec<Taken> = calls.iter().filter_map(row).collect();
        let now = self.run.keep.failed.iter().filter(|failed| {
            calls.contains(&failed.shape)
                && !left.contains(&failed.shape)
                && !self.run.unserved.contains(failed)
        });
        let failed = now.chain(&self.run.unserved).cloned().collect();
        let mut files = Vec::new();
        if !rows.is_empty() {
            let path = self.run.folder.join(TABLE);
            let table = row::table(rows.iter().map(|taken| &taken.row));
            crate::store::file::write_atomic(&path, table.as_bytes())
                .map_err(AiterTuneError::Write)?;
            observer(&TuneEvent::Wrote { path: path.clone() });
            files.push(path);
        }
        let refused = self.run.keep.refused.into_iter();
        Ok(FmoeOutcome {
            op: TUNED_OP,
            device: self.run.device,
            rows,
            resumed: self.run.resumed,
            err_ratio: self.order.limits.err_ratio,
            default_err_ratio: ERR_LIMIT,
            refused: refused
                .filter(|(call, _, _)| calls.contains(call))
                .map(|(shape, row, reason)| Refused { shape, row, reason })
                .collect(),
            failed,
            not_reached: calls
                .iter()
                .filter(|call| left.contains(*call))
                .cloned()
                .collect(),
            remarks: self.run.remarks,
            files,
            logs: self.run.logs,
            attempts: self.run.attempts,
            busy_s: self.run.busy_s,
            seconds: self.run.began.elapsed().as_secs_f64(),
            interrupted: self.run.stopped == Some(EndReason::Interrupted),
        })
    }
}

impl<'a> Tuner<'a> for Session<'a> {
    type Problem = Call;
    type Row = Line;

    fn run(&mut self) -> &mut Run<'a, Call, Line> {
        &mut self.run
    }

    fn broken(&self, files: &Files, code: u8) -> AiterTuneError {
        files.broken(&self.site.script.path, code)
    }

    fn attempt(
        &mut self,
        round: &Round<Call>,
        until: Option<Instant>,
        observer: &mut dyn FnMut(&TuneEvent<Call>),
    ) -> Result<(Files, Left, Judged<Call>), AiterTuneError> {
        let files = self.run.next_files()?;
        write_input(&files, &round.shapes)?;
        let (task, patience) = self.site.patience(self.order, round);
        let line = self.site.line(self.order, &files, round.batch, task)?;
        self.run.record(&files, &line, observer)?;
        let attempt = Attempt {
            rows: &row::read,
            argv: line.argv,
            env: self.site.attempt_env(&files),
            files: &files,
            patience,
            until,
        };
        let mut judged = Judged::default();
        let (keeper, interrupt) = (self.order.keeper, self.order.interrupt);
        let left = attempt.run(keeper, interrupt, &mut |moved| {
            match moved {
                Moved::Line(parsed, status) => self.on_line(parsed, status, round, observer),
                Moved::Rows(lines) => {
                    let now = self.take(&lines, observer)?;
                    judged.merge(now);
                }
            }
            Ok(())
        })?;
        self.run.busy_s += left.seconds * f64::from(self.run.device.visible);
        Ok((files, left, judged))
    }

    fn settle(
        &mut self,
        round: Round<Call>,
        left: &Left,
        judged: Judged<Call>,
        observer: &mut dyn FnMut(&TuneEvent<Call>),
    ) -> Result<(), AiterTuneError> {
        let kind = round.kind;
        self.run.settle(round, left, judged, Call::size, observer)?;
        if left.status.timed_out > 0 {
            self.run.remark(
                format!(
                    "{} candidates were given up by the tuner's own time limit: one of them may be better",
                    left.status.timed_out
                ),
                observer,
            );
        }
        // How far numbers are off differs between candidates.
        let said = left.status.warnings.values();
        let said: BTreeSet<&str> = said
            .filter_map(|text| text.split(": max abs delta").next())
            .collect();
        for text in said {
            self.run.remark(
                format!(
                    "some candidates could not be run ({text}): rows are the best of the others"
                ),
                observer,
            );
        }
        if let Some(text) = notices::restarted(left.why, kind) {
            self.run.remark(text, observer);
        }
        Ok(())
    }
}
