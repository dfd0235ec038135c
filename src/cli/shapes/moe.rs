//! What `gemmtune shapes` reports about SGLang's fused MoE.

use serde::Serialize;

use crate::log::LogSummary;
use crate::log::summary::MoeTables;
use crate::problem::fused_moe::MoeProblem;
use crate::problem::op::fused_moe_triton::OP;
use crate::table::moe::counted::CountedProblem;

/// A problem that ran, with its calls by M.
#[derive(Serialize)]
pub(super) struct ListedMoe {
    op: &'static str,
    #[serde(rename = "M")]
    m: Option<u32>,
    #[serde(flatten)]
    problem: MoeProblem,
    records: u64,
}

/// What servers logged about the tables of a problem.
#[derive(Serialize)]
pub(super) struct LookedFor<'log_summary> {
    #[serde(flatten)]
    problem: &'log_summary MoeProblem,
    #[serde(flatten)]
    tables: &'log_summary MoeTables,
}

pub(super) fn listed(problems: &[CountedProblem], most: usize) -> Vec<ListedMoe> {
    let listed = problems.iter().take(most);
    listed
        .map(|counted| ListedMoe {
            op: OP,
            m: counted.m,
            problem: counted.problem.clone(),
            records: counted.records,
        })
        .collect()
}

pub(super) fn looked_for(log_summary: &LogSummary) -> Vec<LookedFor<'_>> {
    let tables = log_summary.moe.tables.iter();
    tables
        .map(|(problem, tables)| LookedFor { problem, tables })
        .collect()
}

/// The text about them: how many problems there are, and what serves each (E, N) that a server named.
pub(super) fn told(log_summary: &LogSummary, problems: &[CountedProblem]) -> Vec<String> {
    let mut lines = Vec::new();
    if !problems.is_empty() {
        let one = if problems.len() == 1 {
            "problem"
        } else {
            "problems"
        };
        lines.push(format!("fused MoE: {} {one}", problems.len()));
    }
    for (problem, tables) in &log_summary.moe.tables {
        let serves = match (
            tables.tuned_config,
            tables.other_triton,
            tables.default_config,
        ) {
            (_, 0, 0) => "served from a table",
            (_, _, 0) => "served from a table of another Triton version",
            (0, 0, _) => "no table, the default configuration",
            _ => "served from a table in some processes, and by the default in others",
        };
        let down = if tables.without_down > 0 && tables.default_config == 0 {
            ", for both projections"
        } else {
            ""
        };
        lines.push(format!(
            "  E={} N={}{} on {}: {serves}{down}",
            problem.experts,
            problem.n,
            if problem.dtype.is_empty() {
                String::new()
            } else {
                format!(" {}", problem.dtype)
            },
            tables.device
        ));
    }
    if log_summary.has_moe_without_m() {
        lines.push(
            "the log names E and N of fused MoE and no M: `gemmtune plan --model` has K, topk and the M to tune".to_owned(),
        );
    }
    lines
}
