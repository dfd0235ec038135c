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

/// A tuner that is executed: a tree, an operation, and the library whose candidates faults strike.
struct Case {
    revision: String,
    tree: Utf8PathBuf,
    op: &'static str,
    library: &'static str,
}

/// The operations, each with its library of the fewest candidates: 8 of CKTile, 8 of CKTile, 159 of CK.
const OPS: [(&str, &str); 3] = [
    ("gemm_a8w8_blockscale", "cktile"),
    ("gemm_a8w8_blockscale_bpreshuffle", "cktile"),
    ("gemm_a8w8_bpreshuffle", "ck"),
];

/// Both revisions, oldest first, with every operation; GEMMTUNE_AITER_ONLY and GEMMTUNE_AITER_OP name one.
fn executed() -> Vec<Case> {
    let only = |name: &str, value: &str| variable(name).is_none_or(|only| only == value);
    trees()
        .into_iter()
        .filter(|(revision, _)| ["303a583c", "HEAD"].contains(&revision.as_str()))
        .filter(|(revision, _)| only("GEMMTUNE_AITER_ONLY", revision))
        .flat_map(|(revision, tree)| {
            OPS.map(|(op, library)| Case {
                revision: revision.clone(),
                tree: tree.clone(),
                op,
                library,
            })
        })
        .filter(|case| only("GEMMTUNE_AITER_OP", case.op))
        .collect()
}

impl Case {
    /// `faults` as `kind@kernel:size`, of this case's library.
    fn site(&self, sizes: &[u32], faults: &str) -> Site {
        let faults: Vec<String> = faults
            .split(';')
            .filter_map(|fault| fault.split_once('@'))
            .map(|(kind, at)| format!("{kind}@{}:{at}", self.library))
            .collect();
        self.site_of(sizes, &faults.join(";"), self.library)
            // Splits would multiply the candidates that a fault strikes.
            .args(&["--split-k", "no"])
    }

    fn site_of(&self, sizes: &[u32], faults: &str, library: &str) -> Site {
        let python = variable("GEMMTUNE_AITER_PYTHON").expect("tests/aiter/run sets it");
        Site::real(&self.tree, &python, sizes)
            .env("CPU_FAULTS", faults)
            .args(&["--op", self.op, "--libtype", library])
            // The machine may be busy.
            .args(&["--limit", "task=45s", "--limit", "silence=60s"])
    }

    fn is_new(&self) -> bool {
        self.revision == "HEAD"
    }
}

