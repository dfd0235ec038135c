//! What the kernel families share whose result an overlay serves: files in a folder named by their digest, numerical
//! checks, and which of the rows served.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use camino::{Utf8DirEntry, Utf8Path, Utf8PathBuf};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::engine::ports::Deployed;
use crate::log::summary::LogSummary;
use crate::overlay::OverlayOptions;
use crate::probe::found::{LayoutCheck, Probed};
use crate::problem::Shape;
use crate::proc::{Interrupt, run as command};
use crate::run::documents::{Deployment, Engagement};
use crate::run::error::{Error, ErrorKind};
use crate::server::sglang::Site;
use crate::store::digest::short as digest;
use crate::store::file::{entries, write_atomic};
use crate::store::run_dir::RunDir;
use crate::tune::tuned::{TunedRows, TunedTable};
use crate::workload::env::Environment;

/// The prefix of every output line of a check (`python/probe/*_check.py`).
const TAG: &str = "gemmtune-check: ";

/// Largest accepted error of a dense GEMM against float32, in norm: rounding to bfloat16 costs about 0.0017 and the
/// FP8 matrix units of sm_90, which keep 14 bits within a block of K, somewhat less again; a quantiser that rounds a
/// tie the other way changes next to nothing. Scales in the wrong place cost 0.3 or more.
pub(crate) const DENSE_LIMIT: f64 = 0.01;

/// Files that were put in a folder of the run.
pub(crate) struct Placed {
    pub(crate) folder: Utf8PathBuf,
    /// Digest of their names and contents.
    pub(crate) digest: String,
}

impl Placed {
    /// Writes `tables` into a folder whose name is `prefix` and their digest.
    pub(crate) fn write<'a>(
        run: &RunDir,
        prefix: &str,
        tables: impl IntoIterator<Item = &'a TunedTable>,
    ) -> Result<Self, Error> {
        let files: BTreeMap<&str, String> = tables
            .into_iter()
            .map(|table| (table.name.as_str(), table.text()))
            .collect();
        let whole: String = files
            .iter()
            .flat_map(|(name, text)| [*name, text.as_str()])
            .collect();
        let digest = digest(whole.as_bytes());
        let folder = run.deploy().join(format!("{prefix}{digest}"));
        fs_err::create_dir_all(&folder).map_err(|error| Error::file(&error))?;
        for (name, text) in files {
            write_atomic(&folder.join(name), text.as_bytes())
                .map_err(|error| Error::file(&error))?;
        }
        Ok(Self { folder, digest })
    }

    /// The deployment of these files, which have `rows` rows, by an overlay with `options`; `they` says what the variables do.
    pub(crate) fn deployment(
        self,
        site: &Site,
        run: &RunDir,
        options: &OverlayOptions,
        rows: usize,
        they: &str,
    ) -> Result<Deployment, Error> {
        let variables = self.in_front(site, run, options, they)?;
        Ok(Deployment::by_overlay(
            self.folder,
            self.digest,
            rows,
            variables,
        ))
    }

    /// The variables that start a server with the overlay and `options`, and the description of what undo removes;
    /// `they` describes the effect of the variables.
    pub(crate) fn in_front(
        &self,
        site: &Site,
        run: &RunDir,
        options: &OverlayOptions,
        they: &str,
    ) -> Result<(BTreeMap<String, String>, String), Error> {
        let set = site.overlay(run, options)?.into_iter();
        let env: BTreeMap<String, String> = set
            .filter_map(|(name, value)| Some((name, value?)))
            .collect();
        let names: Vec<&str> = env.keys().map(String::as_str).collect();
        let takes_back = format!(
            "the folder {} and the variables {} that {they}",
            self.folder,
            names.join(" and ")
        );
        Ok((env, takes_back))
    }
}

