//! SGLang on ROCm whose block-FP8 linears run aiter's Triton GEMM: rows of aiter's JSON files, put in place by environment and
//! overlay. Nothing is written into aiter's tree.
//!
//! That it is this GEMM which serves is not expected but seen: the capture records which function computed each shape.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;
use serde_json::json;

use super::site::Site;
use super::{gone, raced, tune_error};
use crate::engine::ports::{Deployed, Kernels, PlanTerms, TuneOrder};
use crate::log::summary::LogSummary;
use crate::overlay::OverlayOptions;
use crate::plan::cost::Cost;
use crate::plan::fold::Fold;
use crate::probe::found::{LayoutCheck, Probed};
use crate::problem::{Op, Shape};
use crate::proc::run as command;
use crate::run::documents::{Deployment, Engagement, Inspection, Tuned};
use crate::run::error::{Error, ErrorKind};
use crate::store::digest::short as digest;
use crate::store::file::{entries, write_atomic};
use crate::store::run_dir::RunDir;
use crate::table::aiter_triton::{Configs, FileName, Rules};
use crate::table::revision::Revision;
use crate::table::roofline::Device as Rates;
use crate::table::shapes::CountedShape;
use crate::tune::TuneEvent;
use crate::tune::backends::aiter_triton::AiterTriton as Candidates;
use crate::tune::backends::aiter_triton::files::representatives;
use crate::workload::config::Config;
use crate::workload::env::Environment;

/// Compares aiter's GEMM with a reference, in a process of its own.
const CHECK: &str = include_str!("../../python/probe/aiter_triton_check.py");

/// What every line of [`CHECK`] starts with.
const CHECK_TAG: &str = "gemmtune-check: ";

/// Importing aiter from a network file system takes minutes; the checks themselves seconds.
const CHECK_LIMIT: Duration = Duration::from_secs(600);

/// Largest accepted error: rounding to bfloat16 costs about 0.0017 in norm; scales in the wrong place cost 0.3 and more.
const LIMIT: f64 = 0.01;

/// What the functions of aiter's Triton GEMMs are named by, in the record of what computed a shape.
const TRITON: &str = "aiter.ops.triton.";

/// How the tree at hand looks rows up, in the identity of a run.
const BOUND: &str = "smallest bound of a key";

/// SGLang on ROCm, its block-FP8 linears on aiter's Triton GEMM.
#[derive(Debug)]
pub(super) struct AiterTriton {
    site: Arc<Site>,
    /// The aiter tree that the configuration means.
    meant: Option<Utf8PathBuf>,
}

