//! `gemmtune reference-server` as a process: signals, exit codes, the environment it reads.

mod said;

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};

/// Starts the server on the tiny model and a free port.
fn serve(arguments: &[&str], environment: &[(&str, &str)]) -> Child {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/models/tiny");
    Command::new(env!("CARGO_BIN_EXE_gemmtune"))
        .args([
            "reference-server",
            "--model-path",
            model,
            "--port",
            "0",
            "--threads",
            "1",
        ])
        .args(arguments)
        .env_remove("GEMMTUNE_REFERENCE_TABLE")
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Reads the log until the server is ready, sends a signal, and returns exit code and whole log.
fn signalled(mut server: Child, signal: nix::sys::signal::Signal) -> (Option<i32>, String) {
    let mut log = String::new();
    let mut reader = BufReader::new(server.stderr.take().unwrap());
    while !log.contains("fired up and ready to roll!") {
        assert_ne!(reader.read_line(&mut log).unwrap(), 0, "ended early: {log}");
    }
    let pid = nix::unistd::Pid::from_raw(i32::try_from(server.id()).unwrap());
    nix::sys::signal::kill(pid, signal).unwrap();
    reader.read_to_string(&mut log).unwrap();
    (server.wait().unwrap().code(), log)
}

fn ended(mut server: Child) -> (Option<i32>, String) {
    let mut log = String::new();
    server
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut log)
        .unwrap();
    (server.wait().unwrap().code(), log)
}

#[test]
fn sigterm_and_sigint_end_the_server_in_good_order() {
    for signal in [
        nix::sys::signal::Signal::SIGTERM,
        nix::sys::signal::Signal::SIGINT,
    ] {
        let (code, log) = signalled(serve(&[], &[]), signal);
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains(&format!("{signal} received. ")), "{log}");
    }
}

#[test]
fn the_environment_turns_the_playbooks_log_lines_on() {
    let switches = [
        ("SGLANG_DUMP_AITER_FP8_GEMM_SHAPES", "1"),
        ("SGLANG_LOG_FP8_BLOCK_GEMM_DISPATCH", "true"),
        ("GEMMTUNE_REFERENCE_TABLE", ""),
    ];
    let (_, log) = signalled(serve(&[], &switches), nix::sys::signal::Signal::SIGTERM);
    assert!(
        log.contains("csv_row: 1,512,256,torch.float8_e4m3fn"),
        "{log}"
    );
    assert!(
        log.contains("[Fp8LinearMethod] block_quant w8a8_block_fp8_linear="),
        "{log}"
    );
    let (_, log) = signalled(serve(&[], &[]), nix::sys::signal::Signal::SIGTERM);
    assert!(
        !log.contains("csv_row") && !log.contains("Fp8LinearMethod"),
        "{log}"
    );
    assert!(
        log.contains("not found tuned config in (no table), will use default config!"),
        "{log}"
    );
}

#[test]
fn a_server_that_cannot_serve_says_why_and_exits_with_the_documented_code() {
    let (code, log) = ended(serve(&["--fault", "die-while-loading"], &[]));
    assert_eq!(code, Some(13), "{log}");
    let table = [("GEMMTUNE_REFERENCE_TABLE", "/nonexistent/table.csv")];
    let (code, log) = ended(serve(&[], &table));
    assert_eq!(code, Some(13), "{log}");
    insta::assert_snapshot!(said::line(&log, "error: failed to serve"), @"error: failed to serve: warm up: read table `/nonexistent/table.csv`: No such file or directory (os error 2)");
    let (code, log) = ended(serve(&["--fault", "explode"], &[]));
    assert_eq!(code, Some(2), "{log}");
    insta::assert_snapshot!(log, @"
    error: invalid value 'explode' for '--fault <NAME[=ARG]>': no fault `explode`; faults are: die-while-loading: end with an error when half the weights are there; hang-at-start: never become ready; hang-in-request[=N]: never answer the N-th request (default 1) or any other from then on; torn-log-lines: tear every third log record; nan-above-m=M: GEMMs of more than M rows give NaN; child-ignores-sigterm: leave a child in its own session that ignores SIGTERM (it ends by itself after ten minutes)

    For more information, try '--help'.
    ");
    let (code, log) = ended(serve(&["--model-path", "/nonexistent"], &[]));
    assert_eq!(code, Some(2), "{log}");
}
