//! `gemmtune tune` as a user runs it, on the reference engine.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};

use super::said::plain;

const SHAPES: &str = "M,N,K\n1,128,256\n2,128,256\n8,256,128\n16,128,128\n33,128,128\n";

struct Sandbox {
    _keep: tempfile::TempDir,
    path: Utf8PathBuf,
}

fn sandbox(shapes: &str) -> Sandbox {
    let keep = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::try_from(keep.path().to_owned()).unwrap();
    gemmtune::store::file::write_atomic(&path.join("s.csv"), shapes.as_bytes()).unwrap();
    Sandbox { _keep: keep, path }
}

fn tune(folder: &Utf8Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gemmtune"));
    command
        .current_dir(folder)
        .args([
            "tune",
            "--backend",
            "reference",
            "--shapes",
            "s.csv",
            "-o",
            "out",
        ])
        .args(more);
    command
}

fn output(folder: &Utf8Path, more: &[&str]) -> Output {
    tune(folder, more).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// M of every row of the table.
fn rows(folder: &Utf8Path) -> Vec<(String, String)> {
    let text = fs_err::read_to_string(folder.join("out/table.csv")).unwrap();
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let mut rows: Vec<(String, String)> = reader
        .records()
        .map(|record| {
            let record = record.unwrap();
            (record[2].to_owned(), record[3].to_owned())
        })
        .collect();
    rows.sort();
    rows
}

/// Processes other than this one that were started with this folder as their working folder.
fn left_over(folder: &Utf8Path) -> Vec<String> {
    let here = fs_err::canonicalize(folder).unwrap();
    fs_err::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .filter(|pid| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == here))
        .collect()
}

fn wait_until_none_is_left(folder: &Utf8Path) {
    let until = Instant::now() + Duration::from_secs(20);
    while !left_over(folder).is_empty() {
        assert!(Instant::now() < until, "left: {:?}", left_over(folder));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_table_with_a_row_for_every_shape_and_one_json_document() {
    let sandbox = sandbox(SHAPES);
    let output = output(&sandbox.path, &["--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["rows"].as_array().unwrap().len(), 5);
    assert_eq!(document["not_reached"], serde_json::json!([]));
    assert_eq!(rows(&sandbox.path).len(), 5);
    // The engine itself takes the table and finds every shape in it.
    let table =
        gemmtune_refengine::table::Table::read(sandbox.path.join("out/table.csv").as_std_path())
            .unwrap();
    let device = &document["device"];
    let gfx = device["arch"].as_str().unwrap();
    let cu_num = device["cu_num"].as_u64().unwrap();
    for (m, n, k) in [(1, 128, 256), (8, 256, 128), (33, 128, 128)] {
        assert!(table.find(gfx, cu_num, m, n, k).is_some());
    }
    // A row for another M is found by rounding, as aiter does it.
    assert!(table.find(gfx, cu_num, 15, 128, 128).is_some());
    wait_until_none_is_left(&sandbox.path);
}

#[test]
fn a_killed_run_leaves_no_process_and_its_rows_are_not_raced_again() {
    let sandbox = sandbox(SHAPES);
    let mut child = tune(&sandbox.path, &[])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Kill after the second finished shape.
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let second = lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with("[2/5]")));
    assert!(second.is_some());
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until_none_is_left(&sandbox.path);

    let again = output(&sandbox.path, &[]);
    assert!(again.status.success(), "{}", stderr(&again));
    let text = stderr(&again);
    let raced = text.lines().filter(|line| line.starts_with('[')).count();
    assert!(raced <= 3, "at least two of five were done: {text}");
    assert!(text.contains("done earlier"), "{text}");
    assert_eq!(rows(&sandbox.path).len(), 5);
}

#[test]
fn an_interrupted_run_keeps_its_rows_and_says_how_to_go_on() {
    let sandbox = sandbox(SHAPES);
    let mut child = tune(&sandbox.path, &[])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let first = lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with("[1/5]")));
    assert!(first.is_some());
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    let status = child.wait().unwrap();
    // A machine fast enough to finish first has nothing to interrupt.
    if !status.success() {
        assert_eq!(status.code(), Some(130), "{rest:?}");
        assert!(
            rest.iter()
                .any(|line| line.contains("run the same command again")),
            "{rest:?}"
        );
    }
    assert!(!rows(&sandbox.path).is_empty());
    wait_until_none_is_left(&sandbox.path);
}

