//! Which operation is tuned: predicted before anything is served, and known once the workload was captured.
//!
//! SGLang's linears reach three of aiter's operations: block-scaled weights one of two, by the device, per-channel
//! weights `gemm_a8w8_bpreshuffle`. Which of them a model uses follows from its checkpoint; the capture decides, and
//! if both are called, both are tuned. What `run` could not finish is refused before a server is started.

use std::collections::BTreeMap;

use super::facts::{KernelPath, Trees, aiter_error};
use super::{Aiter, moe};
use crate::log::summary::LogSummary;
use crate::plan::model::{self, Scheme};
use crate::problem::Op;
use crate::run::documents::{AlsoTuned, Inspection};
use crate::run::error::{Error, ErrorKind};
use crate::tree::channel::{self, LINEARS};
use crate::tree::package::FP8_UTILS;
use crate::tree::{aiter, era};
use crate::tune::aiter::scripts::Script;

impl Aiter {
    /// The expected operation, and the path to it: the configured one, else what the model's config implies, else the
    /// block-scaled one.
    pub(super) fn expected(&self, trees: &Trees, gfx: &str) -> Result<KernelPath, Error> {
        let block = self.way(trees, gfx, trees.rocm());
        let wanted = self
            .op
            .or_else(|| self.per_channel_model().then_some(Op::PER_CHANNEL));
        let way = match wanted {
            Some(op) if op == Op::PER_CHANNEL => channel_way(trees)?,
            None => block?,
            Some(asked) => {
                let block = block?;
                if asked != block.op {
                    return Err(cannot_finish(asked, block.op));
                }
                block
            }
        };
        tunable(trees, way.op)?;
        Ok(way)
    }

    /// The path to the operation of `inspection`.
    pub(super) fn way_to(
        &self,
        trees: &Trees,
        inspection: &Inspection,
    ) -> Result<KernelPath, Error> {
        if inspection.op == Op::PER_CHANNEL {
            return channel_way(trees);
        }
        self.way(trees, &inspection.gfx, trees.rocm())
    }

