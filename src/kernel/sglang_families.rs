//! SGLang on NVIDIA with whatever serves its block-FP8 linears today, and a route between kernel families beneath
//! them.
//!
//! Both arms start the same command; the tuned one has the overlay, which sends each GEMM in the route to the family
//! that won it. Nothing is written into SGLang's tree.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;

use super::placed::{self, Check, DENSE_LIMIT, Placed, refuse_other};
use super::sglang_moe::or_its_experts;
use super::sglang_triton::tables_in;
use super::{gone, raced};
use crate::engine::ports::{Deployed, Kernels, PlanTerms, TuneOrder};
use crate::log::summary::LogSummary;
use crate::overlay::OverlayOptions;
use crate::plan::cost::Cost;
use crate::plan::fold::Fold;
use crate::probe::found::{LayoutCheck, Probed};
use crate::problem::{Op, Shape};
use crate::run::documents::{Deployment, Engagement, Inspection, Tuned};
use crate::run::error::{Error, ErrorKind};
use crate::server::sglang::Site;
use crate::store::run_dir::RunDir;
use crate::table::revision::Revision;
use crate::table::roofline::Device as Rates;
use crate::tune::TuneEvent;
use crate::tune::backends::families::route::{Route, RouteRow};
use crate::tune::backends::families::{DEFAULT, Families, ROUTE, TRITON, has};
use crate::tune::backends::sglang_triton::worker_files;
use crate::tune::tuned::{TunedRows, TunedTable};
use crate::workload::env::Environment;

/// The linears, by dispatch identity, that a route can be used with, from SGLang 0.5.5 to 0.5.23. The first one falls
/// back to the second for shapes that DeepGEMM does not support.
const LINEARS: [&str; 2] = [
    "deepgemm_w8a8_block_fp8_linear_with_fallback",
    TRITON_LINEAR,
];
const TRITON_LINEAR: &str = "triton_w8a8_block_fp8_linear";

/// Architectures on which the scales of SGLang's linears are float32; on sm_100 and sm_103 they are packed powers of
/// two (UE8M0).
const ONLY_FLOAT_SCALES: [&str; 3] = ["sm_89", "sm_90", "sm_120"];

/// Prefix that the overlay's record has for a GEMM that a family computed.
const OURS: &str = "gemmtune:";

/// Compares SGLang's linear with a reference; DeepGEMM compiles a kernel in 3 to 7 s.
const CHECK: Check = Check {
    program: include_str!("../../python/probe/route_check.py"),
    name: "numerics check",
    longest: Duration::from_secs(600),
};

/// SGLang on NVIDIA, and a route between kernel families.
#[derive(Debug)]
pub(crate) struct SglangFamilies {
    site: Arc<Site>,
}

impl SglangFamilies {
    pub(crate) fn new(site: Arc<Site>) -> Self {
        Self { site }
    }
}

/// Whether the server's linear is the Triton one.
fn serves_triton(inspection: &Inspection) -> bool {
    match inspection.linear.as_deref() {
        Some(linear) => linear == TRITON_LINEAR,
        // Not captured yet: SGLang uses DeepGEMM where it is installed.
        None => !inspection.identity.contains_key(DEFAULT),
    }
}

fn route_of(deployment: &Deployment) -> Result<Route, Error> {
    let bytes = fs_err::read(&deployment.table).map_err(|error| Error::file(&error))?;
    Route::read(&bytes).map_err(|why| {
        Error::new(
            ErrorKind::NotResumable,
            format!(
                "the deployed route {} cannot be read: {why}",
                deployment.table
            ),
        )
    })
}

/// The overlay options that put the route in place.
fn in_place(route: &Utf8Path) -> OverlayOptions {
    OverlayOptions {
        route: Some(route.to_owned()),
        ..OverlayOptions::default()
    }
}

/// Refuses a route that was raced on a device other than the inspected one.
fn refuse_foreign(
    route: &Route,
    inspection: &Inspection,
    kind: ErrorKind,
    which: &Utf8Path,
) -> Result<(), Error> {
    let name = inspection.device_name();
    match route.of_another_device(name, inspection.cu_num) {
        None => Ok(()),
        Some(why) => Err(Error::new(
            kind,
            format!("the route `{which}` is not for this device: {why}"),
        )
        .hint("`gemmtune tune --backend sglang-families` races one here")),
    }
}

