//! `gemmtune lint` from the outside: exit codes, the JSON document, folders, shipped tables.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn lint(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gemmtune"))
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata"))
        .arg("lint")
        .args(arguments)
        .output()
        .unwrap()
}

fn document(arguments: &[&str]) -> (Value, i32) {
    let mut all = vec!["--json"];
    all.extend(arguments);
    let output = lint(&all);
    let document = serde_json::from_slice(&output.stdout).unwrap();
    (document, output.status.code().unwrap())
}

/// (rule, file name, line) of the findings of one severity.
fn findings(document: &Value, severity: &str) -> Vec<(String, String, Option<u64>)> {
    document["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|finding| finding["severity"] == severity)
        .map(|finding| {
            let file = Path::new(finding["file"].as_str().unwrap());
            (
                finding["rule"].as_str().unwrap().to_owned(),
                file.file_name().unwrap().to_str().unwrap().to_owned(),
                finding["line"].as_u64(),
            )
        })
        .collect()
}

#[test]
fn shipped_configurations_that_lost_their_small_m_are_the_only_errors() {
    let (document, code) = document(&["sglang-configs"]);
    assert_eq!(code, 15);
    assert_eq!(document["files"], 7);
    let errors = findings(&document, "error");
    let files: Vec<_> = errors
        .iter()
        .map(|(rule, file, _)| (rule.as_str(), &file[..13]))
        .collect();
    assert_eq!(
        files,
        [
            ("m-set-truncated", "N=1280,K=5120"),
            ("m-set-truncated", "N=1536,K=7168")
        ]
    );
    assert!(errors[1].1.contains("NVIDIA_L20Y"));
    let warnings = findings(&document, "warning");
    assert!(
        warnings
            .iter()
            .all(|(rule, file, _)| rule == "m-set-short" && file.contains("[32, 32]")),
        "{warnings:?}"
    );
}

#[test]
fn shipped_rows_that_cannot_be_are_found_with_their_lines() {
    let (document, code) = document(&["aiter-tables"]);
    assert_eq!(code, 15);
    let errors = findings(&document, "error");
    let count = |rule: &str, file: &str| {
        errors
            .iter()
            .filter(|(id, name, _)| id == rule && name.contains(file))
            .count()
    };
    assert_eq!(count("above-roofline", "qwen3.5_397b"), 10);
    assert_eq!(count("bw-contradicts-us", "dsv3"), 12);
    assert_eq!(count("err-ratio-high", "a8w8_bpreshuffle"), 14);
    assert_eq!(errors.len(), 36, "{errors:?}");
}

#[test]
fn a_clean_table_exits_with_zero_though_it_has_a_warning() {
    let (document, code) = document(&["aiter-tables/a8w8_blockscale_tuned_gemm_qwen3_235b.csv"]);
    assert_eq!(
        (code, &document["files"], &document["rows"]),
        (0, &1.into(), &128.into())
    );
    assert_eq!(findings(&document, "error"), []);
    assert_eq!(findings(&document, "warning").len(), 1);
    let finding = &document["findings"][0];
    for field in ["rule", "severity", "file", "message", "why", "fix"] {
        assert!(finding[field].is_string(), "{field}");
    }
    assert_eq!(finding["line"], 47);
}

#[test]
fn people_get_place_reason_and_fix() {
    let output = lint(&["aiter-tables/a8w8_blockscale_bpreshuffle_tuned_gemm_dsv3.csv"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("_dsv3.csv:2: error[bw-contradicts-us]: bw is 0.16854, but"),
        "{text}"
    );
    assert!(text.contains("and 9 more of bw-contradicts-us"), "{text}");
    assert!(text.contains("    fix: "), "{text}");
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("1 files, 12 rows: 12 errors"), "{errors}");
}

#[test]
fn a_path_that_is_not_there_is_a_usage_error() {
    for arguments in [&["nowhere"][..], &["trees/README.md", "--json"], &[]] {
        let output = lint(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let asked = arguments.contains(&"--json");
        assert_eq!(output.stdout.is_empty(), !asked, "{arguments:?}");
    }
}

#[test]
fn standard_input_is_a_csv_table() {
    let from = |input: &str| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_gemmtune"))
            .args(["lint", "-", "--json"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut pipe = child.stdin.take().unwrap();
        std::io::Write::write_all(&mut pipe, input.as_bytes()).unwrap();
        drop(pipe);
        let output = child.wait_with_output().unwrap();
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        (document, output.status.code().unwrap())
    };
    let table = fs_err::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/testdata/aiter-tables/a8w8_blockscale_bpreshuffle_tuned_gemm_dsv3.csv"
    ));
    let (document, code) = from(&table.unwrap());
    assert_eq!((code, &document["rows"]), (15, &12.into()));
    assert_eq!(document["findings"][0]["file"], "-");
    let (document, code) = from("{\"1\": {}}");
    assert_eq!(code, 2, "{document}");
}

#[test]
fn with_json_the_rules_are_one_document() {
    let (document, code) = document(&["--rules"]);
    assert_eq!(code, 0);
    let rules = document["rules"].as_array().unwrap();
    let unset = rules.iter().find(|rule| rule["rule"] == "libtype-unset");
    assert_eq!(unset.unwrap()["severity"], "error");
}

#[test]
fn in_a_folder_the_configurations_of_other_kernels_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs_err::write(folder.path().join(name), text).unwrap();
    // Names that ship in SGLang 0.5.23 beside the block-FP8 ones.
    for name in [
        "world=16,H=7168,device_name=NVIDIA_GB200.json",
        "provider=cutedsl_fp8_masked,E=256,N1=1024,N2=2048,K=2048,device_name=NVIDIA_H200.json",
        "E=128,N=192,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json",
    ] {
        write(name, "{\"source\": {\"date\": 1}, \"tiles\": []}");
    }
    let path = folder.path().to_str().unwrap();
    let (other, code) = document(&[path]);
    assert_eq!((code, &other["files"]), (2, &0.into()), "{other}");
    // A block-FP8 file with parts in another order or case is still one.
    write("k=1536,n=3072,device_name=NVIDIA_H200.json", "{}");
    let (own, code) = document(&[path]);
    assert_eq!((code, &own["files"]), (15, &1.into()), "{own}");
}

#[test]
fn a_pipe_or_an_enormous_file_in_a_folder_does_not_stop_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let made = Command::new("mkfifo")
        .arg(path("tuned.csv"))
        .status()
        .unwrap();
    assert!(made.success());
    let large = fs_err::File::create(path("large_tuned.csv")).unwrap();
    large.set_len((1 << 30) + 1).unwrap();
    fs_err::write(path("a8w8_blockscale_tuned_gemm.csv"), "cu_num,M,N,K\n").unwrap();
    let (found, _) = document(&[folder.path().to_str().unwrap()]);
    assert_eq!(
        (&found["files"], &found["skipped"][0]["reason"]),
        (&1.into(), &"1073741825 bytes are no table".into())
    );
    let (named, code) = document(&[path("large_tuned.csv").to_str().unwrap()]);
    assert_eq!(code, 2, "{named}");
}
