//! The loop with a route between kernel families, against the stand-in for an SGLang server that runs DeepGEMM: overlay, route,
//! families and the check's own lines are the real ones; NVRTC, the driver, cuBLASLt and the numbers are played.

use camino::Utf8Path;

use super::said::{line, plain, refusal, uncounted};
use super::sglang_triton::Scene;
use super::support::{count, document, stderr};

/// A scene whose server runs `backend` and is tuned by a route; one load's prompts make prefills of 132 rows.
fn scene(pairs: u32, backend: &str) -> Scene {
    // Weights that gemmtune's own kernels have settings for.
    let scene = Scene::new(pairs, &["--backend", backend, "--hidden-size", "2048"]);
    let model = scene.folder.join("model/config.json");
    let sizes = fs_err::read_to_string(&model).unwrap();
    let larger = [
        ("\"hidden_size\": 256", "\"hidden_size\": 2048"),
        ("\"intermediate_size\": 512", "\"intermediate_size\": 4096"),
        ("\"num_attention_heads\": 4", "\"num_attention_heads\": 32"),
        ("\"num_key_value_heads\": 1", "\"num_key_value_heads\": 8"),
    ];
    let sizes = larger.iter().fold(sizes, |text, (from, to)| {
        assert!(text.contains(from), "{text}");
        text.replace(from, to)
    });
    fs_err::write(&model, sizes).unwrap();
    scene.change(|config| {
        config
            .replace("kind = \"sglang-triton\"", "kind = \"sglang-families\"")
            .replacen("input_len = 12", "input_len = 132", 1)
            // What a family loads at its first call is loaded before anything is measured.
            .replace("output_len = 24", "output_len = 24\nwarmup = 2")
    });
    scene
}

/// Has the server started by a script that does `first` where the tuned arm is served.
fn in_the_tuned_arm(scene: &Scene, first: &str) {
    let script = format!("[ -z \"$GEMMTUNE_ROUTE\" ] || {first}\nexec \"$@\"\n");
    fs_err::write(scene.folder.join("launch"), script).unwrap();
    let command = format!("command = [\"bash\", \"{}/launch\", ", scene.folder);
    scene.change(|config| config.replace("command = [", &command));
}

/// The run stops at verify with `said`, and what was deployed is gone.
/// What a run says that is stopped before it compares.
fn stopped(scene: &Scene, env: &[(&str, &str)]) -> String {
    let output = scene.run(&["run"], env);
    assert_eq!(output.status.code(), Some(16), "{}", stderr(&output));
    let run = scene.latest();
    let journal = fs_err::read_to_string(run.join("journal.jsonl")).unwrap();
    let events: Vec<serde_json::Value> = journal
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["event"].clone())
        .collect();
    assert_eq!(count(&events, "stage_started", "compare"), 0);
    assert!(events.iter().any(|event| event["kind"] == "undone"));
    let deploy = document(&run.join("deploy.json"));
    assert!(!Utf8Path::new(deploy["table"].as_str().unwrap()).exists());
    refusal(&output, &scene.folder)
}

#[test]
fn a_route_below_the_default_is_deployed_verified_compared_and_taken_back() {
    // One pair gives a number and no verdict, which says nothing about a busy machine.
    let scene = scene(1, "deepgemm");
    let output = scene.run(&["run", "--json"], &[]);
    assert_eq!(output.status.code(), Some(16), "{}", stderr(&output));
    let run = scene.latest();

    // Shapes are counted below the linear that the server has: decode by replays, prefill as it ran.
    let shapes = fs_err::read_to_string(run.join("shapes.csv")).unwrap();
    let calls = |shape: &str| -> u64 {
        let line = shapes.lines().find(|line| line.starts_with(shape));
        let calls = line.and_then(|line| line.rsplit(',').next());
        calls
            .unwrap_or_else(|| panic!("{shape} in {shapes}"))
            .parse()
            .unwrap()
    };
    assert!(calls("w8a8_block_fp8_matmul,1,3072,2048,") >= 2 * 3 * 23);
    assert!(calls("w8a8_block_fp8_matmul,132,2048,4096,") >= 2 * 3);

    // What won: gemmtune's kernels for few rows, cuBLASLt for many.
    let deploy = document(&run.join("deploy.json"));
    let route = document(Utf8Path::new(deploy["table"].as_str().unwrap()));
    let family = |n: u64, k: u64, m: u64| {
        let rows = route["rows"].as_array().unwrap();
        let row = rows.iter().find(|row| {
            (row["N"].as_u64(), row["K"].as_u64()) == (Some(n), Some(k))
                && (row["min_M"].as_u64().unwrap()..=row["max_M"].as_u64().unwrap()).contains(&m)
        });
        row.map(|row| row["family"].as_str().unwrap().to_owned())
    };
    assert_eq!(family(3072, 2048, 1).as_deref(), Some("stream"));
    assert_eq!(family(2048, 4096, 132).as_deref(), Some("cublaslt"));
    assert_eq!(family(3072, 2048, 32), None, "it stays with DeepGEMM");

    let verify = document(&run.join("verify.json"));
    assert_eq!(verify["engagement"]["missed"], serde_json::json!([]));
    assert_eq!(verify["engagement"]["other_kernel"], serde_json::json!([]));
    for family in ["stream", "cublaslt"] {
        let asked = &verify["engagement"]["families"][family];
        assert!(asked["hit"].as_u64().unwrap() >= 1, "{verify}");
        assert_eq!(asked["missed"], 0, "{verify}");
        let checked = verify["layout"].as_array().unwrap().iter();
        let of_family = checked.filter(|check| check["kernel"] == format!("gemmtune:{family}"));
        assert!(of_family.count() >= 2, "both ends of a row: {verify}");
    }

    let compare = document(&run.join("compare.json"));
    assert_eq!(compare["pairs"], 1, "{compare}");
    assert_eq!(compare["unfair"], serde_json::json!([]), "{compare}");
    // DeepGEMM takes 90 us where `stream` takes 15; how much of a step that is depends on how busy the machine is.
    let predicted = compare["loads"][0]["predicted"].as_f64().unwrap();
    assert!(predicted > 1.0, "{compare}");
    let report = fs_err::read_to_string(run.join("report.md")).unwrap();
    let route = plain(
        line(&report, "the route gives ranges of M to"),
        &scene.folder,
    );
    insta::assert_snapshot!(uncounted(&route), @"- the route gives ranges of M to cublaslt in [n], stream in [n], stream-wg in [n]; every other GEMM stays where SGLang sends it");
    assert!(scene.run(&["undo"], &[]).status.success());
    assert!(!Utf8Path::new(deploy["table"].as_str().unwrap()).exists());
}

