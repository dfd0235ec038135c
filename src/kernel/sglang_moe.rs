//! SGLang's Triton kernel for fused MoE: the overlay puts tables in place, nothing is written into SGLang's tree.

mod check;
mod deployed;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;

use self::deployed::Deployed;
use super::placed::{self, Placed, tile_name};
use super::{gone, raced};
use crate::engine::ports::{DeployedMoePart, FusedMoeKernels, MoeOrder, MoeTerms, Need};
use crate::log::summary::LogSummary;
use crate::overlay::OverlayOptions;
use crate::plan::moe::Ladder;
use crate::problem::Op;
use crate::problem::fused_moe::MoeProblem;
use crate::problem::op::fused_moe_triton::{BLOCK, OP};
use crate::run::documents::{
    DeployedMoe, Engagement, HitCount, Inspection, MoeCheck, SeenMoe, TunedMoe,
};
use crate::run::error::{Error, ErrorKind};
use crate::server::sglang::Site;
use crate::store::run_dir::RunDir;
use crate::table::moe::folders::Tables;
use crate::table::moe::name::TableName;
use crate::table::moe::release::Release;
use crate::table::moe::serve::{Pair, Server, Source};
use crate::table::roofline::Device as Rates;
use crate::tune::TuneEvent;
use crate::tune::backends::sglang_moe::{Routing, SglangMoe as Candidates};
use crate::tune::moe::{MoeTask, Sizes};
use crate::workload::config::{self, Config};
use crate::workload::env::Environment;

/// Folder in the run's tune folder; separate because the race of dense GEMMs has files of the same names.
const FOLDER: &str = "fused-moe";

/// Seconds of one device for the race of one GEMM under one BLOCK_SIZE_M: 52 of them with everything to be compiled took
/// 71 s on one H200 with 16 cores (docs/evidence/fused-moe-tune-h200).
const PART_S: f64 = 1.4;

/// Seconds for timing pairs of winners as whole operations, and for importing SGLang before the first of them:
/// assumed.
const WHOLE_S: f64 = 3.0;
const START_S: f64 = 60.0;

/// The kernel family of SGLang's fused MoE on its Triton kernel.
#[derive(Debug)]
pub(crate) struct SglangMoe {
    site: Arc<Site>,
    /// The routing with which rows are raced.
    routing: Routing,
}

impl SglangMoe {
    pub(crate) fn new(site: Arc<Site>, config: &Config) -> Self {
        Self {
            site,
            routing: match config.backend.expert_routing {
                config::Routing::Uniform => Routing::Uniform,
                config::Routing::Skewed => Routing::Skewed,
            },
        }
    }

    /// The tables that the server reads today: those of its package, or those that a variable names instead.
    fn tables(&self) -> Result<Option<Tables>, Error> {
        let place = match self.site.variable("SGLANG_MOE_CONFIG_DIR") {
            Some(folder) if !folder.is_empty() => Utf8PathBuf::from(folder),
            _ => self.site.sglang(&self.site.look()?)?.folder,
        };
        Tables::open(&place).map_err(|error| Error::file(&error))
    }
}

/// The `refusal` of dense GEMMs, with a hint on how to proceed if the workload ran a fused MoE.
pub(crate) fn or_its_experts(refusal: Error, log_summary: &LogSummary) -> Error {
    if log_summary.moe.is_empty() {
        refusal
    } else {
        refusal.hint("`backend.kind = \"sglang-moe\"` tunes the fused MoE of this model and leaves its dense GEMMs as they are")
    }
}

/// What determines which table is read.
struct Machine<'a> {
    device: &'a str,
    triton: &'a str,
    release: Release,
}

impl<'a> Machine<'a> {
    fn of(inspection: &'a Inspection) -> Self {
        let said = |name: &str| inspection.identity.get(name).map_or("", String::as_str);
        Self {
            device: said("device"),
            triton: said("triton"),
            release: said("sglang").parse().unwrap_or(Release::NEWEST),
        }
    }

    /// What serves `problem` today, in words.
    fn today(&self, tables: Option<&Tables>, problem: &MoeProblem) -> String {
        let name = TableName::of(problem, self.device, false);
        let server = Server {
            release: self.release,
            triton: self.triton,
        };
        let pair = match tables.map(|tables| Pair::find(tables, &name, server)) {
            Some(Ok(pair)) => pair,
            Some(Err(error)) => return format!("nothing that can be predicted: {error}"),
            None => return format!("the default configuration, for there is no table `{name}`"),
        };
        match pair.sources() {
            [Some(Source::File { path, other_triton }), down] => {
                let file = path.file_name().unwrap_or_default();
                let other = other_triton.as_ref().map_or_else(String::new, |other| {
                    format!(", tuned for Triton {other} ({} runs)", self.triton)
                });
                let down = match down {
                    Some(_) => " with one of its own for the down projection",
                    None => ", its rows for the down projection too",
                };
                format!("the table `{file}`{other}{down}")
            }
            _ => format!("the default configuration, for there is no table `{name}`"),
        }
    }
}

