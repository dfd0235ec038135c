//! What was found about a server: before it is instrumented, instrumented, and tuned.

use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

use super::{SeenMoe, VerifiedMoe};
use crate::bench::parity::Agreement;
use crate::probe::found::{KernelTime, LayoutCheck, Module};
use crate::probe::ran::Ran;
use crate::problem::Op;
use crate::report::model::Phase;

/// What the inspect stage found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inspection {
    /// Facts that must not change while the run lasts.
    pub identity: BTreeMap<String, String>,
    /// Operation that will be tuned; where only a fused MoE is, the one that the server's dense GEMMs are recorded
    /// as.
    pub op: Op,
    /// Architecture, as in the tables: `gfx942`.
    pub gfx: String,
    /// Compute units, as in the tables.
    pub cu_num: u32,
    /// A description of the kernel path that serves the operation today.
    pub path: String,
    /// The server's function that calls the operation, once the workload was captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linear: Option<String>,
    /// Table the environment uses before tuning, if any.
    pub table: Option<Utf8PathBuf>,
    /// Further dense GEMM operations that the workload runs and that are tuned in the same run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<AlsoTuned>,
    /// Why no dense GEMM is tuned, where the kind would and only the fused MoE is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dense_left: Option<String>,
    pub remarks: Vec<String>,
}

/// What serves a further operation today; everything else is the same as for the first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlsoTuned {
    pub op: Op,
    /// A description of the kernel path that serves it.
    pub path: String,
    /// The server's function that calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linear: Option<String>,
    /// Table the environment uses for it, if any.
    pub table: Option<Utf8PathBuf>,
}

impl Inspection {
    /// An inspection for each operation that is tuned, the one with most calls first.
    pub fn operations(&self) -> Vec<Self> {
        let first = Self {
            also: Vec::new(),
            ..self.clone()
        };
        let also = self.also.iter().map(|also| Self {
            op: also.op,
            path: also.path.clone(),
            linear: also.linear.clone(),
            table: also.table.clone(),
            ..first.clone()
        });
        let also: Vec<Self> = also.collect();
        std::iter::once(first).chain(also).collect()
    }

    /// The device's name; empty if the server does not report one.
    pub fn device_name(&self) -> &str {
        self.identity.get("device").map_or("", String::as_str)
    }

    /// The operations that are tuned.
    pub fn ops(&self) -> impl Iterator<Item = Op> {
        std::iter::once(self.op).chain(self.also.iter().map(|also| also.op))
    }
}

/// What the capture stage found, beside the shapes themselves.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Captured {
    /// The inspection, updated by what the workload was seen to use.
    #[serde(default)]
    pub inspection: Option<Inspection>,
    /// Number of the capture trial.
    pub trial: u32,
    pub distinct: usize,
    pub calls: u64,
    /// Identities of the dispatch, as logged.
    pub dispatch: Vec<String>,
    /// Records that were torn or impossible.
    pub malformed: u64,
    /// Sizes of decode batches, in requests.
    pub decode: Vec<u32>,
    /// Sizes of prefill batches, in tokens.
    pub prefill: Vec<u32>,
    /// M of the decode graphs that were captured.
    #[serde(default)]
    pub graphs: Vec<u32>,
    /// Tokens of one prefill chunk, where the server logged it.
    #[serde(default)]
    pub chunk: Option<u32>,
    /// Fused MoE that ran, where it is to be tuned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fused_moe: Vec<SeenMoe>,
}

impl Captured {
    /// The phase of serving that a GEMM with M of `m` belongs to, where the log tells.
    pub fn phase(&self, m: u32) -> Option<Phase> {
        match (self.decode.contains(&m), self.prefill.contains(&m)) {
            (true, false) => Some(Phase::Decode),
            (false, true) => Some(Phase::Prefill),
            // Decode lines are sampled by default, prefill lines are not: an M below every prefill
            // batch is a decode batch that was not sampled.
            (false, false) if self.prefill.iter().all(|&tokens| m < tokens) => Some(Phase::Decode),
            _ => None,
        }
    }
}

/// What the verify stage found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Verified {
    /// Number of the verify trial.
    pub trial: u32,
    /// The deployed operation against a reference.
    pub layout: Vec<LayoutCheck>,
    /// Greedy answers against the baseline's.
    pub parity: Agreement,
    /// Share of the look-ups that the deployed table served.
    pub hit_rate: Option<f64>,
    /// Which planned shapes the deployed table served; empty where no dense GEMM was tuned.
    pub engagement: Engagement,
    /// How long deployed kernels take, where the platform times them.
    #[serde(default)]
    pub times: Vec<KernelTime>,
    /// The modules that the process loaded, if the platform has any.
    #[serde(default)]
    pub modules: Vec<Module>,
    /// Whether the kernels that ran are the table's.
    #[serde(default)]
    pub ran: Ran,
    /// The deployed fused MoE, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fused_moe: Option<VerifiedMoe>,
}

/// Look-ups that a tuned server reported while it served the workload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Engagement {
    /// Shapes looked up that hit their deployed row.
    pub hit: usize,
    /// Shapes looked up that missed although there is a row for them, by name.
    pub missed: Vec<String>,
    /// Rows that the workload did not use this time, by name.
    pub unseen: Vec<String>,
    /// Shapes looked up for which there is no row, by name.
    pub unplanned: Vec<String>,
    /// Hits with a kernel other than the deployed one.
    pub other_kernel: Vec<String>,
    /// For a route: the shapes of each family in it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub families: BTreeMap<String, HitCount>,
    /// Where several operations are deployed: the shapes of each one's table.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub operations: BTreeMap<String, HitCount>,
}

