//! The report as data: what a run found, in reading order. `report.json` is this document.
//!
//! What a backend or an unfinished run does not know is absent, and the page states that; nothing here is computed from
//! absent values. Times of kernels are microseconds, of stages seconds.

use serde::{Deserialize, Serialize};

use super::operations::DenseOperation;
use crate::bench::parity::Agreement;
use crate::compare::{Comparison, MetricResult, Verdict};
use crate::problem::Op;
use crate::profile::LoadProfile;

/// Version of the document. A newer one is refused, older ones are read.
pub const FORMAT: u32 = 1;

/// The result of one run of the loop, finished or not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    pub format: u32,
    /// Name of the run.
    pub name: String,
    /// When the report was made, RFC 3339.
    pub made: String,
    /// Version of gemmtune that ran.
    pub gemmtune: String,
    /// Why the run ended before a comparison: nothing to gain, or a failed check that was undone.
    pub ended_early: Option<String>,
    /// What a reader wants to know first: machine, model, what was changed. Each in a few words.
    pub facts: Vec<Fact>,
    /// The shell command with which the server keeps the tuned table; absent where nothing was deployed.
    pub keep: Option<String>,
    /// The command that undoes the deployment; absent where nothing was deployed.
    pub undo: Option<String>,
    /// The verdict with its pairs and metrics.
    pub comparison: Option<Comparison>,
    /// The same for two untuned arms, where it was measured.
    pub control: Option<Comparison>,
    /// The machine and software: device, architecture, driver, versions.
    pub machine: Vec<Fact>,
    /// How each arm was started.
    pub arms: Vec<Arm>,
    /// Where the time of a step goes in the untuned server, for each load.
    pub profile: Vec<LoadProfile>,
    /// Captured shapes with their times.
    pub shapes: Vec<ShapeRow>,
    /// Fused MoE that ran and was to be tuned, one entry for each (E, N).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fused_moe: Vec<FusedMoe>,
    /// The operations of dense GEMMs, where several were to be tuned.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub operations: Vec<DenseOperation>,
    /// Share of calls and of GEMM time served by the table.
    pub hit_rates: Vec<HitRate>,
    /// Limits of the device, for the roofline chart.
    pub roofline: Option<Roofline>,
    pub plan: Option<PlanSummary>,
    /// Shapes that keep what served them before, and by how much the tuned kernel lost.
    pub stays: Vec<Stays>,
    /// What was not done, and why.
    pub skipped: Vec<Skipped>,
    /// Whether both servers give the same answers.
    pub parity: Option<Agreement>,
    /// Numerical checks of the deployed kernels against a reference, for each M.
    pub layout: Vec<LayoutCheck>,
    /// Whether the deployed kernels really ran.
    pub engagement: Option<Engagement>,
    /// Commands that reproduce the run, in order.
    pub commands: Vec<Command>,
    /// Digests of inputs and outputs.
    pub digests: Vec<Fact>,
    /// How long each stage took.
    pub stages: Vec<StageTime>,
    /// Further remarks: what could not be measured, what is only predicted.
    pub notes: Vec<String>,
}

impl Report {
    /// Time of all stages together, s; `None` unless there are several.
    pub(super) fn seconds(&self) -> Option<f64> {
        (self.stages.len() > 1).then(|| self.stages.iter().map(|stage| stage.seconds).sum())
    }
}

impl Default for Report {
    fn default() -> Self {
        Self {
            format: FORMAT,
            name: String::new(),
            made: String::new(),
            gemmtune: env!("CARGO_PKG_VERSION").to_owned(),
            ended_early: None,
            facts: Vec::new(),
            keep: None,
            undo: None,
            comparison: None,
            control: None,
            machine: Vec::new(),
            arms: Vec::new(),
            profile: Vec::new(),
            shapes: Vec::new(),
            fused_moe: Vec::new(),
            operations: Vec::new(),
            hit_rates: Vec::new(),
            roofline: None,
            plan: None,
            stays: Vec::new(),
            skipped: Vec::new(),
            parity: None,
            layout: Vec::new(),
            engagement: None,
            commands: Vec::new(),
            digests: Vec::new(),
            stages: Vec::new(),
            notes: Vec::new(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    pub name: String,
    /// Its value, as text.
    pub value: String,
}

impl Fact {
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            value: value.into(),
        }
    }
}

/// How one arm was started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Arm {
    /// `baseline` or `tuned`.
    pub name: String,
    /// What distinguishes it, in a sentence.
    pub description: String,
    pub trials: usize,
    /// The server's command line.
    pub command: Option<String>,
    /// Environment variables gemmtune set.
    pub environment: Vec<Fact>,
}

