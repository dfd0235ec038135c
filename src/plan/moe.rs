//! At which M a fused MoE is worth a row.
//!
//! In SGLang's tables the row nearest to M serves it, so a table has a ladder of sizes rather than a row for each M
//! that occurs: SGLang's tuner sweeps 18 sizes up to 4096. A plan adds the largest prefill, because the last row
//! serves everything above it. In aiter's table M is rounded first, and only the row for exactly that number serves
//! it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::document::PlanReason;
use super::model::Prediction;
use crate::problem::fused_moe::MoeProblem;
use crate::table::fmoe::rules::Rounding;
use crate::table::moe::counted::CountedProblem;
use crate::table::roofline::Device;

/// The sizes that SGLang's tuner sweeps (`benchmark/kernels/fused_moe_triton/common_utils.py`), followed by its
/// larger default prefill chunks.
const LADDER: [u32; 20] = [
    1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 1536, 2048, 3072, 4096, 8192, 16384,
];

/// Which M a table has rows for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ladder {
    /// The row nearest to M serves it.
    Nearest,
    /// The row for the rounded M serves it.
    Rounded(Rounding),
}

impl Ladder {
    /// The M of the row for `m`.
    fn row_for(self, m: u32) -> u32 {
        match self {
            Self::Nearest => nearest(m),
            Self::Rounded(rounding) => rounding.token(m),
        }
    }

    /// The M of the rows needed for sizes up to `largest`.
    fn up_to(self, largest: u32) -> Vec<u32> {
        match self {
            Self::Nearest => {
                let steps = LADDER.into_iter().filter(|step| *step <= largest);
                steps.chain((largest > 0).then_some(largest)).collect()
            }
            Self::Rounded(_) if largest == 0 => Vec::new(),
            Self::Rounded(rounding) => {
                let last = rounding.token(largest);
                let steps = rounding.tokens().into_iter();
                steps.filter(|step| *step <= last).collect()
            }
        }
    }
}

/// A row worth tuning: the same M for the up and the down projection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedMoe {
    pub op: Cow<'static, str>,
    /// Tokens of a forward, over all ranks of attention data parallelism.
    #[serde(rename = "M")]
    pub m: u32,
    #[serde(flatten)]
    pub problem: MoeProblem,
    /// Calls that the row will serve, where records have them, else calls in one forward pass.
    pub calls: f64,
    /// Estimated time of those calls in microseconds: that of reading the experts' weights, or that of the
    /// arithmetic.
    pub estimated_us: f64,
    /// Why it is planned.
    pub because: PlanReason,
}

impl PlannedMoe {
    /// As a line of a shapes file.
    pub fn counted(&self) -> CountedProblem {
        CountedProblem {
            problem: self.problem.clone(),
            m: Some(self.m),
            // Counts in a shapes file start at one.
            records: (self.calls.max(1.0)) as u64,
        }
    }
}

/// The input of a plan.
#[derive(Clone, Copy, Debug)]
pub struct MoeInput<'a> {
    /// Problems that were captured.
    pub seen: &'a [CountedProblem],
    /// The model, for problems without a record and for what a log line does not contain.
    pub model: Option<&'a Prediction>,
    /// M that decode graphs are captured for, on one rank of attention data parallelism.
    pub capture: &'a [u32],
    /// Chunked prefill size on one such rank.
    pub chunk: Option<u32>,
    /// Ranks of attention data parallelism: a fused MoE gets the tokens of all of them.
    pub dp_attention: u32,
    /// Whether steps of the ladder that were not seen also get rows, after all others, up to the largest possible.
    pub fill: bool,
    /// Peak rates with which times are estimated.
    pub device: &'a Device,
    /// The operation, as a shapes file names it.
    pub op: &'static str,
    /// Which M have rows.
    pub ladder: Ladder,
}

