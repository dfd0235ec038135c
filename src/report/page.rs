//! The page: verdict first, then the sections. One file, no script, nothing fetched.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::model::{Report, plain_name};
use super::number::ratio;
use super::section::{self, Section};
use crate::compare::Verdict;

const STYLE: &str = include_str!("style.css");

/// Most reasons against a comparison that are shown beside the verdict; its section lists all of them.
const SHOWN_REASONS: usize = 5;

/// The text of `report.html`.
pub(super) fn html(report: &Report) -> String {
    let sections = section::all(report);
    let (word, sign) = headline(report);
    let title = format!("{} – gemmtune", report.name);
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                // Even a value that escaped the escaping could neither fetch nor run anything.
                meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                a.skip href="#content" { "Skip to the report" }
                (patterns())
                header {
                    p.kicker { "gemmtune report · " (report.name) }
                    h1 class={ "verdict " (word) } {
                        span.sign aria-hidden="true" { (sign) }
                        span { (report.sentence()) "." }
                    }
                    (facts(report))
                    @let failed = report.failed_checks();
                    @if !failed.is_empty() {
                        p.against { strong { "Checks that fail: " } (failed.join(", ")) "." }
                    }
                    (next_steps(report))
                    @if let Some(comparison) = &report.comparison {
                        // The sentence of an inconclusive verdict includes it already.
                        @if comparison.verdict != Verdict::Inconclusive {
                            p.because { (first_upper(&comparison.because)) "." }
                        }
                        @if !comparison.unfair.is_empty() {
                            ul.because { @for reason in comparison.unfair.iter().take(SHOWN_REASONS) { li { (reason) } } }
                        }
                        @let against = report.against();
                        @if !against.is_empty() {
                            p.against {
                                strong { "Against it: " }
                                @for (index, metric) in against.iter().enumerate() {
                                    @if index > 0 { ", " }
                                    (plain_name(metric)) " reads " (metric.reading) " (ratio " (ratio(metric.ratio.median)) ")"
                                }
                                "."
                            }
                        }
                    }
                }
                (contents(&sections))
                main id="content" tabindex="-1" {
                    @for section in &sections {
                        section id=(section.id) aria-labelledby={ (section.id) "-title" } {
                            h2 id={ (section.id) "-title" } { (section.title) }
                            (section.body)
                        }
                    }
                }
                footer {
                    p { "Made " (report.made) " by gemmtune " (report.gemmtune) ". The same as data: report.json." }
                }
            }
        }
    }
    .into_string()
}

/// A CSS class and a sign for the verdict; the sentence has the word.
fn headline(report: &Report) -> (&'static str, &'static str) {
    match report
        .comparison
        .as_ref()
        .map(|comparison| comparison.verdict)
    {
        Some(Verdict::Better) => ("better", "▲"),
        Some(Verdict::Worse) => ("worse", "▼"),
        Some(Verdict::Same) => ("same", "="),
        Some(Verdict::Inconclusive) => ("inconclusive", "?"),
        None => ("none", "–"),
    }
}

/// One line on what was run where: machine, model, what was changed, and the date.
fn facts(report: &Report) -> Markup {
    let day = report.made.split('T').next().unwrap_or_default();
    html! {
        dl.facts {
            @for fact in &report.facts {
                div { dt { (fact.name) } dd { (fact.value) } }
            }
            @if !day.is_empty() { div { dt { "date" } dd { (day) } } }
        }
    }
}

/// How to keep what was deployed and how to undo it; keeping a deployment that did not help is not offered.
fn next_steps(report: &Report) -> Markup {
    let helped = report
        .comparison
        .as_ref()
        .is_none_or(|comparison| comparison.verdict != Verdict::Worse);
    let keep = report.keep.as_ref().filter(|_| helped);
    let steps = [
        ("Keep it: serve with", keep),
        ("Undo it", report.undo.as_ref()),
    ];
    html! {
        @if steps.iter().any(|(_, command)| command.is_some()) {
            div.steps {
                @for (what, command) in steps {
                    @if let Some(command) = command {
                        p { (what) }
                        pre tabindex="0" { code { (command) } }
                    }
                }
            }
        }
    }
}

fn first_upper(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().collect::<String>() + letters.as_str()
    })
}

fn contents(sections: &[Section]) -> Markup {
    html! {
        nav aria-label="Contents" {
            ul { @for section in sections { li { a href={ "#" (section.id) } { (section.title) } } } }
        }
    }
}

/// Hatches used by charts; the style sheet gives them the colour of the series.
fn patterns() -> Markup {
    let hatch = |id: &str, class: &str, turn: &str| {
        html! {
            pattern id=(id) width="5" height="5" patternUnits="userSpaceOnUse" patternTransform=(turn) {
                rect width="5" height="5" class={ (class) " ground" } {}
                line x1="0" y1="0" x2="0" y2="5" class={ (class) " stroke" } {}
            }
        }
    };
    html! {
        svg.patterns aria-hidden="true" focusable="false" width="0" height="0" {
            defs {
                (hatch("hatch-before", "before", "rotate(45)"))
                (hatch("hatch-prefill", "prefill", "rotate(-45)"))
                (hatch("hatch-band", "band", "rotate(45)"))
            }
        }
    }
}
