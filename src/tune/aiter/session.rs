//! What the runs of aiter's tuners have in common: the folder, the rows kept, the starts of the tuner and their limits.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::attempt::{Files, Left};
use super::command::Line;
use super::keep::{Found, Keep};
use super::prepare::ATTEMPTS;
use super::queue::{EndReason, Queue, Round, RoundResult};
use super::site::QueryResult;
use super::starts::Starts;
use super::{AiterTuneError, BACKEND, memory};
use crate::problem::Shape;
use crate::proc::Interrupt;
use crate::store::file::{entries, write_atomic};
use crate::store::lock::Lock;
use crate::tune::event::{TuneEvent, Unserved};
use crate::tune::protocol::{self, Device};
use crate::tune::results::{self, Identity};

/// Where the kernel driver reports GPU memory.
const SYS: &str = "/sys";

/// Calls `look` with a temporary folder for files of its own, then creates and locks `folder`. An order that `look` refuses leaves no
/// folder behind.
pub(super) fn enter<S>(
    folder: &Utf8Path,
    look: impl FnOnce(&Utf8Path) -> Result<S, AiterTuneError>,
) -> Result<(S, Utf8PathBuf, Lock), AiterTuneError> {
    let scratch = tempfile::tempdir().map_err(AiterTuneError::Write)?;
    let scratch_folder = Utf8PathBuf::try_from(scratch.path().to_owned())
        .map_err(|error| AiterTuneError::Write(std::io::Error::other(error)))?;
    let site = look(&scratch_folder)?;
    fs_err::create_dir_all(folder).map_err(AiterTuneError::Write)?;
    let folder = folder.canonicalize_utf8().map_err(AiterTuneError::Write)?;
    let lock = results::lock(&folder)?;
    Ok((site, folder, lock))
}

/// The folders of earlier starts below `folder`, oldest first.
pub(super) fn earlier_attempts(folder: &Utf8Path) -> Result<Vec<Files>, AiterTuneError> {
    let folder = folder.join(ATTEMPTS);
    fs_err::create_dir_all(&folder).map_err(AiterTuneError::Write)?;
    let mut found: Vec<Utf8PathBuf> = entries(&folder)
        .map_err(AiterTuneError::Write)?
        .into_iter()
        .map(camino::Utf8DirEntry::into_path)
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    Ok(found.into_iter().map(Files::new).collect())
}

/// A run of problems `P` whose rows are kept as `R`.
pub(super) struct Run<'a, P, R> {
    pub(super) folder: &'a Utf8Path,
    pub(super) device: Device,
    pub(super) keep: Keep<P, R>,
    pub(super) queue: Queue<P>,
    /// Problems with a row from an earlier run.
    pub(super) resumed: Vec<P>,
    /// Problems that the tuner does not support, or that failed in an earlier run.
    pub(super) unserved: Vec<Unserved<P>>,
    pub(super) remarks: Vec<String>,
    pub(super) logs: Vec<Utf8PathBuf>,
    pub(super) attempts: u32,
    pub(super) busy_s: f64,
    pub(super) began: Instant,
    pub(super) stopped: Option<EndReason>,
}

/// What was done with the rows of one round.
pub(super) struct Judged<P = Shape> {
    pub(super) landed: BTreeSet<P>,
    /// Those of them that lost candidates.
    pub(super) doubtful: BTreeSet<P>,
    pub(super) refused: BTreeMap<P, String>,
}

impl<P> Default for Judged<P> {
    fn default() -> Self {
        Self {
            landed: BTreeSet::new(),
            doubtful: BTreeSet::new(),
            refused: BTreeMap::new(),
        }
    }
}

impl<P: Ord> Judged<P> {
    pub(super) fn merge(&mut self, other: Self) {
        self.landed.extend(other.landed);
        self.doubtful.extend(other.doubtful);
        self.refused.extend(other.refused);
    }
}

