//! The real tuner of real trees, driven to a table on a CPU with the stand-ins of `tests/aiter/cpu`.
//!
//! `tests/aiter/run CHECKOUT` prepares the trees and an interpreter. What each run shows is printed in a line.

use std::collections::BTreeMap;
use std::time::Instant;

use camino::Utf8PathBuf;
use gemmtune::workload::env::variable;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Ran, Site};

/// The trees under test, by revision.
pub(crate) fn trees() -> BTreeMap<String, Utf8PathBuf> {
    let folder = Utf8PathBuf::from(
        variable("GEMMTUNE_AITER_TREES").expect("tests/aiter/run sets GEMMTUNE_AITER_TREES"),
    );
    ["v0.1.9", "v0.1.13", "303a583c", "HEAD"]
        .into_iter()
        .map(|revision| (revision.to_owned(), folder.join(revision)))
        .collect()
}

/// Both revisions whose tuner is executed, oldest first.
fn executed() -> Vec<(String, Utf8PathBuf)> {
    let only = variable("GEMMTUNE_AITER_ONLY");
    trees()
        .into_iter()
        .filter(|(revision, _)| match &only {
            Some(only) => revision == only,
            None => ["303a583c", "HEAD"].contains(&revision.as_str()),
        })
        .collect()
}

fn site(tree: &camino::Utf8Path, sizes: &[u32], faults: &str) -> Site {
    site_of(tree, sizes, faults, "cktile")
}

fn site_of(tree: &camino::Utf8Path, sizes: &[u32], faults: &str, library: &str) -> Site {
    let python = variable("GEMMTUNE_AITER_PYTHON").expect("tests/aiter/run sets it");
    Site::real(tree, &python, sizes)
        .env("CPU_FAULTS", faults)
        // Splits would multiply the candidates that a fault strikes, and the machine may be busy.
        .args(&["--libtype", library, "--split-k", "no"])
        .args(&["--limit", "task=45s", "--limit", "silence=60s"])
}

#[expect(clippy::print_stderr, reason = "the record of what was run")]
fn told(revision: &str, what: &str, ran: &Ran, began: Instant) {
    eprintln!(
        "{revision}: {what}: exit {}, {} rows, {} failed, {} left out, {} starts, {:.0} s",
        ran.code.unwrap_or(-1),
        ran.list("rows").len(),
        ran.list("failed").len(),
        ran.list("not_reached").len(),
        ran.json["attempts"],
        began.elapsed().as_secs_f64()
    );
}

#[test]
#[ignore = "needs an aiter checkout: tests/aiter/run CHECKOUT"]
fn healthy_workers() {
    for (revision, tree) in executed() {
        let began = Instant::now();
        let site = site_of(&tree, &[16, 32, 64], "", "both");
        let ran = site.run(&[]);
        told(&revision, "healthy workers", &ran, began);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert_eq!(ran.list("rows").len(), 3);
        // 19 of CK and 8 of CKTile on gfx942, at both revisions.
        assert_eq!(ran.row(16)["timed"], 27, "{}", ran.stderr);
        let columns = site.table().lines().next().unwrap().to_owned();
        let key = if revision == "HEAD" {
            "gfx,cu_num"
        } else {
            "cu_num"
        };
        assert_eq!(
            columns,
            format!("{key},M,N,K,libtype,kernelId,splitK,us,kernelName,tflops,bw,errRatio")
        );
        let preview = site.run(&["--dry-run"]);
        assert_eq!(preview.json["flags_from"], "help");
        assert_eq!(preview.list("remarks").len(), 0, "help and source agree");
    }
}

#[test]
#[ignore = "needs an aiter checkout: tests/aiter/run CHECKOUT"]
fn a_shape_no_kernel_can_do() {
    for (revision, tree) in executed() {
        let began = Instant::now();
        let ran = site(&tree, &[16, 32, 64, 128], "unsupported@*:*:32x256x512").run(&[]);
        told(&revision, "a shape no kernel can do", &ran, began);
        assert_eq!(ran.code, Some(15), "{}", ran.stderr);
        assert_eq!(ran.sizes("failed"), [32]);
        assert_eq!(ran.sizes("rows"), [16, 64, 128]);
        let reason = ran.list("failed")[0]["reason"].as_str().unwrap();
        assert!(reason.contains("not supported"), "{reason}");
    }
}

