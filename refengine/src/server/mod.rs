//! The server: loads the model on one thread, serves HTTP on others, ends in good order.
//!
//! HTTP is up before the model is: `/health` answers 503 until the first forward has run.

mod completions;
mod http;
mod load;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;

use crate::config::{ConfigError, ModelConfig};
use crate::fault::Fault;
use crate::linear::{LinearPath, LogSwitches};
use crate::log::Log;
use crate::scheduler::{Limits, Request};

/// How long open connections may take to end after the server was told to stop.
const GRACE: Duration = Duration::from_secs(2);

/// What to serve and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// A `config.json`, or the folder that holds one.
    pub model_path: PathBuf,
    /// Name of the model in the API; the model path when none.
    pub served_model_name: Option<String>,
    /// Address to listen on.
    pub host: String,
    /// Port to listen on; 0 takes a free one.
    pub port: u16,
    /// Seed of the weights.
    pub seed: u64,
    /// Threads that GEMMs run on; every core when none.
    pub threads: Option<usize>,
    /// Requests, and prompt tokens a forward, at a time.
    pub limits: Limits,
    /// The tuned table, if any.
    pub table: Option<PathBuf>,
    /// `AITER_LOG_TUNED_CONFIG`: log table hits too.
    pub log_hits: bool,
    /// The playbook's log switches.
    pub switches: LogSwitches,
    /// Faults switched on.
    pub faults: Vec<Fault>,
    /// Whether SIGTERM and SIGINT stop the server.
    pub handle_signals: bool,
}

impl Options {
    fn name(&self) -> String {
        self.served_model_name
            .clone()
            .unwrap_or_else(|| self.model_path.display().to_string())
    }

    fn nan_above_m(&self) -> Option<usize> {
        self.faults.iter().find_map(|fault| match fault {
            Fault::NanAboveM(m) => Some(*m),
            _ => None,
        })
    }

    fn hang_after(&self) -> Option<usize> {
        self.faults.iter().find_map(|fault| match fault {
            Fault::HangInRequest(count) => Some(*count),
            _ => None,
        })
    }
}

/// The server cannot start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The model cannot be served.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A limit is zero.
    #[error("serve with `{0}` zero")]
    Limit(&'static str),
    /// The address cannot be listened on.
    #[error("listen on {host}:{port}")]
    Listen {
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A thread, the runtime or a signal handler could not be had.
    #[error("start the server")]
    Start(#[source] std::io::Error),
    /// The weights could not be made.
    #[error("load the model: {0}")]
    Load(String),
    /// The first forward failed.
    #[error("warm up: {0}")]
    WarmUp(String),
    /// HTTP ended with an error.
    #[error("serve HTTP")]
    Http(#[source] std::io::Error),
    /// A thread of the server panicked: a bug.
    #[error("serve: a thread panicked")]
    Panicked,
}

/// What all threads of a server know.
struct App {
    options: Options,
    config: ModelConfig,
    address: SocketAddr,
    table_digest: Option<String>,
    log: Arc<Log>,
    /// Set once the model answers.
    path: OnceLock<Arc<LinearPath>>,
    ready: AtomicBool,
    stopping: Arc<AtomicBool>,
    stop: watch::Sender<bool>,
    /// Where requests go once the model answers.
    requests: Mutex<Option<mpsc::Sender<Request>>>,
}

impl App {
    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && !self.stopping.load(Ordering::Acquire)
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.stop.send_replace(true);
        self.requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}

/// A started server.
pub struct Server {
    app: Arc<App>,
    engine: JoinHandle<Result<(), ServerError>>,
    http: JoinHandle<Result<(), ServerError>>,
}

impl Server {
    /// Checks the options, listens, and starts loading. Returns before the model is ready.
    pub fn start(options: Options, log: Arc<Log>) -> Result<Self, ServerError> {
        let config = ModelConfig::read(&options.model_path)?;
        for (name, limit) in [
            ("max_running_requests", options.limits.max_running),
            ("chunked_prefill_size", options.limits.chunk),
        ] {
            if limit == 0 {
                return Err(ServerError::Limit(name));
            }
        }
        let listen_error = |source| ServerError::Listen {
            host: options.host.clone(),
            port: options.port,
            source,
        };
        let listener =
            TcpListener::bind((options.host.as_str(), options.port)).map_err(listen_error)?;
        listener.set_nonblocking(true).map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        // The table is digested as it is now; a missing one is an error at the first GEMM, as in aiter.
        let table_digest = options
            .table
            .as_ref()
            .and_then(|path| std::fs::read(path).ok())
            .map(|bytes| digest(&bytes));
        let app = Arc::new(App {
            config,
            address,
            table_digest,
            log,
            path: OnceLock::new(),
            ready: AtomicBool::new(false),
            stopping: Arc::new(AtomicBool::new(false)),
            stop: watch::channel(false).0,
            requests: Mutex::new(None),
            options,
        });
        let http = {
            let app = Arc::clone(&app);
            named("http", move || http::serve(&app, listener))?
        };
        let engine = {
            let app = Arc::clone(&app);
            named("engine", move || {
                let outcome = load::load_and_serve(&app);
                // Whatever ended the engine ends the server.
                app.stop();
                outcome
            })?
        };
        Ok(Self { app, engine, http })
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.app.address
    }

    /// Whether requests are answered.
    pub fn is_ready(&self) -> bool {
        self.app.is_ready()
    }

    /// Tells the server to stop; [`Self::wait`] returns soon after.
    pub fn stop(&self) {
        self.app.stop();
    }

    /// Returns when the server has ended: told to, or by an error of its own.
    pub fn wait(self) -> Result<(), ServerError> {
        let engine = self.engine.join().unwrap_or(Err(ServerError::Panicked));
        let http = self.http.join().unwrap_or(Err(ServerError::Panicked));
        engine.and(http)
    }
}

fn named<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, ServerError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(ServerError::Start)
}

/// SHA-256 in hexadecimal.
fn digest(bytes: &[u8]) -> String {
    use sha2::{Digest as _, Sha256};
    use std::fmt::Write as _;
    Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}