/// The rows worth tuning, those that gain most first, and remarks.
pub fn make(input: MoeInput<'_>) -> (Vec<PlannedMoe>, Vec<String>) {
    let mut notes = Vec::new();
    let mut rows: BTreeMap<(MoeProblem, u32), (f64, PlanReason)> = BTreeMap::new();
    let predicted = input.model.and_then(|model| model.experts.as_ref());
    for counted in input.seen {
        let problem = completed(&counted.problem, predicted.map(|experts| &experts.problem));
        if problem.topk.is_none() || problem.hidden.is_none() {
            notes.push(format!(
                "{problem} was seen in a log without its hidden size and topk, and the model's experts are others: it is not planned"
            ));
            continue;
        }
        match counted.m {
            Some(m) => {
                let row = rows
                    .entry((problem, input.ladder.row_for(m)))
                    .or_insert((0.0, PlanReason::Seen));
                row.0 += counted.records as f64;
            }
            None => predict(input, &problem, 1.0, &mut rows),
        }
    }
    if input.fill {
        let seen: BTreeSet<MoeProblem> = rows.keys().map(|(problem, _)| problem.clone()).collect();
        for problem in seen {
            predict(input, &problem, 0.0, &mut rows);
        }
    }
    if let Some(experts) = predicted {
        match &experts.rejected {
            Some(reason) => notes.push(format!("no server loads the experts so: {reason}")),
            None if input.seen.is_empty() => {
                predict(input, &experts.problem, f64::from(experts.count), &mut rows);
            }
            // What was captured takes precedence.
            None => {}
        }
        if experts.fused_shared > 0 {
            notes.push(
                "E and topk hold the shared expert: it is computed as a routed one; a server that says `Shared experts fusion optimization is disabled` has one less"
                    .to_owned(),
            );
        }
    }
    let mut rows: Vec<PlannedMoe> = rows
        .into_iter()
        .map(|((problem, m), (calls, because))| PlannedMoe {
            op: Cow::Borrowed(input.op),
            m,
            estimated_us: calls * estimate_us(&problem, m, input.device),
            problem,
            calls,
            because,
        })
        .collect();
    rows.sort_by(|a, b| {
        let key = |row: &PlannedMoe| (row.problem.clone(), row.m);
        b.estimated_us
            .total_cmp(&a.estimated_us)
            .then_with(|| key(a).cmp(&key(b)))
    });
    (rows, notes)
}

/// Completes a problem from a log line with what the model has for the same (E, N).
fn completed(seen: &MoeProblem, predicted: Option<&MoeProblem>) -> MoeProblem {
    let same = predicted.filter(|predicted| {
        (
            predicted.experts,
            predicted.n,
            &predicted.dtype,
            predicted.scales,
        ) == (seen.experts, seen.n, &seen.dtype, seen.scales)
    });
    MoeProblem {
        hidden: seen.hidden.or(same.and_then(|predicted| predicted.hidden)),
        topk: seen.topk.or(same.and_then(|predicted| predicted.topk)),
        ..seen.clone()
    }
}

/// The step of the ladder whose row serves `m`.
fn nearest(m: u32) -> u32 {
    let step = LADDER.into_iter().min_by_key(|step| step.abs_diff(m));
    step.unwrap_or(m)
}

fn predict(
    input: MoeInput<'_>,
    problem: &MoeProblem,
    calls: f64,
    rows: &mut BTreeMap<(MoeProblem, u32), (f64, PlanReason)>,
) {
    let ranks = input.dp_attention.max(1);
    let decode = input
        .capture
        .iter()
        .max()
        .map_or(0, |m| m.saturating_mul(ranks));
    let chunk = input.chunk.map_or(0, |chunk| chunk.saturating_mul(ranks));
    let largest = decode.max(chunk);
    for m in input.ladder.up_to(largest) {
        let because = if m <= decode {
            PlanReason::Graph
        } else {
            PlanReason::Prefill
        };
        rows.entry((problem.clone(), m)).or_insert((calls, because));
    }
}

