//! One merged table in one new file, the variable that names it, the modules it is compiled into, and the switch.
//!
//! Nothing of the user's is written: the tables that served before are read and merged into a file of the run folder.
//! What has to go out of the way (a compiled module, a dead builder's lock) goes into the run's ledger, and comes back
//! with `gemmtune undo`.

use std::collections::BTreeSet;

use camino::{Utf8Path, Utf8PathBuf};

use super::cover::{Covered, Keys};
use super::facts::{Trees, Way, aiter_error, arch_of, read};
use super::tables::{merged, plain, read_table};
use super::{Aiter, pins};
use crate::overlay::{self, OverlayOptions};
use crate::platform::gone;
use crate::problem::Op;
use crate::pyedit::source::Source;
use crate::run::documents::{Deployment, Inspection, Tuned};
use crate::run::error::{Error, ErrorKind};
use crate::store::digest::short as digest;
use crate::store::file::write_atomic;
use crate::store::ledger::{Change, Ledger, LedgerError};
use crate::store::run_dir::RunDir;
use crate::table::aiter::{Row, Table};
use crate::table::family;
use crate::table::kernels::Library;
use crate::table::lookup::{Resolver, Rules};
use crate::table::merge::Policy;
use crate::table::shapes;
use crate::tree::aiter;
use crate::tree::coupling::Coupling;
use crate::tree::era;
use crate::tree::force::{self, ForceError, Means, Rule, SwitchRequest, Target};
use crate::tree::package::FP8_UTILS;
use crate::tree::{reach, route};
use crate::workload::config::Switch;

/// The rows that were tuned, without those that served before: what engagement is asked about.
const OURS: &str = "tuned.csv";

/// The ledger's name for what deploying moved.
const OPERATION: &str = "deploy";

