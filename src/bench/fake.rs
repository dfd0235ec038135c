//! A completion server on a loopback port for tests: real sockets, scripted faults.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

/// What goes wrong, in every answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// The connection is closed before any answer.
    Reset,
    /// Two pieces, then the connection is closed.
    HalfAnswer,
    /// One piece, then silence.
    Hang,
    Status500,
    ErrorEvent,
    NoJson,
    /// The third piece of every answer is another word while other requests are in flight.
    DivergesWhenBusy,
}

#[derive(Debug, Default)]
struct Shared {
    in_flight: AtomicUsize,
    most: AtomicUsize,
    prompts: Mutex<Vec<String>>,
    closing: AtomicBool,
}

#[derive(Debug)]
pub(super) struct FakeServer {
    url: String,
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl FakeServer {
    pub(super) fn start(fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.closing.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                std::thread::spawn(move || {
                    // A client that hangs up is not an error of the fake.
                    let _ = stream.and_then(|stream| serve(stream, fault, &shared));
                });
            }
        });
        Self {
            url: format!("http://{address}"),
            address,
            shared,
        }
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The most requests that were in flight at one time.
    pub(super) fn most_at_once(&self) -> usize {
        self.shared.most.load(Ordering::Relaxed)
    }

    /// Every prompt received, as JSON text.
    pub(super) fn prompts(&self) -> Vec<String> {
        self.shared.prompts.lock().unwrap().clone()
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.address)); // wakes the accepting thread
    }
}

fn serve(stream: TcpStream, fault: Fault, shared: &Shared) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        if header.trim().is_empty() {
            break;
        }
        if let Some(value) = header.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    if request.starts_with("GET") {
        return whole(
            stream,
            200,
            &json!({"tp_size": 1, "data": [{"id": "fake"}]}).to_string(),
        );
    }
    let body: Value = serde_json::from_slice(&body).unwrap();
    let at_once = shared.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
    shared.most.fetch_max(at_once, Ordering::Relaxed);
    shared
        .prompts
        .lock()
        .unwrap()
        .push(body["prompt"].to_string());
    answer(stream, fault, &body, shared)
}

fn whole(mut stream: TcpStream, status: u16, body: &str) -> std::io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn answer(
    mut stream: TcpStream,
    fault: Fault,
    body: &Value,
    shared: &Shared,
) -> std::io::Result<()> {
    match fault {
        Fault::Reset => return Ok(()),
        Fault::Status500 => return whole(stream, 500, "no memory left"),
        _ => {}
    }
    stream.write_all(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
    )?;
    let mut send = |data: &str| {
        let event = format!("data: {data}\n\n");
        write!(stream, "{:x}\r\n{event}\r\n", event.len())
    };
    match fault {
        Fault::ErrorEvent => return send(r#"{"error": {"message": "out of pages", "code": 500}}"#),
        Fault::NoJson => return send("<html>"),
        _ => {}
    }
    let prompt = body["prompt"].as_array().map_or(0, Vec::len);
    let count = body["max_tokens"].as_u64().unwrap();
    for index in 0..count {
        std::thread::sleep(Duration::from_millis(4));
        let busy = shared.in_flight.load(Ordering::Relaxed) > 1;
        let text = match fault {
            Fault::HalfAnswer if index == 2 => return Ok(()),
            Fault::Hang if index == 1 => {
                std::thread::sleep(Duration::from_secs(3));
                return Ok(());
            }
            Fault::DivergesWhenBusy if index == 2 && busy => " other".to_owned(),
            _ => format!(
                " w{}",
                (body["prompt"][0].as_u64().unwrap_or(0) + index) % 97
            ),
        };
        send(&json!({"choices": [{"index": 0, "text": text, "finish_reason": null}]}).to_string())?;
    }
    let last = json!({
        "choices": [{"index": 0, "text": "", "finish_reason": "length"}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": count},
    });
    send(&last.to_string())?;
    // Before the client can notice the end and send its next request.
    shared.in_flight.fetch_sub(1, Ordering::Relaxed);
    send("[DONE]")?;
    stream.write_all(b"0\r\n\r\n")
}
