//! What an aiter tree reads for an operation: the variable, the tables it names, and the compiled modules that are
//! built from a table.
//!
//! Source: `aiter/jit/core.py` (`AITER_CONFIG.get_config_file`, `get_user_jit_dir`),
//! `aiter/jit/optCompilerConfig.json` and `aiter/ops/gemm_op_a8w8.py` at 303a583c and e4048607. Reads files, changes
//! none.

use camino::{Utf8Path, Utf8PathBuf};

use super::doctor::caps::{self, Capabilities};
use crate::problem::Op;
use crate::store::file::entries;
use crate::table::kernels::Library;
use crate::table::lookup::Rules;
use crate::table::revision::Revision;

/// Failed to determine what an aiter tree reads.
#[derive(Debug, thiserror::Error)]
pub enum AiterError {
    /// The tree does not read the operation's variable.
    #[error("find where `{package}` reads a table of {op}: no `{variable}` in aiter/jit/core.py")]
    NoVariable {
        /// The tree's package folder.
        package: Utf8PathBuf,
        op: Op,
        variable: &'static str,
    },
    /// aiter has no such operation.
    #[error("find a table of {0}: it is no operation of aiter")]
    NotAnAiterOperation(Op),
    /// A file of the tree cannot be read.
    #[error(transparent)]
    Read(#[from] std::io::Error),
    /// `optCompilerConfig.json` is not a JSON object.
    #[error("read `{path}`: {source}")]
    Modules {
        path: Utf8PathBuf,
        source: serde_json::Error,
    },
}

/// The environment variable that names the table of `op`.
pub fn variable(op: Op) -> Result<&'static str, AiterError> {
    op.aiter()
        .map(|aiter| aiter.variable)
        .ok_or(AiterError::NotAnAiterOperation(op))
}

/// The tables an environment uses for an operation, before anything is deployed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Files that exist, in the order aiter merges them.
    pub files: Vec<Utf8PathBuf>,
    /// Files that the variable names but that do not exist.
    pub missing: Vec<Utf8PathBuf>,
    /// Whether the variable names them; otherwise they are the shipped ones.
    pub from_variable: bool,
}

/// The tables that the tree of `package` uses for `op`, where `variable` returns the value of an environment
/// variable.
///
/// As in aiter, an empty variable counts as unset, and several paths, joined by `:`, are merged.
pub fn tables(
    package: &Utf8Path,
    op: Op,
    set: impl Fn(&str) -> Option<String>,
) -> Result<Tables, AiterError> {
    let facts = op.aiter().ok_or(AiterError::NotAnAiterOperation(op))?;
    named_by(package, facts.variable, facts.stem, set)?.ok_or_else(|| AiterError::NoVariable {
        package: package.to_owned(),
        op,
        variable: facts.variable,
    })
}

/// The tables that `variable` names, or the shipped ones whose names contain `stem`; `None` where the tree does not
/// read that variable.
pub(super) fn named_by(
    package: &Utf8Path,
    variable: &str,
    stem: &str,
    set: impl Fn(&str) -> Option<String>,
) -> Result<Option<Tables>, AiterError> {
    let core = crate::store::file::read(&package.join("jit/core.py"))?;
    // The name may be a prefix of another operation's.
    let quoted = format!("\"{variable}\"");
    if memchr::memmem::find(&core, quoted.as_bytes()).is_none() {
        return Ok(None);
    }
    let named = set(variable).filter(|value| !value.is_empty());
    let candidates = match &named {
        Some(value) => value
            .split(':')
            .filter(|path| !path.is_empty())
            .map(Utf8PathBuf::from)
            .collect(),
        None => shipped(package, stem, &core)?,
    };
    let (files, missing) = candidates.into_iter().partition(|path| path.is_file());
    Ok(Some(Tables {
        files,
        missing,
        from_variable: named.is_some(),
    }))
}

/// The default table and the models' own, as aiter globs them.
fn shipped(package: &Utf8Path, stem: &str, core: &[u8]) -> Result<Vec<Utf8PathBuf>, AiterError> {
    let configs = package.join("configs");
    let mut files = vec![configs.join(format!("{stem}.csv"))];
    let folder = configs.join("model_configs");
    if !folder.is_dir() {
        return Ok(files);
    }
    // Since some commit between 303a583c and e4048607 only the file name is checked for "untuned"; before that it was
    // the whole path, so that a checkout below a folder with that word in its name loses every model table.
    let by_name = memchr::memmem::find(core, b"not in p.name").is_some();
    let mut models = Vec::new();
    for entry in entries(&folder)? {
        let path = entry.into_path();
        let name = path.file_name().unwrap_or_default();
        let untuned = if by_name { name } else { path.as_str() }.contains("untuned");
        let fits = name.contains(stem) && (!by_name || path.extension() == Some("csv"));
        if fits && !untuned && path.is_file() {
            models.push(path);
        }
    }
    models.sort();
    files.extend(models);
    Ok(files)
}

