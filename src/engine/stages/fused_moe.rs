//! The fused MoE in the stages, beside the dense GEMMs or alone. A run in which none ran, or in which it is not
//! tuned, does nothing here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::foresee::Term;
use super::tune::told;
use crate::engine::ports::{DeployedMoePart, MoeOrder, MoeTerms, Need};
use crate::engine::{Engine, read_document};
use crate::log::summary::LogSummary;
use crate::plan::Plan;
use crate::plan::moe::{MoeInput, PlannedMoe, estimate_us, make};
use crate::problem::fused_moe::MoeProblem;
use crate::report::model::{FusedMoe, FusedMoeRow, LayoutCheck, Timing};
use crate::run::documents::{
    Captured, DeployedMoe, Deployment, Inspection, MoeCheck, SeenMoe, Tuned, TunedMoe, VerifiedMoe,
};
use crate::run::error::{Error, ErrorKind};
use crate::table::moe::counted::{CountedProblem, with_problems};
use crate::table::roofline::Device;
use crate::tune::moe::MoeTask;
use crate::tune::results::Row;
use crate::workload::config::Routing;

/// The fused MoE that the instrumented server ran; an error if nothing else is tuned and it ran none.
pub(super) fn seen(
    engine: &mut Engine<'_>,
    inspection: &Inspection,
    log_summary: &LogSummary,
) -> Result<Vec<SeenMoe>, Error> {
    let Some(kernels) = engine.backend.fused_moe.clone() else {
        return Ok(Vec::new());
    };
    let (seen, remarks) = kernels.seen(inspection, log_summary)?;
    for remark in remarks {
        engine.remark(remark);
    }
    if seen.is_empty() && super::dense_kernels(engine, inspection).is_none() {
        return Err(kernels.unseen());
    }
    Ok(seen)
}

/// The shapes file of the dense GEMMs with the captured sizes added.
pub(super) fn with_sizes(engine: &Engine<'_>, gemms: &str, seen: &[SeenMoe]) -> String {
    match &engine.backend.fused_moe {
        Some(kernels) => with_problems(gemms, kernels.op(), &counted(seen)),
        None => gemms.to_owned(),
    }
}

fn counted(seen: &[SeenMoe]) -> Vec<CountedProblem> {
    let each = seen.iter().flat_map(|seen| {
        seen.calls.iter().map(|(m, calls)| CountedProblem {
            problem: seen.problem.clone(),
            m: Some(*m),
            records: *calls,
        })
    });
    each.collect()
}

/// What is worth racing.
pub(super) struct Planned {
    /// The device whose peak rates weight the sizes.
    pub(super) device: Device,
    /// Sizes, those that gain most first.
    pub(super) rows: Vec<PlannedMoe>,
    /// Remarks: what serves each today, what cannot be raced.
    pub(super) notes: Vec<String>,
}

/// Which of the captured sizes are worth racing.
pub(super) fn plan(
    engine: &Engine<'_>,
    inspection: &Inspection,
    told: &Captured,
) -> Result<Planned, Error> {
    // For a model without experts nothing is queried, not even its kernels' look-up.
    let ran = !told.fused_moe.is_empty();
    let Some(kernels) = engine.backend.fused_moe.as_ref().filter(|_| ran) else {
        return Ok(Planned {
            device: Device::unknown(&inspection.gfx, inspection.cu_num),
            rows: Vec::new(),
            notes: Vec::new(),
        });
    };
    let MoeTerms {
        device,
        ladder,
        left,
    } = kernels.terms(inspection)?;
    let mut notes: Vec<String> = told
        .fused_moe
        .iter()
        .map(|seen| {
            format!(
                "fused MoE {} is served today by {}",
                seen.in_short(),
                seen.today
            )
        })
        .collect();
    let (mut rows, more) = make(MoeInput {
        seen: &counted(&told.fused_moe),
        // Records describe a problem completely, and what was captured is what runs.
        model: None,
        capture: &told.graphs,
        chunk: told.chunk,
        dp_attention: 1,
        fill: true,
        device: &device,
        op: kernels.op(),
        ladder,
    });
    notes.extend(more);
    let mut refused: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    rows.retain(|row| {
        let task = kernels.task(&row.problem, row.m);
        let why = task.err().or_else(|| left(&row.problem, row.m));
        if let Some(why) = &why {
            let what = format!("{} {} is not raced: {why}", row.op, row.problem.sizes());
            refused.entry(what).or_default().insert(row.m);
        }
        why.is_none()
    });
    notes.extend(refused.into_iter().map(|(what, at)| {
        let at: Vec<String> = at.iter().map(ToString::to_string).collect();
        format!("{what} (M = {})", at.join(", "))
    }));
    Ok(Planned {
        device,
        rows,
        notes,
    })
}