impl Kernels for SglangFamilies {
    fn inspect(&self) -> Result<Inspection, Error> {
        let answer = self.site.look()?;
        let package = self.site.sglang(&answer)?;
        let device = raced::device(&self.site, &Families::default())?;
        if ONLY_FLOAT_SCALES.iter().all(|arch| device.arch != *arch) {
            return Err(Error::new(
                ErrorKind::Environment,
                format!("no route can be tuned on {}: SGLang hands its kernels other scales there", device.arch),
            )
            .hint("`backend.kind = \"sglang-triton\"` tunes tables for a server with `--fp8-gemm-backend triton`"));
        }
        let families: Vec<&str> = device
            .capabilities
            .iter()
            .filter_map(|capability| capability.strip_prefix("family:"))
            .filter(|family| *family != DEFAULT)
            .chain([TRITON])
            .collect();
        let today = if has(&device, DEFAULT) {
            "DeepGEMM, which SGLang takes here unless a flag says otherwise"
        } else {
            "SGLang's Triton kernel, for DeepGEMM cannot be imported"
        };
        Ok(Inspection {
            also: Vec::new(),
            dense_left: None,
            identity: raced::identity(&device),
            op: Op::TritonBlockFp8,
            gfx: device.arch.clone(),
            cu_num: device.cu_num,
            path: format!(
                "{today}, in {}; against it race {}",
                package.folder,
                families.join(", ")
            ),
            linear: None,
            table: (!device.shipped.is_empty()).then(|| Utf8PathBuf::from(&device.shipped)),
            remarks: self.site.remarks(&device),
        })
    }

    fn seen(&self, inspection: &Inspection, log_summary: &LogSummary) -> Result<Inspection, Error> {
        let serves = |linear: &&str| {
            let named = |identity: &String| identity.starts_with(*linear);
            log_summary.dispatch.keys().any(named)
        };
        if let Some(linear) = LINEARS.into_iter().find(|linear| serves(linear)) {
            return Ok(Inspection {
                linear: Some(linear.to_owned()),
                ..inspection.clone()
            });
        }
        let refusal = match log_summary.dispatch.keys().next() {
            Some(identity) => Error::new(
                ErrorKind::Environment,
                format!(
                    "the block-FP8 layers are served by {identity}, and a route can stand below DeepGEMM's linear or the Triton one"
                ),
            )
            .hint("take `--fp8-gemm-backend` out of the server command, or set it to deep_gemm or triton"),
            None => Error::new(
                ErrorKind::NoShapes,
                "the instrumented server never said which implementation serves its block-FP8 layers",
            )
            .hint("is the model quantised to FP8 in blocks?"),
        };
        Err(or_its_experts(refusal, log_summary))
    }

    fn engagement_env(
        &self,
        run: &RunDir,
        deployment: &Deployment,
        records: &Utf8Path,
    ) -> Result<Environment, Error> {
        placed::recording(&self.site, run, in_place(&deployment.table), records)
    }

    fn plan_terms(&self, inspection: &Inspection) -> Result<PlanTerms, Error> {
        let name = inspection.device_name();
        Ok(PlanTerms {
            tables: Vec::new(),
            // DeepGEMM reads no table, so none of SGLang's applies.
            configs: match &inspection.table {
                Some(folder) if serves_triton(inspection) => tables_in(folder, name)?,
                _ => Vec::new(),
            },
            revision: Revision::H,
            device: Rates::of_name(name).unwrap_or_else(|| Rates::unknown(name, inspection.cu_num)),
            // A row of a route spans the M between two raced ones; the race decides which M it needs.
            fold: Fold::Exact,
            cost: Cost::family_race(),
        })
    }

    fn tune(
        &self,
        order: &TuneOrder<'_>,
        observer: &mut dyn FnMut(&TuneEvent),
    ) -> Result<Tuned, Error> {
        let backend = Families {
            serves_triton: serves_triton(order.inspection),
            ..Families::default()
        };
        let place = (order.folder.to_owned(), order.budget);
        let (shapes, interrupt) = (order.shapes.to_vec(), order.interrupt);
        raced::race(&self.site, &backend, shapes, place, observer, interrupt).map(Tuned::from)
    }

