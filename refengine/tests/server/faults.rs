//! Faults asked for on the command line: what each does to a client, and that every server still stops.

use std::time::Duration;

use gemmtune_refengine::fault::Fault;
use gemmtune_refengine::linear::LogSwitches;
use gemmtune_refengine::server::{Options, ServerError};
use serde_json::{Value, json};

use crate::support::*;

#[test]
fn fault_die_while_loading_ends_with_an_error_and_never_becomes_ready() {
    let server = start(Options {
        faults: vec![Fault::DieWhileLoading],
        ..options()
    });
    let error = server.server.wait().unwrap_err();
    assert!(matches!(error, ServerError::Load(_)), "{error}");
    assert!(!server.log.text().contains("fired up"));
}

#[test]
fn fault_hang_at_start_stays_unready_and_still_stops_when_told() {
    let server = start(Options {
        faults: vec![Fault::HangAtStart],
        ..options()
    });
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(server.get("/health").0, 503);
    assert_eq!(
        server.post("/v1/completions", &json!({"prompt": [1]})).0,
        503
    );
    let (outcome, log) = server.stop();
    outcome.unwrap();
    assert!(!log.text().contains("fired up"));
}

#[test]
fn fault_hang_in_request_answers_until_then_and_still_stops_when_told() {
    let server = ready(Options {
        faults: vec![Fault::HangInRequest(2)],
        ..options()
    });
    server.complete(&json!({"prompt": [1], "max_tokens": 2}));
    let request = agent(Duration::from_millis(400)).post(server.url("/v1/completions"));
    let hung = request
        .header("Content-Type", "application/json")
        .send(json!({"prompt": [1]}).to_string());
    assert!(matches!(hung, Err(ureq::Error::Timeout(_))), "{hung:?}");
    assert_eq!(
        server.get("/health").0,
        200,
        "a hung scheduler does not show in /health"
    );
    server.stop().0.unwrap();
}

#[test]
fn fault_nan_above_m_shows_in_answers_and_in_checks() {
    let server = ready(Options {
        faults: vec![Fault::NanAboveM(4)],
        ..options()
    });
    server.complete(&json!({"prompt": prompt(4), "max_tokens": 3}));
    let (status, failed) = server.post("/v1/completions", &json!({"prompt": prompt(5)}));
    assert_eq!(status, 500);
    assert!(
        failed["message"].as_str().unwrap().contains("not finite"),
        "{failed}"
    );
    let parts = server.stream(&json!({"prompt": prompt(5), "stream": true}));
    assert!(
        parts[0].contains("not finite") && parts[1] == "[DONE]",
        "{parts:?}"
    );
    let check = |m| {
        server
            .post("/gemm_check", &json!({"M": m, "N": 256, "K": 320}))
            .1
    };
    assert!(
        check(4)["passes"] == true && check(5)["finite"] == false && check(5)["passes"] == false
    );
    assert_eq!(check(5)["relative_error"], Value::Null);
    server.stop().0.unwrap();
}

#[test]
fn fault_torn_log_lines_tears_records_and_loses_none() {
    let switches = LogSwitches {
        shapes: true,
        dispatch: false,
    };
    let server = ready(Options {
        faults: vec![Fault::TornLogLines],
        switches,
        ..options()
    });
    server.complete(&json!({"prompt": prompt(7), "max_tokens": 3}));
    let (_, log) = server.stop();
    let text = log.text();
    let torn = text
        .lines()
        .any(|line| line.matches("[GEMM_shape_dump]").count() == 2);
    assert!(torn, "{text}");
    // Warm-up and request have five forwards of eight GEMMs; the last record may still wait for its turn.
    let records = text.matches("[GEMM_shape_dump]").count();
    assert!((39..=40).contains(&records), "{records}");
}

#[test]
fn fault_child_ignores_sigterm_leaves_a_child_in_its_own_session() {
    let server = ready(Options {
        faults: vec![Fault::ChildIgnoresSigterm],
        ..options()
    });
    let text = server.log.text();
    let child = text
        .split("Fault: child ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .to_owned();
    server.stop().0.unwrap();
    let signal = |name: &str| {
        std::process::Command::new("kill")
            .args([name, &child])
            .status()
            .unwrap()
            .success()
    };
    // The shell needs a moment to set its trap.
    std::thread::sleep(Duration::from_millis(200));
    let session = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap();
    let fields: Vec<&str> = session
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    // After the name: state, parent, process group, session.
    let own_session = fields[2] == child && fields[3] == child;
    let asked = signal("-TERM");
    std::thread::sleep(Duration::from_millis(200));
    let state = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap();
    let alive = !state.contains(") Z ");
    assert!(signal("-KILL") && asked);
    assert!(own_session && alive, "{session} {state}");
}
