//! `gemmtune compare` from outside: output, exit code, what is written where.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn compare(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gemmtune"))
        .arg("compare")
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The concurrency-32 line that SGLang wrote, with its output throughput multiplied by `factor` and
/// the rest as it stood.
fn line(factor: f64) -> String {
    let recorded = include_str!("../testdata/bench/bench-base.jsonl");
    let line = recorded.lines().nth(2).unwrap();
    let throughput = 2_678.029_669_129;
    let key = "\"output_throughput\": ";
    let (before, rest) = line.split_once(key).unwrap();
    let (_, after) = rest.split_once(',').unwrap();
    format!("{before}{key}{},{after}\n", throughput * factor)
}

fn write(folder: &Path, name: &str, factors: &[f64]) {
    let text: String = factors.iter().map(|&factor| line(factor)).collect();
    fs_err::write(folder.join(name), text).unwrap();
}

const NOISE: [f64; 6] = [1.0, 1.004, 0.997, 1.001, 0.999, 1.002];

#[test]
fn a_gain_in_one_file_per_arm_is_better_and_exits_0() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "b.jsonl", &NOISE);
    write(
        folder.path(),
        "t.jsonl",
        &NOISE.map(|noise| 1.16 * (2.0 - noise)),
    );
    let output = compare(
        folder.path(),
        &["--json", "--baseline", "b.jsonl", "--tuned", "t.jsonl"],
    );
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let found = document(&output);
    assert_eq!(found["verdict"], "better");
    assert_eq!(found["metric"], "output_throughput");
    assert_eq!(found["pairs"], 6);
    assert_eq!(found["unfair"], serde_json::json!([]));
    assert!(found["ratio"]["low"].as_f64().unwrap() > 1.14);
    assert!(output.stderr.is_empty(), "{output:?}");
}

fn recorded() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/bench"))
}

#[test]
fn a_file_per_load_makes_one_trial_of_all_loads() {
    let arguments = [
        "--json",
        "--baseline",
        "inferencex-b-c8.json",
        "inferencex-b-c4.json",
        "--tuned",
        "inferencex-t-c4.json",
        "inferencex-t-c8.json",
    ];
    let output = compare(recorded(), &arguments);
    assert_eq!(output.status.code(), Some(16), "{output:?}");
    let found = document(&output);
    assert_eq!(found["unfair"], serde_json::json!([]), "{found:#}");
    assert_eq!(
        (&found["pairs"], &found["more_pairs_needed"]),
        (&1.into(), &5.into())
    );
    let ratio = |name: &str| {
        let metrics = found["metrics"].as_array().unwrap();
        let metric = metrics
            .iter()
            .find(|metric| metric["metric"] == name)
            .unwrap();
        (
            metric["ratio"]["median"].as_f64().unwrap(),
            metric["baseline"].as_f64().unwrap(),
        )
    };
    // Geometric means over the two loads.
    let (gain, base) = ratio("output_throughput");
    let by_hand = (181.420_158_938_904_42_f64 / 165.057_740_833_287_17
        * (323.647_473_973_475_66 / 293.536_391_804_895_06))
        .sqrt();
    assert!(
        (gain - by_hand).abs() < 1e-9 && (base - 220.115).abs() < 0.01,
        "{gain} {base}"
    );
    // Seconds in the files.
    let (same, milliseconds) = ratio("median_ttft_ms");
    assert!(
        (same - 1.0).abs() < 1e-9 && (milliseconds - 264.07).abs() < 0.01,
        "{milliseconds}"
    );
}