/// The tables among the files of `table` whose names are `wanted`; `table` is a file or a folder. `rows` refuses what
/// cannot be deployed.
pub(crate) fn take(
    table: &Utf8Path,
    wanted: impl Fn(&str) -> bool,
    rows: impl Fn(&Utf8Path, &[u8]) -> Result<TunedRows, Error>,
) -> Result<Vec<TunedTable>, Error> {
    let files = if table.is_dir() {
        let files = entries(table).map_err(|error| Error::file(&error))?;
        files.into_iter().map(Utf8DirEntry::into_path).collect()
    } else {
        vec![table.to_owned()]
    };
    let mut taken = Vec::new();
    for file in files {
        let Some(name) = file.file_name().filter(|name| wanted(name)) else {
            continue;
        };
        let bytes = fs_err::read(&file).map_err(|error| Error::file(&error))?;
        taken.push(TunedTable {
            name: name.to_owned(),
            rows: rows(&file, &bytes)?,
        });
    }
    Ok(taken)
}

/// A program that compares the deployed kernels with a reference.
pub(crate) struct Check {
    pub(crate) program: &'static str,
    /// Its name for display.
    pub(crate) name: &'static str,
    /// Time limit: importing SGLang or aiter from a network file system takes minutes; the checks themselves seconds
    /// each.
    pub(crate) longest: Duration,
}

impl Check {
    /// Its answers for `shapes` from a fresh process with the server's environment and `env`. The question has the M, N and K of each
    /// shape, and the field `about` besides.
    pub(crate) fn ask<T: DeserializeOwned>(
        &self,
        site: &Site,
        env: Environment,
        (about, what): (&str, Value),
        shapes: &[Shape],
        interrupt: &Interrupt,
    ) -> Result<Vec<T>, Error> {
        let sizes: Vec<[u32; 3]> = shapes
            .iter()
            .map(|shape| [shape.m, shape.n, shape.k])
            .collect();
        let order = json!({ about: what, "shapes": sizes });
        self.ask_about(site, env, &order, shapes.len(), interrupt)
    }

    /// Its answers to `order`, which asks `asked` questions, from such a process.
    pub(crate) fn ask_about<T: DeserializeOwned>(
        &self,
        site: &Site,
        env: Environment,
        order: &Value,
        asked: usize,
        interrupt: &Interrupt,
    ) -> Result<Vec<T>, Error> {
        let mut all = site.environment().clone();
        all.extend(env);
        let argv =
            [site.python.as_str(), "-c", self.program, &order.to_string()].map(str::to_owned);
        let ran = command::run(&site.keeper, &argv, None, all, self.longest, interrupt)
            .map_err(|error| Error::caused(ErrorKind::WorkloadFailed, &error))?;
        let answers: Vec<T> = String::from_utf8_lossy(&ran.stdout)
            .lines()
            .filter_map(|line| line.strip_prefix(TAG))
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        if answers.len() == asked {
            return Ok(answers);
        }
        let words = String::from_utf8_lossy(&ran.stderr);
        let last = words.lines().rev().find(|line| !line.trim().is_empty());
        Err(Error::new(
            ErrorKind::WorkloadFailed,
            format!(
                "the {} answered for {} of {asked} sizes and exited with code {}: {}",
                self.name,
                answers.len(),
                ran.code,
                last.unwrap_or("it said nothing")
            ),
        ))
    }
}

/// Environment that makes a server with the overlay of `options` record in `records` which rows it uses.
pub(crate) fn recording(
    site: &Site,
    run: &RunDir,
    options: OverlayOptions,
    records: &Utf8Path,
) -> Result<Environment, Error> {
    let options = OverlayOptions {
        records: Some(records.to_owned()),
        ..options
    };
    site.overlay(run, &options)
}

/// Refuses answers about a kernel other than the deployed one.
pub(crate) fn refuse_other(name: &str, other: Option<String>) -> Result<(), Error> {
    match other {
        None => Ok(()),
        Some(other) => Err(Error::new(
            ErrorKind::NotBetter,
            format!("{name}: {other}; the deployment was undone"),
        )),
    }
}

/// A family whose files contain rows, one of which serves a weight at an M by the runtime's rule.
pub(crate) trait Rows {
    /// The deployed row for (N, K, M); `None` if there is none.
    fn row(&self, n: u32, k: u32, m: u32) -> Option<Value>;

    /// What a GEMM without a row runs, for display.
    fn without(&self) -> &'static str;

    /// The rows for `shapes`, as text: a row may be repeated under several keys.
    fn rows(&self, shapes: &[Shape]) -> Vec<Option<String>> {
        let row = |shape: &Shape| Some(self.row(shape.n, shape.k, shape.m)?.to_string());
        shapes.iter().map(row).collect()
    }