/// The races that `plan` lists, with the reasons of those that cannot be raced left out.
pub(super) fn tasks(engine: &Engine<'_>, plan: &Plan) -> Vec<MoeTask> {
    let Some(kernels) = &engine.backend.fused_moe else {
        return Vec::new();
    };
    let tasks = plan.fused_moe.iter();
    tasks
        .filter_map(|row| kernels.task(&row.problem, row.m).ok())
        .collect()
}

/// Estimated time to race `tasks`.
pub(super) fn need(engine: &Engine<'_>, tasks: &[MoeTask]) -> Need {
    let kernels = engine.backend.fused_moe.as_ref();
    kernels.map_or_else(Need::default, |kernels| kernels.need(tasks))
}

/// Races `tasks`.
pub(super) fn race(
    engine: &mut Engine<'_>,
    inspection: &Inspection,
    tasks: &[MoeTask],
    budget: Duration,
) -> Result<Option<TunedMoe>, Error> {
    let Some(kernels) = engine.backend.fused_moe.clone() else {
        return Ok(None);
    };
    let order = MoeOrder {
        run: &engine.run,
        inspection,
        tasks,
        budget,
        interrupt: &engine.interrupt,
    };
    let tuned = kernels.tune(&order, &mut told(&mut *engine.observer, MoeTask::to_string))?;
    if engine.config.backend.expert_routing == Routing::Skewed {
        engine.remark(
            "fused MoE was raced with a few experts busy, as `backend.expert_routing = \"skewed\"` says",
        );
    }
    Ok(Some(tuned))
}

/// Whether a row is faster at a size that the workload runs. Rows at sizes in between would not change the measured
/// result.
pub(super) fn gains(plan: &Plan, raced: &TunedMoe) -> bool {
    let is_seen = |row: &Row<MoeTask>| {
        let mut seen = plan.fused_moe.iter().filter(|planned| planned.calls > 0.0);
        seen.any(|planned| planned.m == row.shape.m && is_of(&row.shape, &planned.problem))
    };
    raced.won().any(is_seen)
}

/// Why the fused MoE keeps what serves it.
pub(super) fn why_left(raced: &TunedMoe) -> String {
    if raced.rows.is_empty() {
        return "no row can be used at any of its sizes".to_owned();
    }
    let others = match raced.won().count() {
        0 => String::new(),
        others => format!(
            " of those that the workload runs; {others} other sizes are, and their rows are in {}",
            raced
                .files
                .first()
                .and_then(|file| file.parent())
                .map_or("", |folder| folder.as_str())
        ),
    };
    format!(
        "no row was found that is faster than what serves any of {} sizes of fused MoE today{others}",
        raced.rows.len()
    )
}

/// Remarks on what was timed.
pub(super) fn remarks(raced: &TunedMoe) -> impl Iterator<Item = String> {
    let in_parts = (raced.whole == "two GEMMs" && !raced.rows.is_empty()).then(|| {
        "the server's own operation could not be run by the tuner: its two GEMMs were timed in its place".to_owned()
    });
    raced.remarks.iter().cloned().chain(in_parts)
}

