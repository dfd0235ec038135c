//! `tune`: races the planned shapes on all devices.

use std::time::{Duration, Instant};

use camino::Utf8Path;

use super::{Done, fused_moe};
use crate::engine::ports::TuneOrder;
use crate::engine::{Engine, read_document, write_document};
use crate::plan::Plan;
use crate::problem::{Op, Shape};
use crate::run::documents::{Inspection, Tuned};
use crate::run::error::{Error, ErrorKind};
use crate::run::event::{Notice, Progress};
use crate::run::stage::Stage;
use crate::tune::TuneEvent;

pub(super) fn tune(engine: &mut Engine<'_>) -> Result<Done, Error> {
    let inspection = super::inspection(&engine.run)?;
    if let Some(table) = engine.config.backend.table.clone() {
        return take(engine, &inspection, &table);
    }
    let plan: Plan = read_document(&engine.run)?;
    let shapes: Vec<Shape> = plan.tune.iter().map(|row| row.shape.shape()).collect();
    let tasks = fused_moe::tasks(engine, &plan);
    let budget = engine.config.budget.tune.duration();
    let started = Instant::now();
    let share = fused_moe::dense_share(engine, budget, plan.gpu_seconds, &tasks);
    let dense = dense(engine, &inspection, &plan, share)?;
    let left = budget.saturating_sub(started.elapsed());
    let experts = fused_moe::tune(engine, &inspection, &tasks, left)?;
    let tuned = match (dense, experts) {
        (Some(dense), experts) => Tuned {
            fused_moe: experts,
            ..dense
        },
        (None, Some(experts)) => Tuned::of_fused_moe(experts),
        (None, None) => return Err(Error::new(ErrorKind::Bug, "nothing is planned to be tuned")),
    };
    write_document(&engine.run, &tuned)?;
    let raced = tuned.fused_moe.as_ref().map_or(0, |raced| raced.rows.len());
    if tuned.rows.is_empty() && raced == 0 {
        let failed = tuned
            .fused_moe
            .as_ref()
            .map_or(0, |raced| raced.failed.len());
        return Err(Error::new(
            ErrorKind::TunerFailed,
            format!(
                "no shape could be tuned; {} failed",
                tuned.failed.len() + failed
            ),
        )
        .hint(format!("read what the workers said: {}", engine.run.tune())));
    }
    Ok(done(
        engine,
        &tuned,
        &plan,
        (shapes.len(), tasks.len()),
        started.elapsed(),
    ))
}

/// Races the dense GEMMs of each operation in turn; `None` if none are planned.
fn dense(
    engine: &mut Engine<'_>,
    inspection: &Inspection,
    plan: &Plan,
    budget: Duration,
) -> Result<Option<Tuned>, Error> {
    let Some(kernels) = engine.backend.kernels.clone() else {
        return Ok(None);
    };
    let started = Instant::now();
    let rows = |op: Op| plan.tune.iter().filter(move |row| row.shape.op == op);
    let seconds = |op: Op| -> f64 { rows(op).map(|row| row.tuning_s).sum() };
    let mut left: f64 = inspection.ops().map(seconds).sum();
    let mut whole: Option<Tuned> = None;
    for (index, one) in inspection.operations().iter().enumerate() {
        let shapes: Vec<Shape> = rows(one.op).map(|row| row.shape.shape()).collect();
        let (mine, all) = (seconds(one.op), left);
        left -= mine;
        if shapes.is_empty() {
            continue;
        }
        let remaining = budget.saturating_sub(started.elapsed());
        // What one operation does not use is left to the next ones.
        let share = if all > mine && mine > 0.0 {
            remaining.mul_f64(mine / all)
        } else {
            remaining
        };
        let folder = match index {
            0 => engine.run.tune(),
            _ => engine.run.tune().join(one.op.name()),
        };
        let order = TuneOrder {
            run: &engine.run,
            folder: &folder,
            inspection: one,
            shapes: &shapes,
            budget: share,
            interrupt: &engine.interrupt,
        };
        let observer = &mut *engine.observer;
        let named = |shape: &Shape| format!("M={} N={} K={}", shape.m, shape.n, shape.k);
        let tuned = kernels.tune(&order, &mut |event| {
            if let Some(progress) = progress_of(event, named) {
                observer(&Notice::Progress(progress));
            }
        })?;
        // The races finished so far are stored in the tuner's own folder. The stage is not done: a resumed run races
        // the rest.
        if engine.interrupt.is_raised() {
            return Err(Error::interrupted());
        }
        whole = Some(match whole {
            None => tuned,
            Some(others) => others.with(tuned),
        });
    }
    Ok(whole)
}

