//! The overlay: a folder in front of SGLang on `PYTHONPATH` that captures, injects tables and switches
//! kernels, with nothing in SGLang's tree touched.
//!
//! The Python files are in `python/overlay/` and embedded in the binary; this module writes them to a
//! folder and says which variables a server needs to run with them. Removing the variables removes the
//! overlay. It starts no process.
//!
//! The hooks stand at import time (`sitecustomize`, every release from 0.5.5 to 0.5.23) with SGLang's plugin
//! registry (0.5.11 and later) as a second door for environments in which another `sitecustomize` comes
//! first. The registry alone would be too late for a switch: it applies its hooks after `fp8.py` has copied the
//! predicate that decides whether weights are shuffled.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::store::file::write_atomic;
use crate::tree::era::PREDICATE;
use crate::tree::force::Step;

/// Name of the plugin entry point, for `SGLANG_PLUGINS`.
const PLUGIN_NAME: &str = "gemmtune";

/// Every file of the overlay, by path inside its folder.
const FILES: [(&str, &str); 13] = {
    macro_rules! embedded {
        ($($path:literal),* $(,)?) => {
            [$(($path, include_str!(concat!("../python/overlay/", $path)))),*]
        };
    }
    embedded![
        "sitecustomize.py",
        "gemmtune_overlay/__init__.py",
        "gemmtune_overlay/capture.py",
        "gemmtune_overlay/graphs.py",
        "gemmtune_overlay/hooks.py",
        "gemmtune_overlay/plugin.py",
        "gemmtune_overlay/record.py",
        "gemmtune_overlay/route.py",
        "gemmtune_overlay/settings.py",
        "gemmtune_overlay/switch.py",
        "gemmtune_overlay/tables.py",
        // Without the metadata Python does not see the entry point.
        "gemmtune_overlay-1.dist-info/METADATA",
        "gemmtune_overlay-1.dist-info/entry_points.txt",
    ]
};

/// What the overlay is asked to do in a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OverlayOptions {
    /// Shapes into the server log and the record files.
    pub shapes: bool,
    /// The identity of the block-FP8 linear into the server log and the record files.
    pub dispatch: bool,
    /// Folder for one record file per process.
    pub records: Option<Utf8PathBuf>,
    /// Folder of SGLang Triton tables to serve instead of the shipped ones.
    pub triton_tables: Option<Utf8PathBuf>,
    /// File that says which kernel family computes which GEMM; the folder then holds the GPU worker's files as well.
    pub route: Option<Utf8PathBuf>,
    /// File of a [`Decision`].
    pub switch: Option<Utf8PathBuf>,
}

impl OverlayOptions {
    /// Everything that a capture run records.
    pub fn capture(records: Utf8PathBuf) -> Self {
        Self {
            shapes: true,
            dispatch: true,
            records: Some(records),
            ..Self::default()
        }
    }
}

/// Writes the overlay's files under `folder`; files that are there already and equal are left alone.
pub fn write(folder: &Utf8Path) -> io::Result<()> {
    for (path, text) in FILES {
        let file = folder.join(path);
        if fs_err::read(&file).is_ok_and(|present| present == text.as_bytes()) {
            continue;
        }
        if let Some(parent) = file.parent() {
            fs_err::create_dir_all(parent)?;
        }
        write_atomic(&file, text.as_bytes())?;
    }
    Ok(())
}