/// Deploys the tables; `None` if no row won.
pub(super) fn deploy(
    engine: &Engine<'_>,
    inspection: &Inspection,
    tuned: &Tuned,
) -> Result<Option<DeployedMoe>, Error> {
    match (&engine.backend.fused_moe, &tuned.fused_moe) {
        (Some(kernels), Some(raced)) if gains(&read_document(&engine.run)?, raced) => {
            kernels.deploy(&engine.run, inspection, raced).map(Some)
        }
        _ => Ok(None),
    }
}

/// Undoes the tables of `deployment`.
pub(super) fn undo(engine: &Engine<'_>, deployment: &Deployment) -> Result<(), Error> {
    match (&engine.backend.fused_moe, &deployment.fused_moe) {
        (Some(kernels), Some(deployed)) => kernels.undo(deployed),
        _ => Ok(()),
    }
}

/// The numbers of the deployed tables in a fresh process; empty if none are deployed.
pub(super) fn probe(
    engine: &Engine<'_>,
    inspection: &Inspection,
    tuned: &Tuned,
    deployment: &Deployment,
) -> Result<Vec<MoeCheck>, Error> {
    let (Some(kernels), Some(deployed), Some(tuned)) = (
        &engine.backend.fused_moe,
        &deployment.fused_moe,
        &tuned.fused_moe,
    ) else {
        return Ok(Vec::new());
    };
    let checks = kernels.probe(&DeployedMoePart {
        run: &engine.run,
        inspection,
        tuned,
        deployed,
        env: &deployment.environment(),
        interrupt: &engine.interrupt,
    })?;
    refuse_wrong_numbers(&checks)?;
    Ok(checks)
}

fn refuse_wrong_numbers(checks: &[MoeCheck]) -> Result<(), Error> {
    let wrong: Vec<&MoeCheck> = checks.iter().filter(|check| !check.passes()).collect();
    let Some(first) = wrong.first() else {
        return Ok(());
    };
    let error = first.relative_error.map_or_else(
        || "not finite".to_owned(),
        |error| format!("relative error {:.1} %", error * 100.0),
    );
    Err(Error::new(
        ErrorKind::NotBetter,
        format!(
            "check of fused MoE: {} of {} sizes are wrong, first {} with {} ({error}); the deployment was undone",
            wrong.len(),
            checks.len(),
            first.task,
            first.kernel
        ),
    ))
}

/// What served the tuned server, with the numbers that were checked before; `None` if no table is deployed.
pub(super) fn verified(
    engine: &Engine<'_>,
    inspection: &Inspection,
    deployment: &Deployment,
    checks: Vec<MoeCheck>,
    log_summary: &LogSummary,
) -> Result<Option<VerifiedMoe>, Error> {
    match (&engine.backend.fused_moe, &deployment.fused_moe) {
        (Some(kernels), Some(deployed)) => Ok(Some(VerifiedMoe {
            checks,
            engagement: kernels.engagement(inspection, deployed, log_summary)?,
        })),
        _ => Ok(None),
    }
}

/// The contributions of the fused MoE to the latency of a forward pass of `m` tokens, before and after.
pub(super) fn terms(plan: &Plan, captured: &Captured, tuned: &Tuned, m: u32) -> Vec<Term> {
    let Some(raced) = &tuned.fused_moe else {
        return Vec::new();
    };
    let predicted = plan.model.as_ref().and_then(|model| model.experts.as_ref());
    let term = |seen: &SeenMoe| {
        let problem = &seen.problem;
        let same = predicted.filter(|experts| experts.problem == *problem);
        let calls = same.map(|experts| experts.count).or(seen.per_forward)?;
        let of_problem = |row: &&Row<MoeTask>| is_of(&row.shape, problem);
        let row = raced
            .rows
            .iter()
            .filter(of_problem)
            .min_by_key(|row| row.shape.m.abs_diff(m))?;
        let before = row.incumbent_us.unwrap_or(row.us);
        Some(Term {
            op: None,
            experts: Some(problem.experts),
            n: problem.n,
            k: row.shape.hidden,
            raced_m: row.shape.m,
            calls,
            before_us: before,
            after_us: if row.incumbent_kept { before } else { row.us },
        })
    };
    captured.fused_moe.iter().filter_map(term).collect()
}

