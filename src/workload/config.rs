//! `gemmtune.toml`: the schema, its checks and its defaults.
//!
//! ```toml
//! [workload]                     # what is served; used for names, plans and fairness
//! name = "qwen3-14b-tp2"
//! model = "/models/Qwen3-14B-FP8"
//! tp = 2
//! concurrency = 32
//!
//! [server]                       # exactly one of `command` and `script`
//! command = ["python3", "-m", "sglang.launch_server", "--model-path", "/models/Qwen3-14B-FP8"]
//! cwd = "."                      # relative paths are relative to this file
//! env = { SGLANG_USE_AITER = "1" }
//! unset = ["HSA_OVERRIDE_GFX_VERSION"]
//! port = 30000
//! ready_url = "http://127.0.0.1:30000/health"
//! ready_log = "The server is fired up and ready to roll!"
//! ready_timeout_s = 1800
//!
//! [benchmark]                    # exactly one of `command`, `builtin` and `loads` (see [`Load`])
//! command = ["python3", "-m", "sglang.bench_serving", "--output-file", "bench.jsonl"]
//! results = "bench.jsonl"        # the file that command appends its JSON line to
//! repeats = 1                    # benchmark runs inside one trial
//!
//! [backend]
//! kind = "aiter"                 # reference | sglang-triton | aiter
//! python = "/opt/venv/bin/python3"
//! gfx = "gfx942"
//! cu_num = 304
//! op = "gemm_a8w8_blockscale"
//!
//! [compare]
//! metric = "output_throughput"
//! pairs = 6
//!
//! [budget]
//! tune = "30m"
//! ```
//!
//! This module reads no file and starts nothing: the caller hands in the text and gets a checked
//! [`Config`]. Unknown names are errors, so a misspelt one is never silently ignored.

mod backend_flag;
mod check;
mod contradiction;
mod fused_moe;
mod missing;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

pub use check::ConfigError;
pub use contradiction::Find;
pub use fused_moe::{FusedMoe, Routing};
pub use missing::{Missing, missing};

use super::duration::Span;
pub use super::load::Load;
use super::share::Share;
use crate::problem::Op;

/// Name of the configuration file, looked for in the current folder.
pub const FILE_NAME: &str = "gemmtune.toml";

/// Line that SGLang logs after its warm-up (0.5.5 to 0.5.23, `srt/entrypoints/http_server.py`).
pub const SGLANG_READY_LINE: &str = "The server is fired up and ready to roll!";

/// Port an SGLang server listens on by default (0.5.5 to 0.5.23, `srt/server_args.py`).
pub const SGLANG_DEFAULT_PORT: u16 = 30_000;

/// A whole, checked `gemmtune.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What is served.
    pub workload: Workload,
    /// How the server is started.
    pub server: Server,
    /// How it is measured.
    pub benchmark: Benchmark,
    /// What is tuned, and where it lives.
    pub backend: Backend,
    /// How the two arms are compared.
    #[serde(default)]
    pub compare: Compare,
    /// How long the expensive stages may take.
    #[serde(default)]
    pub budget: Budget,
}

/// `[workload]`: what is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Short name, part of the run folder's name: letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// Model path or id as the server gets it: a relative path begins in the server's working directory. From its
    /// `config.json` the shapes and the gain of each load are predicted; where there is none, `run` says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Tensor-parallel size of the server.
    #[serde(default = "one")]
    pub tp: u32,
    /// Concurrent requests of the benchmark, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
}

/// `[server]`: how the server is started and when it counts as ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Argument vector, started without a shell. Exactly one of `command` and `script` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// A launch script, run with bash as the user runs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub script: Option<Utf8PathBuf>,
    /// Working directory; the configuration file's folder when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub cwd: Option<Utf8PathBuf>,
    /// Variables set on top of the inherited environment. What stands under the name of a secret (`HF_TOKEN`) is masked
    /// in everything a run shows or writes, except its own `run.toml`, which only its owner can read.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Inherited variables taken away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unset: Vec<String>,
    /// Port the server listens on, on loopback.
    #[serde(default = "default_port")]
    pub port: u16,
    /// URL that answers 200 once the server is up; `http://127.0.0.1:PORT/health` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_url: Option<String>,
    /// Text that the server's log must hold as well; none is waited for when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_log: Option<String>,
    /// Seconds until a server that is not ready counts as failed. A first start with aiter may
    /// spend many minutes in JIT builds, hence the large default.
    #[serde(default = "default_ready_timeout")]
    pub ready_timeout_s: u64,
    /// Seconds the server's processes have to end by themselves before they are killed. SGLang spends five of
    /// them collecting diagnostics although nothing crashed.
    #[serde(default = "default_stop_timeout")]
    pub stop_timeout_s: u64,
}

