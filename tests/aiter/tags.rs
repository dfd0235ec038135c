//! What every release of aiter can do, told from its files alone, against a table that was checked by hand.

use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use gemmtune::problem::Op;
use gemmtune::table::kernels::Library;
use gemmtune::tree::coupling::{self, Coupling};
use gemmtune::tree::doctor::caps::Capabilities;
use gemmtune::workload::env::variable;

/// Files that capabilities are read from.
const READ: [&str; 9] = [
    "setup.py",
    "csrc/ck_gemm_a8w8_blockscale/gemm_a8w8_blockscale_tune.py",
    "aiter/jit/core.py",
    "aiter/jit/utils/file_baton.py",
    "aiter/ops/gemm_op_a4w4.py",
    "aiter/ops/gemm_op_a8w8.py",
    "aiter/ops/gemm_op_common.py",
    "aiter/utility/base_tuner.py",
    "aiter/utility/mp_tuner.py",
];

fn table() -> Utf8PathBuf {
    Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/aiter-releases/capabilities.tsv")
}

fn git(repository: &str, arguments: &[&str]) -> Option<Vec<u8>> {
    let output = Command::new("git")
        .args(["-C", repository])
        .args(arguments)
        .output()
        .unwrap();
    output.status.success().then_some(output.stdout)
}

/// The capabilities of `revision`, and its operations of which every module is asked for a kernel by name.
fn told(repository: &str, revision: &str) -> String {
    let keep = tempfile::tempdir().unwrap();
    let root = Utf8Path::from_path(keep.path()).unwrap();
    for file in READ {
        if let Some(bytes) = git(repository, &["show", &format!("{revision}:{file}")]) {
            fs_err::create_dir_all(root.join(file).parent().unwrap()).unwrap();
            fs_err::write(root.join(file), bytes).unwrap();
        }
    }
    let found = Capabilities::read(&root.join("aiter"));
    let named: Vec<&str> = coupling::tabled()
        .map(|(op, _)| op)
        .filter(|op| found.coupling(*op, Library::Ck) == Coupling::ByName)
        .map(|op| {
            let tiles = found.coupling(op, Library::CkTile) == Coupling::ByName;
            assert_eq!(tiles, op != Op::A4w4, "{revision}: {op}");
            op.name()
        })
        .collect();
    format!(
        "{revision}\t{}\t{}",
        found.present.join(" "),
        named.join(" ")
    )
}

#[test]
#[ignore = "GEMMTUNE_AITER_GIT names a clone of aiter with its tags"]
fn every_release_can_do_what_its_files_say_and_nothing_more() {
    let repository = variable("GEMMTUNE_AITER_GIT").expect("GEMMTUNE_AITER_GIT names a clone");
    let listed = fs_err::read_to_string(table()).unwrap();
    let mut checked = 0;
    for line in listed.lines().skip(1) {
        let revision = line.split('\t').next().unwrap();
        assert_eq!(told(&repository, revision), line);
        checked += 1;
    }
    let tags = git(&repository, &["tag", "--list", "v0.1.*"]).unwrap();
    let tags = String::from_utf8(tags).unwrap();
    for tag in tags.lines() {
        let old = ["v0.1.1", "v0.1.2", "v0.1.3", "v0.1.4", "v0.1.5", "v0.1.6"]
            .iter()
            .any(|old| tag == *old || tag.starts_with(&format!("{old}.")));
        let known = listed
            .lines()
            .any(|line| line.split('\t').next() == Some(tag));
        assert!(known || old, "{}", told(&repository, tag));
    }
    assert!(checked > 40, "{checked}");
}
