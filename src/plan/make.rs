//! Making the plan: from shapes, tables and a model's layers to rows in order of gain.

use std::collections::{BTreeMap, BTreeSet};

use super::buckets::Buckets;
use super::cost::Cost;
use super::document::{Plan, PlanReason};
use super::fold::{Fold, RowKey, Served, Serving, Target};
use super::model::Prediction;
use super::sizes;
use super::write::Writer;
use crate::problem::{Op, Shape};
use crate::table::aiter::{Row, Table};
use crate::table::aiter_triton;
use crate::table::lookup::LookupError;
use crate::table::merge::{self, MergeError, Outcome, Policy};
use crate::table::revision::Revision;
use crate::table::roofline::Device;
use crate::table::sglang_json::{Config, FileName};
use crate::table::shapes::CountedShape;

/// The input of a plan.
#[derive(Clone, Debug)]
pub struct PlanInput<'a> {
    /// The operation to plan for; shapes of others are counted but ignored.
    pub op: Op,
    /// Shapes that were captured, with their counts.
    pub shapes: &'a [CountedShape],
    /// Tables that the runtime uses today.
    pub tables: &'a [Table],
    /// SGLang's files for this device, for an operation of SGLang's own.
    pub configs: &'a [(FileName, Config)],
    /// Files of aiter's Triton GEMM, where rows are planned for it ([`Fold::Bucket`]).
    pub files: &'a [(aiter_triton::FileName, aiter_triton::Configs)],
    /// The model's layers, where its config is known.
    pub model: Option<&'a Prediction>,
    /// M that decode graphs are captured for; empty if unknown.
    pub capture: &'a [u32],
    /// Chunked prefill size, if known.
    pub chunk: Option<u32>,
    /// Revision of the user's aiter.
    pub revision: Revision,
    /// Architecture, as tables have it.
    pub gfx: &'a str,
    /// Compute units, as tables have them.
    pub cu_num: u32,
    /// Peak rates with which times are estimated.
    pub device: &'a Device,
    /// How many M share a row.
    pub fold: Fold,
    /// Whether a shape that only the coarse grid serves should be tuned again.
    pub refine: bool,
    /// Terms of the cost estimate.
    pub cost: &'a Cost,
    /// Seconds on one device that tuning may take; rows beyond that are left out.
    pub budget_s: Option<f64>,
}