/// The phase of serving that a shape belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// One token for each running request.
    Decode,
    Prefill,
}

/// A captured shape with its times before and after, as a row of the report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShapeRow {
    pub op: Op,
    pub m: u32,
    /// Output features.
    pub n: u32,
    /// Input features.
    pub k: u32,
    /// Decode or prefill, where it is known.
    #[serde(default)]
    pub phase: Option<Phase>,
    /// Calls in the captured run, graph replays counted.
    #[serde(default)]
    pub calls: Option<f64>,
    /// What served the shape before.
    #[serde(default)]
    pub before: Option<Timing>,
    /// What serves it now.
    #[serde(default)]
    pub after: Option<Timing>,
    /// Why it is as it is: tuned, served by another row, not worth tuning, failed.
    #[serde(default)]
    pub status: Option<String>,
}

impl ShapeRow {
    /// Floating-point operations of one call.
    pub fn flops(&self) -> f64 {
        2.0 * f64::from(self.m) * f64::from(self.n) * f64::from(self.k)
    }

    /// Bytes one call moves if each operand passes once: FP8 activation and weight, their float32
    /// scales per 1×128 and 128×128, bf16 output.
    pub fn bytes(&self) -> f64 {
        let (m, n, k) = (f64::from(self.m), f64::from(self.n), f64::from(self.k));
        let groups = (k / 128.0).ceil();
        m * k + n * k + 2.0 * m * n + 4.0 * groups * (m + (n / 128.0).ceil())
    }
}

/// A kernel and its time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Microseconds for one call.
    pub us: f64,
    /// Name of the kernel or configuration.
    pub kernel: String,
}

/// A fused MoE on one rank: the subject of one table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FusedMoe {
    /// Local experts, a fused shared expert included.
    pub experts: u32,
    /// Columns between its two GEMMs.
    pub n: u32,
    /// Hidden size.
    pub k: Option<u32>,
    /// Experts for each token.
    pub topk: Option<u32>,
    /// Calls in the captured run, graph replays counted.
    pub calls: f64,
    /// Calls of one forward pass, where a captured graph showed them.
    pub per_forward: Option<u32>,
    /// What served it before, described in words.
    pub today: String,
    /// What was timed as the whole operation: `fused_experts`, or `two GEMMs`; absent if it was not raced.
    #[serde(default)]
    pub timed: Option<String>,
    /// Its sizes by M.
    pub rows: Vec<FusedMoeRow>,
}

/// A fused MoE at one M.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FusedMoeRow {
    /// Tokens of the forward.
    pub m: u32,
    /// Decode or prefill, where it is known.
    #[serde(default)]
    pub phase: Option<Phase>,
    /// Calls that this M stands for; absent where none was recorded.
    #[serde(default)]
    pub calls: Option<f64>,
    /// The rows that served before.
    #[serde(default)]
    pub before: Option<Timing>,
    /// The rows that serve now.
    #[serde(default)]
    pub after: Option<Timing>,
    /// Why it is as it is: tuned, already served by the fastest, not raced.
    pub status: String,
}

impl FusedMoeRow {
    /// Time before divided by time after, where both were measured.
    pub fn ratio(&self) -> Option<f64> {
        Some(self.before.as_ref()?.us / self.after.as_ref()?.us)
    }
}

/// A hit rate before and after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HitRate {
    /// What is counted: `calls`, `GEMM time`; and whether it is predicted or measured.
    pub of: String,
    /// Share before, 0 to 1; absent where it was not measured.
    pub before: Option<f64>,
    /// Share after, 0 to 1.
    pub after: f64,
}

/// The peak rates of the device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Roofline {
    /// Peak FP8 rate, TFLOP/s.
    pub tflops: f64,
    /// Memory bandwidth, GB/s.
    pub gbps: f64,
    /// Where the two come from: measured here, or a published figure.
    pub source: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlanSummary {
    pub captured: usize,
    /// Rows that were to be tuned.
    pub to_tune: usize,
    /// Shapes served by another shape's row.
    pub folded: usize,
    /// Shapes that a row served before.
    pub served: usize,
    /// Rows in the deployed table.
    pub deployed: Option<usize>,
    /// Device time estimated before, seconds.
    pub estimated_s: Option<f64>,
    /// Device time used, seconds.
    pub used_s: Option<f64>,
    pub candidates: Option<u64>,
}

