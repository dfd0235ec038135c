//! `tune`: the planned shapes, on every device there is.

use std::time::Instant;

use camino::Utf8Path;

use super::Done;
use crate::engine::ports::TuneOrder;
use crate::engine::{Engine, read_document, write_document};
use crate::plan::Plan;
use crate::problem::Shape;
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
    let order = TuneOrder {
        run: &engine.run,
        inspection: &inspection,
        shapes: &shapes,
        budget: engine.config.budget.tune.duration(),
        interrupt: &engine.interrupt,
    };
    let started = Instant::now();
    let observer = &mut *engine.observer;
    let tuned = engine.backend.kernels.tune(&order, &mut |event| {
        if let Some(progress) = progress_of(event) {
            observer(&Notice::Progress(progress));
        }
    })?;
    // What was raced so far is kept in the tuner's own folder. The stage is not done: a resumed run races the rest.
    if engine.interrupt.is_raised() {
        return Err(Error::interrupted());
    }
    write_document(&engine.run, &tuned)?;
    if tuned.rows.is_empty() {
        return Err(Error::new(
            ErrorKind::TunerFailed,
            format!("no shape could be tuned; {} failed", tuned.failed.len()),
        )
        .hint(format!("read what the workers said: {}", engine.run.tune())));
    }
    for failure in tuned.failed.iter().take(5) {
        engine.remark(format!("not tuned: {failure}"));
    }
    for lost in &tuned.lost {
        engine.remark(lost.clone());
    }
    let left = match tuned.not_reached.len() {
        0 => String::new(),
        left => format!(
            "the budget of {} ended before {left} more were raced (`budget.tune`)",
            engine.config.budget.tune
        ),
    };
    if !left.is_empty() {
        engine.remark(left.clone());
    }
    for remark in &tuned.remarks {
        engine.remark(remark.clone());
    }
    let kept = tuned.rows.iter().filter(|row| row.incumbent_kept).count();
    let done = Done::new(format!(
        "{} of {} rows tuned in {:.0} s: {} faster than before, {kept} kept as they are; {} failed",
        tuned.rows.len(),
        shapes.len(),
        started.elapsed().as_secs_f64(),
        tuned.rows.len() - kept,
        tuned.failed.len()
    ));
    // A table of nothing but what serves already would be deployed, and compared with itself.
    let nothing = (kept == tuned.rows.len()).then(|| {
        let sentence = format!(
            "no kernel was found that is faster than what serves any of {kept} shapes today{}",
            at_best(&tuned)
        );
        [sentence, left]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join("; ")
    });
    Ok(Done {
        nothing_to_gain: nothing,
        ..done
    })
}

/// Takes a table from elsewhere in place of a tuned one.
fn take(engine: &mut Engine<'_>, inspection: &Inspection, table: &Utf8Path) -> Result<Done, Error> {
    let folder = engine.run.tune().join("taken");
    fs_err::create_dir_all(&folder).map_err(|error| Error::file(&error))?;
    let files = engine.backend.kernels.take(inspection, table, &folder)?;
    let device = inspection.identity.get("device");
    let device = device.map_or(inspection.gfx.as_str(), String::as_str);
    let tuned = Tuned::taken(table, device, files);
    write_document(&engine.run, &tuned)?;
    for remark in &tuned.remarks {
        engine.remark(remark.clone());
    }
    Ok(Done::new(format!("nothing: {table} is judged as it is")))
}

/// How near the tuned rows came, where they were timed against what serves today.
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

fn progress_of(event: &TuneEvent) -> Option<Progress> {
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
                "M={} N={} K={}: best so far {us:.1} us of {entrants} candidates",
                shape.m, shape.n, shape.k
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
                "M={} N={} K={}: {:.1} us{}",
                row.shape.m,
                row.shape.n,
                row.shape.k,
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
