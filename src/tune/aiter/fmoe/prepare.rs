//! What is determined before anything is tuned: the tree, the interpreter, its devices, and which calls the tuner
//! supports.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};

use super::FmoeOrder;
use super::call::Call;
use super::script::FmoeScript;
use crate::problem::dtype;
use crate::problem::op::fused_moe_aiter::VARIABLE;
use crate::table::fmoe::requests::Counted;
use crate::table::fmoe::rules::Rounding;
use crate::table::fmoe::table::UNTUNED;
use crate::tune::aiter::attempt::{Files, Patience};
use crate::tune::aiter::command::{Fit, Line};
use crate::tune::aiter::prepare::{ATTEMPTS, BATCH, CANDIDATE};
use crate::tune::aiter::queue::{Round, RoundKind};
use crate::tune::aiter::site::{Query, QueryResult, Seen};
use crate::tune::aiter::{AiterTuneError, DeviceSeen, Preview};
use crate::tune::event::Unserved;

/// Runs the script without letting it modify the tree; see its header.
const RUNNER: &str = include_str!("../../../../python/aiter_tuner/fused_moe.py");

/// Assumed candidates of a call until the tuner reports their number: more than either revision generates for
/// block-scaled FP8, two stages with their splits and all one-stage kernels (about 45 at 303a583c, 60 at e4048607).
const CANDIDATES: u32 = 64;

/// What is known before tuning starts.
pub(super) struct Site {
    pub(super) script: FmoeScript,
    pub(super) asked: QueryResult,
    pub(super) batch: usize,
    /// Distinct calls that the tuner supports, in the given order.
    pub(super) calls: Vec<Call>,
    /// Calls for which it would produce no row.
    pub(super) unserved: Vec<Unserved<Call>>,
    /// Candidates of one call, once the tuner has reported their number.
    pub(super) candidates: Option<u32>,
}

impl Site {
    /// Inspects the tree and the interpreter, with `scratch` for its files. With `must`, what a dry run only remarks
    /// on is an error.
    pub(super) fn look(
        order: &FmoeOrder<'_>,
        scratch: &Utf8Path,
        must: bool,
    ) -> Result<Self, AiterTuneError> {
        if order.calls.is_empty() {
            return Err(AiterTuneError::NoShapes);
        }
        let script = FmoeScript::find(order.tree)?;
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
            order.devices,
            scratch,
            must,
        )?;
        asked.remarks.extend(script.remark());
        let (calls, unserved) = calls(order.calls, &script, &mut asked);
        Ok(Self {
            batch: order.batch.unwrap_or(BATCH).clamp(1, calls.len().max(1)),
            script,
            asked,
            calls,
            unserved,
            candidates: None,
        })
    }

    /// The tuner's own task limit in a round, and how long to wait.
    pub(super) fn patience(
        &self,
        order: &FmoeOrder<'_>,
        round: &Round<Call>,
    ) -> (Duration, Patience) {
        let limits = &order.limits;
        let own = self.asked.has_own_limit();
        let mut task = limits.task;
        if self.script.counts_queueing {
            let tasks = self.candidates.unwrap_or(CANDIDATES)
                * u32::try_from(round.batch).unwrap_or(u32::MAX);
            let devices = self.asked.devices.unwrap_or(1).max(1);
            task += CANDIDATE.min(limits.task).saturating_mul(tasks) / devices;
        }
        if round.kind == RoundKind::First {
            task += limits.build;
        }
        // As for dense operations: a batch without progress is ended and its calls are run alone, where the tuner's
        // limit is sure to act.
        let sure = own && (!self.script.counts_queueing || round.kind != RoundKind::Together);
        let patience = Patience::of(limits, task, sure);
        (task, patience)
    }

    pub(super) fn line(
        &self,
        order: &FmoeOrder<'_>,
        files: &Files,
        batch: usize,
        task: Duration,
    ) -> Result<Line, AiterTuneError> {
        let [runner, candidates] = [runner(files), files.folder.join("candidates.csv")];
        let argv = [order.python, &runner, &candidates, &self.script.path]
            .map(ToString::to_string)
            .to_vec();
        let mut fit = Fit::new(argv, &self.script.path, &self.asked.flags);
        fit.need("-i", Some(files.untuned.to_string()))?;
        fit.need("-o", Some(files.tuned.to_string()))?;
        // The script accepts rows up to this limit; its own default is half of all numbers at 303a583c.
        fit.need("--errRatio", Some(order.limits.err_ratio.to_string()))?;
        let profile = files.profile.to_string();
        fit.give("-o2", Some(profile), "what came second is not known")?;
        if let Some(devices) = self.asked.devices {
            let devices = Some(devices.to_string());
            fit.give("--mp", devices, "it chooses the devices itself")?;
        }
        let batch = Some(batch.to_string());
        fit.give("--batch", batch, "rows come when all calls are done")?;
        let seconds = Some(task.as_secs().max(1).to_string());
        fit.give(
            "--timeout",
            seconds,
            "a candidate that hangs costs its batch",
        )?;
        fit.give("-v", None, "progress shows after each batch only")?;
        Ok(fit.line)
    }

    /// Variables of one start.
    pub(super) fn attempt_env(&self, files: &Files) -> BTreeMap<String, Option<String>> {
        let mut env = self.asked.env.clone();
        // If unset, the import would merge shipped tables into a file that every process of this host shares.
        env.insert(VARIABLE.to_owned(), Some(files.tuned.to_string()));
        env
    }
}