impl FusedMoeKernels for SglangMoe {
    fn inspect(&self) -> Result<Inspection, Error> {
        let package = self.site.sglang(&self.site.look()?)?;
        let mut looking = Candidates::new(BLOCK);
        looking.whole = false;
        let device = raced::device(&self.site, &looking)?;
        let mut identity = raced::identity(&device);
        // How the operation is timed is only known once it is.
        identity.remove("whole");
        Ok(Inspection {
            also: Vec::new(),
            dense_left: None,
            identity,
            op: Op::TritonBlockFp8,
            gfx: device.arch.clone(),
            cu_num: device.cu_num,
            path: format!(
                "SGLang's Triton kernel for fused MoE in {}; its dense GEMMs are left to whatever serves them",
                package.folder
            ),
            linear: None,
            table: None,
            remarks: self.site.remarks(&device),
        })
    }

    fn op(&self) -> &'static str {
        OP
    }

    fn seen(
        &self,
        inspection: &Inspection,
        log_summary: &LogSummary,
    ) -> Result<(Vec<SeenMoe>, Vec<String>), Error> {
        let mut calls: BTreeMap<MoeProblem, BTreeMap<u32, u64>> = BTreeMap::new();
        for counted in log_summary.moe.problems() {
            if let Some(m) = counted.m {
                calls
                    .entry(counted.problem)
                    .or_default()
                    .insert(m, counted.records);
            }
        }
        if calls.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        let tables = self.tables()?;
        let machine = Machine::of(inspection);
        let seen = calls.into_iter().map(|(problem, calls)| SeenMoe {
            per_forward: log_summary.moe.per_forward(&problem),
            today: machine.today(tables.as_ref(), &problem),
            problem,
            calls,
        });
        Ok((seen.collect(), Vec::new()))
    }

    fn unseen(&self) -> Error {
        Error::new(
            ErrorKind::NoShapes,
            "the instrumented server served the workload and ran no fused MoE of SGLang's Triton kernel",
        )
        .hint("does the model have experts in FP8, and does `--moe-runner-backend` leave them on triton (its default on Hopper without DeepEP)?")
    }

    fn task(&self, problem: &MoeProblem, m: u32) -> Result<MoeTask, String> {
        MoeTask::of(problem, m, BLOCK)
    }

    fn terms(&self, inspection: &Inspection) -> Result<MoeTerms, Error> {
        let name = Machine::of(inspection).device;
        Ok(MoeTerms {
            device: Rates::of_name(name).unwrap_or_else(|| Rates::unknown(name, inspection.cu_num)),
            ladder: Ladder::Nearest,
            // Each is raced against what serves it, whatever that is.
            left: Box::new(|_, _| None),
        })
    }

    fn need(&self, tasks: &[MoeTask]) -> Need {
        use crate::tune::task::Task as _;

        let parts: usize = tasks.iter().map(|task| task.parts().len()).sum();
        Need {
            once_s: if tasks.is_empty() { 0.0 } else { START_S },
            rows_s: parts as f64 * PART_S + tasks.len() as f64 * WHOLE_S,
        }
    }

    fn tune(
        &self,
        order: &MoeOrder<'_>,
        observer: &mut dyn FnMut(&TuneEvent<MoeTask>),
    ) -> Result<TunedMoe, Error> {
        let mut backend = Candidates::new(BLOCK);
        backend.routing = self.routing;
        let folder = order.run.tune().join(FOLDER);
        let tasks = order.tasks.to_vec();
        let place = (folder, order.budget);
        raced::race(
            &self.site,
            &backend,
            tasks,
            place,
            observer,
            order.interrupt,
        )
        .map(TunedMoe::from)
    }

    fn deploy(
        &self,
        run: &RunDir,
        inspection: &Inspection,
        tuned: &TunedMoe,
    ) -> Result<DeployedMoe, Error> {
        let machine = Machine::of(inspection);
        let won: BTreeSet<Sizes> = tuned.won().map(|row| row.shape.sizes()).collect();
        let names: BTreeSet<String> = won
            .iter()
            .flat_map(|sizes| deployed::names(machine.device, *sizes))
            .collect();
        let raced = |name: &String| tuned.tables.iter().find(|table| table.name == *name);
        if let Some(missing) = names.iter().find(|name| raced(name).is_none()) {
            return Err(Error::new(
                ErrorKind::NotResumable,
                format!("the tuning has no rows of the table `{missing}`"),
            )
            .hint("a gemmtune that kept no rows began this run: go on with that one, or begin a new run: `gemmtune run --new`"));
        }
        let placed = Placed::write(run, &format!("{FOLDER}-"), names.iter().filter_map(raced))?;
        let folder = placed.folder.clone();
        let deployed = Deployed::of(&folder, machine.device);
        if let Err(refused) = deployed.check(&won, tuned) {
            gone(fs_err::remove_dir_all(&folder))?;
            return Err(refused);
        }
        let options = in_place(&folder);
        let they = "put its fused-MoE tables in front of SGLang's own";
        let (env, takes_back) = placed.in_front(&self.site, run, &options, they)?;
        Ok(DeployedMoe {
            takes_back: vec![takes_back],
            rows: won.iter().map(|sizes| deployed.rows(*sizes)).sum(),
            won: tuned.won().count(),
            notes: left_alone(tuned, &won),
            env,
            table: folder,
            digest: placed.digest,
        })
    }

    fn undo(&self, deployed: &DeployedMoe) -> Result<(), Error> {
        gone(fs_err::remove_dir_all(&deployed.table))
    }

    fn probe(&self, part: &DeployedMoePart<'_>) -> Result<Vec<MoeCheck>, Error> {
        let device = Machine::of(part.inspection).device;
        check::run(self, part, &Deployed::of(&part.deployed.table, device))
    }

    fn engagement_env(
        &self,
        run: &RunDir,
        deployed: &DeployedMoe,
        records: &Utf8Path,
    ) -> Result<Environment, Error> {
        placed::recording(&self.site, run, in_place(&deployed.table), records)
    }

    fn engagement(
        &self,
        inspection: &Inspection,
        deployed: &DeployedMoe,
        log_summary: &LogSummary,
    ) -> Result<Engagement, Error> {
        let package = self.site.sglang(&self.site.look()?)?;
        self.site
            .check_records(log_summary, &package.folder)
            .map_err(|error| {
                Error::new(
                    ErrorKind::NotBetter,
                    format!("engagement: {error}; the deployment was undone"),
                )
            })?;
        let device = Machine::of(inspection).device;
        Ok(engagement_of(
            &Deployed::of(&deployed.table, device),
            log_summary,
        ))
    }

    fn row_name(&self, candidate: &Value) -> String {
        row_name(candidate)
    }
}

