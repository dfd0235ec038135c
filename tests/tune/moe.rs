//! Fused MoE raced by the real engine and the worker's real request loop; only the device is played.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};

const SHAPES: &str = "op,M,N,K,dtype,records,E,topk,scales\n\
    fused_moe_triton,4,768,2048,fp8_w8a8,3,128,8,128x128\n\
    fused_moe_triton,256,768,2048,fp8_w8a8,1,128,8,128x128\n";

const NAME: &str = "E=128,N=768,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128]";

struct Scene {
    _keep: tempfile::TempDir,
    folder: Utf8PathBuf,
    asked: Value,
}

impl Scene {
    /// A package that ships `rows` (M to row) for the model of [`SHAPES`], and a worker that behaves as `asked`.
    fn new(rows: &Value, mut asked: Value) -> Self {
        let keep = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::try_from(keep.path().to_owned()).unwrap();
        let configs =
            folder.join("sglang/srt/layers/moe/moe_runner/triton_utils/configs/triton_3_5_1");
        fs_err::create_dir_all(&configs).unwrap();
        fs_err::write(
            configs.join("E=8,N=1,device_name=NVIDIA_H200.json"),
            "{\"1\": {}}",
        )
        .unwrap();
        if rows.is_object() {
            fs_err::write(configs.join(format!("{NAME}.json")), rows.to_string()).unwrap();
        }
        fs_err::write(folder.join("s.csv"), SHAPES).unwrap();
        asked["sglang"] = folder.join("sglang").as_str().into();
        let fake = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("python/tests/fake_moe.py");
        let python = folder.join("python");
        let mut script = fs_err::File::create(&python).unwrap();
        writeln!(script, "#!/bin/sh\nexec python3 -B {fake} \"$@\"").unwrap();
        drop(script);
        fs_err::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self {
            _keep: keep,
            folder,
            asked,
        }
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gemmtune"));
        command
            .current_dir(&self.folder)
            .env("FAKE_MOE", self.asked.to_string())
            .args([
                "tune",
                "--backend",
                "sglang-moe",
                "--shapes",
                "s.csv",
                "-o",
                "out",
                "--python",
            ])
            .arg(self.folder.join("python"))
            .args(more);
        command
    }

    fn run(&self, more: &[&str]) -> Output {
        self.command(more).output().unwrap()
    }

