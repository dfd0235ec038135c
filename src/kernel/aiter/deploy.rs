//! One merged table in one new file, the variable that names it, the modules it is compiled into, and the switch.
//!
//! No user file is written: the tables in use are read and merged into a file in the run folder. What has to be moved
//! aside (a compiled module, a dead builder's lock) is recorded in the run's ledger, and `gemmtune undo` moves it
//! back.

use std::collections::BTreeSet;

use camino::{Utf8Path, Utf8PathBuf};

use super::cover::{Covered, Keys};
use super::facts::{KernelPath, Trees, aiter_error, arch_of, read};
use super::room::make_room;
use super::tables::{merged, plain};
use super::{Aiter, pins};
use crate::kernel::gone;
use crate::overlay::{self, OverlayOptions};
use crate::problem::Op;
use crate::pyedit::source::Source;
use crate::run::documents::{DeployedTable, Deployment, Inspection, Tuned};
use crate::run::error::{Error, ErrorKind};
use crate::store::digest::short as digest;
use crate::store::file::write_atomic;
use crate::store::ledger::{Ledger, LedgerError};
use crate::store::run_dir::RunDir;
use crate::table::aiter::{Row, Table};
use crate::table::family;
use crate::table::lookup::{Resolver, Rules};
use crate::table::merge::Policy;
use crate::table::shapes;
use crate::tree::aiter;
use crate::tree::era;
use crate::tree::force::{self, ForceError, Means, Rule, SwitchRequest, Target};
use crate::tree::package::FP8_UTILS;
use crate::tree::{reach, route};
use crate::workload::config::Switch;

/// The ledger's name for the files moved by deploying.
pub(super) const OPERATION: &str = "deploy";

/// The folder of the deployed table and its files in a run folder.
pub(super) fn folder(run: &RunDir) -> Utf8PathBuf {
    run.deploy()
}

impl Aiter {
    pub(super) fn put_in_place(
        &self,
        run: &RunDir,
        inspection: &Inspection,
        tuned: &Tuned,
    ) -> Result<Deployment, Error> {
        take_back_unfinished(run)?;
        let (deployment, _) = self.arrange(run, inspection, tuned, &Place::Deployed)?;
        let first = (run.table(), &deployment.table);
        let also = deployment.also.iter().map(|also| {
            let name = format!("table-{}.csv", also.op);
            (run.path().join(name), &also.table)
        });
        for (copy, table) in std::iter::once(first).chain(also) {
            write_atomic(&copy, &read(table)?).map_err(|error| Error::file(&error))?;
        }
        write_environment(run, &deployment)?;
        Ok(deployment)
    }

    /// The tuned rows as they would be deployed, but in a folder of the tune stage, with modules of their own:
    /// nothing in the trees is moved. Also returns the overlay's decision, if that alone switches from today's path
    /// to the tuned one.
    pub(super) fn try_out(
        &self,
        run: &RunDir,
        inspection: &Inspection,
        tuned: &Tuned,
        folder: &Utf8Path,
    ) -> Result<(Deployment, Option<Utf8PathBuf>), Error> {
        self.arrange(run, inspection, tuned, &Place::Tried(folder.to_owned()))
    }

    fn arrange(
        &self,
        run: &RunDir,
        inspection: &Inspection,
        tuned: &Tuned,
        place: &Place,
    ) -> Result<(Deployment, Option<Utf8PathBuf>), Error> {
        let trees = self.trees()?;
        let mut deployment = Deployment::default();
        let folder = place.folder(run);
        let mut arranged = Vec::new();
        for one in inspection.operations() {
            let beside = if one.op == inspection.op {
                folder.clone()
            } else {
                folder.join(one.op.name())
            };
            arranged.extend(self.arrange_one(
                run,
                &trees,
                (one, &beside),
                tuned,
                &mut deployment,
            )?);
        }
        let mut tables = arranged.iter().map(|one| one.deployed.clone());
        let Some(first) = tables.next() else {
            return Err(Error::new(
                ErrorKind::NotBetter,
                "no tuned row is faster than what serves its shape today, so there is nothing to deploy",
            ));
        };
        deployment.also = tables.collect();
        deployment.op = (!inspection.also.is_empty()).then_some(first.op);
        (deployment.table, deployment.digest, deployment.rows) =
            (first.table, first.digest, first.rows);
        self.without_tables_of_the_tree(&trees, &mut deployment);
        let steps: Vec<force::Step> = arranged
            .iter()
            .flat_map(|one| one.steps.iter().cloned())
            .collect();
        let decision = self.overlay_for(run, &folder, &steps, &mut deployment)?;
        make_room(run, place, &trees, &arranged, &mut deployment)?;
        let by_overlay = arranged
            .iter()
            .all(|one| one.by_overlay && one.way.only_triton);
        Ok((deployment, decision.filter(|_| by_overlay)))
    }

