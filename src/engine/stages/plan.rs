//! `plan`: which of the captured shapes are worth tuning, and what that will gain.

use std::io;

use super::{Done, fused_moe, profile};
use crate::engine::ports::Kernels;
use crate::engine::trial::SERVER_INFO;
use crate::engine::{Engine, read_document, write_document};
use crate::plan::document::{HitRates, Verdict};
use crate::plan::model::{self, Parallel, Prediction};
use crate::plan::{Plan, PlanInput, make};
use crate::problem::Op;
use crate::report::model::{HitRate, PlanSummary};
use crate::run::documents::{Captured, Inspection};
use crate::run::error::{Error, ErrorKind};
use crate::run::event::Role;
use crate::table::shapes::{self, CountedShape};

/// The plan's figures for the report.
pub(crate) fn summary(plan: &Plan) -> PlanSummary {
    PlanSummary {
        to_tune: plan.tune.len(),
        folded: plan.folded.len(),
        served: plan.served.len(),
        estimated_s: Some(plan.gpu_seconds),
        ..Default::default()
    }
}

/// Predicted hit rates, for the report.
pub(crate) fn hit_rates(plan: &Plan) -> Vec<HitRate> {
    let HitRates { before, after } = plan.hit_rate;
    let rate = |of: &str, before, after| HitRate {
        of: of.to_owned(),
        before: Some(before),
        after,
    };
    if plan.ops.is_empty() {
        return Vec::new(); // no dense GEMM was planned for
    }
    vec![
        rate("calls, predicted", before.calls, after.calls),
        rate("GEMM time, predicted", before.time, after.time),
    ]
}

pub(super) fn plan(engine: &mut Engine<'_>) -> Result<Done, Error> {
    let inspection = super::inspection(&engine.run)?;
    let bytes =
        crate::store::file::read(&engine.run.shapes()).map_err(|error| Error::file(&error))?;
    let captured = shapes::read(&bytes, None)
        .map_err(|error| Error::caused(ErrorKind::NotResumable, &error))?;
    let told: Captured = read_document(&engine.run)?;
    let (prediction, unpredicted) = match prediction(engine, &inspection, &told) {
        Ok(prediction) => (prediction, None),
        Err(why) => (None, Some(format!("no shapes or gains predicted: {why}"))),
    };
    let experts = fused_moe::plan(engine, &inspection, &told)?;
    let kernels = super::dense_kernels(engine, &inspection);
    let dense = match &kernels {
        Some(kernels) => Some(dense(
            kernels.as_ref(),
            &inspection,
            &captured,
            &told,
            prediction.as_ref(),
        )?),
        None => None,
    };
    let mut plan = dense.unwrap_or_else(|| {
        Plan::of_fused_moe(
            &inspection.gfx,
            inspection.cu_num,
            &experts.device,
            prediction,
        )
    });
    plan.fused_moe = experts.rows;
    plan.notes.extend(experts.notes);
    let ran: Vec<_> = told.fused_moe.iter().map(|seen| &seen.problem).collect();
    let predicted = plan.model.as_ref().and_then(|model| model.experts.as_ref());
    plan.notes
        .extend(predicted.and_then(|predicted| predicted.compared(&ran)));
    plan.notes.extend(unpredicted);
    write_document(&engine.run, &plan)?;
    for remark in plan.difference.iter().chain(&plan.notes) {
        engine.remark(remark.clone());
    }
    let dense = kernels.is_some().then(|| {
        format!(
            "{} rows to tune for {} shapes; hit rate by calls {:.0} % now, {:.0} % then",
            plan.tune.len(),
            plan.seen,
            plan.hit_rate.before.calls * 100.0,
            plan.hit_rate.after.calls * 100.0
        )
    });
    let dense = dense.map(|said| match shares(&plan) {
        Some(shares) => format!("{said} ({shares})"),
        None => said,
    });
    let experts = (!plan.fused_moe.is_empty())
        .then(|| format!("{} sizes of fused MoE to race", plan.fused_moe.len()));
    profile::add_peaks(engine, &plan, &told)?;
    let bound = bounded(engine)?;
    let summary = dense
        .into_iter()
        .chain(experts)
        .chain(bound)
        .collect::<Vec<_>>()
        .join("; ");
    Ok(Done {
        summary,
        // A table from elsewhere is judged regardless of the plan.
        nothing_to_gain: (plan.verdict == Verdict::Nothing
            && plan.fused_moe.is_empty()
            && engine.config.backend.table.is_none())
        .then_some(plan.reason),
    })
}