    fn take(&self, inspection: &Inspection, table: &Utf8Path) -> Result<Vec<TunedTable>, Error> {
        let bytes = fs_err::read(table).map_err(|error| Error::file(&error))?;
        let route = Route::read(&bytes).map_err(|why| {
            Error::new(ErrorKind::Usage, format!("`{table}` is no route: {why}"))
                .hint("`gemmtune tune --backend sglang-families` writes a `route.json`")
        })?;
        refuse_foreign(&route, inspection, ErrorKind::Usage, table)?;
        Ok(vec![TunedTable {
            name: ROUTE.to_owned(),
            rows: TunedRows::Route(route),
        }])
    }

    fn deploy(
        &self,
        run: &RunDir,
        inspection: &Inspection,
        tuned: &Tuned,
    ) -> Result<Deployment, Error> {
        let route = tuned.tables.iter().find_map(|table| match &table.rows {
            TunedRows::Route(route) => Some(route),
            _ => None,
        });
        let Some(route) = route else {
            return Err(Error::new(ErrorKind::Bug, "the race wrote no route"));
        };
        refuse_foreign(
            route,
            inspection,
            ErrorKind::NotResumable,
            Utf8Path::new(ROUTE),
        )?;
        let placed = Placed::write(run, "", &tuned.tables)?;
        let table = placed.folder.join(ROUTE);
        let options = in_place(&table);
        let they = "put the route below SGLang's linears";
        let variables = placed.in_front(&self.site, run, &options, they)?;
        // The raced kernels are those that serve.
        worker_files::write(&run.overlay()).map_err(|error| Error::file(&error))?;
        Ok(Deployment {
            notes: vec![in_words(route)],
            ..Deployment::by_overlay(table, placed.digest, route.rows.len(), variables)
        })
    }

    fn undo(&self, _run: &RunDir, deployment: &Deployment) -> Result<(), Error> {
        match deployment.table.parent() {
            Some(folder) => gone(fs_err::remove_dir_all(folder)),
            None => Ok(()),
        }
    }

    fn rows(
        &self,
        _inspection: &Inspection,
        deployment: &Deployment,
        shapes: &[Shape],
    ) -> Result<Vec<Option<String>>, Error> {
        let route = route_of(deployment)?;
        let name = |shape: &Shape| Some(route.row(shape.n, shape.k, shape.m)?.in_words());
        Ok(shapes.iter().map(name).collect())
    }

    fn engagement(
        &self,
        deployed: &Deployed<'_>,
        log_summary: &LogSummary,
    ) -> Result<Engagement, Error> {
        Ok(engagement_of(&route_of(deployed.deployment)?, log_summary))
    }

    fn probe(&self, deployed: &Deployed<'_>, shapes: &[Shape]) -> Result<Probed, Error> {
        let route = route_of(deployed.deployment)?;
        let shapes = with_ends(&route, shapes);
        let answers = self.check(deployed, &shapes)?;
        let other = answers.iter().find_map(|answer| answer.not_of(&route));
        refuse_other("layout check", other)?;
        Ok(Probed {
            layout: answers.into_iter().map(Checked::into_check).collect(),
            ..Probed::default()
        })
    }

    fn kernel_name(&self, candidate: &serde_json::Value) -> String {
        let Some(settings) = candidate.as_object() else {
            return candidate.to_string();
        };
        let family = candidate["family"].as_str().unwrap_or(TRITON);
        let settings: Vec<String> = settings
            .iter()
            .filter(|(name, _)| *name != "family")
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        if settings.is_empty() {
            family.to_owned()
        } else {
            format!("{family} ({})", settings.join(", "))
        }
    }
}

impl SglangFamilies {
    /// The numbers of the server's own linear on `shapes`, with the route in effect.
    fn check(&self, deployed: &Deployed<'_>, shapes: &[Shape]) -> Result<Vec<Checked>, Error> {
        let records = tempfile::tempdir().map_err(|error| Error::file(&error))?;
        let mut env = deployed.deployment.environment();
        let here = [
            (
                "GEMMTUNE_RECORD_DIR",
                records.path().to_string_lossy().into_owned(),
            ),
            // Otherwise a linear that DeepGEMM serves compiles for minutes at its first call.
            ("SGLANG_JIT_DEEPGEMM_PRECOMPILE", "0".to_owned()),
        ];
        env.extend(here.map(|(name, value)| (name.to_owned(), Some(value))));
        let linear = deployed.inspection.linear.as_deref().unwrap_or(LINEARS[0]);
        let about = ("linear", linear.into());
        CHECK.ask(&self.site, env, about, shapes, deployed.interrupt)
    }
}

