//! SGLang's Triton block-FP8 kernel: everything is done by environment and overlay, nothing is
//! written into SGLang's tree.

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
use crate::table::revision::Revision;
use crate::table::roofline::Device as Rates;
use crate::table::sglang_json::{self, FileName};
use crate::tune::TuneEvent;
use crate::tune::backends::sglang_triton::SglangTriton as Candidates;
use crate::tune::backends::sglang_triton::files::read_rows;
use crate::tune::backends::sglang_triton::keys::{Rows, nearest};
use crate::tune::protocol::Device;
use crate::workload::env::Environment;

/// Compares the GEMM with a reference, in a process of its own.
const CHECK: &str = include_str!("../../python/probe/triton_check.py");

/// What every line of [`CHECK`] starts with.
const CHECK_TAG: &str = "gemmtune-check: ";

/// Importing SGLang from a network file system takes minutes; the checks themselves seconds.
const CHECK_LIMIT: Duration = Duration::from_secs(600);

/// Largest accepted error: rounding to bfloat16 costs about 0.0017 in norm and the FP8 matrix units of sm_90, which
/// keep 14 bits within a block of K, somewhat less again; scales in the wrong place cost 0.3 and more.
const LIMIT: f64 = 0.01;

/// Scale blocks of the weights.
const BLOCK: (u32, u32) = (128, 128);

/// SGLang on NVIDIA, its block-FP8 linears on its own Triton kernel.
#[derive(Debug)]
pub(super) struct SglangTriton {
    site: Arc<Site>,
}

impl SglangTriton {
    pub(super) fn new(site: Arc<Site>) -> Self {
        Self { site }
    }
}

impl Kernels for SglangTriton {
    fn inspect(&self) -> Result<Inspection, Error> {
        let answer = self.site.look()?;
        let package = self.site.sglang(&answer)?;
        let device = raced::device(&self.site, &Candidates::default())?;
        let mut identity = BTreeMap::from([
            ("device".to_owned(), device.name.clone()),
            ("arch".to_owned(), device.arch.clone()),
            ("cu_num".to_owned(), device.cu_num.to_string()),
            ("kernel".to_owned(), device.kernel_hash.clone()),
        ]);
        identity.extend(device.versions.clone());
        let shipped = shipped(&device)?;
        Ok(Inspection {
            identity,
            op: Op::TritonBlockFp8,
            gfx: device.arch.clone(),
            cu_num: device.cu_num,
            path: format!(
                "SGLang's Triton kernel in {}; {} tables come with it for {}",
                package.folder,
                shipped.len(),
                device.name
            ),
            linear: None,
            table: (!shipped.is_empty()).then(|| Utf8PathBuf::from(&device.shipped)),
            remarks: self.site.remarks(&device),
        })
    }

    fn seen(&self, inspection: &Inspection, log_summary: &LogSummary) -> Result<Inspection, Error> {
        let linears = inspection.op.facts().linears;
        let is_ours =
            |identity: &&String| linears.iter().any(|linear| identity.starts_with(linear));
        let other: Vec<&String> = log_summary
            .dispatch
            .keys()
            .filter(|identity| !is_ours(identity))
            .collect();
        let served = log_summary.dispatch.len() - other.len();
        if served > 0 {
            return Ok(inspection.clone());
        }
        let refusal = match other.first() {
            Some(identity) => Error::new(
                ErrorKind::Environment,
                format!("the block-FP8 layers are served by {identity}, not by SGLang's Triton kernel"),
            )
            .hint("`backend.kind = \"sglang-families\"` tunes a route below DeepGEMM's linear, which reads no table")
            .hint("or add `--fp8-gemm-backend triton` to the server command, where Triton is what has to serve"),
            None => Error::new(
                ErrorKind::NoShapes,
                "the instrumented server never said which implementation serves its block-FP8 layers",
            )
            .hint("is the model quantised to FP8 in blocks?"),
        };
        Err(if log_summary.moe.is_empty() {
            refusal
        } else {
            refusal.hint("`backend.kind = \"sglang-moe\"` tunes the fused MoE of this model and leaves its dense GEMMs as they are")
        })
    }