    /// The model's config as JSON.
    pub(super) fn model_config(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&self.model_file()?).ok()
    }

    fn model_file(&self) -> Option<Vec<u8>> {
        fs_err::read(self.model.as_ref()?.join("config.json")).ok()
    }

    /// Whether the weights have one scale per channel according to the model's config; false if it cannot be read.
    fn per_channel_model(&self) -> bool {
        let bytes = self.model_file();
        bytes.is_some_and(|bytes| matches!(model::scheme(&bytes), Ok(Scheme::PerChannel)))
    }

    /// What the workload runs: the configured operation, else each that can be tuned, the one with most calls first.
    pub(super) fn operation_seen(
        &self,
        inspection: &Inspection,
        log_summary: &LogSummary,
    ) -> Result<Inspection, Error> {
        let trees = self.trees()?;
        let block = self.way(&trees, &inspection.gfx, trees.rocm());
        let mut calls = BTreeMap::<Op, u64>::new();
        for seen in log_summary.shapes(None) {
            *calls.entry(seen.shape.op).or_default() += seen.records;
        }
        let tunable_here =
            |op: Op| op == Op::PER_CHANNEL || block.as_ref().is_ok_and(|way| way.op == op);
        let told = |op: Op, count: u64| format!("{op} ({count} calls)");
        let most_called = |ops: &mut Vec<Op>| {
            ops.sort_by_key(|op| std::cmp::Reverse((calls[op], *op == inspection.op)));
        };
        let mut here: Vec<Op> = calls
            .keys()
            .copied()
            .filter(|op| tunable_here(*op))
            .collect();
        most_called(&mut here);
        let look = |op: Op| {
            tunable(&trees, op)?;
            self.serves_today(&trees, inspection, op, log_summary)
        };
        let (mut found, mut left) = (Vec::new(), Vec::new());
        match self.op {
            // The configuration takes precedence.
            Some(asked) if calls.contains_key(&asked) => found.push(look(asked)?),
            Some(asked) => {
                let others: Vec<String> =
                    calls.iter().map(|(op, count)| told(*op, *count)).collect();
                return Err(Error::new(
                    ErrorKind::NoShapes,
                    format!(
                        "the workload never called {asked}, which the configuration asks for, but {}",
                        if others.is_empty() { "no GEMM at all".to_owned() } else { others.join(" and ") }
                    ),
                )
                .hint("leave `backend.op` out, and what runs is tuned"));
            }
            None => {
                for op in &here {
                    match look(*op) {
                        Ok(seen) => found.push(seen),
                        Err(error) => left.push((op, error)),
                    }
                }
            }
        }
        if found.is_empty() {
            let first = left.into_iter().next();
            let refusal = first.map_or_else(|| not_through_aiter(log_summary), |(_, error)| error);
            return self.experts_alone(inspection, log_summary, refusal);
        }
        let first = found.remove(0);
        let op = first.op;
        let mut seen = Inspection {
            op,
            path: first.path,
            linear: first.linear,
            table: first.table,
            also: found,
            dense_left: None,
            ..inspection.clone()
        };
        if op != inspection.op {
            seen.remarks.push(format!(
                "the workload runs {op}, not {} as was expected: {op} is tuned",
                inspection.op
            ));
        }
        let left = left
            .iter()
            .map(|(op, error)| format!("{op} is left as it is: {error}"));
        seen.remarks.extend(left);
        let mut others: Vec<Op> = calls.keys().copied().filter(|other| *other != op).collect();
        most_called(&mut others);
        if !others.is_empty() {
            let others: Vec<String> = others.iter().map(|op| told(*op, calls[op])).collect();
            let tuned: Vec<&str> = seen.ops().map(Op::name).collect();
            let next = match self.op {
                Some(_) if here.iter().any(|other| *other != op) => {
                    "; without `backend.op` all that can be tuned are"
                }
                _ => "",
            };
            seen.remarks.push(format!(
                "the workload runs {} and {}: this run tunes {}{next}",
                told(op, calls[&op]),
                others.join(" and "),
                tuned.join(" and ")
            ));
        }
        Ok(seen)
    }

    /// Without a dense operation that can be tuned the fused MoE is tuned alone, where one ran that can be; else `refusal` stands.
    fn experts_alone(
        &self,
        inspection: &Inspection,
        log_summary: &LogSummary,
        refusal: Error,
    ) -> Result<Inspection, Error> {
        if !self.tunes_experts {
            return Err(refusal);
        }
        match moe::tunable(log_summary, &inspection.gfx) {
            None => Err(refusal),
            Some(Err(why)) => Err(refusal.hint(format!("its fused MoE is no way out: {why}"))),
            Some(Ok(())) => {
                let why = refusal.to_string();
                let mut remarks = inspection.remarks.clone();
                remarks.push(format!(
                    "the fused MoE is tuned alone, and dense GEMMs are left as they are: {why}"
                ));
                Ok(Inspection {
                    also: Vec::new(),
                    dense_left: Some(why),
                    remarks,
                    ..inspection.clone()
                })
            }
        }
    }

    /// What serves `op` today in the server of `inspection`.
    fn serves_today(
        &self,
        trees: &Trees,
        inspection: &Inspection,
        op: Op,
        log_summary: &LogSummary,
    ) -> Result<AlsoTuned, Error> {
        let of = Inspection {
            op,
            ..inspection.clone()
        };
        let tables = aiter::tables(&trees.package, op, |name| self.site.variable(name))
            .map_err(|error| aiter_error(&error))?;
        Ok(AlsoTuned {
            op,
            path: self.way_to(trees, &of)?.because,
            linear: linear(op, log_summary),
            table: match tables.files.as_slice() {
                [only] => Some(only.clone()),
                _ => None,
            },
        })
    }
}