/// The overlay options that put the tables of `folder` in place.
fn in_place(folder: &Utf8Path) -> OverlayOptions {
    OverlayOptions {
        moe_tables: Some(folder.to_owned()),
        ..OverlayOptions::default()
    }
}

/// A name such as `64x128x128, group 1, 4 warps, 3 stages`, for both projections if they differ.
fn row_name(candidate: &Value) -> String {
    let (up, down) = (&candidate["up"], &candidate["down"]);
    if down.is_null() || up == down {
        tile_name(up)
    } else {
        format!("up {}; down {}", tile_name(up), tile_name(down))
    }
}

/// Lists the tables that are left as they are because none of their rows was beaten.
fn left_alone(tuned: &TunedMoe, won: &BTreeSet<Sizes>) -> Vec<String> {
    let raced: BTreeSet<Sizes> = tuned.rows.iter().map(|row| row.shape.sizes()).collect();
    raced
        .difference(won)
        .map(|sizes| {
            format!(
                "fused MoE E={} N={} is left with what serves it today: no row is faster",
                sizes.experts, sizes.inter
            )
        })
        .collect()
}

/// What the overlay's record of each fused MoE that a server ran tells about the deployed tables. If a process was
/// served by a row other than the others', that record counts (`MoeSummary::served`).
fn engagement_of(deployed: &Deployed, log_summary: &LogSummary) -> Engagement {
    let mut engagement = Engagement::default();
    for (experts, n) in deployed.tables() {
        engagement
            .families
            .insert(format!("E={experts} N={n}"), HitCount::default());
    }
    for ((problem, m), served) in &log_summary.moe.served {
        let what = format!("E={} N={} M={m}", problem.experts, problem.n);
        let Some(row) = deployed.row(problem.experts, problem.n, *m) else {
            engagement.unplanned.push(what);
            continue;
        };
        let asked = engagement
            .families
            .entry(format!("E={} N={}", problem.experts, problem.n))
            .or_default();
        let ran = deployed::Row::of(&served.up, &served.down);
        if served.injected && ran == row {
            asked.hit += 1;
            engagement.hit += 1;
            continue;
        }
        asked.missed += 1;
        let other = format!("{what}: {} instead of {}", ran.name(), row.name());
        if served.injected {
            engagement.other_kernel.push(other);
        } else {
            engagement.missed.push(other);
        }
    }
    engagement
}

#[cfg(test)]
#[path = "sglang_moe/tests.rs"]
mod tests;
