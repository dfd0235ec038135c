//! The whole run: starting the tuner as often as needed, taking over rows, ending properly.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use camino::{Utf8Path, Utf8PathBuf};

use super::FmoeOrder;
use super::call::Call;
use super::outcome::{FmoeOutcome, Refused, Taken};
use super::prepare::{Site, write_input};
use super::row::{self, Line};
use crate::problem::op::fused_moe_aiter::{ERR_LIMIT, TUNED_OP};
use crate::tune::aiter::attempt::{Attempt, Files, Left, Moved};
use crate::tune::aiter::keep::Keep;
use crate::tune::aiter::output::{TunerLine, TunerStatus};
use crate::tune::aiter::prepare::ATTEMPTS;
use crate::tune::aiter::queue::{EndReason, Queue, Round, RoundResult};
use crate::tune::aiter::run::{SYS, earlier_attempts};
use crate::tune::aiter::starts::Starts;
use crate::tune::aiter::{AiterTuneError, BACKEND, memory, notices};
use crate::tune::event::{TuneEvent, Unserved};
use crate::tune::protocol::{self, Device};
use crate::tune::results::{self, Identity};

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
    let mut session = Session::open(order, &folder, site)?;
    session.begin(observer)?;
    session.work(began, observer)?;
    session.end(began, observer)
}

/// A tuning run in progress.
struct Session<'a> {
    order: &'a FmoeOrder<'a>,
    folder: &'a Utf8Path,
    site: Site,
    device: Device,
    keep: Keep<Call, Line>,
    queue: Queue<Call>,
    resumed: Vec<Call>,
    /// Calls that the tuner does not support, or that failed in an earlier run.
    unserved: Vec<Unserved<Call>>,
    remarks: Vec<String>,
    logs: Vec<Utf8PathBuf>,
    attempts: u32,
    busy_s: f64,
    stopped: Option<EndReason>,
}

/// What was done with the rows of one start.
#[derive(Default)]
struct Judged {
    landed: BTreeSet<Call>,
    refused: BTreeMap<Call, String>,
}

impl<'a> Session<'a> {
    fn open(
        order: &'a FmoeOrder<'a>,
        folder: &'a Utf8Path,
        site: Site,
    ) -> Result<Self, AiterTuneError> {
        let seen = site.asked.seen.clone().unwrap_or_default();
        let device = Device {
            protocol: protocol::VERSION,
            backend: BACKEND.to_owned(),
            name: seen.name,
            arch: seen.gfx,
            cu_num: seen.cu_num,
            index: 0,
            visible: site.asked.devices.unwrap_or(1),
            l2_bytes: 0,
            smem_bytes: 0,
            versions: seen.versions,
            kernel_hash: site.script.digest.clone(),
            capabilities: Vec::new(),
            prepare_slots: 0,
            candidates: Vec::new(),
            shipped: String::new(),
            taken_bytes: None,
        };
        let options = serde_json::json!({ "op": TUNED_OP, "err_ratio": order.limits.err_ratio });
        let keep = Keep::open(folder, &Identity::of(&device, &options))?;
        let mut remarks = site.asked.remarks.clone();
        remarks.push(NOT_END_TO_END.to_owned());
        remarks.extend(order.limits.lenient(ERR_LIMIT));
        Ok(Self {
            order,
            folder,
            device,
            keep,
            queue: Queue::default(),
            resumed: Vec::new(),
            unserved: site.unserved.clone(),
            remarks,
            logs: Vec::new(),
            attempts: 0,
            busy_s: 0.0,
            stopped: None,
            site,
        })
    }

