//! From the start to the scheduler: weights, warm-up, readiness, and the faults on the way.

use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, mpsc};
use std::time::{Duration, Instant};

use super::{App, ServerError};
use crate::device::{Device, cores};
use crate::dispatch::Dispatcher;
use crate::fault::Fault;
use crate::kernels::{self, Isa};
use crate::linear::LinearPath;
use crate::model::Model;
use crate::scheduler::Scheduler;

/// How often a hanging server looks whether it should end.
const HANG_POLL: Duration = Duration::from_millis(20);

/// Loads the model and serves until told to stop.
pub(super) fn load_and_serve(app: &Arc<App>) -> Result<(), ServerError> {
    let options = &app.options;
    let log = &app.log;
    if options.faults.contains(&Fault::ChildIgnoresSigterm) {
        leave_a_child(app)?;
    }
    let device = Device::with(Isa::best(), options.threads.unwrap_or_else(cores))
        .map_err(ServerError::Start)?;
    log.line(&format!(
        "server_args={}",
        super::http::server_info(app, device.cu_num())
    ));
    log.line(&format!(
        "Reference engine on {} with {} threads. Default kernel: {}.",
        device.gfx(),
        device.cu_num(),
        kernels::default_kernel(device.isa()).name()
    ));
    log.line("Load weight begin.");
    if options.faults.contains(&Fault::HangAtStart) {
        while !app.stopping.load(Ordering::Acquire) {
            std::thread::sleep(HANG_POLL);
        }
        return Ok(());
    }
    let started = Instant::now();
    let die = options.faults.contains(&Fault::DieWhileLoading);
    let mut died = false;
    let model = Model::seeded(app.config.clone(), options.seed, device.pool(), &mut |done, total| {
        log.bar("Loading safetensors checkpoint shards", done, total, started.elapsed());
        if done == 1 {
            log.line("Detected fp8 checkpoint. Please note that the format is experimental and subject to change.");
        }
        died = die && 2 * done >= total;
        !died && !app.stopping.load(Ordering::Acquire)
    })
    .map_err(|error| ServerError::Load(error.to_string()))?;
    let Some(model) = model else {
        return if died {
            Err(ServerError::Load(
                "died while loading, as asked by the fault".to_owned(),
            ))
        } else {
            Ok(())
        };
    };
    log.line(&format!(
        "Load weight end. elapsed={:.2} s, dtype=torch.bfloat16.",
        started.elapsed().as_secs_f64()
    ));
    log.line(&format!(
        "max_total_num_tokens={}, chunked_prefill_size={}, max_prefill_tokens={}, max_running_requests={}, context_len={}",
        app.config.context * options.limits.max_running,
        options.limits.chunk,
        options.limits.chunk,
        options.limits.max_running,
        app.config.context
    ));
    let sink = Arc::clone(log);
    let dispatcher = Dispatcher::new(
        device,
        options.table.clone(),
        options.log_hits,
        Box::new(move |line| sink.raw(line)),
    );
    let path = Arc::new(LinearPath::new(
        dispatcher,
        Arc::clone(log),
        options.switches,
        options.nan_above_m(),
    ));
    let mut scheduler = Scheduler::new(
        model,
        Arc::clone(&path),
        Arc::clone(log),
        options.limits,
        options.hang_after(),
        Arc::clone(&app.stopping),
    );
    if let Err(error) = scheduler.warm_up() {
        log.line(&format!("Initialization failed. warmup error: {error}"));
        return Err(ServerError::WarmUp(error.to_string()));
    }
    let (sender, requests) = mpsc::channel();
    *app.requests.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
    // Nobody else sets the path, so setting it cannot fail.
    let _ = app.path.set(path);
    app.ready.store(true, Ordering::Release);
    log.line("The server is fired up and ready to roll!");
    scheduler.run(&requests);
    Ok(())
}

/// Starts the child of [`Fault::ChildIgnoresSigterm`]. It closes the standard streams, so that nobody
/// waits for the end of a pipe it holds, and ends by itself after ten minutes.
fn leave_a_child(app: &App) -> Result<(), ServerError> {
    let child = Command::new("setsid")
        .args([
            "sh",
            "-c",
            "trap '' TERM; i=0; while [ $i -lt 600 ]; do sleep 1; i=$((i+1)); done",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(ServerError::Start)?;
    app.log.line(&format!(
        "Fault: child {} ignores SIGTERM in a session of its own.",
        child.id()
    ));
    Ok(())
}
