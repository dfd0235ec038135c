//! The interface between the engine and the kernels of a fused MoE.

use camino::Utf8Path;

use crate::engine::budget::Need;
use crate::log::summary::LogSummary;
use crate::plan::moe::Ladder;
use crate::problem::fused_moe::MoeProblem;
use crate::proc::Interrupt;
use crate::run::documents::{DeployedMoe, Engagement, Inspection, MoeCheck, SeenMoe, TunedMoe};
use crate::run::error::Error;
use crate::store::run_dir::RunDir;
use crate::table::roofline::Device;
use crate::tune::TuneEvent;
use crate::tune::moe::MoeTask;
use crate::workload::env::Environment;

/// The input of a race of fused MoE.
#[derive(Debug)]
pub struct MoeOrder<'a> {
    pub run: &'a RunDir,
    pub inspection: &'a Inspection,
    /// Sizes to race, as whole operations.
    pub tasks: &'a [MoeTask],
    /// Wall time; results found by then are kept.
    pub budget: std::time::Duration,
    /// Ends a race early.
    pub interrupt: &'a Interrupt,
}

/// The deployed tables, and where their files are.
#[derive(Clone, Copy, Debug)]
pub struct DeployedMoePart<'a> {
    pub run: &'a RunDir,
    pub inspection: &'a Inspection,
    pub tuned: &'a TunedMoe,
    /// What was deployed.
    pub deployed: &'a DeployedMoe,
    /// The tuned server's environment relative to the baseline's, dense GEMMs included.
    pub env: &'a Environment,
    /// Ends a check early.
    pub interrupt: &'a Interrupt,
}

/// The input of a plan of fused MoE.
pub struct MoeTerms {
    /// The device whose peak rates weight the sizes.
    pub device: Device,
    /// Which M the table has rows for.
    pub ladder: Ladder,
    /// Why a row is not worth tuning although it can be tuned; `None` if it is.
    pub left: Box<LeftOut>,
}

/// The type of [`MoeTerms::left`]: problem and M to the reason for leaving the row out.
pub type LeftOut = dyn Fn(&MoeProblem, u32) -> Option<String>;

/// The kernels of a fused MoE, tuned beside the dense GEMMs of a server or alone. Its problems and tables differ from
/// those of a GEMM, which is why this is not [`super::Kernels`].
pub trait FusedMoeKernels: Send + Sync {
    /// Determines what serves today, if no dense kernels have done so.
    fn inspect(&self) -> Result<Inspection, Error>;

    /// The operation's name in shapes files.
    fn op(&self) -> &'static str;

    /// The fused MoE that the workload runs on these kernels, and what serves each today; `None` if there is none.
    /// Also remarks on what else ran.
    fn seen(
        &self,
        inspection: &Inspection,
        log_summary: &LogSummary,
    ) -> Result<(Vec<SeenMoe>, Vec<String>), Error>;

    /// The error for a workload that was not seen to run any, and what to do about it.
    fn unseen(&self) -> Error;

    /// The race of `problem` at `m` tokens, or the reason why it cannot be raced.
    fn task(&self, problem: &MoeProblem, m: u32) -> Result<MoeTask, String>;

    /// The input of a plan.
    fn terms(&self, inspection: &Inspection) -> Result<MoeTerms, Error>;

    /// Estimated time to race `tasks`.
    fn need(&self, tasks: &[MoeTask]) -> Need;

    /// Races the sizes of `order` within its budget. What was finished before is reused, and an interrupt or a spent
    /// budget gives what there is by then.
    fn tune(
        &self,
        order: &MoeOrder<'_>,
        observer: &mut dyn FnMut(&TuneEvent<MoeTask>),
    ) -> Result<TunedMoe, Error>;

    /// Deploys the tables in which a row won, in files and variables of its own; refuses a table that would compute
    /// wrong numbers or for which its own look-up gives rows other than those raced.
    fn deploy(
        &self,
        run: &RunDir,
        inspection: &Inspection,
        tuned: &TunedMoe,
    ) -> Result<DeployedMoe, Error>;

    /// Undoes a deployment. Doing it twice is harmless.
    fn undo(&self, deployed: &DeployedMoe) -> Result<(), Error>;

    /// Tries the deployed operation in a fresh process with the tuned server's environment; refuses results of rows
    /// other than the deployed ones.
    fn probe(&self, part: &DeployedMoePart<'_>) -> Result<Vec<MoeCheck>, Error>;

    /// Environment with which a tuned server reports the rows it uses and writes record files to `records`.
    fn engagement_env(
        &self,
        run: &RunDir,
        deployed: &DeployedMoe,
        records: &Utf8Path,
    ) -> Result<Environment, Error>;

    /// Which sizes the deployed tables served, on every rank of the server whose records are `log_summary`.
    fn engagement(
        &self,
        inspection: &Inspection,
        deployed: &DeployedMoe,
        log_summary: &LogSummary,
    ) -> Result<Engagement, Error>;

    /// Name of a pair of rows for display.
    fn row_name(&self, candidate: &serde_json::Value) -> String;
}
