//! `tune`: races the planned shapes on all devices.

use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};

use super::{Done, fused_moe};
use crate::engine::ports::{Need, TuneOrder};
use crate::engine::{Engine, budget, read_document, write_document};
use crate::plan::Plan;
use crate::problem::{Op, Shape};
use crate::run::documents::{Inspection, Tuned, TunedMoe};
use crate::run::error::{Error, ErrorKind};
use crate::run::event::{Notice, Progress};
use crate::run::stage::Stage;
use crate::tune::TuneEvent;
use crate::tune::event::{DeviceTime, busy_shares};
use crate::tune::moe::MoeTask;

pub(super) fn tune(engine: &mut Engine<'_>) -> Result<Done, Error> {
    let inspection = super::inspection(&engine.run)?;
    if let Some(table) = engine.config.backend.table.clone() {
        return take(engine, &inspection, &table);
    }
    let plan: Plan = read_document(&engine.run)?;
    let started = Instant::now();
    let tuned = race_all(engine, &inspection, &plan)?;
    write_document(&engine.run, &tuned)?;
    let parts = Part::of(&tuned, &plan, started.elapsed());
    if parts.iter().all(|part| part.raced == 0) {
        let failed: usize = parts.iter().map(|part| part.failed.len()).sum();
        return Err(Error::new(
            ErrorKind::TunerFailed,
            format!("no shape could be tuned; {failed} failed"),
        )
        .hint(format!("read what the workers said: {}", engine.run.tune())));
    }
    Ok(done(engine, &tuned, &plan, &parts))
}

/// A race of its own.
enum Race {
    /// The dense GEMMs of one operation; results go to `folder`.
    Dense {
        inspection: Box<Inspection>,
        shapes: Vec<Shape>,
        folder: Utf8PathBuf,
    },
    Experts(Vec<MoeTask>),
}

/// The planned races, each with its estimated time.
fn races(engine: &Engine<'_>, inspection: &Inspection, plan: &Plan) -> Vec<(Race, Need)> {
    let mut races = Vec::new();
    if super::dense_kernels(engine, inspection).is_some() {
        for (index, one) in inspection.operations().into_iter().enumerate() {
            let rows = || plan.tune.iter().filter(|row| row.shape.op == one.op);
            let need = Need {
                once_s: 0.0,
                rows_s: rows().map(|row| row.tuning_s).sum(),
            };
            let shapes = rows().map(|row| row.shape.shape()).collect();
            let folder = match index {
                0 => engine.run.tune(),
                _ => engine.run.tune().join(one.op.name()),
            };
            let race = Race::Dense {
                inspection: Box::new(one),
                shapes,
                folder,
            };
            races.push((race, need));
        }
    }
    let tasks = fused_moe::tasks(engine, plan);
    let need = fused_moe::need(engine, &tasks);
    races.push((Race::Experts(tasks), need));
    races.retain(|(race, _)| match race {
        Race::Dense { shapes, .. } => !shapes.is_empty(),
        Race::Experts(tasks) => !tasks.is_empty(),
    });
    races
}

/// Runs the races in turn. They share the budget in proportion to their estimates; what one does not use is left to the next ones.
fn race_all(engine: &mut Engine<'_>, inspection: &Inspection, plan: &Plan) -> Result<Tuned, Error> {
    let (budget, started) = (engine.config.budget.tune.duration(), Instant::now());
    let races = races(engine, inspection, plan);
    let needs: Vec<Need> = races.iter().map(|(_, need)| *need).collect();
    let (mut dense, mut experts): (Option<Tuned>, Option<TunedMoe>) = (None, None);
    for (index, (race, need)) in races.into_iter().enumerate() {
        let left = budget.saturating_sub(started.elapsed());
        let budget = budget::share(left, need, &needs[index + 1..]);
        match race {
            Race::Dense {
                inspection,
                shapes,
                folder,
            } => {
                let tuned = race_dense(engine, &inspection, &shapes, &folder, budget)?;
                dense = Some(match dense {
                    None => tuned,
                    Some(others) => others.with(tuned),
                });
            }
            Race::Experts(tasks) => {
                experts = fused_moe::race(engine, inspection, &tasks, budget)?;
            }
        }
        // The races finished so far are stored in the tuner's own folder. The stage is not done: a resumed run races
        // the rest.
        if engine.interrupt.is_raised() {
            return Err(Error::interrupted());
        }
    }
    match (dense, experts) {
        (Some(dense), experts) => Ok(Tuned {
            fused_moe: experts,
            ..dense
        }),
        (None, Some(experts)) => Ok(Tuned::of_fused_moe(experts)),
        (None, None) => Err(Error::new(ErrorKind::Bug, "nothing is planned to be tuned")),
    }
}

fn race_dense(
    engine: &mut Engine<'_>,
    inspection: &Inspection,
    shapes: &[Shape],
    folder: &Utf8Path,
    budget: Duration,
) -> Result<Tuned, Error> {
    let Some(kernels) = engine.backend.kernels.clone() else {
        return Err(Error::new(ErrorKind::Bug, "a race without kernels"));
    };
    let order = TuneOrder {
        run: &engine.run,
        folder,
        inspection,
        shapes,
        budget,
        interrupt: &engine.interrupt,
    };
    let named = |shape: &Shape| format!("M={} N={} K={}", shape.m, shape.n, shape.k);
    kernels.tune(&order, &mut told(&mut *engine.observer, named))
}

/// Reports a race's progress to `observer`; `named` gives the display name of a problem.
pub(super) fn told<P: std::fmt::Display>(
    observer: &mut dyn FnMut(&Notice),
    named: impl Fn(&P) -> String,
) -> impl FnMut(&TuneEvent<P>) {
    move |event| {
        if let Some(progress) = progress_of(event, &named) {
            observer(&Notice::Progress(progress));
        }
    }
}