/// Reports the results of both parts; `planned` counts shapes and sizes of fused MoE.
fn done(
    engine: &mut Engine<'_>,
    tuned: &Tuned,
    plan: &Plan,
    planned: (usize, usize),
    took: Duration,
) -> Done {
    let mut remarks: Vec<String> = tuned
        .failed
        .iter()
        .take(5)
        .map(|failure| format!("not tuned: {failure}"))
        .collect();
    remarks.extend(tuned.lost.iter().cloned());
    let left = match tuned.not_reached.len() {
        0 => String::new(),
        left => format!(
            "the budget of {} ended before {left} more were raced (`budget.tune`)",
            engine.config.budget.tune
        ),
    };
    remarks.extend(Some(left.clone()).filter(|left| !left.is_empty()));
    remarks.extend(tuned.remarks.iter().cloned());
    let kept = tuned.rows.iter().filter(|row| row.incumbent_kept).count();
    let (mut summary, mut nothing) = (Vec::new(), Vec::new());
    if planned.0 > 0 {
        summary.push(format!(
            "{} of {} rows tuned in {:.0} s: {} faster than before, {kept} kept as they are; {} failed",
            tuned.rows.len(),
            planned.0,
            match &tuned.fused_moe {
                Some(_) => tuned.seconds,
                None => took.as_secs_f64(),
            },
            tuned.rows.len() - kept,
            tuned.failed.len()
        ));
        summary.extend(by_operation(plan, tuned));
        nothing.push(format!(
            "no kernel was found that is faster than what serves any of {kept} shapes today{}",
            at_best(tuned)
        ));
        nothing.extend(Some(left).filter(|left| !left.is_empty()));
    }
    if let Some(raced) = &tuned.fused_moe {
        let budget = engine.config.budget.tune.to_string();
        let (more, one_line) = fused_moe::said(raced, planned.1, &budget);
        remarks.extend(more);
        summary.push(one_line);
        nothing.push(fused_moe::why_left(raced));
    }
    let experts = tuned.fused_moe.as_ref();
    // If only one part won, the summary says that the other is left as it is.
    let won = [
        tuned.has_won(),
        experts.is_some_and(|raced| fused_moe::gains(plan, raced)),
    ];
    if won == [false, true] && planned.0 > 0 {
        remarks.push(format!("dense GEMMs are left as they are: {}", nothing[0]));
    } else if won == [true, false] && tuned.fused_moe.is_some() {
        let why = nothing.last().cloned().unwrap_or_default();
        remarks.push(format!("fused MoE is left as it is: {why}"));
    }
    for remark in remarks {
        engine.remark(remark);
    }
    Done {
        summary: summary.join("; "),
        // Otherwise a table of nothing but what serves already would be deployed, and compared with itself.
        nothing_to_gain: (won == [false, false]).then(|| nothing.join("; ")),
    }
}

/// The result of each operation; `None` if there is only one.
fn by_operation(plan: &Plan, tuned: &Tuned) -> Option<String> {
    let of = |op: &Op| {
        let planned = plan.tune.iter().filter(|row| row.shape.op == *op).count();
        let rows = tuned.rows.iter().filter(|row| row.shape.op == *op).count();
        let won = tuned.won(*op).count();
        format!("{op} {rows} of {planned}, {won} faster")
    };
    (plan.ops.len() > 1).then(|| plan.ops.iter().map(of).collect::<Vec<_>>().join(", "))
}

