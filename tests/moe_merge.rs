//! `gemmtune merge` of fused-MoE tables from the outside.

use std::process::Command;

use serde_json::Value;

const NAME: &str = "E=256,N=512,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128]";

fn merge(folder: &std::path::Path, arguments: &[&str]) -> (Value, i32) {
    let output = Command::new(env!("CARGO_BIN_EXE_gemmtune"))
        .args(["--json", "merge"])
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    let document = serde_json::from_slice(&output.stdout);
    let document =
        document.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    (document, output.status.code().unwrap())
}

#[test]
fn a_shipped_pair_and_ones_own_rows_become_a_pair_that_lint_finds_clean() {
    let keep = tempfile::tempdir().unwrap();
    let shipped = format!(
        "{}/testdata/moe-configs/configs/triton_3_6_0/{NAME}.json",
        env!("CARGO_MANIFEST_DIR")
    );
    let row = |block_m: u32, block_k: u32| {
        format!(
            "{{\"BLOCK_SIZE_M\": {block_m}, \"BLOCK_SIZE_N\": 64, \"BLOCK_SIZE_K\": {block_k}, \"GROUP_SIZE_M\": 1, \"num_warps\": 4, \"num_stages\": 3}}"
        )
    };
    let mine = format!(
        "{{\"1\": {}, \"64\": {}, \"4096\": {}}}",
        row(16, 128),
        row(16, 256),
        row(64, 128)
    );
    fs_err::create_dir(keep.path().join("mine")).unwrap();
    fs_err::write(keep.path().join(format!("mine/{NAME}.json")), mine).unwrap();
    let own = format!("mine/{NAME}.json");
    let out = format!("{NAME}.json");
    let (document, code) = merge(keep.path(), &[&own, &shipped, "-o", &out]);
    assert_eq!(
        (code, &document["rows"], &document["op"]),
        (0, &5.into(), &"fused_moe_triton".into()),
        "{document}"
    );
    assert_eq!(
        (
            &document["inputs"][0]["kept"],
            &document["inputs"][0]["invalid"]
        ),
        (&2.into(), &1.into())
    );
    assert_eq!(document["inputs"][1]["kept"], 3);
    assert!(
        document["down_output"]
            .as_str()
            .unwrap()
            .ends_with("_down.json")
    );
    let read = |file: String| fs_err::read_to_string(keep.path().join(file)).unwrap();
    let [up, down] = [out.clone(), format!("{NAME}_down.json")]
        .map(|file| serde_json::from_str::<Value>(&read(file)).unwrap());
    for m in ["1", "256", "512", "1024", "4096"] {
        assert_eq!(up[m]["BLOCK_SIZE_M"], down[m]["BLOCK_SIZE_M"], "{m}");
    }
    assert_eq!(
        (&down["1"], down["512"]["USE_TMA"].is_boolean()),
        (&up["1"], true)
    );
    assert!(read(format!("{NAME}.provenance.csv")).contains(",invalid,"));
    fs_err::remove_dir_all(keep.path().join("mine")).unwrap();
    let lint = Command::new(env!("CARGO_BIN_EXE_gemmtune"))
        .args(["lint", "."])
        .current_dir(keep.path())
        .output()
        .unwrap();
    assert_eq!(
        lint.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&lint.stdout)
    );
}

#[test]
fn what_is_no_pair_of_tables_is_refused_and_nothing_is_overwritten() {
    let keep = tempfile::tempdir().unwrap();
    let file = |name: &str| fs_err::write(keep.path().join(name), "{\"1\": {}}").unwrap();
    let (up, down) = (format!("{NAME}.json"), format!("{NAME}_down.json"));
    for name in [
        up.as_str(),
        &down,
        "t.csv",
        "N=1,K=2,device_name=A,dtype=fp8_w8a8.json",
    ] {
        file(name);
    }
    let said = [
        &[&up, "t.csv", "-o", "o.json"][..],
        &[&down, "-o", "o.json"],
        &["N=1,K=2,device_name=A,dtype=fp8_w8a8.json", "-o", "o.json"],
        &[&up, "-o", &up],
    ]
    .map(|arguments| {
        let (document, code) = merge(keep.path(), arguments);
        assert_eq!(code, 2, "{document}");
        document["error"]["message"].as_str().unwrap().to_owned()
    });
    insta::assert_snapshot!(said.join("\n"), @"
    CSV and JSON tables do not become one table
    `E=256,N=512,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128]_down.json` is the down projection's: it goes with the up projection's row by row
    failed to use a table: read `N=1,K=2,device_name=A,dtype=fp8_w8a8.json` as the name of a fused-MoE table, `E=<int>,N=<int>,device_name=<name>[,dtype=<dtype>][,block_shape=[<int>, <int>]][… (116 characters)`
    `E=256,N=512,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json` is the input `E=256,N=512,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json`, which is never written
    ");
    let (document, code) = merge(keep.path(), &[&up, "-o", "o.json"]);
    assert_eq!(
        (code, document["rows"].as_u64()),
        (15, Some(0)),
        "{document}"
    );
    assert!(!keep.path().join("o.json").exists());
}
