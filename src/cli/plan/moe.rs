//! Fused MoE in `gemmtune plan`.

use camino::Utf8Path;
use serde_json::json;

use super::place::Place;
use super::{PlanArgs, SHOWN};
use crate::cli::files;
use crate::cli::printer::Printer;
use crate::plan::document::Verdict;
use crate::plan::model::Prediction;
use crate::plan::moe::{Ladder, MoeInput, PlannedMoe, make};
use crate::problem::op::fused_moe_triton::OP;
use crate::run::error::Error;
use crate::table::moe::counted::{CountedProblem, with_problems};
use crate::table::shapes;

/// The rows worth tuning, and remarks. Captured sizes and the prefill chunk are those of the GEMMs.
pub(super) fn plan(
    args: &PlanArgs,
    seen: &[CountedProblem],
    model: Option<&Prediction>,
    place: &Place,
    (capture, chunk): (&[u32], Option<u32>),
) -> (Vec<PlannedMoe>, Vec<String>) {
    // With aiter the experts run in its own operation, unless records show that SGLang's ran.
    let with_aiter = place.gfx.starts_with("gfx") && seen.is_empty();
    let (rows, notes) = make(MoeInput {
        seen,
        model: model.filter(|_| !with_aiter),
        capture,
        chunk,
        dp_attention: args.dp_attention,
        fill: false,
        op: OP,
        ladder: Ladder::Nearest,
        device: &place.device,
    });
    (rows, notes)
}

/// Writes the rows as a shapes file.
pub(super) fn write(
    output: &Utf8Path,
    rows: &[PlannedMoe],
    printer: &Printer,
) -> Result<(), Error> {
    let mut problems: Vec<CountedProblem> = rows.iter().map(PlannedMoe::counted).collect();
    problems.sort_by(|a, b| (&a.problem, a.m).cmp(&(&b.problem, b.m)));
    let text = with_problems(&shapes::write([]), OP, &problems);
    files::write(output, text.as_bytes(), printer)
}

/// The document and the text if there is nothing but fused MoE.
pub(super) fn show_alone(
    rows: &[PlannedMoe],
    notes: &[String],
    printer: &Printer,
) -> Result<(), Error> {
    let reason = format!("{} rows of fused MoE are worth tuning", rows.len());
    if printer.is_json() {
        return printer.json(&json!({
            "verdict": Verdict::Tune,
            "reason": reason,
            "tune": [],
            "fused_moe": rows,
            "notes": notes,
        }));
    }
    show(rows, printer);
    for note in notes {
        printer.say(note);
    }
    printer.say(reason);
    Ok(())
}

pub(super) fn show(rows: &[PlannedMoe], printer: &Printer) {
    if rows.is_empty() {
        return;
    }
    printer.say("fused MoE, each row for the up and the down projection:");
    for row in rows.iter().take(SHOWN) {
        printer.say(format!("  {} M={}", row.problem, row.m));
    }
    if rows.len() > SHOWN {
        printer.say(format!("  and {} more rows", rows.len() - SHOWN));
    }
}