/// The revision whose look-up rules a tree has, judged by its capabilities: a release between two revisions follows
/// the older one in what it lacks.
pub fn revision(capabilities: &Capabilities) -> Revision {
    if capabilities.has("triton-fallback") {
        Revision::N
    } else if capabilities.has("runtime-gfx") {
        Revision::H
    } else if capabilities.has("runtime-libtype") {
        Revision::P
    } else {
        Revision::B
    }
}

/// The look-up rules of `op` in a tree with these capabilities.
pub fn rules(op: Op, capabilities: &Capabilities) -> Rules {
    let mut rules = Rules::new(op, revision(capabilities));
    // This one was added after the revision's other changes.
    rules.reuses_largest &= capabilities.has("reuse-largest");
    rules
}

/// The revision of the tree that contains `table`, judged by its code; `None` for a table elsewhere.
pub fn revision_around(table: &Utf8Path) -> Option<Revision> {
    let folder = table.parent()?;
    let configs = if folder.file_name() == Some("model_configs") {
        folder.parent()?
    } else {
        folder
    };
    let package = configs
        .parent()
        .filter(|_| configs.file_name() == Some("configs"))?;
    package
        .join("ops/gemm_op_a8w8.py")
        .is_file()
        .then(|| revision(&Capabilities::read(package)))
}

/// A compiled module whose content depends on an operation's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name, such as `module_gemm_a8w8_blockscale_cktile`.
    pub name: String,
    /// The library whose rows it serves.
    pub library: Library,
}

/// The modules that the tree of `package` generates from `op`'s table.
pub fn modules(package: &Utf8Path, op: Op) -> Result<Vec<Module>, AiterError> {
    let variable = variable(op)?;
    let path = package.join("jit/optCompilerConfig.json");
    let text = crate::store::file::read(&path)?;
    let config: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&text)
        .map_err(|source| AiterError::Modules {
            path: path.clone(),
            source,
        })?;
    // `--tune_file {AITER_CONFIGS.AITER_CONFIG_GEMM_A8W8_BLOCKSCALE_FILE}`; a list of such commands in some trees.
    let mark = format!(".{variable}_FILE}}");
    let mut modules = Vec::new();
    for (name, entry) in &config {
        let command = &entry["blob_gen_cmd"];
        let commands = command.as_array().map_or_else(
            || command.as_str().into_iter().collect(),
            |list| {
                list.iter()
                    .filter_map(|one| one.as_str())
                    .collect::<Vec<_>>()
            },
        );
        if !commands.iter().any(|command| command.contains(&mark)) {
            continue;
        }
        let library = if name.ends_with("_cktile") {
            Library::CkTile
        } else if name.contains("opus") {
            Library::Opus
        } else {
            Library::Ck
        };
        modules.push(Module {
            name: name.clone(),
            library,
        });
    }
    Ok(modules)
}

/// Names that the compiled module at `path` does not contain; all of them where it cannot be read.
///
/// From e4048607 on a module stores its kernels' names as strings.
pub fn absent_kernels<'n>(path: &Utf8Path, names: &[&'n str]) -> Vec<&'n str> {
    let bytes = fs_err::read(path).unwrap_or_default();
    names
        .iter()
        .copied()
        .filter(|name| memchr::memmem::find(&bytes, name.as_bytes()).is_none())
        .collect()
}

