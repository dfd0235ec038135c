//! Which script of an aiter tree tunes an operation, determined from the tree itself.
//!
//! Scripts are found by capability, not by version: they were merged, modes became flags, key columns were added and
//! removed, and neither tag nor ancestry tells which of that a tree has. Nothing here starts a process.

use camino::{Utf8Path, Utf8PathBuf};

use super::flags::Flags;
use super::{AiterTuneError, argparse};
use crate::problem::Op;
use crate::problem::op::SplitK;
use crate::pyedit::source::Source;
use crate::table::kernels::Library;
use crate::tree::doctor::caps::{self, Capabilities};

/// The class every tuner derives from (aiter v0.1.7 to e4048607a5).
pub(super) const BASE: &str = "aiter/utility/base_tuner.py";

/// The pool that runs candidates.
const POOL: &str = "aiter/utility/mp_tuner.py";

/// The script of a tree that tunes an operation, and properties found in its text.
#[derive(Clone, Debug)]
pub struct Script {
    pub op: Op,
    /// The folder that contains the package `aiter`.
    pub root: Utf8PathBuf,
    pub path: Utf8PathBuf,
    /// The flag that selects the operation, if there is one.
    pub mode: Option<&'static str>,
    /// Modules with the candidates, if the tree has them.
    pub modules: Vec<String>,
    /// Columns that identify a row, in the order it writes them.
    pub keys: Vec<String>,
    /// Columns of its input.
    pub untuned_columns: Vec<String>,
    /// Flags, from the argparse definitions.
    pub flags: Flags,
    /// Capabilities of the tree.
    pub capabilities: Capabilities,
    /// Whether the runtime applies a row's split of K for this operation.
    pub obeys_split_k: bool,
    /// Libraries that the runtime distinguishes in rows of this operation; `None` if it does not look.
    pub libraries: Option<Vec<Library>>,
    /// Digest of the script and the files with which it runs candidates.
    pub digest: String,
}

impl Script {
    /// Finds the script for `op` in the tree at `tree`: the package `aiter`, or the folder that contains it.
    pub fn find(tree: &Utf8Path, op: Op) -> Result<Self, AiterTuneError> {
        let package = package(tree)?;
        let root = package.parent().unwrap_or(&package).to_owned();
        let base = read(&package, BASE)?;
        let mut tried = Vec::new();
        for way in op.aiter().map_or(&[][..], |aiter| aiter.scripts) {
            tried.push(way.path);
            let Some(path) = caps::file(&package, way.path) else {
                continue;
            };
            let script = parse(&path)?;
            let flags = argparse::flags(&base, &script);
            if way.mode.is_some_and(|mode| flags.get(mode).is_none()) {
                continue;
            }
            let capabilities = Capabilities::read(&package);
            let keys = argparse::keys(&script).unwrap_or_else(|| default_keys(&capabilities));
            let untuned_columns = keys
                .iter()
                .filter(|key| !["gfx", "cu_num"].contains(&key.as_str()))
                .cloned()
                .collect();
            let modules = way
                .modules
                .iter()
                .filter(|module| match library(module) {
                    Library::Ck => true,
                    // The CK Tile modules were added with the flag that chooses between libraries.
                    Library::CkTile => flags.get("--libtype").is_some(),
                    other => {
                        let says = format!("\"{}\"", other.name());
                        script.text().contains(&says) && is_built(&package, module)
                    }
                })
                .map(|module| (*module).to_owned())
                .collect();
            return Ok(Self {
                op,
                mode: way.mode,
                modules,
                keys,
                untuned_columns,
                obeys_split_k: obeys_split_k(&package, op),
                libraries: libraries(&package, op),
                digest: digest(&package, &path)?,
                flags,
                capabilities,
                root,
                path,
            });
        }
        Err(AiterTuneError::NoScript {
            op,
            tree: root,
            tried: tried.join("`, `"),
        })
    }

    /// Whether a shape without a working kernel makes the tuner drop the rest of its batch: `topk` is lowered for one
    /// shape and never restored (303a583c89; fixed by daa8e94a49).
    pub fn poisons_batches(&self) -> bool {
        !self.capabilities.has("topk-fixed")
    }

    /// Whether a task's time limit includes waiting in the queue (until v0.1.19).
    pub fn counts_queueing(&self) -> bool {
        !self.capabilities.has("timeout-from-start")
    }

    /// Whether outputs are not reset between the candidates of a group, so that a kernel that writes nothing passes
    /// with the result of the previous one (until v0.1.15).
    pub fn shares_outputs(&self) -> bool {
        !self.capabilities.has("outputs-reset")
    }

