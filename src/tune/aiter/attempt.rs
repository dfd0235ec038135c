//! One start of the tuner, watched until it ends or has to be ended.
//!
//! Its behaviour is not relied on: it may never end (at some revisions a dead worker makes it wait forever), and its
//! exit code may be zero with candidates lost, or one with all rows written. What counts is the contents of its
//! files.

use std::collections::BTreeMap;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};

use super::output::{TunerLine, TunerStatus};
use super::queue::EndReason;
use super::rows::{Tail, Watched};
use super::{AiterTuneError, Limits, memory, site};
use crate::proc::interrupt::Urgency;
use crate::proc::{Interrupt, Keeper, Spawn};
use crate::table::aiter::Row;

/// How often files are read: rows are durable this soon after they are written.
const POLL: Duration = Duration::from_millis(100);

/// Time between asking the tuner to end and ending it: its workers exit within seconds once their parent is gone.
const GRACE: Duration = Duration::from_secs(3);

/// Time limits of an attempt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub(super) silence: Duration,
    pub(super) batch: Duration,
    /// Time without any sign of progress while a module is compiled.
    pub(super) build: Duration,
}

impl Patience {
    /// Limits for the tuner's own task limit of `task`: if that one is `sure` to act, a silence of that length is
    /// tolerated.
    pub(super) fn of(limits: &Limits, task: Duration, sure: bool) -> Self {
        let silence = limits.silence;
        Self {
            silence: if sure {
                silence.max(task + silence)
            } else {
                silence
            },
            batch: limits.batch.max(task),
            build: limits.build,
        }
    }
}

/// The files of an attempt, all in one folder.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub(super) folder: Utf8PathBuf,
    pub(super) untuned: Utf8PathBuf,
    pub(super) tuned: Utf8PathBuf,
    pub(super) profile: Utf8PathBuf,
    pub(super) stdout: Utf8PathBuf,
    pub(super) stderr: Utf8PathBuf,
}

impl Files {
    /// The error of `script`, which these files belong to, if it ended with `code` before it did anything.
    pub(super) fn broken(&self, script: &Utf8Path, code: u8) -> AiterTuneError {
        let said =
            fs_err::read(&self.stderr).map_or_else(|_| String::new(), |bytes| site::tail(&bytes));
        AiterTuneError::Broken {
            script: script.to_owned(),
            code,
            said,
        }
    }

    pub(super) fn new(folder: Utf8PathBuf) -> Self {
        Self {
            untuned: folder.join("untuned.csv"),
            tuned: folder.join("tuned.csv"),
            profile: folder.join("profile.csv"),
            stdout: folder.join("stdout.log"),
            stderr: folder.join("stderr.log"),
            folder,
        }
    }
}

/// One start of the tuner.
pub(super) struct Attempt<'a, R = Row> {
    /// Reads the complete rows of the tuner's table.
    pub(super) rows: &'a dyn Fn(&Utf8Path) -> Vec<R>,
    pub(super) argv: Vec<String>,
    pub(super) env: BTreeMap<String, Option<String>>,
    pub(super) files: &'a Files,
    pub(super) patience: Patience,
    /// When the budget is spent.
    pub(super) until: Option<Instant>,
}

/// What a start left behind.
pub(super) struct Left {
    pub(super) why: EndReason,
    pub(super) status: TunerStatus,
    pub(super) code: Option<u8>,
    pub(super) seconds: f64,
}

/// A sign of progress.
pub(super) enum Moved<'a, R = Row> {
    /// A line with a meaning.
    Line(&'a TunerLine, &'a TunerStatus),
    /// Rows that are new.
    Rows(Vec<R>),
}

