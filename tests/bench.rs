//! `gemmtune bench` from outside, against a scripted server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use serde_json::Value;

/// Answers every completion with three pieces and every question with one JSON document.
fn serve(stream: TcpStream, truncate: bool) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut request, mut length) = (String::new(), 0);
    reader.read_line(&mut request)?;
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
    reader.read_exact(&mut vec![0; length])?;
    let mut body = r#"{"data": [{"id": "tiny"}], "tp_size": 1}"#.to_owned();
    if request.starts_with("POST") {
        body = r#"data: {"choices": [{"text": " x", "finish_reason": null}]}"#.to_owned() + "\n\n";
        body = body.repeat(3);
        if !truncate {
            body += "data: {\"choices\": [], \"usage\": {\"prompt_tokens\": 4, \"completion_tokens\": 3}}\n\n";
            body += "data: [DONE]\n\n";
        }
    }
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn server(truncate: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || stream.and_then(|stream| serve(stream, truncate)));
        }
    });
    url
}

#[test]
fn a_run_is_one_line_that_compare_reads() {
    let folder = tempfile::tempdir().unwrap();
    let url = server(false);
    let bench = |file: &str, sequence: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_gemmtune"))
            .args([
                "--json",
                "bench",
                "--url",
                &url,
                "--concurrency",
                "2",
                "--requests",
                "5",
            ])
            .args([
                "--input-len",
                "4",
                "--output-len",
                "3",
                "--sequence",
                sequence,
                "-o",
                file,
            ])
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let line = bench("b.jsonl", "1");
    assert_eq!(line["completed"], 5);
    assert_eq!(line["model"], "tiny");
    assert_eq!(line["total_output_tokens"], 15);
    assert_eq!(line["server_info"]["tp_size"], 1);
    bench("t.jsonl", "2");
    let output = Command::new(env!("CARGO_BIN_EXE_gemmtune"))
        .args([
            "--json",
            "compare",
            "--baseline",
            "b.jsonl",
            "--tuned",
            "t.jsonl",
        ])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(16), "one pair is no verdict");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["pairs"], 1);
    assert_eq!(found["unfair"], serde_json::json!([]));
}

#[test]
fn failed_requests_exit_12_and_are_in_the_line() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_gemmtune"))
        .args([
            "bench",
            "--url",
            &server(true),
            "--model",
            "m",
            "--requests",
            "3",
        ])
        .args(["--details", "-o", "b.jsonl"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(12), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("3 of 3 requests failed; the first: the answer ended early"),
        "{said}"
    );
    let text = fs_err::read_to_string(folder.path().join("b.jsonl")).unwrap();
    let line: Value = serde_json::from_str(text.trim()).unwrap();
    assert_eq!(
        (&line["completed"], &line["failed"]),
        (&Value::from(0), &Value::from(3))
    );
}

#[test]
fn a_server_that_is_not_there_exits_13() {
    let output = Command::new(env!("CARGO_BIN_EXE_gemmtune"))
        .args(["bench", "--url", "http://127.0.0.1:9"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(13), "{output:?}");
}
