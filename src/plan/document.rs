//! The plan as a document, which other rooms read and `--json` prints.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::cost::Cost;
use super::fold::Fold;
use super::model::Prediction;
use super::moe::PlannedMoe;
use crate::problem::{Op, Shape};
use crate::table::roofline::Device;

/// Whether there is anything to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Rows are worth tuning.
    Tune,
    Nothing,
}

/// Why a row is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlanReason {
    /// A shape that it serves was captured.
    Seen,
    /// A decode graph is captured for an M it serves.
    Graph,
    /// A prefill chunk can have an M it serves.
    Prefill,
}

/// A row worth tuning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedRow {
    #[serde(flatten)]
    pub shape: PlannedShape,
    /// Calls of the shapes it will serve.
    pub calls: f64,
    /// Estimated time of those calls in microseconds.
    pub estimated_us: f64,
    /// Share of the estimated time of all shapes.
    pub share: f64,
    /// The M that it will serve and that were seen or predicted, ascending.
    pub serves: Vec<u32>,
    /// Why it is planned.
    pub because: PlanReason,
    /// Estimated seconds of one device to tune it.
    pub tuning_s: f64,
}

/// A shape in the plan's document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedShape {
    pub op: Op,
    #[serde(rename = "M")]
    pub m: u32,
    /// Output features.
    #[serde(rename = "N")]
    pub n: u32,
    /// Input features.
    #[serde(rename = "K")]
    pub k: u32,
    /// dtype of the weight; empty where it is not known.
    pub dtype: String,
}

impl PlannedShape {
    /// As the [`Shape`] that the other rooms use.
    pub fn shape(&self) -> Shape {
        Shape {
            op: self.op,
            m: self.m,
            n: self.n,
            k: self.k,
            dtype: self.dtype.clone(),
        }
    }
}

/// A shape that another row will serve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Folded {
    #[serde(flatten)]
    pub shape: PlannedShape,
    /// M of the row that will serve it.
    pub into: u32,
}

/// A shape that a good row already serves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlreadyServed {
    #[serde(flatten)]
    pub shape: PlannedShape,
    /// M of the row.
    pub by: u32,
    /// The table that has the row.
    pub table: String,
    pub line: u64,
}

/// The share of calls, and of the estimated time, that a table serves.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HitRate {
    /// By calls, 0 to 1.
    pub calls: f64,
    /// By estimated time, 0 to 1.
    pub time: f64,
}

/// Hit rates before and after the planned tuning.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HitRates {
    /// With the good rows of the given tables.
    pub before: HitRate,
    /// With the planned rows as well.
    pub after: HitRate,
}