#[test]
#[ignore = "needs an aiter checkout: tests/aiter/run CHECKOUT"]
fn a_worker_that_dies() {
    for (revision, tree) in executed() {
        let began = Instant::now();
        let site = site(&tree, &[16, 32], "exit@cktile:3:16x256x512");
        let ran = site.run(&[]);
        told(&revision, "a worker that dies", &ran, began);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert_eq!(ran.list("rows").len(), 2);
        assert_eq!(ran.row(16)["unmeasured"], 1, "{}", ran.stderr);
        assert_ne!(ran.row(16)["row"]["kernelId"], 3);
        site.nothing_is_left();
    }
}

#[test]
#[ignore = "needs an aiter checkout: tests/aiter/run CHECKOUT"]
fn a_kernel_that_hangs() {
    for (revision, tree) in executed() {
        let began = Instant::now();
        let site = site(&tree, &[16, 32], "hang@cktile:3:16x256x512");
        let ran = site.run(&[]);
        told(&revision, "a kernel that hangs", &ran, began);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert_eq!(ran.list("rows").len(), 2);
        assert_eq!(ran.row(16)["unmeasured"], 1, "{}", ran.stderr);
        site.nothing_is_left();
    }
}

#[test]
#[ignore = "needs an aiter checkout: tests/aiter/run CHECKOUT"]
fn wrong_and_impossible_results() {
    for (revision, tree) in executed() {
        let began = Instant::now();
        let faults =
            "nan@cktile:2:16x256x512;wrong@cktile:1:16x256x512;us=0.0001@cktile:4:32x256x512";
        let ran = site(&tree, &[16, 32], faults).run(&[]);
        told(
            &revision,
            "NaN, wrong numbers and a time no device reaches",
            &ran,
            began,
        );
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        let kernel = |size| ran.row(size)["row"]["kernelId"].as_u64().unwrap();
        assert!(![1, 2].contains(&kernel(16)));
        assert_ne!(kernel(32), 4);
        assert_eq!(ran.sizes("refused"), [32]);
    }
}

#[test]
#[ignore = "needs an aiter checkout: tests/aiter/run CHECKOUT"]
fn an_interrupt() {
    for (revision, tree) in executed() {
        let began = Instant::now();
        let mut site = site(&tree, &[16, 32, 64], "").args(&["--batch", "1"]);
        let child = site.start();
        site.wait_for_rows(1);
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
        let ran = Ran::of(child.wait_with_output().unwrap());
        told(&revision, "Ctrl-C in the second batch", &ran, began);
        assert_eq!(ran.code, Some(130), "{}", ran.stderr);
        site.nothing_is_left();
        let kept = ran.list("rows").len();
        site.without_fault();
        let ran = site.run(&[]);
        told(&revision, "the same command again", &ran, began);
        assert_eq!(
            (ran.code, ran.list("rows").len()),
            (Some(0), 3),
            "{}",
            ran.stderr
        );
        assert_eq!(ran.list("resumed").len(), kept);
    }
}

#[test]
#[ignore = "needs an aiter checkout: tests/aiter/run CHECKOUT"]
fn a_kill_of_gemmtune() {
    for (revision, tree) in executed() {
        let began = Instant::now();
        // One worker hangs, as the one that outlives its tuner otherwise.
        let mut site =
            site(&tree, &[16, 32, 64], "hang@cktile:3:32x256x512").args(&["--batch", "1"]);
        let mut child = site.start();
        site.wait_for_rows(1);
        std::thread::sleep(std::time::Duration::from_secs(10));
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL).unwrap();
        child.wait().unwrap();
        site.nothing_is_left();
        site.without_fault();
        let ran = site.run(&[]);
        told(
            &revision,
            "SIGKILL of gemmtune, and the command again",
            &ran,
            began,
        );
        assert_eq!(
            (ran.code, ran.list("rows").len()),
            (Some(0), 3),
            "{}",
            ran.stderr
        );
        assert_eq!(site.asked("02"), [32, 64]);
    }
}

#[test]
#[ignore = "needs an aiter checkout: tests/aiter/run CHECKOUT"]
fn a_kill_of_the_tuner() {
    for (revision, tree) in executed() {
        let began = Instant::now();
        let site = site(&tree, &[16, 32, 64], "").args(&["--batch", "1"]);
        let child = site.start();
        site.wait_for_rows(1);
        site.kill_the_tuner();
        let ran = Ran::of(child.wait_with_output().unwrap());
        told(&revision, "SIGKILL of the tuner", &ran, began);
        assert_eq!(
            (ran.code, ran.list("rows").len()),
            (Some(0), 3),
            "{}",
            ran.stderr
        );
        assert!(ran.json["attempts"].as_u64().unwrap() > 1);
        site.nothing_is_left();
    }
}
