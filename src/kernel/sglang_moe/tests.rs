//! Deployed tables that must be refused, and servers that were served by something else.

use serde_json::json;

use super::*;
use crate::log::record::MoeServed;
use crate::problem::fused_moe::Scales;
use crate::store::file::write_atomic;
use crate::tune::clocks::Clocks;

const SIZES: Sizes = Sizes {
    experts: 8,
    inter: 128,
    hidden: 256,
    topk: 2,
};
const DEVICE: &str = "NVIDIA Stand-in";

fn row(block_m: u32, block_k: u32) -> Value {
    json!({"BLOCK_SIZE_M": block_m, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": block_k, "GROUP_SIZE_M": 1,
        "num_warps": 4, "num_stages": 3})
}

struct Scene {
    _keep: tempfile::TempDir,
    folder: Utf8PathBuf,
}

/// A folder with both tables, each with a row at M = 4 and one at M = 64.
fn scene(up: [&Value; 2], down: [&Value; 2]) -> Scene {
    let keep = tempfile::tempdir().unwrap();
    let folder = Utf8PathBuf::try_from(keep.path().to_owned()).unwrap();
    for (name, rows) in deployed::names(DEVICE, SIZES).iter().zip([up, down]) {
        let text = json!({"4": rows[0], "64": rows[1]}).to_string();
        write_atomic(&folder.join(name), text.as_bytes()).unwrap();
    }
    Scene {
        _keep: keep,
        folder,
    }
}

fn tuned(m: u32, candidate: &Value) -> TunedMoe {
    let won = json!({
        "shape": MoeTask::whole(SIZES, m), "candidate": candidate, "incumbent_kept": false, "us": 20.0,
        "incumbent": null, "incumbent_us": 30.0, "noise": 0.0, "err_ratio": 0.0, "timed": 9, "busy_s": 0.1, "effort": "quick"
    });
    serde_json::from_value(json!({
        "device": DEVICE, "whole": "fused_experts", "rows": [won], "failed": [], "not_reached": [], "quarantined": [],
        "lost": [], "files": [], "clocks": Clocks::default(), "candidates": 9, "busy_seconds": 1.0, "seconds": 1.0
    }))
    .unwrap()
}

fn refusal(scene: &Scene, tuned: &TunedMoe) -> Option<String> {
    let checked = Deployed::of(&scene.folder, DEVICE).check(&[SIZES].into(), tuned);
    checked.err().map(|error| error.to_string())
}

#[test]
fn a_table_that_would_be_wrong_is_refused_before_it_is_deployed() {
    let (small, large) = (row(16, 128), row(64, 64));
    let won = json!({"up": small, "down": small});
    let right = scene([&small, &large], [&small, &large]);
    assert_eq!(refusal(&right, &tuned(4, &won)), None);
    let spans = row(64, 256);
    let mut said = [
        ([&small, &spans], [&small, &large]),
        ([&small, &large], [&small, &spans]),
        ([&small, &large], [&large, &large]),
    ]
    .map(|(up, down)| refusal(&scene(up, down), &tuned(4, &won)).unwrap())
    .to_vec();
    let half = scene([&small, &large], [&small, &large]);
    fs_err::remove_file(half.folder.join(&deployed::names(DEVICE, SIZES)[1])).unwrap();
    let unread = refusal(&half, &tuned(4, &won)).unwrap();
    said.push(unread.replace(half.folder.as_str(), "[folder]"));
    insta::assert_snapshot!(said.join("\n"), @"
    the tables of fused MoE are not deployed: E=8 N=128 at M = 64 the up row's BLOCK_SIZE_K of 256 spans several scale blocks of 128, and one scale would be used for all
    the tables of fused MoE are not deployed: E=8 N=128 at M = 64 the down row's BLOCK_SIZE_K of 256 spans several scale blocks of 128, and one scale would be used for all
    the tables of fused MoE are not deployed: E=8 N=128 at M = 4 BLOCK_SIZE_M is 16 in the up row and 64 in the down row, which share one sort of the tokens
    the tables of fused MoE are not deployed: that of E=8 N=128 in [folder] cannot be read
    ");
}

#[test]
fn a_dry_look_up_that_does_not_find_what_won_is_a_fault() {
    let (small, large) = (row(16, 128), row(64, 64));
    let scene = scene([&small, &large], [&small, &large]);
    let said = refusal(&scene, &tuned(64, &json!({"up": small, "down": small})));
    insta::assert_snapshot!(said.unwrap(), @"a dry look-up of fused_moe_triton E=8 N=128 K=256 topk=2 M=64 finds 64x64x64, group 1, 4 warps, 3 stages in place of what won the race");
}

#[test]
fn a_server_that_was_served_another_row_is_told_from_one_that_was_served_the_deployed_one() {
    let (small, large) = (row(16, 128), row(64, 64));
    let scene = scene([&small, &large], [&small, &large]);
    let deployed = Deployed::of(&scene.folder, DEVICE);
    let served = |experts, m, injected, row: &Value| {
        let problem = MoeProblem {
            experts,
            n: SIZES.inter,
            hidden: None,
            topk: Some(2),
            dtype: "fp8_w8a8".to_owned(),
            scales: Scales::Block(128, 128),
            experts_of_all: None,
        };
        let served = MoeServed {
            injected,
            up: row.clone(),
            down: Value::Null,
        };
        ((problem, m), served)
    };
    let judged = |all: Vec<_>| {
        let mut log_summary = LogSummary::default();
        log_summary.moe.served = all.into_iter().collect();
        engagement_of(&deployed, &log_summary)
    };
    let right = judged(vec![
        served(8, 1, true, &small),
        served(8, 4096, true, &large),
        served(9, 1, false, &large),
    ]);
    assert_eq!((right.hit, right.unplanned.len()), (2, 1), "{right:?}");
    assert_eq!(right.families["E=8 N=128"], HitCount { hit: 2, missed: 0 });
    let other = judged(vec![served(8, 1, true, &large)]);
    insta::assert_snapshot!(other.other_kernel[0], @"E=8 N=128 M=1: 64x64x64, group 1, 4 warps, 3 stages instead of 16x64x128, group 1, 4 warps, 3 stages");
    let not_injected = judged(vec![served(8, 1, false, &small)]);
    assert_eq!((not_injected.hit, not_injected.missed.len()), (0, 1));
    let nothing = judged(Vec::new());
    assert_eq!(nothing.families["E=8 N=128"], HitCount::default());
}