#[test]
fn a_wrapped_run_is_read_and_one_without_metrics_is_named_by_its_keys() {
    let arguments = [
        "--json",
        "--baseline",
        "wrapped.json",
        "--tuned",
        "wrapped.json",
    ];
    let found = document(&compare(recorded(), &arguments));
    assert_eq!(
        (&found["pairs"], &found["ratio"]["median"]),
        (&1.into(), &1.0.into())
    );
    let folder = tempfile::tempdir().unwrap();
    fs_err::write(
        folder.path().join("x.json"),
        r#"{"name": "x", "scores": {"a": 1}}"#,
    )
    .unwrap();
    let output = compare(
        folder.path(),
        &["--baseline", "x.json", "--tuned", "x.json"],
    );
    assert_eq!(output.status.code(), Some(2));
    insta::assert_snapshot!(String::from_utf8_lossy(&output.stderr), @"
    error: failed to answer: compare: the baseline arm has no metric of a benchmark; its keys are: name, scores

    hint: choose the deciding metric with --metric; --help lists the forms of input
    ");
}

#[test]
fn a_configuration_around_a_wrapped_run_has_to_agree() {
    let folder = tempfile::tempdir().unwrap();
    let wrapped = fs_err::read_to_string(recorded().join("wrapped.json")).unwrap();
    for (file, ranks) in [("b.json", 8), ("t.json", 4)] {
        let said = format!(r#""client_args": {{"tp": {ranks}}}"#);
        let text = wrapped.replace(r#""client_args": {}"#, &said);
        assert_ne!(text, wrapped);
        fs_err::write(folder.path().join(file), text).unwrap();
    }
    let arguments = ["--json", "--baseline", "b.json", "--tuned", "t.json"];
    let found = document(&compare(folder.path(), &arguments));
    insta::assert_snapshot!(found["unfair"], @r#"["config.client_args.tp: baseline 8, tuned 4"]"#);
    let arguments = [&arguments[..], &["--expect", "tp"]].concat();
    assert_eq!(
        document(&compare(folder.path(), &arguments))["unfair"],
        serde_json::json!([])
    );
}

#[test]
fn a_loss_in_six_files_per_arm_is_worse_and_exits_16() {
    let folder = tempfile::tempdir().unwrap();
    let mut arguments = vec!["--json".to_owned(), "--baseline".to_owned()];
    for (arm, factor) in [("b", 1.0), ("t", 0.9)] {
        for (index, noise) in NOISE.iter().enumerate() {
            let name = format!("{arm}{index}.jsonl");
            write(folder.path(), &name, &[noise * factor]);
            arguments.push(name);
        }
        if arm == "b" {
            arguments.push("--tuned".to_owned());
        }
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = compare(folder.path(), &arguments);
    assert_eq!(output.status.code(), Some(16));
    let found = document(&output);
    assert_eq!(found["verdict"], "worse");
    assert_eq!(found["pairs"], 6);
    insta::assert_snapshot!(String::from_utf8_lossy(&output.stderr), @"
    error: worse: the interval of the ratio, 0.9000 to 0.9000, lies wholly below the noise band 0.9901 to 1.0100

    hint: `gemmtune undo` takes a deployed table back
    ");
}

#[test]
fn the_same_results_are_the_same_and_few_pairs_say_how_many_are_missing() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "b.jsonl", &NOISE);
    write(folder.path(), "few.jsonl", &NOISE[..4]);
    let output = compare(
        folder.path(),
        &["--baseline", "b.jsonl", "--tuned", "b.jsonl"],
    );
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with("output_throughput: same"), "{text}");
    let output = compare(
        folder.path(),
        &["--json", "--baseline", "few.jsonl", "--tuned", "few.jsonl"],
    );
    assert_eq!(output.status.code(), Some(16));
    assert_eq!(document(&output)["verdict"], "inconclusive");
    assert_eq!(document(&output)["more_pairs_needed"], 2);
}

#[test]
fn aa_files_set_the_band() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "b.jsonl", &NOISE);
    write(folder.path(), "t.jsonl", &NOISE.map(|noise| 1.02 * noise));
    write(folder.path(), "aa.jsonl", &[1.0, 1.03, 1.0, 0.98]);
    let arms = ["--json", "--baseline", "b.jsonl", "--tuned", "t.jsonl"];
    let verdict = |more: &[&str]| {
        let output = compare(folder.path(), &[&arms[..], more].concat());
        document(&output)["verdict"].as_str().unwrap().to_owned()
    };
    assert_eq!(verdict(&[]), "better");
    assert_eq!(verdict(&["--aa", "aa.jsonl"]), "same");
    assert_eq!(verdict(&["--band", "5"]), "same");
}

#[test]
fn a_changed_server_argument_refuses_the_verdict_until_allowed_or_expected() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "b.jsonl", &NOISE);
    let changed: String = NOISE
        .iter()
        .map(|noise| {
            line(1.2 * noise)
                .replace(
                    "\"attention_backend\": \"triton\"",
                    "\"attention_backend\": \"fa3\"",
                )
                .replace("\"port\": 30000", "\"port\": 30777")
                .replace("\"random_seed\": 1", "\"random_seed\": 2")
        })
        .collect();
    assert!(changed.contains("fa3") && changed.contains("30777"));
    fs_err::write(folder.path().join("t.jsonl"), changed).unwrap();
    let arms = ["--json", "--baseline", "b.jsonl", "--tuned", "t.jsonl"];
    let refused = compare(folder.path(), &arms);
    assert_eq!(refused.status.code(), Some(16));
    assert_eq!(
        document(&refused)["unfair"],
        serde_json::json!([r#"server_info.attention_backend: baseline "triton", tuned "fa3""#])
    );
    assert_eq!(document(&refused)["verdict"], "inconclusive");
    for more in [&["--allow-unfair"][..], &["--expect", "attention_backend"]] {
        let output = compare(folder.path(), &[&arms[..], more].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(document(&output)["verdict"], "better");
    }
}

#[test]
fn wrong_input_is_named_and_exits_2() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "b.jsonl", &NOISE);
    fs_err::write(folder.path().join("torn.jsonl"), &line(1.0)[..500]).unwrap();
    let stderr = |arguments: &[&str]| {
        let output = compare(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(output.stdout.is_empty());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = [
        &["missing.jsonl"][..],
        &["torn.jsonl"],
        &["b.jsonl", "--metric", "speed"],
    ]
    .map(|more| stderr(&[&["--baseline", "b.jsonl", "--tuned"], more].concat()));
    insta::assert_snapshot!(said.concat(), @"
    error: failed to compare: read `missing.jsonl`: failed to open file `missing.jsonl`: No such file or directory (os error 2)

    hint: each line must be one run as `bench_serving --output-file` or `gemmtune bench -o` writes it
    error: failed to compare: read `torn.jsonl:1`: the last object is cut off; was the benchmark killed while writing?

    hint: each line must be one run as `bench_serving --output-file` or `gemmtune bench -o` writes it
    error: `speed` is no metric with a known direction

    hint: use one of: output_throughput, total_throughput, input_throughput, request_throughput, median_ttft_ms, mean_ttft_ms, p90_ttft_ms, p95_ttft_ms, p99_ttft_ms, median_tpot_ms, mean_tpot_ms, p90_tpot_ms, p95_tpot_ms, p99_tpot_ms, median_itl_ms, mean_itl_ms, p90_itl_ms, p95_itl_ms, p99_itl_ms, median_e2e_latency_ms, mean_e2e_latency_ms, p90_e2e_latency_ms, p95_e2e_latency_ms, p99_e2e_latency_ms, output_tput_per_gpu, tput_per_gpu, input_tput_per_gpu, duration
    ");
}

#[test]
fn a_recorded_sweep_gives_one_number_over_its_loads() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/bench");
    let output = compare(
        &folder,
        &[
            "--json",
            "--baseline",
            "bench-base.jsonl",
            "--tuned",
            "bench-tuned.jsonl",
            "--metric",
            "median_tpot_ms",
        ],
    );
    assert_eq!(output.status.code(), Some(16), "one pair is no verdict");
    let found = document(&output);
    assert_eq!(found["unfair"], serde_json::json!([]));
    assert_eq!(found["pairs"], 1);
    // 9.0410 / 5.3013, 6.6406 / 5.1660 and 7.2137 / 6.1323 at concurrencies 1, 8 and 32.
    let ratio = found["ratio"]["median"].as_f64().unwrap();
    assert!((ratio - 1.371).abs() < 0.001, "{ratio}");
}

#[test]
fn a_file_given_twice_for_one_arm_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "b.jsonl", &NOISE[..1]);
    write(folder.path(), "t.jsonl", &[1.2]);
    let same = [
        "b.jsonl",
        "./b.jsonl",
        "b.jsonl",
        "b.jsonl",
        "b.jsonl",
        "b.jsonl",
    ];
    let arguments = [&["--tuned", "t.jsonl", "--baseline"][..], &same].concat();
    let output = compare(folder.path(), &arguments);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    insta::assert_snapshot!(String::from_utf8(output.stderr).unwrap(), @"
    error: `./b.jsonl` is given twice for one arm: a trial cannot count as two

    hint: give each server start's file once
    ");
}
