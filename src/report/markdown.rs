//! The summary for a pull request or a chat: the content of the page without its charts.

use std::fmt::Write as _;

use super::model::{Report, plain_name};
use super::number::{measured, percent, whole};
use super::{fused_moe, loads, operations, step};
use crate::workload::duration::spoken;

/// The text of `report.md`.
pub(super) fn text(report: &Report) -> String {
    let mut text = format!(
        "# {}\n\n**{}.**\n",
        escaped(&report.name),
        escaped(&report.sentence())
    );
    let facts: Vec<String> = report
        .facts
        .iter()
        .map(|fact| format!("{}: {}", escaped(&fact.name), escaped(&fact.value)))
        .collect();
    if !facts.is_empty() {
        let _ = writeln!(text, "\n{}", facts.join(" · "));
    }
    if let Some(comparison) = &report.comparison {
        let rows: Vec<[String; 6]> = comparison
            .metrics
            .iter()
            .filter(|metric| metric.decides || metric.headline)
            .map(|metric| {
                let mark = if metric.decides { " (decides)" } else { "" };
                let [baseline, tuned, ratio, interval] = measured(metric);
                [
                    format!("{}, {}{mark}", plain_name(metric), metric.unit),
                    baseline,
                    tuned,
                    ratio,
                    interval,
                    metric.pairs.to_string(),
                ]
            })
            .collect();
        let head = [
            "metric",
            "baseline",
            "tuned",
            "ratio (> 1 is better)",
            "interval",
            "pairs",
        ];
        table(&mut text, "Measurements", head, &rows);
        let head = [
            "load",
            "decided by",
            "baseline",
            "tuned",
            "ratio",
            "interval",
            "verdict",
            "predicted",
            "off by",
        ];
        let rows: Vec<[String; 9]> = loads::lines(comparison)
            .into_iter()
            .filter_map(|line| line.try_into().ok())
            .collect();
        table(&mut text, "Each load on its own", head, &rows);
        list(&mut text, "Not comparable", &comparison.unfair);
        list(&mut text, "Notes on the comparison", &comparison.notes);
    }
    for load in &report.profile {
        let _ = writeln!(text, "\n{}.", escaped(&load.says));
        if let Some(peak) = &load.at_peak {
            let _ = writeln!(text, "{}.", escaped(&peak.says()));
        }
        for (_, phase) in load.phases() {
            let heading = format!(
                "Where the time goes: {}, concurrency {}",
                phase.phase.step(),
                load.concurrency
            );
            let rows: Vec<[String; 5]> = step::lines(phase)
                .into_iter()
                .filter_map(|line| line.try_into().ok())
                .collect();
            let head = step::COLUMNS.map(|(heading, _)| heading);
            table(&mut text, &heading, head, &rows);
            list(
                &mut text,
                "Kernels that no rule knows",
                &step::unknown(phase),
            );
        }
    }
    let rows: Vec<[String; 3]> = report
        .hit_rates
        .iter()
        .map(|rate| {
            let before = rate.before.map_or_else(|| "–".to_owned(), percent);
            [rate.of.clone(), before, percent(rate.after)]
        })
        .collect();
    table(
        &mut text,
        "Served by the table",
        ["share of", "before", "after"],
        &rows,
    );
    for (heading, rows) in fused_moe::lines(report) {
        table(&mut text, &heading, fused_moe::HEAD, &rows);
    }
    let operations = operations::lines(report);
    table(&mut text, "Operations", operations::HEAD, &operations);
    let checks = checks(report);
    list(&mut text, "Checks", &checks);
    if let Some(plan) = &report.plan {
        let deployed = plan
            .deployed
            .map_or_else(String::new, |rows| format!(", {} deployed", whole(rows)));
        let _ = writeln!(
            text,
            "\n## Plan\n\n{} shapes captured, {} rows to tune, {} folded, {} served before{deployed}.",
            whole(plan.captured),
            whole(plan.to_tune),
            whole(plan.folded),
            whole(plan.served),
        );
        if let (Some(candidates), Some(used)) = (plan.candidates, plan.used_s) {
            let _ = writeln!(
                text,
                "{} candidates were timed; that held the devices for {}.",
                whole(candidates),
                spoken(used)
            );
        }
    }
    let stays: Vec<[String; 3]> = report
        .stays
        .iter()
        .map(|group| [group.n.to_string(), group.k.to_string(), group.sentence()])
        .collect();
    let head = ["N", "K", "finding"];
    table(&mut text, "Left with what served before", head, &stays);
    let skipped: Vec<String> = report
        .skipped
        .iter()
        .map(|skipped| format!("{}: {}", skipped.what, skipped.why))
        .collect();
    list(&mut text, "Skipped", &skipped);
    list(&mut text, "Notes", &report.notes);
    if !report.commands.is_empty() {
        text.push_str("\n## Commands\n\n");
        for command in &report.commands {
            // A fence longer than any run of backticks inside it.
            let longest = command
                .command
                .split(|mark| mark != '`')
                .map(str::len)
                .max();
            let fence = "`".repeat(longest.unwrap_or(0).max(2) + 1);
            let _ = write!(
                text,
                "{}:\n\n{fence}sh\n{}\n{fence}\n\n",
                escaped(&command.what),
                command.command
            );
        }
    }
    let mut rows: Vec<[String; 3]> = report
        .stages
        .iter()
        .map(|stage| {
            [
                stage.stage.clone(),
                match stage.attempts {
                    0 | 1 => spoken(stage.seconds),
                    attempts => format!("{} in {attempts} attempts", spoken(stage.seconds)),
                },
                stage.outcome.clone(),
            ]
        })
        .collect();
    if let Some(seconds) = report.seconds() {
        rows.push(["all".to_owned(), spoken(seconds), String::new()]);
    }
    table(&mut text, "Stages", ["stage", "time", "outcome"], &rows);
    let rows: Vec<[String; 2]> = report
        .machine
        .iter()
        .chain(&report.digests)
        .map(|fact| [fact.name.clone(), fact.value.clone()])
        .collect();
    table(
        &mut text,
        "Machine, versions, digests",
        ["what", "value"],
        &rows,
    );
    let _ = write!(
        text,
        "\nMade {} by gemmtune {}.\n",
        escaped(&report.made),
        escaped(&report.gemmtune)
    );
    text
}

