//! A server of no runtime, in tests only: all that the loop asks of a server stands in this file, the process included.
//!
//! It answers completions with one word a token, says at each which row its table has for its only GEMM, in the form of aiter's lines,
//! and writes its calls into a record file where it is asked to. `backend` takes it through the loop with [`crate::kernel::toy`].

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use camino::{Utf8Path, Utf8PathBuf};

use crate::engine::ports::Server;
use crate::log::summary::LogSummary;
use crate::problem::{Op, Shape};
use crate::run::error::{Error, ErrorKind};
use crate::store::run_dir::RunDir;
use crate::table::aiter::Table;
use crate::table::lookup::{Resolver, Rules};
use crate::table::revision::Revision;
use crate::workload::env::Environment;

/// The port it listens on.
pub(crate) const PORT: &str = "GEMMTUNE_TOY_PORT";

/// The table it looks rows up in; none without it.
pub(crate) const TABLE: &str = "GEMMTUNE_TOY_TABLE";

/// The folder it writes its calls into.
const RECORDS: &str = "GEMMTUNE_TOY_RECORDS";

/// The device that its tables are for.
pub(crate) const DEVICE: (&str, u32) = ("gfx942", 304);

/// The one GEMM that it runs.
pub(crate) fn shape() -> Shape {
    Shape {
        op: Op::Toy,
        m: 13,
        n: 512,
        k: 7168,
        dtype: String::new(),
    }
}

/// The toy.
#[derive(Debug)]
pub(crate) struct Toy;

impl Server for Toy {
    fn surroundings(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    fn capture_env(&self, _run: &RunDir, records: &Utf8Path) -> Result<Environment, Error> {
        Ok([(RECORDS.to_owned(), Some(records.to_string()))].into())
    }

    fn check_capture(&self, log_summary: &LogSummary) -> Result<(), Error> {
        if log_summary.dispatch.is_empty() {
            return Err(Error::new(ErrorKind::NoShapes, "the toy recorded nothing"));
        }
        Ok(())
    }
}

/// The server's command line: this test binary, which serves in place of testing.
pub(crate) fn command() -> Vec<String> {
    let program = std::env::current_exe().unwrap();
    let mut command = vec![program.to_str().unwrap().to_owned()];
    let serve = ["--exact", "--ignored", "--nocapture", "server::toy::serve"];
    command.extend(serve.map(str::to_owned));
    command
}

#[test]
#[ignore = "the process of the toy: it serves until it is ended"]
#[expect(
    clippy::disallowed_methods,
    reason = "a process of its own, with a server's environment"
)]
fn serve() {
    let port: u16 = std::env::var(PORT).unwrap().parse().unwrap();
    let looked_up = look_up(std::env::var(TABLE).ok().map(Utf8PathBuf::from).as_deref());
    if let Ok(folder) = std::env::var(RECORDS) {
        let Shape { op, m, n, k, .. } = shape();
        let records = format!(
            "{{\"gemmtune\":\"hello\",\"pid\":{},\"rank\":0,\"world\":1,\"version\":1}}\n\
             {{\"dispatch\":\"toy_linear (toy)\",\"count\":1}}\n\
             {{\"op\":\"{op}\",\"M\":{m},\"N\":{n},\"K\":{k},\"dtype\":\"\",\"kind\":\"eager\",\"bs\":null,\"count\":9}}\n",
            std::process::id()
        );
        fs_err::write(Utf8PathBuf::from(folder).join("toy.jsonl"), records).unwrap();
    }
    for stream in TcpListener::bind(("127.0.0.1", port)).unwrap().incoming() {
        let looked_up = looked_up.clone();
        std::thread::spawn(move || answer(stream.unwrap(), &looked_up));
    }
}

/// What the log says of a look-up in `path`.
fn look_up(path: Option<&Utf8Path>) -> String {
    let Shape { m, n, k, .. } = shape();
    let miss = || {
        let table = path.unwrap_or(Utf8Path::new("a9w9_toy_tuned_gemm.csv"));
        format!(
            "[aiter] shape is M:{m}, N:{n}, K:{k}, not found tuned config in {table}, will use default config!"
        )
    };
    let Some(path) = path else {
        return miss();
    };
    let table = fs_err::read(path).unwrap();
    let table = Table::read(path.as_str(), &table, Some(Op::Toy)).unwrap();
    let rules = Rules::new(Op::Toy, Revision::H);
    let resolver = Resolver::new(&table, rules, DEVICE.0, DEVICE.1).unwrap();
    resolver.find(&shape()).row().map_or_else(miss, |row| {
        format!(
            "[aiter] shape is M:{m}, N:{n}, K:{k}, found padded_M: {}, N:{n}, K:{k} is tuned on cu_num = {} in {path} , kernel name is {}!",
            row.m,
            DEVICE.1,
            row.kernel_name.as_deref().unwrap()
        )
    })
}

/// Answers one request, and closes the connection.
fn answer(stream: TcpStream, looked_up: &str) {
    let mut reader = BufReader::new(stream);
    let (mut request, mut line, mut length) = (String::new(), String::new(), 0);
    reader.read_line(&mut request).unwrap();
    while reader.read_line(&mut line).unwrap_or(0) > 2 {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let path = request.split(' ').nth(1).unwrap_or_default();
    let (status, text) = match path {
        "/health" => ("200 OK", String::new()),
        "/v1/models" => ("200 OK", r#"{"data": [{"id": "toy"}]}"#.to_owned()),
        "/v1/completions" => ("200 OK", completion(&body, looked_up)),
        _ => ("404 Not Found", String::new()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        text.len()
    );
    // Whoever asks whether the port is free has gone already.
    let _ = reader.get_mut().write_all((head + &text).as_bytes());
}

/// The events of a completion, after the look-up is logged.
fn completion(body: &[u8], looked_up: &str) -> String {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap();
    let tokens = body["max_tokens"].as_u64().unwrap();
    let mut log = std::io::stdout();
    writeln!(log, "{looked_up}").unwrap();
    let mut events = String::new();
    for token in 1..=tokens {
        let why = if token == tokens {
            "\"length\""
        } else {
            "null"
        };
        let choice = format!(r#"{{"text": " toy", "finish_reason": {why}}}"#);
        let _ = write!(events, "data: {{\"choices\": [{choice}]}}\n\n");
    }
    events + "data: [DONE]\n\n"
}