    fn engagement_env(
        &self,
        run: &RunDir,
        deployment: &Deployment,
        records: &Utf8Path,
    ) -> Result<Environment, Error> {
        let options = OverlayOptions {
            records: Some(records.to_owned()),
            triton_tables: Some(deployment.table.clone()),
            ..OverlayOptions::default()
        };
        self.site.overlay(run, &options)
    }

    fn plan_terms(&self, inspection: &Inspection) -> Result<PlanTerms, Error> {
        let name = inspection.identity.get("device");
        let name = name.map_or("", String::as_str);
        Ok(PlanTerms {
            tables: Vec::new(),
            configs: match &inspection.table {
                Some(folder) => tables_in(folder, name)?,
                None => Vec::new(),
            },
            revision: Revision::H,
            device: Rates::of_name(name).unwrap_or_else(|| Rates::unknown(name, inspection.cu_num)),
            // The runtime takes the row of the nearest M; the race decides which M need one.
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
        let shapes = order.shapes.to_vec();
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
        let device = inspection.identity.get("device");
        let device = device.map_or("", String::as_str);
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
            let is_ours = |read: FileName| name == ours(device, read.n, read.k);
            if !name.parse().is_ok_and(is_ours) {
                continue;
            }
            let bytes = fs_err::read(&file).map_err(|error| Error::file(&error))?;
            sglang_json::Config::read(file.as_str(), &bytes)
                .map_err(|error| Error::caused(ErrorKind::Usage, &error))?;
            let copy = folder.join(name);
            write_atomic(&copy, &bytes).map_err(|error| Error::file(&error))?;
            taken.push(copy);
        }
        if taken.is_empty() {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("`{table}` holds no table that SGLang would look for on this device"),
            )
            .hint(format!(
                "they have names such as `{}`",
                ours(device, 4096, 7168)
            )));
        }
        Ok(taken)
    }

    fn deploy(
        &self,
        run: &RunDir,
        _inspection: &Inspection,
        tuned: &Tuned,
    ) -> Result<Deployment, Error> {
        let mut files = BTreeMap::new();
        let mut whole = Vec::new();
        let mut rows = 0;
        for file in &tuned.files {
            let Some(name) = file.file_name() else {
                continue;
            };
            let bytes = fs_err::read(file).map_err(|error| Error::file(&error))?;
            let table = sglang_json::Config::read(file.as_str(), &bytes)
                .map_err(|error| Error::caused(ErrorKind::Bug, &error))?;
            rows += table.by_m().map_or(0, |rows| rows.len());
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
            triton_tables: Some(folder.clone()),
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
                "the folder {folder} and the variables {} that put it in front of SGLang's own tables",
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
            .filter(|shape| tables.row(shape.n, shape.k, shape.m).is_none())
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
            "block": [BLOCK.0, BLOCK.1],
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
                layout: answers
                    .into_iter()
                    .map(|answer| answer.into_check(self))
                    .collect(),
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
        let number = |name: &str| candidate[name].as_u64().unwrap_or(1);
        let mut name = format!(
            "{}x{}x{}, group {}, {} warps, {} stages",
            number("BLOCK_SIZE_M"),
            number("BLOCK_SIZE_N"),
            number("BLOCK_SIZE_K"),
            number("GROUP_SIZE_M"),
            number("num_warps"),
            number("num_stages")
        );
        if number("SPLIT_K") > 1 {
            name.push_str(", split-K ");
            name.push_str(&number("SPLIT_K").to_string());
        }
        if candidate["SWAP_AB"].as_bool() == Some(true) {
            name.push_str(", operands swapped");
        }
        name
    }
}

/// The tables SGLang ships for `device`.
fn shipped(device: &Device) -> Result<Vec<(FileName, sglang_json::Config)>, Error> {
    if device.shipped.is_empty() {
        return Ok(Vec::new());
    }
    tables_in(Utf8Path::new(&device.shipped), &device.name)
}