    fn document(&self, more: &[&str]) -> Value {
        let output = self.run(&[&["--json"], more].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn table(&self, path: &str) -> Value {
        let text = fs_err::read_to_string(self.folder.join("out").join(path)).unwrap();
        serde_json::from_str(&text).unwrap()
    }
}

fn row(block_m: u32, n: u32, stages: u32) -> Value {
    json!({"BLOCK_SIZE_M": block_m, "BLOCK_SIZE_N": n, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1,
        "num_warps": 4, "num_stages": stages})
}

#[test]
fn both_gemms_get_their_own_winner_under_one_block_size() {
    let scene = Scene::new(&Value::Null, json!({}));
    let outcome = scene.document(&[]);
    crate::schema::check("tune-moe", &outcome);
    let rows = outcome["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "a row for each M asked for, none for a part");
    for (row_, block_m) in rows.iter().zip([16, 16]) {
        assert_eq!(row_["shape"]["part"], "whole");
        assert_eq!(row_["incumbent_kept"], false);
        assert_eq!(row_["candidate"]["up"], row(block_m, 128, 4), "{row_:#}");
        assert_eq!(row_["candidate"]["down"], row(block_m, 64, 3), "{row_:#}");
        // The default was timed as a whole operation too.
        assert!(row_["incumbent_us"].as_f64() > row_["us"].as_f64());
    }
    let (up, down) = (
        scene.table(&format!("configs/{NAME}.json")),
        scene.table(&format!("configs/{NAME}_down.json")),
    );
    assert_eq!((&up["4"], &down["4"]), (&row(16, 128, 4), &row(16, 64, 3)));
    assert!(
        up.as_object()
            .unwrap()
            .keys()
            .eq(down.as_object().unwrap().keys())
    );
    // The complete folder: the tuned pair under the running Triton, and what the package had under its own.
    let complete = "moe-configs/configs";
    assert_eq!(
        scene.table(&format!("{complete}/triton_3_6_0/{NAME}.json")),
        up
    );
    scene.table(&format!(
        "{complete}/triton_3_5_1/E=8,N=1,device_name=NVIDIA_H200.json"
    ));
    let variables = fs_err::read_to_string(scene.folder.join("out/moe.env")).unwrap();
    assert!(variables.contains("export GEMMTUNE_MOE_TABLES=") && variables.contains("PYTHONPATH"));
}

#[test]
fn candidates_that_crash_or_are_wrong_never_win_and_are_named() {
    let faults = json!({"faults": [
        {"match": {"BLOCK_SIZE_N": 128, "num_stages": 4, "num_warps": 8}, "does": "crash"},
        {"match": {"BLOCK_SIZE_N": 64, "num_stages": 3, "num_warps": 4}, "does": "wrong"},
        {"match": {"BLOCK_SIZE_N": 256, "num_stages": 4}, "does": "nan"},
        {"match": {"BLOCK_SIZE_N": 256, "num_stages": 3}, "does": "refuse"},
    ]});
    let scene = Scene::new(&Value::Null, faults);
    let outcome = scene.document(&[]);
    for found in outcome["rows"].as_array().unwrap() {
        let down = &found["candidate"]["down"];
        assert!(
            down["BLOCK_SIZE_N"] != 64 || down["num_stages"] != 3,
            "{down}"
        );
        assert_eq!(found["candidate"]["up"], row(16, 128, 4));
    }
    let quarantined = outcome["quarantined"].to_string();
    assert!(
        quarantined.contains("alone: hear from the worker"),
        "{quarantined}"
    );
    assert!(quarantined.contains("wrong numbers"), "{quarantined}");
    assert!(outcome["restarts"].as_u64() > Some(0));
}

#[test]
fn a_row_that_spans_scale_blocks_serves_today_and_is_raced_out() {
    let planted = json!({"4": {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 128, "BLOCK_SIZE_K": 256,
        "GROUP_SIZE_M": 1, "num_warps": 4, "num_stages": 2}});
    let scene = Scene::new(&planted, json!({}));
    let outcome = scene.document(&[]);
    for found in outcome["rows"].as_array().unwrap() {
        assert_eq!(
            found["incumbent"]["up"]["BLOCK_SIZE_K"], 256,
            "it is what serves"
        );
        assert_eq!(found["incumbent_us"], Value::Null, "and was not run");
        assert_eq!(found["candidate"]["up"]["BLOCK_SIZE_K"], 128);
    }
}

#[test]
fn a_shipped_row_that_nothing_beats_stays() {
    let shipped = json!({"4": row(16, 128, 4)});
    let scene = Scene::new(
        &shipped,
        json!({"faults": [
            {"match": {"BLOCK_SIZE_N": 64}, "does": "refuse"}, {"match": {"BLOCK_SIZE_N": 32}, "does": "refuse"},
            {"match": {"num_stages": 3}, "does": "refuse"}, {"match": {"BLOCK_SIZE_N": 256}, "does": "refuse"},
        ]}),
    );
    let outcome = scene.document(&[]);
    let first = &outcome["rows"][0];
    assert_eq!(
        (&first["incumbent_kept"], &first["shape"]["M"]),
        (&json!(true), &json!(4))
    );
    assert_eq!(first["candidate"]["up"], row(16, 128, 4));
}

#[test]
fn what_was_found_before_an_interrupt_is_not_raced_again() {
    let scene = Scene::new(&Value::Null, json!({"pause_s": 0.05}));
    let results = scene.folder.join("out/results.jsonl");
    let mut running = scene.command(&[]).stderr(Stdio::piped()).spawn().unwrap();
    let stderr = BufReader::new(running.stderr.take().unwrap());
    let seen = stderr
        .lines()
        .map_while(Result::ok)
        .find(|line| line.starts_with('['));
    assert!(seen.is_some(), "no race ended");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(running.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let asked = Instant::now();
    let status = running.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    assert!(asked.elapsed() < Duration::from_secs(60));
    let raced = |path: &Utf8Path| -> Vec<String> {
        let text = fs_err::read_to_string(path).unwrap();
        text.lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .filter(|line| line["record"] == "row" || line["event"]["record"] == "row")
            .map(|line| line.to_string())
            .collect()
    };
    let before = raced(&results);
    assert!(!before.is_empty());
    let outcome = scene.document(&[]);
    assert_eq!(outcome["rows"].as_array().unwrap().len(), 2);
    let after = raced(&results);
    assert_eq!(after[..before.len()], before[..]);
    // Two M: 2 parts and the whole of the first, 6 and the whole of the second, each once.
    assert_eq!(after.len(), 10);
    assert_eq!(scene.document(&[])["resumed"].as_array().unwrap().len(), 2);
    assert_eq!(raced(&results).len(), 10, "and nothing at all a third time");
}

#[test]
fn a_dry_run_says_what_would_be_raced_and_writes_nothing() {
    let scene = Scene::new(&Value::Null, json!({}));
    let preview = scene.document(&["--dry-run"]);
    crate::schema::check("tune-dry-run", &preview);
    assert_eq!(
        (&preview["shapes"], &preview["races_at_most"]),
        (&json!(2), &json!(10))
    );
    assert!(!scene.folder.join("out").exists());
}

#[test]
fn vllm_gets_one_row_for_both_gemms_in_its_own_spelling() {
    let scene = Scene::new(&Value::Null, json!({}));
    let outcome = scene.document(&["--for", "vllm"]);
    let candidate = &outcome["rows"][0]["candidate"];
    assert_eq!(candidate["down"], Value::Null);
    let table = scene.table(&format!("vllm/{}.json", NAME.replace(", ", ",")));
    assert_eq!(table["4"], candidate["up"]);
    let refused = scene.run(&["--for", "gfx942"]);
    assert_eq!(refused.status.code(), Some(2));
}
