//! The compiled modules of a deployment: which lack kernels of the tables, and where those that have them are built.

use camino::Utf8Path;

use super::deploy::{Arranged, OPERATION, Place};
use super::facts::{Trees, aiter_error};
use crate::run::documents::{Deployment, Inspection};
use crate::run::error::{Error, ErrorKind};
use crate::store::ledger::{Change, Ledger};
use crate::store::run_dir::RunDir;
use crate::table::aiter::Table;
use crate::table::kernels::Library;
use crate::tree::aiter;
use crate::tree::coupling::Coupling;

/// Which modules lack kernels of `table` and are rebuilt, and whether the baseline runs one that has its table.
fn rebuilt(
    trees: &Trees,
    Arranged {
        inspection,
        way,
        rows: table,
        ..
    }: &Arranged,
    deployment: &mut Deployment,
) -> Result<(Vec<String>, bool), Error> {
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
            // Requested by the kernel's number, and only for rows that say so.
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
    Ok((rebuilt, compiled_in && !way.only_triton))
}

/// Moves compiled modules aside that lack kernels of the tables, and locks without an owner.
pub(super) fn make_room(
    run: &RunDir,
    place: &Place,
    trees: &Trees,
    arranged: &[Arranged],
    deployment: &mut Deployment,
) -> Result<(), Error> {
    let jit = &trees.aiter.products.folder;
    let (mut rebuilt, mut in_baseline) = (Vec::new(), false);
    for one in arranged {
        let (modules, runs) = self::rebuilt(trees, one, deployment)?;
        rebuilt.extend(modules);
        in_baseline |= runs;
    }
    deployment.may_build = !rebuilt.is_empty();
    // The baseline runs the same modules, so with the table in them it would run tuned kernels too.
    let tried = matches!(place, Place::Tried(_));
    if tried && !rebuilt.is_empty() || in_baseline {
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
        // One inside a build folder that is moved is moved with it.
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

/// Names of the kernels that this machine's rows request from `library`.
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

/// A folder of modules for the tuned arm alone: links to all existing ones, except for those to be rebuilt.
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
