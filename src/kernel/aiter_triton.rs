//! SGLang on ROCm with block-FP8 linears that run aiter's Triton GEMM: rows of aiter's JSON files, put in place by
//! environment and overlay. Nothing is written into aiter's tree.
//!
//! That this GEMM serves is not assumed but observed: the capture records which function computed each shape.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};

use super::placed::{self, Check, Placed, Rows, tile_name};
use super::{gone, raced, tune_error};
use crate::engine::ports::{Deployed, Kernels, PlanTerms, TuneOrder};
use crate::log::summary::LogSummary;
use crate::overlay::OverlayOptions;
use crate::plan::cost::Cost;
use crate::plan::fold::Fold;
use crate::probe::found::Probed;
use crate::problem::{Op, Shape};
use crate::run::documents::{Deployment, Engagement, Inspection, Tuned};
use crate::run::error::{Error, ErrorKind};
use crate::server::sglang::Site;
use crate::store::run_dir::RunDir;
use crate::table::aiter_triton::{Configs, FileName, Rules, refusal};
use crate::table::revision::Revision;
use crate::table::roofline::Device as Rates;
use crate::tune::TuneEvent;
use crate::tune::backends::aiter_triton::AiterTriton as Candidates;
use crate::tune::ends;
use crate::tune::tuned::{TunedRows, TunedTable};
use crate::workload::config::Config;
use crate::workload::env::Environment;

/// Compares aiter's GEMM with a reference.
const CHECK: Check = Check {
    program: include_str!("../../python/probe/aiter_triton_check.py"),
    name: "numerics check",
    longest: Duration::from_secs(600),
};

/// Prefix of the functions of aiter's Triton GEMMs in the record of what computed a shape.
const TRITON: &str = "aiter.ops.triton.";

/// How the tree looks up rows, in the identity of a run.
const BOUND: &str = "smallest bound of a key";

/// The kernel family of aiter's Triton GEMM under SGLang on ROCm.
#[derive(Debug)]
pub(crate) struct AiterTriton {
    site: Arc<Site>,
    /// The aiter tree that the configuration names.
    meant: Option<Utf8PathBuf>,
}

impl AiterTriton {
    pub(crate) fn new(site: Arc<Site>, config: &Config) -> Self {
        Self {
            site,
            meant: config.backend.aiter_root.clone(),
        }
    }
}

impl Kernels for AiterTriton {
    fn inspect(&self) -> Result<Inspection, Error> {
        let environment =
            |error: &dyn std::error::Error| Error::caused(ErrorKind::Environment, error);
        let answer = self.site.look()?;
        let package = self.site.sglang(&answer)?;
        let aiter = answer.folder("aiter").map_err(|error| {
            environment(&error).hint("`gemmtune doctor` says what the interpreter imports")
        })?;
        if let Some(root) = &self.meant {
            answer
                .imports_from("aiter", root)
                .map_err(|error| environment(&error))?;
        }
        let device = raced::device(&self.site, &Candidates::default())?;
        let rules = Candidates::rules(&device);
        let mut identity = raced::identity(&device);
        let bounds = rules.bounds();
        let bound = bounds.first().map_or_else(String::new, u32::to_string);
        identity.insert(BOUND.to_owned(), bound);
        Ok(Inspection {
            also: Vec::new(),
            dense_left: None,
            identity,
            op: Op::Blockscale,
            gfx: device.arch.clone(),
            cu_num: device.cu_num,
            path: format!(
                "aiter's Triton GEMM in {aiter}, called by SGLang in {}",
                package.folder
            ),
            linear: None,
            table: (!device.shipped.is_empty()).then(|| Utf8PathBuf::from(&device.shipped)),
            remarks: self.site.remarks(&device),
        })
    }