/// Uses a table from elsewhere in place of a tuned one.
fn take(engine: &mut Engine<'_>, inspection: &Inspection, table: &Utf8Path) -> Result<Done, Error> {
    let Some(kernels) = &engine.backend.kernels else {
        return Err(Error::new(
            ErrorKind::Usage,
            "no table of fused MoE is judged as it is",
        ));
    };
    let mut taken = Err(Error::new(
        ErrorKind::Bug,
        "an inspection without an operation",
    ));
    for one in inspection.operations() {
        taken = kernels.take(&one, table);
        if taken.is_ok() {
            break;
        }
    }
    let tables = taken?;
    let device = inspection.identity.get("device");
    let device = device.map_or(inspection.gfx.as_str(), String::as_str);
    let tuned = Tuned::taken(table, device, tables);
    write_document(&engine.run, &tuned)?;
    for remark in &tuned.remarks {
        engine.remark(remark.clone());
    }
    Ok(Done::new(format!("nothing: {table} is judged as it is")))
}

/// How close the tuned rows came, where they were timed against what serves today.
fn at_best(tuned: &Tuned) -> String {
    let timed = tuned.contests.iter().filter_map(|contest| {
        let gain = contest.gain?;
        Some((gain.median, contest))
    });
    let best = timed.max_by(|(one, _), (other, _)| one.total_cmp(other));
    best.map_or_else(String::new, |(_, contest)| {
        let shape = &contest.shape;
        format!(
            "; at best, at M={} N={} K={}, {} against {}",
            shape.m,
            shape.n,
            shape.k,
            contest.outcome(),
            contest.today
        )
    })
}

/// An event's message for display; `named` gives the display name of a problem.
pub(super) fn progress_of<P: std::fmt::Display>(
    event: &TuneEvent<P>,
    named: impl Fn(&P) -> String,
) -> Option<Progress> {
    let progress = |doing: String| Progress {
        stage: Stage::Tune,
        doing,
        steps: None,
        eta_seconds: None,
        passing: false,
    };
    match event {
        TuneEvent::Started {
            device,
            shapes,
            resumed,
            ..
        } => Some(progress(format!(
            "{shapes} shapes on {}, {resumed} already done",
            device.name
        ))),
        TuneEvent::Leads {
            shape,
            us,
            entrants,
        } => Some(Progress {
            passing: true,
            ..progress(format!(
                "{}: best so far {us:.1} us of {entrants} candidates",
                named(shape)
            ))
        }),
        TuneEvent::Finished {
            row,
            done,
            left_at_most,
            eta_s,
        } => Some(Progress {
            steps: Some((*done as u64, (*done + *left_at_most) as u64)),
            eta_seconds: Some(*eta_s),
            ..progress(format!(
                "{}: {:.1} us{}",
                named(&row.shape),
                row.us,
                row.incumbent_us
                    .map_or_else(String::new, |was| format!(", was {was:.1}"))
            ))
        }),
        TuneEvent::Failed(unserved) => {
            Some(progress(format!("{}: {}", unserved.shape, unserved.reason)))
        }
        TuneEvent::Quarantined(bad) => Some(progress(format!("{}: {}", bad.shape, bad.evidence))),
        TuneEvent::WorkerRestarted { reason, .. } | TuneEvent::DeviceLost { reason, .. } => {
            Some(progress(format!("a worker ended: {reason}")))
        }
        TuneEvent::Batch {
            done,
            of,
            left_at_most,
            eta_s,
        } => Some(Progress {
            passing: true,
            eta_seconds: *eta_s,
            ..progress(format!(
                "{done} of {of} candidates timed, at most {left_at_most} shapes left"
            ))
        }),
        TuneEvent::Remark { text } => Some(progress(text.clone())),
        TuneEvent::Wrote { .. } => None,
    }
}
