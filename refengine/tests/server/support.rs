//! A server with a tiny model on a free port, in this process.

use std::io::{BufRead as _, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gemmtune_refengine::fault::Fault;
use gemmtune_refengine::linear::LogSwitches;
use gemmtune_refengine::log::Log;
use gemmtune_refengine::scheduler::Limits;
use gemmtune_refengine::server::{Options, Server, ServerError};
use serde_json::Value;

#[derive(Clone, Default)]
pub(crate) struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Starts a server, asks it, stops it.
pub(crate) struct TestServer {
    pub(crate) server: Server,
    pub(crate) log: Captured,
}

pub(crate) fn options() -> Options {
    Options {
        model_path: Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models/tiny"),
        served_model_name: Some("tiny".to_owned()),
        host: "127.0.0.1".to_owned(),
        port: 0,
        seed: 1,
        threads: Some(2),
        limits: Limits {
            max_running: 4,
            chunk: 64,
        },
        table: None,
        log_hits: true,
        switches: LogSwitches::default(),
        faults: Vec::new(),
        handle_signals: false,
    }
}

pub(crate) fn start(options: Options) -> TestServer {
    let log = Captured::default();
    let tear = options.faults.contains(&Fault::TornLogLines);
    let server = Server::start(options, Arc::new(Log::new(Box::new(log.clone()), tear))).unwrap();
    TestServer { server, log }
}

pub(crate) fn ready(options: Options) -> TestServer {
    let started = start(options);
    started.wait_until_ready();
    started
}

impl TestServer {
    pub(crate) fn wait_until_ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.get("/health").0 != 200 {
            assert!(Instant::now() < deadline, "not ready: {}", self.log.text());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.address())
    }

    pub(crate) fn get(&self, path: &str) -> (u16, Value) {
        answer(agent(Duration::from_secs(20)).get(self.url(path)).call())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let request = agent(Duration::from_secs(20)).post(self.url(path));
        answer(
            request
                .header("Content-Type", "application/json")
                .send(body.to_string()),
        )
    }

    pub(crate) fn complete(&self, body: &Value) -> Value {
        let (status, answer) = self.post("/v1/completions", body);
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// The `data:` payloads of a streamed answer.
    pub(crate) fn stream(&self, body: &Value) -> Vec<String> {
        let request = agent(Duration::from_secs(20)).post(self.url("/v1/completions"));
        let mut response = request
            .header("Content-Type", "application/json")
            .send(body.to_string())
            .unwrap();
        BufReader::new(response.body_mut().as_reader())
            .lines()
            .map_while(Result::ok)
            .filter_map(|line| line.strip_prefix("data: ").map(str::to_owned))
            .collect()
    }

    pub(crate) fn stop(self) -> (Result<(), ServerError>, Captured) {
        self.server.stop();
        (self.server.wait(), self.log)
    }
}

pub(crate) fn agent(timeout: Duration) -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(timeout))
        .build()
        .into()
}

pub(crate) fn answer(
    response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> (u16, Value) {
    let Ok(mut response) = response else {
        return (0, Value::Null);
    };
    let status = response.status().as_u16();
    let text = response.body_mut().read_to_string().unwrap_or_default();
    (
        status,
        serde_json::from_str(&text).unwrap_or(Value::String(text)),
    )
}

pub(crate) fn prompt(length: u32) -> Vec<u32> {
    (0..length)
        .map(|index| (index * 37 + length) % 200)
        .collect()
}

/// A table file that goes away with the test.
pub(crate) struct TableFile(pub(crate) PathBuf);

impl TableFile {
    pub(crate) fn new(name: &str, rows: &str) -> Self {
        let path = std::env::temp_dir().join(format!("gemmtune-{}-{name}.csv", std::process::id()));
        let text = gemmtune_refengine::table::COLUMNS.join(",") + "\n" + rows;
        std::fs::File::create(&path)
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        Self(path)
    }
}

impl Drop for TableFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
