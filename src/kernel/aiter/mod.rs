//! SGLang on ROCm with aiter: its own tuner, one merged table, and the switch from Triton to the tuned kernels.
//!
//! `docs/rocm.md` documents what of this was run, and on which hardware.

mod cover;
mod deploy;
mod facts;
mod loaded;
mod moe;
mod operation;
mod pins;
mod room;
mod tables;
mod today;

pub(crate) use moe::AiterMoe;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};

use super::{class_of, from_elsewhere};
use crate::engine::ports::{Deployed, Kernels, PlanTerms, TuneOrder};
use crate::log::summary::LogSummary;
use crate::plan::cost::Cost;
use crate::plan::fold::Fold;
use crate::probe::found::{KernelTime, LayoutCheck, Probed};
use crate::probe::ran::{Seen, judge};
use crate::probe::{self, LOOKUPS_TOLD, ProbeError};
use crate::problem::op::ERR_RATIO_LIMIT;
use crate::problem::{Op, Shape};
use crate::proc::RunError;
use crate::run::documents::{DeployedTable, Deployment, Engagement, Inspection, Tuned};
use crate::run::error::{Error, ErrorKind};
use crate::server::sglang::Site;
use crate::store::run_dir::RunDir;
use crate::table::lookup::Resolver;
use crate::table::roofline::Device;
use crate::tree::aiter::revision;
use crate::tree::era;
use crate::tune::aiter::{self as tuner, AiterOrder, AiterTuneError, Limits, Settings};
use crate::tune::tuned::TunedTable;
use crate::tune::{TuneEvent, TuneOutcome};
use crate::workload::config::{Config, Switch};
use crate::workload::env::Environment;
use crate::workload::share::Share;

/// The kernel family of aiter under SGLang on ROCm: the CSV tables of its CK, CK Tile and assembly GEMMs.
#[derive(Debug)]
pub(crate) struct Aiter {
    site: Arc<Site>,
    folder: Option<Utf8PathBuf>,
    /// The tree that the configuration names.
    meant: Option<Utf8PathBuf>,
    gfx: Option<String>,
    cu_num: Option<u32>,
    op: Option<Op>,
    /// The folder with the model's `config.json`, if the model is one.
    model: Option<Utf8PathBuf>,
    switch: Switch,
    /// Whether the fused MoE is tuned, beside the dense GEMMs or alone.
    tunes_experts: bool,
    /// Accepted share of wrong elements in a row, if the configuration sets one.
    err_ratio: Option<Share>,
    /// Time limit of a first call, which may compile a module, as a first server start may.
    ready_limit: Duration,
}

impl Aiter {
    pub(crate) fn new(site: Arc<Site>, config: &Config) -> Self {
        Self {
            site,
            folder: config.server.cwd.clone(),
            meant: config.backend.aiter_root.clone(),
            gfx: config.backend.gfx.clone(),
            cu_num: config.backend.cu_num,
            op: config.backend.op,
            model: config.model_folder(),
            switch: config.backend.switch,
            tunes_experts: config.tunes_fused_moe(),
            err_ratio: config.backend.err_ratio,
            ready_limit: Duration::from_secs(config.server.ready_timeout_s),
        }
    }

