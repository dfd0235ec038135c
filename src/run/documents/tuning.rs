//! What was tuned, and what of that was deployed.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use super::{DeployedMoe, Inspection, TunedMoe};
use crate::probe::contest::Contest;
use crate::problem::{Op, Shape};
use crate::table::aiter;
use crate::tune::TuneOutcome;
use crate::tune::clocks::Clocks;
use crate::tune::event::DeviceTime;
use crate::tune::results::Row;
use crate::tune::tuned::TunedTable;
use crate::workload::env::Environment;

/// What the tune stage found, as later stages and the report read it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tuned {
    /// A description of the device.
    pub device: String,
    /// One row for every shape that was raced.
    pub rows: Vec<Row>,
    /// Shapes without a winner, each with the reason.
    pub failed: Vec<String>,
    /// Shapes that exceeded the budget.
    pub not_reached: Vec<Shape>,
    /// Candidates that fault, hang or compute wrong numbers, each with the evidence.
    pub quarantined: Vec<String>,
    /// What was lost permanently: why a device was given up, or a library without a measured candidate.
    #[serde(default)]
    pub lost: Vec<String>,
    /// What serves each planned shape today against its row; empty where that was not timed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contests: Vec<Contest>,
    /// Remarks that a reader needs to interpret the result.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
    /// Files of the table, as the tuner wrote them.
    pub files: Vec<Utf8PathBuf>,
    /// The same tables as rows: what is deployed.
    #[serde(default)]
    pub tables: Vec<TunedTable>,
    /// Where the table was taken from that is deployed unchanged; nothing was tuned then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_from: Option<Utf8PathBuf>,
    /// The devices' clocks while candidates were timed; empty where the tuner does not report them.
    #[serde(default)]
    pub clocks: Clocks,
    /// The time of each device, where the tuner tells.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceTime>,
    /// Total seconds for which requests held devices.
    pub busy_seconds: f64,
    /// Seconds from start to end of the last attempt.
    pub seconds: f64,
    /// The results for fused MoE, where it was raced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fused_moe: Option<TunedMoe>,
}

impl Tuned {
    /// The result of a run in which no dense GEMM was raced.
    pub fn of_fused_moe(tuned: TunedMoe) -> Self {
        Self {
            device: tuned.device.clone(),
            seconds: tuned.seconds,
            fused_moe: Some(tuned),
            ..Self::default()
        }
    }

    /// Whether a dense GEMM is faster than what serves it today, or a table was taken that is to be judged.
    pub fn has_won(&self) -> bool {
        self.taken_from.is_some() || self.rows.iter().any(|row| !row.incumbent_kept)
    }

    /// A table that was taken unchanged from elsewhere.
    pub fn taken(from: &Utf8Path, device: &str, tables: Vec<TunedTable>) -> Self {
        Self {
            device: device.to_owned(),
            remarks: vec![format!(
                "nothing was tuned: the table is {from}, taken as it is"
            )],
            tables,
            taken_from: Some(from.to_owned()),
            ..Self::default()
        }
    }

    /// The comparison of a problem's row with what serves it today.
    pub fn contest(&self, shape: &Shape) -> Option<&Contest> {
        let is_of = |contest: &&Contest| contest.shape.is_same_problem(shape);
        self.contests.iter().find(is_of)
    }

    /// The tuned row of a problem.
    pub fn row(&self, shape: &Shape) -> Option<&Row> {
        self.rows
            .iter()
            .find(|row| row.shape.is_same_problem(shape))
    }

    /// Rows of `op` that are faster than what serves today.
    pub fn won(&self, op: Op) -> impl Iterator<Item = &Row> {
        let rows = self.rows.iter();
        rows.filter(move |row| row.shape.op == op && !row.incumbent_kept)
    }

    /// (M, N, K) of `op` that stay with what serves them today: none of their rows is deployed.
    pub fn left(&self, op: Op) -> BTreeSet<(u32, u32, u32)> {
        let lost = self.contests.iter().filter(|contest| !contest.takes_over);
        let kept = self.rows.iter().filter(|row| row.incumbent_kept);
        lost.map(|contest| &contest.shape)
            .chain(kept.map(|row| &row.shape))
            .filter(|shape| shape.op == op)
            .map(|shape| (shape.m, shape.n, shape.k))
            .collect()
    }

    /// The rows of the CSV table of `op` that are deployed.
    pub fn placed(&self, op: Op) -> impl Iterator<Item = &aiter::Row> {
        let left = self.left(op);
        let rows = self.tables.iter().flat_map(move |table| table.csv_rows(op));
        rows.filter(move |row| !left.contains(&(row.m, row.n, row.k)))
    }

    /// Merges the results for another operation of the same server.
    #[must_use]
    pub fn with(mut self, other: Self) -> Self {
        self.rows.extend(other.rows);
        self.failed.extend(other.failed);
        self.not_reached.extend(other.not_reached);
        self.quarantined.extend(other.quarantined);
        self.lost.extend(other.lost);
        self.contests.extend(other.contests);
        self.remarks.extend(other.remarks);
        self.files.extend(other.files);
        self.tables.extend(other.tables);
        self.clocks.add(&other.clocks);
        self.devices.extend(other.devices);
        self.busy_seconds += other.busy_seconds;
        self.seconds += other.seconds;
        self
    }
}