    /// Writes the table of one operation into `folder`, and decides how its GEMMs reach it; `None` if none of its
    /// rows is faster than what serves today.
    fn arrange_one(
        &self,
        run: &RunDir,
        trees: &Trees,
        (inspection, folder): (Inspection, &Utf8Path),
        tuned: &Tuned,
        deployment: &mut Deployment,
    ) -> Result<Option<Arranged>, Error> {
        let op = inspection.op;
        let variable = aiter::variable(op).map_err(|error| aiter_error(&error))?;
        let before = aiter::tables(&trees.package, op, |name| self.site.variable(name))
            .map_err(|error| aiter_error(&error))?;
        let way = self.way_to(trees, &inspection)?;
        let revision = aiter::revision(&trees.aiter.capabilities);
        let mut covered = Covered {
            weights: weights(run, op)?,
            ours: Keys::new(),
            left: tuned.left(op),
            stays_triton: route::triton_shapes(&fp8_utils(trees)?),
        };
        let tuned_rows = tuned.tables.iter().flat_map(|table| table.csv_rows(op));
        let (rows, lost): (Vec<Row>, Vec<Row>) = tuned_rows
            .cloned()
            .partition(|row| !covered.left.contains(&(row.m, row.n, row.k)));
        if rows.is_empty() {
            return Ok(None);
        }
        let notes = &mut deployment.notes;
        let table = |rows: &[Row]| {
            let mut table = Table::new("tuned here", op, revision);
            table.rows = rows.to_vec();
            table
        };
        let policy = Policy {
            gfx: Some(inspection.gfx.clone()),
            revision: Some(revision),
            ..Policy::default()
        };
        let in_use = merged(table(&[]), &before.files, &policy, notes)?;
        let rules = aiter::rules(op, &trees.aiter.capabilities);
        let mut mine = table(&rows);
        let mut merged_table = merged(mine.clone(), &before.files, &policy, &mut Vec::new())?;
        let on_table = covered.of_the_operation_today(&way);
        let kept = pins::pins(
            &on_table,
            op,
            &resolver(&in_use, &inspection, rules)?,
            &resolver(&merged_table, &inspection, rules)?,
            &lost,
        );
        if !kept.is_empty() {
            mine.rows.extend(kept);
            merged_table = merged(mine, &before.files, &policy, &mut Vec::new())?;
        }
        let text = merged_table.to_csv();
        let digest = digest(text.as_bytes());
        let path = plain(folder.join(format!(
            "{}-{digest}.csv",
            family::stem(op).unwrap_or("tuned_gemm")
        )))?;
        let written =
            fs_err::create_dir_all(folder).and_then(|()| write_atomic(&path, text.as_bytes()));
        written.map_err(|error| Error::file(&error))?;
        deployment.env.insert(variable.to_owned(), path.to_string());
        deployment.takes_back.push(format!(
            "the variable {variable} and the file {path} it names"
        ));
        covered.ours = rows.iter().map(|row| (row.m, row.n, row.k)).collect();
        let (steps, by_overlay) = self.switch(
            trees,
            &inspection,
            &way,
            &covered,
            &resolver(&merged_table, &inspection, rules)?,
            deployment,
        )?;
        Ok(Some(Arranged {
            deployed: DeployedTable {
                op,
                table: path,
                digest,
                rows: merged_table.rows.len(),
            },
            inspection,
            way,
            rows: merged_table,
            steps,
            by_overlay,
        }))
    }

