//! What the engine asks of the kernels of a fused MoE.

use camino::Utf8Path;

use crate::log::summary::LogSummary;
use crate::plan::moe::Ladder;
use crate::proc::Interrupt;
use crate::run::documents::{DeployedMoe, Engagement, Inspection, MoeCheck, SeenMoe, TunedMoe};
use crate::run::error::Error;
use crate::store::run_dir::RunDir;
use crate::table::moe::problem::MoeProblem;
use crate::table::roofline::Device;
use crate::tune::TuneEvent;
use crate::tune::moe::MoeTask;
use crate::workload::env::Environment;

/// What a race of fused MoE needs.
#[derive(Debug)]
pub struct MoeOrder<'a> {
    pub run: &'a RunDir,
    pub inspection: &'a Inspection,
    /// Sizes to race, as whole operations.
    pub tasks: &'a [MoeTask],
    /// Wall time; what was found by then is kept.
    pub budget: std::time::Duration,
    /// Ends a race early.
    pub interrupt: &'a Interrupt,
}

/// The deployed tables, and what belongs to them.
#[derive(Clone, Copy, Debug)]
pub struct DeployedMoePart<'a> {
    pub run: &'a RunDir,
    pub inspection: &'a Inspection,
    pub tuned: &'a TunedMoe,
    /// What was put in place.
    pub deployed: &'a DeployedMoe,
    /// What the tuned server's environment differs by, dense GEMMs included.
    pub env: &'a Environment,
    /// Ends a check early.
    pub interrupt: &'a Interrupt,
}

/// What a plan of fused MoE is made with.
pub struct MoeTerms {
    /// Rates that sizes are weighed with.
    pub device: Device,
    /// Which M the table has rows for.
    pub ladder: Ladder,
    /// Why a row is not worth tuning although it can be; nothing where it is.
    pub left: Box<LeftOut>,
}

/// See [`MoeTerms::left`].
pub type LeftOut = dyn Fn(&MoeProblem, u32) -> Option<String>;

/// The kernels of a fused MoE, tuned beside the dense GEMMs of a server or alone. Its problems and tables are of another
/// kind than a GEMM's, which is why this is no [`super::Kernels`].
pub trait FusedMoeKernels: Send + Sync {
    /// Finds what serves today, where no dense kernels have found it.
    fn inspect(&self) -> Result<Inspection, Error>;

    /// The operation, as shapes files name it.
    fn op(&self) -> &'static str;

    /// The fused MoE that the workload was seen to run on these kernels, and what serves each today; none where none did. With it
    /// what a person should know of what else ran.
    fn seen(
        &self,
        inspection: &Inspection,
        log_summary: &LogSummary,
    ) -> Result<(Vec<SeenMoe>, Vec<String>), Error>;

    /// Why a workload was not seen to run any, in words, and what to do about it.
    fn unseen(&self) -> Error;

    /// The race of `problem` at `m` tokens; the reason where it cannot be raced.
    fn task(&self, problem: &MoeProblem, m: u32) -> Result<MoeTask, String>;

    /// What a plan is made with.
    fn terms(&self, inspection: &Inspection) -> Result<MoeTerms, Error>;

    /// Seconds of one device that racing `tasks` takes, estimated.
    fn race_seconds(&self, tasks: &[MoeTask]) -> f64;

    /// Races.
    fn tune(
        &self,
        order: &MoeOrder<'_>,
        observer: &mut dyn FnMut(&TuneEvent<MoeTask>),
    ) -> Result<TunedMoe, Error>;

    /// Puts the tables in place in which a row won, in files and variables of their own; refuses a table that would
    /// compute wrong numbers or that its own look-up does not answer as it was raced.
    fn deploy(
        &self,
        run: &RunDir,
        inspection: &Inspection,
        tuned: &TunedMoe,
    ) -> Result<DeployedMoe, Error>;

    /// Takes a deployment back. Doing it twice is doing it once.
    fn undo(&self, deployed: &DeployedMoe) -> Result<(), Error>;

    /// Tries the deployed operation in a fresh process with the tuned server's environment; refuses answers that another
    /// row than the deployed one gave.
    fn probe(&self, part: &DeployedMoePart<'_>) -> Result<Vec<MoeCheck>, Error>;

    /// Environment that makes a tuned server tell which rows it uses, record files going to `records`.
    fn engagement_env(
        &self,
        run: &RunDir,
        deployed: &DeployedMoe,
        records: &Utf8Path,
    ) -> Result<Environment, Error>;

    /// Which sizes the server whose records are `log_summary` was served by the deployed tables, on every rank.
    fn engagement(
        &self,
        inspection: &Inspection,
        deployed: &DeployedMoe,
        log_summary: &LogSummary,
    ) -> Result<Engagement, Error>;

    /// The name of a pair of rows, for people.
    fn row_name(&self, candidate: &serde_json::Value) -> String;
}
