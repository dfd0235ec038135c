//! The fused MoE beside the dense GEMMs: what was captured, tuned, deployed and verified.

use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

use super::Engagement;
use crate::problem::fused_moe::MoeProblem;
use crate::run::documents::HitCount;
use crate::tune::TuneOutcome;
use crate::tune::clocks::Clocks;
use crate::tune::event::DeviceTime;
use crate::tune::moe::{MoeTask, Part};
use crate::tune::results::Row;
use crate::tune::tuned::TunedTable;

/// A fused MoE that the workload runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeenMoe {
    /// The problem on one rank.
    #[serde(flatten)]
    pub problem: MoeProblem,
    /// Calls by M (tokens of the forward), graph replays counted.
    pub calls: BTreeMap<u32, u64>,
    /// Calls in one forward pass, counted in a captured graph; absent where none was captured.
    pub per_forward: Option<u32>,
    /// What serves it today, described in words.
    pub today: String,
}

impl SeenMoe {
    /// A description of what was captured.
    pub fn sentence(&self) -> String {
        format!(
            "fused MoE {} at {} M from {} calls",
            self.in_short(),
            self.calls.len(),
            self.calls.values().sum::<u64>()
        )
    }

    /// A short name such as `E=128 N=768`: the subject of one table.
    pub fn in_short(&self) -> String {
        format!("E={} N={}", self.problem.experts, self.problem.n)
    }
}

/// What the tune stage found of fused MoE.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TunedMoe {
    /// A description of the device.
    pub device: String,
    /// What was timed as the whole operation: `fused_experts`, `two GEMMs` where that could not be run, or aiter's `fused_moe`.
    pub whole: String,
    /// One row for every size that was raced, as a whole operation.
    pub rows: Vec<Row<MoeTask>>,
    /// Sizes without a winner, each with the reason.
    pub failed: Vec<String>,
    /// Sizes that exceeded the budget.
    pub not_reached: Vec<MoeTask>,
    /// Candidates that fault, hang or compute wrong numbers, each with the evidence.
    pub quarantined: Vec<String>,
    /// What was lost permanently.
    pub lost: Vec<String>,
    /// Files of the tables, as the tuner wrote them.
    pub files: Vec<Utf8PathBuf>,
    /// The same tables as rows: what is deployed.
    #[serde(default)]
    pub tables: Vec<TunedTable>,
    /// The devices' clocks while candidates were timed.
    pub clocks: Clocks,
    /// Pairs of rows that were timed as whole operations.
    pub candidates: u64,
    /// What a reader of the result should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
    /// The time of each device, where the tuner tells.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceTime>,
    /// Total seconds for which requests held devices.
    pub busy_seconds: f64,
    /// Seconds from start to end of the last attempt.
    pub seconds: f64,
}

impl TunedMoe {
    /// Rows that are faster than what serves today.
    pub fn won(&self) -> impl Iterator<Item = &Row<MoeTask>> {
        self.rows.iter().filter(|row| !row.incumbent_kept)
    }
}

impl From<TuneOutcome<MoeTask>> for TunedMoe {
    fn from(outcome: TuneOutcome<MoeTask>) -> Self {
        let whole = outcome.device.versions.get("whole").cloned();
        let (candidates, rows) = (
            outcome.rows.iter().map(|row| u64::from(row.timed)).sum(),
            outcome.rows.into_iter(),
        );
        let is_whole = |task: &MoeTask| task.part == Part::Whole;
        Self {
            device: outcome.device.name,
            whole: whole.unwrap_or_default(),
            rows: rows.filter(|row| is_whole(&row.shape)).collect(),
            failed: outcome
                .failed
                .iter()
                .map(|unserved| format!("{}: {}", unserved.shape, unserved.reason))
                .collect(),
            not_reached: outcome.not_reached.into_iter().filter(is_whole).collect(),
            quarantined: outcome
                .quarantined
                .iter()
                .map(|bad| format!("{} {}: {}", bad.shape, bad.candidate, bad.evidence))
                .collect(),
            lost: outcome.lost,
            files: outcome.files,
            tables: outcome.tables,
            clocks: outcome.clocks,
            candidates,
            remarks: outcome.remarks,
            devices: outcome.devices,
            busy_seconds: outcome.busy_s,
            seconds: outcome.seconds,
        }
    }
}

