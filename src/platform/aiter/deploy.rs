//! One merged table in one new file, the variable that names it, the modules it is compiled into, and the switch.
//!
//! Nothing of the user's is written: the tables that served before are read and merged into a file of the run folder.
//! What has to go out of the way (a compiled module, a dead builder's lock) goes into the run's ledger, and comes back
//! with `gemmtune undo`.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Path, Utf8PathBuf};

use super::facts::{Trees, Way, aiter_error, arch_of, read};
use super::{Aiter, cover};
use crate::engine::digest;
use crate::engine::server::Environment;
use crate::overlay::{Decision, OverlayOptions};
use crate::platform::{Deployment, Inspection, Tuned, gone};
use crate::run::error::{Error, ErrorKind};
use crate::shape::Op;
use crate::store::file::write_atomic;
use crate::store::ledger::{Change, Ledger, LedgerError};
use crate::store::run_dir::RunDir;
use crate::table::aiter::{Row, Table};
use crate::table::kernels::Library;
use crate::table::lookup::{Resolver, Rules};
use crate::table::merge::{self, Policy};
use crate::table::shapes;
use crate::tree::aiter;
use crate::tree::coupling::Coupling;
use crate::tree::era;
use crate::tree::force::{self, ForceError, Means, Route, SwitchRequest, Target};
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
        let trees = self.trees()?;
        let op = inspection.op;
        let variable = aiter::variable(op)
            .ok_or_else(|| aiter_error(&aiter::AiterError::NotAnAiterOperation(op)))?;
        let before = aiter::tables(&trees.package, op, |name| self.site.variable(name))
            .map_err(|error| aiter_error(&error))?;
        let rows = rows_of(op, &tuned.files)?;
        if rows.is_empty() {
            return Err(Error::new(
                ErrorKind::NotBetter,
                "no tuned row is faster than what serves its shape today, so there is nothing to deploy",
            ));
        }
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
        };
        let revision = aiter::revision(&trees.aiter.capabilities);
        let mut mine = Table::new("tuned here", op, revision);
        mine.rows = rows;
        let ours = mine.to_csv();
        let merged = merged(mine, &before.files, &inspection.gfx, &mut deployment.notes)?;
        let text = merged.to_csv();
        deployment.rows = merged.rows.len();
        deployment.digest = digest(text.as_bytes());
        deployment.table = plain(folder(run).join(format!(
            "{}-{}.csv",
            aiter::table_stem(op).unwrap_or("tuned_gemm"),
            deployment.digest
        )))?;
        let written = fs_err::create_dir_all(folder(run))
            .and_then(|()| write_atomic(&folder(run).join(OURS), ours.as_bytes()))
            .and_then(|()| write_atomic(&deployment.table, text.as_bytes()))
            .and_then(|()| write_atomic(&run.table(), text.as_bytes()));
        written.map_err(|error| Error::file(&error))?;
        deployment
            .env
            .insert(variable.to_owned(), deployment.table.to_string());
        deployment.takes_back.push(format!(
            "the variable {variable} and the file {} it names",
            deployment.table
        ));

        let way = self.way_to(&trees, inspection)?;
        let rules = Rules::new(op, revision);
        let resolver = Resolver::new(&merged, rules, &inspection.gfx, inspection.cu_num)
            .map_err(|error| Error::caused(ErrorKind::Bug, &error))?;
        let covered = Covered {
            resolver: &resolver,
            weights: weights(run, op)?,
            left: tuned
                .rows
                .iter()
                .filter(|row| row.incumbent_kept)
                .map(|row| (row.shape.m, row.shape.n, row.shape.k))
                .collect(),
        };
        let switched = self.switch(&trees, inspection, &way, &covered, &mut deployment)?;
        self.without_tables_of_the_tree(&trees, &mut deployment);
        // The overlay is in front of whatever PYTHONPATH the server has.
        for (name, value) in self.overlay_for(run, &switched)? {
            if let Some(value) = value {
                deployment.env.insert(name, value);
            }
        }
        make_room(run, &trees, inspection, &way, &merged, &mut deployment)?;
        write_environment(run, &deployment)?;
        Ok(deployment)
    }

    /// Decides how GEMMs get to the tuned operation; the steps are the overlay's.
    fn switch(
        &self,
        trees: &Trees,
        inspection: &Inspection,
        way: &Way,
        covered: &Covered<'_>,
        deployment: &mut Deployment,
    ) -> Result<Vec<force::Step>, Error> {
        if self.switch == Switch::None || way.no_triton {
            return Ok(Vec::new());
        }
        let source = trees
            .sglang
            .read(FP8_UTILS)
            .map_err(|error| Error::caused(ErrorKind::SourceNotRecognised, &error))?;
        let dispatch = era::dispatch(&source)
            .map_err(|error| Error::caused(ErrorKind::SourceNotRecognised, &error))?;
        let arch = arch_of(&inspection.gfx)?;
        let rocm = trees.rocm();
        let plan = |routes: &[Route]| {
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
            Switch::Route => covered.routes(way, inspection.op, &route::triton_shapes(&source)),
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
            return Ok(Vec::new());
        }
        reach::both_readers(&trees.sglang, dispatch.era, &plan, (arch, rocm))
            .map_err(|error| Error::caused(ErrorKind::SourceNotRecognised, &error))?;
        deployment.notes.push(if routes.is_empty() {
            format!("every block-FP8 GEMM goes to the tuned operation: {}", plan.detail)
        } else {
            format!(
                "GEMMs that the table has a row for go to the tuned operation, all others stay on Triton: {}",
                plan.detail
            )
        });
        deployment.takes_back.push(plan.detail.clone());
        deployment.env.extend(plan.env);
        deployment.unset.extend(
            plan.unset
                .into_iter()
                .filter(|name| self.site.variable(name).is_some()),
        );
        Ok(plan.steps)
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

    fn overlay_for(&self, run: &RunDir, steps: &[force::Step]) -> Result<Environment, Error> {
        if steps.is_empty() {
            return Ok(Environment::new());
        }
        let decision = folder(run).join("switch.json");
        let text = Decision::of(steps).to_json();
        write_atomic(&decision, text.as_bytes()).map_err(|error| Error::file(&error))?;
        self.site.overlay(
            run,
            &OverlayOptions {
                switch: Some(decision),
                ..OverlayOptions::default()
            },
        )
    }
}