/// Neighbouring M of one weight that keep what served them before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stays {
    /// Output features.
    pub n: u32,
    /// Input features.
    pub k: u32,
    /// Smallest M; absent where nothing smaller was planned.
    #[serde(default)]
    pub min_m: Option<u32>,
    /// Largest M; absent where nothing larger was planned.
    #[serde(default)]
    pub max_m: Option<u32>,
    /// What serves them: `Triton`.
    pub on: String,
    /// How the tuned kernel did: `CK 1.18x slower`.
    pub why: String,
}

impl Stays {
    /// The group in a sentence: `stays on Triton: CK 1.18x slower at M >= 4096`.
    pub fn sentence(&self) -> String {
        let at = match (self.min_m, self.max_m) {
            (None, None) => "at every planned M".to_owned(),
            (Some(min), None) => format!("at M >= {min}"),
            (None, Some(max)) => format!("at M <= {max}"),
            (Some(min), Some(max)) if min == max => format!("at M = {min}"),
            (Some(min), Some(max)) => format!("at M {min} to {max}"),
        };
        format!("stays on {}: {} {at}", self.on, self.why)
    }
}

/// Something that was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    pub what: String,
    pub why: String,
}

/// The numerical check of a deployed kernel on one problem.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayoutCheck {
    /// What was probed: operation, N, K.
    pub what: String,
    pub m: u32,
    /// Relative error ‖y − ref‖ / ‖ref‖ against a reference in higher precision; absent when an output was not finite.
    pub error_ratio: Option<f64>,
    /// The largest relative error that is allowed.
    pub limit: f64,
}

impl LayoutCheck {
    /// Whether the probe passed. No number is a failure.
    pub fn passed(&self) -> bool {
        self.error_ratio.is_some_and(|ratio| ratio <= self.limit)
    }
}

/// Whether the deployed kernels ran in the tuned server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Engagement {
    /// Whether it was enough.
    pub passed: bool,
    /// Shapes that the server looked up and for which it used the deployed row.
    pub hits: Option<u64>,
    /// Shapes that it looked up and that another row or none served: the entries of `missing`.
    pub misses: Option<u64>,
    /// Each of them, with what served it where that is known.
    pub missing: Vec<String>,
    /// How it was determined, in a sentence.
    pub because: String,
}

/// A command to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    pub what: String,
    /// The command, ready to paste.
    pub command: String,
}

/// How long a stage took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageTime {
    pub stage: String,
    /// Seconds, all attempts together.
    pub seconds: f64,
    pub attempts: u32,
    pub outcome: String,
}

/// GEMM time of one (N, K), split.
#[derive(Clone, Debug, PartialEq)]
pub struct TimeShare {
    /// Output features.
    pub n: u32,
    /// Input features.
    pub k: u32,
    /// Share of all GEMM time spent here in decode, 0 to 1; shapes of unknown phase count here.
    pub decode: f64,
    /// Share spent here in prefill.
    pub prefill: f64,
}

impl Report {
    /// Where the GEMM time went before tuning: calls × time before, by (N, K), largest first. Empty
    /// when no shape has both.
    pub fn time_shares(&self) -> Vec<TimeShare> {
        let mut shares: Vec<TimeShare> = Vec::new();
        let mut total = 0.0;
        for row in &self.shapes {
            let (Some(calls), Some(before)) = (row.calls, &row.before) else {
                continue;
            };
            let time = calls * before.us;
            total += time;
            let at = shares
                .iter()
                .position(|share| (share.n, share.k) == (row.n, row.k))
                .unwrap_or_else(|| {
                    shares.push(TimeShare {
                        n: row.n,
                        k: row.k,
                        decode: 0.0,
                        prefill: 0.0,
                    });
                    shares.len() - 1
                });
            match row.phase {
                Some(Phase::Prefill) => shares[at].prefill += time,
                Some(Phase::Decode) | None => shares[at].decode += time,
            }
        }
        if total <= 0.0 {
            return Vec::new();
        }
        for share in &mut shares {
            share.decode /= total;
            share.prefill /= total;
        }
        shares.sort_by(|one, other| {
            (other.decode + other.prefill).total_cmp(&(one.decode + one.prefill))
        });
        shares
    }

