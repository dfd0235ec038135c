//! `gemmtune reference-server`: serve a model with the reference engine.

use std::io::Write as _;
use std::sync::Arc;

use camino::Utf8PathBuf;
use clap::Args;
use gemmtune_refengine::fault::Fault;
use gemmtune_refengine::linear::LogSwitches;
use gemmtune_refengine::log::Log;
use gemmtune_refengine::scheduler::Limits;
use gemmtune_refengine::server::{Options, Server, ServerError};

use super::printer::Printer;
use crate::run::error::{Error, ErrorKind};

/// Serve a model with the reference engine, on the CPU
///
/// Weights are random but seeded. Every linear layer is a block-scaled FP8 GEMM, whose kernel is
/// looked up per (M, N, K) in a tuned table as aiter does it; without a table one kernel serves every
/// shape. The log goes to standard error.
#[derive(Debug, Args)]
pub struct ReferenceServerArgs {
    /// config.json of the model, or the folder that holds it
    #[arg(long, alias = "model", value_name = "PATH")]
    model_path: Utf8PathBuf,

    /// Name of the model in the API, instead of its path
    #[arg(long, value_name = "NAME")]
    served_model_name: Option<String>,

    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    host: String,

    /// Port to listen on; 0 takes a free one and says which in the log
    #[arg(long, default_value_t = 30000)]
    port: u16,

    /// Seed of the weights
    #[arg(long, default_value_t = 42, value_name = "N")]
    random_seed: u64,

    /// Threads that GEMMs run on, instead of every core
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,

    /// Requests that run at a time
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    max_running_requests: u16,

    /// Prompt tokens in one forward at most
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunked_prefill_size: u32,

    /// Tuned table; read once, at the first GEMM
    #[arg(long, env = "GEMMTUNE_REFERENCE_TABLE", value_name = "CSV")]
    table: Option<String>,

    /// Log every GEMM call's shape
    #[arg(long, env = "SGLANG_DUMP_AITER_FP8_GEMM_SHAPES", value_name = "BOOL", default_value = "false", value_parser = switch)]
    dump_gemm_shapes: bool,

    /// Log once which GEMM implementation runs
    #[arg(long, env = "SGLANG_LOG_FP8_BLOCK_GEMM_DISPATCH", value_name = "BOOL", default_value = "false", value_parser = switch)]
    log_gemm_dispatch: bool,

    /// Log table hits too; misses always are
    #[arg(long, env = "AITER_LOG_TUNED_CONFIG", value_name = "BOOL", default_value = "false", value_parser = switch)]
    log_tuned_config: bool,

    #[arg(long = "fault", value_name = "NAME[=ARG]", help = fault_help())]
    faults: Vec<Fault>,
}

fn fault_help() -> String {
    format!(
        "Misbehave on purpose, for tests; may be repeated. {}",
        Fault::HELP
    )
}

/// A switch as SGLang reads it from the environment (`get_bool_env_var`): `true` or `1` in any case
/// is on, anything else off.
#[expect(clippy::unnecessary_wraps, reason = "the shape of a clap value parser")]
fn switch(text: &str) -> Result<bool, std::convert::Infallible> {
    Ok(matches!(text.to_lowercase().as_str(), "true" | "1"))
}

/// Serves until SIGTERM or SIGINT.
pub fn run(args: ReferenceServerArgs, printer: &Printer) -> Result<(), Error> {
    let faults = args.faults;
    let log = Arc::new(Log::new(
        Box::new(std::io::stderr()),
        faults.contains(&Fault::TornLogLines),
    ));
    let options = Options {
        model_path: args.model_path.into(),
        served_model_name: args.served_model_name,
        host: args.host,
        port: args.port,
        seed: args.random_seed,
        threads: args.threads.map(usize::from),
        limits: Limits {
            max_running: args.max_running_requests.into(),
            chunk: args.chunked_prefill_size as usize,
        },
        // As in aiter, a variable that is set but empty counts as unset.
        table: args.table.filter(|table| !table.is_empty()).map(Into::into),
        log_hits: args.log_tuned_config,
        switches: LogSwitches {
            shapes: args.dump_gemm_shapes,
            dispatch: args.log_gemm_dispatch,
        },
        faults,
        handle_signals: true,
    };
    let server = Server::start(options, log).map_err(failure)?;
    if printer.is_json() {
        printer.json(&serde_json::json!({"address": server.address().to_string()}))?;
    }
    let ended = server.wait();
    // Flushes the log before the exit code reports how it ended.
    let _ = std::io::stderr().flush();
    ended.map_err(failure)
}

fn failure(error: ServerError) -> Error {
    let kind = match &error {
        ServerError::Config(_) | ServerError::Limit(_) => ErrorKind::Usage,
        ServerError::Listen { .. } | ServerError::Start(_) => ErrorKind::Environment,
        ServerError::Load(_) | ServerError::WarmUp(_) => ErrorKind::ServerNotReady,
        ServerError::Http(_) => ErrorKind::WorkloadFailed,
        ServerError::Panicked => ErrorKind::Bug,
    };
    let listening = matches!(error, ServerError::Listen { .. });
    let failure = Error::to(kind, "serve", error);
    if listening {
        failure.hint("choose another port with `--port`, or `--port 0` for a free one")
    } else {
        failure
    }
}