/// The deployed tables of fused MoE.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeployedMoe {
    /// Environment with which they are served.
    pub env: BTreeMap<String, String>,
    /// Their folder, or the file that has them all.
    pub table: Utf8PathBuf,
    pub digest: String,
    /// Rows in them; SGLang's are each for the up and the down projection.
    pub rows: usize,
    /// How many of them are faster than what served before; the others repeat what serves anyway.
    pub won: usize,
    /// What undo would revert, in words.
    pub takes_back: Vec<String>,
    /// Remarks that a reader needs to interpret the result.
    pub notes: Vec<String>,
}

/// The deployed fused MoE against a reference, at one size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MoeCheck {
    #[serde(flatten)]
    pub task: MoeTask,
    /// The row that served it, in words; the error if it did not run.
    pub kernel: String,
    /// ‖y − ref‖ / ‖ref‖; absent when the output was not finite.
    pub relative_error: Option<f64>,
    /// The largest error accepted.
    pub limit: f64,
    /// Time of a call, µs, if it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub us: Option<f64>,
    /// The time with which the row was judged, µs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuned_us: Option<f64>,
}

impl MoeCheck {
    /// Whether the numbers are right.
    pub fn passes(&self) -> bool {
        self.relative_error.is_some_and(|error| error <= self.limit)
    }
}

/// What the verify stage found of the deployed fused MoE.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerifiedMoe {
    pub checks: Vec<MoeCheck>,
    /// Which sizes the deployed tables served; `families` has an entry for each table.
    pub engagement: Engagement,
}

impl VerifiedMoe {
    /// Why the deployed tables cannot be what serves; `None` if they are. A table is put in place for a whole
    /// process, so a single size served by another row means a process without the tables.
    pub fn refusal(&self) -> Option<String> {
        let engagement = &self.engagement;
        let idle = |(_, asked): &(&String, &HitCount)| asked.hit == 0 && asked.missed == 0;
        if let Some(first) = engagement.missed.first() {
            return Some(format!(
                "fused MoE: {} of {} sizes were not served by the row that is deployed for them, first {first}",
                engagement.missed.len(),
                engagement.looked_up()
            ));
        }
        if let Some(first) = engagement.other_kernel.first() {
            return Some(format!(
                "fused MoE: another row than the deployed one runs: {first}"
            ));
        }
        let table = engagement.families.iter().find(idle);
        table.map(|(table, _)| {
            format!("fused MoE: the server looked nothing up in the deployed table of {table}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_size_that_another_row_served_is_a_refusal() {
        let seen = |hit, missed: &[&str], other: &[&str]| VerifiedMoe {
            checks: Vec::new(),
            engagement: Engagement {
                hit,
                missed: missed.iter().map(ToString::to_string).collect(),
                other_kernel: other.iter().map(ToString::to_string).collect(),
                families: BTreeMap::from([(
                    "E=8 N=128".to_owned(),
                    HitCount {
                        hit,
                        missed: missed.len() + other.len(),
                    },
                )]),
                ..Engagement::default()
            },
        };
        for (verified, says) in [
            (seen(9, &[], &[]), None),
            (
                seen(9, &["M=1"], &[]),
                Some("1 of 10 sizes were not served"),
            ),
            (seen(9, &[], &["M=1: a instead of b"]), Some("another row")),
            (seen(0, &[], &[]), Some("table of E=8 N=128")),
        ] {
            let refusal = verified.refusal();
            assert_eq!(refusal.is_some(), says.is_some(), "{verified:?}");
            assert!(
                refusal
                    .unwrap_or_default()
                    .contains(says.unwrap_or_default())
            );
        }
    }
}