    /// Takes over the results of earlier runs, and reports what has to be done.
    fn begin(&mut self, observer: &mut dyn FnMut(&TuneEvent<Call>)) -> Result<(), AiterTuneError> {
        for folder in earlier_attempts(self.folder)? {
            // Rows that were written after gemmtune had ended.
            let files = Files::new(folder);
            self.take(&row::read(&files.tuned), &mut |_| ())?;
            let number = files.folder.file_name().and_then(|name| name.parse().ok());
            self.attempts = self.attempts.max(number.unwrap_or(0));
        }
        let mut open = Vec::new();
        for call in &self.site.calls {
            let failed = self.keep.failed.iter().find(|failed| failed.shape == *call);
            if self.keep.of(call).is_some() {
                self.resumed.push(call.clone());
            } else if let Some(failed) = failed.filter(|_| !self.order.retry_failed) {
                self.unserved.push(failed.clone());
            } else {
                open.push(call.clone());
            }
        }
        observer(&TuneEvent::Started {
            device: Box::new(self.device.clone()),
            workers: self.device.visible,
            shapes: self.site.calls.len() + self.site.unserved.len(),
            resumed: self.resumed.len(),
            races_at_most: open.len(),
        });
        for text in &self.remarks {
            observer(&TuneEvent::Remark { text: text.clone() });
        }
        for unserved in &self.site.unserved {
            observer(&TuneEvent::Failed(unserved.clone()));
        }
        // Its modules are compiled when they are first called, and no file of the tree tells which they are.
        let first = self.keep.rows.is_empty() && open.len() > 1;
        self.queue = Queue::new(open, self.site.batch, first, false);
        Ok(())
    }

    /// Starts the tuner until nothing is left, the budget is spent or the user interrupts.
    fn work(
        &mut self,
        began: Instant,
        observer: &mut dyn FnMut(&TuneEvent<Call>),
    ) -> Result<(), AiterTuneError> {
        let sys = Utf8Path::new(SYS);
        let memory_before = memory::taken(sys);
        if let Some(text) = memory::before(sys) {
            self.remark(text, observer);
        }
        let until = self.order.budget.map(|budget| began + budget);
        let mut starts = Starts::new(self.order.interrupt, until);
        loop {
            self.stopped = self.stopped.or_else(|| starts.over());
            if self.stopped.is_some() {
                break;
            }
            let Some(round) = self.queue.next() else {
                break;
            };
            let (files, left, judged) = self.attempt(&round, until, observer)?;
            let mark = files.folder.as_str();
            for text in memory::after(sys, mark, memory_before, self.order.interrupt) {
                self.remark(text, observer);
            }
            match starts.after(&left) {
                Ok(why) => self.stopped = why,
                Err(code) => return Err(files.broken(&self.site.script.path, code)),
            }
            self.settle(round, &left, judged, observer)?;
        }
        Ok(())
    }