/// What to tune, in order, with what is left out and what it costs and gains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Whether there is anything to do.
    pub verdict: Verdict,
    /// Why, in one sentence.
    pub reason: String,
    /// The operations planned for.
    pub ops: Vec<Op>,
    /// Architecture: `gfx942`.
    pub gfx: String,
    /// Compute units of the device.
    pub cu_num: u32,
    /// The device that times are estimated for.
    pub device: String,
    /// Where its peak rates come from.
    pub device_source: Cow<'static, str>,
    /// How many M share a row.
    pub fold: Fold,
    /// Distinct shapes that were seen.
    pub seen: usize,
    /// Shapes of other operations, which are ignored.
    pub other_ops: usize,
    /// Rows to tune, those that gain most first.
    pub tune: Vec<PlannedRow>,
    /// Rows that exceed the budget.
    pub left_out: Vec<PlannedRow>,
    /// Seen shapes that another row will serve.
    pub folded: Vec<Folded>,
    /// Seen shapes that a good row serves already.
    pub served: Vec<AlreadyServed>,
    /// M that were added although not seen: captured sizes and prefill sizes.
    pub added: usize,
    /// Seen shapes divided by rows to tune; the larger, the more was folded.
    pub fold_ratio: f64,
    /// Calls of all shapes.
    pub calls: f64,
    /// Estimated time of those calls in microseconds.
    pub estimated_us: f64,
    pub hit_rate: HitRates,
    /// Estimated seconds on one device for `tune`.
    pub gpu_seconds: f64,
    /// The terms of that estimate, one entry per operation.
    pub cost: Vec<Cost>,
    /// Fused-MoE rows to tune, those that gain most first; they are not part of the figures above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fused_moe: Vec<PlannedMoe>,
    /// The model's layers, where its config was given.
    pub model: Option<Prediction>,
    /// How seen and predicted weights differ, one sentence each.
    #[serde(default)]
    pub difference: Vec<String>,
    /// Further remarks.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl Plan {
    /// A plan in which no dense GEMM is tuned, before rows of fused MoE are added.
    pub fn of_fused_moe(
        gfx: &str,
        cu_num: u32,
        device: &Device,
        model: Option<Prediction>,
    ) -> Self {
        let none = HitRate {
            calls: 0.0,
            time: 0.0,
        };
        Self {
            verdict: Verdict::Nothing,
            reason: "no size of fused MoE can be raced, and no dense GEMM is tuned".to_owned(),
            ops: Vec::new(),
            gfx: gfx.to_owned(),
            cu_num,
            device: device.name.clone(),
            device_source: device.source.into(),
            fold: Fold::Exact,
            seen: 0,
            other_ops: 0,
            tune: Vec::new(),
            left_out: Vec::new(),
            folded: Vec::new(),
            served: Vec::new(),
            added: 0,
            fold_ratio: 0.0,
            calls: 0.0,
            estimated_us: 0.0,
            hit_rate: HitRates {
                before: none,
                after: none,
            },
            gpu_seconds: 0.0,
            cost: Vec::new(),
            fused_moe: Vec::new(),
            model,
            difference: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Merges two plans for different operations of one server.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        let estimated_us = self.estimated_us + other.estimated_us;
        let calls = self.calls + other.calls;
        let rates = |of: fn(&HitRates) -> HitRate| {
            let (a, b) = (of(&self.hit_rate), of(&other.hit_rate));
            let mixed = |a: f64, of_a: f64, b: f64, of_b: f64| {
                if of_a + of_b > 0.0 {
                    (a * of_a + b * of_b) / (of_a + of_b)
                } else {
                    0.0
                }
            };
            HitRate {
                calls: mixed(a.calls, self.calls, b.calls, other.calls),
                time: mixed(a.time, self.estimated_us, b.time, other.estimated_us),
            }
        };
        let hit_rate = HitRates {
            before: rates(|rates| rates.before),
            after: rates(|rates| rates.after),
        };
        let join_rows = |mut rows: Vec<PlannedRow>, more: Vec<PlannedRow>| {
            rows.extend(more);
            for row in &mut rows {
                row.share = if estimated_us > 0.0 {
                    row.estimated_us / estimated_us
                } else {
                    0.0
                };
            }
            rows.sort_by(|a, b| b.estimated_us.total_cmp(&a.estimated_us));
            rows
        };
        let seen = self.seen + other.seen;
        let tune = join_rows(self.tune, other.tune);
        let left_out = join_rows(self.left_out, other.left_out);
        let served: Vec<AlreadyServed> = self.served.into_iter().chain(other.served).collect();
        let seen_rows = tune
            .iter()
            .chain(&left_out)
            .filter(|row| row.because == PlanReason::Seen)
            .count();
        let mut notes = self.notes;
        notes.extend(other.notes);
        notes.dedup();
        Self {
            verdict: if self.verdict == Verdict::Tune {
                self.verdict
            } else {
                other.verdict
            },
            reason: format!("{}; {}", self.reason, other.reason),
            ops: self.ops.into_iter().chain(other.ops).collect(),
            seen,
            // What is another operation to one plan is covered by the other.
            other_ops: self.other_ops.min(other.other_ops),
            fold_ratio: if seen_rows > 0 {
                (seen - served.len()) as f64 / seen_rows as f64
            } else {
                0.0
            },
            tune,
            left_out,
            folded: self.folded.into_iter().chain(other.folded).collect(),
            served,
            added: self.added + other.added,
            calls,
            estimated_us,
            hit_rate,
            gpu_seconds: self.gpu_seconds + other.gpu_seconds,
            cost: self.cost.into_iter().chain(other.cost).collect(),
            fused_moe: self.fused_moe.into_iter().chain(other.fused_moe).collect(),
            model: self.model.or(other.model),
            difference: self
                .difference
                .into_iter()
                .chain(other.difference)
                .collect(),
            notes,
            ..other
        }
    }
}
