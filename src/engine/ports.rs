//! What the engine asks of whatever serves, and of whatever kernels are tuned for it.
//!
//! The engine names neither SGLang nor aiter: a [`Backend`] is a server with a kernel family for its dense GEMMs, one for its
//! fused MoE, or both, and each answers questions or does single steps. The order of things, the journal and the trials are
//! the engine's.

mod fused_moe;

use std::collections::BTreeMap;
use std::sync::Arc;

use camino::Utf8Path;

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

/// What serves, and the kernels that are tuned for it.
#[derive(Clone)]
pub struct Backend {
    pub server: Arc<dyn Server>,
    /// The kernels of its dense GEMMs; absent where those are left to whatever serves them.
    pub kernels: Option<Arc<dyn Kernels>>,
    /// The kernels of its fused MoE; absent where that is left.
    pub fused_moe: Option<Arc<dyn FusedMoeKernels>>,
}

/// Finds the backend of a configuration.
pub type FindBackend = fn(&Config, &Keeper) -> Result<Backend, Error>;

/// What a tune step needs.
#[derive(Debug)]
pub struct TuneOrder<'a> {
    pub run: &'a RunDir,
    /// Where results of this operation lie.
    pub folder: &'a Utf8Path,
    /// What was found of the operation to tune.
    pub inspection: &'a Inspection,
    /// Shapes to tune, most valuable first.
    pub shapes: &'a [Shape],
    /// Wall time; what was found by then is kept.
    pub budget: std::time::Duration,
    /// Ends a search early.
    pub interrupt: &'a Interrupt,
}

/// What a plan is made with.
#[derive(Debug)]
pub struct PlanTerms {
    /// Tables that serve today.
    pub tables: Vec<Table>,
    /// SGLang's tables that serve today, by the names they are found under.
    pub configs: Vec<(FileName, TritonConfig)>,
    pub revision: Revision,
    /// Rates that weigh shapes against one another.
    pub device: Device,
    /// How many M share a row.
    pub fold: Fold,
    pub cost: Cost,
}

/// What is deployed, and where what belongs to it lies.
#[derive(Clone, Copy, Debug)]
pub struct Deployed<'a> {
    pub run: &'a RunDir,
    pub inspection: &'a Inspection,
    /// What was put in place.
    pub deployment: &'a Deployment,
    /// Ends a check early.
    pub interrupt: &'a Interrupt,
}

/// A server's own profiler of what its devices run. Why something failed is said in words that end a sentence.
pub trait Profiler: Send + Sync {
    /// Has the server at `base_url` record its next `steps` forward passes. Each of its ranks then writes a trace of
    /// torch.profiler into `folder`.
    fn start(&self, base_url: &str, folder: &Utf8Path, steps: u32) -> Result<(), String>;

    /// Has it end a recording now and write what it has; nothing happens where none is under way.
    fn stop(&self, base_url: &str);
}

/// Something that serves a model.
pub trait Server: Send + Sync {
    /// What decides from outside the run folder which code is served, by name. A run is not gone on with under
    /// another value: its arms would no longer be the same but for the tuning.
    fn surroundings(&self) -> BTreeMap<String, String>;

    /// Environment that makes it tell its shapes, record files going to `records`.
    fn capture_env(&self, run: &RunDir, records: &Utf8Path) -> Result<Environment, Error>;

    /// Refuses a capture that some of its processes are missing from, or that is another tree's.
    fn check_capture(&self, log_summary: &LogSummary) -> Result<(), Error>;

    /// Checks the deployed operation in the server that listens at `base_url`, where it answers such questions.
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

/// A family of kernels for dense GEMMs that a server can be tuned with. Most have one operation; where a workload runs several
/// ([`Inspection::operations`]), plans are made and races are run one by one, and all of it is deployed at once.
pub trait Kernels: Send + Sync {
    /// Finds what serves today.
    fn inspect(&self) -> Result<Inspection, Error>;

    /// Refuses, before anything is served, a run folder that nothing could be deployed from.
    fn check_place(&self, _run: &RunDir) -> Result<(), Error> {
        Ok(())
    }

    /// What was found, as the workload was seen to use it; refuses a workload that these kernels do not serve.
    fn seen(&self, inspection: &Inspection, log_summary: &LogSummary) -> Result<Inspection, Error>;

    /// What a plan for the operation of `inspection` is made with.
    fn plan_terms(&self, inspection: &Inspection) -> Result<PlanTerms, Error>;

    /// Tunes one operation.
    fn tune(
        &self,
        order: &TuneOrder<'_>,
        observer: &mut dyn FnMut(&TuneEvent),
    ) -> Result<Tuned, Error>;

    /// Reads a table from elsewhere, as a tuning would have left it; refuses what cannot be deployed here.
    fn take(&self, inspection: &Inspection, table: &Utf8Path) -> Result<Vec<TunedTable>, Error>;

    /// Puts what was tuned in place, of every operation of `inspection`, in files and variables of its own.
    fn deploy(
        &self,
        run: &RunDir,
        inspection: &Inspection,
        tuned: &Tuned,
    ) -> Result<Deployment, Error>;

    /// Takes a deployment back. Doing it twice is doing it once.
    fn undo(&self, run: &RunDir, deployment: &Deployment) -> Result<(), Error>;

    /// Shapes that the deployed table would not serve, by the runtime's own rules.
    fn misses(
        &self,
        inspection: &Inspection,
        deployment: &Deployment,
        shapes: &[Shape],
    ) -> Result<Vec<Shape>, Error>;

    /// Tries the deployed operation in a fresh process with the tuned server's environment, before such a server is
    /// started: its numbers on `shapes` and its time on what was tuned. Kernels that only their server can run find
    /// nothing here and answer [`Server::check_layout`].
    fn probe(
        &self,
        _deployed: &Deployed<'_>,
        _shapes: &[Shape],
        _tuned: &Tuned,
    ) -> Result<Probed, Error> {
        Ok(Probed::default())
    }

    /// Environment that makes a server with `deployment` tell which rows it uses, record files going to
    /// `records`. It goes on top of the deployment's own.
    fn engagement_env(
        &self,
        run: &RunDir,
        deployment: &Deployment,
        records: &Utf8Path,
    ) -> Result<Environment, Error>;

    /// Which of the tuned shapes the server whose log is `log_summary` was served by the deployed table.
    fn engagement(
        &self,
        inspection: &Inspection,
        deployment: &Deployment,
        log_summary: &LogSummary,
    ) -> Result<Engagement, Error>;

    /// The name of a candidate, for people.
    fn kernel_name(&self, candidate: &serde_json::Value) -> String;
}
