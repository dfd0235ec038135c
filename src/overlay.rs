//! The overlay: a folder in front of SGLang on `PYTHONPATH` that captures, injects tables and switches kernels, with
//! nothing in SGLang's tree touched.
//!
//! The Python files are in `python/overlay/` and embedded in the binary; this module writes them to a folder and
//! returns the variables that a server needs to run with them. Removing the variables removes the overlay. It starts
//! no process.
//!
//! The hooks are installed at import time (`sitecustomize`, every release from 0.5.5 to 0.5.23), with SGLang's plugin
//! registry (0.5.11 and later) as a fallback for environments in which another `sitecustomize` comes first. The
//! registry alone would be too late for a switch: it applies its hooks after `fp8.py` has copied the predicate that
//! decides whether weights are shuffled.

use std::borrow::Cow;
use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};

use crate::store::file::write_atomic;
use crate::tree::era::PREDICATE;
use crate::tree::force::{Rule, Step};

/// Name of the plugin entry point, for `SGLANG_PLUGINS`.
const PLUGIN_NAME: &str = "gemmtune";

/// Every file of the overlay, by path within its folder.
const FILES: [(&str, &str); 17] = {
    macro_rules! embedded {
        ($($path:literal),* $(,)?) => {
            [$(($path, include_str!(concat!("../python/overlay/", $path)))),*]
        };
    }
    embedded![
        "sitecustomize.py",
        "gemmtune_overlay/__init__.py",
        "gemmtune_overlay/aiter_triton.py",
        "gemmtune_overlay/capture.py",
        "gemmtune_overlay/capture_aiter_moe.py",
        "gemmtune_overlay/capture_moe.py",
        "gemmtune_overlay/graphs.py",
        "gemmtune_overlay/hooks.py",
        "gemmtune_overlay/moe_tables.py",
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

/// What the overlay does in a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OverlayOptions {
    /// Write shapes to the server log and the record files.
    pub shapes: bool,
    /// Write the identity of the block-FP8 linear to the server log and the record files.
    pub dispatch: bool,
    /// Folder in which each process writes a record file.
    pub records: Option<Utf8PathBuf>,
    /// Folder of SGLang Triton tables to serve instead of the shipped ones.
    pub triton_tables: Option<Utf8PathBuf>,
    /// Folder of SGLang's fused-MoE tables to serve instead of the shipped ones.
    pub moe_tables: Option<Utf8PathBuf>,
    /// Folder of files of aiter's Triton GEMM to serve instead of the shipped ones of the same names.
    pub aiter_triton: Option<Utf8PathBuf>,
    /// File with the kernel family of each routed GEMM; the folder then contains the GPU worker's files as well.
    pub route: Option<Utf8PathBuf>,
    /// File with a [`decision`].
    pub switch: Option<Utf8PathBuf>,
}

impl OverlayOptions {
    /// Records everything that a capture run needs.
    pub fn capture(records: Utf8PathBuf) -> Self {
        Self {
            shapes: true,
            dispatch: true,
            records: Some(records),
            ..Self::default()
        }
    }
}

/// Writes the overlay's files to `folder`; files that are already there with the same content are not touched.
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
/// `present` returns the value that a variable has for that server without the overlay: `PYTHONPATH` gets the folder
/// prepended, and an allow-list in `SGLANG_PLUGINS` gets our name appended.
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
        ("GEMMTUNE_MOE_TABLES", &options.moe_tables),
        ("GEMMTUNE_AITER_TRITON", &options.aiter_triton),
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

/// The variables of a server with the overlay in `folder`, as a file for the shell's `.`: one assignment a line, with
/// the previous value of `PYTHONPATH` kept after ours.
pub fn assignments(folder: &Utf8Path, options: &OverlayOptions) -> String {
    let variables = environment(folder, options, |_| None);
    let line = |(name, value): &(String, String)| {
        let quoted = shlex::try_quote(value).map_or_else(|_| value.clone(), Cow::into_owned);
        let rest = match name.as_str() {
            "PYTHONPATH" => "\"${PYTHONPATH:+:$PYTHONPATH}\"",
            _ => "",
        };
        format!("export {name}={quoted}{rest}\n")
    };
    variables.iter().map(line).collect()
}

/// What the overlay reads (`GEMMTUNE_SWITCH`) to apply `steps` in order, right after `fp8_utils` was executed: format
/// 1, which `python/overlay/gemmtune_overlay/switch.py` documents.
pub fn decision(steps: &[Step]) -> String {
    let actions: Vec<Value> = steps.iter().map(action).collect();
    let mut text = format!("{:#}", json!({ "format": 1, "actions": actions }));
    text.push('\n');
    text
}

fn action(step: &Step) -> Value {
    match step {
        Step::Rebind { name, to } => json!({ "do": "rebind", "name": name, "to": to }),
        Step::Route { name, to, rules } => {
            let rules: Vec<Value> = rules.iter().map(rule).collect();
            json!({ "do": "route", "name": name, "to": to, "rules": rules })
        }
        Step::Predicate { value, except } => {
            json!({ "do": "predicate", "name": PREDICATE, "value": value, "except": except })
        }
        Step::SetForceCk => json!({ "do": "set_force_ck" }),
    }
}

/// An absent bound does not restrict the rule.
fn rule(rule: &Rule) -> Value {
    let mut object = json!({ "N": rule.n, "K": rule.k });
    for (name, bound) in [("min_M", rule.min_m), ("max_M", rule.max_m)] {
        if let Some(bound) = bound {
            object[name] = bound.into();
        }
    }
    object
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
    fn the_assignments_keep_what_the_path_held() {
        assert_eq!(
            assignments(Utf8Path::new("/out/my overlay"), &OverlayOptions::default()),
            "export PYTHONPATH='/out/my overlay'\"${PYTHONPATH:+:$PYTHONPATH}\"\n"
        );
    }

    #[test]
    fn without_wishes_only_the_path_is_set() {
        let variables = environment(Utf8Path::new("/o"), &OverlayOptions::default(), nothing);
        assert_eq!(variables, [("PYTHONPATH".to_owned(), "/o".to_owned())]);
    }

    #[test]
    fn a_decision_is_written_as_the_overlay_documents_it() {
        let text = decision(&[
            Step::SetForceCk,
            Step::Route {
                name: "triton_gemm_a8w8_blockscale".to_owned(),
                to: "aiter:gemm_a8w8_blockscale".to_owned(),
                rules: vec![Rule {
                    n: 512,
                    k: 7168,
                    min_m: None,
                    max_m: Some(256),
                }],
            },
        ]);
        let expected = json!({"format": 1, "actions": [
            {"do": "set_force_ck"},
            {"do": "route", "name": "triton_gemm_a8w8_blockscale", "to": "aiter:gemm_a8w8_blockscale",
             "rules": [{"N": 512, "K": 7168, "max_M": 256}]},
        ]});
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
    }
}
