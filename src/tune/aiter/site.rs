//! The tuner's environment: its devices, and its command line.
//!
//! Starts the interpreter that will run the tuner, with the environment the tuner will get, and parses its output.

use std::collections::BTreeMap;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;

use super::AiterTuneError;
use super::flags::{Flags, Takes};
use crate::proc::{self, Interrupt, Keeper, RunError};

/// The program that lists devices; see its header.
const DEVICES: &str = include_str!("../../../python/aiter_tuner/devices.py");

/// The prefix of its answer line.
const TAG: &str = "gemmtune-aiter: ";

/// Time limit for the imports: torch and aiter from a cold network file system take a minute, and aiter merges its
/// shipped tables during that.
const LIMIT: Duration = Duration::from_secs(300);

/// The devices and software that the tuner would use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Seen {
    /// Package folder that `import aiter` loads.
    #[serde(default)]
    pub package: Option<Utf8PathBuf>,
    #[serde(default)]
    pub count: u32,
    /// Compute units of the current device, as torch counts them and the tuner writes them.
    #[serde(default)]
    pub cu_num: u32,
    /// Architecture of the current device.
    #[serde(default)]
    pub gfx: String,
    #[serde(default)]
    pub name: String,
    /// Versions of the packages it imports.
    #[serde(default)]
    pub versions: BTreeMap<String, String>,
    /// Why it could not report more.
    #[serde(default)]
    pub error: Option<String>,
}

/// The interpreter to run, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Query<'a> {
    pub(super) python: &'a Utf8Path,
    /// Variables of the order.
    pub(super) env: &'a BTreeMap<String, Option<String>>,
    /// The folder that contains the package `aiter`.
    pub(super) root: &'a Utf8Path,
    pub(super) keeper: &'a Keeper,
    pub(super) interrupt: &'a Interrupt,
}

/// What an interpreter reported about a script.
pub(super) struct QueryResult {
    /// The devices; absent if the interpreter could not be run.
    pub(super) seen: Option<Seen>,
    pub(super) flags: Flags,
    pub(super) devices: Option<u32>,
    /// Variables of every start, without those of a single start.
    pub(super) env: BTreeMap<String, Option<String>>,
    /// Remarks.
    pub(super) remarks: Vec<String>,
}

impl QueryResult {
    /// Runs the interpreter for `script`, whose source has the flags `source`, with `scratch` for its files. With
    /// `must`, what a dry run only remarks on is an error.
    pub(super) fn about(
        script: &Utf8Path,
        source: &Flags,
        query: Query<'_>,
        devices_wanted: Option<u32>,
        scratch: &Utf8Path,
        must: bool,
    ) -> Result<Self, AiterTuneError> {
        let mut remarks = Vec::new();
        let seen = match devices(query, scratch) {
            Ok(seen) => Some(seen),
            Err(error) if must => return Err(error),
            Err(error) => {
                remarks.push(format!("devices cannot be counted here: {error}"));
                None
            }
        };
        let mut flags = source.clone();
        if seen.is_some() {
            match help(query, script, scratch)? {
                Ok(help) => {
                    let other = help.missing_in(source);
                    if !other.is_empty() {
                        remarks.push(format!(
                            "flags that its source does not show: {}",
                            other.join(", ")
                        ));
                    }
                    flags = help.with_defaults_of(source);
                }
                Err(reason) => remarks.push(format!("flags were read from source: {reason}")),
            }
        }
        let count = seen.as_ref().map(|seen| seen.count);
        let devices = match (devices_wanted, count) {
            // For a larger number than available the script uses all.
            (Some(wanted), Some(count)) => Some(wanted.clamp(1, count)),
            (wanted, count) => wanted.or(count),
        };
        Ok(Self {
            env: env(query),
            seen,
            flags,
            devices,
            remarks,
        })
    }

    /// Whether the tuner has its own time limit for a task.
    pub(super) fn has_own_limit(&self) -> bool {
        let flag = self.flags.get("--timeout");
        flag.is_some_and(|flag| flag.takes == Takes::One)
    }

    /// Those of `env` that are not in the caller's own.
    pub(super) fn added(
        env: BTreeMap<String, Option<String>>,
        own: &BTreeMap<String, Option<String>>,
    ) -> BTreeMap<String, Option<String>> {
        env.into_iter()
            .filter(|(name, value)| own.get(name) != Some(value))
            .collect()
    }
}