/// The variables that start a server with the overlay in `folder`.
///
/// `present` answers what a variable is set to for that server without the overlay: `PYTHONPATH` is
/// extended in front, and an allow-list in `SGLANG_PLUGINS` gets our name appended.
pub fn environment(
    folder: &Utf8Path,
    options: &OverlayOptions,
    present: impl Fn(&str) -> Option<String>,
) -> Vec<(String, String)> {
    let mut variables = vec![(
        "PYTHONPATH".to_owned(),
        match present("PYTHONPATH").filter(|path| !path.is_empty()) {
            Some(path) => format!("{folder}:{path}"),
            None => folder.to_string(),
        },
    )];
    if let Some(allowed) = present("SGLANG_PLUGINS").filter(|allowed| !allowed.trim().is_empty())
        && !allowed.split(',').any(|name| name.trim() == PLUGIN_NAME)
    {
        variables.push((
            "SGLANG_PLUGINS".to_owned(),
            format!("{allowed},{PLUGIN_NAME}"),
        ));
    }
    let toggles = [
        ("SGLANG_DUMP_AITER_FP8_GEMM_SHAPES", options.shapes),
        ("SGLANG_LOG_FP8_BLOCK_GEMM_DISPATCH", options.dispatch),
    ];
    for (name, wanted) in toggles {
        if wanted {
            variables.push((name.to_owned(), "1".to_owned()));
        }
    }
    let folders = [
        ("GEMMTUNE_RECORD_DIR", &options.records),
        ("GEMMTUNE_TRITON_TABLES", &options.triton_tables),
        ("GEMMTUNE_ROUTE", &options.route),
        ("GEMMTUNE_SWITCH", &options.switch),
    ];
    for (name, path) in folders {
        if let Some(path) = path {
            variables.push((name.to_owned(), path.to_string()));
        }
    }
    variables
}

/// Which kernels the overlay is to force: what `switch` decided for a tree, an architecture and a ROCm version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// Version of this format, 1.
    pub format: u32,
    /// What to do, in this order, right after `fp8_utils` executed.
    pub actions: Vec<Action>,
}

impl Decision {
    /// A decision in the current format.
    pub fn new(actions: Vec<Action>) -> Self {
        Self { format: 1, actions }
    }

    /// What carries out `steps`.
    pub fn of(steps: &[Step]) -> Self {
        Self::new(steps.iter().map(action).collect())
    }

    /// The decision as the overlay reads it.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("plain data with string keys");
        text.push('\n');
        text
    }
}

/// One change of `fp8_utils`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Binds the name `name` of `fp8_utils` to another kernel.
    Rebind {
        /// Name in `fp8_utils`.
        name: String,
        /// `module:attribute`, where the module `self` is `fp8_utils`.
        to: String,
    },
    /// Sends the GEMMs that fit a rule to another kernel, and leaves every other one where it was.
    Route {
        /// Name in `fp8_utils`.
        name: String,
        /// `module:attribute`, as in [`Action::Rebind`].
        to: String,
        /// A GEMM that fits any of them goes to `to`.
        rules: Vec<Rule>,
    },
    /// Makes the shape predicate answer `value`, for both of its readers.
    Predicate {
        /// Name in `fp8_utils`, which `fp8.py` imports.
        name: String,
        /// Its answer: true means Triton.
        value: bool,
        /// Shapes (N, K) that get the other answer.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        except: Vec<(u64, u64)>,
    },
    /// Calls `fp8_utils.set_force_ck_w8a8(True)` (0.5.14 and later).
    SetForceCk,
}

/// Which GEMMs a route takes; a bound that is absent does not restrict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Output features.
    #[serde(rename = "N", default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u32>,
    /// Input features.
    #[serde(rename = "K", default, skip_serializing_if = "Option::is_none")]
    pub k: Option<u32>,
    /// Smallest M, inclusive.
    #[serde(rename = "min_M", default, skip_serializing_if = "Option::is_none")]
    pub min_m: Option<u32>,
    /// Largest M, inclusive.
    #[serde(rename = "max_M", default, skip_serializing_if = "Option::is_none")]
    pub max_m: Option<u32>,
}