impl<R: Clone + PartialEq> Attempt<'_, R> {
    /// Runs it to its end.
    pub(super) fn run(
        &self,
        keeper: &Keeper,
        interrupt: &Interrupt,
        moved: &mut dyn FnMut(Moved<'_, R>) -> Result<(), AiterTuneError>,
    ) -> Result<Left, AiterTuneError> {
        let (sender, raised) = channel();
        interrupt.subscribe(sender);
        let began = Instant::now();
        let mut env = self.env.clone();
        env.insert(memory::MARK.to_owned(), Some(self.files.folder.to_string()));
        let mut kept = Spawn {
            argv: self.argv.clone(),
            folder: Some(self.files.folder.clone()),
            env,
            stdout: self.files.stdout.clone(),
            stderr: self.files.stderr.clone(),
            grace: GRACE,
            linger: false,
        }
        .start(keeper)?;
        let mut watch = Watch::new(self);
        let why = loop {
            let exited = kept.exited();
            watch.look(exited.is_some(), moved)?;
            if let Some(code) = exited {
                break if watch.status.ended_well {
                    EndReason::Finished
                } else {
                    EndReason::Died(code)
                };
            }
            if self.until.is_some_and(|until| Instant::now() >= until) {
                break EndReason::Budget;
            }
            if let Some(why) = watch.overdue(&self.patience) {
                break why;
            }
            if raised.recv_timeout(POLL).is_ok() {
                break EndReason::Interrupted;
            }
        };
        let code = kept.exited();
        if code.is_none() {
            kept.stop(interrupt.urgency().unwrap_or(Urgency::Stop), interrupt);
            // What it wrote just before it ended counts.
            watch.look(true, moved)?;
        }
        Ok(Left {
            why,
            status: watch.status,
            code,
            seconds: began.elapsed().as_secs_f64(),
        })
    }
}

/// The files and streams that are watched while it runs.
struct Watch<'a, R> {
    rows: &'a dyn Fn(&Utf8Path) -> Vec<R>,
    streams: [Tail; 2],
    table: Watched,
    profile: Watched,
    status: TunerStatus,
    seen: Vec<R>,
    last_sign: Instant,
    batch_began: Instant,
    last_look: Instant,
}

impl<'a, R: Clone + PartialEq> Watch<'a, R> {
    fn new(attempt: &Attempt<'a, R>) -> Self {
        let files = attempt.files;
        let now = Instant::now();
        Self {
            rows: attempt.rows,
            streams: [&files.stdout, &files.stderr].map(|path| Tail::new(path.clone())),
            table: Watched::new(files.tuned.clone()),
            profile: Watched::new(files.profile.clone()),
            status: TunerStatus::default(),
            seen: Vec::new(),
            last_sign: now,
            batch_began: now,
            last_look: now,
        }
    }

    /// Reads what is new; with `all`, also a last line without a line end.
    fn look(
        &mut self,
        all: bool,
        moved: &mut dyn FnMut(Moved<'_, R>) -> Result<(), AiterTuneError>,
    ) -> Result<(), AiterTuneError> {
        let now = Instant::now();
        let mut signs = self.profile.changed();
        for index in 0..self.streams.len() {
            let before = self.streams[index].read();
            for line in self.streams[index].lines(all) {
                if let Some(parsed) = self.status.line(&line) {
                    if matches!(
                        parsed,
                        TunerLine::Waiting { .. } | TunerLine::BatchDone { .. }
                    ) {
                        self.batch_began = now;
                    }
                    moved(Moved::Line(&parsed, &self.status))?;
                }
            }
            signs |= self.streams[index].read() != before;
        }
        if self.table.changed() {
            signs = true;
            let rows: Vec<R> = (self.rows)(self.table.path())
                .into_iter()
                .filter(|row| !self.seen.contains(row))
                .collect();
            if !rows.is_empty() {
                self.seen.extend(rows.iter().cloned());
                moved(Moved::Rows(rows))?;
            }
        }
        if self.is_building() {
            // Time for compiling kernels does not count against the batch.
            self.batch_began += now - self.last_look;
        }
        if signs {
            self.last_sign = now;
        }
        self.last_look = now;
        Ok(())
    }

    fn is_building(&self) -> bool {
        !self.status.building.is_empty() || self.status.lock.is_some()
    }

    fn overdue(&self, patience: &Patience) -> Option<EndReason> {
        let silence = if self.is_building() {
            patience.build
        } else {
            patience.silence
        };
        if self.last_sign.elapsed() > silence {
            Some(EndReason::Silent)
        } else if self.batch_began.elapsed() > patience.batch {
            Some(EndReason::BatchTooLong)
        } else {
            None
        }
    }
}