#[test]
fn a_server_on_triton_gets_a_route_too_with_rows_of_its_own_kernel() {
    let scene = scene(1, "triton");
    let output = scene.run(&["run", "--until", "verify"], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let verify = document(&scene.latest().join("verify.json"));
    let families = &verify["engagement"]["families"];
    assert!(families["stream"]["hit"].as_u64().unwrap() >= 1, "{verify}");
    assert!(
        families.get("cublaslt").is_none(),
        "its scales lie by rows: {verify}"
    );
    assert_eq!(verify["engagement"]["missed"], serde_json::json!([]));
}

#[test]
fn a_family_that_answers_wrong_is_stopped_before_a_server_starts_with_it() {
    let said = ["stream", "cublaslt"].map(|family| {
        let scene = scene(6, "deepgemm");
        let said = stopped(&scene, &[("STANDIN_WRONG", family)]);
        let trials = fs_err::read_dir(scene.latest().join("trials")).unwrap();
        assert_eq!(trials.count(), 2, "baseline and capture");
        said
    });
    insta::assert_snapshot!(said.join("\n"), @"
    error: layout check: [n] shapes are wrong, first M=[m] N=2048 K=2048 with gemmtune:stream (relative error 41.0 %); the deployment was undone

    hint: the server runs as before; `gemmtune status [folder]/runs/[time]-stand-in` says what was found

    error: layout check: [n] shapes are wrong, first M=[m] N=2048 K=2048 with gemmtune:cublaslt (relative error 41.0 %); the deployment was undone

    hint: the server runs as before; `gemmtune status [folder]/runs/[time]-stand-in` says what was found
    ");
}

#[test]
fn a_family_that_does_not_run_in_the_server_is_named_although_the_others_do() {
    let scene = scene(6, "deepgemm");
    in_the_tuned_arm(&scene, "export STANDIN_BROKEN=cublaslt");
    insta::assert_snapshot!(stopped(&scene, &[]), @"
    error: engagement: the family `cublaslt` computed none of the [n] shapes that the route gives it, first M=[m] N=2048 K=2048: sglang.kernels.ops.quantization.fp8_kernel:w8a8_block_fp8_matmul_deepgemm instead of gemmtune:cublaslt; the deployment was undone

    hint: the server runs as before; `gemmtune status [folder]/runs/[time]-stand-in` says what was found
    ");
}

#[test]
fn a_tuned_server_that_lost_the_route_or_the_overlay_is_not_compared() {
    let said = ["unset GEMMTUNE_ROUTE", "PYTHONPATH=${PYTHONPATH#*:}"].map(|loses| {
        let scene = scene(6, "deepgemm");
        in_the_tuned_arm(&scene, loses);
        stopped(&scene, &[])
    });
    insta::assert_snapshot!(said.join("\n"), @"
    error: engagement: no shape of the workload was served by the deployed table; the deployment was undone

    hint: the server runs as before; `gemmtune status [folder]/runs/[time]-stand-in` says what was found

    error: engagement: no shape of the workload was served by the deployed table; the deployment was undone

    hint: the server runs as before; `gemmtune status [folder]/runs/[time]-stand-in` says what was found
    ");
}

#[test]
fn a_server_below_whose_linear_no_route_can_stand_is_refused_by_its_name() {
    let scene = scene(6, "cutlass");
    let output = scene.run(&["run"], &[]);
    assert_eq!(output.status.code(), Some(10), "{}", stderr(&output));
    insta::assert_snapshot!(refusal(&output, &scene.folder), @"
    error: the block-FP8 layers are served by cutlass_w8a8_block_fp8_linear_with_fallback (sglang.srt.layers.quantization.fp8_utils), and a route can stand below DeepGEMM's linear or the Triton one

    hint: take `--fp8-gemm-backend` out of the server command, or set it to deep_gemm or triton

    hint: fix that, then resume with `gemmtune run [folder]/runs/[time]-stand-in`
    ");
}