/// Path of the runner script of a start.
fn runner(files: &Files) -> Utf8PathBuf {
    files.folder.join("fused_moe.py")
}

/// Writes the input of a start: the runner and the calls.
pub(super) fn write_input(files: &Files, calls: &[Call]) -> Result<(), AiterTuneError> {
    let write = |path: &Utf8Path, text: &str| {
        crate::store::file::write_atomic(path, text.as_bytes()).map_err(AiterTuneError::Write)
    };
    write(&runner(files), RUNNER)?;
    let lines: Vec<String> = calls.iter().map(|call| call.cells() + "\n").collect();
    write(
        &files.untuned,
        &format!("{}\n{}", UNTUNED.join(","), lines.concat()),
    )
}

/// The distinct calls that the tuner supports, and the others with the reason.
fn calls(
    counted: &[Counted],
    script: &FmoeScript,
    about: &mut QueryResult,
) -> (Vec<Call>, Vec<Unserved<Call>>) {
    // The second tier of v0.1.14 and later falls back to the row of the first.
    let rounding = if script.keys_gfx() {
        Rounding::TwoTiers
    } else {
        Rounding::Powers
    };
    let (mut known, mut asked, mut unserved) = (BTreeSet::new(), Vec::new(), Vec::new());
    let mut rounded = 0;
    // An empty forward never reaches aiter.
    for call in counted.iter().filter(|call| call.request.tokens > 0) {
        let request = &call.request;
        let token = rounding.token(request.tokens);
        rounded += usize::from(token != request.tokens);
        // From v0.1.16 on, with the architecture in the key, a call with an expert mask is looked up with one expert
        // less.
        let masked = request.ep && script.keys_gfx() && request.problem.topk > 0;
        let shape = Call::of(request, token, request.problem.topk - u32::from(masked));
        if !known.insert(shape.clone()) {
            continue;
        }
        let seen = about.seen.as_ref();
        match seen.and_then(|seen| cannot_ask(call, &shape, seen)) {
            Some(reason) => unserved.push(Unserved { shape, reason }),
            None => asked.push(shape),
        }
    }
    if rounded > 0 {
        about.remarks.push(format!(
            "{rounded} calls have tokens that no look-up asks for: they are tuned as their look-up rounds them"
        ));
    }
    (asked, unserved)
}

/// Why the tuner would produce no row that serves `call` on its devices.
fn cannot_ask(counted: &Counted, call: &Call, seen: &Seen) -> Option<String> {
    let card = &counted.card;
    let own = dtype::fp8_of(&seen.gfx);
    let foreign = [&call.key.q_dtype_a, &call.key.q_dtype_w]
        .into_iter()
        .find(|dtype| dtype.starts_with("torch.float8") && *dtype != own);
    if card.gfx.as_ref().is_some_and(|gfx| *gfx != seen.gfx)
        || card.cu_num.is_some_and(|cu_num| cu_num != seen.cu_num)
    {
        Some(format!(
            "it was made on {} with {} compute units, and this is {} with {}",
            card.gfx.as_deref().unwrap_or("a card"),
            card.cu_num.unwrap_or(seen.cu_num),
            seen.gfx,
            seen.cu_num
        ))
    } else if let Some(dtype) = foreign {
        Some(format!("on {} FP8 is {own}, not {dtype}", seen.gfx))
    } else if !call.key.use_g1u1 {
        Some("the tuner has no candidate without g1u1".to_owned())
    } else if call.key.q_type == "QuantType.per_1x32" && seen.gfx != "gfx950" {
        // If given to the tuner nevertheless, it would give up the whole batch.
        Some(format!(
            "the tuner does per_1x32 on gfx950 only, and this is {}",
            seen.gfx
        ))
    } else {
        None
    }
}

/// Describes what [`super::tune`] would do, without writing anything into the order's folder.
pub fn preview(order: &FmoeOrder<'_>, scratch: &Utf8Path) -> Result<Preview, AiterTuneError> {
    let site = Site::look(order, scratch, false)?;
    let round = Round {
        kind: RoundKind::Together,
        shapes: site.calls.clone(),
        batch: site.batch,
    };
    let (task, _) = site.patience(order, &round);
    let files = Files::new(order.folder.join(ATTEMPTS).join("01"));
    let line = site.line(order, &files, site.batch, task)?;
    let env = QueryResult::added(site.attempt_env(&files), order.env);
    let mut remarks = site.asked.remarks;
    remarks.extend(
        site.unserved
            .iter()
            .map(|unserved| format!("{}: not asked for, {}", unserved.shape, unserved.reason)),
    );
    remarks.extend(line.remarks);
    Ok(Preview {
        script: site.script.path,
        digest: site.script.digest,
        keys: site.script.keys,
        flags_from: site.asked.flags.from,
        command: line.argv,
        env,
        device: site.asked.seen.map(DeviceSeen::from),
        shapes: site.calls.len(),
        batch: site.batch,
        to_compile: Vec::new(),
        remarks,
        budget_s: order.budget.map(|budget| budget.as_secs_f64()),
        output: order.folder.to_owned(),
    })
}