/// The result of a part of the tuning: the dense GEMMs of all operations, or the fused MoE.
struct Part<'a> {
    /// The beginning of its sentence, and its unit with the verb.
    named: (&'static str, &'static str),
    /// Follows "more" where the budget ended.
    more: &'static str,
    planned: usize,
    raced: usize,
    won: usize,
    failed: &'a [String],
    lost: &'a [String],
    not_reached: usize,
    /// Devices whose shares of busy time are reported.
    devices: &'a [DeviceTime],
    seconds: f64,
}

impl<'a> Part<'a> {
    /// The parts of `tuned`, whose stage took `took`.
    fn of(tuned: &'a Tuned, plan: &Plan, took: Duration) -> Vec<Self> {
        let mut parts = Vec::new();
        if !plan.tune.is_empty() {
            parts.push(Self {
                named: ("", "rows tuned"),
                more: "",
                planned: plan.tune.len(),
                raced: tuned.rows.len(),
                won: tuned.rows.iter().filter(|row| !row.incumbent_kept).count(),
                failed: &tuned.failed,
                lost: &tuned.lost,
                not_reached: tuned.not_reached.len(),
                devices: &[],
                seconds: match &tuned.fused_moe {
                    Some(_) => tuned.seconds,
                    None => took.as_secs_f64(),
                },
            });
        }
        parts.extend(tuned.fused_moe.as_ref().map(|raced| Self {
            named: ("fused MoE: ", "sizes raced"),
            more: " sizes of fused MoE",
            planned: plan.fused_moe.len(),
            raced: raced.rows.len(),
            won: raced.won().count(),
            failed: &raced.failed,
            lost: &raced.lost,
            not_reached: raced.not_reached.len(),
            devices: &raced.devices,
            seconds: raced.seconds,
        }));
        parts
    }

    fn sentence(&self) -> String {
        let (what, done) = self.named;
        let sentence = format!(
            "{what}{} of {} {done} in {:.0} s: {} faster than before, {} kept as they are; {} failed",
            self.raced,
            self.planned,
            self.seconds,
            self.won,
            self.raced - self.won,
            self.failed.len()
        );
        match busy_shares(self.devices) {
            Some(shares) => format!("{sentence}; {shares}"),
            None => sentence,
        }
    }

    /// A remark on what the budget left out.
    fn left(&self, budget: &str) -> Option<String> {
        let (left, more) = (self.not_reached, self.more);
        (left > 0).then(|| {
            format!(
                "the budget of {budget} ended before {left} more{more} were raced (`budget.tune`)"
            )
        })
    }

    fn remarks(&self, budget: &str) -> impl Iterator<Item = String> {
        let failed = self.failed.iter().take(5);
        failed
            .map(|failure| format!("not tuned: {failure}"))
            .chain(self.lost.iter().cloned())
            .chain(self.left(budget))
    }
}

/// Reports the results of the parts.
fn done(engine: &mut Engine<'_>, tuned: &Tuned, plan: &Plan, parts: &[Part<'_>]) -> Done {
    let budget = engine.config.budget.tune.to_string();
    let mut remarks: Vec<String> = parts
        .iter()
        .flat_map(|part| part.remarks(&budget))
        .collect();
    remarks.extend(tuned.remarks.iter().cloned());
    let mut summary: Vec<String> = parts.iter().map(Part::sentence).collect();
    let (mut dense_left, mut experts_left) = (None, None);
    if !plan.tune.is_empty() {
        summary.splice(1..1, by_operation(plan, tuned));
        let kept = tuned.rows.iter().filter(|row| row.incumbent_kept).count();
        let why = || {
            format!(
                "no kernel was found that is faster than what serves any of {kept} shapes today{}",
                at_best(tuned)
            )
        };
        dense_left = (!tuned.has_won()).then(why);
    }
    if let Some(raced) = &tuned.fused_moe {
        remarks.extend(fused_moe::remarks(raced));
        let why = || fused_moe::why_left(raced);
        experts_left = (!fused_moe::gains(plan, raced)).then(why);
    }
    let has_gained = [
        tuned.has_won(),
        tuned.fused_moe.is_some() && experts_left.is_none(),
    ];
    let nothing_to_gain = if has_gained == [false, false] {
        // Otherwise a table of nothing but what serves already would be deployed, and compared with itself.
        let more = parts.first().and_then(|part| part.left(&budget));
        let dense = dense_left.map(|why| [Some(why), more].into_iter().flatten());
        let why = dense.into_iter().flatten().chain(experts_left);
        Some(why.collect::<Vec<_>>().join("; "))
    } else {
        // If only one part won, the summary says that the other is left as it is.
        let dense = dense_left.map(|why| format!("dense GEMMs are left as they are: {why}"));
        let experts = experts_left.map(|why| format!("fused MoE is left as it is: {why}"));
        remarks.extend(dense.into_iter().chain(experts));
        None
    };
    for remark in remarks {
        engine.remark(remark);
    }
    Done {
        summary: summary.join("; "),
        nothing_to_gain,
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

/// Uses tables from elsewhere in place of tuned ones.
fn take(engine: &mut Engine<'_>, inspection: &Inspection, table: &Utf8Path) -> Result<Done, Error> {
    let Some(kernels) = &engine.backend.kernels else {
        return Err(Error::new(
            ErrorKind::Usage,
            "no table of fused MoE is judged as it is",
        ));
    };
    let tables = kernels.take(inspection, table)?;
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

/// What an event says to people; `named` is how they know a problem.
fn progress_of<P: std::fmt::Display>(
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
