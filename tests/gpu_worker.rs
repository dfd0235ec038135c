//! The GPU worker's own tests: its request loop, plans, tree look-up and compile pool, on a fake device.
//!
//! They are written in Python beside the worker and need nothing but Python 3.9; torch, Triton and a
//! GPU are not touched. Where `python3` is missing the test says so and passes.

use std::process::Command;

#[test]
#[expect(clippy::print_stderr, reason = "a skipped test must say so")]
fn the_gpu_worker_passes_its_own_tests() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/python");
    let ran = Command::new("python3")
        .args(["-B", "-m", "unittest", "discover", "-t", ".", "-s", "tests"])
        .current_dir(folder)
        .output();
    let ran = match ran {
        Ok(ran) => ran,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: python3 is not installed, so the GPU worker was not tested");
            return;
        }
        Err(error) => panic!("python3 could not be started: {error}"),
    };
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    assert!(
        said.contains("Ran ") && !said.contains("Ran 0 tests"),
        "{said}"
    );
}