/// Moves compiled modules out of the way that do not hold the table's kernels, and locks that nobody holds.
fn make_room(
    run: &RunDir,
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
    if compiled_in && !way.only_triton {
        return private_modules(run, jit, &rebuilt, deployment);
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

/// What the switch is decided on.
struct Covered<'a> {
    resolver: &'a Resolver<'a>,
    /// Weights (N, K) of the workload.
    weights: BTreeSet<(u32, u32)>,
    left: BTreeSet<(u32, u32, u32)>,
}

impl Covered<'_> {
    fn routes(&self, way: &Way, op: Op, stays_triton: &[(u64, u64)]) -> Vec<Route> {
        let routes = cover::routes(self.resolver, op, &self.weights, &self.left);
        if !way.shuffles {
            return routes;
        }
        // A weight is laid out for one kernel when it is loaded: whole weights only, and those that are laid out for
        // the tuned operation already stay so.
        let routed: BTreeSet<(u64, u64)> = routes.iter().map(|route| (route.n, route.k)).collect();
        self.weights
            .iter()
            .map(|&(n, k)| (u64::from(n), u64::from(k)))
            .filter(|weight| routed.contains(weight) || !stays_triton.contains(weight))
            .map(|(n, k)| Route {
                n,
                k,
                min_m: None,
                max_m: None,
            })
            .collect()
    }
}

/// The rows of a deployment that were tuned for it.
pub(super) fn tuned_table(deployment: &Deployment, op: Op) -> Result<Table, Error> {
    read_table(&deployment.table.with_file_name(OURS), op)
}

/// The rows that the tuner's files hold.
fn rows_of(op: Op, files: &[Utf8PathBuf]) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    for file in files {
        rows.extend(read_table(file, op)?.rows);
    }
    Ok(rows)
}

pub(super) fn read_table(path: &Utf8Path, op: Op) -> Result<Table, Error> {
    Table::read(path.as_str(), &read(path)?, Some(op))
        .map_err(|error| Error::caused(ErrorKind::Environment, &error))
}

/// The tables before as one, with the rows of `mine` in place of theirs on equal keys.
fn merged(
    mine: Table,
    before: &[Utf8PathBuf],
    gfx: &str,
    notes: &mut Vec<String>,
) -> Result<Table, Error> {
    let (op, name) = (mine.op, mine.name.clone());
    let mut tables = before
        .iter()
        .map(|path| read_table(path, op))
        .collect::<Result<Vec<_>, _>>()?;
    tables.push(mine);
    let policy = Policy {
        gfx: Some(gfx.to_owned()),
        ..Policy::default()
    };
    let merge::Merged {
        table, provenance, ..
    } = merge::merge(&tables, &policy)
        .map_err(|error| Error::caused(ErrorKind::Environment, &error))?;
    let key = |row: &Row| {
        (
            row.gfx.clone(),
            row.cu_num,
            row.n,
            row.k,
            row.m,
            row.q_dtype_w.clone(),
        )
    };
    // Our row was measured here, the others wherever they were tuned: on an equal key ours stands, faster or not.
    let mut rows: BTreeMap<_, Row> = table.rows.into_iter().map(|row| (key(&row), row)).collect();
    let mut dropped = 0_usize;
    for entry in provenance {
        let key = key(&entry.row);
        let ran = entry.row.us.is_some_and(|us| us.is_finite() && us > 0.0);
        if entry.table == name {
            rows.insert(key, entry.row);
        } else if ran {
            // The merge chose, unless no row of this key is believable: then what served it goes on.
            rows.entry(key).or_insert(entry.row);
        } else if !rows.contains_key(&key) {
            dropped += 1;
        }
    }
    if dropped > 0 {
        notes.push(format!(
            "{dropped} rows of the tables before never ran (no time) and are left out"
        ));
    }
    Ok(Table {
        name: "the deployed table".to_owned(),
        op,
        columns: table.columns,
        rows: rows.into_values().collect(),
        faults: Vec::new(),
        quirks: crate::table::aiter::Quirks::default(),
    })
}

/// aiter hands the path to a shell unquoted, and `:` separates paths.
pub(super) fn plain(path: Utf8PathBuf) -> Result<Utf8PathBuf, Error> {
    let fits =
        |character: char| character.is_ascii_alphanumeric() || "/._-+=@,".contains(character);
    if path.is_absolute() && path.as_str().chars().all(fits) {
        return Ok(path);
    }
    Err(Error::new(
        ErrorKind::Environment,
        format!("aiter hands the path of a table to a shell unquoted and splits it at `:`, and `{path}` would not survive that"),
    )
    .hint("keep gemmtune.toml in a folder whose path has letters, digits and ./_-+=@, only"))
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
    run: &RunDir,
    jit: &Utf8Path,
    rebuilt: &[String],
    deployment: &mut Deployment,
) -> Result<(), Error> {
    let own = folder(run).join("modules");
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