/// Time of the fused MoE in a forward pass of `m` tokens at the peak rates of `device`, µs; `None` if there is none
/// or its calls are not known.
pub(super) fn least_us(plan: &Plan, captured: &Captured, m: u32, device: &Device) -> Option<f64> {
    let predicted = plan.model.as_ref().and_then(|model| model.experts.as_ref());
    let of = |seen: &SeenMoe| {
        let same = predicted.filter(|experts| experts.problem == seen.problem);
        let calls = same.map(|experts| experts.count).or(seen.per_forward)?;
        Some(f64::from(calls) * estimate_us(&seen.problem, m, device))
    };
    let times: Option<Vec<f64>> = captured.fused_moe.iter().map(of).collect();
    Some(times?.iter().sum()).filter(|us: &f64| *us > 0.0)
}

fn is_of(task: &MoeTask, problem: &MoeProblem) -> bool {
    (task.experts, task.inter, Some(task.hidden), Some(task.topk))
        == (problem.experts, problem.n, problem.hidden, problem.topk)
}

/// Each fused MoE as the report shows it.
pub(super) fn reported(
    engine: &Engine<'_>,
    captured: &Captured,
    plan: &Plan,
    tuned: Option<&Tuned>,
) -> Vec<FusedMoe> {
    let raced = tuned.and_then(|tuned| tuned.fused_moe.as_ref());
    let one = |seen: &SeenMoe| {
        let planned = plan
            .fused_moe
            .iter()
            .filter(|row| row.problem == seen.problem);
        let mut rows: Vec<FusedMoeRow> = planned
            .map(|planned| {
                let is_it = |task: &MoeTask| task.m == planned.m && is_of(task, &planned.problem);
                let row = raced.and_then(|raced| raced.rows.iter().find(|row| is_it(&row.shape)));
                reported_row(engine, captured, planned, row, raced.is_some())
            })
            .collect();
        rows.sort_by_key(|row| row.m);
        FusedMoe {
            experts: seen.problem.experts,
            n: seen.problem.n,
            k: seen.problem.hidden,
            topk: seen.problem.topk,
            calls: seen.calls.values().sum::<u64>() as f64,
            per_forward: seen.per_forward,
            today: seen.today.clone(),
            timed: raced.map(|raced| raced.whole.clone()),
            rows,
        }
    };
    captured.fused_moe.iter().map(one).collect()
}

fn reported_row(
    engine: &Engine<'_>,
    captured: &Captured,
    planned: &PlannedMoe,
    row: Option<&Row<MoeTask>>,
    is_raced: bool,
) -> FusedMoeRow {
    let named = |candidate: &serde_json::Value| match &engine.backend.fused_moe {
        Some(kernels) => kernels.row_name(candidate),
        None => candidate.to_string(),
    };
    FusedMoeRow {
        m: planned.m,
        phase: captured.phase(planned.m),
        calls: (planned.calls > 0.0).then_some(planned.calls),
        before: row.and_then(|row| {
            Some(Timing {
                us: row.incumbent_us?,
                kernel: named(row.incumbent.as_ref()?),
            })
        }),
        after: row.map(|row| Timing {
            us: row.us,
            kernel: named(&row.candidate),
        }),
        status: match row {
            Some(row) if row.incumbent_kept => "already served by the fastest".to_owned(),
            Some(_) => "tuned".to_owned(),
            None if is_raced => "not raced".to_owned(),
            None => "planned".to_owned(),
        },
    }
}

/// The layout checks of the verify stage, in the form of those of dense GEMMs.
pub(super) fn checks(verified: &VerifiedMoe) -> impl Iterator<Item = LayoutCheck> {
    verified.checks.iter().map(|check| LayoutCheck {
        what: format!(
            "fused MoE E={} N={}, {}",
            check.task.experts, check.task.inter, check.kernel
        ),
        m: check.task.m,
        error_ratio: check.relative_error,
        limit: check.limit,
    })
}