    /// Runs `work` with the deployed tables, indexed as the runtime does.
    fn with_tables<T>(
        &self,
        inspection: &Inspection,
        deployment: &Deployment,
        work: impl FnOnce(&[Resolver<'_>]) -> T,
    ) -> Result<T, Error> {
        let trees = self.trees()?;
        let read = |(one, deployed): (Inspection, DeployedTable)| {
            let table = tables::read_table(&deployed.table, one.op)?;
            Ok((one, table))
        };
        let tables: Vec<_> = deployment
            .tables(inspection)
            .into_iter()
            .map(read)
            .collect::<Result<_, Error>>()?;
        let resolvers: Vec<_> = tables
            .iter()
            .map(|(one, table)| {
                let rules = crate::tree::aiter::rules(one.op, &trees.aiter.capabilities);
                Resolver::new(table, rules, &one.gfx, one.cu_num)
                    .map_err(|error| Error::caused(ErrorKind::Bug, &error))
            })
            .collect::<Result<_, Error>>()?;
        Ok(work(&resolvers))
    }

    /// Tries the operation of `inspection` with its deployed table.
    fn probe_table(
        &self,
        deployed: &Deployed<'_>,
        (inspection, table): (&Inspection, &DeployedTable),
        shapes: &[Shape],
    ) -> Result<Probed, Error> {
        let mut env: BTreeMap<String, Option<String>> = self.site.environment().clone();
        env.extend(deployed.deployment.environment());
        let won: Vec<_> = deployed.tuned.won(inspection.op).collect();
        let times: Vec<Shape> = won
            .iter()
            .take(probe::TIMED)
            .map(|row| row.shape.clone())
            .collect();
        let found = probe::probe(&probe::Order {
            python: self.site.python.as_str(),
            folder: self.folder.clone(),
            env,
            op: inspection.op,
            linear: inspection.linear.as_deref(),
            checks: shapes,
            times: &times,
            limit: self.ready_limit,
            keeper: &self.site.keeper,
            interrupt: deployed.interrupt,
        })
        .map_err(|error| probe_error(&error))?;
        // Without SGLang's own function the layouts were not tested.
        let through = found.about.get("through").cloned().flatten();
        let linear = inspection.linear.as_deref().unwrap_or(era::LEAF);
        if !through.as_deref().is_some_and(|name| name.contains(linear)) {
            return Err(Error::new(
                ErrorKind::Environment,
                format!(
                    "the probe reached aiter through {} instead of SGLang's {linear}: what the server would compute was not tried",
                    through.as_deref().unwrap_or("nothing")
                ),
            )
            .hint("`gemmtune probe` shows what the interpreter says"));
        }
        let layout = found
            .checks
            .into_iter()
            .map(|check| LayoutCheck {
                m: check.shape.m,
                n: check.shape.n,
                k: check.shape.k,
                kernel: match check.said {
                    Some(said) => format!("{}: {said}", check.kernel),
                    None => check.kernel,
                },
                relative_error: check.error,
                limit: probe::LIMIT,
            })
            .collect();
        let times: Vec<KernelTime> = won
            .iter()
            .zip(found.times)
            .map(|(row, time)| KernelTime {
                shape: row.shape.clone(),
                tuned_us: row.us,
                us: time.us,
                clock: time.clock,
                kernel: time.kernel,
            })
            .collect();
        let trees = self.trees()?;
        let modules = loaded::modules(&trees, inspection.op, &found.modules)?;
        loaded::refuse_stale(&modules, &table.table)?;
        let seen: Vec<Seen<'_>> = won
            .iter()
            .zip(&times)
            .map(|(row, time)| Seen {
                row: row.candidate["kernelName"].as_str().unwrap_or_default(),
                time,
                by_name: trees
                    .aiter
                    .capabilities
                    .is_named(inspection.op, row.candidate["libtype"].as_str()),
            })
            .collect();
        Ok(Probed {
            layout,
            ran: judge(&seen),
            times,
            modules,
        })
    }
}

impl Kernels for Aiter {
    fn inspect(&self) -> Result<Inspection, Error> {
        self.inspect_site()
    }

    /// Checked before hours are spent on a table that could not be named.
    fn check_place(&self, run: &RunDir) -> Result<(), Error> {
        tables::plain(deploy::folder(run).join("table.csv")).map(drop)
    }

    fn seen(&self, inspection: &Inspection, log_summary: &LogSummary) -> Result<Inspection, Error> {
        self.operation_seen(inspection, log_summary)
    }

    fn engagement_env(
        &self,
        _run: &RunDir,
        _deployment: &Deployment,
        _records: &Utf8Path,
    ) -> Result<Environment, Error> {
        Ok(LOOKUPS_TOLD
            .into_iter()
            .map(|(name, value)| (name.to_owned(), Some(value.to_owned())))
            .collect())
    }

    fn plan_terms(&self, inspection: &Inspection) -> Result<PlanTerms, Error> {
        let trees = self.trees()?;
        let way = self.way_to(&trees, inspection)?;
        let before = crate::tree::aiter::tables(&trees.package, inspection.op, |name| {
            self.site.variable(name)
        })
        .map_err(|error| facts::aiter_error(&error))?;
        // A row is useless if Triton runs anyway: its shape is tuned like any other.
        let tables = if way.only_triton {
            Vec::new()
        } else {
            before
                .files
                .iter()
                .map(|path| tables::read_table(path, inspection.op))
                .collect::<Result<_, _>>()?
        };
        let device = Device::of_key(&inspection.gfx, inspection.cu_num).ok_or_else(|| {
            Error::new(
                ErrorKind::Environment,
                format!(
                    "no rates are known of {} with {} compute units",
                    inspection.gfx, inspection.cu_num
                ),
            )
        })?;
        Ok(PlanTerms {
            tables,
            configs: Vec::new(),
            revision: revision(&trees.aiter.capabilities),
            device,
            fold: Fold::Fine,
            cost: Cost::of(inspection.op, &inspection.gfx),
        })
    }

    fn tune(
        &self,
        order: &TuneOrder<'_>,
        observer: &mut dyn FnMut(&TuneEvent),
    ) -> Result<Tuned, Error> {
        let trees = self.trees()?;
        let inspection = order.inspection;
        let today = self.time_today(order, observer)?;
        let outcome = tuner::tune(
            &AiterOrder {
                tree: &trees.package,
                python: &self.site.python,
                env: self.site.environment(),
                op: inspection.op,
                untuned: order.shapes,
                // What serves today is timed through SGLang's linear, and cannot be compared with a kernel alone: see
                // `today`.
                incumbents: &BTreeMap::new(),
                folder: order.folder,
                key: Some((inspection.gfx.clone(), inspection.cu_num)),
                budget: Some(order.budget),
                limits: Limits::with(self.err_ratio, ERR_RATIO_LIMIT),
                settings: Settings::default(),
                keeper: &self.site.keeper,
                interrupt: order.interrupt,
            },
            observer,
        )
        .map_err(|error| tune_error(&error))?;
        if outcome.interrupted {
            return Err(Error::interrupted());
        }
        let mut tuned = Tuned::from(TuneOutcome::from(outcome));
        self.against_today(order, &today, &mut tuned, observer)?;
        Ok(tuned)
    }

    fn take(&self, inspection: &Inspection, table: &Utf8Path) -> Result<Vec<TunedTable>, Error> {
        from_elsewhere::take(&inspection.ops().collect::<Vec<_>>(), table)
    }

    fn deploy(
        &self,
        run: &RunDir,
        inspection: &Inspection,
        tuned: &Tuned,
    ) -> Result<Deployment, Error> {
        self.put_in_place(run, inspection, tuned)
    }

    fn undo(&self, run: &RunDir, deployment: &Deployment) -> Result<(), Error> {
        deploy::take_away(run, deployment)
    }

    fn rows(
        &self,
        inspection: &Inspection,
        deployment: &Deployment,
        shapes: &[Shape],
    ) -> Result<Vec<Option<String>>, Error> {
        self.with_tables(inspection, deployment, |resolvers| {
            let row = |shape: &Shape| {
                let mut resolvers = resolvers.iter();
                let resolver = resolvers.find(|resolver| resolver.rules().op == shape.op)?;
                Some(resolver.find(shape).row()?.m.to_string())
            };
            shapes.iter().map(row).collect()
        })
    }

    fn engagement(
        &self,
        deployed: &Deployed<'_>,
        log_summary: &LogSummary,
    ) -> Result<Engagement, Error> {
        let trees = self.trees()?;
        let (inspection, deployment) = (deployed.inspection, deployed.deployment);
        for (one, table) in deployment.tables(inspection) {
            let paths = loaded::expected(&trees, one.op, deployment)?;
            let modules = loaded::modules(&trees, one.op, &paths)?;
            loaded::refuse_stale(&modules, &table.table)?;
        }
        self.with_tables(inspection, deployment, |resolvers| {
            let planned = |resolver| {
                // Rows in use before are in the table too, most of them for other models: only ours were planned.
                let rows = deployed.tuned.placed(Resolver::rules(resolver).op);
                (resolver, rows.collect())
            };
            let tables: Vec<_> = resolvers.iter().map(planned).collect();
            super::engagement_of(&tables, log_summary)
        })
    }

    fn probe(&self, deployed: &Deployed<'_>, shapes: &[Shape]) -> Result<Probed, Error> {
        let mut probed = Probed::default();
        for (one, table) in deployed.deployment.tables(deployed.inspection) {
            let of = |shape: &&Shape| shape.op == one.op;
            let shapes: Vec<Shape> = shapes.iter().filter(of).cloned().collect();
            // A table from elsewhere may serve no shape of the workload.
            if !shapes.is_empty() {
                probed.add(self.probe_table(deployed, (&one, &table), &shapes)?);
            }
        }
        Ok(probed)
    }

    fn kernel_name(&self, candidate: &serde_json::Value) -> String {
        let name = candidate["kernelName"].as_str().unwrap_or("unnamed");
        let library = candidate["libtype"].as_str();
        let split = candidate["splitK"].as_i64().filter(|split| *split > 0);
        match (library, split) {
            // For assembly kernels it is the number of splits, for the others the exponent
            // (`aiter/ops/gemm_op_a8w8.py`).
            (Some("asm"), Some(split)) if split > 1 => format!("{name}, split-K {split}"),
            (Some("ck" | "cktile") | None, Some(split)) => {
                format!("{name}, split-K {}", 1_i64 << split.min(30))
            }
            _ => name.to_owned(),
        }
    }
}

fn tune_error(error: &AiterTuneError) -> Error {
    let class = match error {
        AiterTuneError::Interrupted => return Error::interrupted(),
        AiterTuneError::NoShapes => ErrorKind::NoShapes,
        AiterTuneError::Results(results) => class_of(results),
        AiterTuneError::NoTree { .. }
        | AiterTuneError::NoScript { .. }
        | AiterTuneError::Flag(_)
        | AiterTuneError::CannotImport { .. }
        | AiterTuneError::OtherTree { .. }
        | AiterTuneError::NoDevice { .. }
        | AiterTuneError::OtherKey { .. } => ErrorKind::Environment,
        _ => ErrorKind::TunerFailed,
    };
    Error::caused(class, error)
}

fn probe_error(error: &ProbeError) -> Error {
    match error {
        ProbeError::Run(RunError::Interrupted(_)) => Error::interrupted(),
        ProbeError::Run(RunError::DeadlinePassed { limit, .. }) => Error::new(
            ErrorKind::NotBetter,
            format!(
                "the deployed operation did not answer within {:.0} s; the deployment was undone",
                limit.as_secs_f64()
            ),
        )
        .hint("a module that compiles longer than that needs a larger `server.ready_timeout_s`"),
        ProbeError::Nothing { .. } => Error::caused(ErrorKind::Environment, error),
        _ => Error::caused(ErrorKind::Bug, error),
    }
}
