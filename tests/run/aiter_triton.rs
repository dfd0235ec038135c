//! The loop where aiter's Triton GEMM serves: the stand-in server with `testdata/aiter-standin`, whose look-up the real overlay
//! hands files to. GEMMs and the GPU worker are played; nothing here ran on an AMD GPU.

use serde_json::json;

use super::said::refusal;
use super::sglang_triton::Scene;
use super::support::{document, stderr};

fn scene(pairs: u32, backend: &str) -> Scene {
    let scene = Scene::new(pairs, &["--backend", backend]);
    let testdata = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata");
    scene.change(|text| {
        text.replace("kind = \"sglang-triton\"", "kind = \"aiter-triton\"")
            .replace(
                &format!(":{testdata}/overlay-tree"),
                &format!(":{testdata}/aiter-standin:{testdata}/overlay-tree"),
            )
    });
    scene
}

#[test]
fn rows_of_aiters_triton_gemm_are_tuned_deployed_by_overlay_and_taken_back() {
    let scene = scene(6, "aiter");
    let output = scene.run(&["run", "--json"], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let run = scene.latest();

    let inspect = document(&run.join("inspect.json"));
    assert_eq!(inspect["gfx"], "gfx942");
    // One row for a bucket, and what won was tried where its bucket ends.
    let plan = document(&run.join("plan.json"));
    assert_eq!(plan["fold"], "bucket");
    let tried = fs_err::read_to_string(run.join("tune/ends/results.jsonl")).unwrap();
    assert!(tried.lines().count() > 1, "{tried}");
    let deploy = document(&run.join("deploy.json"));
    let files = deploy["env"]["GEMMTUNE_AITER_TRITON"].as_str().unwrap();
    let names: Vec<String> = fs_err::read_dir(files)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(
        names.contains(&"gfx942-GEMM-A8W8_BLOCKSCALE-N=384-K=256.json".to_owned()),
        "{names:?}"
    );
    assert!(
        names.iter().all(|name| name.starts_with("gfx942-")),
        "{names:?}"
    );

    let verify = document(&run.join("verify.json"));
    assert_eq!(verify["engagement"]["missed"], json!([]));
    assert_eq!(verify["engagement"]["other_kernel"], json!([]));
    assert!(
        verify["engagement"]["hit"].as_u64().unwrap() >= 8,
        "{verify}"
    );
    assert_eq!(document(&run.join("compare.json"))["verdict"], "better");

    let undone = scene.run(&["undo"], &[]);
    assert!(undone.status.success(), "{}", stderr(&undone));
    assert!(!std::path::Path::new(files).exists());
}

#[test]
fn a_row_with_wrong_numbers_is_taken_back_before_it_serves() {
    let scene = scene(1, "aiter");
    let output = scene.run(&["run", "--json"], &[("STANDIN_WRONG", "1")]);
    assert!(!output.status.success());
    let run = scene.latest();
    let deploy = document(&run.join("deploy.json"));
    let files = deploy["env"]["GEMMTUNE_AITER_TRITON"].as_str().unwrap();
    assert!(!std::path::Path::new(files).exists(), "{files}");
    assert!(!run.join("compare.json").exists());
}

#[test]
fn a_server_that_runs_another_kernel_is_refused_by_its_name() {
    let scene = scene(1, "triton");
    let output = scene.run(&["run", "--json"], &[]);
    assert!(!output.status.success());
    insta::assert_snapshot!(refusal(&output, &scene.folder), @r#"
    error: the instrumented server called no GEMM of aiter's for block FP8

    hint: `backend.kind = "aiter"` tunes aiter's CK kernels; `gemmtune trace` says which path a tree takes

    hint: fix that, then resume with `gemmtune run [folder]/runs/[time]-stand-in`
    "#);
}
