//! Predicts what tuning will gain for each load, before a tuned server is started.
//!
//! A forward pass calls every weight as often as follows from the model's config; the race timed each call before and after,
//! and the runtime's look-up determines which deployed row serves it. So a load's latency changes by the sum of calls
//! times the difference: the prediction is the load's own baseline minus that sum. What it neglects (kernels that
//! overlap, batches of other sizes) shows in the comparison.

use serde::{Deserialize, Serialize};

use super::fused_moe;
use super::weights::{Called, weights};
use crate::bench::result;
use crate::engine::trial::RESULTS;
use crate::engine::{Engine, read_document, read_json, write_json};
use crate::plan::Plan;
use crate::problem::{Op, Shape};
use crate::run::documents::{Captured, Deployment, Inspection, Tuned};
use crate::run::error::{Error, ErrorKind};
use crate::run::event::Role;
use crate::tune::results::Row;
use crate::workload::config::Load;

/// The document's name in the run folder.
const NAME: &str = "foreseen";

/// The prediction for one load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Foreseen {
    pub(crate) load: String,
    /// The latency by which it is judged.
    pub(crate) metric: String,
    /// Rows of the activation in the forward passes that this latency consists of.
    #[serde(rename = "M")]
    pub(crate) m: u32,
    /// The baseline trial's value, ms.
    pub(crate) before_ms: f64,
    /// The value expected with the table, ms.
    pub(crate) after_ms: f64,
    /// Latency before divided by latency after.
    pub(crate) ratio: f64,
    /// The contributions to it.
    pub(crate) terms: Vec<Term>,
}

/// The contribution of one weight, or of a fused MoE.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Term {
    /// The operation of a dense GEMM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) op: Option<Op>,
    /// Local experts of a fused MoE, whose N is the width between its two GEMMs.
    #[serde(rename = "E", default, skip_serializing_if = "Option::is_none")]
    pub(crate) experts: Option<u32>,
    /// Output features.
    #[serde(rename = "N")]
    pub(crate) n: u32,
    /// Input features.
    #[serde(rename = "K")]
    pub(crate) k: u32,
    /// The raced M whose times these are.
    pub(crate) raced_m: u32,
    /// Calls in a forward pass.
    pub(crate) calls: u32,
    /// Time of one call before, µs.
    pub(crate) before_us: f64,
    /// Time of one call after, µs.
    pub(crate) after_us: f64,
}

/// Computes what `tuned` will gain and writes it to the run folder. Loads judged by a throughput, and models for
/// which the plan predicts nothing, are left out.
pub(super) fn foresee(
    engine: &Engine<'_>,
    inspection: &Inspection,
    tuned: &Tuned,
    deployment: &Deployment,
) -> Result<(), Error> {
    let planned: Plan = read_document(&engine.run)?;
    let captured: Captured = read_document(&engine.run)?;
    let Some(weights) = weights(engine, &planned, inspection.op)?.or_else(|| {
        // Nothing is known of the dense GEMMs, but none changes.
        (!tuned.has_won()).then(Vec::new)
    }) else {
        return Ok(());
    };
    let Some(trial) = engine.state.finished_trial(Role::Baseline) else {
        return Ok(());
    };
    let folder = engine.run.trial(trial.number, Role::Baseline.name());
    let runs = result::read(&folder.join(RESULTS))
        .map_err(|error| Error::caused(ErrorKind::WorkloadFailed, &error))?;
    let served_by = |shapes: &[Shape]| match &engine.backend.kernels {
        Some(kernels) if deployment.dense => kernels.rows(inspection, deployment, shapes),
        _ => Ok(vec![None; shapes.len()]),
    };
    let raced: Vec<Shape> = tuned.rows.iter().map(|row| row.shape.clone()).collect();
    let raced = Raced {
        tuned,
        served_by: served_by(&raced)?,
    };
    let mut all = Vec::new();
    for load in &engine.config.benchmark.loads {
        let name = load.name.as_deref().unwrap_or_default();
        let metric = load
            .metric
            .as_deref()
            .unwrap_or(&engine.config.compare.metric);
        let Some(m) = rows_of(load, metric, &captured) else {
            continue;
        };
        let named =
            |tag: Option<&serde_json::Value>| tag.and_then(|tag| tag.as_str()) == Some(name);
        let before_ms = runs
            .iter()
            .find(|run| named(run.fields.get("tag")))
            .and_then(|run| run.number(metric));
        let shapes: Vec<Shape> = weights.iter().map(|weight| weight.at(m)).collect();
        let mut terms = raced.terms(&weights, m, &served_by(&shapes)?);
        terms.extend(fused_moe::terms(&planned, &captured, tuned, m));
        // If none of the model's weights was raced, that does not mean that nothing changes.
        let is_known = !terms.is_empty() || raced.any_of(&weights);
        if let Some(before_ms) = before_ms.filter(|_| is_known)
            && let Some(after_ms) = after(before_ms, &terms)
        {
            all.push(Foreseen {
                load: name.to_owned(),
                metric: metric.to_owned(),
                m,
                before_ms,
                after_ms,
                ratio: before_ms / after_ms,
                terms,
            });
        }
    }
    if all.is_empty() {
        return Ok(());
    }
    write_json(&engine.run.stage(NAME), &all)
}

