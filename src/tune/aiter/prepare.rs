//! What is determined before anything is tuned: the tree, the interpreter, its devices, and the time limits.

use std::collections::BTreeMap;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;

use super::attempt::{Files, Patience};
use super::command::{self, Line, Wanted};
use super::flags::FlagsFrom;
use super::queue::{Round, RoundKind};
use super::scripts::{self, Script};
use super::site::{Query, QueryResult, Seen};
use super::{AiterOrder, AiterTuneError};
use crate::table::kernels::Library;

/// Folder of the attempts, below the order's.
pub(super) const ATTEMPTS: &str = "attempts";

/// Shapes in a batch. A batch costs a pool of fresh processes, which is seconds; at a revision where an unsupported
/// shape spoils the rest of its batch, it may cost the batch.
pub(super) const BATCH: usize = 8;
const BATCH_WHERE_POISONED: usize = 4;

/// Generous estimate of the device time of one candidate: inputs, a reference product, 106 launches.
pub(super) const CANDIDATE: Duration = Duration::from_secs(3);

/// Most splits of K with which a candidate is tried (exponents 0 to 4 in the shapes counted).
const SPLITS: u32 = 5;

/// What would be run.
#[derive(Clone, Debug, Serialize)]
pub struct Preview {
    pub script: Utf8PathBuf,
    /// Digest of it and of the files it uses.
    pub digest: String,
    /// Columns that identify a row in it.
    pub keys: Vec<String>,
    /// Where its flags were read from.
    pub flags_from: FlagsFrom,
    /// The command line of the first start.
    pub command: Vec<String>,
    /// Its variables, relative to the caller's.
    pub env: BTreeMap<String, Option<String>>,
    /// Devices found; absent if the interpreter could not be run.
    pub device: Option<DeviceSeen>,
    pub shapes: usize,
    /// Shapes in a batch.
    pub batch: usize,
    /// Modules that are still to be compiled.
    pub to_compile: Vec<String>,
    /// How the command was adapted, and other remarks.
    pub remarks: Vec<String>,
    /// The budget, s.
    pub budget_s: Option<f64>,
    /// Where results would be written.
    pub output: Utf8PathBuf,
}

/// The devices a tuner would use.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceSeen {
    pub name: String,
    pub gfx: String,
    /// Compute units of the first device.
    pub cu_num: u32,
    pub count: u32,
}

impl From<Seen> for DeviceSeen {
    fn from(seen: Seen) -> Self {
        Self {
            name: seen.name,
            gfx: seen.gfx,
            cu_num: seen.cu_num,
            count: seen.count,
        }
    }
}

/// What is known before tuning starts.
pub(super) struct Site {
    pub(super) script: Script,
    pub(super) asked: QueryResult,
    pub(super) batch: usize,
    pub(super) split_k: bool,
    pub(super) to_compile: Vec<String>,
    /// Candidates of one shape, once the tuner has reported their number.
    pub(super) candidates: Option<u32>,
    /// Device time of one candidate, once tasks were seen to finish.
    pub(super) pace: Option<Duration>,
}

impl Site {
    /// Inspects the tree and the interpreter, with `scratch` for its files. With `must`, what a dry run only remarks
    /// on is an error.
    pub(super) fn look(
        order: &AiterOrder<'_>,
        scratch: &Utf8Path,
        must: bool,
    ) -> Result<Self, AiterTuneError> {
        if order.untuned.is_empty() {
            return Err(AiterTuneError::NoShapes);
        }
        if let Some(shape) = order.untuned.iter().find(|shape| shape.op != order.op) {
            return Err(AiterTuneError::OtherOperation {
                shape: shape.clone(),
                op: order.op,
            });
        }
        let script = Script::find(order.tree, order.op)?;
        let query = Query {
            python: order.python,
            env: order.env,
            root: &script.root,
            keeper: order.keeper,
            interrupt: order.interrupt,
        };
        let mut asked = QueryResult::about(
            &script.path,
            &script.flags,
            query,
            order.settings.devices,
            scratch,
            must,
        )?;
        if let (Some(seen), Some((gfx, cu_num))) = (&asked.seen, &order.key)
            && (*gfx != seen.gfx || *cu_num != seen.cu_num)
        {
            return Err(AiterTuneError::OtherKey {
                wanted: format!("{gfx} with {cu_num} compute units"),
                found: format!("{} with {}", seen.gfx, seen.cu_num),
            });
        }
        let default = if script.poisons_batches() {
            BATCH_WHERE_POISONED
        } else {
            BATCH
        };
        let batch = order
            .settings
            .batch
            .unwrap_or(default)
            .clamp(1, order.untuned.len());
        let split_k = order.settings.split_k.unwrap_or(script.obeys_split_k);
        if split_k && !script.obeys_split_k {
            asked.remarks.push(format!(
                "splits of K are searched although this tree's {} ignores them",
                order.op
            ));
        }
        let site = Self {
            to_compile: to_compile(&script, &asked.env, order),
            script,
            asked,
            batch,
            split_k,
            candidates: None,
            pace: None,
        };
        Ok(site.warned())
    }

    /// Adds a remark on what its grouping would let through.
    fn warned(mut self) -> Self {
        if self.is_grouped() && self.script.shares_outputs() {
            self.asked.remarks.push(
                "with one device this tuner groups candidates and does not clear outputs between them: a kernel that \
                 writes nothing may pass; the layout check after deployment is what finds it"
                    .to_owned(),
            );
        }
        self
    }