    /// The folders in which compiled modules may be if `AITER_JIT_DIR` is not set.
    pub fn module_folders(&self) -> Vec<Utf8PathBuf> {
        vec![self.root.join("aiter/jit")]
    }
}

/// The library whose candidates are in a module.
pub(super) fn library(module: &str) -> Library {
    [
        ("cktile", Library::CkTile),
        ("_asm", Library::Asm),
        ("opus", Library::Opus),
    ]
    .into_iter()
    .find_map(|(part, library)| module.contains(part).then_some(library))
    .unwrap_or(Library::Ck)
}

/// Whether the tree of `package` builds `module`.
fn is_built(package: &Utf8Path, module: &str) -> bool {
    let quoted = format!("\"{module}\"");
    fs_err::read(package.join("jit/optCompilerConfig.json"))
        .is_ok_and(|text| memchr::memmem::find(&text, quoted.as_bytes()).is_some())
}

pub(super) fn package(tree: &Utf8Path) -> Result<Utf8PathBuf, AiterTuneError> {
    let absolute = std::path::absolute(tree)
        .ok()
        .and_then(|path| Utf8PathBuf::from_path_buf(path).ok())
        .unwrap_or_else(|| tree.to_owned());
    [absolute.clone(), absolute.join("aiter")]
        .into_iter()
        .find(|folder| folder.join("utility/base_tuner.py").is_file())
        .ok_or_else(|| AiterTuneError::NoTree {
            tree: tree.to_owned(),
        })
}

pub(super) fn read(package: &Utf8Path, relative: &str) -> Result<Source, AiterTuneError> {
    let path = caps::file(package, relative).ok_or_else(|| AiterTuneError::NoTree {
        tree: package.to_owned(),
    })?;
    parse(&path)
}

pub(super) fn parse(path: &Utf8Path) -> Result<Source, AiterTuneError> {
    let bytes = fs_err::read(path).map_err(AiterTuneError::Read)?;
    Ok(Source::parse(path.to_owned(), &bytes)?)
}

/// The keys of `GemmCommonTuner` if a script defines none.
fn default_keys(capabilities: &Capabilities) -> Vec<String> {
    let gfx = capabilities.has("gfx-column").then_some("gfx");
    gfx.into_iter()
        .chain(["cu_num", "M", "N", "K"])
        .map(str::to_owned)
        .collect()
}

/// The source of the function that serves `op`.
fn dispatcher(package: &Utf8Path, op: Op) -> Option<String> {
    let text = fs_err::read_to_string(caps::file(package, op.aiter()?.source)?).ok()?;
    let (_, after) = text.split_once(&format!("\ndef {}(", op.name()))?;
    Some(after.split("\ndef ").next().unwrap_or(after).to_owned())
}

/// Whether the dispatcher passes the row's `splitK` to the kernels that the tuner multiplies by it.
fn obeys_split_k(package: &Utf8Path, op: Op) -> bool {
    match op.aiter().map(|aiter| aiter.split_k) {
        Some(SplitK::Obeyed) => true,
        Some(SplitK::AsTheTreeSays) => {
            dispatcher(package, op).is_some_and(|body| body.contains("\"splitK\""))
        }
        Some(SplitK::Dropped) | None => false,
    }
}

/// The libraries that the dispatcher distinguishes; `None` if it does not look at a row's library.
///
/// A row with another one makes it assert, run the default kernel, or return nothing at all, as
/// `gemm_a8w8_bpreshuffle` does for assembly up to 303a583c89.
fn libraries(package: &Utf8Path, op: Op) -> Option<Vec<Library>> {
    let body = dispatcher(package, op).filter(|body| body.contains("libtype"))?;
    let named = |library: &Library| {
        ['"', '\''].iter().any(|quote| {
            let quoted = format!("{quote}{}{quote}", library.name());
            body.contains(&quoted)
        })
    };
    Some(Library::ALL.into_iter().filter(named).collect())
}

pub(super) fn digest(package: &Utf8Path, script: &Utf8Path) -> Result<String, AiterTuneError> {
    let mut whole = Vec::new();
    let shared = [BASE, POOL].map(|relative| caps::file(package, relative));
    for path in std::iter::once(script).chain(shared.iter().flatten().map(Utf8PathBuf::as_path)) {
        whole.extend(fs_err::read(path).map_err(AiterTuneError::Read)?);
    }
    Ok(crate::store::digest::short(&whole))
}