/// The predictions; empty if there are none.
pub(super) fn read(engine: &Engine<'_>) -> Result<Vec<Foreseen>, Error> {
    let path = engine.run.stage(NAME);
    if path.is_file() {
        read_json(&path)
    } else {
        Ok(Vec::new())
    }
}

/// M of the forward passes that `metric` of `load` consists of: of a decode step, in the graph that contains it, or
/// of the first prefill chunk.
pub(super) fn rows_of(load: &Load, metric: &str, captured: &Captured) -> Option<u32> {
    if metric.contains("tpot") || metric.contains("itl") {
        let graphs = captured.graphs.iter().copied();
        Some(
            graphs
                .filter(|&size| size >= load.concurrency)
                .min()
                .unwrap_or(load.concurrency),
        )
    } else if metric.contains("ttft") {
        let tokens = load.concurrency.saturating_mul(load.input_len);
        Some(captured.chunk.map_or(tokens, |chunk| tokens.min(chunk)))
    } else {
        None
    }
}

/// The race results, and the deployed row that serves each of their shapes.
struct Raced<'a> {
    tuned: &'a Tuned,
    served_by: Vec<Option<String>>,
}

impl Raced<'_> {
    /// The contribution of each weight at `m`, where `served_by` names the deployed row that serves it. A weight served
    /// by a row that was not raced has none: nothing changes for it.
    fn terms(&self, weights: &[Called], m: u32, served_by: &[Option<String>]) -> Vec<Term> {
        let term = |(weight, served_by): (&Called, &Option<String>)| {
            let raced = self.tuned.rows.iter().zip(&self.served_by);
            let same = raced.filter(|(row, by)| weight.is_of(&row.shape) && *by == served_by);
            // If one row, or none, serves several raced shapes: runtimes round M up.
            let row = same
                .map(|(row, _)| row)
                .min_by_key(|row| (row.shape.m < m, row.shape.m.abs_diff(m)))?;
            let (before_us, after_us) = times(self.tuned, row);
            Some(Term {
                op: Some(weight.op),
                experts: None,
                n: weight.n,
                k: weight.k,
                raced_m: row.shape.m,
                calls: weight.calls,
                before_us,
                after_us,
            })
        };
        weights.iter().zip(served_by).filter_map(term).collect()
    }

    fn any_of(&self, weights: &[Called]) -> bool {
        let mut rows = self.tuned.rows.iter();
        rows.any(|row| weights.iter().any(|weight| weight.is_of(&row.shape)))
    }
}

/// Times of a call before and after, µs: through the server's own linear where both were timed that way, and
/// unchanged where a shape keeps what serves it.
fn times(tuned: &Tuned, row: &Row) -> (f64, f64) {
    let (before, after) = match tuned.contest(&row.shape) {
        Some(contest) => (contest.today_us.or(contest.tuned_us), contest.tuned_us),
        None => (row.incumbent_us, Some(row.us)),
    };
    let before = before.unwrap_or(row.us);
    match after {
        Some(after) if !row.incumbent_kept => (before, after),
        _ => (before, before),
    }
}

