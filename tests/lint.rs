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
    assert_eq!(count("err-ratio-high", "a8w8_bpreshuffle"), 14);
    assert_eq!(errors.len(), 24, "{errors:?}");
    let units: Vec<_> = findings(&document, "warning")
        .into_iter()
        .filter(|(rule, ..)| rule == "column-unit")
        .collect();
    assert_eq!(units.len(), 1, "one of the file: {units:?}");
    assert!(units[0].1.contains("dsv3"));
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
    let output = lint(&["aiter-tables/a8w8_blockscale_bpreshuffle_tuned_gemm_qwen3.5_397b.csv"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    insta::assert_snapshot!(text + &errors, @"
    aiter-tables/a8w8_blockscale_bpreshuffle_tuned_gemm_qwen3.5_397b.csv:24: error[above-roofline]: 27.5561 us means 701 TFLOPS; gfx942 with 80 compute units does at most 688
    aiter-tables/a8w8_blockscale_bpreshuffle_tuned_gemm_qwen3.5_397b.csv:25: error[above-roofline]: 27.981 us means 767 TFLOPS; gfx942 with 80 compute units does at most 688
    aiter-tables/a8w8_blockscale_bpreshuffle_tuned_gemm_qwen3.5_397b.csv:26: error[above-roofline]: 18.6898 us means 919 TFLOPS; gfx942 with 80 compute units does at most 688
        and 7 more of above-roofline
        why: The time is below what the arithmetic or the bytes need at the maker's peak, so it was not measured, or not for this work; it wins every merge.
        fix: Remove the row and tune the shape again.
    1 files, 32 rows: 10 errors, 0 warnings
    error: the tables have findings of severity error

    hint: `gemmtune lint --rules` explains each rule; the first is `above-roofline`

    hint: `gemmtune merge TABLE -o OUT.csv` keeps the rows that can be relied on
    ");
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
        "/testdata/findings/crashing-rows/asm_a8w8_blockscale_tuned_gemm.csv"
    ));
    let (document, code) = from(&table.unwrap());
    assert_eq!((code, &document["rows"]), (15, &1.into()));
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
        "epilogue,E=896,topk=16,device_name=NVIDIA_GB300.json",
        "E=896,topk=16,device_name=NVIDIA_GB300.json",
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
fn fused_moe_tables_are_judged_alone_in_pairs_and_by_their_folders() {
    let (document, code) = document(&["moe-configs"]);
    assert_eq!(code, 15);
    assert_eq!(document["files"], 20);
    let rules = |severity: &str| {
        let mut counts = std::collections::BTreeMap::<String, usize>::new();
        for (rule, ..) in findings(&document, severity) {
            *counts.entry(rule).or_default() += 1;
        }
        counts.into_iter().collect::<Vec<_>>()
    };
    let count = |rule: &str, count: usize| (rule.to_owned(), count);
    // Four rows with two scale blocks to a tile, a scale block without a dtype, a device that is none, and the made-up pair.
    assert_eq!(
        rules("error"),
        [
            count("block-k-above-scale", 4),
            count("file-name-unread", 2),
            count("up-down-block-m", 1)
        ]
    );
    let warnings = rules("warning");
    assert!(
        warnings.contains(&count("small-m-missing", 2)),
        "{warnings:?}"
    );
    assert!(
        warnings
            .iter()
            .any(|(rule, _)| rule == "down-of-other-triton"),
        "{warnings:?}"
    );
    let lines: Vec<_> = findings(&document, "error")
        .into_iter()
        .filter(|(rule, ..)| rule == "block-k-above-scale")
        .filter_map(|(_, _, line)| line)
        .collect();
    assert_eq!(lines.len(), 4);
}

#[test]
fn the_release_decides_how_bad_a_pair_is() {
    let severity = |release: &str| {
        let (document, _) = document(&["moe-configs", "--sglang", release]);
        let all = document["findings"].as_array().unwrap();
        let pair = all
            .iter()
            .find(|finding| finding["rule"] == "up-down-block-m");
        pair.unwrap()["severity"].as_str().unwrap().to_owned()
    };
    assert_eq!(severity("0.5.12.post1"), "error");
    assert_eq!(severity("0.5.13.post1"), "warning");
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

#[test]
fn tables_of_other_families_are_skipped_by_name() {
    let (document, code) = document(&["findings/families"]);
    assert_eq!((code, &document["files"]), (0, &1.into()), "{document}");
    let skipped = document["skipped"].as_array().unwrap().iter();
    let mut reasons: Vec<_> = skipped
        .map(|skipped| skipped["reason"].as_str().unwrap())
        .collect();
    reasons.sort_unstable();
    insta::assert_snapshot!(reasons.join("\n"), @"
    a table of `a8w8_blockscale_group32_tuned_gemm`, a family of its own: no rule is for it
    a table of `a8w8_blockscale_mxscale_bpreshuffle_tuned_gemm`, a family of its own: no rule is for it
    ");
}

#[test]
fn a_row_of_triton_is_right_for_one_aiter_and_wrong_for_another() {
    let table = "findings/after-5586/a8w8_blockscale_tuned_gemm_triton.csv";
    let rules = |arguments: &[&str]| {
        let (document, code) = document(arguments);
        let all = ["error", "warning"].map(|severity| {
            let found = findings(&document, severity);
            found.into_iter().map(|(rule, ..)| rule).collect::<Vec<_>>()
        });
        (code, all)
    };
    let (code, [errors, warnings]) = rules(&[table]);
    assert_eq!((code, errors.len()), (0, 0));
    assert_eq!(warnings, ["libtype-by-revision"]);
    let (code, [errors, _]) = rules(&[table, "--revision", "H"]);
    assert_eq!((code, errors), (15, vec!["libtype-unsupported".to_owned()]));
    let (code, [errors, warnings]) = rules(&[table, "--revision", "N"]);
    assert_eq!((code, errors.len() + warnings.len()), (0, 0));
    // In a tree its code says which aiter it is.
    let tree = tempfile::tempdir().unwrap();
    let configs = tree.path().join("aiter/configs/model_configs");
    fs_err::create_dir_all(&configs).unwrap();
    fs_err::create_dir_all(tree.path().join("aiter/ops")).unwrap();
    let text = fs_err::read(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("testdata")
            .join(table),
    )
    .unwrap();
    let inside = configs.join("x_a8w8_blockscale_tuned_gemm.csv");
    fs_err::write(&inside, text).unwrap();
    let inside = inside.to_str().unwrap();
    let code_of =
        |text: &str| fs_err::write(tree.path().join("aiter/ops/gemm_op_a8w8.py"), text).unwrap();
    code_of("_CKGEMM_HAS_GFX = {}\n");
    assert_eq!(rules(&[inside]).0, 15);
    code_of("_CKGEMM_HAS_GFX = {}\n_BLOCKSCALE_TRITON_FALLBACK_MIN_M = {}\n");
    assert_eq!(rules(&[inside]), (0, [vec![], vec![]]));
}

#[test]
fn an_equal_key_is_an_error_where_aiter_merges_the_two_tables() {
    let (document, code) = document(&["findings/across-files"]);
    assert_eq!(code, 15);
    let errors = findings(&document, "error");
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(
        errors
            .iter()
            .all(|(rule, ..)| rule == "duplicate-across-files")
    );
    // Of two trees, or under a name that aiter does not look for, it is no more than a remark.
    let folder = tempfile::tempdir().unwrap();
    let read = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("testdata/findings/across-files")
            .join(name);
        fs_err::read(path).unwrap()
    };
    let shipped = read("a8w8_blockscale_tuned_gemm.csv");
    let mine = read("a8w8_blockscale_tuned_gemm_mymodel.csv");
    for (one, other, code) in [
        (
            "a/a8w8_blockscale_tuned_gemm.csv",
            "b/a8w8_blockscale_tuned_gemm.csv",
            0,
        ),
        ("c/a8w8_blockscale_tuned_gemm.csv", "c/mine.csv", 0),
        (
            "d/a8w8_blockscale_tuned_gemm.csv",
            "d/model_configs/x_a8w8_blockscale_tuned_gemm.csv",
            15,
        ),
    ] {
        for (name, text) in [(one, &shipped), (other, &mine)] {
            let path = folder.path().join(name);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, text).unwrap();
        }
        let paths = [one, other].map(|name| folder.path().join(name).to_str().unwrap().to_owned());
        let (document, found) = document_of(&paths);
        assert_eq!(found, code, "{one} {other} {document}");
        assert_eq!(document["findings"].as_array().unwrap().len(), 2);
    }
}

fn document_of(paths: &[String]) -> (Value, i32) {
    document(&paths.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn a_column_in_another_unit_is_one_finding_and_no_error() {
    let (document, code) = document(&["findings/bw-unit"]);
    assert_eq!(code, 0, "{document}");
    let warnings = findings(&document, "warning");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!(warnings[0].0, "column-unit");
}

#[test]
fn a_name_is_judged_by_the_runtime_whose_folder_it_is_in() {
    let folder = tempfile::tempdir().unwrap();
    let text = include_str!(
        "../testdata/findings/unread-json/configs/N=17408,K=5120,device_name=NVIDIA_L40S,dtype=fp8_w8a8,block_shape=[128,128].json"
    );
    let ours = "N=17408,K=5120,device_name=NVIDIA_L40S,dtype=fp8_w8a8,block_shape=[128, 128].json";
    let vllms = ours.replace("128, 128", "128,128");
    let unread = |place: &str, name: &str| {
        let path = folder.path().join(place);
        fs_err::create_dir_all(&path).unwrap();
        fs_err::write(path.join(name), text).unwrap();
        let (document, _) = document_of(&[path.join(name).to_str().unwrap().to_owned()]);
        let all = document["findings"].as_array().unwrap();
        all.iter()
            .find(|finding| finding["rule"] == "file-name-unread")
            .map(|finding| finding["message"].as_str().unwrap().to_owned())
    };
    assert_eq!(unread("x/sglang/srt/configs", ours), None);
    assert_eq!(unread("x/vllm/configs", &vllms), None);
    let said = [
        ("x/sglang/srt/configs", &vllms[..]),
        ("x/vllm/configs", ours),
        ("x/configs", &vllms),
    ]
    .map(|(place, name)| unread(place, name).unwrap());
    insta::assert_snapshot!(said.join("\n"), @"
    `N=17408,K=5120,device_name=NVIDIA_L40S,dtype=fp8_w8a8,block_shape=[128,128].json` is looked for as `N=17408,K=5120,device_name=NVIDIA_L40S,dtype=fp8_w8a8,block_shape=[128, 128].json`
    `N=17408,K=5120,device_name=NVIDIA_L40S,dtype=fp8_w8a8,block_shape=[128, 128].json` is looked for as `N=17408,K=5120,device_name=NVIDIA_L40S,dtype=fp8_w8a8,block_shape=[128,128].json`
    SGLang looks for `N=17408,K=5120,device_name=NVIDIA_L40S,dtype=fp8_w8a8,block_shape=[128, 128].json`, only vLLM looks for this spelling
    ");
    assert_eq!(unread("x/configs", ours), None);
}

#[test]
fn the_files_that_aiter_ships_for_its_triton_gemm_are_sound_at_their_revision() {
    let (document, code) = document(&["--revision", "H", "lookup/aiter-triton/configs"]);
    assert_eq!((document["files"].as_u64(), code), (Some(4), 0));
    assert_eq!(findings(&document, "error"), []);
    assert_eq!(findings(&document, "warning"), []);
    // v0.1.7 knows other names, so most of their keys are never asked for.
    let (document, _) = self::document(&["--revision", "A", "lookup/aiter-triton/configs"]);
    assert!(
        findings(&document, "warning")
            .iter()
            .all(|(rule, _, _)| rule == "key-never-asked")
    );
    assert!(findings(&document, "warning").len() > 10);
}