/// `[benchmark]`: how a ready server is measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Benchmark {
    /// The user's own benchmark. Exactly one of `command`, `builtin` and `loads` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// gemmtune's own load generator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builtin: Option<Load>,
    /// Several loads (the names of `builtin`), run one after another in every trial, each with a name and judged on its
    /// own as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loads: Vec<Load>,
    /// The file `command` appends one JSON object per run to; required with `command`. Relative to
    /// the folder the benchmark runs in, which is the trial's own, so runs never mix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub results: Option<Utf8PathBuf>,
    /// Benchmark runs inside one trial. The trial stays the unit of comparison.
    #[serde(default = "one")]
    pub repeats: u32,
    /// Seconds one benchmark run may take before any baseline has taught a limit.
    #[serde(default = "default_benchmark_timeout")]
    pub timeout_s: u64,
    /// Whether the baseline server says where the time of a step goes: it serves each load of ours once more, for a few
    /// steps, after all that is timed. Nothing comes of it where the server has no profiler.
    #[serde(default = "yes")]
    pub profile: bool,
    /// Keep the traces of that profile in the run folder; they are large.
    #[serde(default)]
    pub keep_traces: bool,
}

/// `[backend]`: what is tuned and where it lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// Which engine is tuned.
    pub kind: BackendKind,
    /// The interpreter that runs the server; needed by every kind but `reference`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub python: Option<Utf8PathBuf>,
    /// Folder that holds the `sglang` package, where it is not the one `python` imports. A server
    /// that then runs from another tree is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub sglang_root: Option<Utf8PathBuf>,
    /// Folder that holds the `aiter` package, in the same sense.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub aiter_root: Option<Utf8PathBuf>,
    /// GPU architecture (`gfx942`), where it is not to be asked of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gfx: Option<String>,
    /// Compute units of one device, in the same sense.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cu_num: Option<u32>,
    /// Operation to tune; found by the capture stage when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op: Option<Op>,
    /// A table or route from elsewhere, to be judged: it is deployed as it is, and nothing is tuned (`run --table`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub table: Option<Utf8PathBuf>,
    /// Which GEMMs the tuned arm sends to aiter's tuned operation, where they run Triton today.
    #[serde(default)]
    pub switch: Switch,
    /// Whether the fused MoE of a model with experts is tuned in the same run as its dense GEMMs (kinds `sglang-triton`,
    /// `sglang-families` and `aiter`; `aiter` tunes it alone where it can tune none of those); without experts it changes nothing.
    #[serde(default, skip_serializing_if = "FusedMoe::is_default")]
    pub fused_moe: FusedMoe,
    /// How tokens are spread over experts while a fused MoE is raced: `skewed` where a few experts get most of the traffic. The
    /// server's own routing is whatever the workload brings.
    #[serde(default, skip_serializing_if = "Routing::is_default")]
    pub expert_routing: Routing,
    /// Largest share of wrong elements that a row of aiter's tuner may have, in each of its stages: 0.05 when absent, 0.1 for the
    /// fused MoE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<f64>"))]
    pub err_ratio: Option<Share>,
}

/// Which GEMMs go to the tuned operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Switch {
    /// Those that the deployed table has a row for; every other one stays on Triton.
    #[default]
    Route,
    /// All of them.
    All,
    /// None: the server takes the path it takes today.
    None,
}

/// The engines gemmtune can tune.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum BackendKind {
    /// The built-in CPU engine.
    Reference,
    /// SGLang's own Triton block-FP8 kernel (CUDA, and ROCm without aiter).
    SglangTriton,
    /// Whatever serves SGLang's block-FP8 linears on CUDA today (DeepGEMM on Hopper), against a route between every kernel
    /// family that the server's interpreter has and gemmtune's own.
    SglangFamilies,
    /// SGLang's Triton kernel for fused MoE, which serves experts in FP8 by default on Hopper; dense GEMMs are left to whatever
    /// serves them.
    SglangMoe,
    /// aiter's CK kernels under SGLang on ROCm.
    Aiter,
    /// aiter's Triton GEMM under SGLang on ROCm, by rows of its JSON files: what SGLang calls there where nothing else was chosen.
    AiterTriton,
    /// No server and no kernels of any runtime: they show what new ones need.
    #[cfg(test)]
    #[schemars(skip)]
    Toy,
}

impl BackendKind {
    /// Whether the server is part of gemmtune. Any other runs on a GPU, and an interpreter of its own decides what it imports.
    pub fn is_built_in(self) -> bool {
        match self {
            Self::Reference => true,
            #[cfg(test)]
            Self::Toy => true,
            Self::SglangTriton
            | Self::SglangFamilies
            | Self::SglangMoe
            | Self::Aiter
            | Self::AiterTriton => false,
        }
    }
}

/// `[compare]`: how the arms are compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Compare {
    /// The deciding metric, a key of the result line (`output_throughput`, `median_tpot_ms`, …).
    #[serde(default = "default_metric")]
    pub metric: String,
    /// Interleaved pairs of trials. Six is the least that supports a verdict at 95 %.
    #[serde(default = "default_pairs")]
    pub pairs: u32,
    /// Measure the noise of the set-up: both arms are the baseline and nothing is tuned.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only_noise: bool,
}