    /// Decides how GEMMs reach the tuned operation: the steps of the overlay, and whether those are sufficient.
    fn switch(
        &self,
        trees: &Trees,
        inspection: &Inspection,
        way: &KernelPath,
        covered: &Covered,
        resolver: &Resolver<'_>,
        deployment: &mut Deployment,
    ) -> Result<(Vec<force::Step>, bool), Error> {
        if self.switch == Switch::None || way.no_triton {
            return Ok((Vec::new(), false));
        }
        let source = fp8_utils(trees)?;
        let dispatch = era::dispatch(&source)
            .map_err(|error| Error::caused(ErrorKind::SourceNotRecognised, &error))?;
        let arch = arch_of(&inspection.gfx)?;
        let rocm = trees.rocm();
        let plan = |routes: &[Rule]| {
            force::plan(
                &dispatch,
                &route::safe_m(&source),
                &SwitchRequest {
                    to: Target::Ck,
                    routes,
                    arch,
                    rocm,
                    env: true,
                },
            )
        };
        let routes = match self.switch {
            Switch::Route => covered.routes(resolver, way, inspection.op),
            Switch::All | Switch::None => Vec::new(),
        };
        let refused =
            |error: &ForceError| Error::new(ErrorKind::SourceNotRecognised, error.to_string());
        if routes.is_empty() && self.switch == Switch::Route {
            return Err(Error::new(
                ErrorKind::NotBetter,
                "the tuned rows serve none of the weights that the workload uses",
            ));
        }
        let plan = plan(&routes).map_err(|error| refused(&error))?;
        if plan.means == Means::None {
            return Ok((Vec::new(), false));
        }
        reach::both_readers(&trees.sglang, dispatch.era, &plan, (arch, rocm))
            .map_err(|error| Error::caused(ErrorKind::SourceNotRecognised, &error))?;
        deployment.notes.push(if routes.is_empty() {
            format!("every block-FP8 GEMM goes to the tuned operation: {}", plan.detail)
        } else {
            format!(
                "GEMMs that a row tuned here serves go to the tuned operation, all others stay where they are: {}",
                plan.detail
            )
        });
        deployment.takes_back.push(plan.detail.clone());
        let unset: Vec<String> = plan
            .unset
            .into_iter()
            .filter(|name| self.site.variable(name).is_some())
            .collect();
        let by_overlay = plan.env.is_empty() && unset.is_empty();
        deployment.env.extend(plan.env);
        deployment.unset.extend(unset);
        Ok((plan.steps, by_overlay))
    }

    /// SGLang 0.5.23 merges rows of its own into aiter's table and changes the variable in the scheduler's process
    /// (`models/deepseek_common/amd/aiter_intree_tune.py`); then it would not be known whose rows ran.
    fn without_tables_of_the_tree(&self, trees: &Trees, deployment: &mut Deployment) {
        const IN_TREE: &str = "SGLANG_AITER_INTREE_GEMM_TUNE";
        let declared = trees.sglang.folder.join("srt/environ.py");
        let reads = fs_err::read(&declared)
            .is_ok_and(|text| memchr::memmem::find(&text, IN_TREE.as_bytes()).is_some());
        if reads && self.site.variable(IN_TREE).is_none() {
            deployment.env.insert(IN_TREE.to_owned(), "0".to_owned());
            deployment.notes.push(format!(
                "{IN_TREE}=0 in the tuned arm: this SGLang would put rows of its own in place of the deployed table's"
            ));
        }
    }

    /// Writes the decision, and prepends the overlay to the server's PYTHONPATH.
    fn overlay_for(
        &self,
        run: &RunDir,
        folder: &Utf8Path,
        steps: &[force::Step],
        deployment: &mut Deployment,
    ) -> Result<Option<Utf8PathBuf>, Error> {
        if steps.is_empty() {
            return Ok(None);
        }
        let decision = folder.join("switch.json");
        let text = overlay::decision(steps);
        write_atomic(&decision, text.as_bytes()).map_err(|error| Error::file(&error))?;
        let options = OverlayOptions {
            switch: Some(decision.clone()),
            ..OverlayOptions::default()
        };
        for (name, value) in self.site.overlay(run, &options)? {
            if let Some(value) = value {
                deployment.env.insert(name, value);
            }
        }
        Ok(Some(decision))
    }
}

