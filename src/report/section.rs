//! The sections of the page: each a heading, a sentence, a chart and its table.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use maud::{Markup, html};

use super::chart;
use super::model::{Command, Fact, Report, ShapeRow, Timing, plain_name};
use super::number::{measured, percent, ratio, significant, whole};
use crate::compare::{Better, Comparison};
use crate::workload::duration::spoken;

/// A section of the page with its anchor.
pub(super) struct Section {
    pub(super) id: &'static str,
    /// Heading, also in the table of contents.
    pub(super) title: &'static str,
    /// What is below the heading.
    pub(super) body: Markup,
}

/// Every section that has content, in reading order.
pub(super) fn all(report: &Report) -> Vec<Section> {
    let section = |id, title, body: Option<Markup>| body.map(|body| Section { id, title, body });
    [
        section("pairs", "Both arms, pair by pair", pairs(report)),
        section("metrics", "Throughput and latency", metrics(report)),
        section(
            "loads",
            "Each load on its own",
            super::loads::section(report),
        ),
        section("step", "Where the time goes", super::step::section(report)),
        section("time", "Where the GEMM time goes", time(report)),
        section("shapes", "Each shape before and after", shapes(report)),
        section(
            "fused-moe",
            "Fused MoE before and after",
            super::fused_moe::section(report),
        ),
        section(
            "operations",
            "Operations",
            super::operations::section(report),
        ),
        section("stays", "Left with what served before", stays(report)),
        section("hits", "Served by the table", hits(report)),
        section(
            "roofline",
            "Distance to the device's limits",
            roofline(report),
        ),
        section(
            "checks",
            "Is it still right, and does it really run",
            super::checks::section(report),
        ),
        section("skipped", "What was skipped", skipped(report)),
        section("reproduce", "How to reproduce it", reproduce(report)),
        section("run", "This run", run(report)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What a column holds, which determines its layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    Number,
    Text,
    /// Names and sentences: never squeezed to a few letters a line.
    Wide,
}
pub(super) use Holds::{Number, Text, Wide};

impl Holds {
    const fn class(self) -> Option<&'static str> {
        match self {
            Number => Some("number"),
            Text => None,
            Wide => Some("wide"),
        }
    }
}

/// A column of a table: its heading and what it holds.
pub(super) type Column<'a> = (&'a str, Holds);