    fn attempt(
        &mut self,
        round: &Round<Call>,
        until: Option<Instant>,
        observer: &mut dyn FnMut(&TuneEvent<Call>),
    ) -> Result<(Files, Left, Judged), AiterTuneError> {
        self.attempts += 1;
        let number = format!("{:02}", self.attempts);
        let files = Files::new(self.folder.join(ATTEMPTS).join(number));
        fs_err::create_dir_all(&files.folder).map_err(AiterTuneError::Write)?;
        write_input(&files, &round.shapes)?;
        let (task, patience) = self.site.patience(self.order, round);
        let line = self.site.line(self.order, &files, round.batch, task)?;
        crate::store::file::write_atomic(
            &files.folder.join("command.json"),
            serde_json::json!({ "argv": line.argv })
                .to_string()
                .as_bytes(),
        )
        .map_err(AiterTuneError::Write)?;
        for remark in line.remarks {
            self.remark(remark, observer);
        }
        self.logs
            .extend([files.stdout.clone(), files.stderr.clone()]);
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
                    judged.landed.extend(now.landed);
                    judged.refused.extend(now.refused);
                }
            }
            Ok(())
        })?;
        self.busy_s += left.seconds * f64::from(self.device.visible);
        Ok((files, left, judged))
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
                        left_at_most: self.site.calls.len().saturating_sub(self.keep.rows.len()),
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
            self.remark(text, observer);
        }
    }

    /// Checks rows and stores good ones; they are durable before `observer` is notified.
    fn take(
        &mut self,
        lines: &[Line],
        observer: &mut dyn FnMut(&TuneEvent<Call>),
    ) -> Result<Judged, AiterTuneError> {
        let mut judged = Judged::default();
        for line in lines {
            let Some(row) = line.row() else {
                continue;
            };
            let calls = &self.site.calls;
            let Some(call) = calls.iter().find(|call| call.is_of(&row)).cloned() else {
                continue;
            };
            let (gfx, cu_num) = (&self.device.arch, self.device.cu_num);
            if let Some(reason) = row::refusal(line, gfx, cu_num, self.order.limits.err_ratio) {
                if self.keep.refuse(&call, line, &reason)? {
                    observer(&TuneEvent::Remark {
                        text: format!("{call}: a row is refused, {reason}"),
                    });
                }
                let reason = format!("its only row was refused: {reason}");
                judged.refused.insert(call, reason);
                continue;
            }
            if self.keep.of(&call).is_none() {
                self.keep.put(&call, line.clone())?;
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

    fn settle(
        &mut self,
        round: Round<Call>,
        left: &Left,
        judged: Judged,
        observer: &mut dyn FnMut(&TuneEvent<Call>),
    ) -> Result<(), AiterTuneError> {
        let mut reasons = judged.refused;
        for call in &round.shapes {
            if !judged.landed.contains(call)
                && !reasons.contains_key(call)
                && let Some(reason) = left.status.reason(call.size())
            {
                reasons.insert(call.clone(), reason);
            }
        }
        let kind = round.kind;
        let ended = RoundResult {
            why: left.why,
            landed: judged.landed,
            doubtful: BTreeSet::new(),
            passed: left.status.passed,
            reasons,
        };
        for failed in self.queue.settle(round, &ended) {
            self.keep.fail(&failed)?;
            observer(&TuneEvent::Failed(failed));
        }
        if left.status.timed_out > 0 {
            self.remark(
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
            self.remark(
                format!(
                    "some candidates could not be run ({text}): rows are the best of the others"
                ),
                observer,
            );
        }
        if let Some(text) = notices::restarted(left.why, kind) {
            self.remark(text, observer);
        }
        Ok(())
    }

    fn remark(&mut self, text: String, observer: &mut dyn FnMut(&TuneEvent<Call>)) {
        if !self.remarks.contains(&text) {
            observer(&TuneEvent::Remark { text: text.clone() });
            self.remarks.push(text);
        }
    }

    /// Writes the table and summarises the run.
    fn end(
        self,
        began: Instant,
        observer: &mut dyn FnMut(&TuneEvent<Call>),
    ) -> Result<FmoeOutcome, AiterTuneError> {
        let calls = &self.site.calls;
        let left: BTreeSet<Call> = self.queue.left().into_iter().collect();
        let row = |call: &Call| {
            let row = self.keep.of(call)?;
            Some(Taken {
                above_default: row::is_above_default(row),
                shape: call.clone(),
                row: row.clone(),
            })
        };
        let rows: Vec<Taken> = calls.iter().filter_map(row).collect();
        let now = self.keep.failed.iter().filter(|failed| {
            calls.contains(&failed.shape)
                && !left.contains(&failed.shape)
                && !self.unserved.contains(failed)
        });
        let failed = now.chain(&self.unserved).cloned().collect();
        let mut files = Vec::new();
        if !rows.is_empty() {
            let path = self.folder.join(TABLE);
            let table = row::table(rows.iter().map(|taken| &taken.row));
            crate::store::file::write_atomic(&path, table.as_bytes())
                .map_err(AiterTuneError::Write)?;
            observer(&TuneEvent::Wrote { path: path.clone() });
            files.push(path);
        }
        let refused = self.keep.refused.into_iter();
        Ok(FmoeOutcome {
            op: TUNED_OP,
            device: self.device,
            rows,
            resumed: self.resumed,
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
            remarks: self.remarks,
            files,
            logs: self.logs,
            attempts: self.attempts,
            busy_s: self.busy_s,
            seconds: began.elapsed().as_secs_f64(),
            interrupted: self.stopped == Some(EndReason::Interrupted),
        })
    }
}