/// One operation's table, and how its GEMMs reach it.
pub(super) struct Arranged {
    pub(super) inspection: Inspection,
    pub(super) way: KernelPath,
    deployed: DeployedTable,
    /// The rows of the deployed table.
    pub(super) rows: Table,
    /// The steps of the overlay that route GEMMs to it, and whether those are sufficient.
    steps: Vec<force::Step>,
    by_overlay: bool,
}

/// Where files are written.
pub(super) enum Place {
    /// The run's deployment folder: these files serve from now on.
    Deployed,
    /// This folder, for a process that only times them.
    Tried(Utf8PathBuf),
}

impl Place {
    pub(super) fn folder(&self, run: &RunDir) -> Utf8PathBuf {
        match self {
            Self::Deployed => folder(run),
            Self::Tried(folder) => folder.clone(),
        }
    }
}

pub(super) fn fp8_utils(trees: &Trees) -> Result<Source, Error> {
    trees
        .sglang
        .read(FP8_UTILS)
        .map_err(|error| Error::caused(ErrorKind::SourceNotRecognised, &error))
}

fn resolver<'t>(
    table: &'t Table,
    inspection: &Inspection,
    rules: Rules,
) -> Result<Resolver<'t>, Error> {
    Resolver::new(table, rules, &inspection.gfx, inspection.cu_num)
        .map_err(|error| Error::caused(ErrorKind::Bug, &error))
}

/// Removes what deploying wrote. What it moved is undone by the ledger.
pub(super) fn take_away(run: &RunDir, deployment: &Deployment) -> Result<(), Error> {
    for path in &deployment.appear {
        gone(if path.is_dir() {
            fs_err::remove_dir_all(path)
        } else {
            fs_err::remove_file(path)
        })?;
    }
    gone(fs_err::remove_dir_all(folder(run)))
}

/// Undoes an attempt that was killed after it moved files but before its document was written.
fn take_back_unfinished(run: &RunDir) -> Result<(), Error> {
    let failed = |error: LedgerError| Error::caused(ErrorKind::Environment, &error);
    let unfinished: Vec<u32> = Ledger::read(&run.ledger())
        .map_err(failed)?
        .iter()
        .rev()
        .filter(|operation| operation.name == OPERATION && operation.is_live())
        .map(|operation| operation.id)
        .collect();
    if unfinished.is_empty() {
        return Ok(());
    }
    let mut ledger = Ledger::open(&run.ledger(), "gemmtune run").map_err(failed)?;
    unfinished
        .into_iter()
        .try_for_each(|id| ledger.undo(id))
        .map_err(failed)
}

/// Weights (N, K) that the captured workload uses.
fn weights(run: &RunDir, op: Op) -> Result<BTreeSet<(u32, u32)>, Error> {
    let captured = shapes::read(&read(&run.shapes())?, Some(op))
        .map_err(|error| Error::caused(ErrorKind::Bug, &error))?;
    Ok(captured
        .iter()
        .filter(|counted| counted.shape.op == op)
        .map(|counted| (counted.shape.n, counted.shape.k))
        .collect())
}

/// The deployment as shell commands, for use after the run.
fn write_environment(run: &RunDir, deployment: &Deployment) -> Result<(), Error> {
    use std::fmt::Write as _;
    let mut text = String::from("# The tuned arm's environment; `gemmtune undo` takes it back.\n");
    for name in &deployment.unset {
        let _ = writeln!(text, "unset {name}");
    }
    for (name, value) in &deployment.env {
        let quoted = shlex::try_quote(value).map_or_else(|_| value.clone(), Into::into);
        let _ = writeln!(text, "export {name}={quoted}");
    }
    write_atomic(&folder(run).join("env.sh"), text.as_bytes()).map_err(|error| Error::file(&error))
}
