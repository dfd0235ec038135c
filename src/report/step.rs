//! Where the time of a served step goes, for each load, and the most that tuning can gain.

use std::fmt::Write as _;

use maud::{Markup, html};

use super::chart;
use super::model::Report;
use super::number::{percent, significant};
use super::section::{Number, Text, Wide, figure, remarks, table};
use crate::profile::{Class, LoadProfile, PhaseProfile, Profile};

/// The section of the page; absent where nothing was profiled.
pub(super) fn section(report: &Report) -> Option<Markup> {
    if report.profile.is_empty() {
        return None;
    }
    Some(html! {
        p {
            "From the profiler of the untuned server, in steps after its timed loads. At most: the step if the GEMMs that are \
             tuned took no time at all, which no kernel does."
        }
        @for load in &report.profile { (one_load(load)) }
    })
}

fn one_load(load: &LoadProfile) -> Markup {
    let name = if load.load.is_empty() {
        format!("Concurrency {}", load.concurrency)
    } else {
        format!("{}, concurrency {}", load.load, load.concurrency)
    };
    html! {
        h3 { (name) }
        p { strong { (load.says) "." } }
        @if let Some(peak) = &load.at_peak { p { (peak.says()) "." } }
        @for (rank, phase) in load.phases() {
            p { (heading(load, rank, phase)) "." }
            (figure(
                chart::step(phase),
                "Filled: GEMMs that are tuned. Idle: nothing ran, the profiler's own delays aside where the step's time without it is known.",
                &table(&format!("Time of {}, {name}", phase.phase.step()), &COLUMNS, &lines(phase)),
            ))
            (remarks("Kernels that no rule knows", &unknown(phase)))
        }
        @if load.ranks.len() > 1 {
            (table(&format!("Ranks, {name}"), &RANK_COLUMNS, &ranks(load)))
        }
    }
}

/// Headings and layout of the cells in [`lines`].
pub(super) const COLUMNS: [(&str, super::section::Holds); 5] = [
    ("operation", Text),
    ("share", Number),
    ("µs", Number),
    ("kernels", Number),
    ("by", Wide),
];

/// The heading: which steps these are.
pub(super) fn heading(load: &LoadProfile, rank: &Profile, phase: &PhaseProfile) -> String {
    let mut text = first_upper(&phase.describe());
    if let Some(us) = phase.unprofiled_us {
        let _ = write!(
            text,
            "; {} µs a token in the timed baseline, and shares are of {} µs",
            significant(Some(us), 4),
            significant(Some(phase.step_us), 4)
        );
    }
    if load.ranks.len() > 1 {
        let _ = write!(text, "; rank {}, which computes longest", rank.rank);
    }
    if let Some(device) = &rank.device {
        let _ = write!(text, "; {device}");
    }
    text
}

/// A row for each operation and for idle time.
pub(super) fn lines(phase: &PhaseProfile) -> Vec<Vec<String>> {
    let us = |us: f64| significant(Some(us), 4);
    let mut lines: Vec<Vec<String>> = phase
        .operations
        .iter()
        .map(|part| {
            let families: Vec<&str> = part
                .families
                .iter()
                .map(|family| family.family.as_str())
                .collect();
            vec![
                part.operation.to_string(),
                percent(part.share),
                us(part.us),
                significant(Some(part.kernels), 3),
                families.join(", "),
            ]
        })
        .collect();
    lines.push(vec![
        "idle".to_owned(),
        percent(phase.idle_us / phase.step_us),
        us(phase.idle_us),
        String::new(),
        String::new(),
    ]);
    lines
}

/// The kernels that count as rest because no rule matches them.
pub(super) fn unknown(phase: &PhaseProfile) -> Vec<String> {
    phase
        .unknown
        .iter()
        .map(|kernel| format!("{} µs: {}", significant(Some(kernel.us), 3), kernel.name))
        .collect()
}

const RANK_COLUMNS: [(&str, super::section::Holds); 4] = [
    ("rank", Text),
    ("step, µs", Number),
    ("computes, µs", Number),
    ("communicates, µs", Number),
];

/// A row for each rank, for its first phase.
fn ranks(load: &LoadProfile) -> Vec<Vec<String>> {
    let us = |us: f64| significant(Some(us), 4);
    load.ranks
        .iter()
        .filter_map(|rank| {
            let phase = rank.phases.first()?;
            let waits = phase.share(Class::Communication) * phase.step_us;
            Some(vec![
                rank.rank.clone(),
                us(phase.step_us),
                us(phase.busy_us - waits),
                us(waits),
            ])
        })
        .collect()
}

fn first_upper(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(letters).collect()
    })
}
