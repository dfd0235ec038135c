//! What logs and records report about SGLang's fused MoE: which tables servers looked for, which problems ran, and
//! what served them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{ENTRIES_MAX, RecordFile, SHAPES_MAX, add_one};
use crate::log::moe::{TableLine, TableStatus};
use crate::log::record::{CallKind, MoeServed};
use crate::problem::fused_moe::MoeProblem;
use crate::table::moe::counted::CountedProblem;

/// A fused MoE at one M.
pub(super) type AtM = (MoeProblem, u32);

/// Everything about fused MoE.
#[derive(Debug, Default)]
pub struct MoeSummary {
    /// Tables that a server looked for, by their problem; a line has neither hidden size nor topk.
    pub tables: BTreeMap<MoeProblem, MoeTables>,
    /// What served each problem and M, where the overlay recorded it; if there are several, the one that the overlay
    /// did not put in place itself.
    pub served: BTreeMap<AtM, MoeServed>,
    calls: BTreeMap<AtM, u64>,
    captured: BTreeMap<(Option<u32>, AtM), u64>,
    /// Calls of a problem in one captured graph, which is one forward pass; the maximum over all graphs.
    per_graph: BTreeMap<MoeProblem, u64>,
}

/// What servers logged about the tables of one (E, N).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MoeTables {
    /// Times a table was read, once for each process.
    pub tuned_config: u64,
    /// Times the table of another Triton version was read.
    pub other_triton: u64,
    /// Times the default was used because there was no table.
    pub default_config: u64,
    /// Times the down projection had no table.
    pub without_down: u64,
    /// Device name in the file name.
    pub device: String,
    /// The up projection's file that was read or looked for, as last logged.
    pub file: String,
}

impl MoeSummary {
    /// Whether there is no trace of a fused MoE.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.calls.is_empty()
    }

    /// Calls of problems, and for each table whose problem has no call one record without M: the content of a shapes
    /// file.
    pub fn problems(&self) -> Vec<CountedProblem> {
        let calls = self
            .calls
            .iter()
            .map(|((problem, m), records)| CountedProblem {
                problem: problem.clone(),
                m: Some(*m),
                records: *records,
            });
        let named = self.tables.iter().filter(|(problem, _)| {
            let same = |called: &MoeProblem| {
                let bare = MoeProblem {
                    hidden: None,
                    topk: None,
                    ..called.clone()
                };
                bare == **problem
            };
            !self.calls.keys().any(|(called, _)| same(called))
        });
        let named = named.map(|(problem, said)| CountedProblem {
            problem: problem.clone(),
            m: None,
            records: (said.tuned_config
                + said.other_triton
                + said.default_config
                + said.without_down)
                .max(1),
        });
        calls.chain(named).collect()
    }

    /// Calls of `problem` in one forward pass, as counted in a captured graph.
    pub fn per_forward(&self, problem: &MoeProblem) -> Option<u32> {
        let calls = self.per_graph.get(problem)?;
        u32::try_from(*calls).ok()
    }

    /// Calls that were recorded.
    pub fn calls(&self) -> u64 {
        self.calls.values().sum()
    }

    pub(in crate::log) fn add_line(&mut self, line: TableLine) {
        let problem = line.name.problem();
        if self.tables.len() >= ENTRIES_MAX && !self.tables.contains_key(&problem) {
            return;
        }
        let tables = self.tables.entry(problem).or_default();
        match (line.status, line.name.down) {
            (TableStatus::DownMissing, _) => tables.without_down += 1,
            // One process is one count: only the up projection's line counts.
            (_, true) => {}
            (TableStatus::Read, false) => tables.tuned_config += 1,
            (TableStatus::OtherTriton, false) => tables.other_triton += 1,
            (TableStatus::Missing, false) => tables.default_config += 1,
        }
        if !line.name.down || tables.file.is_empty() {
            tables.file = line.path;
        }
        tables.device = line.name.device_name;
    }

    /// Counts calls; returns how many are left out because there are too many problems.
    pub(super) fn add_calls(
        &mut self,
        problem: AtM,
        kind: CallKind,
        bs: Option<u32>,
        count: u64,
    ) -> u64 {
        match kind {
            CallKind::Eager => self.add(problem, count),
            CallKind::Capture => {
                let key = (bs, problem);
                if self.captured.len() >= SHAPES_MAX && !self.captured.contains_key(&key) {
                    return count;
                }
                let sum = self.captured.entry(key).or_default();
                *sum = sum.saturating_add(count);
                0
            }
            CallKind::Warmup => 0,
        }
    }

    fn add(&mut self, problem: AtM, count: u64) -> u64 {
        if self.calls.len() >= SHAPES_MAX && !self.calls.contains_key(&problem) {
            return count;
        }
        let sum = self.calls.entry(problem).or_default();
        *sum = sum.saturating_add(count);
        0
    }

    pub(super) fn add_served(&mut self, problem: AtM, served: MoeServed) {
        let known = self.served.get(&problem);
        let worse = known.is_none_or(|known| known.injected && !served.injected);
        if worse && self.served.len() < SHAPES_MAX {
            self.served.insert(problem, served);
        }
    }

    /// Ends a record file: captured calls are multiplied by the replays of their graph.
    pub(super) fn end_record_file(&mut self, file: &RecordFile) {
        for ((bs, problem), count) in std::mem::take(&mut self.captured) {
            if bs.is_some() {
                let most = self.per_graph.entry(problem.0.clone()).or_default();
                *most = count.max(*most);
            }
            self.add(problem, file.calls(bs, count));
        }
    }

    /// Adds a later part of the same log.
    pub(super) fn append(&mut self, later: Self) {
        for (problem, said) in later.tables {
            if self.tables.len() >= ENTRIES_MAX && !self.tables.contains_key(&problem) {
                continue;
            }
            let known = self.tables.entry(problem).or_default();
            known.tuned_config += said.tuned_config;
            known.other_triton += said.other_triton;
            known.default_config += said.default_config;
            known.without_down += said.without_down;
            known.device = said.device;
            known.file = said.file;
        }
        for (problem, count) in later.calls {
            add_one(&mut self.calls, problem, count);
        }
    }
}
