//! Checks the compiled modules that a process loaded against the table that is compiled into them.

use std::collections::BTreeMap;
use std::time::SystemTime;

use camino::{Utf8Path, Utf8PathBuf};

use super::facts::{Trees, aiter_error};
use crate::probe::found::Module;
use crate::problem::Op;
use crate::run::documents::Deployment;
use crate::run::error::{Error, ErrorKind};
use crate::store::digest::short as digest;
use crate::tree::aiter;
use crate::tree::coupling::Coupling;

/// Those of `paths` that are modules of `op`'s table; the paths are of modules that a process with the deployed
/// environment loaded.
pub(super) fn modules(
    trees: &Trees,
    op: Op,
    paths: &BTreeMap<String, Utf8PathBuf>,
) -> Result<Vec<Module>, Error> {
    let made = aiter::modules(&trees.package, op).map_err(|error| aiter_error(&error))?;
    made.into_iter()
        .filter_map(|module| Some((paths.get(&module.name)?.clone(), module)))
        .map(|(path, module)| {
            let bytes = fs_err::read(&path).map_err(|error| Error::file(&error))?;
            Ok(Module {
                digest: digest(&bytes),
                by_name: trees.aiter.capabilities.coupling(op, module.library) == Coupling::ByName,
                name: module.name,
                path,
            })
        })
        .collect()
}

/// Paths of the modules of `op`'s table that a process with the deployed environment would load.
pub(super) fn expected(
    trees: &Trees,
    op: Op,
    deployment: &Deployment,
) -> Result<BTreeMap<String, Utf8PathBuf>, Error> {
    let jit = deployment
        .env
        .get("AITER_JIT_DIR")
        .map_or_else(|| trees.aiter.products.folder.clone(), Utf8PathBuf::from);
    let made = aiter::modules(&trees.package, op).map_err(|error| aiter_error(&error))?;
    Ok(made
        .into_iter()
        .map(|module| {
            let path = jit.join(format!("{}.so", module.name));
            (module.name, path)
        })
        .filter(|(_, path)| path.is_file())
        .collect())
}

/// Refuses modules that were built before the deployed table was written, although it is compiled into them.
pub(super) fn refuse_stale(modules: &[Module], table: &Utf8Path) -> Result<(), Error> {
    let written =
        |path: &Utf8Path| -> Option<SystemTime> { fs_err::metadata(path).ok()?.modified().ok() };
    let Some(since) = written(table) else {
        return Ok(());
    };
    let stale: Vec<&Module> = modules
        .iter()
        // If a module lacks a name, the process stops anyway.
        .filter(|module| !module.by_name)
        .filter(|module| written(&module.path).is_some_and(|built| built < since))
        .collect();
    match stale.first() {
        None => Ok(()),
        Some(first) => Err(Error::new(
            ErrorKind::NotBetter,
            format!(
                "{} compiled modules are older than the table that is compiled into them, first {}: another table's kernels ran; the deployment was undone",
                stale.len(),
                first.path
            ),
        )),
    }
}