#[expect(clippy::print_stderr, reason = "the record of what was run")]
fn told(case: &Case, what: &str, ran: &Ran, began: Instant) {
    eprintln!(
        "{} {}: {what}: exit {}, {} rows, {} failed, {} left out, {} starts, {:.0} s",
        case.revision,
        case.op,
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
    for case in executed() {
        let began = Instant::now();
        // All libraries there are: those that the stand-ins lack are lost, and named.
        let (sizes, library): (&[u32], _) = match case.op {
            "gemm_a8w8_blockscale" => (&[16, 32, 64], "both"),
            "gemm_a8w8_blockscale_bpreshuffle" => (&[16, 32], "all"),
            _ => (&[16], "all"),
        };
        let site = case.site_of(sizes, "", library).args(&["--split-k", "no"]);
        let ran = site.run(&[]);
        told(&case, "healthy workers", &ran, began);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert_eq!(ran.list("rows").len(), sizes.len());
        let told: Vec<(String, u64, u64)> = ran
            .list("libraries")
            .iter()
            .map(|one| {
                let number = |name: &str| one[name].as_u64().unwrap() / sizes.len() as u64;
                let name = one["library"].as_str().unwrap().to_owned();
                (name, number("candidates"), number("timed"))
            })
            .collect();
        let of = |name: &str, candidates, timed| (name.to_owned(), candidates, timed);
        // As many as on gfx942, at both revisions.
        let expected = match (case.op, case.is_new()) {
            ("gemm_a8w8_blockscale", _) => vec![of("ck", 19, 19), of("cktile", 8, 8)],
            ("gemm_a8w8_blockscale_bpreshuffle", false) => {
                vec![of("asm", 6, 0), of("ck", 18, 18), of("cktile", 8, 8)]
            }
            ("gemm_a8w8_blockscale_bpreshuffle", true) => vec![
                of("asm", 6, 0),
                of("ck", 18, 18),
                of("cktile", 8, 8),
                of("opus", 1, 0),
            ],
            _ => vec![of("ck", 159, 159), of("cktile", 265, 265)],
        };
        assert_eq!(told, expected, "{}", ran.stderr);
        let timed: u64 = expected.iter().map(|(.., timed)| timed).sum();
        let all: u64 = expected.iter().map(|(_, all, _)| all).sum();
        assert_eq!(ran.row(16)["timed"], timed, "{}", ran.stderr);
        assert_eq!(ran.row(16)["unmeasured"], all - timed, "{}", ran.stderr);
        assert_eq!(
            ran.stderr.contains("candidates of asm was measured"),
            all > timed
        );
        assert_eq!(ran.row(16)["row"]["errRatio"], 0.0, "the layout was undone");
        let columns = site.table().lines().next().unwrap().to_owned();
        let key = if case.is_new() {
            "gfx,cu_num"
        } else {
            "cu_num"
        };
        let dtype = if case.op == "gemm_a8w8_bpreshuffle" {
            ",q_dtype_w"
        } else {
            ""
        };
        assert_eq!(
            columns,
            format!("{key},M,N,K{dtype},libtype,kernelId,splitK,us,kernelName,tflops,bw,errRatio")
        );
        let preview = site.run(&["--dry-run"]);
        assert_eq!(preview.json["flags_from"], "help");
        assert_eq!(preview.list("remarks").len(), 0, "help and source agree");
    }
}

#[test]
#[ignore = "needs an aiter checkout: tests/aiter/run CHECKOUT"]
fn splits_of_k() {
    for case in executed() {
        let began = Instant::now();
        let site = case
            .site_of(&[16], "", case.library)
            .args(&["--split-k", "yes"]);
        let ran = site.run(&[]);
        told(&case, "splits of K", &ran, began);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        let one = if case.library == "ck" { 159 } else { 8 };
        let timed = ran.row(16)["timed"].as_u64().unwrap();
        // e4048607 searches none for the shuffled kernels of CK and CKTile.
        let none = case.is_new() && case.op == "gemm_a8w8_blockscale_bpreshuffle";
        assert_eq!(timed > one, !none, "{timed}: {}", ran.stderr);
        assert_eq!(ran.row(16)["unmeasured"], 0, "{}", ran.stderr);
    }
}

#[test]
#[ignore = "needs an aiter checkout: tests/aiter/run CHECKOUT"]
fn a_shape_no_kernel_can_do() {
    for case in executed() {
        let began = Instant::now();
        let ran = case
            .site(&[16, 32, 64], "unsupported@*:32x256x512")
            .run(&[]);
        told(&case, "a shape no kernel can do", &ran, began);
        assert_eq!(ran.code, Some(15), "{}", ran.stderr);
        assert_eq!(ran.sizes("failed"), [32]);
        assert_eq!(ran.sizes("rows"), [16, 64]);
        let reason = ran.list("failed")[0]["reason"].as_str().unwrap();
        assert!(reason.contains("not supported"), "{reason}");
    }
}

#[test]
#[ignore = "needs an aiter checkout: tests/aiter/run CHECKOUT"]
fn a_worker_that_dies() {
    for case in executed() {
        let began = Instant::now();
        let site = case.site(&[16, 32], "exit@3:16x256x512");
        let ran = site.run(&[]);
        told(&case, "a worker that dies", &ran, began);
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
    for case in executed() {
        let began = Instant::now();
        let site = case.site(&[16, 32], "hang@3:16x256x512");
        let ran = site.run(&[]);
        told(&case, "a kernel that hangs", &ran, began);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert_eq!(ran.list("rows").len(), 2);
        assert_eq!(ran.row(16)["unmeasured"], 1, "{}", ran.stderr);
        site.nothing_is_left();
    }
}

#[test]
#[ignore = "needs an aiter checkout: tests/aiter/run CHECKOUT"]
fn wrong_and_impossible_results() {
    for case in executed() {
        let began = Instant::now();
        let faults = "nan@2:16x256x512;wrong@1:16x256x512;us=0.0001@4:32x256x512";
        let ran = case.site(&[16, 32], faults).run(&[]);
        told(
            &case,
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
    for case in executed() {
        let began = Instant::now();
        let mut site = case.site(&[16, 32, 64], "").args(&["--batch", "1"]);
        let child = site.start();
        site.wait_for_rows(1);
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
        let ran = Ran::of(child.wait_with_output().unwrap());
        told(&case, "Ctrl-C in the second batch", &ran, began);
        assert_eq!(ran.code, Some(130), "{}", ran.stderr);
        site.nothing_is_left();
        let kept = ran.list("rows").len();
        site.without_fault();
        let ran = site.run(&[]);
        told(&case, "the same command again", &ran, began);
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
    for case in executed() {
        let began = Instant::now();
        // One worker hangs, as the one that outlives its tuner otherwise.
        let mut site = case
            .site(&[16, 32, 64], "hang@3:32x256x512")
            .args(&["--batch", "1"]);
        let mut child = site.start();
        site.wait_for_rows(1);
        std::thread::sleep(std::time::Duration::from_secs(10));
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL).unwrap();
        child.wait().unwrap();
        site.nothing_is_left();
        site.without_fault();
        let ran = site.run(&[]);
        told(
            &case,
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
    for case in executed() {
        let began = Instant::now();
        let site = case.site(&[16, 32, 64], "").args(&["--batch", "1"]);
        let child = site.start();
        site.wait_for_rows(1);
        site.kill_the_tuner();
        let ran = Ran::of(child.wait_with_output().unwrap());
        told(&case, "SIGKILL of the tuner", &ran, began);
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