/// Shapes that a route assigns to a family, or that a table has rows for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HitCount {
    /// Those that it computed, with their deployed row.
    pub hit: usize,
    /// Those that something else computed.
    pub missed: usize,
}

impl Engagement {
    /// Shapes looked up that no deployed row served, by name. Terminal and report count and list these.
    pub fn not_served(&self) -> Vec<String> {
        let lists = [&self.missed, &self.other_kernel, &self.unplanned];
        lists.into_iter().flatten().cloned().collect()
    }

    /// Shapes the server looked up.
    pub fn looked_up(&self) -> usize {
        self.hit + self.not_served().len()
    }

    /// A sentence with both counts.
    pub fn sentence(&self) -> String {
        let left = if self.unplanned.is_empty() {
            String::new()
        } else {
            format!("; for {} of them none is deployed", self.unplanned.len())
        };
        format!(
            "{} of {} shapes that the tuned server looked up took the row deployed for them{left}",
            self.hit,
            self.looked_up()
        )
    }

    /// Why the deployed table cannot be what serves; `None` if it is.
    ///
    /// The kernel's name in the log comes from the table that the server reads, so with another table nearly every
    /// look-up misses or contradicts; single contradictions are torn lines, the beginning of one look-up with the end
    /// of another.
    pub fn refusal(&self) -> Option<String> {
        let missed = self.missed.len();
        // A family that does not run counts as not deployed, whatever the others do.
        let idle = |(_, asked): &(&String, &HitCount)| asked.hit == 0 && asked.missed > 0;
        if let Some((family, asked)) = self.families.iter().find(idle) {
            let first = self
                .missed
                .iter()
                .find(|shape| shape.contains(family.as_str()));
            return Some(format!(
                "the family `{family}` computed none of the {} shapes that the route gives it{}",
                asked.missed,
                first.map_or_else(String::new, |shape| format!(", first {shape}"))
            ));
        }
        // The same holds for the table of an operation.
        if let Some((op, asked)) = self.operations.iter().find(idle) {
            return Some(format!(
                "none of the {} shapes of {op} that the tuned server looked up took the row deployed for them",
                asked.missed
            ));
        }
        if self.hit > 0 && self.other_kernel.len() <= self.hit && missed <= self.hit {
            return None;
        }
        Some(match (self.other_kernel.first(), self.missed.first()) {
            (Some(shape), _) => format!("another kernel than the tuned one runs: {shape}"),
            (None, Some(shape)) => format!(
                "{missed} of {} shapes were not served by the row that is deployed for them, first {shape}",
                self.hit + missed
            ),
            (None, None) => "no shape of the workload was served by the deployed table".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_phase_of_a_size_follows_the_batches_that_were_logged() {
        let captured = Captured {
            inspection: None,
            trial: 2,
            distinct: 0,
            calls: 0,
            dispatch: Vec::new(),
            malformed: 0,
            decode: vec![4, 32],
            prefill: vec![32, 64],
            graphs: Vec::new(),
            chunk: None,
            fused_moe: Vec::new(),
        };
        assert_eq!(captured.phase(4), Some(Phase::Decode));
        assert_eq!(captured.phase(64), Some(Phase::Prefill));
        assert_eq!(captured.phase(1), Some(Phase::Decode), "not sampled");
        assert_eq!(captured.phase(32), None, "both");
        assert_eq!(captured.phase(48), None, "neither");
    }

    #[test]
    fn engagement_holds_while_most_shapes_are_served_as_deployed() {
        let seen = |hit: usize, missed: usize, other: usize| Engagement {
            hit,
            missed: vec!["a".to_owned(); missed],
            other_kernel: vec!["b: x instead of y".to_owned(); other],
            ..Engagement::default()
        };
        assert_eq!(seen(8, 0, 0).refusal(), None);
        assert_eq!(seen(8, 2, 3).refusal(), None);
        let refused = [seen(0, 0, 0), seen(1, 15, 0), seen(3, 0, 4)];
        let said = refused.map(|engagement| engagement.refusal().unwrap());
        insta::assert_snapshot!(said.join("\n"), @"
        no shape of the workload was served by the deployed table
        15 of 16 shapes were not served by the row that is deployed for them, first a
        another kernel than the tuned one runs: b: x instead of y
        ");
    }

    #[test]
    fn a_table_that_serves_nothing_is_refused_although_that_of_another_operation_serves() {
        let asked = |hit, missed| HitCount { hit, missed };
        let seen = |block: HitCount| Engagement {
            hit: 40 + block.hit,
            missed: vec!["b".to_owned(); block.missed],
            operations: [("channel", asked(40, 0)), ("block", block)]
                .map(|(op, asked)| (op.to_owned(), asked))
                .into(),
            ..Engagement::default()
        };
        assert_eq!(seen(asked(3, 1)).refusal(), None);
        assert_eq!(
            seen(asked(0, 0)).refusal(),
            None,
            "the workload ran none of it"
        );
        let refusal = seen(asked(0, 4)).refusal().unwrap();
        insta::assert_snapshot!(refusal, @"none of the 4 shapes of block that the tuned server looked up took the row deployed for them");
    }
}