/// The tables for the device of this name in `folder`; files the runtime could not load are passed over, as
/// nothing is served from them.
pub(super) fn tables_in(
    folder: &Utf8Path,
    device: &str,
) -> Result<Vec<(FileName, sglang_json::Config)>, Error> {
    let mut tables = Vec::new();
    for entry in entries(folder).map_err(|error| Error::file(&error))? {
        let Ok(name) = entry.file_name().parse::<FileName>() else {
            continue;
        };
        if entry.file_name() != ours(device, name.n, name.k) {
            continue;
        }
        let bytes = fs_err::read(entry.path()).map_err(|error| Error::file(&error))?;
        if let Ok(table) = sglang_json::Config::read(entry.file_name(), &bytes) {
            tables.push((name, table));
        }
    }
    tables.sort_by_key(|(name, _)| (name.n, name.k));
    Ok(tables)
}

/// The name under which the runtime looks for the table of (`n`, `k`).
fn ours(device: &str, n: u32, k: u32) -> String {
    let name = FileName {
        block_shape: Some(BLOCK),
        ..FileName::block_fp8(n, k, device)
    };
    name.to_string()
}

/// The deployed tables by weight.
struct Tables {
    folder: Utf8PathBuf,
    device: String,
}

impl Tables {
    fn of(inspection: &Inspection, deployment: &Deployment) -> Self {
        Self {
            folder: deployment.table.clone(),
            device: inspection
                .identity
                .get("device")
                .cloned()
                .unwrap_or_default(),
        }
    }

    fn rows(&self, n: u32, k: u32) -> Option<Rows> {
        read_rows(&self.folder.join(ours(&self.device, n, k)))
    }

    /// The row that serves (`n`, `k`) at `m`, by the runtime's rule.
    fn row(&self, n: u32, k: u32, m: u32) -> Option<serde_json::Value> {
        nearest(&self.rows(n, k)?, m).cloned()
    }
}

/// What the overlay's record of each GEMM a server ran says about the deployed tables.
fn engagement_of(tables: &Tables, log_summary: &LogSummary) -> Engagement {
    let mut engagement = Engagement::default();
    let weights: BTreeSet<(u32, u32)> = log_summary
        .triton_served
        .keys()
        .map(|&(n, k, _)| (n, k))
        .collect();
    for (n, k) in weights {
        let rows = tables.rows(n, k);
        let of_weight = log_summary
            .triton_served
            .range((n, k, 0)..=(n, k, u32::MAX));
        for (&(_, _, m), served) in of_weight {
            let shape = format!("M={m} N={n} K={k}");
            match rows.as_ref().and_then(|rows| nearest(rows, m)) {
                None => engagement.unplanned.push(shape),
                Some(_) if !served.injected => engagement.missed.push(shape),
                Some(row) if served.config != *row => engagement
                    .other_kernel
                    .push(format!("{shape}: {} instead of {row}", served.config)),
                Some(_) => engagement.hit += 1,
            }
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
        let row = tables.row(self.n, self.k, self.m)?;
        if self.failure.is_some() || self.config.as_ref() == Some(&row) {
            return None;
        }
        let found = match &self.config {
            Some(config) => config.to_string(),
            None => "SGLang's default".to_owned(),
        };
        Some(format!(
            "M={} N={} K={} ran with {found}, not with the deployed {row}",
            self.m, self.n, self.k
        ))
    }

    fn into_check(self, platform: &SglangTriton) -> LayoutCheck {
        LayoutCheck {
            m: self.m,
            n: self.n,
            k: self.k,
            kernel: match (&self.failure, &self.config) {
                (Some(failure), _) => failure.clone(),
                (None, Some(config)) => platform.kernel_name(config),
                (None, None) => "SGLang's default configuration".to_owned(),
            },
            relative_error: self.relative_error,
            limit: LIMIT,
        }
    }
}
