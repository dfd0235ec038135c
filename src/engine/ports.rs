//! The interfaces between the engine and the server and kernels that it works with.
//!
//! The engine mentions neither SGLang nor aiter: a [`Backend`] is a server with a kernel family for its dense GEMMs,
//! one for its fused MoE, or both. Each answers questions or performs single steps; the order of steps, the journal
//! and the trials are the engine's responsibility.

mod fused_moe;

use std::collections::BTreeMap;
use std::sync::Arc;

use camino::Utf8Path;

pub use super::budget::Need;
pub use fused_moe::{DeployedMoePart, FusedMoeKernels, LeftOut, MoeOrder, MoeTerms};

use crate::log::summary::LogSummary;
use crate::plan::cost::Cost;
use crate::plan::fold::Fold;
use crate::probe::found::{LayoutCheck, Probed};
use crate::problem::Shape;
use crate::proc::{Interrupt, Keeper};
use crate::run::documents::{Deployment, Engagement, Inspection, Tuned};
use crate::run::error::Error;
use crate::store::run_dir::RunDir;
use crate::table::aiter::Table;
use crate::table::revision::Revision;
use crate::table::roofline::Device;
use crate::table::sglang_json::{Config as TritonConfig, FileName};
use crate::tune::TuneEvent;
use crate::tune::tuned::TunedTable;
use crate::workload::config::Config;
use crate::workload::env::Environment;

/// A server, and the kernels that are tuned for it.
#[derive(Clone)]
pub struct Backend {
    pub server: Arc<dyn Server>,
    /// The kernels of its dense GEMMs; absent if these are not tuned.
    pub kernels: Option<Arc<dyn Kernels>>,
    /// The kernels of its fused MoE; absent if that is not tuned.
    pub fused_moe: Option<Arc<dyn FusedMoeKernels>>,
}

/// Creates the backend of a configuration.
pub type FindBackend = fn(&Config, &Keeper) -> Result<Backend, Error>;

/// The input of a tune step.
#[derive(Debug)]
pub struct TuneOrder<'a> {
    pub run: &'a RunDir,
    /// Where results of this operation are stored.
    pub folder: &'a Utf8Path,
    /// The inspection of the operation to tune.
    pub inspection: &'a Inspection,
    /// Shapes to tune, those that gain most first.
    pub shapes: &'a [Shape],
    /// Wall time; results found by then are kept.
    pub budget: std::time::Duration,
    /// Ends a search early.
    pub interrupt: &'a Interrupt,
}

/// The input of a plan.
#[derive(Debug)]
pub struct PlanTerms {
    /// Tables in use today.
    pub tables: Vec<Table>,
    /// SGLang's tables in use today, by their file names.
    pub configs: Vec<(FileName, TritonConfig)>,
    pub revision: Revision,
    /// The device whose peak rates weight the shapes.
    pub device: Device,
    /// How many M share a row.
    pub fold: Fold,
    pub cost: Cost,
}

/// A deployment, and where its files are.
#[derive(Clone, Copy, Debug)]
pub struct Deployed<'a> {
    pub run: &'a RunDir,
    pub inspection: &'a Inspection,
    pub tuned: &'a Tuned,
    /// What was deployed.
    pub deployment: &'a Deployment,
    /// Ends a check early.
    pub interrupt: &'a Interrupt,
}

/// A server's own profiler of its devices. Errors are phrased as the end of a sentence.
pub trait Profiler: Send + Sync {
    /// Makes the server at `base_url` record its next `steps` forward passes. Each of its ranks then writes a trace
    /// of torch.profiler into `folder`.
    fn start(&self, base_url: &str, folder: &Utf8Path, steps: u32) -> Result<(), String>;

    /// Makes it end a recording now and write what it has; does nothing if none is in progress.
    fn stop(&self, base_url: &str);
}

/// Something that serves a model.
pub trait Server: Send + Sync {
    /// Facts outside the run folder that determine which code is served, by name. A run does not continue if one has
    /// changed, because its arms would then differ in more than the tuning.
    fn surroundings(&self) -> BTreeMap<String, String>;