/// Whether the columns do not fit side by side on a phone, where each row is then shown as a card.
fn becomes_cards(columns: &[Column<'_>]) -> bool {
    let has_wide = columns.iter().any(|(_, holds)| *holds == Wide);
    columns.len() > 5 || (columns.len() > 2 && has_wide)
}

/// A table in a region of its own that scrolls where it is too wide. The explicit roles repeat the elements' meaning,
/// because browsers drop it where a style sheet shows rows as cards.
pub(super) fn table(caption: &str, columns: &[Column<'_>], rows: &[Vec<String>]) -> Markup {
    let class = becomes_cards(columns).then_some("cards");
    html! {
        div.scroll role="region" aria-label=(caption) tabindex="0" {
            table class=[class] role="table" {
                caption { (caption) }
                thead role="rowgroup" { tr role="row" {
                    @for (heading, holds) in columns {
                        th scope="col" role="columnheader" class=[holds.class()] { (heading) }
                    }
                } }
                tbody role="rowgroup" {
                    @for row in rows {
                        tr role="row" {
                            @for (index, cell) in row.iter().enumerate() {
                                @let column = columns.get(index);
                                @let holds = column.and_then(|column| column.1.class());
                                @let label = column.map(|column| column.0);
                                @if index == 0 {
                                    th scope="row" role="rowheader" class=[holds] data-label=[label] { (cell) }
                                } @else {
                                    td role="cell" class=[holds] data-label=[label] { (cell) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A chart with its caption and its table.
pub(super) fn figure(picture: Option<Markup>, caption: &str, table: &Markup) -> Markup {
    html! {
        div.figure {
            @if let Some(picture) = picture {
                figure { (picture) figcaption { (caption) } }
            }
            (table)
        }
    }
}

/// `05-tuned/bench.jsonl:1`: where a trial was read from, without the folders above the run.
fn within_the_run(source: &str) -> &str {
    let mut slashes = source.rmatch_indices('/').map(|(at, _)| at + 1);
    slashes.nth(1).map_or(source, |at| &source[at..])
}

fn pairs(report: &Report) -> Option<Markup> {
    let comparison = report.comparison.as_ref()?;
    let metric = comparison.metrics.first()?;
    let columns = [
        ("pair", Number),
        ("baseline", Number),
        ("tuned", Number),
        ("ratio", Number),
        ("trials", Wide),
    ];
    let rows: Vec<Vec<String>> = metric
        .each
        .iter()
        .enumerate()
        .map(|(index, pair)| {
            vec![
                (index + 1).to_string(),
                significant(Some(pair.baseline), 5),
                significant(Some(pair.tuned), 5),
                ratio(Some(pair.ratio)),
                format!(
                    "{}, {}",
                    within_the_run(&pair.baseline_source),
                    within_the_run(&pair.tuned_source)
                ),
            ]
        })
        .collect();
    let caption = format!("{} in {} of each pair", plain_name(metric), metric.unit);
    let table = table(&caption, &columns, &rows);
    Some(html! {
        p {
            "Each pair is one server start per arm, run one after the other. Circles are the baseline, triangles \
             the tuned arm; the axis does not begin at zero."
        }
        (figure(chart::pairs(metric), "A line joins the two trials of one pair.", &table))
    })
}

fn metrics(report: &Report) -> Option<Markup> {
    let comparison = report.comparison.as_ref()?;
    let columns = [
        ("metric", Text),
        ("baseline", Number),
        ("tuned", Number),
        ("ratio", Number),
        ("interval", Number),
        ("reading", Text),
    ];
    let rows: Vec<Vec<String>> = comparison
        .metrics
        .iter()
        .filter(|metric| metric.decides || metric.headline)
        .map(|metric| {
            let arrow = match metric.better {
                Better::Higher => "higher is better",
                Better::Lower => "lower is better",
            };
            let decides = if metric.decides { ", decides" } else { "" };
            let [baseline, tuned, ratio, interval] = measured(metric);
            vec![
                format!("{} ({}, {arrow}{decides})", plain_name(metric), metric.unit),
                baseline,
                tuned,
                ratio,
                interval,
                metric.reading.to_string(),
            ]
        })
        .collect();
    let caption = "Median of the trials of each arm, and the median ratio of the pairs";
    Some(html! {
        p {
            "The interval lies between two of the observed ratios and holds the true median with the confidence stated \
             in the verdict. The band of ±" (percent(comparison.band.width)) " is noise ("
            (comparison.band.source) "); only the metric that was chosen before the run decides."
        }
        (figure(chart::intervals(comparison), "Diamond: median ratio; whiskers: its exact interval. To the right of the line at 1 the tuned arm is better.", &table(caption, &columns, &rows)))
        (remarks("Why the arms cannot be compared", &comparison.unfair))
        (remarks("Differences that are the tuning itself", &comparison.expected_differences))
        (remarks("Notes", &comparison.notes))
        @if let Some(control) = &report.control { (control_text(control)) }
    })
}

fn control_text(control: &Comparison) -> Markup {
    html! {
        h3 { "Control: untuned against untuned" }
        p {
            "The same comparison with two untuned arms says " strong { (control.verdict) } ": " (control.because)
            " (median ratio " (ratio(control.ratio.median)) ", " (control.pairs) " pairs)."
        }
    }
}

pub(super) fn remarks(heading: &str, items: &[String]) -> Markup {
    html! {
        @if !items.is_empty() {
            h3 { (heading) }
            ul { @for item in items { li { (item) } } }
        }
    }
}

fn time(report: &Report) -> Option<Markup> {
    let shares = report.time_shares();
    let picture = chart::time_shares(&shares)?;
    let columns = [
        ("N", Number),
        ("K", Number),
        ("decode", Number),
        ("prefill", Number),
        ("together", Number),
    ];
    let rows: Vec<Vec<String>> = shares
        .iter()
        .map(|share| {
            vec![
                share.n.to_string(),
                share.k.to_string(),
                percent(share.decode),
                percent(share.prefill),
                percent(share.decode + share.prefill),
            ]
        })
        .collect();
    let caption = "Share of GEMM time before tuning: calls × time a call";
    Some(figure(
        Some(picture),
        "The longest bar is the weight on which most time is spent; shapes of unknown phase count as decode.",
        &table(caption, &columns, &rows),
    ))
}

/// Weights whose charts are shown at once; the others are folded, so that a model with many shapes still gives a
/// readable page.
const SHOWN_WEIGHTS: usize = 8;

fn shapes(report: &Report) -> Option<Markup> {
    if report.shapes.is_empty() {
        return None;
    }
    let mut groups: BTreeMap<(crate::problem::Op, u32, u32), Vec<&ShapeRow>> = BTreeMap::new();
    for row in &report.shapes {
        groups.entry((row.op, row.n, row.k)).or_default().push(row);
    }
    // Those with the most time first, as in the section before.
    let shares = report.time_shares();
    let place = |n: u32, k: u32| {
        let found = shares.iter().position(|share| (share.n, share.k) == (n, k));
        found.unwrap_or(usize::MAX)
    };
    let mut weights: Vec<Markup> = Vec::new();
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|((_, n, k), _)| place(*n, *k));
    for ((op, n, k), mut rows) in groups {
        rows.sort_by_key(|row| row.m);
        weights.push(weight(&format!("{op}, N {n} × K {k}"), &rows));
    }
    let folded = weights.split_off(weights.len().min(SHOWN_WEIGHTS));
    Some(html! {
        p { "Before: what served the shape until now. After: the kernel chosen for it. Both axes are logarithmic." }
        @for weight in &weights { (weight) }
        @if !folded.is_empty() {
            details {
                summary { (folded.len()) " more weights" }
                @for weight in &folded { (weight) }
            }
        }
    })
}

/// One (N, K): its chart and its rows.
fn weight(title: &str, rows: &[&ShapeRow]) -> Markup {
    let columns = [
        ("M", Number),
        ("before, µs", Number),
        ("after, µs", Number),
        ("ratio", Number),
        ("kernel before", Wide),
        ("kernel after", Wide),
        ("status", Wide),
    ];
    let us = |timing: &Option<Timing>| timing.as_ref().map(|timing| timing.us);
    let kernel = |timing: &Option<Timing>| {
        timing
            .as_ref()
            .map_or_else(|| "–".to_owned(), |timing| timing.kernel.clone())
    };
    let lines: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let (before, after) = (us(&row.before), us(&row.after));
            vec![
                row.m.to_string(),
                significant(before, 4),
                significant(after, 4),
                ratio(before.zip(after).map(|(before, after)| before / after)),
                kernel(&row.before),
                kernel(&row.after),
                row.status.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let caption = format!("Time a call and kernel, {title}");
    html! {
        h3 { (title) }
        div.figure.stacked {
            @if let Some(picture) = chart::shape_times(rows) {
                figure { (picture) figcaption { (gain(rows)) } }
            }
            (table(&caption, &columns, &lines))
        }
    }
}

/// What tuning this weight gains: over the captured calls, and at the M that gains most.
fn gain(rows: &[&ShapeRow]) -> String {
    let times: Vec<(&ShapeRow, f64, f64)> = rows
        .iter()
        .filter_map(|row| {
            let (before, after) = (row.before.as_ref()?.us, row.after.as_ref()?.us);
            (before > 0.0 && after > 0.0).then_some((*row, before, after))
        })
        .collect();
    let mut sentence = "Lower is faster.".to_owned();
    let calls: Option<Vec<f64>> = times.iter().map(|(row, ..)| row.calls).collect();
    if let Some(calls) = calls.filter(|calls| !calls.is_empty()) {
        let weighted = calls.iter().zip(&times);
        let (before, after) = weighted.fold((0.0, 0.0), |(before, after), (calls, time)| {
            (before + calls * time.1, after + calls * time.2)
        });
        let _ = write!(
            sentence,
            " Over the captured calls {} become {}, a ratio of {}.",
            spoken(before / 1e6),
            spoken(after / 1e6),
            ratio(Some(before / after))
        );
    }
    let most = times
        .iter()
        .max_by(|one, other| (one.1 / one.2).total_cmp(&(other.1 / other.2)));
    if let Some((row, before, after)) = most
        && before > after
    {
        let _ = write!(
            sentence,
            " Most is gained at M {}: {}.",
            row.m,
            ratio(Some(before / after))
        );
    }
    sentence
}

fn hits(report: &Report) -> Option<Markup> {
    let picture = chart::hit_rates(&report.hit_rates)?;
    let columns = [("share of", Text), ("before", Number), ("after", Number)];
    let rows: Vec<Vec<String>> = report
        .hit_rates
        .iter()
        .map(|rate| {
            let before = rate.before.map_or_else(|| "–".to_owned(), percent);
            vec![rate.of.clone(), before, percent(rate.after)]
        })
        .collect();
    let caption = "Share that a row of the table serves";
    Some(figure(
        Some(picture),
        "A call that no row serves runs the default kernel of its library.",
        &table(caption, &columns, &rows),
    ))
}

fn roofline(report: &Report) -> Option<Markup> {
    let limits = report.roofline.as_ref()?;
    let picture = chart::roofline(limits, &report.shapes)?;
    let columns = [
        ("shape", Wide),
        ("FLOP per byte", Number),
        ("before, TFLOP/s", Number),
        ("after, TFLOP/s", Number),
        ("of the limit", Number),
    ];
    let rows: Vec<Vec<String>> = report
        .shapes
        .iter()
        .map(|row| {
            let rate = |timing: &Option<Timing>| {
                timing.as_ref().map(|timing| row.flops() / timing.us / 1e6)
            };
            let intensity = row.flops() / row.bytes();
            let limit = (intensity * limits.gbps / 1e3).min(limits.tflops);
            let best = rate(&row.after).or_else(|| rate(&row.before));
            vec![
                format!("M\u{a0}{} N\u{a0}{} K\u{a0}{}", row.m, row.n, row.k)
                    .replace(' ', "\u{a0}"),
                significant(Some(intensity), 3),
                significant(rate(&row.before), 3),
                significant(rate(&row.after), 3),
                best.map_or_else(|| "–".to_owned(), |rate| percent(rate / limit)),
            ]
        })
        .collect();
    let caption = "Rate against arithmetic intensity";
    Some(html! {
        p {
            "Limits: " (significant(Some(limits.tflops), 4)) " TFLOP/s and " (significant(Some(limits.gbps), 4))
            " GB/s (" (limits.source) "). The line is the best a shape of that intensity can reach."
        }
        (figure(Some(picture), "Each mark is a shape; the nearer to the line, the less is left to gain.",
            &table(caption, &columns, &rows)))
    })
}

fn stays(report: &Report) -> Option<Markup> {
    if report.stays.is_empty() {
        return None;
    }
    let columns = [("N", Number), ("K", Number), ("finding", Wide)];
    let rows: Vec<Vec<String>> = report
        .stays
        .iter()
        .map(|group| vec![group.n.to_string(), group.k.to_string(), group.sentence()])
        .collect();
    Some(html! {
        p { "Both were timed through the server's own linear, quantiser included. Only shapes that became faster beyond the noise are switched." }
        (table("Shapes that stay as they are", &columns, &rows))
    })
}

fn skipped(report: &Report) -> Option<Markup> {
    if report.skipped.is_empty() && report.notes.is_empty() {
        return None;
    }
    let rows: Vec<Vec<String>> = report
        .skipped
        .iter()
        .map(|skipped| vec![skipped.what.clone(), skipped.why.clone()])
        .collect();
    Some(html! {
        @if !rows.is_empty() { (table("Not done, and why", &[("what", Text), ("why", Wide)], &rows)) }
        (remarks("To know besides", &report.notes))
    })
}

fn reproduce(report: &Report) -> Option<Markup> {
    if report.commands.is_empty() && report.arms.is_empty() && report.digests.is_empty() {
        return None;
    }
    // These two are shown below the verdict.
    let shown = [&report.keep, &report.undo];
    let is_shown = |command: &&Command| !shown.contains(&&Some(command.command.clone()));
    Some(html! {
        @for command in report.commands.iter().filter(is_shown) {
            p { (command.what) }
            pre tabindex="0" { code { (command.command) } }
        }
        @for arm in &report.arms {
            h3 { "The " (arm.name) " arm" }
            p { (arm.description) " (" (arm.trials) @if arm.trials == 1 { " trial)" } @else { " trials)" } }
            @if let Some(command) = &arm.command { pre tabindex="0" { code { (command) } } }
            @if !arm.environment.is_empty() {
                (facts(&format!("Environment of the {} arm", arm.name), &arm.environment))
            }
        }
        @if !report.digests.is_empty() { (facts("Digests", &report.digests)) }
    })
}

fn facts(caption: &str, facts: &[Fact]) -> Markup {
    let rows: Vec<Vec<String>> = facts
        .iter()
        .map(|fact| vec![fact.name.clone(), fact.value.clone()])
        .collect();
    table(caption, &[("what", Text), ("value", Wide)], &rows)
}

fn run(report: &Report) -> Option<Markup> {
    if report.machine.is_empty() && report.stages.is_empty() && report.plan.is_none() {
        return None;
    }
    let mut rows: Vec<Vec<String>> = report
        .stages
        .iter()
        .map(|stage| {
            vec![
                stage.stage.clone(),
                spoken(stage.seconds),
                stage.attempts.to_string(),
                stage.outcome.clone(),
            ]
        })
        .collect();
    if let Some(seconds) = report.seconds() {
        let all = ["all".to_owned(), spoken(seconds)];
        rows.push([all, [String::new(), String::new()]].concat());
    }
    let columns = [
        ("stage", Text),
        ("time", Number),
        ("attempts", Number),
        ("outcome", Wide),
    ];
    Some(html! {
        @if let Some(plan) = &report.plan {
            p {
                (whole(plan.captured)) " shapes were captured: " (whole(plan.to_tune)) " rows to tune, "
                (whole(plan.folded)) " folded into another row, " (whole(plan.served)) " served before."
                @if let Some(deployed) = plan.deployed { " " (whole(deployed)) " rows were deployed." }
                @if let Some(candidates) = plan.candidates { " " (whole(candidates)) " candidates were timed." }
                @if let Some(used) = plan.used_s {
                    " Device time used: " (spoken(used))
                    @if let Some(estimated) = plan.estimated_s { ", estimated " (spoken(estimated)) } "."
                }
            }
        }
        @if !rows.is_empty() { (table("Stages", &columns, &rows)) }
        @if !report.machine.is_empty() { (facts("Machine and versions", &report.machine)) }
    })
}

#[cfg(test)]
mod tests {
    use super::within_the_run;

    #[test]
    fn a_trial_is_named_by_its_own_folder() {
        let named = within_the_run("/a/runs/1-x/trials/05-tuned/bench.jsonl:1-2");
        assert_eq!(named, "05-tuned/bench.jsonl:1-2");
        assert_eq!(within_the_run("base.jsonl:1"), "base.jsonl:1");
        assert_eq!(within_the_run("a/base.jsonl:1"), "a/base.jsonl:1");
    }
}
