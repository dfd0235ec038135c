//! Writes the plan's document from demands and the rows that serve them.

use std::collections::{BTreeMap, BTreeSet};

use super::document::{
    AlreadyServed, Folded, HitRate, HitRates, Plan, PlanReason, PlannedRow, PlannedShape, Verdict,
};
use super::fold::{RowKey, Served, Serving};
use super::make::{Demand, Good, PlanInput};
use super::model::Prediction;
use crate::problem::Shape;

/// The input of the document.
pub(super) struct Writer<'a> {
    pub(super) input: &'a PlanInput<'a>,
    pub(super) good: &'a Good,
    pub(super) serving: &'a Serving,
    pub(super) demands: &'a BTreeMap<Shape, Demand>,
    pub(super) shapes: &'a [Shape],
    pub(super) before: &'a [Option<Served>],
    pub(super) after: &'a [Option<Served>],
}

impl Writer<'_> {
    pub(super) fn plan(&self) -> Plan {
        let input = self.input;
        let (mut rows, folded, served) = self.sort_out();
        let total: f64 = self.shapes.iter().map(|shape| self.weight(shape).1).sum();
        for row in &mut rows {
            row.share = if total > 0.0 {
                row.estimated_us / total
            } else {
                0.0
            };
        }
        // Those that gain most first; of equals the smaller shape, so that the order is deterministic.
        rows.sort_by(|a, b| {
            let key = |row: &PlannedRow| (row.shape.n, row.shape.k, row.shape.m);
            b.estimated_us
                .total_cmp(&a.estimated_us)
                .then_with(|| key(a).cmp(&key(b)))
        });
        let (tune, left_out) = within(rows, input.budget_s);
        let seen: Vec<&Shape> = self
            .shapes
            .iter()
            .filter(|shape| self.is_seen(shape))
            .collect();
        let gpu_seconds = tune.iter().map(|row| row.tuning_s).sum();
        let seen_rows = tune
            .iter()
            .chain(&left_out)
            .filter(|row| row.because == PlanReason::Seen)
            .count();
        let to_fold = seen.len() - served.len();
        let (verdict, reason) = self.verdict(&tune, gpu_seconds);
        Plan {
            verdict,
            reason,
            ops: vec![input.op],
            gfx: input.gfx.to_owned(),
            cu_num: input.cu_num,
            device: input.device.name.clone(),
            device_source: input.device.source.into(),
            fold: input.fold,
            seen: seen.len(),
            other_ops: input
                .shapes
                .iter()
                .filter(|counted| counted.shape.op != input.op)
                .count(),
            calls: self.shapes.iter().map(|shape| self.weight(shape).0).sum(),
            estimated_us: total,
            hit_rate: self.hit_rates(&left_out),
            fold_ratio: if seen_rows > 0 {
                to_fold as f64 / seen_rows as f64
            } else {
                0.0
            },
            added: self.shapes.len() - seen.len(),
            tune,
            left_out,
            folded,
            served,
            gpu_seconds,
            cost: vec![input.cost.clone()],
            fused_moe: Vec::new(),
            model: input.model.cloned(),
            difference: difference(input),
            notes: self.notes(),
        }
    }

    fn is_seen(&self, shape: &Shape) -> bool {
        self.demands
            .get(shape)
            .is_some_and(|demand| demand.because == PlanReason::Seen)
    }

    /// Calls of a shape, and their estimated time in microseconds.
    fn weight(&self, shape: &Shape) -> (f64, f64) {
        let calls = self.demands.get(shape).map_or(0.0, |demand| demand.calls);
        (calls, calls * self.input.device.estimate_us(shape))
    }

    fn document_shape(&self, shape: &Shape, m: u32) -> PlannedShape {
        let (n, k, keyed, m) = self.serving.key(shape, m);
        PlannedShape {
            op: shape.op,
            m,
            n,
            k,
            // The dtype is kept even if the key does not have it: the tuner needs it to make weights.
            dtype: if keyed.is_empty() {
                shape.dtype.clone()
            } else {
                keyed
            },
        }
    }

    /// Rows to tune, seen shapes that are folded into them, and seen shapes that are served already.
    fn sort_out(&self) -> (Vec<PlannedRow>, Vec<Folded>, Vec<AlreadyServed>) {
        let mut rows: BTreeMap<RowKey, PlannedRow> = BTreeMap::new();
        let (mut folded, mut already) = (Vec::new(), Vec::new());
        for ((shape, before), after) in self.shapes.iter().zip(self.before).zip(self.after) {
            if let Some(served) = before {
                if self.is_seen(shape) {
                    let (table, line) = self.good.place(self.input, shape, *served);
                    already.push(AlreadyServed {
                        shape: self.document_shape(shape, shape.m),
                        by: served.m,
                        table,
                        line,
                    });
                }
                continue;
            }
            let Some(served) = after else { continue };
            let key = self.serving.key(shape, served.m);
            let (calls, us) = self.weight(shape);
            let because = self
                .demands
                .get(shape)
                .map_or(PlanReason::Seen, |demand| demand.because);
            let row = rows.entry(key).or_insert_with(|| PlannedRow {
                shape: self.document_shape(shape, served.m),
                calls: 0.0,
                estimated_us: 0.0,
                share: 0.0,
                serves: Vec::new(),
                because,
                tuning_s: self
                    .input
                    .cost
                    .seconds(self.input.device.estimate_us(&Shape {
                        m: served.m,
                        ..shape.clone()
                    })),
            });
            if row.shape.dtype.is_empty() {
                row.shape.dtype.clone_from(&shape.dtype);
            }
            row.calls += calls;
            row.estimated_us += us;
            row.because = row.because.min(because);
            row.serves.push(shape.m);
            if self.is_seen(shape) && served.m != shape.m {
                folded.push(Folded {
                    shape: self.document_shape(shape, shape.m),
                    into: served.m,
                });
            }
        }
        (rows.into_values().collect(), folded, already)
    }

    fn hit_rates(&self, left_out: &[PlannedRow]) -> HitRates {
        let missing: BTreeSet<RowKey> = left_out
            .iter()
            .map(|row| self.serving.key(&row.shape.shape(), row.shape.m))
            .collect();
        let rate = |hits: &dyn Fn(usize) -> bool| {
            let (mut calls, mut time, mut all_calls, mut all_time) = (0.0, 0.0, 0.0, 0.0);
            for (index, shape) in self.shapes.iter().enumerate() {
                let (count, us) = self.weight(shape);
                all_calls += count;
                all_time += us;
                if hits(index) {
                    calls += count;
                    time += us;
                }
            }
            HitRate {
                calls: if all_calls > 0.0 {
                    calls / all_calls
                } else {
                    0.0
                },
                time: if all_time > 0.0 { time / all_time } else { 0.0 },
            }
        };
        let planned = |index: usize| {
            self.after[index].is_some_and(|served| {
                let key = self.serving.key(&self.shapes[index], served.m);
                self.serving.planned().contains(&key) && !missing.contains(&key)
            })
        };
        HitRates {
            before: rate(&|index| self.before[index].is_some()),
            after: rate(&|index| self.before[index].is_some() || planned(index)),
        }
    }

    fn verdict(&self, tune: &[PlannedRow], seconds: f64) -> (Verdict, String) {
        if !tune.is_empty() {
            let share: f64 = tune.iter().map(|row| row.share).sum();
            return (
                Verdict::Tune,
                format!(
                    "{} rows carry {:.1} % of the estimated GEMM time and take about {:.0} s of one device",
                    tune.len(),
                    share * 100.0,
                    seconds
                ),
            );
        }
        let reason = if self.serving.planned().is_empty() {
            "every shape is served by a good row already".to_owned()
        } else {
            format!(
                "the budget of {:.0} s is less than the first row takes",
                self.input.budget_s.unwrap_or(0.0)
            )
        };
        (Verdict::Nothing, reason)
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = self.good.notes.clone();
        let input = self.input;
        if input.capture.is_empty() && input.chunk.is_none() {
            notes.push(
                "captured sizes and the prefill chunk are not known, so no M was added".to_owned(),
            );
        }
        if input
            .shapes
            .iter()
            .all(|counted| counted.shape.op != input.op)
        {
            notes.push("no shapes were seen: every predicted size counts as one forward, so the order is by time alone".to_owned());
        }
        notes
    }
}

