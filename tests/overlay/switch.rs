//! Kernel switches and injected tables.

use gemmtune::overlay::OverlayOptions;
use gemmtune::store::file::write_atomic;
use gemmtune::tree::force::{Rule, Step};
use serde_json::Value;

use super::{Scene, only};

#[test]
fn a_rebound_name_runs_the_other_kernel_on_row_major_scales() {
    let scene = Scene::new();
    let options = scene.switch(&[Step::Rebind {
        name: "triton_gemm_a8w8_blockscale".to_owned(),
        to: "aiter:gemm_a8w8_blockscale".to_owned(),
    }]);
    let said = scene.run(
        &options,
        "linear(33); import aiter; print(json.dumps(aiter.CALLS))",
    );
    assert_eq!(only(&said.stdout), serde_json::json!([["ck", "row-major"]]));
    assert_eq!(scene.values("switch")[0]["ok"], true);
}

#[test]
fn a_route_takes_the_gemms_that_fit_and_leaves_the_rest() {
    let scene = Scene::new();
    let options = scene.switch(&[Step::Route {
        name: "triton_gemm_a8w8_blockscale".to_owned(),
        to: "self:ck_gemm_a8w8_blockscale".to_owned(),
        rules: vec![Rule {
            n: 384,
            k: 1024,
            min_m: Some(2),
            max_m: Some(64),
        }],
    }]);
    let said = scene.run(
        &options,
        "print(json.dumps([linear(1), linear(2), linear(64), linear(65), linear(64, n=512)]))",
    );
    assert_eq!(
        only(&said.stdout),
        serde_json::json!(["triton", "ck", "ck", "triton", "triton"])
    );
}

#[test]
fn both_readers_of_the_predicate_change_together() {
    let scene = Scene::new();
    let options = scene.switch(&[Step::Predicate {
        value: false,
        except: Vec::new(),
    }]);
    let said = scene.run(
        &options,
        "
from sglang.srt.layers.quantization import fp8
print(json.dumps([linear(33), fp8.shuffles_weight(384, 1024)]))
",
    );
    assert_eq!(only(&said.stdout), serde_json::json!(["ck", true]));
    let switches = scene.values("switch");
    assert_eq!(
        switches.len(),
        2,
        "the second reader is checked: {switches:?}"
    );
    assert!(switches.iter().all(|switch| switch["ok"] == true));
}

#[test]
fn the_predicate_answers_by_shape_to_both_readers() {
    let scene = Scene::new();
    let options = scene.switch(&[Step::Predicate {
        value: true,
        except: vec![(384, 1024)],
    }]);
    let said = scene.run(
        &options,
        "
from sglang.srt.layers.quantization import fp8
print(json.dumps([linear(33), linear(33, n=512), fp8.shuffles_weight(384, 1024), fp8.shuffles_weight(512, 1024)]))
",
    );
    assert_eq!(
        only(&said.stdout),
        serde_json::json!(["ck", "triton", true, false])
    );
}

#[test]
fn an_action_whose_names_are_not_there_is_refused_and_the_server_runs_on() {
    let scene = Scene::new();
    let options = scene.switch(&[
        Step::SetForceCk,
        Step::Rebind {
            name: "triton_gemm_a8w8_blockscale".to_owned(),
            to: "aiter:no_such_kernel".to_owned(),
        },
    ]);
    let said = scene.run(&options, "print(json.dumps(linear(33)))");
    assert_eq!(only(&said.stdout), "triton");
    assert!(
        scene
            .values("switch")
            .iter()
            .all(|switch| switch["ok"] == false)
    );
    assert_eq!(scene.values("error").len(), 2);
}

#[test]
fn tuned_triton_tables_replace_the_lookup_and_what_was_served_is_recorded() {
    let scene = Scene::new();
    let tables = scene.root.join("tables");
    fs_err::create_dir(&tables).unwrap();
    let table = |n: u32, k: u32, text: &str| {
        let name = format!(
            "N={n},K={k},device_name=NVIDIA_H100_80GB_HBM3,dtype=fp8_w8a8,block_shape=[128, 128].json"
        );
        write_atomic(&tables.join(name), text.as_bytes()).unwrap();
    };
    table(
        384,
        1024,
        r#"{"8": {"num_warps": 8}, "32": {"num_warps": 4}}"#,
    );
    table(640, 1024, r#"{"8": {"num_warps": 8"#);
    let options = OverlayOptions {
        triton_tables: Some(tables),
        records: Some(scene.records()),
        ..OverlayOptions::default()
    };
    let said = scene.run(&options, "
from sglang.srt.layers.quantization import fp8_utils
gemm = lambda m, n, k: fp8_utils.w8a8_block_fp8_matmul_triton(Tensor(m, k), Tensor(n, k), None, None, [128, 128])
print(json.dumps([gemm(1, 384, 1024), gemm(20, 384, 1024), gemm(21, 384, 1024), gemm(7, 256, 512), gemm(7, 640, 1024)]))
");
    let warps = |count: u32| serde_json::json!({"num_warps": count});
    assert_eq!(
        only(&said.stdout),
        serde_json::json!([warps(8), warps(8), warps(4), warps(1), "default"])
    );
    let served: Vec<_> = scene
        .values("served")
        .iter()
        .map(|served| (served["source"].clone(), served["key"].clone()))
        .collect();
    let expected = [
        ("injected", Some(8)),
        ("injected", Some(8)),
        ("injected", Some(32)),
        ("sglang", Some(1)),
        ("default", None),
    ];
    assert_eq!(
        served,
        expected.map(|(source, key)| (Value::from(source), Value::from(key)))
    );
    assert_eq!(
        scene.values("where"),
        ["table N=640 K=1024"],
        "a torn table is named and not served"
    );
}