/// Variables for the tuner and for everything run beforehand, relative to the order's.
///
/// `PYTHONPATH` begins with the tree, so that the script and `import aiter` use the same tree. Log settings are
/// overridden so that lines have the format parsed here, whatever the user set.
fn env(query: Query<'_>) -> BTreeMap<String, Option<String>> {
    let mut env = query.env.clone();
    let set = |env: &mut BTreeMap<String, Option<String>>, name: &str, value: &str| {
        env.insert(name.to_owned(), Some(value.to_owned()));
    };
    // An installed package is on the path already; putting site-packages first would reorder it.
    let installed = ["site-packages", "dist-packages"]
        .into_iter()
        .any(|name| query.root.file_name() == Some(name));
    if !installed {
        let path = match env.get("PYTHONPATH").cloned().flatten() {
            Some(rest) if !rest.is_empty() => format!("{}:{rest}", query.root),
            _ => query.root.to_string(),
        };
        set(&mut env, "PYTHONPATH", &path);
    }
    set(&mut env, "PYTHONUNBUFFERED", "1");
    // 1 would split each record over two lines; a level above INFO would hide the batches.
    set(&mut env, "AITER_LOG_MORE", "0");
    set(&mut env, "AITER_LOG_LEVEL", "INFO");
    // argparse wraps its help at this width.
    set(&mut env, "COLUMNS", "200");
    env
}

/// Determines which devices the tuner would use, and checks that it would use this tree.
fn devices(query: Query<'_>, folder: &Utf8Path) -> Result<Seen, AiterTuneError> {
    let file = folder.join("devices.py");
    crate::store::file::write_atomic(&file, DEVICES.as_bytes()).map_err(AiterTuneError::Write)?;
    let argv = [query.python.as_str(), file.as_str()].map(str::to_owned);
    let ran = proc::run(
        query.keeper,
        &argv,
        Some(folder.to_owned()),
        env(query),
        LIMIT,
        query.interrupt,
    )?;
    let text = String::from_utf8_lossy(&ran.stdout);
    let answer = text.lines().rev().find_map(|line| line.strip_prefix(TAG));
    let seen: Seen = answer
        .and_then(|json| serde_json::from_str(json).ok())
        .ok_or_else(|| AiterTuneError::NoAnswer {
            python: query.python.to_owned(),
            code: ran.code,
            said: tail(&ran.stderr),
        })?;
    if let Some(error) = &seen.error {
        return Err(AiterTuneError::CannotImport {
            python: query.python.to_owned(),
            error: error.clone(),
        });
    }
    let ours = query.root.join("aiter");
    if let Some(package) = &seen.package
        && package.canonicalize_utf8().ok() != ours.canonicalize_utf8().ok()
    {
        return Err(AiterTuneError::OtherTree {
            python: query.python.to_owned(),
            used: package.clone(),
            meant: ours,
        });
    }
    if seen.count == 0 {
        return Err(AiterTuneError::NoDevice {
            python: query.python.to_owned(),
        });
    }
    Ok(seen)
}

/// The script's own help, or the reason why it is not available.
fn help(
    query: Query<'_>,
    script: &Utf8Path,
    folder: &Utf8Path,
) -> Result<Result<Flags, String>, AiterTuneError> {
    let argv = [query.python.as_str(), script.as_str(), "--help"].map(str::to_owned);
    let ran = match proc::run(
        query.keeper,
        &argv,
        Some(folder.to_owned()),
        env(query),
        LIMIT,
        query.interrupt,
    ) {
        Ok(ran) => ran,
        Err(RunError::Interrupted(_)) => return Err(AiterTuneError::Interrupted),
        Err(error) => return Ok(Err(error.to_string())),
    };
    let text = String::from_utf8_lossy(&ran.stdout);
    Ok(Flags::from_help(&text).ok_or_else(|| {
        let said = tail(&ran.stderr);
        format!("`--help` ended with exit code {}: {said}", ran.code)
    }))
}

/// The last lines of a program's output.
pub(super) fn tail(bytes: &[u8]) -> String {
    /// Enough for the end of a traceback.
    const LINES: usize = 6;
    let text = super::flags::without_escapes(&String::from_utf8_lossy(bytes));
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(LINES)..].join(" | ")
}
