//! Ends that come from outside: the user, the budget, a kill.

use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Like, Ran, Site, TEN};

/// Eight candidates of 0.15 s on two devices: a batch of two shapes takes over a second.
fn slow() -> Site {
    Site::new(Like::New, &TEN[..6])
        .faults("sleep=0.15@*:*")
        .args(&["--batch", "2"])
}

fn signal(child: &std::process::Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

#[test]
fn an_interrupt_keeps_what_was_found_and_the_next_run_goes_on() {
    let mut site = slow();
    let child = site.start();
    site.wait_for_rows(2);
    let asked = Instant::now();
    signal(&child, Signal::SIGINT);
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(130), "{}", ran.stderr);
    assert!(asked.elapsed().as_secs() < 10);
    assert_eq!(ran.json["interrupted"], true);
    let kept = ran.list("rows").len();
    assert!((2..6).contains(&kept), "{kept}");
    assert_eq!(ran.list("not_reached").len(), 6 - kept);
    site.nothing_is_left();
    site.without_fault();
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(
        (ran.list("rows").len(), ran.list("resumed").len()),
        (6, kept)
    );
    assert_eq!(site.asked("02").len(), 6 - kept);
}

#[test]
fn a_killed_gemmtune_leaves_no_process_and_repeats_at_most_a_batch() {
    let mut site = slow();
    let mut child = site.start();
    site.wait_for_rows(2);
    signal(&child, Signal::SIGKILL);
    child.wait().unwrap();
    site.nothing_is_left();
    site.without_fault();
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(ran.list("rows").len(), 6);
    assert!(site.asked("02").len() <= 4, "{:?}", site.asked("02"));
}

#[test]
fn rows_that_landed_when_nobody_was_left_are_taken_over() {
    let site = Site::new(Like::New, &TEN[..4]);
    assert_eq!(site.run(&[]).code, Some(0));
    // What a kill between the tuner's write and ours leaves: the tuner's table, and no record of it.
    let results = site.folder.join("out/results.jsonl");
    let text = fs_err::read_to_string(&results).unwrap();
    let header = text.split_inclusive('\n').next().unwrap();
    crate::support::write(&results, header);
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(ran.list("resumed").len(), 4);
    assert!(!site.folder.join("out/attempts/02").exists());
}

#[test]
fn a_spent_budget_keeps_the_best_so_far() {
    // A batch takes four seconds and more: time for one on a busy machine, and never for three.
    let site = slow().faults("sleep=0.5@*:*").args(&["--budget", "10s"]);
    let began = Instant::now();
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(began.elapsed().as_secs() < 25);
    let kept = ran.list("rows").len();
    assert!(kept > 0 && kept < 6, "{kept} rows");
    assert_eq!(ran.list("not_reached").len(), 6 - kept);
    assert_eq!(site.table().lines().count(), kept + 1);
    site.nothing_is_left();
}

#[test]
fn the_tuner_killed_from_outside_is_started_anew() {
    let site = slow();
    let child = site.start();
    site.wait_for_rows(2);
    site.kill_the_tuner();
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(ran.list("rows").len(), 6);
    assert!(ran.json["attempts"].as_u64().unwrap() > 1);
    site.nothing_is_left();
}

#[test]
fn two_runs_never_share_a_folder_and_another_tree_is_refused() {
    let site = slow();
    let mut child = site.start();
    site.wait_for_rows(1);
    // Stopped, so that it cannot end before the second run begins.
    signal(&child, Signal::SIGSTOP);
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(17), "{}", ran.stderr);
    signal(&child, Signal::SIGCONT);
    signal(&child, Signal::SIGINT);
    child.wait().unwrap();
    let script = site
        .folder
        .join("tree/csrc/ck_gemm_a8w8_blockscale/gemm_a8w8_blockscale_tune.py");
    let text = fs_err::read_to_string(&script).unwrap();
    crate::support::write(&script, &(text + "\n# edited\n"));
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(17), "{}", ran.stderr);
    insta::assert_snapshot!(crate::said::plain(&ran.stderr, &site.folder), @"
    error: failed to tune: add to `[folder]/out/results.jsonl`: it was measured with kernels `[digest]`, now it is `[digest]`

    hint: give another folder than `out` with -o, or remove it
    ");
}
