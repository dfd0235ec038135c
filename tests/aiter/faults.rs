//! What goes wrong inside a tuner, at both generations.

use crate::fused_moe::remarks;
use crate::said::{line, plain};
use crate::support::{Like, Site, TEN};

#[test]
fn healthy_workers_give_a_whole_table_in_one_start() {
    for (like, header) in [
        (Like::Old, "cu_num,M,N,K,libtype,"),
        (Like::New, "gfx,cu_num,M,N,K,libtype,"),
    ] {
        let site = Site::new(like, &TEN);
        let ran = site.run(&[]);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert_eq!(ran.list("rows").len(), 10);
        assert_eq!(ran.json["attempts"], 1);
        let table = site.table();
        assert!(table.starts_with(header), "{table}");
        assert_eq!(table.lines().count(), 11);
        assert_eq!(ran.row(16)["timed"], 8, "four kernels of each library");
    }
}

#[test]
fn a_shape_no_kernel_can_do_costs_itself_only() {
    let mut reasons = Vec::new();
    for like in [Like::Old, Like::New] {
        let site = Site::new(like, &TEN).faults("unsupported@*:32x256x512");
        let ran = site.run(&[]);
        assert_eq!(ran.code, Some(15), "{}", ran.stderr);
        assert_eq!(ran.sizes("failed"), [32]);
        assert_eq!(ran.list("rows").len(), 9);
        let reason = ran.list("failed")[0]["reason"].as_str().unwrap();
        reasons.push(reason.to_owned());
        // At the old generation the rest of its batch was dropped, but not before it was measured.
        assert_eq!(site.asked("02"), [32]);
        site.nothing_is_left();
    }
    reasons.dedup();
    insta::assert_snapshot!(reasons.join("\n"), @"no candidate gave right numbers in time (first said: This GEMM is not supported!)");
}

#[test]
fn a_dying_worker_costs_its_candidate_only() {
    // The old pool would wait for ever; ours ends it, and the shapes go alone under a limit that saves the rest.
    let site = Site::new(Like::Old, &TEN[..5])
        .faults("exit@3:48x256x512")
        .args(&["--limit", "task=1s", "--limit", "silence=2s"]);
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(ran.list("rows").len(), 5);
    assert_eq!(ran.row(48)["unmeasured"], 2, "kernel 3 of both libraries");
    insta::assert_snapshot!(line(&remarks(&ran), "it made no progress"), @"the tuner was restarted: it made no progress; finished rows are kept");
    site.nothing_is_left();
}

#[test]
fn a_hanging_kernel_costs_its_candidate_only() {
    let site = Site::new(Like::New, &TEN[..5])
        .faults("hang@3:48x256x512")
        .args(&["--limit", "task=1s"]);
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(ran.json["attempts"], 1, "this pool saves itself");
    assert_eq!(ran.row(48)["unmeasured"], 2);
    assert!(ran.stderr.contains("timed out"), "{}", ran.stderr);
    site.nothing_is_left();
}

#[test]
fn waiting_in_the_queue_costs_no_candidate() {
    // 32 tasks of 0.1 s on two devices wait longer than the limit of one; the old pool counts that.
    let site = Site::new(Like::Old, &TEN[..4])
        .faults("sleep=0.1@*:*")
        .args(&["--limit", "task=1s"]);
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(ran.json["attempts"], 1);
    assert!(ran.list("rows").iter().all(|row| row["unmeasured"] == 0));
}

#[test]
fn a_shape_that_hangs_alone_too_fails_and_the_others_do_not() {
    // Without a limit of its own the tuner cannot save anything.
    let site = Site::new(Like::Old, &TEN[..3])
        .faults("hang@*:32x256x512")
        .args(&[
            "--limit",
            "silence=1s",
            "--limit",
            "batch=3s",
            "--limit",
            "task=1s",
        ]);
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(15), "{}", ran.stderr);
    assert_eq!(ran.sizes("failed"), [32]);
    assert_eq!(ran.sizes("rows"), [16, 48]);
    site.nothing_is_left();
}

#[test]
fn a_tuner_killed_while_it_writes_loses_at_most_the_batch() {
    let site = Site::new(Like::New, &TEN)
        .faults("kill@table:64x256x512")
        .args(&["--batch", "3"]);
    let ran = site.run(&[]);
    // Alone, 64 dies twice more.
    assert_eq!(ran.sizes("failed"), [64], "{}", ran.stderr);
    assert_eq!(ran.list("rows").len(), 9);
    insta::assert_snapshot!(ran.list("failed")[0]["reason"].as_str().unwrap(), @"the tuner died over it with exit code 137");
    assert_eq!(
        site.asked("02"),
        [160, 192, 224, 256],
        "finished batches are not repeated"
    );
}

#[test]
fn wrong_numbers_never_win() {
    let healthy = Site::new(Like::New, &TEN[..2]).run(&[]);
    let best = healthy.row(16)["row"]["kernelId"].clone();
    let site = Site::new(Like::New, &TEN[..2]).faults(&format!("nan@{best}:16x256x512"));
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_ne!(ran.row(16)["row"]["kernelId"], best);
    assert_eq!(ran.row(16)["row"]["errRatio"], 0.0);
    assert_eq!(ran.row(32)["row"], healthy.row(32)["row"]);
}

#[test]
fn one_device_groups_candidates_and_loses_a_shape_at_most() {
    let site = Site::new(Like::Old, &TEN[..2]).env("STANDIN_GPUS", "1");
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    insta::assert_snapshot!(line(&remarks(&ran), "does not clear outputs"), @"with one device this tuner groups candidates and does not clear outputs between them: a kernel that writes nothing may pass; the layout check after deployment is what finds it");
}

#[test]
fn kernels_are_compiled_for_one_shape_before_the_others_wait_for_them() {
    let site = Site::new(Like::Old, &TEN[..3])
        .env("STANDIN_BUILD", "2")
        .args(&["--limit", "silence=1s", "--limit", "task=1s"]);
    fs_err::remove_dir_all(site.folder.join("tree/aiter/jit")).unwrap();
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(ran.list("rows").len(), 3);
    assert_eq!(
        (site.asked("01"), site.asked("02")),
        (vec![16], vec![32, 48])
    );
    assert!(
        ran.stderr
            .contains("compiling module_gemm_a8w8_blockscale_tune")
    );
}

#[test]
fn a_tuner_that_cannot_start_is_refused_with_its_own_words() {
    let site = Site::new(Like::Old, &TEN[..2]).args(&[
        "--op",
        "gemm_a8w8_bpreshuffle",
        "--libtype",
        "both",
    ]);
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(15), "{}", ran.stderr);
    let text = ran.json.to_string();
    assert!(
        text.contains("exit code 2") && text.contains("libtype"),
        "{text}"
    );
    let site = Site::new(Like::Old, &TEN[..2]).args(&["--libtype", "opus"]);
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(11));
    insta::assert_snapshot!(plain(&ran.stderr, &site.folder), @"
    stand-in GPU (gfx942) x 2: 2 shapes
    error: failed to tune: use `--libtype`: `[folder]/tree/csrc/ck_gemm_a8w8_blockscale/gemm_a8w8_blockscale_tune.py` takes ck, cktile, asm, all, both, and `gemm_a8w8_blockscale` needs one of opus

    hint: look with --dry-run; `gemmtune doctor` says what the tree can do
    ");
}