    /// The result of `check` for `shapes` on what is deployed; an error if a shape ran with a row other than its own.
    fn probed(
        &self,
        check: &Check,
        site: &Site,
        deployed: &Deployed<'_>,
        about: (&str, Value),
        shapes: &[Shape],
    ) -> Result<Probed, Error> {
        let env = deployed.deployment.environment();
        let answers: Vec<Checked> = check.ask(site, env, about, shapes, deployed.interrupt)?;
        let other = answers.iter().find_map(|answer| {
            let row = self.row(answer.n, answer.k, answer.m)?;
            answer.not_of(&row, self.without())
        });
        refuse_other("layout check", other)?;
        Ok(Probed {
            layout: answers
                .into_iter()
                .map(|answer| answer.into_check(self.without()))
                .collect(),
            ..Probed::default()
        })
    }

    /// What the overlay's record of each GEMM that a server ran tells about the rows.
    fn engagement(&self, log_summary: &LogSummary) -> Engagement {
        let mut engagement = Engagement::default();
        for (&(n, k, m), served) in &log_summary.triton_served {
            let shape = format!("M={m} N={n} K={k}");
            match self.row(n, k, m) {
                None => engagement.unplanned.push(shape),
                Some(_) if !served.injected => engagement.missed.push(shape),
                Some(row) if served.config != row => engagement
                    .other_kernel
                    .push(format!("{shape}: {} instead of {row}", served.config)),
                Some(_) => engagement.hit += 1,
            }
        }
        engagement
    }
}

/// A check's answer for one row.
#[derive(Debug, Deserialize)]
pub(crate) struct Checked {
    #[serde(rename = "M")]
    m: u32,
    #[serde(rename = "N")]
    n: u32,
    #[serde(rename = "K")]
    k: u32,
    relative_error: Option<f64>,
    /// The row that served it.
    config: Option<Value>,
    failure: Option<String>,
}

impl Checked {
    /// If something other than `row` served this shape: a description of that, because the check is then about
    /// another kernel.
    fn not_of(&self, row: &Value, without: &str) -> Option<String> {
        if self.failure.is_some() || self.config.as_ref() == Some(row) {
            return None;
        }
        let found = match &self.config {
            Some(config) => config.to_string(),
            None => without.to_owned(),
        };
        Some(format!(
            "M={} N={} K={} ran with {found}, not with the deployed {row}",
            self.m, self.n, self.k
        ))
    }

    fn into_check(self, without: &str) -> LayoutCheck {
        LayoutCheck {
            m: self.m,
            n: self.n,
            k: self.k,
            kernel: match (self.failure, &self.config) {
                (Some(failure), _) => failure,
                (None, Some(config)) => tile_name(config),
                (None, None) => without.to_owned(),
            },
            relative_error: self.relative_error,
            limit: DENSE_LIMIT,
        }
    }
}

/// A row of a Triton kernel for display: `64x128x128, group 1, 4 warps, 3 stages`, and its further parameters.
pub(crate) fn tile_name(row: &Value) -> String {
    let number = |name: &str| row[name].as_u64();
    let size = |name: &str| number(name).unwrap_or(1);
    let mut name = format!(
        "{}x{}x{}, group {}",
        size("BLOCK_SIZE_M"),
        size("BLOCK_SIZE_N"),
        size("BLOCK_SIZE_K"),
        size("GROUP_SIZE_M")
    );
    // A default row of fused MoE leaves these to Triton.
    for (key, word) in [("num_warps", "warps"), ("num_stages", "stages")] {
        if let Some(value) = number(key) {
            let _ = write!(name, ", {value} {word}");
        }
    }
    for (key, word) in [("SPLIT_K", "split-K"), ("NUM_KSPLIT", "parts of K")] {
        if let Some(value) = number(key).filter(|value| *value > 1) {
            let _ = write!(name, ", {word} {value}");
        }
    }
    for (key, word) in [("SWAP_AB", "operands swapped"), ("USE_TMA", "TMA")] {
        if row[key].as_bool() == Some(true) {
            name.push_str(", ");
            name.push_str(word);
        }
    }
    name
}
