//! `plan`: which of the captured shapes are worth tuning, and what that will bring.

use std::collections::BTreeMap;
use std::io;

use serde::{Deserialize, Serialize};

use super::{Captured, Done};
use crate::engine::{Engine, read_json, write_json};
use crate::plan::document::Verdict;
use crate::plan::model::{self, Parallel, Prediction};
use crate::plan::{PlanInput, make};
use crate::run::error::{Error, ErrorKind};
use crate::run::stage::Stage;
use crate::shape::{Op, Shape};
use crate::table::shapes;
use crate::workload::config::Config;

/// What later stages read of the plan's document.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Planned {
    tune: Vec<PlannedRow>,
    folded: Vec<serde_json::Value>,
    served: Vec<serde_json::Value>,
    gpu_seconds: f64,
    hit_rate: HitRates,
    model: Option<PlannedModel>,
    #[serde(default)]
    difference: Vec<String>,
    #[serde(default)]
    notes: Vec<String>,
}

/// What the model's `config.json` predicted.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct PlannedModel {
    layers: Vec<PlannedLayer>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct PlannedLayer {
    #[serde(rename = "N")]
    n: u32,
    #[serde(rename = "K")]
    k: u32,
    count: u32,
    present: bool,
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

    /// The (N, K) that the model's config predicted, each once, with the calls of a forward pass; none where nothing
    /// was predicted.
    pub(crate) fn weights(&self) -> Option<Vec<(u32, u32, u32)>> {
        let layers = &self.model.as_ref()?.layers;
        let mut weights = BTreeMap::<(u32, u32), u32>::new();
        for layer in layers.iter().filter(|layer| layer.present) {
            let count = weights.entry((layer.n, layer.k)).or_default();
            *count = count.saturating_add(layer.count);
        }
        let each = weights.into_iter().map(|((n, k), count)| (n, k, count));
        Some(each.collect())
    }

    /// What a reader of the report has to know of the plan.
    pub(crate) fn remarks(&self) -> impl Iterator<Item = &String> {
        self.difference.iter().chain(&self.notes)
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

pub(super) fn plan(engine: &mut Engine<'_>) -> Result<Done, Error> {
    let inspection = super::inspection(&engine.run)?;
    let bytes =
        crate::store::file::read(&engine.run.shapes()).map_err(|error| Error::file(&error))?;
    let captured = shapes::read(&bytes, None)
        .map_err(|error| Error::caused(ErrorKind::NotResumable, &error))?;
    let told: Captured = read_json(&engine.run.stage(Stage::Capture.name()))?;
    let terms = engine.platform.plan_terms(&inspection)?;
    let (prediction, unpredicted) = match prediction(&engine.config) {
        Ok(prediction) => (prediction, None),
        Err(why) => (None, Some(format!("no shapes or gains predicted: {why}"))),
    };
    let mut plan = make(&PlanInput {
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
    .map_err(|error| Error::caused(ErrorKind::NoShapes, &error))?;
    plan.notes.extend(unpredicted);
    write_json(&engine.run.plan(), &plan)?;
    for remark in plan.difference.iter().chain(&plan.notes) {
        engine.remark(remark.clone());
    }
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

/// What the model's `config.json` says, so that the plan can explain how it differs from what was seen; nothing where no
/// model is named, and the reason where nothing can be said of one that is.
fn prediction(config: &Config) -> Result<Option<Prediction>, String> {
    let Some(path) = config
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
    let prediction = model::predict(&bytes, &Parallel::tp(config.workload.tp))
        .map_err(|error| format!("failed to {error} (`{path}`)"))?;
    if prediction.rejected.is_empty() {
        Ok(Some(prediction))
    } else {
        Err(format!("{} (`{path}`)", prediction.rejected.join("; ")))
    }
}
