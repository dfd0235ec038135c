//! `plan`: which of the captured shapes are worth tuning, and what that will bring.

use serde::{Deserialize, Serialize};

use super::{Captured, Done};
use crate::engine::trouble::{Class, Trouble};
use crate::engine::{Engine, read_json, write_json};
use camino::Utf8Path;

use crate::plan::document::Verdict;
use crate::plan::model::{self, Parallel, Prediction};
use crate::plan::{PlanInput, make};
use crate::platform::Inspection;
use crate::shape::{Op, Shape};
use crate::stage::Stage;
use crate::table::shapes;

/// What later stages read of the plan's document.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Planned {
    tune: Vec<PlannedRow>,
    folded: Vec<serde_json::Value>,
    served: Vec<serde_json::Value>,
    gpu_seconds: f64,
    hit_rate: HitRates,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct PlannedRow {
    op: Op,
    #[serde(rename = "M")]
    m: u32,
    #[serde(rename = "N")]
    n: u32,
    #[serde(rename = "K")]
    k: u32,
    dtype: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct HitRates {
    before: HitRate,
    after: HitRate,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct HitRate {
    calls: f64,
    time: f64,
}

impl Planned {
    /// Shapes to tune, most valuable first.
    pub(crate) fn shapes(&self) -> Vec<Shape> {
        self.tune
            .iter()
            .map(|row| Shape {
                op: row.op,
                m: row.m,
                n: row.n,
                k: row.k,
                dtype: row.dtype.clone(),
            })
            .collect()
    }

    /// The plan in the report's words.
    pub(crate) fn summary(&self) -> crate::report::model::PlanSummary {
        crate::report::model::PlanSummary {
            to_tune: self.tune.len(),
            folded: self.folded.len(),
            served: self.served.len(),
            estimated_s: Some(self.gpu_seconds),
            ..Default::default()
        }
    }

    /// Predicted hit rates, for the report.
    pub(crate) fn hit_rates(&self) -> Vec<crate::report::model::HitRate> {
        let rate = |of: &str, share: fn(&HitRate) -> f64| crate::report::model::HitRate {
            of: of.to_owned(),
            before: share(&self.hit_rate.before),
            after: share(&self.hit_rate.after),
        };
        vec![
            rate("calls, predicted", |rate| rate.calls),
            rate("GEMM time, predicted", |rate| rate.time),
        ]
    }
}

pub(super) fn plan(engine: &mut Engine<'_>) -> Result<Done, Trouble> {
    let inspection: Inspection = read_json(&engine.run.stage(Stage::Inspect.name()))?;
    let bytes = fs_err::read(engine.run.shapes()).map_err(|error| Trouble::file(&error))?;
    let captured =
        shapes::read(&bytes, None).map_err(|error| Trouble::caused(Class::NotResumable, &error))?;
    let told: Captured = read_json(&engine.run.stage(Stage::Capture.name()))?;
    let terms = engine.platform.plan_terms(&inspection)?;
    let prediction = prediction(engine);
    let plan = make(&PlanInput {
        op: inspection.op,
        shapes: &captured,
        tables: &terms.tables,
        configs: &terms.configs,
        model: prediction.as_ref(),
        capture: &told.graphs,
        chunk: told.chunk,
        revision: terms.revision,
        gfx: &inspection.gfx,
        cu_num: inspection.cu_num,
        device: &terms.device,
        fold: terms.fold,
        refine: false,
        cost: &terms.cost,
        budget_s: None,
    })
    .map_err(|error| Trouble::caused(Class::NoShapes, &error))?;
    write_json(&engine.run.plan(), &plan)?;
    let summary = format!(
        "{} rows to tune for {} shapes; hit rate by calls {:.0} % now, {:.0} % then",
        plan.tune.len(),
        plan.seen,
        plan.hit_rate.before.calls * 100.0,
        plan.hit_rate.after.calls * 100.0
    );
    Ok(Done {
        summary,
        nothing_to_gain: (plan.verdict == Verdict::Nothing).then_some(plan.reason),
    })
}

/// What the model's `config.json` says, where the configuration names a model that lies here: the plan
/// explains how it differs from what was seen.
pub(super) fn prediction(engine: &mut Engine<'_>) -> Option<Prediction> {
    let workload = &engine.config.workload;
    let folder = Utf8Path::new(workload.model.as_deref()?);
    let bytes = fs_err::read(folder.join("config.json")).ok()?;
    match model::predict(&bytes, &Parallel::tp(workload.tp)) {
        Ok(prediction) if prediction.rejected.is_empty() => Some(prediction),
        Ok(prediction) => {
            let why = prediction.rejected.join("; ");
            engine.remark(format!(
                "no shapes predicted from the model's config: {why}"
            ));
            None
        }
        Err(error) => {
            engine.remark(format!(
                "no shapes predicted from the model's config: {error}"
            ));
            None
        }
    }
}