/// The tree's commit or version, as far as its own files contain it.
pub fn named_version(package: &Utf8Path) -> Option<String> {
    let text = fs_err::read_to_string(caps::file(package, "aiter/_version.py")?).ok()?;
    text.lines().find_map(|line| {
        let value = line
            .strip_prefix("__version__")?
            .split('=')
            .next_back()?
            .trim();
        Some(value.trim_matches(['\'', '"']).to_owned()).filter(|value| !value.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(core: &str) -> (tempfile::TempDir, Utf8PathBuf) {
        let keep = tempfile::tempdir().unwrap();
        let package = Utf8PathBuf::try_from(keep.path().join("aiter")).unwrap();
        for (path, text) in [
            ("jit/core.py", core),
            ("configs/a8w8_blockscale_tuned_gemm.csv", ""),
            (
                "configs/model_configs/a8w8_blockscale_tuned_gemm_ds_v3.csv",
                "",
            ),
            (
                "configs/model_configs/x_a8w8_blockscale_untuned_gemm.csv",
                "",
            ),
            (
                "configs/model_configs/a8w8_blockscale_tuned_gemm.csv.orig",
                "",
            ),
            (
                "configs/model_configs/a8w8_blockscale_bpreshuffle_tuned_gemm_y.csv",
                "",
            ),
        ] {
            let path = package.join(path);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            crate::store::file::write_atomic(&path, text.as_bytes()).unwrap();
        }
        (keep, package)
    }

    const CORE: &str = "os.getenv(\"AITER_CONFIG_GEMM_A8W8_BLOCKSCALE\", x)\n";

    fn names(tables: &Tables) -> Vec<&str> {
        tables
            .files
            .iter()
            .filter_map(|path| path.file_name())
            .collect()
    }

    #[test]
    fn the_tables_before_are_those_aiter_would_merge() {
        let (_keep, package) = tree(CORE);
        let unset = |_: &str| None;
        let found = tables(&package, Op::Blockscale, unset).unwrap();
        assert_eq!(
            names(&found),
            [
                "a8w8_blockscale_tuned_gemm.csv",
                "a8w8_blockscale_tuned_gemm.csv.orig",
                "a8w8_blockscale_tuned_gemm_ds_v3.csv"
            ],
            "303a583c takes any suffix"
        );
        let (_keep, package) = tree(&format!("{CORE}if \"untuned\" not in p.name\n"));
        let empty = |_: &str| Some(String::new());
        let found = tables(&package, Op::Blockscale, empty).unwrap();
        assert_eq!(
            names(&found),
            [
                "a8w8_blockscale_tuned_gemm.csv",
                "a8w8_blockscale_tuned_gemm_ds_v3.csv"
            ]
        );
        assert!(!found.from_variable, "an empty variable is unset");
    }

    #[test]
    fn a_variable_replaces_the_shipped_tables_and_missing_parts_are_named() {
        let (_keep, package) = tree(CORE);
        let mine = package.join("configs/a8w8_blockscale_tuned_gemm.csv");
        let set = |name: &str| {
            (name == "AITER_CONFIG_GEMM_A8W8_BLOCKSCALE").then(|| format!("{mine}:/nowhere.csv:"))
        };
        let found = tables(&package, Op::Blockscale, set).unwrap();
        assert_eq!(found.files, std::slice::from_ref(&mine));
        assert_eq!(found.missing, ["/nowhere.csv"]);
        assert!(found.from_variable);
    }

    #[test]
    fn an_operation_whose_variable_the_tree_does_not_read_is_refused() {
        let (_keep, package) = tree(CORE);
        let error = tables(&package, Op::BlockscaleBpreshuffle, |_| None).unwrap_err();
        insta::assert_snapshot!(error.to_string().replace(package.as_str(), "[package]"), @"find where `[package]` reads a table of gemm_a8w8_blockscale_bpreshuffle: no `AITER_CONFIG_GEMM_A8W8_BLOCKSCALE_BPRESHUFFLE` in aiter/jit/core.py");
        let error = tables(&package, Op::TritonBlockFp8, |_| None).unwrap_err();
        assert!(matches!(error, AiterError::NotAnAiterOperation(_)));
    }

    #[test]
    fn the_modules_of_an_operation_are_read_from_the_build_configuration() {
        let (_keep, package) = tree(CORE);
        let config = r#"{
            "module_gemm_a8w8_blockscale": {"blob_gen_cmd": "f'x --tune_file {AITER_CONFIGS.AITER_CONFIG_GEMM_A8W8_BLOCKSCALE_FILE}'"},
            "module_gemm_a8w8_blockscale_cktile": {"blob_gen_cmd": ["f'x {AITER_CONFIGS.AITER_CONFIG_GEMM_A8W8_BLOCKSCALE_FILE}'"]},
            "module_gemm_a8w8_blockscale_bpreshuffle": {"blob_gen_cmd": "f'{AITER_CONFIGS.AITER_CONFIG_GEMM_A8W8_BLOCKSCALE_BPRESHUFFLE_FILE}'"},
            "module_gemm_a8w8_blockscale_tune": {"blob_gen_cmd": "f'x --tune'"}}"#;
        let path = package.join("jit/optCompilerConfig.json");
        crate::store::file::write_atomic(&path, config.as_bytes()).unwrap();
        let found = modules(&package, Op::Blockscale).unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|module| (module.name.as_str(), module.library))
            .collect();
        assert_eq!(
            found,
            [
                ("module_gemm_a8w8_blockscale", Library::Ck),
                ("module_gemm_a8w8_blockscale_cktile", Library::CkTile)
            ]
        );
    }

    #[test]
    fn the_rules_of_a_look_up_follow_from_the_capabilities() {
        let of = |present: &[&'static str]| Capabilities {
            present: present.to_vec(),
            ..Capabilities::default()
        };
        assert_eq!(revision(&of(&["runtime-libtype"])), Revision::P);
        // v0.1.13: gfx is a key already, but kernels are still compiled in.
        assert_eq!(
            revision(&of(&["runtime-libtype", "runtime-gfx"])),
            Revision::H
        );
        assert_eq!(revision(&of(&[])), Revision::B);
    }

    #[test]
    fn a_module_without_the_kernels_name_is_stale() {
        let keep = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::try_from(keep.path().join("m.so")).unwrap();
        crate::store::file::write_atomic(&path, b"\0\x01a8w8_k1\0junk").unwrap();
        assert_eq!(absent_kernels(&path, &["a8w8_k1", "a8w8_k2"]), ["a8w8_k2"]);
        assert_eq!(absent_kernels(Utf8Path::new("/nowhere.so"), &["x"]), ["x"]);
    }
}