fn action(step: &Step) -> Action {
    let bound = |m: Option<u64>| m.and_then(|m| u32::try_from(m).ok());
    match step {
        Step::Rebind { name, to } => Action::Rebind {
            name: name.clone(),
            to: to.clone(),
        },
        Step::Route { name, to, rules } => Action::Route {
            name: name.clone(),
            to: to.clone(),
            rules: rules
                .iter()
                .map(|rule| Rule {
                    n: bound(Some(rule.n)),
                    k: bound(Some(rule.k)),
                    min_m: bound(rule.min_m),
                    max_m: bound(rule.max_m),
                })
                .collect(),
        },
        Step::Predicate { value, except } => Action::Predicate {
            name: PREDICATE.to_owned(),
            value: *value,
            except: except.clone(),
        },
        Step::SetForceCk => Action::SetForceCk,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn every_python_file_of_the_overlay_is_embedded() {
        let root = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("python/overlay");
        let mut found = Vec::new();
        for folder in ["", "gemmtune_overlay", "gemmtune_overlay-1.dist-info"] {
            for entry in root.join(folder).read_dir_utf8().unwrap() {
                let path = entry.unwrap().path().to_owned();
                if path.is_file() {
                    found.push(path.strip_prefix(&root).unwrap().to_string());
                }
            }
        }
        let mut embedded: Vec<_> = FILES.into_iter().map(|(path, _)| path).collect();
        embedded.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, embedded);
    }

    #[test]
    fn writing_twice_touches_no_file_that_is_right() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        write(folder).unwrap();
        let hooks = folder.join("gemmtune_overlay/hooks.py");
        let before = fs_err::metadata(&hooks).unwrap().modified().unwrap();
        fs_err::remove_file(folder.join("sitecustomize.py")).unwrap();
        write(folder).unwrap();
        assert_eq!(
            fs_err::metadata(&hooks).unwrap().modified().unwrap(),
            before
        );
        assert!(folder.join("sitecustomize.py").exists());
    }

    #[test]
    fn the_overlay_goes_in_front_of_what_the_user_has() {
        let present = |name: &str| match name {
            "PYTHONPATH" => Some("/opt/sglang/python:".to_owned()),
            "SGLANG_PLUGINS" => Some("mine".to_owned()),
            _ => None,
        };
        let options = OverlayOptions::capture("/run/capture".into());
        let variables = environment(Utf8Path::new("/run/overlay"), &options, present);
        let expected = [
            ("PYTHONPATH", "/run/overlay:/opt/sglang/python:"),
            ("SGLANG_PLUGINS", "mine,gemmtune"),
            ("SGLANG_DUMP_AITER_FP8_GEMM_SHAPES", "1"),
            ("SGLANG_LOG_FP8_BLOCK_GEMM_DISPATCH", "1"),
            ("GEMMTUNE_RECORD_DIR", "/run/capture"),
        ];
        let variables: Vec<_> = variables
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        assert_eq!(variables, expected);
    }

    #[test]
    fn without_wishes_only_the_path_is_set() {
        let variables = environment(Utf8Path::new("/o"), &OverlayOptions::default(), nothing);
        assert_eq!(variables, [("PYTHONPATH".to_owned(), "/o".to_owned())]);
    }

    #[test]
    fn a_decision_is_written_as_the_overlay_documents_it() {
        let decision = Decision::new(vec![
            Action::SetForceCk,
            Action::Route {
                name: "triton_gemm_a8w8_blockscale".to_owned(),
                to: "aiter:gemm_a8w8_blockscale".to_owned(),
                rules: vec![Rule {
                    n: Some(512),
                    k: Some(7168),
                    max_m: Some(256),
                    ..Rule::default()
                }],
            },
        ]);
        let compact = serde_json::to_string(&decision).unwrap();
        assert_eq!(
            compact,
            r#"{"format":1,"actions":[{"do":"set_force_ck"},{"do":"route","name":"triton_gemm_a8w8_blockscale","to":"aiter:gemm_a8w8_blockscale","rules":[{"N":512,"K":7168,"max_M":256}]}]}"#
        );
        assert_eq!(
            serde_json::from_str::<Decision>(&decision.to_json()).unwrap(),
            decision
        );
    }
}
