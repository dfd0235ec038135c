//! SGLang's Triton block-FP8 kernel: configured by environment and overlay, nothing is written into SGLang's tree.

use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;

use super::placed::{self, Check, Placed, Rows, tile_name};
use super::sglang_moe::or_its_experts;
use super::{gone, raced};
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
use crate::store::file::entries;
use crate::store::run_dir::RunDir;
use crate::table::revision::Revision;
use crate::table::roofline::Device as Rates;
use crate::table::sglang_json::{self, FileName};
use crate::tune::TuneEvent;
use crate::tune::backends::sglang_triton::SglangTriton as Candidates;
use crate::tune::backends::sglang_triton::files::read_rows;
use crate::tune::backends::sglang_triton::keys::{nearest, rows_of};
use crate::tune::protocol::Device;
use crate::tune::tuned::{TunedRows, TunedTable};
use crate::workload::env::Environment;

/// Compares the GEMM with a reference.
const CHECK: Check = Check {
    program: include_str!("../../python/probe/triton_check.py"),
    name: "numerics check",
    longest: Duration::from_secs(600),
};

/// Scale blocks of the weights.
const BLOCK: (u32, u32) = (128, 128);

/// The kernel family of SGLang's own Triton GEMM on NVIDIA.
#[derive(Debug)]
pub(crate) struct SglangTriton {
    site: Arc<Site>,
}

impl SglangTriton {
    pub(crate) fn new(site: Arc<Site>) -> Self {
        Self { site }
    }
}

impl Kernels for SglangTriton {
    fn inspect(&self) -> Result<Inspection, Error> {
        let answer = self.site.look()?;
        let package = self.site.sglang(&answer)?;
        let device = raced::device(&self.site, &Candidates::default())?;
        let shipped = shipped(&device)?;
        Ok(Inspection {
            also: Vec::new(),
            dense_left: None,
            identity: raced::identity(&device),
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
            configs: match &inspection.table {
                Some(folder) => tables_in(folder, name)?,
                None => Vec::new(),
            },
            revision: Revision::H,
            device: Rates::of_name(name).unwrap_or_else(|| Rates::unknown(name, inspection.cu_num)),
            // The runtime uses the row of the nearest M; the race decides which M need one.
            fold: Fold::Exact,
            cost: Cost::triton_race(),
        })
    }

    fn tune(
        &self,
        order: &TuneOrder<'_>,
        observer: &mut dyn FnMut(&TuneEvent),
    ) -> Result<Tuned, Error> {
        let place = (order.folder.to_owned(), order.budget);
        let (shapes, interrupt) = (order.shapes.to_vec(), order.interrupt);
        raced::race(
            &self.site,
            &Candidates::default(),
            shapes,
            place,
            observer,
            interrupt,
        )
        .map(Tuned::from)
    }

    fn take(&self, inspection: &Inspection, table: &Utf8Path) -> Result<Vec<TunedTable>, Error> {
        let device = inspection.device_name();
        let wanted = |name: &str| {
            let is_ours = |read: FileName| name == ours(device, read.n, read.k);
            name.parse().is_ok_and(is_ours)
        };
        let taken = placed::take(table, wanted, |file, bytes| {
            let read = sglang_json::Config::read(file.as_str(), bytes)
                .map_err(|error| Error::caused(ErrorKind::Usage, &error))?;
            if read.by_m().is_none() {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!("use `{file}`: a key is no integer, so SGLang could not load it"),
                ));
            }
            Ok(TunedRows::ByM(rows_of(&read)))
        })?;
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
        let rows = tuned.tables.iter().map(TunedTable::count).sum();
        let placed = Placed::write(run, "", &tuned.tables)?;
        let options = in_place(&placed.folder);
        let they = "put it in front of SGLang's own tables";
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
        let about = ("block", json!([BLOCK.0, BLOCK.1]));
        Tables::of(deployed.inspection, deployed.deployment)
            .probed(&CHECK, &self.site, deployed, about, shapes)
    }

    fn kernel_name(&self, candidate: &serde_json::Value) -> String {
        tile_name(candidate)
    }
}

/// The tables SGLang ships for `device`.
fn shipped(device: &Device) -> Result<Vec<(FileName, sglang_json::Config)>, Error> {
    if device.shipped.is_empty() {
        return Ok(Vec::new());
    }
    tables_in(Utf8Path::new(&device.shipped), &device.name)
}

/// The tables in `folder` for the device of this name; files that the runtime could not load are skipped, because
/// they serve nothing.
pub(crate) fn tables_in(
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

/// The overlay options that put the files of `folder` in place.
fn in_place(folder: &Utf8Path) -> OverlayOptions {
    OverlayOptions {
        triton_tables: Some(folder.to_owned()),
        ..OverlayOptions::default()
    }
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
            device: inspection.device_name().to_owned(),
        }
    }
}

impl Rows for Tables {
    fn row(&self, n: u32, k: u32, m: u32) -> Option<serde_json::Value> {
        let rows = read_rows(&self.folder.join(ours(&self.device, n, k)))?;
        nearest(&rows, m).cloned()
    }

    fn without(&self) -> &'static str {
        "SGLang's default configuration"
    }
}