/// `shapes`, and the first and last M that each row of the route serves, so that every row is tried.
fn with_ends(route: &Route, shapes: &[Shape]) -> Vec<Shape> {
    let mut all: std::collections::BTreeSet<Shape> = shapes.iter().cloned().collect();
    for row in &route.rows {
        let served = || (row.min_m..=row.max_m).filter(|&m| row.takes(m));
        for m in served().next().into_iter().chain(served().next_back()) {
            all.insert(Shape {
                op: Op::TritonBlockFp8,
                m,
                n: row.n,
                k: row.k,
                dtype: shapes
                    .first()
                    .map_or_else(String::new, |one| one.dtype.clone()),
            });
        }
    }
    all.into_iter().collect()
}

/// The route as a sentence.
fn in_words(route: &Route) -> String {
    let mut rows: BTreeMap<&str, usize> = BTreeMap::new();
    for row in &route.rows {
        *rows.entry(&row.family).or_default() += 1;
    }
    let named: Vec<String> = rows
        .iter()
        .map(|(family, rows)| format!("{family} in {rows}"))
        .collect();
    format!(
        "the route gives ranges of M to {}; every other GEMM stays where SGLang sends it",
        named.join(", ")
    )
}

/// What the overlay's record of each GEMM that a server ran tells about the route. A GEMM that something else
/// computed even once counts as missed, because that call may be in a captured graph.
fn engagement_of(route: &Route, log_summary: &LogSummary) -> Engagement {
    let mut engagement = Engagement::default();
    let mut used: Vec<&RouteRow> = Vec::new();
    for (&(n, k, m), targets) in &log_summary.kernels {
        let shape = format!("M={m} N={n} K={k}");
        let Some(row) = route.row(n, k, m) else {
            engagement.unplanned.push(shape);
            continue;
        };
        used.push(row);
        let meant = format!("{OURS}{}", row.family);
        let asked = engagement.families.entry(row.family.clone()).or_default();
        match targets.keys().find(|target| **target != meant) {
            None => {
                asked.hit += 1;
                engagement.hit += 1;
            }
            Some(other) => {
                asked.missed += 1;
                let list = if other.starts_with(OURS) {
                    &mut engagement.other_kernel
                } else {
                    &mut engagement.missed
                };
                list.push(format!("{shape}: {other} instead of {meant}"));
            }
        }
    }
    engagement.unseen = route
        .rows
        .iter()
        .filter(|row| !used.contains(row))
        .map(RouteRow::in_words)
        .collect();
    engagement
}

/// One answer of the check.
#[derive(Debug, Deserialize)]
struct Checked {
    #[serde(rename = "M")]
    m: u32,
    #[serde(rename = "N")]
    n: u32,
    #[serde(rename = "K")]
    k: u32,
    relative_error: Option<f64>,
    computed_by: Vec<String>,
    failure: Option<String>,
}

impl Checked {
    /// If something other than the route's family computed this shape: a description of that, because the check is
    /// then about another kernel.
    fn not_of(&self, route: &Route) -> Option<String> {
        let row = route.row(self.n, self.k, self.m)?;
        let meant = format!("{OURS}{}", row.family);
        if self.failure.is_some() || self.computed_by == [meant.clone()] {
            return None;
        }
        let found = match self.computed_by.as_slice() {
            [] => "something that the overlay did not see".to_owned(),
            several => several.join(" and "),
        };
        Some(format!(
            "M={} N={} K={} was computed by {found}, not by {meant}",
            self.m, self.n, self.k
        ))
    }

    fn into_check(self) -> LayoutCheck {
        let kernel = match (self.failure, self.computed_by.as_slice()) {
            (Some(failure), _) => failure,
            (None, []) => "a kernel that was not named".to_owned(),
            (None, several) => several.join(" and "),
        };
        LayoutCheck {
            m: self.m,
            n: self.n,
            k: self.k,
            kernel,
            relative_error: self.relative_error,
            limit: DENSE_LIMIT,
        }
    }
}

#[cfg(test)]
#[path = "sglang_families_tests.rs"]
mod tests;
