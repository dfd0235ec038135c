//! What an aiter tree can do, read from its files.
//!
//! Neither its version number nor its ancestry is reliable: aiter's main branch was rewritten in March 2026, release
//! branches have some features of a later main but not others, and `_version.py` is frozen at installation. So each
//! capability is recognised by a mark in a file, as found in the tagged trees v0.1.7 to v0.1.20.post1: a text that
//! occurs nowhere else, or, where a text could belong to a neighbouring function, what the function itself does.

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;

use crate::problem::Op;
use crate::pyedit::source::Source;
use crate::pyedit::syntax;
use crate::table::kernels::Library;
use crate::tree::coupling::{self, Coupling};

const TUNER: &str = "csrc/ck_gemm_a8w8_blockscale/gemm_a8w8_blockscale_tune.py";
const BASE: &str = "aiter/utility/base_tuner.py";
const POOL: &str = "aiter/utility/mp_tuner.py";
const OPS: &str = "aiter/ops/gemm_op_a8w8.py";
const COMMON: &str = "aiter/ops/gemm_op_common.py";
const CORE: &str = "aiter/jit/core.py";
const BATON: &str = "aiter/jit/utils/file_baton.py";
const SETUP: &str = "setup.py";

/// How a capability is recognised.
#[derive(Clone, Copy, Debug)]
enum Mark {
    /// A text in the file.
    Text(&'static str),
    /// A name used by the function that serves this operation.
    Uses(Op, &'static str),
    /// Both modules of this operation take a kernel by name.
    Named(Op),
}

/// A capability: its name, what it means, and how it is recognised.
#[derive(Clone, Copy, Debug)]
struct Known {
    name: &'static str,
    meaning: &'static str,
    file: &'static str,
    mark: Mark,
    /// Whether the pin has it, so that a tree without it is too old to be tuned safely.
    needed: bool,
}

const fn known(
    name: &'static str,
    file: &'static str,
    text: &'static str,
    needed: bool,
    meaning: &'static str,
) -> Known {
    of_function(name, file, Mark::Text(text), needed, meaning)
}

const fn of_function(
    name: &'static str,
    file: &'static str,
    mark: Mark,
    needed: bool,
    meaning: &'static str,
) -> Known {
    Known {
        name,
        meaning,
        file,
        mark,
        needed,
    }
}

/// In the order in which aiter gained them.
const CAPABILITIES: [Known; 27] = [
    known(
        "libtype",
        TUNER,
        "\"--libtype\"",
        true,
        "the tuner can search CK and CKTile",
    ),
    of_function(
        "runtime-libtype",
        OPS,
        Mark::Uses(Op::Blockscale, "libtype"),
        true,
        "the runtime obeys the row's library",
    ),
    known(
        "preshuffle",
        TUNER,
        "--preshuffle",
        true,
        "the tuner can tune the shuffled operation",
    ),
    known(
        "block-per-cu",
        TUNER,
        "blockPerCu",
        false,
        "the tuner varies blocks per compute unit",
    ),
    known(
        "tuner-timeout",
        BASE,
        "\"--timeout\"",
        true,
        "a dead worker ends, if a limit is given",
    ),
    known(
        "pool-restart",
        POOL,
        "pool_restart_needed",
        true,
        "the pool restarts after a fault",
    ),
    known(
        "accelerator-error",
        POOL,
        "AcceleratorError",
        true,
        "a GPU fault is distinguished from a wrong result",
    ),
    known(
        "exit-code",
        BASE,
        "sys.exit(1)",
        true,
        "failed shapes are seen in the exit code",
    ),
    known("sort-bool", BASE, "str2bool", true, "--sort takes a value"),
    known(
        "shape-grouped",
        BASE,
        "shape_grouped",
        true,
        "candidates of a shape can stay together",
    ),
    known(
        "run-config",
        BASE,
        "run_config",
        true,
        "a finished table can be measured (--run_config, --compare)",
    ),
    known(
        "padded-m-ctypes",
        COMMON,
        "ctypes",
        true,
        "the padding of M is called through ctypes",
    ),
    known(
        "merged-configs",
        CORE,
        "/tmp/aiter_configs",
        true,
        "several tables are merged at start",
    ),
    known(
        "duplicate-rewrite",
        CORE,
        "Auto-resolved",
        true,
        "equal keys in two tables rewrite the files and stop the server",
    ),
    known(
        "tensor-type",
        CORE,
        "aiter_tensor_t",
        true,
        "modules built by this generation are understood",
    ),
    known(
        "topk-fixed",
        BASE,
        "effective_topk",
        false,
        "a shape no kernel can do does not spoil the rest of its batch",
    ),
    known(
        "outputs-reset",
        POOL,
        "output_keys",
        false,
        "outputs are cleared between the candidates of a group",
    ),
    known(
        "gfx-column",
        BASE,
        "\"gfx\"",
        false,
        "tables have a gfx column",
    ),
    known(
        "runtime-gfx",
        OPS,
        "_CKGEMM_HAS_GFX",
        false,
        "the look-up uses the gfx column",
    ),
    known(
        "column-union",
        CORE,
        "_FILL_DEFAULTS",
        false,
        "tables with different columns can be merged",
    ),
    of_function(
        "kernel-name",
        OPS,
        Mark::Named(Op::Blockscale),
        false,
        "a kernel is chosen by name at run time, not compiled in",
    ),
    known(
        "arch-rebuild",
        CORE,
        "_needs_arch_rebuild",
        false,
        "a module for another architecture is rebuilt",
    ),
    known(
        "baton-owner",
        BATON,
        "_is_stale",
        false,
        "a lock of a dead builder is recognised",
    ),
    known(
        "timeout-from-start",
        POOL,
        "_elapsed_since_task_start",
        false,
        "time in the queue does not count against a task",
    ),
    known(
        "triton-fallback",
        OPS,
        "_BLOCKSCALE_TRITON_FALLBACK_MIN_M",
        false,
        "a large block-scaled GEMM without a row runs Triton",
    ),
    known(
        "reuse-largest",
        OPS,
        "reuse_largest_bpreshuffle_config",
        false,
        "the largest row of a per-channel GEMM serves every larger M",
    ),
    known(
        "setup-replaces-triton",
        SETUP,
        "AITER_USE_SYSTEM_TRITON",
        false,
        "installing replaces Triton unless a variable forbids it",
    ),
];

/// What a tree can and cannot do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// Names of the capabilities it has.
    pub present: Vec<&'static str>,
    /// Names of needed capabilities that it lacks, with the meaning of each.
    pub missing: Vec<(&'static str, &'static str)>,
    /// Compiled functions that take a row's kernel by name, such as `gemm_a8w8_blockscale_ck`. For all others the
    /// table is compiled into the module.
    pub by_name: Vec<String>,
}

impl Capabilities {
    /// Reads the tree of the package in `package` (the folder `aiter`).
    pub fn read(package: &Utf8Path) -> Self {
        let (mut present, mut missing) = (Vec::new(), Vec::new());
        let by_name = coupling::by_name(package);
        for known in CAPABILITIES {
            let there = file(package, known.file)
                .and_then(|path| Some((fs_err::read(&path).ok()?, path)))
                .is_some_and(|(text, path)| match known.mark {
                    Mark::Text(mark) => memchr::memmem::find(&text, mark.as_bytes()).is_some(),
                    Mark::Uses(op, name) => Source::parse(path, &text).is_ok_and(|source| {
                        syntax::function(source.body(), op.name())
                            .is_some_and(|(_, function)| function.mentions(name))
                    }),
                    Mark::Named(op) => [Library::Ck, Library::CkTile]
                        .into_iter()
                        .all(|library| coupling::is_among(&by_name, op, library)),
                });
            match (there, known.needed) {
                (true, _) => present.push(known.name),
                (false, true) => missing.push((known.name, known.meaning)),
                (false, false) => {}
            }
        }
        Self {
            present,
            missing,
            by_name,
        }
    }

