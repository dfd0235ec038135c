//! The checks of the verify stage: are the results still right, and do the deployed kernels really run?

use maud::{Markup, html};

use super::model::{LayoutCheck, Report};
use super::number::{significant, whole};
use super::section::{Number, Text, Wide, remarks, table};
use crate::bench::parity::Agreement;

/// The section; absent where nothing was checked.
pub(super) fn section(report: &Report) -> Option<Markup> {
    if report.parity.is_none() && report.layout.is_empty() && report.engagement.is_none() {
        return None;
    }
    let columns = [
        ("probe", Wide),
        ("M", Number),
        ("relative error", Number),
        ("allowed", Number),
        ("result", Text),
    ];
    let rows: Vec<Vec<String>> = report
        .layout
        .iter()
        .map(|probe| {
            vec![
                probe.what.clone(),
                probe.m.to_string(),
                probe
                    .error_ratio
                    .map_or_else(|| "not finite".to_owned(), error),
                error(probe.limit),
                if probe.passed() {
                    "✓ pass"
                } else {
                    "✗ fail"
                }
                .to_owned(),
            ]
        })
        .collect();
    Some(html! {
        @if let Some(parity) = &report.parity { (parity_text(parity)) }
        @if let Some(engagement) = &report.engagement {
            h3 { (badge(engagement.passed)) " Deployed kernels in the running server" }
            p { (engagement.because) }
            @if let (Some(hits), Some(misses)) = (engagement.hits, engagement.misses) {
                p {
                    "Of " (whole(hits + misses)) " shapes that it looked up, " (whole(hits))
                    " took the row deployed for them."
                }
            }
            (remarks("Shapes that another row or none served", &engagement.missing))
        }
        @if !rows.is_empty() {
            h3 { (badge(report.layout.iter().all(LayoutCheck::passed))) " Layout probes" }
            p {
                "The relative error is ‖y − ref‖ / ‖ref‖ over all outputs of one GEMM. Rounding the outputs to bf16 alone \
                 costs about 0.2 %; a wrong layout or a wrong scale costs tens of percent."
            }
            (table("Deployed kernels against a reference in higher precision", &columns, &rows))
        }
    })
}

/// A relative error as a percentage with two digits: `0.16 %`.
fn error(error: f64) -> String {
    format!("{} %", significant(Some(error * 100.0), 2))
}

fn badge(passed: bool) -> Markup {
    html! {
        @if passed { span.badge.pass { "✓ pass" } } @else { span.badge.fail { "✗ fail" } }
    }
}

fn parity_text(parity: &Agreement) -> Markup {
    html! {
        h3 { (badge(parity.holds())) " Greedy parity with the baseline server" }
        p { (parity.because) "." }
        @if let Some(parting) = &parity.first_divergence {
            p {
                "The first difference is at token " (parting.token + 1) " of prompt " (parting.prompt + 1)
                " with " (parting.concurrency) " requests in flight: baseline " q { (parting.baseline) }
                ", tuned " q { (parting.tuned) } "."
            }
        }
    }
}
