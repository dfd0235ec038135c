//! `run --table`: a table or a route from elsewhere is deployed, proved and judged as it is.

use camino::Utf8PathBuf;

use super::said::{line, plain, refusal};
use super::sglang_triton::Scene;
use super::support::{Change, Site, count, document, stderr};

/// The weights that the stand-in serves.
const WEIGHTS: [(u32, u32); 4] = [(384, 256), (256, 256), (1024, 256), (256, 512)];

/// A folder beside `scene` with a table of the stand-in's device for each weight.
fn tables(scene: &Scene, weights: &[(u32, u32)]) -> Utf8PathBuf {
    let folder = scene.folder.join("theirs");
    fs_err::create_dir_all(&folder).unwrap();
    let row = r#"{"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 128, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 32, "num_warps": 4, "num_stages": 3}"#;
    for (n, k) in weights {
        let name = format!(
            "N={n},K={k},device_name=NVIDIA_Stand-in,dtype=fp8_w8a8,block_shape=[128, 128].json"
        );
        fs_err::write(folder.join(name), format!("{{\"1\": {row}}}")).unwrap();
    }
    folder
}

#[test]
fn a_table_from_elsewhere_is_judged_without_tuning() {
    // One pair gives a number and no verdict, which says nothing about a busy machine.
    let scene = Scene::new(1, &[]);
    let theirs = tables(&scene, &WEIGHTS);
    let output = scene.run(&["run", "--table", theirs.as_str()], &[]);
    assert_eq!(output.status.code(), Some(16), "{}", stderr(&output));
    let run = scene.latest();
    let tune = document(&run.join("tune.json"));
    assert_eq!(tune["rows"], serde_json::json!([]));
    assert_eq!(tune["taken_from"], theirs.as_str());
    let verify = document(&run.join("verify.json"));
    assert!(
        verify["engagement"]["hit"].as_u64().unwrap() >= 4,
        "{verify}"
    );
    assert_eq!(verify["engagement"]["missed"], serde_json::json!([]));
    assert!(!verify["layout"].as_array().unwrap().is_empty());
    assert_eq!(document(&run.join("compare.json"))["pairs"], 1);
    let report = fs_err::read_to_string(run.join("report.md")).unwrap();
    let said = plain(
        line(&report, "nothing was tuned: the table is"),
        &scene.folder,
    );
    insta::assert_snapshot!(said, @"- nothing was tuned: the table is [folder]/theirs, taken as it is");
}

#[test]
fn a_table_that_this_server_cannot_read_is_refused_and_one_that_serves_nothing_is_not_compared() {
    let scene = Scene::new(6, &[]);
    let missing = scene.run(&["run", "--table", "nowhere.json"], &[]);
    assert_eq!(missing.status.code(), Some(2), "{}", stderr(&missing));

    let other = scene
        .folder
        .join("N=384,K=256,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json");
    fs_err::write(&other, "{}").unwrap();
    let refused = scene.run(&["run", "--new", "--table", other.as_str()], &[]);
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    insta::assert_snapshot!(refusal(&refused, &scene.folder), @"
    error: `[folder]/N=384,K=256,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json` holds no table that SGLang would look for on this device

    hint: they have names such as `N=4096,K=7168,device_name=NVIDIA_Stand-in,dtype=fp8_w8a8,block_shape=[128, 128].… (84 characters)`

    hint: change the configuration, then `gemmtune run --new`
    ");

    let folder = tables(&scene, &[(8192, 256)]);
    let idle = scene.run(&["run", "--new", "--table", folder.as_str()], &[]);
    assert_eq!(idle.status.code(), Some(16), "{}", stderr(&idle));
    insta::assert_snapshot!(refusal(&idle, &scene.folder), @"
    error: the table serves none of the [n] shapes that the workload runs

    hint: `gemmtune lookup --explain` says why for each shape

    hint: the server runs as before; `gemmtune status [folder]/runs/[time]-stand-in` says what was found
    ");
    assert!(!scene.latest().join("verify.json").exists());
}

#[test]
fn a_route_that_was_raced_on_another_device_is_refused_by_the_device() {
    let scene = Scene::new(6, &["--backend", "deepgemm"]);
    scene.change(|config| config.replace("kind = \"sglang-triton\"", "kind = \"sglang-families\""));
    let theirs = scene.folder.join("route.json");
    let route = |device: &str, cu_num: u32| {
        serde_json::json!({"format": 1, "device": device, "cu_num": cu_num, "versions": {}, "rows": [
            {"N": 384, "K": 256, "min_M": 1, "max_M": 8, "family": "stream", "setting": {"DEPTH": 1}, "us": 6.0, "default_us": 9.0}]})
    };
    let said = [("NVIDIA H200", 132), ("NVIDIA Stand-in", 78)].map(|(device, cu_num)| {
        fs_err::write(&theirs, route(device, cu_num).to_string()).unwrap();
        let refused = scene.run(&["run", "--new", "--table", theirs.as_str()], &[]);
        assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
        assert!(!scene.latest().join("deploy.json").exists());
        refusal(&refused, &scene.folder)
    });
    insta::assert_snapshot!(said.join("\n"), @"
    error: the route `[folder]/route.json` is not for this device: it was raced on NVIDIA H200 with 132 multiprocessors, and this is NVIDIA Stand-in

    hint: `gemmtune tune --backend sglang-families` races one here

    hint: change the configuration, then `gemmtune run --new`

    error: the route `[folder]/route.json` is not for this device: it was raced on NVIDIA Stand-in with 78 multiprocessors, and this one has 132

    hint: `gemmtune tune --backend sglang-families` races one here

    hint: change the configuration, then `gemmtune run --new`
    ");
}

#[test]
fn a_csv_table_of_a_colleague_is_judged_on_the_reference_engine() {
    let tuned = Site::new(&Change::default());
    assert!(tuned.run(&["run", "--until", "deploy"]).status.success());
    let theirs = tuned.latest().join("table.csv");
    let site = Site::new(&Change::default());
    let output = site.run(&["run", "--table", theirs.as_str(), "--until", "verify"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let verify = document(&site.latest().join("verify.json"));
    assert!(
        verify["engagement"]["hit"].as_u64().unwrap() >= 1,
        "{verify}"
    );
    assert_eq!(count(&site.journal(), "stage_finished", "tune"), 1);

    // What it was begun with is kept.
    let again = site.run(&["run", "--table", theirs.as_str(), "runs/latest"]);
    assert_eq!(again.status.code(), Some(2), "{}", stderr(&again));
    let dry = site.run(&["run", "--dry-run", "--new", "--table", theirs.as_str()]);
    let said = plain(line(&stderr(&dry), "nothing would be tuned"), &tuned.folder);
    insta::assert_snapshot!(said, @"note          nothing would be tuned: [folder]/runs/[time]-tiny/table.csv is judged as it is");
}