    /// Whether it has the capability `name`.
    pub fn has(&self, name: &str) -> bool {
        self.present.contains(&name)
    }

    /// Whether a row of `libtype` in `op`'s table is served by kernel name, so that no other kernel can run for it.
    pub fn is_named(&self, op: Op, libtype: Option<&str>) -> bool {
        match libtype.and_then(Library::of_libtype) {
            // Loaded from `hsa/` by its symbol, at every revision that has it.
            Some(Library::Asm) => true,
            Some(library) => self.coupling(op, library) == Coupling::ByName,
            None => false,
        }
    }

    /// How `op`'s table reaches the kernels of `library`.
    pub fn coupling(&self, op: Op, library: Library) -> Coupling {
        if coupling::is_among(&self.by_name, op, library) {
            Coupling::ByName
        } else {
            Coupling::CompiledIn
        }
    }
}

/// Path of a file of aiter: in a checkout it is beside the package; in a wheel `csrc` is under `aiter_meta`.
pub fn file(package: &Utf8Path, relative: &str) -> Option<Utf8PathBuf> {
    let beside = package.parent()?;
    let candidates = match relative.strip_prefix("aiter/") {
        Some(inside) => vec![package.join(inside)],
        None => vec![
            beside.join(relative),
            beside.join("aiter_meta").join(relative),
        ],
    };
    candidates.into_iter().find(|path| path.is_file())
}

/// Tuner scripts of the tree, by file name.
pub fn tuners(package: &Utf8Path) -> Vec<Utf8PathBuf> {
    let beside = package.parent().unwrap_or(package);
    let folders = [beside.join("csrc"), beside.join("aiter_meta/csrc")];
    let mut found: Vec<_> = folders
        .iter()
        .filter_map(|folder| folder.read_dir_utf8().ok())
        .flatten()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().starts_with("ck_"))
        .filter_map(|entry| entry.path().read_dir_utf8().ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().to_owned()))
        .filter(|path| path.as_str().ends_with("_tune.py"))
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_texts_in_files_of_a_checkout_or_a_wheel() {
        let keep = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(keep.path()).unwrap();
        let package = root.join("aiter");
        let write = |path: Utf8PathBuf, text: &str| {
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            crate::store::file::write_atomic(&path, text.as_bytes()).unwrap();
        };
        write(
            package.join("utility/base_tuner.py"),
            "parser.add_argument(\"--timeout\")\neffective_topk = 1\n",
        );
        write(
            root.join("aiter_meta/csrc/ck_gemm_a8w8_blockscale/gemm_a8w8_blockscale_tune.py"),
            "\"--libtype\"",
        );
        let found = Capabilities::read(&package);
        assert_eq!(found.present, ["libtype", "tuner-timeout", "topk-fixed"]);
        assert!(found.missing.iter().any(|(name, _)| *name == "run-config"));
        assert!(
            !found.missing.iter().any(|(name, _)| *name == "kernel-name"),
            "not needed at the pin"
        );
        assert_eq!(tuners(&package).len(), 1);
    }
}