#[test]
fn a_second_run_into_the_folder_is_refused_with_exit_code_17() {
    let sandbox = sandbox(SHAPES);
    fs_err::create_dir_all(sandbox.path.join("out")).unwrap();
    let _held = gemmtune::tune::results::lock(&sandbox.path.join("out")).unwrap();
    let output = output(&sandbox.path, &[]);
    assert_eq!(output.status.code(), Some(17));
    let text = stderr(&output);
    assert!(
        text.contains(&format!("process {}", std::process::id())),
        "{text}"
    );
    insta::assert_snapshot!(plain(&text, &sandbox.path), @"
    error: failed to tune: lock `out/tune.lock`: held by process [pid] on [host] since [time] (`gemmtune tune`)

    hint: `gemmtune status` says who has it; `gemmtune run --new` begins another run
    ");
}

#[test]
fn wrong_input_is_named_and_nothing_is_written() {
    let said = [
        ("M,N\n1,2\n", 2),
        ("M,N,K\n0,128,128\n", 2),
        ("M,N,K\n", 14),
        ("op,M,N,K\ngemm_a4w4,1,128,128\n", 2),
    ]
    .map(|(shapes, code)| {
        let sandbox = sandbox(shapes);
        let output = output(&sandbox.path, &[]);
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(!sandbox.path.join("out").exists());
        plain(&stderr(&output), &sandbox.path)
    });
    insta::assert_snapshot!(said.join("\n"), @"
    error: failed to read `s.csv`: find column `K` among `M,N` (line 1)

    hint: make it with `gemmtune shapes LOG -o S.csv`, or give columns M,N,K

    error: failed to read `s.csv`: read `0` in column M of line 2 as an integer from 1 to 4294967295

    hint: make it with `gemmtune shapes LOG -o S.csv`, or give columns M,N,K

    error: failed to tune: find a shape to tune

    hint: `gemmtune instrument apply ROOT` makes the server log its shapes

    error: failed to tune: tune `gemm_a4w4 M=1 N=128 K=128` with backend reference, which tunes gemm_a8w8_blockscale

    hint: `gemmtune help tune` describes the arguments
    ");
}

#[test]
fn a_tree_that_is_none_of_aiters_is_named_before_a_device_is_asked_for() {
    let sandbox = sandbox(SHAPES);
    let root = sandbox.path.join("elsewhere");
    fs_err::create_dir(&root).unwrap();
    // No interpreter of that name is there: whoever asks for a device first stumbles over it.
    let said = Command::new(env!("CARGO_BIN_EXE_gemmtune"))
        .args([
            "tune",
            "--backend",
            "aiter-triton",
            "--dry-run",
            "--python",
            "/no/python",
            "--shapes",
        ])
        .arg("s.csv")
        .args(["-o", "out", "--aiter-root", root.as_str()])
        .current_dir(&sandbox.path)
        .output()
        .unwrap();
    assert_eq!(said.status.code(), Some(2), "{}", stderr(&said));
    insta::assert_snapshot!(plain(&stderr(&said), &sandbox.path), @"
    error: `--aiter-root [folder]/elsewhere` is no aiter tree: it has no folder aiter/ops/triton

    hint: name the checkout, or the folder that holds the package `aiter`
    ");
}

#[test]
fn a_dry_run_says_what_would_be_raced_and_writes_nothing() {
    let sandbox = sandbox(SHAPES);
    let output = output(&sandbox.path, &["--dry-run", "--json", "--budget", "10m"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["shapes"], 5);
    assert!(document["candidates_at_first"].as_u64().unwrap() > 5);
    assert!(!sandbox.path.join("out").exists());
}

/// One look at the table of a run is the incumbent of the next: the winner keeps its place.
#[test]
fn a_table_given_as_incumbent_is_what_must_be_beaten() {
    let sandbox = sandbox("M,N,K\n1,128,256\n");
    assert!(output(&sandbox.path, &[]).status.success());
    let first = sandbox.path.join("first.csv");
    fs_err::rename(sandbox.path.join("out/table.csv"), &first).unwrap();
    let output = output(&sandbox.path, &["--table", "first.csv", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let table = fs_err::read_to_string(&first).unwrap();
    let name = document["rows"][0]["incumbent"]["kernelName"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(table.contains(&name), "{name}: {table}");
}