/// Takes rows in order until the budget is spent; a row that does not fit is left out, but a smaller one after it may
/// still fit.
fn within(rows: Vec<PlannedRow>, budget_s: Option<f64>) -> (Vec<PlannedRow>, Vec<PlannedRow>) {
    let Some(mut left) = budget_s else {
        return (rows, Vec::new());
    };
    rows.into_iter().partition(|row| {
        let fits = row.tuning_s <= left;
        if fits {
            left -= row.tuning_s;
        }
        fits
    })
}

/// How the captured weights differ from those the model predicts.
fn difference(input: &PlanInput<'_>) -> Vec<String> {
    let Some(model) = input.model else {
        return Vec::new();
    };
    let seen: BTreeSet<(u32, u32)> = input
        .shapes
        .iter()
        .filter(|counted| counted.shape.op == input.op)
        .map(|counted| (counted.shape.n, counted.shape.k))
        .collect();
    if seen.is_empty() {
        return Vec::new();
    }
    let elsewhere = |(n, k): (u32, u32)| {
        let mut shapes = input.shapes.iter().map(|counted| &counted.shape);
        shapes.any(|shape| shape.op != input.op && (shape.n, shape.k) == (n, k))
    };
    let mut lines = Vec::new();
    for layer in &model.layers {
        let weight = (layer.n, layer.k);
        let shown = format!("{} ({}x{})", layer.name, layer.n, layer.k);
        match (layer.present, seen.contains(&weight)) {
            // A GEMM of another operation.
            (true, false) if elsewhere(weight) => {}
            (true, false) => lines.push(match &layer.condition {
                Some(condition) => format!("{shown} is predicted and was not seen: it runs {condition}"),
                None => format!(
                    "{shown} is predicted and was not seen: another kernel serves it, a release fuses it with another layer, or the log ends before it ran"
                ),
            }),
            (false, true) => lines.push(format!(
                "{shown} was seen although it is expected {}",
                layer.condition.as_deref().unwrap_or("under no condition known here")
            )),
            _ => {}
        }
    }
    let predicted: BTreeSet<(u32, u32)> = model
        .layers
        .iter()
        .map(|layer| (layer.n, layer.k))
        .collect();
    for (n, k) in seen.difference(&predicted) {
        lines.push(format!(
            "{n}x{k} was seen and is not predicted: {}",
            explain(model, *n, *k)
        ));
    }
    lines
}

/// A guess at where an unpredicted weight comes from, phrased as one.
fn explain(model: &Prediction, n: u32, k: u32) -> String {
    for a in &model.layers {
        for b in model
            .layers
            .iter()
            .filter(|b| b.k == a.k && b.name > a.name)
        {
            if a.k == k && a.n + b.n == n {
                return format!(
                    "it has the size of {} and {} fused into one",
                    a.name, b.name
                );
            }
        }
    }
    let scaled = model.layers.iter().find(|layer| {
        let (n, k, ln, lk) = (
            u64::from(n),
            u64::from(k),
            u64::from(layer.n),
            u64::from(layer.k),
        );
        (n == ln && k != lk && (k % lk == 0 || lk % k == 0))
            || (k == lk && n != ln && (n % ln == 0 || ln % n == 0))
    });
    match scaled {
        Some(layer) => format!(
            "it is {} ({}x{}) at another number of ranks, or a layer of a draft model or another part of this one",
            layer.name, layer.n, layer.k
        ),
        None => {
            "a layer of a draft model, of another part of this one, or of another model in the log"
                .to_owned()
        }
    }
}
