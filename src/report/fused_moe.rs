//! The fused MoE: each (E, N) with its sizes before and after.

use std::fmt::Write as _;

use maud::{Markup, html};

use super::model::{FusedMoe, FusedMoeRow, Phase, Report};
use super::number::{ratio, significant, whole};
use super::section::{Number, Text, Wide, table};

pub(super) const HEAD: [&str; 8] = [
    "M",
    "phase",
    "calls",
    "before, us",
    "after, us",
    "before / after",
    "rows",
    "finding",
];

/// The section of the page; absent where no fused MoE ran or none was to be tuned.
pub(super) fn section(report: &Report) -> Option<Markup> {
    if report.fused_moe.is_empty() {
        return None;
    }
    let holds = [Number, Text, Number, Number, Number, Number, Wide, Text];
    let columns: Vec<_> = HEAD.into_iter().zip(holds).collect();
    Some(html! {
        p {
            "M counts the tokens of a forward. The row nearest to M serves it, one for the up and one for the down \
             projection; rows are block sizes M x N x K."
        }
        @for experts in &report.fused_moe {
            h3 { (heading(experts)) }
            p { (about(experts)) }
            @let rows: Vec<Vec<String>> = experts.rows.iter().map(|row| line(row).into()).collect();
            @if !rows.is_empty() { (table(&heading(experts), &columns, &rows)) }
        }
    })
}

/// A heading and its rows for each (E, N).
pub(super) fn lines(report: &Report) -> Vec<(String, Vec<[String; 8]>)> {
    let one = |experts: &FusedMoe| {
        let lines = experts.rows.iter().map(line).collect();
        (heading(experts), lines)
    };
    report.fused_moe.iter().map(one).collect()
}

fn heading(experts: &FusedMoe) -> String {
    let mut text = format!("Fused MoE E={} N={}", experts.experts, experts.n);
    for (name, size) in [("K", experts.k), ("topk", experts.topk)] {
        if let Some(size) = size {
            let _ = write!(text, " {name}={size}");
        }
    }
    text
}

fn about(experts: &FusedMoe) -> String {
    let mut text = format!(
        "{} calls were captured",
        whole(experts.calls.max(0.0) as usize)
    );
    if let Some(calls) = experts.per_forward {
        let _ = write!(text, ", {calls} in each forward pass");
    }
    let _ = write!(text, "; before, it was served by {}.", experts.today);
    match experts.timed.as_deref() {
        Some("fused_experts" | "fused_moe") => text.push_str(
            " Times are of the whole operation: quantisation, sorting, both GEMMs, activation and sum.",
        ),
        Some(timed) if !timed.is_empty() => {
            let _ = write!(text, " What was timed are its {timed}, without what surrounds them.");
        }
        _ => {}
    }
    text
}

fn line(row: &FusedMoeRow) -> [String; 8] {
    let us = |timing: &Option<super::model::Timing>| {
        significant(timing.as_ref().map(|timing| timing.us), 4)
    };
    let phase = match row.phase {
        Some(Phase::Decode) => "decode",
        Some(Phase::Prefill) => "prefill",
        None => "",
    };
    let rows = match (&row.before, &row.after) {
        (Some(before), Some(after)) if before.kernel != after.kernel => {
            format!("{} (before: {})", after.kernel, before.kernel)
        }
        (_, Some(after)) => after.kernel.clone(),
        _ => String::new(),
    };
    [
        row.m.to_string(),
        phase.to_owned(),
        row.calls
            .map_or_else(|| "–".to_owned(), |calls| whole(calls.max(0.0) as usize)),
        us(&row.before),
        us(&row.after),
        ratio(row.ratio()),
        rows,
        row.status.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::model::Timing;
    use super::*;

    #[test]
    fn each_size_is_a_line_with_what_served_before_and_after() {
        let timing = |us, kernel: &str| {
            Some(Timing {
                us,
                kernel: kernel.to_owned(),
            })
        };
        let report = Report {
            fused_moe: vec![FusedMoe {
                experts: 128,
                n: 768,
                k: Some(2048),
                topk: Some(8),
                calls: 4800.0,
                per_forward: Some(48),
                today: "the default configuration".to_owned(),
                timed: Some("fused_experts".to_owned()),
                rows: vec![
                    FusedMoeRow {
                        m: 1,
                        phase: Some(Phase::Decode),
                        calls: Some(4800.0),
                        before: timing(60.0, "64x128x128, group 32"),
                        after: timing(40.0, "16x64x128, group 1"),
                        status: "tuned".to_owned(),
                    },
                    FusedMoeRow {
                        m: 512,
                        phase: None,
                        calls: None,
                        before: None,
                        after: None,
                        status: "not raced".to_owned(),
                    },
                ],
            }],
            ..Report::default()
        };
        let page = section(&report).unwrap().into_string();
        for text in [
            "Fused MoE E=128 N=768 K=2048 topk=8",
            "48 in each forward pass; before, it was served by the default configuration.",
            "the whole operation",
            "1.500",
            "16x64x128, group 1 (before: 64x128x128, group 32)",
        ] {
            assert!(page.contains(text), "{text} in {page}");
        }
        assert_eq!(lines(&report)[0].1[1][7], "not raced");
        assert!(section(&Report::default()).is_none());
    }
}