    /// What the run found, in one sentence without a full stop.
    pub fn sentence(&self) -> String {
        match &self.comparison {
            Some(comparison) => super::verdict::sentence(comparison),
            None => self
                .ended_early
                .clone()
                .unwrap_or_else(|| "No comparison was made in this run".to_owned()),
        }
    }

    /// Checks that were made and did not pass, by name.
    pub fn failed_checks(&self) -> Vec<&'static str> {
        let parity = self.parity.as_ref().is_some_and(|parity| !parity.holds());
        let engagement = self.engagement.as_ref().is_some_and(|seen| !seen.passed);
        let layout = !self.layout.iter().all(LayoutCheck::passed);
        [
            (parity, "greedy parity"),
            (engagement, "deployed kernels in the running server"),
            (layout, "layout probes"),
        ]
        .into_iter()
        .filter_map(|(failed, name)| failed.then_some(name))
        .collect()
    }

    /// Headline metrics that contradict a verdict of better, same or worse.
    pub fn against(&self) -> Vec<&MetricResult> {
        let Some(comparison) = &self.comparison else {
            return Vec::new();
        };
        let opposite = match comparison.verdict {
            Verdict::Better | Verdict::Same => Verdict::Worse,
            Verdict::Worse => Verdict::Better,
            Verdict::Inconclusive => return Vec::new(),
        };
        let metrics = comparison.metrics.iter();
        metrics
            .filter(|metric| metric.headline && !metric.decides && metric.reading == opposite)
            .collect()
    }
}

/// A metric's name for display: `output throughput`, `median TTFT`.
pub fn plain_name(metric: &MetricResult) -> String {
    let name = metric.metric.trim_end_matches("_ms").replace('_', " ");
    name.split(' ')
        .map(|word| match word {
            "ttft" | "tpot" | "itl" => word.to_uppercase(),
            "e2e" => "end-to-end".to_owned(),
            word => word.to_owned(),
        })
        .collect::<Vec<String>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(n: u32, m: u32, calls: f64, us: f64, phase: Option<Phase>) -> ShapeRow {
        ShapeRow {
            op: Op::Blockscale,
            m,
            n,
            k: 128,
            phase,
            calls: Some(calls),
            before: Some(Timing {
                us,
                kernel: "k".to_owned(),
            }),
            after: None,
            status: None,
        }
    }

    #[test]
    fn shares_are_of_all_gemm_time_and_split_by_phase() {
        let report = Report {
            shapes: vec![
                row(64, 1, 10.0, 1.0, Some(Phase::Decode)),
                row(32, 1, 10.0, 2.0, None),
                row(64, 512, 1.0, 70.0, Some(Phase::Prefill)),
                ShapeRow {
                    calls: None,
                    ..row(16, 1, 0.0, 9.0, None)
                },
            ],
            ..Report::default()
        };
        let shares = report.time_shares();
        assert_eq!(shares.len(), 2);
        assert_eq!((shares[0].n, shares[1].n), (64, 32));
        assert!((shares[0].decode - 0.1).abs() < 1e-12);
        assert!((shares[0].prefill - 0.7).abs() < 1e-12);
        assert!((shares[1].decode - 0.2).abs() < 1e-12);
        assert!(Report::default().time_shares().is_empty());
    }

    #[test]
    fn bytes_count_every_operand_once() {
        // 128 + 128·128 bytes of FP8, 2·128 of bf16, 1 + 1 scales of 4.
        let row = row(128, 1, 1.0, 1.0, None);
        assert!((row.bytes() - (128.0 + 16384.0 + 256.0 + 8.0)).abs() < 1e-9);
        assert!((row.flops() - 32768.0).abs() < 1e-9);
    }

    #[test]
    fn a_document_of_a_run_that_stopped_early_reads_back() {
        let report: Report =
            serde_json::from_str(r#"{"name": "x", "ended_early": "nothing to gain"}"#).unwrap();
        assert_eq!(report.sentence(), "nothing to gain");
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }

    #[test]
    fn a_probe_without_a_number_fails() {
        let probe = LayoutCheck {
            what: String::new(),
            m: 2,
            error_ratio: Some(f64::NAN),
            limit: 0.05,
        };
        assert!(!probe.passed());
        let text = serde_json::to_string(&probe).unwrap();
        let back: LayoutCheck = serde_json::from_str(&text).unwrap();
        assert_eq!(back.error_ratio, None);
        assert!(!back.passed());
    }
}