    /// Environment with which it reports its shapes and writes record files to `records`.
    fn capture_env(&self, run: &RunDir, records: &Utf8Path) -> Result<Environment, Error>;

    /// Refuses a capture in which some of its processes are missing, or that comes from another tree.
    fn check_capture(&self, log_summary: &LogSummary) -> Result<(), Error>;

    /// Checks the deployed operation in the server that listens at `base_url`, if it can answer such requests.
    fn check_layout(&self, _base_url: &str, _shapes: &[Shape]) -> Result<Vec<LayoutCheck>, Error> {
        Ok(Vec::new())
    }

    /// Its profiler, where it has one.
    fn profiler(&self) -> Option<&dyn Profiler> {
        None
    }

    /// Keys of its resolved arguments that differ between the arms because of the tuning.
    fn expected_differences(&self) -> &'static [&'static str] {
        &[]
    }
}

/// A family of kernels for dense GEMMs that a server can be tuned with. Most have one operation; where a workload
/// runs several ([`Inspection::operations`]), they are planned and raced one by one, and deployed together.
pub trait Kernels: Send + Sync {
    /// Determines what serves today.
    fn inspect(&self) -> Result<Inspection, Error>;

    /// Refuses, before anything is served, a run folder from which nothing could be deployed.
    fn check_place(&self, _run: &RunDir) -> Result<(), Error> {
        Ok(())
    }

    /// Updates the inspection by what the workload was seen to use; refuses a workload that these kernels do not
    /// serve.
    fn seen(&self, inspection: &Inspection, log_summary: &LogSummary) -> Result<Inspection, Error>;

    /// The input of a plan for the operation of `inspection`.
    fn plan_terms(&self, inspection: &Inspection) -> Result<PlanTerms, Error>;

    /// Tunes the operation of `order` within its budget. What was finished before is reused, and an interrupt or a
    /// spent budget gives what there is by then.
    fn tune(
        &self,
        order: &TuneOrder<'_>,
        observer: &mut dyn FnMut(&TuneEvent),
    ) -> Result<Tuned, Error>;

    /// Reads tables from elsewhere, a file or a folder, as if the operations of `inspection` had been tuned; refuses what
    /// cannot be deployed here.
    fn take(&self, inspection: &Inspection, table: &Utf8Path) -> Result<Vec<TunedTable>, Error>;

    /// Deploys what was tuned, for every operation of `inspection`, in files and variables of its own.
    fn deploy(
        &self,
        run: &RunDir,
        inspection: &Inspection,
        tuned: &Tuned,
    ) -> Result<Deployment, Error>;

    /// Undoes a deployment. Doing it twice is harmless.
    fn undo(&self, run: &RunDir, deployment: &Deployment) -> Result<(), Error>;

    /// The deployed row that serves each of `shapes`, according to the runtime's own rules; `None` if none does. Of
    /// shapes with the same operation, N and K, those with equal answers are served alike.
    fn rows(
        &self,
        inspection: &Inspection,
        deployment: &Deployment,
        shapes: &[Shape],
    ) -> Result<Vec<Option<String>>, Error>;

    /// Tries the deployed operation in a fresh process with the tuned server's environment, before such a server is
    /// started: its numbers on `shapes` and its time on what was tuned. Kernels that only run in their server return
    /// nothing here and are checked by [`Server::check_layout`].
    fn probe(&self, _deployed: &Deployed<'_>, _shapes: &[Shape]) -> Result<Probed, Error> {
        Ok(Probed::default())
    }

    /// Environment with which a server with `deployment` reports the rows it uses and writes record files to
    /// `records`. It is added to the deployment's own.
    fn engagement_env(
        &self,
        run: &RunDir,
        deployment: &Deployment,
        records: &Utf8Path,
    ) -> Result<Environment, Error>;

    /// Which of the tuned shapes the deployed table served, in the server whose log is `log_summary`.
    fn engagement(
        &self,
        deployed: &Deployed<'_>,
        log_summary: &LogSummary,
    ) -> Result<Engagement, Error>;

    /// A candidate's name for display.
    fn kernel_name(&self, candidate: &serde_json::Value) -> String;
}