    /// Whether the tuner gives all candidates of a shape to one worker as one task.
    pub(super) fn is_grouped(&self) -> bool {
        self.asked.devices == Some(1) && self.asked.flags.get("--shape_grouped").is_some()
    }

    /// The tuner's own task limit in a round, and how long to wait.
    pub(super) fn patience(&self, order: &AiterOrder<'_>, round: &Round) -> (Duration, Patience) {
        let limits = &order.limits;
        let own = self.asked.has_own_limit();
        let most = order.op.aiter().map_or(0, |aiter| aiter.candidates.most());
        let candidates = self
            .candidates
            .unwrap_or(most * if self.split_k { SPLITS } else { 1 });
        // Four times the observed time leaves room for slow candidates.
        let one = self
            .pace
            .map_or(CANDIDATE, |pace| (pace * 4).min(CANDIDATE));
        let of_shape = one.min(limits.task) * candidates;
        let devices = self.asked.devices.unwrap_or(1).max(1);
        let mut task = limits.task;
        if self.is_grouped() {
            task += of_shape;
        } else if self.script.counts_queueing() {
            let shapes = u32::try_from(round.batch).unwrap_or(u32::MAX);
            task += of_shape.saturating_mul(shapes) / devices;
        }
        if round.kind == RoundKind::First {
            task += limits.build;
        }
        // In batches our own limit is the shorter one if the tuner's counts the queue: a batch without progress is
        // ended, and its shapes are run alone, where the tuner's limit is short enough to save the rest of a shape.
        let sure = own
            && (self.is_grouped()
                || !self.script.counts_queueing()
                || round.kind == RoundKind::Alone);
        let patience = Patience::of(limits, task, sure);
        (task, patience)
    }

    pub(super) fn line(
        &self,
        order: &AiterOrder<'_>,
        files: &Files,
        round: &Round,
        task: Duration,
    ) -> Result<Line, AiterTuneError> {
        Ok(command::line(&Wanted {
            python: order.python,
            script: &self.script,
            flags: &self.asked.flags,
            untuned: files.untuned.clone(),
            tuned: files.tuned.clone(),
            profile: files.profile.clone(),
            devices: self.asked.devices,
            batch: round.batch,
            libtype: order.settings.libtype.as_deref(),
            split_k: self.split_k,
            err_ratio: order.limits.err_ratio,
            task,
        })?)
    }
}

/// Whether a search of the order would load `module`.
fn is_used(module: &str, order: &AiterOrder<'_>) -> bool {
    let library = scripts::library(module);
    let searched = match (library, order.settings.libtype.as_deref()) {
        (_, None | Some("all")) | (Library::Ck | Library::CkTile, _) => true,
        (other, Some(wanted)) => wanted.split(',').any(|one| one == other.name()),
    };
    let only = order.op.aiter().and_then(|aiter| aiter.assembly_dtype);
    let has = |dtype: &str| order.untuned.iter().any(|shape| shape.dtype == dtype);
    searched && (library != Library::Asm || only.is_none_or(has))
}

/// Modules of which no folder has a build. A plain Python file replaces a build.
fn to_compile(
    script: &Script,
    env: &BTreeMap<String, Option<String>>,
    order: &AiterOrder<'_>,
) -> Vec<String> {
    let folders = match env.get("AITER_JIT_DIR").cloned().flatten() {
        Some(folder) => vec![Utf8PathBuf::from(folder)],
        None => script.module_folders(),
    };
    script
        .modules
        .iter()
        .filter(|module| is_used(module, order))
        .filter(|module| {
            !folders.iter().any(|folder| {
                ["so", "py"]
                    .iter()
                    .any(|ending| folder.join(format!("{module}.{ending}")).is_file())
            })
        })
        .cloned()
        .collect()
}

/// Describes what [`tune`] would do, without writing anything into the order's folder.
pub fn preview(order: &AiterOrder<'_>, scratch: &Utf8Path) -> Result<Preview, AiterTuneError> {
    let site = Site::look(order, scratch, false)?;
    let kind = if site.to_compile.is_empty() {
        RoundKind::Together
    } else {
        RoundKind::First
    };
    let round = Round {
        kind,
        shapes: order.untuned.to_vec(),
        batch: site.batch,
    };
    let (task, _) = site.patience(order, &round);
    let files = Files::new(order.folder.join(ATTEMPTS).join("01"));
    let line = site.line(order, &files, &round, task)?;
    let env = QueryResult::added(attempt_env(&site, &files), order.env);
    let mut remarks = site.asked.remarks;
    remarks.extend(line.remarks);
    Ok(Preview {
        script: site.script.path,
        digest: site.script.digest,
        keys: site.script.keys,
        flags_from: site.asked.flags.from,
        command: line.argv,
        env,
        device: site.asked.seen.map(DeviceSeen::from),
        shapes: order.untuned.len(),
        batch: site.batch,
        to_compile: site.to_compile,
        remarks,
        budget_s: order.budget.map(|budget| budget.as_secs_f64()),
        output: order.folder.to_owned(),
    })
}

/// Variables of one start.
pub(super) fn attempt_env(site: &Site, files: &Files) -> BTreeMap<String, Option<String>> {
    let mut env = site.asked.env.clone();
    // A single path is used as it is. If unset, the import would merge shipped tables into a file that every process
    // of this host shares; with two paths it would rewrite the user's files.
    if let Some(aiter) = site.script.op.aiter() {
        env.insert(aiter.variable.to_owned(), Some(files.tuned.to_string()));
    }
    env
}