/// Where the deployed table and what belongs to it lie in a run folder.
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
        let text = read(&deployment.table)?;
        write_atomic(&run.table(), &text).map_err(|error| Error::file(&error))?;
        write_environment(run, &deployment)?;
        Ok(deployment)
    }

    /// The tuned rows as they would be deployed, but in a folder of the tuning, with modules of their own: nothing of the
    /// trees moves. With it the overlay's decision, where that alone leads from the way of today to the tuned one.
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
        let op = inspection.op;
        let variable = aiter::variable(op).map_err(|error| aiter_error(&error))?;
        let before = aiter::tables(&trees.package, op, |name| self.site.variable(name))
            .map_err(|error| aiter_error(&error))?;
        let way = self.way_to(&trees, inspection)?;
        let revision = aiter::revision(&trees.aiter.capabilities);
        let mut deployment = Deployment {
            env: [].into(),
            unset: Vec::new(),
            notes: Vec::new(),
            table: Utf8PathBuf::new(),
            digest: String::new(),
            rows: 0,
            appear: Vec::new(),
            takes_back: Vec::new(),
            may_build: false,
            dense: true,
            fused_moe: None,
        };
        let mut covered = Covered {
            weights: weights(run, op)?,
            ours: Keys::new(),
            left: left(tuned),
            stays_triton: route::triton_shapes(&fp8_utils(&trees)?),
        };
        let tuned_rows = tuned.tables.iter().flat_map(|table| table.csv_rows(op));
        let (rows, lost): (Vec<Row>, Vec<Row>) = tuned_rows
            .cloned()
            .partition(|row| !covered.left.contains(&(row.m, row.n, row.k)));
        if rows.is_empty() {
            return Err(Error::new(
                ErrorKind::NotBetter,
                "no tuned row is faster than what serves its shape today, so there is nothing to deploy",
            ));
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
            &resolver(&in_use, inspection, rules)?,
            &resolver(&merged_table, inspection, rules)?,
            &lost,
        );
        if !kept.is_empty() {
            mine.rows.extend(kept);
            merged_table = merged(mine.clone(), &before.files, &policy, &mut Vec::new())?;
        }
        let folder = place.folder(run);
        let text = merged_table.to_csv();
        deployment.rows = merged_table.rows.len();
        deployment.digest = digest(text.as_bytes());
        deployment.table = plain(folder.join(format!(
            "{}-{}.csv",
            family::stem(op).unwrap_or("tuned_gemm"),
            deployment.digest
        )))?;
        let written = fs_err::create_dir_all(&folder)
            .and_then(|()| write_atomic(&folder.join(OURS), mine.to_csv().as_bytes()))
            .and_then(|()| write_atomic(&deployment.table, text.as_bytes()));
        written.map_err(|error| Error::file(&error))?;
        deployment
            .env
            .insert(variable.to_owned(), deployment.table.to_string());
        deployment.takes_back.push(format!(
            "the variable {variable} and the file {} it names",
            deployment.table
        ));
        covered.ours = rows.iter().map(|row| (row.m, row.n, row.k)).collect();
        let (steps, by_overlay) = self.switch(
            &trees,
            inspection,
            &way,
            &covered,
            &resolver(&merged_table, inspection, rules)?,
            &mut deployment,
        )?;
        self.without_tables_of_the_tree(&trees, &mut deployment);
        let decision = self.overlay_for(run, &folder, &steps, &mut deployment)?;
        make_room(
            run,
            place,
            &trees,
            inspection,
            &way,
            &merged_table,
            &mut deployment,
        )?;
        Ok((
            deployment,
            decision.filter(|_| by_overlay && way.only_triton),
        ))
    }

    /// Decides how GEMMs get to the tuned operation: the overlay's steps, and whether they are all of it.
    fn switch(
        &self,
        trees: &Trees,
        inspection: &Inspection,
        way: &Way,
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

    /// SGLang 0.5.23 merges rows of its own into aiter's table and points the variable elsewhere in the scheduler's
    /// process (`models/deepseek_common/amd/aiter_intree_tune.py`); then it would not be known whose rows ran.
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

    /// Writes the decision, and puts the overlay in front of whatever PYTHONPATH the server has.
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

/// Where what is arranged lies.
enum Place {
    /// In the run's folder of the deployment: what serves from now on.
    Deployed,
    /// In this folder, for a process that only times it.
    Tried(Utf8PathBuf),
}

impl Place {
    fn folder(&self, run: &RunDir) -> Utf8PathBuf {
        match self {
            Self::Deployed => folder(run),
            Self::Tried(folder) => folder.clone(),
        }
    }
}

/// (M, N, K) that are left with what serves them today: no row of theirs is deployed.
fn left(tuned: &Tuned) -> Keys {
    let lost = tuned.contests.iter().filter(|contest| !contest.takes_over);
    let kept = tuned.rows.iter().filter(|row| row.incumbent_kept);
    lost.map(|contest| &contest.shape)
        .chain(kept.map(|row| &row.shape))
        .map(|shape| (shape.m, shape.n, shape.k))
        .collect()
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

/// Moves compiled modules out of the way that do not hold the table's kernels, and locks that nobody holds.
fn make_room(
    run: &RunDir,
    place: &Place,
    trees: &Trees,
    inspection: &Inspection,
    way: &Way,
    table: &Table,
    deployment: &mut Deployment,
) -> Result<(), Error> {
    let jit = &trees.aiter.products.folder;
    let modules =
        aiter::modules(&trees.package, inspection.op).map_err(|error| aiter_error(&error))?;
    let (mut rebuilt, mut compiled_in) = (Vec::new(), false);
    for module in &modules {
        let built = jit.join(format!("{}.so", module.name));
        let coupling = trees
            .aiter
            .capabilities
            .coupling(inspection.op, module.library);
        let names = kernel_names(table, inspection, module.library);
        let needs = match coupling {
            // Called by a kernel's number, and only for a row that says so.
            Coupling::CompiledIn if module.library == Library::Opus => !names.is_empty(),
            Coupling::CompiledIn => true,
            Coupling::ByName => {
                let absent = aiter::absent_kernels(&built, &names);
                if built.is_file()
                    && let Some(first) = absent.first()
                {
                    deployment.notes.push(format!(
                        "{} lacks {} of the table's kernels, first {first}: it is built again",
                        module.name,
                        absent.len()
                    ));
                }
                !absent.is_empty()
            }
        };
        if needs {
            compiled_in |= coupling == Coupling::CompiledIn;
            rebuilt.push(module.name.clone());
        }
    }
    deployment.may_build = !rebuilt.is_empty();
    // The baseline runs the same modules, and these hold the table: it would run tuned kernels too.
    let tried = matches!(place, Place::Tried(_));
    if tried && !rebuilt.is_empty() || compiled_in && !way.only_triton {
        return private_modules(&place.folder(run), jit, &rebuilt, deployment);
    }
    if tried {
        return Ok(());
    }
    let mut changes = Vec::new();
    for name in &rebuilt {
        for path in [jit.join(format!("{name}.so")), jit.join("build").join(name)] {
            if path.symlink_metadata().is_ok() {
                deployment
                    .takes_back
                    .push(format!("{path}, which is back as it was"));
                changes.push(Change::MoveAside {
                    path,
                    regenerated: true,
                });
            } else {
                deployment.appear.push(path);
            }
        }
    }
    for lock in &trees.aiter.products.stale_locks {
        // One inside a build folder that moves goes with it.
        let inside = rebuilt
            .iter()
            .any(|name| lock.starts_with(jit.join("build").join(name)));
        if !inside {
            changes.push(Change::MoveAside {
                path: lock.clone(),
                regenerated: true,
            });
        }
    }
    if changes.is_empty() {
        return Ok(());
    }
    let detail = serde_json::json!({ "table": deployment.table });
    Ledger::open(&run.ledger(), "gemmtune run")
        .and_then(|mut ledger| ledger.apply(OPERATION, detail, &changes))
        .map(drop)
        .map_err(|error| Error::caused(ErrorKind::Environment, &error))
}

/// Takes away what deploying wrote. What it moved is the ledger's.
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

/// Undoes an attempt that was killed after it moved files and before its document was written.
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

/// The rows of a deployment that were tuned for it.
pub(super) fn tuned_table(deployment: &Deployment, op: Op) -> Result<Table, Error> {
    read_table(&deployment.table.with_file_name(OURS), op)
}

/// Names of the kernels that this machine's rows ask `library` for.
fn kernel_names<'t>(table: &'t Table, inspection: &Inspection, library: Library) -> Vec<&'t str> {
    let mut names: Vec<&str> = table
        .rows
        .iter()
        .filter(|row| row.cu_num == Some(inspection.cu_num))
        .filter(|row| row.gfx.as_deref().is_none_or(|gfx| gfx == inspection.gfx))
        .filter(|row| row.libtype.as_deref() == Some(library.name()))
        .filter_map(|row| row.kernel_name.as_deref())
        .collect();
    names.sort_unstable();
    names.dedup();
    names
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

/// A folder of modules for the tuned arm alone: links to all that are built, except for those to be built anew.
fn private_modules(
    folder: &Utf8Path,
    jit: &Utf8Path,
    rebuilt: &[String],
    deployment: &mut Deployment,
) -> Result<(), Error> {
    let own = folder.join("modules");
    let made = || -> std::io::Result<()> {
        fs_err::create_dir_all(&own)?;
        let Ok(entries) = jit.read_dir_utf8() else {
            return Ok(());
        };
        for entry in entries {
            let path = entry?.into_path();
            let name = path.file_stem().unwrap_or_default();
            let link = own.join(path.file_name().unwrap_or_default());
            let wanted =
                path.extension() == Some("so") && !rebuilt.iter().any(|module| module == name);
            if wanted && link.symlink_metadata().is_err() {
                fs_err::os::unix::fs::symlink(&path, &link)?;
            }
        }
        Ok(())
    };
    made().map_err(|error| Error::file(&error))?;
    deployment
        .env
        .insert("AITER_JIT_DIR".to_owned(), own.to_string());
    deployment.notes.push(format!(
        "the baseline runs {} too, and the table is compiled into it: the tuned arm builds its own in {own}",
        rebuilt.join(" and ")
    ));
    deployment.takes_back.push(format!(
        "the variable AITER_JIT_DIR and the modules in {own}"
    ));
    Ok(())
}

/// The deployment as lines for a shell, to be used beyond the run.
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
