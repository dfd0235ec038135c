//! `tune --compile-only`, with a stand-in for the interpreter; the real compiler is asked in `python/tests` and by hand.

mod schema;

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};

use camino::Utf8PathBuf;
use schema::check;
use serde_json::Value;

/// Answers each job: one tile too large, one that spills, the rest fine.
const STAND_IN: &str = r#"#!/usr/bin/env python3
import json, sys
arguments = sys.argv[2:]
assert arguments[0] == "offline", arguments
target = arguments[arguments.index("--target") + 1]
print(json.dumps({"target": target, "kernel": "k.py", "kernel_hash": "sha256:0", "versions": {"triton": "3.6.0"}, "shared_limit": 65536}))
for line in open(arguments[arguments.index("--jobs") + 1]):
    job = json.loads(line)
    tile = job["candidate"]["BLOCK_SIZE_M"], job["candidate"]["BLOCK_SIZE_N"]
    if tile == (256, 256):
        answer = {"refused": "out_of_resources", "detail": "shared memory 66560 > 65536", "shared": 66560}
    else:
        answer = {"shared": 1536, "registers": 256, "spilled": 77 if tile == (256, 128) else 0}
    print(json.dumps({**job, **answer, "seconds": 1.0}))
"#;

struct Place {
    _keep: tempfile::TempDir,
    folder: Utf8PathBuf,
}

impl Place {
    fn new(stand_in: &str) -> Self {
        let keep = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::try_from(keep.path().to_owned()).unwrap();
        fs_err::write(
            folder.join("s.csv"),
            "M,N,K\n4096,4096,4096\n4096,6144,4096\n",
        )
        .unwrap();
        fs_err::write(folder.join("py"), stand_in).unwrap();
        let runs = std::fs::Permissions::from_mode(0o755);
        fs_err::set_permissions(folder.join("py"), runs).unwrap();
        Self {
            _keep: keep,
            folder,
        }
    }

    fn tune(&self, more: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_gemmtune"))
            .args([
                "--json", "tune", "--shapes", "s.csv", "-o", "out", "--python", "./py",
            ])
            .args(more)
            .current_dir(&self.folder)
            .output()
            .unwrap()
    }
}

#[test]
fn what_does_not_fit_and_what_spills_is_known_without_a_gpu() {
    let place = Place::new(STAND_IN);
    let output = place.tune(&[
        "--backend",
        "sglang-triton",
        "--compile-only",
        "--for",
        "gfx942",
    ]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    check("tune-compile-only", &document);
    let count = |name: &str| document[name].as_u64().unwrap();
    let refused = document["refused"]["out_of_resources"].as_u64().unwrap();
    assert!(refused > 0 && count("spilling") > 0 && count("fit") > 0);
    assert_eq!(
        count("programs"),
        count("fit") + count("spilling") + refused
    );
    // Both shapes run the same programs.
    let lines = fs_err::read_to_string(place.folder.join("out/compiled-gfx942.jsonl")).unwrap();
    assert_eq!(lines.lines().count() as u64, 1 + count("programs"));
    let head: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(head["kernel_hash"], "sha256:0");
    let first: Value = serde_json::from_str(lines.lines().nth(1).unwrap()).unwrap();
    assert_eq!(first["shape"]["dtype"], "torch.float8_e4m3fnuz");
}

#[test]
fn aiters_rows_and_both_gemms_of_a_fused_moe_are_compiled_too() {
    let place = Place::new(STAND_IN);
    let run = |more: &[&str]| {
        let output = place.tune(&[more, &["--compile-only", "--for", "gfx950"]].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        check("tune-compile-only", &document);
        fs_err::read_to_string(place.folder.join("out/compiled-gfx950.jsonl")).unwrap()
    };
    let aiter = run(&["--backend", "aiter-triton", "--aiter-root", "/opt/aiter"]);
    assert!(aiter.contains(r#""op": "gemm_a8w8_blockscale""#) && aiter.contains("NUM_KSPLIT"));
    // Bare columns say no dtype, and a kernel is compiled for one.
    assert!(
        aiter.contains(r#""dtype": "torch.float8_e4m3fn""#) && !aiter.contains(r#""dtype": """#)
    );
    fs_err::write(
        place.folder.join("s.csv"),
        "op,M,N,K,dtype,records,E,topk,scales\nfused_moe_triton,4096,768,2048,fp8_w8a8,1,128,8,128x128\n",
    )
    .unwrap();
    let moe = run(&["--backend", "sglang-moe"]);
    assert!(moe.contains(r#""part": "up""#) && moe.contains(r#""part": "down""#));
}

#[test]
fn an_interpreter_without_triton_is_named_with_what_it_said() {
    let place = Place::new("#!/bin/sh\necho \"No module named 'triton'\" >&2\nexit 1\n");
    let output = place.tune(&[
        "--backend",
        "sglang-triton",
        "--compile-only",
        "--for",
        "gfx950",
    ]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    insta::assert_snapshot!(said.replace(place.folder.as_str(), "[folder]"), @"
    error: failed to compile the candidates: compile with `./py`: exit code 1
    No module named 'triton'


    hint: `--python` names an interpreter that imports Triton; SGLang's kernel is taken from its packages, aiter's from `--aiter-root`
    ");
}

#[test]
fn only_candidates_of_the_triton_kernel_are_compiled() {
    let place = Place::new(STAND_IN);
    let output = place.tune(&[
        "--backend",
        "sglang-families",
        "--compile-only",
        "--for",
        "gfx942",
    ]);
    insta::assert_snapshot!(String::from_utf8_lossy(&output.stderr), @"
    error: compile for another GPU: only the candidates of sglang-triton, sglang-moe and aiter-triton can be

    hint: `gemmtune help tune` describes the arguments
    ");
}
