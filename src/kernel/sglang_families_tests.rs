use serde_json::json;

use super::*;

fn row(family: &str, k: u32, min_m: u32, max_m: u32) -> RouteRow {
    RouteRow {
        n: 512,
        k,
        min_m,
        max_m,
        family: family.to_owned(),
        setting: json!({}),
        us: 6.0,
        default_us: Some(9.0),
    }
}

fn route() -> Route {
    Route {
        format: 1,
        device: "NVIDIA H200".to_owned(),
        cu_num: Some(132),
        versions: BTreeMap::new(),
        rows: vec![
            row("stream", 256, 1, 8),
            row("cublaslt", 256, 129, 1030),
            row("stream-wg", 1024, 9, 32),
        ],
    }
}

fn seen(calls: &[(u32, u32, &str)]) -> LogSummary {
    let mut log_summary = LogSummary::default();
    for (m, k, target) in calls {
        let targets = log_summary.kernels.entry((512, *k, *m)).or_default();
        targets.insert((*target).to_owned(), 4);
    }
    log_summary
}

#[test]
fn every_gemm_is_held_against_the_family_that_the_route_gives_it() {
    let log_summary = seen(&[
        (1, 256, "gemmtune:stream"),
        (8, 256, "gemmtune:stream"),
        (64, 256, "sglang.fp8_kernel:deepgemm"),
        (131, 256, "sglang.fp8_kernel:deepgemm"),
        (256, 256, "gemmtune:cublaslt"),
        (512, 256, "gemmtune:stream"),
    ]);
    let engagement = engagement_of(&route(), &log_summary);
    assert_eq!(engagement.hit, 3);
    assert_eq!(
        engagement.unplanned,
        ["M=64 N=512 K=256", "M=131 N=512 K=256"],
        "no row, and scales that cuBLASLt does not take"
    );
    assert_eq!(
        engagement.other_kernel,
        ["M=512 N=512 K=256: gemmtune:stream instead of gemmtune:cublaslt"]
    );
    assert_eq!(engagement.unseen, ["stream-wg for N=512 K=1024, M=9 to 32"]);
    assert_eq!(engagement.refusal(), None);
}

#[test]
fn a_gemm_that_once_went_the_old_way_is_missed() {
    let log_summary = seen(&[
        (1, 256, "gemmtune:stream"),
        (1, 256, "sglang.fp8_kernel:deepgemm"),
        (2, 256, "gemmtune:stream"),
    ]);
    let engagement = engagement_of(&route(), &log_summary);
    assert_eq!((engagement.hit, engagement.missed.len()), (1, 1));
    assert!(
        engagement.missed[0].ends_with("sglang.fp8_kernel:deepgemm instead of gemmtune:stream")
    );
}

#[test]
fn a_family_that_computes_nothing_is_refused_although_the_others_do() {
    let mut calls = vec![(256, 256, "sglang.fp8_kernel:deepgemm")];
    calls.extend((1..9).map(|m| (m, 256, "gemmtune:stream")));
    let refusal = engagement_of(&route(), &seen(&calls)).refusal().unwrap();
    assert!(
        refusal.starts_with("the family `cublaslt` computed none of the 1 shapes"),
        "{refusal}"
    );
    assert!(
        engagement_of(&route(), &seen(&[])).refusal().is_some(),
        "an overlay that was not loaded"
    );
}

#[test]
fn every_row_of_the_route_is_tried_at_both_its_ends() {
    let shape = |m, k| Shape {
        op: Op::TritonBlockFp8,
        m,
        n: 512,
        k,
        dtype: "torch.float8_e4m3fn".to_owned(),
    };
    let tried = with_ends(&route(), &[shape(33, 256)]);
    let expected = [
        (1, 256),
        (8, 256),
        (9, 1024),
        (32, 1024),
        (33, 256),
        (132, 256),
        (1028, 256),
    ];
    let mut found: Vec<(u32, u32)> = tried.iter().map(|shape| (shape.m, shape.k)).collect();
    found.sort_unstable();
    assert_eq!(found, expected, "cuBLASLt takes rows in fours");
}

#[test]
fn a_check_of_another_kernel_is_no_check() {
    let checked = |computed_by: &[&str]| Checked {
        m: 4,
        n: 512,
        k: 256,
        relative_error: Some(0.0017),
        computed_by: computed_by.iter().map(|name| (*name).to_owned()).collect(),
        failure: None,
    };
    assert_eq!(checked(&["gemmtune:stream"]).not_of(&route()), None);
    for other in [&[][..], &["m:deepgemm"], &["gemmtune:stream", "m:deepgemm"]] {
        assert!(checked(other).not_of(&route()).is_some(), "{other:?}");
    }
}
