//! Routes. `/health`, `/v1/models`, `/v1/completions`, `/server_info`, `/gemm_check`.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::{App, GRACE, ServerError, completions};
use crate::dispatch::DispatchError;
use crate::kernels::{self, Isa};
use crate::measure::{self, Dims, Operands};

/// Serves until the application stops; open connections then have [`GRACE`] to end.
pub(super) fn serve(app: &Arc<App>, listener: TcpListener) -> Result<(), ServerError> {
    // One thread speaks HTTP: the cores belong to the GEMMs.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(ServerError::Start)?;
    let outcome = runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).map_err(ServerError::Start)?;
        if app.options.handle_signals {
            stop_on_signals(app)?;
        }
        let router = Router::new()
            .route("/health", get(health))
            .route("/v1/models", get(models))
            .route("/v1/completions", post(completions::complete))
            .route("/server_info", get(info))
            .route("/gemm_check", post(gemm_check))
            .layer(middleware::from_fn_with_state(Arc::clone(app), access_log))
            .with_state(Arc::clone(app))
            .into_make_service_with_connect_info::<SocketAddr>();
        let serving =
            axum::serve(listener, router).with_graceful_shutdown(stopped(Arc::clone(app)));
        tokio::select! {
            outcome = serving => outcome.map_err(ServerError::Http),
            () = grace_over(app) => Ok(()),
        }
    });
    // A connection that outlived its grace is dropped, and so is a check that still runs.
    runtime.shutdown_background();
    if outcome.is_err() {
        app.stop();
    }
    outcome
}

async fn stopped(app: Arc<App>) {
    let mut stop = app.stop.subscribe();
    // The sender lives in the application, so waiting ends only when told to stop.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn grace_over(app: &Arc<App>) {
    stopped(Arc::clone(app)).await;
    tokio::time::sleep(GRACE).await;
}

fn stop_on_signals(app: &Arc<App>) -> Result<(), ServerError> {
    for (kind, name) in [
        (SignalKind::terminate(), "SIGTERM"),
        (SignalKind::interrupt(), "SIGINT"),
    ] {
        let mut signals = signal(kind).map_err(ServerError::Start)?;
        let app = Arc::clone(app);
        tokio::spawn(async move {
            if signals.recv().await.is_some() {
                app.log.line(&format!(
                    "{name} received. Draining requests and shutting down..."
                ));
                app.stop();
            }
        });
    }
    Ok(())
}

/// Uvicorn's access line, which stands between SGLang's own.
async fn access_log(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let asked = format!("{} {} HTTP/1.1", request.method(), request.uri());
    let response = next.run(request).await;
    let status = response.status();
    app.log.line(&format!(
        "INFO:     {peer} - \"{asked}\" {} {}",
        status.as_u16(),
        status.canonical_reason().unwrap_or_default()
    ));
    response
}

/// An error in the words of OpenAI-style servers.
pub(super) fn error(status: StatusCode, message: impl Into<String>) -> Response {
    let kind = match status {
        StatusCode::BAD_REQUEST => "BadRequestError",
        StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
        _ => "InternalServerError",
    };
    let body = json!({"object": "error", "message": message.into(), "type": kind, "code": status.as_u16()});
    (status, Json(body)).into_response()
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

async fn health(State(app): State<Arc<App>>) -> Response {
    if app.is_ready() {
        StatusCode::OK.into_response()
    } else if app.stopping.load(Ordering::Acquire) {
        error(
            StatusCode::SERVICE_UNAVAILABLE,
            "the server is shutting down",
        )
    } else {
        error(StatusCode::SERVICE_UNAVAILABLE, "the server is starting")
    }
}

async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    let name = app.options.name();
    Json(json!({
        "object": "list",
        "data": [{
            "id": name,
            "object": "model",
            "created": now(),
            "owned_by": "gemmtune",
            "root": name,
            "max_model_len": app.config.context,
        }],
    }))
}