impl From<TuneOutcome> for Tuned {
    fn from(outcome: TuneOutcome) -> Self {
        Self {
            device: outcome.device.name,
            rows: outcome.rows,
            failed: outcome
                .failed
                .iter()
                .map(|unserved| format!("{}: {}", unserved.shape, unserved.reason))
                .collect(),
            not_reached: outcome.not_reached,
            quarantined: outcome
                .quarantined
                .iter()
                .map(|bad| format!("{} {}: {}", bad.shape, bad.candidate, bad.evidence))
                .collect(),
            lost: outcome.lost,
            remarks: outcome.remarks,
            files: outcome.files,
            tables: outcome.tables,
            clocks: outcome.clocks,
            devices: outcome.devices,
            busy_seconds: outcome.busy_s,
            seconds: outcome.seconds,
            ..Self::default()
        }
    }
}

/// What the deploy stage did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deployment {
    /// Environment of the tuned arm, relative to the baseline's.
    pub env: BTreeMap<String, String>,
    /// Variables of the baseline that the tuned arm must not have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unset: Vec<String>,
    /// Remarks that a reader needs to interpret the result.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The deployed table; of several operations, that of the first.
    pub table: Utf8PathBuf,
    pub digest: String,
    pub rows: usize,
    /// The operation it serves, where several are tuned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op: Option<Op>,
    /// The tables of further operations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<DeployedTable>,
    /// Files and folders that appear when the deployment is first used: build products, which undo deletes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub appear: Vec<Utf8PathBuf>,
    /// What undo would revert, in words.
    pub takes_back: Vec<String>,
    /// Whether the next server start may build code.
    pub may_build: bool,
    /// Whether it includes a table of dense GEMMs; without one, `table`, `digest` and `rows` are those of the fused
    /// MoE.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub dense: bool,
    /// The fused MoE in it; its environment is already in `env`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fused_moe: Option<DeployedMoe>,
}

/// The table of one of several operations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeployedTable {
    pub op: Op,
    pub table: Utf8PathBuf,
    pub digest: String,
    pub rows: usize,
}

const fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde asks for")]
const fn is_yes(yes: &bool) -> bool {
    *yes
}

/// A deployment of nothing.
impl Default for Deployment {
    fn default() -> Self {
        Self {
            env: BTreeMap::new(),
            unset: Vec::new(),
            notes: Vec::new(),
            table: Utf8PathBuf::new(),
            digest: String::new(),
            rows: 0,
            op: None,
            also: Vec::new(),
            appear: Vec::new(),
            takes_back: Vec::new(),
            may_build: false,
            dense: true,
            fused_moe: None,
        }
    }
}

impl Deployment {
    /// Dense GEMMs whose `table` an overlay serves in place of the shipped ones.
    pub fn by_overlay(
        table: Utf8PathBuf,
        digest: String,
        rows: usize,
        (env, takes_back): (BTreeMap<String, String>, String),
    ) -> Self {
        Self {
            env,
            table,
            digest,
            rows,
            takes_back: vec![takes_back],
            // Other configurations are other programs, compiled when they first run.
            may_build: true,
            ..Self::default()
        }
    }

    /// A deployment of fused MoE only.
    pub fn of_fused_moe(deployed: DeployedMoe) -> Self {
        let nothing = Self {
            table: deployed.table.clone(),
            digest: deployed.digest.clone(),
            rows: deployed.rows,
            dense: false,
            ..Self::default()
        };
        nothing.with_fused_moe(deployed)
    }

    /// Adds a fused MoE to the dense GEMMs.
    #[must_use]
    pub fn with_fused_moe(mut self, deployed: DeployedMoe) -> Self {
        self.env.extend(deployed.env.clone());
        self.notes.extend(deployed.notes.clone());
        self.takes_back.extend(deployed.takes_back.clone());
        self.may_build = true;
        self.fused_moe = Some(deployed);
        self
    }

    /// The tables of dense GEMMs, each with the inspection of its operation.
    pub fn tables(&self, inspection: &Inspection) -> Vec<(Inspection, DeployedTable)> {
        if !self.dense {
            return Vec::new();
        }
        let first = DeployedTable {
            op: self.op.unwrap_or(inspection.op),
            table: self.table.clone(),
            digest: self.digest.clone(),
            rows: self.rows,
        };
        let mut tables: Vec<DeployedTable> = self.also.clone();
        tables.push(first);
        let each = inspection.operations().into_iter();
        each.filter_map(|one| {
            let table = tables.iter().find(|table| table.op == one.op)?.clone();
            Some((one, table))
        })
        .collect()
    }

    /// Number of rows in its tables of dense GEMMs.
    pub fn dense_rows(&self) -> usize {
        let also: usize = self.also.iter().map(|table| table.rows).sum();
        if self.dense { self.rows + also } else { 0 }
    }

    /// Number of rows in all its tables.
    pub fn all_rows(&self) -> usize {
        let experts = self.fused_moe.as_ref().map_or(0, |experts| experts.rows);
        self.dense_rows() + experts
    }

    /// The tuned arm's environment, relative to the baseline's.
    pub fn environment(&self) -> Environment {
        let unset = self.unset.iter().map(|name| (name.clone(), None));
        let set = self.env.iter();
        unset
            .chain(set.map(|(name, value)| (name.clone(), Some(value.clone()))))
            .collect()
    }
}