impl Default for Compare {
    fn default() -> Self {
        Self {
            metric: default_metric(),
            pairs: default_pairs(),
            only_noise: false,
        }
    }
}

/// `[budget]`: how long the expensive stages may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Wall time of the tune stage; what was found by then is kept.
    #[serde(default = "default_tune_budget")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub tune: Span,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            tune: default_tune_budget(),
        }
    }
}

/// How the server is started: the checked form of `server.command` and `server.script`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launch<'a> {
    /// Program and arguments.
    Command(&'a [String]),
    /// A script for bash.
    Script(&'a Utf8Path),
}

/// How the server is measured: the checked form of `[benchmark]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure<'a> {
    /// The user's command and the file it appends results to.
    Command {
        /// Program and arguments.
        command: &'a [String],
        /// Result file, JSON Lines.
        results: &'a Utf8Path,
    },
    /// gemmtune's own load generator, one load after another.
    Builtin(&'a [Load]),
}

impl Config {
    /// Reads and checks a configuration.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    /// Makes relative paths absolute: they are relative to `folder`, that of the configuration file. A
    /// server without a working directory gets that folder.
    pub fn resolve(&mut self, folder: &Utf8Path) {
        let server = &mut self.server;
        server.cwd = Some(match &server.cwd {
            Some(cwd) => folder.join(cwd),
            None => folder.to_owned(),
        });
        if let Some(script) = &mut server.script {
            *script = folder.join(&*script);
        }
        for root in [
            &mut self.backend.sglang_root,
            &mut self.backend.aiter_root,
            &mut self.backend.table,
        ]
        .into_iter()
        .flatten()
        {
            *root = folder.join(&*root);
        }
        // A bare `python3` is looked for on the path; anything with a slash is a file.
        if let Some(python) = &mut self.backend.python
            && python.as_str().contains('/')
        {
            *python = folder.join(&*python);
        }
    }

    /// The configuration as TOML, with every default written out.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every key is a string and every value is plain data")
    }

    /// How the server is started.
    pub fn launch(&self) -> Result<Launch<'_>, ConfigError> {
        match (&self.server.command, &self.server.script) {
            (Some(command), None) => Ok(Launch::Command(command)),
            (None, Some(script)) => Ok(Launch::Script(script)),
            (command, _) => Err(ConfigError::ExactlyOne {
                table: "server",
                one: "command",
                other: "script",
                found: found(command.is_some()),
            }),
        }
    }

    /// How the server is measured.
    pub fn measure(&self) -> Result<Measure<'_>, ConfigError> {
        let builtin = match (&self.benchmark.builtin, &*self.benchmark.loads) {
            (Some(load), []) => Some(std::slice::from_ref(load)),
            (None, loads) => Some(loads).filter(|loads| !loads.is_empty()),
            (Some(_), _) => {
                return Err(ConfigError::ExactlyOne {
                    table: "benchmark",
                    one: "builtin",
                    other: "loads",
                    found: "both",
                });
            }
        };
        match (&self.benchmark.command, builtin) {
            (None, Some(loads)) => Ok(Measure::Builtin(loads)),
            (Some(command), None) => match &self.benchmark.results {
                Some(results) => Ok(Measure::Command { command, results }),
                None => Err(ConfigError::Missing {
                    name: "benchmark.results",
                    why: "`benchmark.command` writes its results to a file, and only you know which",
                }),
            },
            (command, _) => Err(ConfigError::ExactlyOne {
                table: "benchmark",
                one: "command",
                other: "builtin",
                found: found(command.is_some()),
            }),
        }
    }

    /// Where the model lies if it is given as a path: a relative one is the server's, so it begins where the server does.
    pub fn model_folder(&self) -> Option<Utf8PathBuf> {
        let model = self.workload.model.as_deref()?;
        Some(match &self.server.cwd {
            Some(cwd) => cwd.join(model),
            None => model.into(),
        })
    }

    /// URL that answers 200 once the server is up.
    pub fn ready_url(&self) -> String {
        self.server
            .ready_url
            .clone()
            .unwrap_or_else(|| format!("http://127.0.0.1:{}/health", self.server.port))
    }
}

fn found(first_is_there: bool) -> &'static str {
    // Called only when the two are both there or both missing, so the first decides.
    if first_is_there { "both" } else { "neither" }
}

fn one() -> u32 {
    1
}

fn yes() -> bool {
    true
}

fn default_port() -> u16 {
    SGLANG_DEFAULT_PORT
}

fn default_ready_timeout() -> u64 {
    1800
}

fn default_stop_timeout() -> u64 {
    10
}

fn default_benchmark_timeout() -> u64 {
    3600
}

fn default_metric() -> String {
    "output_throughput".to_owned()
}

fn default_pairs() -> u32 {
    6
}

fn default_tune_budget() -> Span {
    Span::seconds(30 * 60)
}