/// The path of per-channel GEMMs, which is the same on every device.
fn channel_way(trees: &Trees) -> Result<KernelPath, Error> {
    let recognised =
        |error: &dyn std::error::Error| Error::caused(ErrorKind::SourceNotRecognised, error);
    let source = trees
        .sglang
        .read(FP8_UTILS)
        .map_err(|error| recognised(&error))?;
    let calls = channel::calls(&source).map_err(|error| recognised(&error))?;
    let linears: Vec<&str> = LINEARS
        .iter()
        .copied()
        .filter(|linear| calls.iter().any(|call| call.linear == *linear))
        .collect();
    if linears.is_empty() {
        return Err(Error::new(
            ErrorKind::Environment,
            format!(
                "no per-channel linear of the SGLang in {} reaches {}",
                trees.sglang.folder,
                Op::PER_CHANNEL
            ),
        ));
    }
    Ok(KernelPath {
        op: Op::PER_CHANNEL,
        only_triton: false,
        no_triton: true,
        shuffles: false,
        because: format!(
            "per-channel weights: {} call aiter's {} on every device",
            linears.join(" and "),
            Op::PER_CHANNEL
        ),
    })
}

/// SGLang's function that called `op`, according to the server's log; of two, the one that always does.
fn linear(op: Op, log_summary: &LogSummary) -> Option<String> {
    let said = |name: &&str| {
        log_summary
            .dispatch
            .keys()
            .any(|identity| identity.split(' ').next() == Some(name))
    };
    match op.facts().linears {
        [only] => Some((*only).to_owned()),
        several => several
            .iter()
            .rev()
            .find(|name| said(name))
            .map(|name| (*name).to_owned()),
    }
}

fn not_through_aiter(log_summary: &LogSummary) -> Error {
    let found: Vec<&str> = log_summary.dispatch.keys().map(String::as_str).collect();
    let aiter = |identity: &&str| {
        let name = identity.split(' ').next().unwrap_or_default();
        name.contains(era::LEAF) || LINEARS.contains(&name)
    };
    Error::new(
        ErrorKind::NoShapes,
        match found.as_slice() {
            [] => "the instrumented server never said which implementation serves its FP8 layers".to_owned(),
            found if found.iter().any(aiter) => {
                "the instrumented server served the workload and no FP8 GEMM of aiter's was called".to_owned()
            }
            found => format!("the server's FP8 layers are not served through aiter but by {}", found.join(", ")),
        },
    )
    .hint("the model has to be an FP8 checkpoint with scales per block or per channel, and SGLANG_USE_AITER has to reach every process")
}

/// The error if this machine's server does not run the configured operation.
fn cannot_finish(asked: Op, runs: Op) -> Error {
    let why = if asked.facts().linears.is_empty() {
        format!(
            "no linear of SGLang 0.5.6 to 0.5.23 calls {asked}, so a tuned table of it would serve nothing"
        )
    } else {
        format!("block-scaled weights run {runs} on this machine, and {asked} is never called")
    };
    Error::new(
        ErrorKind::Usage,
        format!("`backend.op` asks for {asked}: {why}"),
    )
    .hint("leave `backend.op` out, and the operation that runs is tuned")
    .hint("a table for other uses is made by `gemmtune tune --backend aiter`, which has an `--op`")
}

/// Refuses an operation for which this aiter lacks a tuner, a table's variable, or a module built from the table: the
/// run would fail after hours.
fn tunable(trees: &Trees, op: Op) -> Result<(), Error> {
    Script::find(&trees.package, op)
        .map_err(|error| Error::caused(ErrorKind::Environment, &error))?;
    aiter::tables(&trees.package, op, |_| None).map_err(|error| aiter_error(&error))?;
    let modules = aiter::modules(&trees.package, op).map_err(|error| aiter_error(&error))?;
    if modules.is_empty() {
        return Err(Error::new(
            ErrorKind::Environment,
            format!(
                "the aiter in {} makes no module from a table of {op} (aiter/jit/optCompilerConfig.json)",
                trees.package
            ),
        )
        .hint("`gemmtune doctor --fix` realigns the checkout (see `--dry-run` first)"));
    }
    Ok(())
}