impl<'a, P, R> Run<'a, P, R>
where
    P: Clone + Ord + Serialize + DeserializeOwned,
    R: Found<P>,
{
    /// Opens or begins the results in `folder` of a tuner with the digest `script` and `options`.
    pub(super) fn open(
        folder: &'a Utf8Path,
        asked: &QueryResult,
        script: &str,
        options: &serde_json::Value,
        began: Instant,
    ) -> Result<Self, AiterTuneError> {
        let seen = asked.seen.clone().unwrap_or_default();
        let device = Device {
            protocol: protocol::VERSION,
            backend: BACKEND.to_owned(),
            name: seen.name,
            arch: seen.gfx,
            cu_num: seen.cu_num,
            index: 0,
            visible: asked.devices.unwrap_or(1),
            l2_bytes: 0,
            smem_bytes: 0,
            versions: seen.versions,
            kernel_hash: script.to_owned(),
            capabilities: Vec::new(),
            prepare_slots: 0,
            candidates: Vec::new(),
            shipped: String::new(),
            taken_bytes: None,
        };
        let keep = Keep::open(folder, &Identity::of(&device, options))?;
        Ok(Self {
            folder,
            device,
            keep,
            queue: Queue::default(),
            resumed: Vec::new(),
            unserved: Vec::new(),
            remarks: Vec::new(),
            logs: Vec::new(),
            attempts: 0,
            busy_s: 0.0,
            began,
            stopped: None,
        })
    }

    /// Counts an earlier start. A removed folder leaves a gap, so that no name is used twice.
    pub(super) fn count(&mut self, files: &Files) {
        let number = files.folder.file_name().and_then(|name| name.parse().ok());
        self.attempts = self.attempts.max(number.unwrap_or(0));
    }

    /// Reports that `races` of `shapes` problems are to be tuned, and every remark.
    pub(super) fn tell_start(
        &self,
        shapes: usize,
        races: usize,
        observer: &mut dyn FnMut(&TuneEvent<P>),
    ) {
        observer(&TuneEvent::Started {
            device: Box::new(self.device.clone()),
            workers: self.device.visible,
            shapes,
            resumed: self.resumed.len(),
            races_at_most: races,
        });
        for text in &self.remarks {
            observer(&TuneEvent::Remark { text: text.clone() });
        }
    }

    /// The files of the next start, in a folder of its own.
    pub(super) fn next_files(&mut self) -> Result<Files, AiterTuneError> {
        self.attempts += 1;
        let number = format!("{:02}", self.attempts);
        let files = Files::new(self.folder.join(ATTEMPTS).join(number));
        fs_err::create_dir_all(&files.folder).map_err(AiterTuneError::Write)?;
        Ok(files)
    }

    /// Records the command `line` that is run on `files`.
    pub(super) fn record(
        &mut self,
        files: &Files,
        line: &Line,
        observer: &mut dyn FnMut(&TuneEvent<P>),
    ) -> Result<(), AiterTuneError> {
        let argv = serde_json::json!({ "argv": line.argv }).to_string();
        write_atomic(&files.folder.join("command.json"), argv.as_bytes())
            .map_err(AiterTuneError::Write)?;
        for remark in &line.remarks {
            self.remark(remark.clone(), observer);
        }
        self.logs
            .extend([files.stdout.clone(), files.stderr.clone()]);
        Ok(())
    }

    /// Reports `text` once.
    pub(super) fn remark(&mut self, text: String, observer: &mut dyn FnMut(&TuneEvent<P>)) {
        if !self.remarks.contains(&text) {
            observer(&TuneEvent::Remark { text: text.clone() });
            self.remarks.push(text);
        }
    }

    /// Records the end of a round; returns how many of its problems failed. `size` is what the tuner's output identifies a problem by.
    pub(super) fn settle(
        &mut self,
        round: Round<P>,
        left: &Left,
        judged: Judged<P>,
        size: impl Fn(&P) -> (u32, u32, u32),
        observer: &mut dyn FnMut(&TuneEvent<P>),
    ) -> Result<usize, AiterTuneError> {
        let mut reasons = judged.refused;
        for shape in &round.shapes {
            if !judged.landed.contains(shape)
                && !reasons.contains_key(shape)
                && let Some(reason) = left.status.reason(size(shape))
            {
                reasons.insert(shape.clone(), reason);
            }
        }
        let ended = RoundResult {
            why: left.why,
            landed: judged.landed,
            doubtful: judged.doubtful,
            passed: left.status.passed,
            reasons,
        };
        let failed = self.queue.settle(round, &ended);
        for failed in &failed {
            self.keep.fail(failed)?;
            observer(&TuneEvent::Failed(failed.clone()));
        }
        Ok(failed.len())
    }
}

/// One of aiter's tuners in a run.
pub(super) trait Tuner<'a> {
    type Problem: Clone + Ord + Serialize + DeserializeOwned;
    /// The form in which its rows are kept.
    type Row: Found<Self::Problem>;

    fn run(&mut self) -> &mut Run<'a, Self::Problem, Self::Row>;

    /// Starts it once.
    fn attempt(
        &mut self,
        round: &Round<Self::Problem>,
        until: Option<Instant>,
        observer: &mut dyn FnMut(&TuneEvent<Self::Problem>),
    ) -> Result<(Files, Left, Judged<Self::Problem>), AiterTuneError>;

    /// The error for a tuner that ended with `code` and would end so again.
    fn broken(&self, files: &Files, code: u8) -> AiterTuneError;

    /// Whether a start that began a batch ended in such an error.
    fn is_broken(&self, _left: &Left) -> bool {
        false
    }

    /// Records the end of a round.
    fn settle(
        &mut self,
        round: Round<Self::Problem>,
        left: &Left,
        judged: Judged<Self::Problem>,
        observer: &mut dyn FnMut(&TuneEvent<Self::Problem>),
    ) -> Result<(), AiterTuneError>;
}

/// Starts `tuner` until nothing is left, the budget is spent or the user interrupts.
pub(super) fn work<'a, T: Tuner<'a>>(
    tuner: &mut T,
    budget: Option<Duration>,
    interrupt: &Interrupt,
    observer: &mut dyn FnMut(&TuneEvent<T::Problem>),
) -> Result<(), AiterTuneError> {
    let sys = Utf8Path::new(SYS);
    let memory_before = memory::taken(sys);
    if let Some(text) = memory::before(sys) {
        tuner.run().remark(text, observer);
    }
    let until = budget.map(|budget| tuner.run().began + budget);
    let mut starts = Starts::new(interrupt, until);
    loop {
        let run = tuner.run();
        run.stopped = run.stopped.or_else(|| starts.over());
        if run.stopped.is_some() {
            break;
        }
        let Some(round) = run.queue.next() else {
            break;
        };
        let (files, left, judged) = tuner.attempt(&round, until, observer)?;
        for text in memory::after(sys, files.folder.as_str(), memory_before, interrupt) {
            tuner.run().remark(text, observer);
        }
        match starts.after(&left) {
            Ok(why) => tuner.run().stopped = why,
            Err(code) => return Err(tuner.broken(&files, code)),
        }
        if tuner.is_broken(&left) {
            return Err(tuner.broken(&files, left.code.unwrap_or(0)));
        }
        tuner.settle(round, &left, judged, observer)?;
    }
    Ok(())
}