fn checks(report: &Report) -> Vec<String> {
    let mut checks = Vec::new();
    if let Some(parity) = &report.parity {
        let word = if parity.holds() { "holds" } else { "fails" };
        checks.push(format!("greedy parity {word}: {}", parity.because));
    }
    if !report.layout.is_empty() {
        let passed = report.layout.iter().filter(|probe| probe.passed()).count();
        checks.push(format!(
            "{passed} of {} layout probes pass",
            report.layout.len()
        ));
    }
    if let Some(engagement) = &report.engagement {
        let word = if engagement.passed {
            "seen"
        } else {
            "not seen"
        };
        checks.push(format!("deployed kernels {word}: {}", engagement.because));
    }
    checks
}

fn table<const COLUMNS: usize>(
    text: &mut String,
    heading: &str,
    head: [&str; COLUMNS],
    rows: &[[String; COLUMNS]],
) {
    if rows.is_empty() {
        return;
    }
    let _ = write!(text, "\n## {heading}\n\n| {} |\n", head.join(" | "));
    let _ = writeln!(text, "|{}", "---|".repeat(COLUMNS));
    for row in rows {
        let cells: Vec<String> = row.iter().map(|cell| escaped(cell)).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
}

fn list(text: &mut String, heading: &str, items: &[String]) {
    if items.is_empty() {
        return;
    }
    let _ = write!(text, "\n## {heading}\n\n");
    for item in items {
        let _ = writeln!(text, "- {}", escaped(item));
    }
}

/// Text in which Markdown interprets nothing and that does not break its table cell.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\r' => escaped.push(' '),
            '|' | '*' | '_' | '`' | '<' | '[' | '\\' => {
                escaped.push('\\');
                escaped.push(character);
            }
            character => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::model::{Command, StageTime, Stays};
    use super::*;

    #[test]
    fn a_run_that_stopped_early_is_one_sentence_and_its_facts() {
        let report = Report {
            name: "demo".to_owned(),
            ended_early: Some("Nothing to gain: every shape has a good row".to_owned()),
            made: "2026-01-01T00:00:00Z".to_owned(),
            gemmtune: "0.1.0".to_owned(),
            ..Report::default()
        };
        assert_eq!(
            text(&report),
            "# demo\n\n**Nothing to gain: every shape has a good row.**\n\n\
             Made 2026-01-01T00:00:00Z by gemmtune 0.1.0.\n"
        );
    }

    #[test]
    fn what_stays_is_said_with_its_m_and_by_how_much_the_tuned_kernel_lost() {
        let group = |min_m, max_m| Stays {
            n: 512,
            k: 7168,
            min_m,
            max_m,
            on: "Triton".to_owned(),
            why: "CK 1.18x slower".to_owned(),
        };
        let report = Report {
            gemmtune: "0.1.0".to_owned(),
            stays: vec![group(Some(4096), None), group(None, Some(64))],
            ..Report::default()
        };
        insta::assert_snapshot!("what_stays", text(&report));
    }

    #[test]
    fn stages_are_added_up_where_there_are_several() {
        let stage = |name: &str, seconds, attempts| StageTime {
            stage: name.to_owned(),
            seconds,
            attempts,
            outcome: "done".to_owned(),
        };
        let mut report = Report {
            gemmtune: "0.1.0".to_owned(),
            stages: vec![stage("verify", 71.0, 1)],
            ..Report::default()
        };
        assert!(!text(&report).contains("| all |"));
        report.stages.push(stage("compare", 710.0, 2));
        insta::assert_snapshot!("stages", text(&report));
    }

    #[test]
    fn text_from_a_run_cannot_break_out_of_its_place() {
        let report = Report {
            name: "a|b\n# c".to_owned(),
            gemmtune: "0.1.0".to_owned(),
            commands: vec![Command {
                what: "x".to_owned(),
                command: "echo ```".to_owned(),
            }],
            ..Report::default()
        };
        insta::assert_snapshot!("text_that_would_break_out", text(&report));
    }
}