/// The remaining latency; `None` if the kernels supposedly save all of it.
fn after(before_ms: f64, terms: &[Term]) -> Option<f64> {
    let saved_us: f64 = terms
        .iter()
        .map(|term| f64::from(term.calls) * (term.before_us - term.after_us))
        .sum();
    Some(before_ms - saved_us / 1e3).filter(|after| *after > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn term(calls: u32, before_us: f64, after_us: f64) -> Term {
        Term {
            op: Some(Op::TritonBlockFp8),
            experts: None,
            n: 4096,
            k: 4096,
            raced_m: 1,
            calls,
            before_us,
            after_us,
        }
    }

    #[test]
    fn what_kernels_save_comes_off_the_latency() {
        // The first measurement on an H100 at concurrency 1: 36 layers, 9.04 ms before and 5.30 ms after.
        let terms = [
            term(36, 33.0, 16.7),
            term(36, 26.9, 14.8),
            term(36, 79.8, 39.6),
            term(36, 71.6, 38.3),
        ];
        let after = after(9.04, &terms).unwrap();
        assert!((after - 5.368).abs() < 0.005, "{after}");
        assert_eq!(super::after(1.0, &terms), None, "more than all of it");
    }

    #[test]
    fn a_shape_that_is_left_with_what_serves_it_saves_nothing() {
        let row = |m, kept| {
            serde_json::json!({
                "shape": {"op": "gemm_a8w8_blockscale", "m": m, "n": 512, "k": 7168, "dtype": ""},
                "candidate": {}, "incumbent_kept": kept, "us": 20.0, "incumbent": null, "incumbent_us": null,
                "noise": 0.0, "err_ratio": 0.0, "timed": 1, "busy_s": 0.0, "effort": "full"
            })
        };
        let contest = |m, tuned_us, finding| {
            serde_json::json!({
                "shape": {"op": "gemm_a8w8_blockscale", "m": m, "n": 512, "k": 7168, "dtype": ""},
                "today": "Triton", "tuned": "CK", "today_us": 50.0, "tuned_us": tuned_us, "gain": null,
                "in_turn": true, "finding": finding, "takes_over": finding == "faster"
            })
        };
        let tuned: Tuned = serde_json::from_value(serde_json::json!({
            "device": "", "rows": [row(16, false), row(4096, true)],
            "contests": [contest(16, 25.0, "faster"), contest(4096, 59.0, "slower")],
            "failed": [], "not_reached": [], "quarantined": [], "files": [], "busy_seconds": 0.0, "seconds": 0.0
        }))
        .unwrap();
        let raced = Raced {
            tuned: &tuned,
            served_by: vec![Some("16".to_owned()), None],
        };
        let each = |m, served_by: Option<&str>| {
            let terms = raced.terms(
                &[weight(Op::Blockscale)],
                m,
                &[served_by.map(str::to_owned)],
            );
            (terms[0].before_us, terms[0].after_us)
        };
        let linear = each(16, Some("16"));
        assert_eq!(linear, (50.0, 25.0), "both through the server's linear");
        assert_eq!(each(4096, None), (50.0, 50.0));
    }

    fn weight(op: Op) -> Called {
        Called {
            op,
            n: 512,
            k: 7168,
            calls: 1,
        }
    }

    #[test]
    fn a_call_takes_the_times_of_the_row_that_its_operations_look_up_finds() {
        let row = |op: Op, m: u32, us: f64| {
            serde_json::json!({
                "shape": {"op": op, "m": m, "n": 512, "k": 7168, "dtype": ""},
                "candidate": {}, "incumbent_kept": false, "us": us, "incumbent": {}, "incumbent_us": 2.0 * us,
                "noise": 0.0, "err_ratio": 0.0, "timed": 1, "busy_s": 0.0, "effort": "full"
            })
        };
        let tuned: Tuned = serde_json::from_value(serde_json::json!({
            "device": "", "failed": [], "not_reached": [], "quarantined": [], "files": [], "busy_seconds": 0.0, "seconds": 0.0,
            "rows": [
                row(Op::Blockscale, 32, 10.0), row(Op::Blockscale, 64, 20.0), row(Op::Bpreshuffle, 48, 5.0)
            ],
        }))
        .unwrap();
        let (fine, coarse) = (Some("32".to_owned()), Some("64".to_owned()));
        let raced = Raced {
            tuned: &tuned,
            served_by: vec![fine, coarse.clone(), Some("48".to_owned())],
        };
        let weights = [weight(Op::Blockscale), weight(Op::Bpreshuffle)];
        // M = 40 is nearer to 32 and to the other operation's 48; its operation pads it to 64.
        let terms = raced.terms(&weights, 40, &[coarse, Some("48".to_owned())]);
        let each: Vec<_> = terms
            .iter()
            .map(|term| (term.op, term.raced_m, term.after_us))
            .collect();
        assert_eq!(
            each,
            [
                (Some(Op::Blockscale), 64, 20.0),
                (Some(Op::Bpreshuffle), 48, 5.0)
            ]
        );
        // A row that was there before, and none at all.
        let unraced = [Some("256".to_owned()), None];
        assert_eq!(raced.terms(&weights, 200, &unraced), []);
        assert!(raced.any_of(&weights) && !raced.any_of(&[weight(Op::A8w8)]));
    }

    #[test]
    fn a_load_waits_for_passes_of_its_own_size() {
        let captured = Captured {
            inspection: None,
            trial: 2,
            distinct: 0,
            calls: 0,
            dispatch: Vec::new(),
            malformed: 0,
            decode: Vec::new(),
            prefill: Vec::new(),
            graphs: vec![1, 8, 32],
            chunk: Some(4096),
            fused_moe: Vec::new(),
        };
        let load = |concurrency, input_len| Load {
            name: None,
            metric: None,
            concurrency,
            prompts: 1,
            input_len,
            output_len: 1,
            warmup: 0,
            seed: 0,
        };
        let rows = |load: &Load, metric| rows_of(load, metric, &captured);
        assert_eq!(rows(&load(5, 128), "median_tpot_ms"), Some(8));
        assert_eq!(rows(&load(64, 128), "median_itl_ms"), Some(64), "no graph");
        assert_eq!(rows(&load(4, 2048), "median_ttft_ms"), Some(4096));
        assert_eq!(rows(&load(4, 2048), "output_throughput"), None);
    }
}