/// Time of one call at the device's peak rates, µs: reading the weights of at most as many experts as are hit and
/// moving the activations, or the arithmetic. 0 where the hidden size or topk is not known.
pub fn estimate_us(problem: &MoeProblem, m: u32, device: &Device) -> f64 {
    let (Some(hidden), Some(topk)) = (problem.hidden, problem.topk) else {
        return 0.0;
    };
    let (m, n, hidden) = (f64::from(m), f64::from(problem.n), f64::from(hidden));
    let pairs = m * f64::from(topk);
    let hit = pairs.min(f64::from(problem.experts));
    let weights = hit * 3.0 * n * hidden;
    let activations = pairs * (hidden + 2.0 * 2.0 * n + n + 2.0 * hidden);
    let bytes_s = (weights + activations) / device.memory;
    let flops_s = 2.0 * pairs * 3.0 * n * hidden / device.fp8_flops;
    (bytes_s.max(flops_s) * 1e6).max(device.floor_us)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::model::{Parallel, predict as predict_model};

    fn qwen() -> Prediction {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/testdata/models/qwen3-30b-a3b.json"
        );
        predict_model(&fs_err::read(path).unwrap(), &Parallel::tp(1)).unwrap()
    }

    fn plan(
        seen: &[CountedProblem],
        model: Option<&Prediction>,
        dp_attention: u32,
    ) -> (Vec<PlannedMoe>, Vec<String>) {
        let device = Device::of_name("NVIDIA H200").unwrap();
        make(MoeInput {
            seen,
            model,
            capture: &[1, 2, 4, 160],
            chunk: Some(8192),
            dp_attention,
            device: &device,
            fill: false,
            op: crate::problem::op::fused_moe_triton::OP,
            ladder: Ladder::Nearest,
        })
    }

    fn sizes(rows: &[PlannedMoe]) -> Vec<u32> {
        let mut sizes: Vec<u32> = rows.iter().map(|row| row.m).collect();
        sizes.sort_unstable();
        sizes
    }

    #[test]
    fn a_model_alone_gives_the_ladder_up_to_its_largest_prefill() {
        let model = qwen();
        let (rows, _) = plan(&[], Some(&model), 1);
        assert_eq!(sizes(&rows), LADDER[..19]);
        let graph = rows
            .iter()
            .filter(|row| row.because == PlanReason::Graph)
            .count();
        assert_eq!(graph, 11, "up to 160");
        assert!(
            rows.iter()
                .all(|row| (row.calls - 48.0).abs() < 1e-9 && row.estimated_us > 0.0)
        );
        assert!(
            rows.windows(2)
                .all(|pair| pair[0].estimated_us >= pair[1].estimated_us)
        );
        let (gathered, _) = plan(&[], Some(&model), 3);
        assert_eq!(
            sizes(&gathered).last(),
            Some(&24576),
            "the tokens of all ranks"
        );
    }

    #[test]
    fn seen_sizes_stand_on_the_ladder_and_add_up() {
        let model = qwen();
        let problem = model.experts.as_ref().unwrap().problem.clone();
        let seen = |m, records| CountedProblem {
            problem: problem.clone(),
            m,
            records,
        };
        let (rows, _) = plan(
            &[seen(Some(33), 10), seen(Some(30), 5), seen(Some(7000), 1)],
            None,
            1,
        );
        let found: Vec<_> = rows.iter().map(|row| (row.m, row.calls)).collect();
        assert!(
            found.contains(&(32, 15.0)) && found.contains(&(8192, 1.0)),
            "{found:?}"
        );
        assert!(rows.iter().all(|row| row.because == PlanReason::Seen));
    }

    #[test]
    fn where_m_is_rounded_each_number_up_to_the_largest_prefill_has_its_row() {
        let ladder = Ladder::Rounded(Rounding::TwoTiers);
        assert_eq!((ladder.row_for(5), ladder.row_for(64)), (8, 64));
        assert_eq!(ladder.up_to(33), [1, 2, 4, 8, 16, 32, 64]);
        assert_eq!(ladder.up_to(40_000).last(), Some(&32_768));
        assert!(ladder.up_to(0).is_empty());
    }

    #[test]
    fn a_line_of_a_log_gets_from_the_model_what_it_does_not_say() {
        let model = qwen();
        let bare = |experts| CountedProblem {
            problem: MoeProblem {
                experts,
                hidden: None,
                topk: None,
                ..model.experts.as_ref().unwrap().problem.clone()
            },
            m: None,
            records: 1,
        };
        let (rows, notes) = plan(&[bare(128)], Some(&model), 1);
        assert_eq!(
            (rows.len(), rows[0].problem.topk, notes.len()),
            (19, Some(8), 0)
        );
        let (rows, notes) = plan(&[bare(64)], Some(&model), 1);
        assert_eq!(rows.len(), 0);
        insta::assert_snapshot!(notes.join("\n"), @"fused_moe_triton E=64 N=768 was seen in a log without its hidden size and topk, and the model's experts are others: it is not planned");
    }
}