/// The dense GEMMs of every operation, as one plan.
fn dense(
    kernels: &dyn Kernels,
    inspection: &Inspection,
    captured: &[CountedShape],
    told: &Captured,
    prediction: Option<&Prediction>,
) -> Result<Plan, Error> {
    let mut whole: Option<Plan> = None;
    for one in inspection.operations() {
        let terms = kernels.plan_terms(&one)?;
        let plan = make(&PlanInput {
            op: one.op,
            shapes: captured,
            tables: &terms.tables,
            configs: &terms.configs,
            files: &[],
            model: prediction,
            capture: &told.graphs,
            chunk: told.chunk,
            revision: terms.revision,
            gfx: &one.gfx,
            cu_num: one.cu_num,
            device: &terms.device,
            fold: terms.fold,
            refine: false,
            cost: &terms.cost,
            budget_s: None,
        })
        .map_err(|error| Error::caused(ErrorKind::NoShapes, &error))?;
        whole = Some(match whole {
            None => plan,
            Some(others) => others.join(plan),
        });
    }
    whole.ok_or_else(|| Error::new(ErrorKind::Bug, "an inspection without an operation"))
}

/// Each operation with its share of the estimated time of all dense GEMMs; `None` if there is only one.
fn shares(plan: &Plan) -> Option<String> {
    let of = |op: &Op| {
        let rows = plan.tune.iter().filter(|row| row.shape.op == *op);
        let (rows, share) = rows.fold((0, 0.0), |(rows, share), row| (rows + 1, share + row.share));
        format!("{op} {rows} rows with {:.0} % of the time", share * 100.0)
    };
    (plan.ops.len() > 1).then(|| plan.ops.iter().map(of).collect::<Vec<_>>().join(", "))
}

/// The most that tuning can gain in a step, for the load with the largest bound.
fn bounded(engine: &Engine<'_>) -> Result<Option<String>, Error> {
    let profiled = profile::read(engine)?;
    let bounds = profiled
        .loads
        .iter()
        .filter_map(|load| Some((load.at_most?, load)));
    let most = bounds.max_by(|one, other| one.0.total_cmp(&other.0));
    Ok(most.map(|(ratio, load)| {
        let peak = load.at_peak.as_ref().map_or_else(String::new, |peak| {
            format!(", {:.2}x at the device's peak rates", peak.ratio)
        });
        format!(
            "at most {ratio:.2}x in a step at concurrency {}, by its profile{peak}",
            load.concurrency
        )
    }))
}

/// The prediction from the model's `config.json`, with which the plan explains differences from the captured shapes;
/// `None` if no model is named, and the reason if nothing can be predicted for it.
fn prediction(
    engine: &Engine<'_>,
    inspection: &Inspection,
    captured: &Captured,
) -> Result<Option<Prediction>, String> {
    let Some(path) = engine
        .config
        .model_folder()
        .map(|folder| folder.join("config.json"))
    else {
        return Ok(None);
    };
    let bytes = fs_err::read(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => format!(
            "`{path}` is not there; where the server gets an id, `workload.model` can be the folder it was loaded to"
        ),
        _ => error.to_string(),
    })?;
    let prediction = model::predict(&bytes, &parallel(engine, inspection, captured))
        .map_err(|error| format!("failed to {error} (`{path}`)"))?;
    if prediction.rejected.is_empty() {
        Ok(Some(prediction))
    } else {
        Err(format!("{} (`{path}`)", prediction.rejected.join("; ")))
    }
}

/// How the captured server was split over ranks: as it reports its arguments, else by `workload.tp` alone.
fn parallel(engine: &Engine<'_>, inspection: &Inspection, captured: &Captured) -> Parallel {
    let tp = engine.config.workload.tp;
    let folder = engine.run.trial(captured.trial, Role::Capture.name());
    // The document is for people too: a server that reports nothing, or something else, is no reason to stop.
    let arguments = fs_err::read(folder.join(SERVER_INFO))
        .ok()
        .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
    match arguments {
        Some(arguments) => Parallel::resolved(&arguments, tp, inspection.gfx.starts_with("gfx")),
        None => Parallel::tp(tp),
    }
}
