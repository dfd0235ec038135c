//! `gemmtune demo`: the whole loop on the built-in reference engine.

use std::net::TcpListener;
use std::process::ExitCode;

use camino::Utf8PathBuf;

use super::printer::Printer;
use crate::run::error::{Error, ErrorKind};
use crate::run::stage::Stage;
use crate::store::file::write_atomic;
use crate::store::run_dir::RUNS;
use crate::workload::config::{
    Backend, BackendKind, Benchmark, Budget, Compare, Config, Load, SGLANG_READY_LINE, Server,
    Workload,
};
use crate::workload::duration::Span;

/// The model the demo serves: small enough for two cores, too large for their caches.
const MODEL: &str = include_str!("../../testdata/models/demo/config.json");

/// Arguments of `gemmtune demo`.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// Compare the untuned server with itself: shows the noise of this machine
    #[arg(long)]
    aa: bool,
    /// Folder for the run folder
    #[arg(long, default_value = RUNS)]
    runs: Utf8PathBuf,
    /// Interleaved pairs of server starts; fewer than six give no verdict
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pairs: u32,
    /// More arguments for the reference server, for example a `--fault`
    #[arg(last = true)]
    server: Vec<String>,
}

/// Runs the loop on the reference engine; the exit code is that of `run`.
pub fn run(args: &DemoArgs, printer: &Printer) -> Result<ExitCode, Error> {
    let environment =
        |what: &'static str| move |error| Error::to(ErrorKind::Environment, what, error);
    fs_err::create_dir_all(&args.runs).map_err(environment("create the folder of runs"))?;
    let runs = args
        .runs
        .canonicalize_utf8()
        .map_err(environment("find the folder of runs"))?;
    let model = runs.join("demo-model");
    fs_err::create_dir_all(&model).map_err(environment("create the model's folder"))?;
    write_atomic(&model.join("config.json"), MODEL.as_bytes())
        .map_err(environment("write the model's configuration"))?;
    // The kernel assigns a port on which nothing listens now.
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map_err(environment("find a free port"))?
        .port();
    let program = super::run::keeper()?.program().to_owned();
    let mut command: Vec<String> = [
        program.as_str(),
        "reference-server",
        "--model",
        model.as_str(),
    ]
    .map(str::to_owned)
    .to_vec();
    command.extend(["--port".to_owned(), port.to_string()]);
    command.extend(args.server.iter().cloned());
    let config = Config {
        workload: Workload {
            name: if args.aa { "demo-aa" } else { "demo" }.to_owned(),
            model: Some(model.to_string()),
            tp: 1,
            concurrency: Some(LOAD.concurrency),
        },
        server: Server {
            command: Some(command),
            script: None,
            cwd: Some(runs.clone()),
            env: [].into(),
            unset: Vec::new(),
            port,
            ready_url: None,
            ready_log: Some(SGLANG_READY_LINE.to_owned()),
            ready_timeout_s: 60,
            stop_timeout_s: 10,
        },
        benchmark: Benchmark {
            command: None,
            builtin: Some(LOAD),
            loads: Vec::new(),
            results: None,
            repeats: 1,
            timeout_s: 120,
            profile: true,
            keep_traces: false,
        },
        backend: Backend {
            kind: BackendKind::Reference,
            python: None,
            sglang_root: None,
            aiter_root: None,
            gfx: None,
            cu_num: None,
            op: None,
            table: None,
            switch: crate::workload::config::Switch::default(),
            fused_moe: crate::workload::config::FusedMoe::default(),
            expert_routing: crate::workload::config::Routing::default(),
            err_ratio: None,
        },
        compare: Compare {
            metric: "output_throughput".to_owned(),
            pairs: args.pairs,
            only_noise: args.aa,
        },
        budget: Budget {
            tune: Span::seconds(60),
        },
    };
    super::run::begin(&runs, config, Stage::Report, printer)
}

/// A decode-heavy load: short prompts and a few concurrent requests, as in an interactive service.
const LOAD: Load = Load {
    name: None,
    metric: None,
    concurrency: 4,
    prompts: 24,
    input_len: 32,
    output_len: 32,
    warmup: 1,
    seed: 1,
};