impl AiterTriton {
    pub(super) fn new(site: Arc<Site>, config: &Config) -> Self {
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
        let mut identity = BTreeMap::from([
            ("device".to_owned(), device.name.clone()),
            ("arch".to_owned(), device.arch.clone()),
            ("cu_num".to_owned(), device.cu_num.to_string()),
            ("kernel".to_owned(), device.kernel_hash.clone()),
            (
                BOUND.to_owned(),
                rules
                    .bounds()
                    .first()
                    .map_or_else(String::new, u32::to_string),
            ),
        ]);
        identity.extend(device.versions.clone());
        Ok(Inspection {
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
        let options = OverlayOptions {
            records: Some(records.to_owned()),
            aiter_triton: Some(deployment.table.clone()),
            ..OverlayOptions::default()
        };
        self.site.overlay(run, &options)
    }

    fn plan_terms(&self, inspection: &Inspection) -> Result<PlanTerms, Error> {
        let name = inspection.identity.get("device");
        let name = name.map_or("", String::as_str);
        Ok(PlanTerms {
            tables: Vec::new(),
            configs: Vec::new(),
            revision: Revision::H,
            device: Rates::of_key(&inspection.gfx, inspection.cu_num)
                .unwrap_or_else(|| Rates::unknown(name, inspection.cu_num)),
            // One row serves a bucket of M; of each bucket one M is raced.
            fold: Fold::Exact,
            cost: Cost::triton_race(),
        })
    }

    fn tune(
        &self,
        order: &TuneOrder<'_>,
        observer: &mut dyn FnMut(&TuneEvent),
    ) -> Result<Tuned, Error> {
        let backend = Candidates::default();
        // Planned shapes are in the order of what they are worth, so the first of a bucket stands for it.
        let counted = order
            .shapes
            .iter()
            .zip((1..=order.shapes.len() as u64).rev());
        let counted: Vec<CountedShape> = counted
            .map(|(shape, records)| CountedShape {
                shape: shape.clone(),
                records,
            })
            .collect();
        let raced = representatives(&counted, rules(order.inspection));
        let shapes = raced.into_iter().map(|one| one.shape).collect();
        let request = raced::request(
            &self.site,
            &backend,
            shapes,
            order.run.tune(),
            Some(order.budget),
        )?;
        crate::tune::run(&request, observer, order.interrupt)
            .map(Tuned::from)
            .map_err(|error| tune_error(&error))
    }

    fn take(
        &self,
        inspection: &Inspection,
        table: &Utf8Path,
        folder: &Utf8Path,
    ) -> Result<Vec<Utf8PathBuf>, Error> {
        let candidates = if table.is_dir() {
            let files = entries(table).map_err(|error| Error::file(&error))?;
            files
                .into_iter()
                .map(camino::Utf8DirEntry::into_path)
                .collect()
        } else {
            vec![table.to_owned()]
        };
        let mut taken = Vec::new();
        for file in candidates {
            let name = file.file_name().unwrap_or_default();
            let is_ours = |read: &FileName| read.gfx == inspection.gfx && !read.preshuffled;
            if !name.parse().is_ok_and(|read| is_ours(&read)) {
                continue;
            }
            let bytes = fs_err::read(&file).map_err(|error| Error::file(&error))?;
            usable(&file, &bytes, rules(inspection), ErrorKind::Usage)?;
            let copy = folder.join(name);
            write_atomic(&copy, &bytes).map_err(|error| Error::file(&error))?;
            taken.push(copy);
        }
        if taken.is_empty() {
            return Err(Error::new(
                ErrorKind::Usage,
                format!(
                    "`{table}` holds no file that aiter would look for on {}",
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
        let mut files = BTreeMap::new();
        let mut whole = Vec::new();
        let mut rows = 0;
        for file in &tuned.files {
            // The variables and the overlay of `gemmtune tune` lie beside the files.
            let Some(name) = file
                .file_name()
                .filter(|name| name.parse::<FileName>().is_ok())
            else {
                continue;
            };
            let bytes = fs_err::read(file).map_err(|error| Error::file(&error))?;
            rows += usable(file, &bytes, rules(inspection), ErrorKind::Bug)?.len();
            whole.extend_from_slice(name.as_bytes());
            whole.extend_from_slice(&bytes);
            files.insert(name.to_owned(), bytes);
        }
        let digest = digest(&whole);
        let folder = run.deploy().join(&digest);
        fs_err::create_dir_all(&folder).map_err(|error| Error::file(&error))?;
        for (name, bytes) in &files {
            write_atomic(&folder.join(name), bytes).map_err(|error| Error::file(&error))?;
        }
        let options = OverlayOptions {
            aiter_triton: Some(folder.clone()),
            ..OverlayOptions::default()
        };
        let env: BTreeMap<String, String> = self
            .site
            .overlay(run, &options)?
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect();
        let variables: Vec<&str> = env.keys().map(String::as_str).collect();
        Ok(Deployment {
            takes_back: vec![format!(
                "the folder {folder} and the variables {} that put it in front of aiter's own files",
                variables.join(" and ")
            )],
            env,
            unset: Vec::new(),
            notes: Vec::new(),
            appear: Vec::new(),
            table: folder,
            digest,
            rows,
            // Other configurations are other programs, compiled when they first run.
            may_build: true,
            dense: true,
            fused_moe: None,
        })
    }

    fn undo(&self, _run: &RunDir, deployment: &Deployment) -> Result<(), Error> {
        gone(fs_err::remove_dir_all(&deployment.table))
    }

    fn misses(
        &self,
        inspection: &Inspection,
        deployment: &Deployment,
        shapes: &[Shape],
    ) -> Result<Vec<Shape>, Error> {
        let tables = Tables::of(inspection, deployment);
        Ok(shapes
            .iter()
            .filter(|shape| tables.row((shape.n, shape.k), shape.m).is_none())
            .cloned()
            .collect())
    }

    fn engagement(
        &self,
        inspection: &Inspection,
        deployment: &Deployment,
        log_summary: &LogSummary,
    ) -> Result<Engagement, Error> {
        Ok(engagement_of(
            &Tables::of(inspection, deployment),
            log_summary,
        ))
    }

    fn probe(
        &self,
        deployed: &Deployed<'_>,
        shapes: &[Shape],
        _tuned: &Tuned,
    ) -> Result<Probed, Error> {
        let mut env = self.site.environment().clone();
        let ours = deployed.deployment.env.iter();
        env.extend(ours.map(|(name, value)| (name.clone(), Some(value.clone()))));
        let order = json!({
            "aiter": deployed.inspection.gfx,
            "shapes": shapes.iter().map(|shape| [shape.m, shape.n, shape.k]).collect::<Vec<_>>(),
        });
        let argv = [self.site.python.as_str(), "-c", CHECK, &order.to_string()].map(str::to_owned);
        let ran = command::run(
            &self.site.keeper,
            &argv,
            None,
            env,
            CHECK_LIMIT,
            deployed.interrupt,
        )
        .map_err(|error| Error::caused(ErrorKind::WorkloadFailed, &error))?;
        let said = String::from_utf8_lossy(&ran.stdout);
        let answers: Vec<Checked> = said
            .lines()
            .filter_map(|line| line.strip_prefix(CHECK_TAG))
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        if answers.len() == shapes.len() {
            let tables = Tables::of(deployed.inspection, deployed.deployment);
            if let Some(other) = answers.iter().find_map(|answer| answer.not_of(&tables)) {
                return Err(Error::new(
                    ErrorKind::NotBetter,
                    format!("layout check: {other}; the deployment was taken back"),
                ));
            }
            return Ok(Probed {
                layout: answers.into_iter().map(Checked::into_check).collect(),
                ..Probed::default()
            });
        }
        let words = String::from_utf8_lossy(&ran.stderr);
        let last = words.lines().rev().find(|line| !line.trim().is_empty());
        Err(Error::new(
            ErrorKind::WorkloadFailed,
            format!(
                "the numerics probe answered for {} of {} shapes and exited with code {}: {}",
                answers.len(),
                shapes.len(),
                ran.code,
                last.unwrap_or("it said nothing")
            ),
        ))
    }

    fn kernel_name(&self, candidate: &serde_json::Value) -> String {
        name_of(candidate)
    }
}

fn name_of(row: &serde_json::Value) -> String {
    let number = |name: &str| row[name].as_u64().unwrap_or(1);
    let mut name = format!(
        "{}x{}x{}, group {}, {} warps, {} stages",
        number("BLOCK_SIZE_M"),
        number("BLOCK_SIZE_N"),
        number("BLOCK_SIZE_K"),
        number("GROUP_SIZE_M"),
        number("num_warps"),
        number("num_stages")
    );
    if number("NUM_KSPLIT") > 1 {
        name.push_str(", parts of K ");
        name.push_str(&number("NUM_KSPLIT").to_string());
    }
    name
}

/// How the inspected tree looks rows up.
fn rules(inspection: &Inspection) -> Rules {
    let bound = inspection.identity.get(BOUND);
    let from = bound.and_then(|bound| bound.parse().ok()).unwrap_or(1);
    Rules::Bounds { from }
}

/// The name under which aiter looks for the file of a weight.
fn file_name(gfx: &str, n: u32, k: u32) -> String {
    let name = FileName {
        gfx: gfx.to_owned(),
        preshuffled: false,
        weight: Some((n, k)),
    };
    name.to_string()
}

/// A file that aiter would not stop at.
fn usable(path: &Utf8Path, bytes: &[u8], rules: Rules, kind: ErrorKind) -> Result<Configs, Error> {
    let configs =
        Configs::read(bytes).map_err(|error| Error::to(kind, &format!("use `{path}`"), error))?;
    match configs.faults(rules).iter().find(|fault| fault.is_fatal()) {
        None => Ok(configs),
        Some(fault) => Err(Error::new(kind, format!("use `{path}`: {fault}"))),
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

    fn configs(&self, (n, k): (u32, u32)) -> Option<Configs> {
        let bytes = fs_err::read(self.folder.join(file_name(&self.gfx, n, k))).ok()?;
        Configs::read(&bytes).ok()
    }

    /// The row that serves a weight at `m`, by aiter's rules.
    fn row(&self, weight: (u32, u32), m: u32) -> Option<serde_json::Value> {
        let configs = self.configs(weight)?;
        let (_, row) = configs.find(self.rules, m)?;
        Some(serde_json::Value::Object(row.clone()))
    }
}

/// What the overlay's record of each GEMM a server ran says about the deployed files.
fn engagement_of(tables: &Tables, log_summary: &LogSummary) -> Engagement {
    let mut engagement = Engagement::default();
    for (&(n, k, m), served) in &log_summary.triton_served {
        let shape = format!("M={m} N={n} K={k}");
        match tables.row((n, k), m) {
            None => engagement.unplanned.push(shape),
            Some(_) if !served.injected => engagement.missed.push(shape),
            Some(row) if served.config != row => engagement
                .other_kernel
                .push(format!("{shape}: {} instead of {row}", served.config)),
            Some(_) => engagement.hit += 1,
        }
    }
    engagement
}

/// One line of the check.
#[derive(Debug, Deserialize)]
struct Checked {
    #[serde(rename = "M")]
    m: u32,
    #[serde(rename = "N")]
    n: u32,
    #[serde(rename = "K")]
    k: u32,
    relative_error: Option<f64>,
    config: Option<serde_json::Value>,
    failure: Option<String>,
}

impl Checked {
    /// Says so when this shape was served by something else than the row deployed for it: then the check is
    /// about another kernel.
    fn not_of(&self, tables: &Tables) -> Option<String> {
        let row = tables.row((self.n, self.k), self.m)?;
        if self.failure.is_some() || self.config.as_ref() == Some(&row) {
            return None;
        }
        let found = match &self.config {
            Some(config) => config.to_string(),
            None => "no row".to_owned(),
        };
        Some(format!(
            "M={} N={} K={} ran with {found}, not with the deployed {row}",
            self.m, self.n, self.k
        ))
    }

    fn into_check(self) -> LayoutCheck {
        LayoutCheck {
            m: self.m,
            n: self.n,
            k: self.k,
            kernel: match (&self.failure, &self.config) {
                (Some(failure), _) => failure.clone(),
                (None, Some(config)) => name_of(config),
                (None, None) => "no row".to_owned(),
            },
            relative_error: self.relative_error,
            limit: LIMIT,
        }
    }
}
