//! Fused MoE in real releases: the GPU worker launches what SGLang launches, and the overlay answers SGLang's look-up.

use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use gemmtune::overlay::{self, OverlayOptions};
use serde_json::{Value, json};

use super::{Prepared, record_objects};

fn row(warps: u32) -> Value {
    json!({"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1, "num_warps": warps,
        "num_stages": 4})
}

/// What `moe.py` says of the release in `site`, with tables injected for one (E, N) from `scratch`.
fn ask(python: &str, site: &Utf8Path, scratch: &Utf8Path) -> Result<Value, String> {
    let overlay_folder = scratch.join("overlay");
    let tables = scratch.join("tables");
    overlay::write(&overlay_folder).unwrap();
    fs_err::create_dir_all(&tables).unwrap();
    let stem = "E=128,N=768,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128]";
    let down = |warps| {
        let mut row = row(warps);
        row["USE_TMA"] = true.into();
        row
    };
    for (suffix, table) in [
        ("", json!({"1": row(4), "64": row(8)})),
        ("_down", json!({"1": down(8), "64": down(4)})),
    ] {
        fs_err::write(
            tables.join(format!("{stem}{suffix}.json")),
            table.to_string(),
        )
        .unwrap();
    }
    let options = OverlayOptions {
        // What is asked is counted in the same process: a release is imported once.
        shapes: true,
        moe_tables: Some(tables),
        records: Some(scratch.join("records")),
        ..OverlayOptions::default()
    };
    let present = |name: &str| (name == "PYTHONPATH").then(|| site.to_string());
    let output = Command::new(python)
        .arg("-B")
        .arg(Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/realtrees/moe.py"))
        .arg(site)
        .envs(overlay::environment(&overlay_folder, &options, present))
        // Otherwise apache-tvm-ffi compiles an extension at import.
        .env("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")
        .env("OMP_NUM_THREADS", "1")
        .output()
        .map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).map_err(|error| format!("{error}: {said}"))
}

/// What is wrong with fused MoE in the release in `site`.
fn check(python: &str, site: &Utf8Path, scratch: &Utf8Path) -> Vec<String> {
    let document = match ask(python, site, scratch) {
        Ok(document) => document,
        Err(error) => return vec![error],
    };
    let mut problems = Vec::new();
    let launches = document["launches"].as_array().cloned().unwrap_or_default();
    // Two numbers of tokens, two GEMMs.
    if launches.len() != 4 {
        problems.push(format!(
            "{} launches instead of 4: {document}",
            launches.len()
        ));
    }
    for launch in launches {
        if launch["differ"] != json!({}) || launch["grids"][0] != launch["grids"][1] {
            problems.push(format!("the worker launches something else: {launch}"));
        }
    }
    for (m, warps) in [("1", 4), ("30", 4), ("4096", 8)] {
        let answer = &document["answers"][m];
        let mut down = row(12 - warps);
        down["USE_TMA"] = true.into();
        if *answer != json!([row(warps), down, 16]) {
            problems.push(format!("the look-up at M = {m} answers {answer}"));
        }
    }
    problems.extend(miscounted(&scratch.join("records")));
    let records = record_objects(&scratch.join("records"));
    let served: Vec<&Value> = records
        .iter()
        .filter_map(|record| record.get("served_moe"))
        .collect();
    let injected = |m: u32, key: u32| {
        served.iter().any(|served| {
            served["source"] == "injected"
                && served["E"] == 128
                && served["N"] == 768
                && served["M"] == m
                && served["key"] == key
        })
    };
    if !(injected(1, 1) && injected(30, 1) && injected(4096, 64)) {
        problems.push(format!("the records say {served:?}"));
    }
    // The (E, N) without a table is SGLang's own affair, and said to be.
    let left = served
        .iter()
        .any(|served| served["E"] == 64 && served["source"] == "sglang" && served["key"].is_null());
    if !left || document["left"] == json!(null) {
        problems.push(format!(
            "a problem without a table: {served:?}, {}",
            document["left"]
        ));
    }
    problems
}

/// What is wrong with the calls that `gemmtune shapes` reads out of the records: each M was looked up twice.
fn miscounted(records: &Utf8Path) -> Option<String> {
    let files = records.read_dir_utf8().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_gemmtune"))
        .arg("shapes")
        .args(files.map(|file| file.unwrap().path().to_owned()))
        .output()
        .unwrap();
    let csv = String::from_utf8_lossy(&output.stdout).into_owned();
    let wanted =
        [1, 30, 4096].map(|m| format!("fused_moe_triton,{m},768,2048,fp8_w8a8,2,128,8,128x128"));
    let missing = wanted
        .iter()
        .find(|line| !csv.lines().any(|found| found == *line))?;
    Some(format!(
        "`gemmtune shapes` does not say {missing}: {csv}{}",
        String::from_utf8_lossy(&output.stderr)
    ))
}

#[expect(
    clippy::print_stdout,
    reason = "a run of minutes shows what it has found so far"
)]
#[test]
#[ignore = "needs torch and SGLang releases: `tests/realtrees/run` fetches them and runs this"]
fn fused_moe_of_real_releases_is_launched_and_looked_up_as_here() {
    let python = Prepared::variable("GEMMTUNE_REALTREES_PYTHON");
    let cache = Utf8PathBuf::from(Prepared::variable("GEMMTUNE_TESTS_CACHE"));
    let mut failures = Vec::new();
    let releases = Prepared::variable("GEMMTUNE_REALTREES");
    for release in releases.split_whitespace() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(scratch.path()).unwrap();
        let problems = check(&python, &cache.join(format!("sglang-{release}")), folder);
        println!("fused MoE of {release}: {} problems", problems.len());
        failures.extend(
            problems
                .into_iter()
                .map(|problem| format!("{release}: {problem}")),
        );
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