/// Why no plan can be made.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// There are neither shapes of the operation nor a model.
    #[error("plan for {0}: there are no shapes of it")]
    NoShapes(Op),
    /// An aiter revision in whose Triton GEMM keys are names of sizes.
    #[error(
        "plan for aiter's Triton GEMM at v0.1.7: keys of its files are names of sizes, for which no row is tuned"
    )]
    Names,
    /// The tables cannot be used together.
    #[error("use the given tables")]
    Tables(#[from] MergeError),
    /// The look-up rejects a table.
    #[error("ask the look-up")]
    Lookup(#[from] LookupError),
    /// The runtime cannot load a file's keys.
    #[error("use `{0}`: a key is no integer, so the runtime cannot load the file")]
    Config(String),
}

/// How often a shape has to be served, and why.
pub(super) struct Demand {
    pub(super) calls: f64,
    pub(super) because: PlanReason,
}

/// The plan for `input`: rows to tune in order of gain, with what they serve, cost and leave out. Fails where there
/// are neither shapes nor a model, or where a table cannot be used.
pub fn make(input: &PlanInput<'_>) -> Result<Plan, PlanError> {
    let target = Target::new(
        input.op,
        input.revision,
        input.gfx,
        input.cu_num,
        input.fold,
    );
    let demands = demands(input);
    if demands.is_empty() {
        return Err(PlanError::NoShapes(input.op));
    }
    let shapes: Vec<Shape> = demands.keys().cloned().collect();
    let good = Good::of(input)?;
    let mut serving = match input.fold {
        Fold::Bucket => Serving::buckets(buckets(input, &demands)?),
        _ => good.serving(&target),
    };
    let before = serving.serve(&shapes)?;
    // Nearest-M always finds something; only a key tuned for this size counts.
    let coarse_will_do = !input.refine && input.op.aiter().is_some();
    let is_good =
        |served: &Option<Served>| served.is_some_and(|served| !served.coarse || coarse_will_do);
    for (shape, served) in shapes.iter().zip(&before) {
        if !is_good(served) {
            let key = serving.key(shape, serving.row_m(&target, shape));
            serving.plan(key);
        }
    }
    let after = settle(&mut serving, &shapes)?;
    // A shape for which an existing row is found even now is served by that: with nearest-M the planned row for it
    // turned out to be further away.
    let existing =
        |shape: &Shape, served: &Served| !serving.planned().contains(&serving.key(shape, served.m));
    let served_before: Vec<Option<Served>> = shapes
        .iter()
        .zip(before.into_iter().zip(&after))
        .map(|(shape, (before, after))| {
            before
                .filter(|_| is_good(&before))
                .or_else(|| after.filter(|after| existing(shape, after)))
        })
        .collect();
    let writer = Writer {
        input,
        good: &good,
        serving: &serving,
        demands: &demands,
        shapes: &shapes,
        before: &served_before,
        after: &after,
    };
    Ok(writer.plan())
}

/// The buckets of aiter's Triton GEMM, with the M of each that has most calls.
fn buckets(input: &PlanInput<'_>, demands: &BTreeMap<Shape, Demand>) -> Result<Buckets, PlanError> {
    let rules = aiter_triton::Rules::from(input.revision);
    if rules == aiter_triton::Rules::Names {
        return Err(PlanError::Names);
    }
    let counted: Vec<CountedShape> = demands
        .iter()
        .map(|(shape, demand)| CountedShape {
            shape: shape.clone(),
            records: demand.calls as u64,
        })
        .collect();
    Ok(Buckets::of(input.files, input.gfx, rules, &counted))
}

/// Removes planned rows that no shape is served by (another is nearer), until each serves one.
fn settle(serving: &mut Serving, shapes: &[Shape]) -> Result<Vec<Option<Served>>, LookupError> {
    loop {
        let served = serving.serve(shapes)?;
        let found = shapes
            .iter()
            .zip(&served)
            .filter_map(|(shape, served)| Some(serving.key(shape, (*served)?.m)));
        let found: BTreeSet<RowKey> = found.collect();
        let idle: Vec<RowKey> = serving.planned().difference(&found).cloned().collect();
        if idle.is_empty() {
            return Ok(served);
        }
        for key in &idle {
            serving.withdraw(key);
        }
    }
}

/// The shapes to serve: those that were captured, and those that graphs and prefill will add.
fn demands(input: &PlanInput<'_>) -> BTreeMap<Shape, Demand> {
    let mut demands: BTreeMap<Shape, Demand> = BTreeMap::new();
    let mut weights: BTreeMap<(u32, u32, String), f64> = BTreeMap::new();
    for CountedShape { shape, records } in input
        .shapes
        .iter()
        .filter(|counted| counted.shape.op == input.op)
    {
        weights
            .entry((shape.n, shape.k, shape.dtype.clone()))
            .or_insert(0.0);
        let demand = demands.entry(shape.clone()).or_insert(Demand {
            calls: 0.0,
            because: PlanReason::Seen,
        });
        demand.calls += *records as f64;
    }
    // Without a log the weights come from the model, and every size counts as one forward.
    if weights.is_empty()
        && let Some(model) = input.model
    {
        for (n, k, count) in model.weights() {
            weights.insert((n, k, String::new()), f64::from(count));
        }
    }
    for ((n, k, dtype), calls) in &weights {
        let graph = input.capture.iter().map(|m| (*m, PlanReason::Graph));
        let prefill = input
            .chunk
            .into_iter()
            .flat_map(|chunk| sizes::prefill_cover(chunk, *n, *k));
        for (m, because) in graph.chain(prefill.map(|m| (m, PlanReason::Prefill))) {
            if m == 0 {
                continue;
            }
            let shape = Shape {
                op: input.op,
                m,
                n: *n,
                k: *k,
                dtype: dtype.clone(),
            };
            demands.entry(shape).or_insert(Demand {
                calls: *calls,
                because,
            });
        }
    }
    demands
}

/// The rows of the given tables that are reliable.
pub(super) struct Good {
    table: Table,
    /// Table and line number of each row of `table`, in order.
    places: Vec<(String, u64)>,
    keys: Vec<(u32, u32, u32)>,
    pub(super) notes: Vec<String>,
}

impl Good {
    fn of(input: &PlanInput<'_>) -> Result<Self, PlanError> {
        let mut good = Self {
            table: Table::new("good rows", input.op, Revision::H),
            places: Vec::new(),
            keys: Vec::new(),
            notes: Vec::new(),
        };
        let tables: Vec<Table> = input
            .tables
            .iter()
            .filter(|table| table.op == input.op)
            .cloned()
            .collect();
        if tables.len() < input.tables.len() {
            good.notes.push(format!(
                "{} tables of other operations are left alone",
                input.tables.len() - tables.len()
            ));
        }
        if !tables.is_empty() {
            let policy = Policy {
                gfx: Some(input.gfx.to_owned()),
                revision: Some(input.revision),
                ..Policy::default()
            };
            let merged = merge::merge(&tables, &policy)?;
            let invalid = merged.count(Outcome::Invalid);
            if invalid > 0 {
                good.notes.push(format!(
                    "{invalid} rows of the tables are no valid measurements and count as missing"
                ));
            }
            let kept = merged
                .provenance
                .into_iter()
                .filter(|entry| entry.outcome == Outcome::Kept);
            for entry in kept {
                // A table without the gfx column matches by compute units alone.
                let here = entry.row.cu_num == Some(input.cu_num)
                    && entry.row.gfx.as_deref().is_none_or(|gfx| gfx == input.gfx);
                if here {
                    good.places.push((entry.table, entry.row.line));
                    // The index replaces the line number until the plan is written.
                    let line = good.places.len() as u64;
                    good.table.rows.push(Row {
                        gfx: Some(input.gfx.into()),
                        line,
                        ..entry.row
                    });
                }
            }
        }
        for (name, config) in input.configs {
            let keys = config
                .by_m()
                .ok_or_else(|| PlanError::Config(name.to_string()))?;
            let sizes = keys.into_iter().filter_map(|(m, _)| u32::try_from(m).ok());
            good.keys.extend(sizes.map(|m| (name.n, name.k, m)));
        }
        Ok(good)
    }

    fn serving(&self, target: &Target) -> Serving {
        if target.rules.op.aiter().is_none() {
            Serving::nearest(self.keys.iter().copied())
        } else {
            Serving::aiter(self.table.clone(), target.clone())
        }
    }

    pub(super) fn place(
        &self,
        input: &PlanInput<'_>,
        shape: &Shape,
        served: Served,
    ) -> (String, u64) {
        if input.fold == Fold::Bucket {
            let name = aiter_triton::FileName {
                gfx: input.gfx.to_owned(),
                preshuffled: false,
                weight: Some((shape.n, shape.k)),
            };
            return (name.to_string(), 0);
        }
        if input.op.aiter().is_none() {
            let file = input
                .configs
                .iter()
                .find(|(name, _)| (name.n, name.k) == (shape.n, shape.k));
            return (
                file.map(|(name, _)| name.to_string()).unwrap_or_default(),
                0,
            );
        }
        let index = usize::try_from(served.line)
            .ok()
            .and_then(|line| line.checked_sub(1));
        index
            .and_then(|index| self.places.get(index))
            .cloned()
            .unwrap_or_default()
    }
}

#[cfg(test)]
#[path = "make_tests.rs"]
mod tests;
