//! `gemmtune run` on an AMD site that is played: a reduced SGLang tree, an aiter with look-ups and modules of its own, a
//! torch in Python floats, aiter's tuner as a stand-in. No GPU, no package; `docs/rocm.md` says what that shows.

#[path = "../ports/mod.rs"]
mod ports;
#[path = "../schema/mod.rs"]
#[allow(dead_code, reason = "each test file includes it and uses its part")]
mod schema;
#[path = "../trees/mod.rs"]
mod trees;

mod channel;
mod experts;
mod real;
#[path = "../said/mod.rs"]
mod said;
mod several;
mod site;
mod today;

use said::{line, plain, refusal, uncounted};
use serde_json::Value;
use site::{Change, Site, count, document, stderr};

const STAGES: [&str; 9] = [
    "inspect", "baseline", "capture", "plan", "tune", "deploy", "verify", "compare", "report",
];

#[test]
fn a_run_tunes_deploys_verifies_and_compares_and_undo_leaves_no_trace() {
    let site = Site::new(&Change::default());
    let before = site.trees();
    let output = site.run(&["run", "--json"]);
    // Two pairs support no verdict, so the exit code says "not better"; everything before it passed.
    assert_eq!(output.status.code(), Some(16), "{}", stderr(&output));
    let journal = site.journal();
    for stage in STAGES {
        assert_eq!(count(&journal, "stage_finished", stage), 1, "{stage}");
    }
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["pairs"], 2);
    assert_eq!(printed["parity"], true);
    assert_eq!(printed["hit_rate"], 1.0, "{printed}");

    let run = site.latest();
    let inspected = document(&run.join("inspect.json"));
    assert_eq!(inspected["op"], "gemm_a8w8_blockscale");
    assert!(
        inspected["path"].as_str().unwrap().contains("triton"),
        "{inspected}"
    );
    let verified = document(&run.join("verify.json"));
    let layout = verified["layout"].as_array().unwrap();
    assert!(layout.len() >= 8, "{layout:?}");
    for check in layout {
        let error = check["relative_error"].as_f64().unwrap();
        assert!((0.001..0.003).contains(&error), "{check}");
    }
    let tuned = |check: &&Value| check["kernel"].as_str().unwrap().contains("standin");
    assert!(layout.iter().filter(tuned).count() > 0, "{layout:?}");
    assert!(
        verified["engagement"]["missed"]
            .as_array()
            .unwrap()
            .is_empty(),
        "{verified}"
    );
    assert!(
        verified["engagement"]["unplanned"]
            .as_array()
            .unwrap()
            .is_empty(),
        "{verified}"
    );
    assert!(!verified["times"].as_array().unwrap().is_empty());

    // One variable, one file that holds what served before and what was tuned, each key once.
    let deployed = document(&run.join("deploy.json"));
    let table = deployed["env"]["AITER_CONFIG_GEMM_A8W8_BLOCKSCALE"]
        .as_str()
        .unwrap();
    assert!(table.starts_with('/') && !table.contains(':'), "{table}");
    assert!(table.contains("a8w8_blockscale_tuned_gemm-"), "{table}");
    let rows = fs_err::read_to_string(table).unwrap();
    let keys: std::collections::BTreeSet<String> = rows
        .lines()
        .skip(1)
        .map(|row| row.split(',').take(4).collect::<Vec<_>>().join(","))
        .collect();
    assert_eq!(keys.len(), rows.lines().count() - 1, "{rows}");
    for shipped in ["256,16,256,128", "256,32,256,128", "304,4096,512,7168"] {
        assert!(keys.contains(shipped), "{rows}");
    }

    let output = site.run(&["undo"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(site.trees(), before);
    assert!(!std::path::Path::new(table).exists());
    let again = stderr(&site.run(&["undo"]));
    insta::assert_snapshot!(plain(&again, &site.folder), @"nothing is deployed by this run");
    site.assert_nothing_left();
}

#[test]
fn a_table_whose_kernel_computes_wrong_numbers_is_taken_back() {
    let site = Site::new(&Change {
        env: &[("STANDIN_WRONG", "standin")],
        ..Change::default()
    });
    let before = site.trees();
    let output = site.run(&["run"]);
    assert_eq!(output.status.code(), Some(16), "{}", stderr(&output));
    insta::assert_snapshot!(refusal(&output, &site.folder), @"
    error: layout check: [n] shapes are wrong, first M=[m] N=128 K=256 with a8w8_blockscale_1x128x128_standin_[id] (relative error 49.9 %); the deployment was undone

    hint: the server runs as before; `gemmtune status [folder]/runs/[time]-played` says what was found
    ");
    assert_eq!(site.trees(), before);
    let journal = site.journal();
    assert_eq!(count(&journal, "stage_failed", "verify"), 1);
    assert!(journal.iter().any(|event| event["kind"] == "undone"));
    assert_eq!(count(&journal, "stage_started", "compare"), 0);
    assert!(stderr(&site.run(&["undo"])).contains("nothing is deployed"));
}

#[test]
fn compiled_modules_and_a_dead_builders_lock_go_aside_and_come_back() {
    let site = Site::new(&Change::default());
    let lock = site.aiter("jit/build/lock_module_gemm_a8w8_blockscale");
    Site::write(&lock, "");
    Site::age(&lock, 7200);
    let before = site.trees();
    let output = site.run(&["run", "--until", "deploy"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let built = site.aiter("jit/module_gemm_a8w8_blockscale.so");
    assert!(!built.exists(), "it holds another table's kernels");
    assert!(!lock.exists(), "the next builder would wait for ever");
    assert_ne!(site.trees(), before);
    // A verify stage builds, and what it built goes too.
    let output = site.run(&["run", "--until", "verify"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(fs_err::read_to_string(&built).unwrap().contains("standin"));
    // The same as a single step, for the run and for a table.
    let probed = site.run(&["probe", "--json"]);
    assert_eq!(probed.status.code(), Some(0), "{}", stderr(&probed));
    let probed: Value = serde_json::from_slice(&probed.stdout).unwrap();
    schema::check("probe", &probed);
    assert_eq!(probed["about"]["through"], "aiter_w8a8_block_fp8_linear");
    assert!(
        probed["checks"]
            .as_array()
            .unwrap()
            .iter()
            .all(|check| check["passes"] == true)
    );
    let table = site.latest().join("table.csv");
    let path = site.python_path();
    let mut arguments = vec![
        "probe",
        "--json",
        "--table",
        table.as_str(),
        "--python",
        "python3",
        "--cu-num",
        "304",
    ];
    arguments.extend(["--env", &path, "--env", "SGLANG_USE_AITER=1", "--no-times"]);
    let probed = site.run(&[arguments.as_slice(), &["--shapes", "shapes.csv"]].concat());
    assert_eq!(probed.status.code(), Some(0), "{}", stderr(&probed));
    // Triton serves without a switch: the tuned kernel is not what runs, and that is said.
    let probed: Value = serde_json::from_slice(&probed.stdout).unwrap();
    let kernel = probed["checks"][0]["kernel"].as_str().unwrap();
    assert!(kernel.contains("Triton"), "{kernel}");
    site.run(&["undo"]);
    assert_eq!(site.trees(), before);
}

#[test]
fn the_kernels_that_ran_are_the_tables_by_their_names_and_times_on_the_device() {
    let site = Site::new(&Change::default());
    let output = site.run(&["run", "--until", "verify"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let verified = document(&site.latest().join("verify.json"));
    assert_eq!(verified["ran"]["kind"], "tuned", "{verified}");
    for time in verified["times"].as_array().unwrap() {
        assert_eq!(time["clock"], "device", "{time}");
        let (us, tuned) = (time["us"].as_f64().unwrap(), &time["tuned_us"]);
        assert!((us / tuned.as_f64().unwrap() - 1.0).abs() < 0.01, "{time}");
        assert!(
            time["kernel"].as_str().unwrap().contains("standin"),
            "{time}"
        );
    }
    // What the process loaded, by its bytes.
    let module = &verified["modules"][0];
    assert_eq!(module["name"], "module_gemm_a8w8_blockscale", "{verified}");
    assert_eq!(module["by_name"], false, "{module}");
    let built = site.aiter("jit/module_gemm_a8w8_blockscale.so");
    assert_eq!(module["path"], built.as_str());
    let digest = gemmtune::store::digest::short(&fs_err::read(&built).unwrap());
    assert_eq!(module["digest"], digest.as_str());
}

#[test]
fn a_module_that_answers_with_another_kernel_fails_verify_although_the_log_says_tuned() {
    let site = Site::new(&Change {
        // Even that kernel is faster than Triton, so its row is deployed.
        env: &[
            ("STANDIN_ANSWERS", "default_16x128x256"),
            ("PLAYED_TRITON", "200"),
        ],
        ..Change::default()
    });
    let before = site.trees();
    let output = site.run(&["run"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(16), "{said}");
    insta::assert_snapshot!(refusal(&output, &site.folder), @"
    error: another kernel than the tuned one runs: default_16x128x256 ran for rows of [n] kernels, first a8w8_blockscale_1x128x128_standin_[id] for gemm_a8w8_blockscale M=[m] N=128 K=256: 60.0 us instead of [time]; the deployment was undone

    hint: `gemmtune probe` times it again; where the device runs at another clock now, tune again

    hint: the server runs as before; `gemmtune status [folder]/runs/[time]-played` says what was found
    ");
    assert_eq!(site.trees(), before);
    assert_eq!(count(&site.journal(), "stage_started", "compare"), 0);
}

#[test]
fn a_module_that_keeps_its_kernels_by_name_is_rebuilt_only_when_it_lacks_one() {
    let site = Site::new(&Change::default());
    site.play_newer_aiter();
    let output = site.run(&["run", "--until", "verify"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let said = plain(
        line(&stderr(&output), "module_gemm_a8w8_blockscale lacks"),
        &site.folder,
    );
    insta::assert_snapshot!(uncounted(&said), @"          module_gemm_a8w8_blockscale lacks 2 of the table's kernels, first a8w8_blockscale_1x128x128_standin_[id]: it is built again");
    let built = fs_err::read(site.aiter("jit/module_gemm_a8w8_blockscale.so")).unwrap();
    let tiles = fs_err::read(site.aiter("jit/module_gemm_a8w8_blockscale_cktile.so"));
    site.run(&["undo"]);
    // With modules that hold every kernel of the table there is nothing to rebuild.
    Site::write_bytes(&site.aiter("jit/module_gemm_a8w8_blockscale.so"), &built);
    if let Ok(tiles) = tiles {
        Site::write_bytes(
            &site.aiter("jit/module_gemm_a8w8_blockscale_cktile.so"),
            &tiles,
        );
    }
    let before = site.trees();
    let output = site.run(&["run", "--new", "--until", "deploy"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(site.trees(), before);
}

#[test]
fn tables_that_the_user_joins_are_merged_and_never_written() {
    let site = Site::new(&Change::default());
    // The same key twice: aiter itself would rewrite both files and stop.
    let header = "cu_num,M,N,K,libtype,kernelId,splitK,us,kernelName,tflops,bw,errRatio\n";
    let (one, two) = (site.folder.join("one.csv"), site.folder.join("two.csv"));
    Site::write(
        &one,
        &format!("{header}304,512,256,128,ck,3,0,9.5,a8w8_blockscale_slow,3.5,32.0,0.0\n"),
    );
    Site::write(
        &two,
        &format!("{header}304,512,256,128,ck,4,0,7.5,a8w8_blockscale_fast,4.5,40.0,0.0\n"),
    );
    let bytes = |path: &camino::Utf8Path| fs_err::read(path).unwrap();
    let before = (bytes(&one), bytes(&two));
    site.set("AITER_CONFIG_GEMM_A8W8_BLOCKSCALE", &format!("{one}:{two}"));
    let output = site.run(&["run", "--until", "deploy"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!((bytes(&one), bytes(&two)), before);
    let table = fs_err::read_to_string(site.latest().join("table.csv")).unwrap();
    assert!(table.contains("a8w8_blockscale_fast") && !table.contains("a8w8_blockscale_slow"));
    assert!(
        !table.contains("4096,512,7168"),
        "the variable replaces the shipped tables"
    );
}

#[test]
fn a_baseline_that_runs_the_same_module_is_left_with_its_own() {
    // With its variable 0.5.22 calls CK today, and at 303a583c the table is compiled into the module: rebuilding it would
    // tune the baseline.
    let site = Site::new(&Change {
        era: Some("e7"),
        env: &[("SGLANG_AITER_GFX942_BLOCKSCALE_USE_CK", "1")],
        ..Change::default()
    });
    let output = site.run(&["run", "--until", "baseline"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let before = site.trees();
    let output = site.run(&["run"]);
    assert_eq!(output.status.code(), Some(16), "{}", stderr(&output));
    assert_eq!(site.trees(), before, "nothing of the trees moved");
    let run = site.latest();
    let deployed = document(&run.join("deploy.json"));
    assert!(
        deployed["env"]["GEMMTUNE_SWITCH"].is_null(),
        "nothing to switch: {deployed}"
    );
    let own = deployed["env"]["AITER_JIT_DIR"].as_str().unwrap();
    let built = fs_err::read_to_string(format!("{own}/module_gemm_a8w8_blockscale.so")).unwrap();
    assert!(built.contains("standin"), "{built}");
    let verified = document(&run.join("verify.json"));
    assert!(
        verified["engagement"]["hit"].as_u64().unwrap() > 0,
        "{verified}"
    );
    assert_eq!(site.run(&["undo"]).status.code(), Some(0));
    assert_eq!(site.trees(), before);
}

#[test]
fn shuffled_weights_have_an_operation_and_a_table_of_their_own() {
    // gfx950 with ROCm 7.2: weights are laid out when they are loaded, and the baseline runs the tuned operation already.
    let site = Site::new(&Change {
        era: Some("e6"),
        gfx950: true,
        ..Change::default()
    });
    let output = site.run(&["run", "--until", "baseline"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let before = site.trees();
    let output = site.run(&["run", "--until", "verify"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let run = site.latest();
    let deployed = document(&run.join("deploy.json"));
    let table = deployed["env"]["AITER_CONFIG_GEMM_A8W8_BLOCKSCALE_BPRESHUFFLE"].as_str();
    assert!(
        table
            .unwrap()
            .contains("a8w8_blockscale_bpreshuffle_tuned_gemm-"),
        "{deployed}"
    );
    assert!(deployed["env"]["AITER_CONFIG_GEMM_A8W8_BLOCKSCALE"].is_null());
    let verified = document(&run.join("verify.json"));
    let kernels: Vec<&str> = verified["layout"]
        .as_array()
        .unwrap()
        .iter()
        .map(|check| check["kernel"].as_str().unwrap())
        .collect();
    assert!(
        kernels.iter().any(|kernel| kernel.contains("standin")),
        "{kernels:?}"
    );
    assert!(
        !kernels.iter().any(|kernel| kernel.contains("Triton")),
        "{kernels:?}"
    );
    assert!(
        verified["engagement"]["hit"].as_u64().unwrap() > 0,
        "{verified}"
    );
    assert_eq!(site.run(&["undo"]).status.code(), Some(0));
    assert_eq!(site.trees(), before);
}

#[test]
#[ignore = "GEMMTUNE_AITER names checkouts of aiter, joined by colons"]
fn deploying_on_the_tables_of_real_aiter_trees_loses_no_row_and_is_undone_to_the_byte() {
    let checkouts = site::asked("GEMMTUNE_AITER").expect("GEMMTUNE_AITER names checkouts");
    for checkout in checkouts.split(':') {
        let site = Site::new(&Change {
            aiter: Some(checkout.into()),
            ..Change::default()
        });
        let before = site.trees();
        let output = site.run(&["run", "--until", "deploy"]);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{checkout}: {}",
            stderr(&output)
        );
        let table = fs_err::read_to_string(site.latest().join("table.csv")).unwrap();
        let columns: Vec<&str> = table.lines().next().unwrap().split(',').collect();
        let key = |columns: &[&str], row: &str| {
            let cells: Vec<&str> = row.split(',').collect();
            let cell = |name: &str| {
                let at = columns.iter().position(|column| *column == name);
                at.map_or(String::new(), |at| cells[at].trim().to_owned())
            };
            ["gfx", "cu_num", "M", "N", "K"].map(cell)
        };
        let mut deployed = std::collections::BTreeSet::new();
        for row in table.lines().skip(1) {
            assert!(
                deployed.insert(key(&columns, row)),
                "{checkout}: twice: {row}"
            );
        }
        let configs = site.aiter("configs");
        let mut shipped = 0;
        for entry in walk(&configs) {
            let name = entry.file_name().unwrap();
            if !name.contains("a8w8_blockscale_tuned_gemm") || entry.extension() != Some("csv") {
                continue;
            }
            let text = fs_err::read_to_string(&entry).unwrap();
            let columns: Vec<&str> = text.lines().next().unwrap().trim().split(',').collect();
            for row in text.lines().skip(1).filter(|row| !row.trim().is_empty()) {
                assert!(
                    deployed.contains(&key(&columns, row)),
                    "{checkout}: {entry}: {row}"
                );
                shipped += 1;
            }
        }
        assert!(shipped > 1000, "{checkout}: {shipped} shipped rows");
        assert!(deployed.len() > shipped, "{checkout}: nothing of ours");
        assert_eq!(site.run(&["undo"]).status.code(), Some(0));
        assert_eq!(site.trees(), before, "{checkout}");
    }
}

/// Every file below a folder.
fn walk(folder: &camino::Utf8Path) -> Vec<camino::Utf8PathBuf> {
    let mut files = Vec::new();
    for entry in folder.read_dir_utf8().unwrap() {
        let path = entry.unwrap().into_path();
        if path.is_dir() {
            files.extend(walk(&path));
        } else {
            files.push(path);
        }
    }
    files
}

#[test]
fn the_examples_are_configurations_that_are_accepted() {
    for name in ["sglang-mi300x", "sglang-mi355x"] {
        let path = format!(
            "{}/examples/{name}/gemmtune.toml",
            env!("CARGO_MANIFEST_DIR")
        );
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_gemmtune"))
            .args(["run", "--dry-run", "--json", &path])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{name}: {}", stderr(&output));
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(plan["server_starts"].as_u64().unwrap() >= 12, "{plan}");
    }
}

#[test]
fn a_site_that_cannot_be_tuned_is_refused_before_anything_is_started() {
    let site = Site::new(&Change::default());
    site.set("SGLANG_USE_AITER", "yes");
    let output = site.run(&["run"]);
    assert_eq!(output.status.code(), Some(10), "{}", stderr(&output));
    insta::assert_snapshot!(refusal(&output, &site.folder), @r#"
    error: SGLANG_USE_AITER=yes turns aiter on in one half of SGLang and not in the other

    hint: set `env = { SGLANG_USE_AITER = "1" }` under `[server]`

    hint: nothing was measured yet, so the configuration may be changed too: then `gemmtune run` again
    "#);

    let site = Site::new(&Change::default());
    let tuner = site.aiter("utility/mp_tuner.py");
    let text = fs_err::read_to_string(&tuner).unwrap();
    Site::write(&tuner, &text.replace("pool_restart_needed", ""));
    let output = site.run(&["run"]);
    assert_eq!(output.status.code(), Some(10), "{}", stderr(&output));
    insta::assert_snapshot!(refusal(&output, &site.folder), @"
    error: the aiter in [folder]/aiter/aiter is too old to be tuned; it lacks pool-restart (the pool restarts after a fault)

    hint: `gemmtune doctor --fix` realigns the checkout (see `--dry-run` first)

    hint: nothing was measured yet, so the configuration may be changed too: then `gemmtune run` again
    ");
    assert_eq!(count(&site.journal(), "stage_started", "baseline"), 0);
}