    fn seen(&self, inspection: &Inspection, log_summary: &LogSummary) -> Result<Inspection, Error> {
        let mut on_triton: BTreeSet<(u32, u32)> = BTreeSet::new();
        let mut elsewhere: BTreeMap<(u32, u32), String> = BTreeMap::new();
        for (&(n, k, _), targets) in &log_summary.kernels {
            for target in targets.keys() {
                if target.starts_with(TRITON) {
                    on_triton.insert((n, k));
                } else {
                    elsewhere.insert((n, k), target.clone());
                }
            }
        }
        if on_triton.is_empty() {
            let what = match elsewhere.values().next() {
                Some(target) => format!(
                    "the block-FP8 layers are computed by {target}, not by aiter's Triton GEMM"
                ),
                None => {
                    "the instrumented server called no GEMM of aiter's for block FP8".to_owned()
                }
            };
            return Err(Error::new(ErrorKind::NoShapes, what)
                .hint("`backend.kind = \"aiter\"` tunes aiter's CK kernels; `gemmtune trace` says which path a tree takes"));
        }
        let mut seen = inspection.clone();
        for ((n, k), target) in elsewhere {
            let also = if on_triton.contains(&(n, k)) {
                "also "
            } else {
                ""
            };
            seen.remarks.push(format!(
                "GEMMs with N = {n}, K = {k} are {also}computed by {target}, which reads none of these files"
            ));
        }
        Ok(seen)
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
            configs: Vec::new(),
            revision: match rules(inspection) {
                Rules::Bounds { from: 1 } => Revision::H,
                _ => Revision::P,
            },
            device: Rates::of_key(&inspection.gfx, inspection.cu_num)
                .unwrap_or_else(|| Rates::unknown(name, inspection.cu_num)),
            fold: Fold::Bucket,
            cost: Cost::triton_race(),
        })
    }

    fn tune(
        &self,
        order: &TuneOrder<'_>,
        observer: &mut dyn FnMut(&TuneEvent),
    ) -> Result<Tuned, Error> {
        let backend = Candidates::default();
        let (shapes, folder) = (order.shapes.to_vec(), order.folder.to_owned());
        let request = raced::request(&self.site, &backend, shapes, folder, Some(order.budget))?;
        ends::run(&request, observer, order.interrupt)
            .map(Tuned::from)
            .map_err(|error| tune_error(&error))
    }

    fn take(&self, inspection: &Inspection, table: &Utf8Path) -> Result<Vec<TunedTable>, Error> {
        let wanted = |name: &str| {
            let is_ours = |read: FileName| read.gfx == inspection.gfx && !read.preshuffled;
            name.parse().is_ok_and(is_ours)
        };
        let taken = placed::take(table, wanted, |file, bytes| {
            let failed = |error| Error::to(ErrorKind::Usage, &format!("use `{file}`"), error);
            let read = Configs::read(bytes).map_err(failed)?;
            usable(&read, file.as_str(), rules(inspection), ErrorKind::Usage)?;
            Ok(TunedRows::ByBucket(read.into()))
        })?;
        if taken.is_empty() {
            let why = table
                .file_name()
                .and_then(refusal)
                .map_or_else(String::new, |why| format!(": {why}"));
            return Err(Error::new(
                ErrorKind::Usage,
                format!(
                    "`{table}` holds no file that the block-scaled Triton GEMM would look for on {}{why}",
                    inspection.gfx
                ),
            )
            .hint(format!(
                "they have names such as `{}`",
                file_name(&inspection.gfx, 4096, 7168)
            )));
        }
        Ok(taken)
    }

    fn deploy(
        &self,
        run: &RunDir,
        inspection: &Inspection,
        tuned: &Tuned,
    ) -> Result<Deployment, Error> {
        for table in &tuned.tables {
            let TunedRows::ByBucket(rows) = &table.rows else {
                continue;
            };
            let bug = |error| Error::to(ErrorKind::Bug, &format!("use `{}`", table.name), error);
            let configs = Configs::of(rows.clone()).map_err(bug)?;
            usable(&configs, &table.name, rules(inspection), ErrorKind::Bug)?;
        }
        let rows = tuned.tables.iter().map(TunedTable::count).sum();
        let placed = Placed::write(run, "", &tuned.tables)?;
        let options = in_place(&placed.folder);
        let they = "put it in front of aiter's own files";
        placed.deployment(&self.site, run, &options, rows, they)
    }

    fn undo(&self, _run: &RunDir, deployment: &Deployment) -> Result<(), Error> {
        gone(fs_err::remove_dir_all(&deployment.table))
    }

    fn rows(
        &self,
        inspection: &Inspection,
        deployment: &Deployment,
        shapes: &[Shape],
    ) -> Result<Vec<Option<String>>, Error> {
        Ok(Tables::of(inspection, deployment).rows(shapes))
    }

    fn engagement(
        &self,
        deployed: &Deployed<'_>,
        log_summary: &LogSummary,
    ) -> Result<Engagement, Error> {
        let tables = Tables::of(deployed.inspection, deployed.deployment);
        Ok(tables.engagement(log_summary))
    }

    fn probe(&self, deployed: &Deployed<'_>, shapes: &[Shape]) -> Result<Probed, Error> {
        let about = ("aiter", deployed.inspection.gfx.as_str().into());
        Tables::of(deployed.inspection, deployed.deployment)
            .probed(&CHECK, &self.site, deployed, about, shapes)
    }

    fn kernel_name(&self, candidate: &serde_json::Value) -> String {
        tile_name(candidate)
    }
}

/// How the inspected tree looks up rows.
fn rules(inspection: &Inspection) -> Rules {
    let bound = inspection.identity.get(BOUND);
    let from = bound.and_then(|bound| bound.parse().ok()).unwrap_or(1);
    Rules::Bounds { from }
}

/// The name of the file in which aiter looks up a weight.
fn file_name(gfx: &str, n: u32, k: u32) -> String {
    let name = FileName {
        gfx: gfx.to_owned(),
        preshuffled: false,
        weight: Some((n, k)),
    };
    name.to_string()
}

/// Refuses a file at which aiter would stop.
fn usable(configs: &Configs, name: &str, rules: Rules, kind: ErrorKind) -> Result<(), Error> {
    match configs.faults(rules).iter().find(|fault| fault.is_fatal()) {
        None => Ok(()),
        Some(fault) => Err(Error::new(kind, format!("use `{name}`: {fault}"))),
    }
}

/// The overlay options that put the files of `folder` in place.
fn in_place(folder: &Utf8Path) -> OverlayOptions {
    OverlayOptions {
        aiter_triton: Some(folder.to_owned()),
        ..OverlayOptions::default()
    }
}

/// The deployed files by weight.
struct Tables {
    folder: Utf8PathBuf,
    gfx: String,
    rules: Rules,
}

impl Tables {
    fn of(inspection: &Inspection, deployment: &Deployment) -> Self {
        Self {
            folder: deployment.table.clone(),
            gfx: inspection.gfx.clone(),
            rules: rules(inspection),
        }
    }
}

impl Rows for Tables {
    fn row(&self, n: u32, k: u32, m: u32) -> Option<serde_json::Value> {
        let bytes = fs_err::read(self.folder.join(file_name(&self.gfx, n, k))).ok()?;
        let configs = Configs::read(&bytes).ok()?;
        let (_, row) = configs.find(self.rules, m)?;
        Some(serde_json::Value::Object(row.clone()))
    }

    fn without(&self) -> &'static str {
        "no row"
    }
}
