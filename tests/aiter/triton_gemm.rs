//! aiter's Triton GEMM out of real trees, without a GPU: see `triton_gemm.py`, which does the work.

use std::process::Command;

use gemmtune::workload::env::variable;
use serde_json::Value;

use crate::real::trees;

#[test]
#[ignore = "needs an aiter checkout: tests/aiter/run CHECKOUT"]
#[expect(clippy::print_stdout, reason = "what was shown is wanted in the log")]
fn rows_of_real_trees_are_planned_compiled_and_served_as_aiter_does() {
    let python = variable("GEMMTUNE_AITER_PYTHON").expect("tests/aiter/run sets it");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/aiter/triton_gemm.py");
    for (revision, tree) in trees() {
        let ran = Command::new(&python)
            .args([script, tree.as_str()])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ran.stdout);
        let errors = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "{revision}: {said}\n{errors}");
        println!("{revision}\n{said}");
        let rows = said.lines().find_map(|line| line.strip_prefix("plans "));
        let rows: Value = serde_json::from_str(rows.unwrap()).unwrap();
        let bound = if revision == "HEAD" { 1 } else { 4 };
        assert_eq!(rows["bounds"], bound, "{revision}");
        assert!(rows["rows"].as_u64().unwrap() >= 39, "{revision}");
    }
}