async fn info(State(app): State<Arc<App>>) -> Json<Value> {
    let threads = app.options.threads.unwrap_or_else(crate::device::cores) as u32;
    Json(server_info(&app, threads))
}

/// The resolved arguments, one flat object.
pub(super) fn server_info(app: &App, cu_num: u32) -> Value {
    let options = &app.options;
    let isa = Isa::best();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model_path": options.model_path,
        "served_model_name": options.name(),
        "host": options.host,
        "port": app.address.port(),
        "random_seed": options.seed,
        "quantization": "fp8",
        "weight_block_size": 128,
        "gfx": isa.name(),
        "cu_num": cu_num,
        "default_kernel": kernels::default_kernel(isa).name(),
        "table_path": options.table,
        "table_digest": app.table_digest,
        "max_running_requests": options.limits.max_running,
        "chunked_prefill_size": options.limits.chunk,
        "context_length": app.config.context,
        "log_tuned_config": options.log_hits,
        "dump_gemm_shapes": options.switches.shapes,
        "log_gemm_dispatch": options.switches.dispatch,
        "faults": options.faults.iter().map(|fault| format!("{fault:?}")).collect::<Vec<_>>().join(","),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GemmCheck {
    #[serde(rename = "M")]
    m: usize,
    #[serde(rename = "N")]
    n: usize,
    #[serde(rename = "K")]
    k: usize,
    #[serde(default)]
    seed: u64,
}

/// Elements an operand of a check may have: 256 MiB of FP8, above every layer of the models that a CPU serves.
const MAX_CHECK: usize = 1 << 28;

/// Runs the kernel that serving would run for a shape, on seeded inputs, against float64.
async fn gemm_check(
    State(app): State<Arc<App>>,
    body: Result<Json<GemmCheck>, JsonRejection>,
) -> Response {
    let GemmCheck { m, n, k, seed } = match body {
        Ok(Json(check)) => check,
        Err(rejection) => return error(StatusCode::BAD_REQUEST, rejection.body_text()),
    };
    let Some(path) = app.path.get().filter(|_| app.is_ready()).cloned() else {
        return error(StatusCode::SERVICE_UNAVAILABLE, "the server is not ready");
    };
    let fits = |a: usize, b: usize| {
        a.checked_mul(b)
            .is_some_and(|count| (1..=MAX_CHECK).contains(&count))
    };
    if !(fits(m, n) && fits(n, k) && fits(m, k)) {
        return error(
            StatusCode::BAD_REQUEST,
            format!("M, N and K must be at least 1 and every operand at most {MAX_CHECK} elements"),
        );
    }
    let checked = tokio::task::spawn_blocking(move || {
        let dims = Dims { m, n, k };
        let operands = Operands::seeded(dims, seed).map_err(|error| error.to_string())?;
        let choice = path
            .dispatcher()
            .choice(dims)
            .map_err(|error| error.to_string())?;
        let multiply = |out: &mut [_]| path.multiply(&operands.x, operands.weight(0), out);
        let check = measure::check_call::<DispatchError>(&operands, multiply)
            .map_err(|error| error.to_string())?;
        Ok::<_, String>(json!({
            "M": m, "N": n, "K": k, "seed": seed,
            "kernelName": choice.kernel.name(),
            "kernelId": choice.kernel.id(),
            "splitK": choice.split_k,
            "padded_M": choice.padded_m,
            // JSON has no infinity: null when an output is not finite.
            "relative_error": check.relative_error,
            "finite": check.finite,
            "passes": check.passes(),
            "us": check.us,
        }))
    })
    .await;
    match checked {
        Ok(Ok(result)) => Json(result).into_response(),
        Ok(Err(message)) => error(StatusCode::INTERNAL_SERVER_ERROR, message),
        Err(_) => error(StatusCode::INTERNAL_SERVER_ERROR, "the check panicked"),
    }
}
