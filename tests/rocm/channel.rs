//! Weights with one scale per output channel: their own operation, table, module and linear.

use serde_json::Value;

use crate::STAGES;
use crate::said::{line, plain, refusal, uncounted};
use crate::schema;
use crate::site::{Change, Site, count, document, stderr};

/// A model whose linears are all per-channel.
const CHANNEL: &str = "256,128,channel;128,256,channel";

const OP: &str = "gemm_a8w8_bpreshuffle";

fn site(weights: &str) -> Site {
    Site::new(&Change {
        weights: Some(weights),
        ..Change::default()
    })
}

/// Gives the workload a model whose config says that its weights have one scale per channel.
fn with_model(site: &Site) {
    let quantised = serde_json::json!({
        "architectures": ["Glm4MoeForCausalLM"],
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "config_groups": {
                "group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}},
            },
        },
    });
    Site::write(
        &site.folder.join("model/config.json"),
        &quantised.to_string(),
    );
    let config = site.folder.join("gemmtune.toml");
    let text = fs_err::read_to_string(&config).unwrap();
    let named = text.replace(
        "name = \"played\"\n",
        "name = \"played\"\nmodel = \"model\"\n",
    );
    fs_err::write(&config, named).unwrap();
}

#[test]
fn per_channel_weights_go_through_every_stage_with_the_operation_that_the_capture_saw() {
    let site = site(CHANNEL);
    // Compiled products of the baseline's own start are no trace of the run.
    let output = site.run(&["run", "--until", "baseline"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let before = site.trees();
    let output = site.run(&["run", "--json"]);
    // Two pairs support no verdict.
    assert_eq!(output.status.code(), Some(16), "{}", stderr(&output));
    let journal = site.journal();
    for stage in STAGES {
        assert_eq!(count(&journal, "stage_finished", stage), 1, "{stage}");
    }
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["parity"], true, "{printed}");
    assert_eq!(printed["hit_rate"], 1.0, "{printed}");

    // Nothing told before the server was seen.
    let run = site.latest();
    assert_eq!(
        document(&run.join("inspect.json"))["op"],
        "gemm_a8w8_blockscale"
    );
    let captured = document(&run.join("capture.json"));
    assert_eq!(captured["inspection"]["op"], OP, "{captured}");
    assert_eq!(captured["inspection"]["linear"], "apply_fp8_ptpc_linear");
    let dispatch = captured["dispatch"].to_string();
    assert!(
        dispatch.contains("apply_fp8_ptpc_linear (sglang.srt.layers.quantization.fp8_utils)"),
        "{dispatch}"
    );
    insta::assert_snapshot!(line(&stderr(&output), "the workload runs gemm_a8w8_bpreshuffle"), @"          the workload runs gemm_a8w8_bpreshuffle, not gemm_a8w8_blockscale as was expected: gemm_a8w8_bpreshuffle is tuned");

    // The tuner's rows and the table are keyed by the dtype of the weight.
    let shapes = fs_err::read_to_string(run.join("shapes.csv")).unwrap();
    assert!(
        shapes
            .lines()
            .skip(1)
            .all(|row| row.starts_with(OP) && row.contains("torch.float8_e4m3fnuz")),
        "{shapes}"
    );
    let deployed = document(&run.join("deploy.json"));
    let table = deployed["env"]["AITER_CONFIG_GEMM_A8W8_BPRESHUFFLE"]
        .as_str()
        .unwrap();
    assert!(table.contains("a8w8_bpreshuffle_tuned_gemm-"), "{table}");
    let others = ["AITER_CONFIG_GEMM_A8W8_BLOCKSCALE", "GEMMTUNE_SWITCH"];
    assert!(
        others.iter().all(|name| deployed["env"][name].is_null()),
        "{deployed}"
    );
    let rows = fs_err::read_to_string(table).unwrap();
    assert!(rows.lines().next().unwrap().contains("q_dtype_w"), "{rows}");
    for shipped in [
        "304,16,512,7168,torch.float8_e4m3fnuz",
        "80,16,256,128,torch.int8",
    ] {
        assert!(rows.contains(shipped), "{rows}");
    }

    // The baseline runs the module that the table is compiled into: the tuned arm has one of its own.
    let own = deployed["env"]["AITER_JIT_DIR"].as_str().unwrap();
    let built = fs_err::read_to_string(format!("{own}/module_gemm_a8w8_bpreshuffle.so")).unwrap();
    assert!(
        built.contains("a8w8_bpreshuffle_1x128x128_standin"),
        "{built}"
    );
    assert_eq!(site.trees(), before, "nothing of the trees moved");

    let verified = document(&run.join("verify.json"));
    let layout = verified["layout"].as_array().unwrap();
    assert!(layout.len() >= 8, "{layout:?}");
    for check in layout {
        let error = check["relative_error"].as_f64().unwrap();
        assert!((0.001..0.003).contains(&error), "{check}");
    }
    let engagement = &verified["engagement"];
    assert!(engagement["hit"].as_u64().unwrap() > 0, "{engagement}");
    assert_eq!(
        engagement["missed"].as_array().unwrap().len(),
        0,
        "{engagement}"
    );
    let times = verified["times"].as_array().unwrap();
    assert!(!times.is_empty(), "{verified}");

    // The same as a single step.
    let probed = site.run(&["probe", "--json"]);
    assert_eq!(probed.status.code(), Some(0), "{}", stderr(&probed));
    let probed: Value = serde_json::from_slice(&probed.stdout).unwrap();
    schema::check("probe", &probed);
    assert_eq!(probed["op"], OP);
    assert_eq!(probed["about"]["through"], "apply_fp8_ptpc_linear");

    assert_eq!(site.run(&["undo"]).status.code(), Some(0));
    assert_eq!(site.trees(), before);
    assert!(!std::path::Path::new(own).exists());
    site.assert_nothing_left();
}

#[test]
fn a_kernel_that_takes_tiled_weights_for_plain_ones_is_caught_at_verify() {
    let site = Site::new(&Change {
        weights: Some(CHANNEL),
        env: &[("STANDIN_MISREADS", "standin")],
        ..Change::default()
    });
    let output = site.run(&["run"]);
    assert_eq!(output.status.code(), Some(16), "{}", stderr(&output));
    let said = stderr(&output);
    // Uncorrelated numbers: the square root of two, give or take the sizes.
    let off = said
        .split_once("relative error ")
        .and_then(|(_, after)| after.split_once(" %")?.0.parse::<f64>().ok())
        .unwrap_or_else(|| panic!("{said}"));
    assert!(said.contains("layout check") && off > 100.0, "{said}");
    assert!(said.contains("undone"), "{said}");
    let journal = site.journal();
    assert_eq!(count(&journal, "stage_failed", "verify"), 1);
    assert_eq!(count(&journal, "stage_started", "compare"), 0);
}

#[test]
fn a_kernel_with_wrong_numbers_is_taken_back() {
    let site = Site::new(&Change {
        weights: Some(CHANNEL),
        env: &[("STANDIN_WRONG", "standin")],
        ..Change::default()
    });
    with_model(&site);
    let output = site.run(&["run"]);
    assert_eq!(output.status.code(), Some(16), "{}", stderr(&output));
    insta::assert_snapshot!(refusal(&output, &site.folder), @"
    error: layout check: [n] shapes are wrong, first M=[m] N=128 K=256 with ck (relative error 50.0 %); the deployment was undone

    hint: the server runs as before; `gemmtune status [folder]/runs/[time]-played` says what was found
    ");
    assert_eq!(count(&site.journal(), "stage_started", "compare"), 0);
    // The model's config told the operation before anything was served.
    let inspected = document(&site.latest().join("inspect.json"));
    assert_eq!(inspected["op"], OP, "{inspected}");
    let path = inspected["path"].as_str().unwrap();
    assert!(path.contains("apply_fp8_ptpc_linear"), "{path}");
}

/// Two weights with a scale per channel, one with block scales.
const BOTH: &str = "256,128,channel;256,256,channel;128,256";

const BLOCK: &str = "gemm_a8w8_blockscale";

#[test]
fn two_operations_of_one_server_are_tuned_deployed_verified_and_taken_back_in_one_run() {
    let site = site(BOTH);
    let output = site.run(&["run", "--until", "baseline"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let before = site.trees();
    let output = site.run(&["run", "--json"]);
    // Two pairs support no verdict.
    assert_eq!(output.status.code(), Some(16), "{}", stderr(&output));
    let journal = site.journal();
    for stage in STAGES {
        assert_eq!(count(&journal, "stage_finished", stage), 1, "{stage}");
    }
    insta::assert_snapshot!(uncounted(line(&stderr(&output), "this run tunes")), @"          the workload runs gemm_a8w8_bpreshuffle ([n] calls) and gemm_a8w8_blockscale ([n] calls): this run tunes gemm_a8w8_bpreshuffle and gemm_a8w8_blockscale");
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["hit_rate"], 1.0, "{printed}");

    // The one that is called more often comes first.
    let run = site.latest();
    let seen = &document(&run.join("capture.json"))["inspection"];
    assert_eq!(
        (&seen["op"], &seen["also"][0]["op"]),
        (&OP.into(), &BLOCK.into())
    );
    assert_eq!(seen["linear"], "apply_fp8_ptpc_linear");
    let of = |rows: &Value, op: &str| {
        let rows = rows.as_array().unwrap().iter();
        rows.filter(|row| row["op"] == op || row["shape"]["op"] == op)
            .count()
    };
    let plan = document(&run.join("plan.json"));
    let tune = document(&run.join("tune.json"));
    for op in [OP, BLOCK] {
        assert!(of(&plan["tune"], op) > 0, "{plan}");
        assert_eq!(of(&tune["rows"], op), of(&plan["tune"], op), "{tune}");
    }
    assert!(run.join("tune").join(BLOCK).is_dir());

    // Each has a table of its own under its own variable, and one folder of modules serves both.
    let deployed = document(&run.join("deploy.json"));
    let table = |name: &str| deployed["env"][name].as_str().unwrap().to_owned();
    let (channel, block) = (
        table("AITER_CONFIG_GEMM_A8W8_BPRESHUFFLE"),
        table("AITER_CONFIG_GEMM_A8W8_BLOCKSCALE"),
    );
    assert_eq!(
        (&deployed["op"], &deployed["table"]),
        (&OP.into(), &channel.clone().into())
    );
    assert_eq!(
        (&deployed["also"][0]["op"], &deployed["also"][0]["table"]),
        (&BLOCK.into(), &block.clone().into())
    );
    assert!(!deployed["env"]["GEMMTUNE_SWITCH"].is_null(), "{deployed}");
    let own = table("AITER_JIT_DIR");
    for module in [
        "module_gemm_a8w8_bpreshuffle",
        "module_gemm_a8w8_blockscale",
    ] {
        let built = fs_err::read_to_string(format!("{own}/{module}.so")).unwrap();
        assert!(built.contains("standin"), "{module}: {built}");
    }
    assert_eq!(site.trees(), before, "nothing of the trees moved");

    // Kernels of both were tried, and each table served.
    let verified = document(&run.join("verify.json"));
    let sizes = |n: u64| {
        let layout = verified["layout"].as_array().unwrap().iter();
        layout.filter(|check| check["n"] == n).count()
    };
    assert!(sizes(256) > 0 && sizes(128) > 0, "{verified}");
    let engagement = &verified["engagement"];
    assert_eq!(engagement["missed"], serde_json::json!([]), "{engagement}");
    for op in [OP, BLOCK] {
        let asked = &engagement["operations"][op];
        assert!(asked["hit"].as_u64().unwrap() > 0, "{engagement}");
        assert_eq!(asked["missed"], 0, "{engagement}");
    }

    let report = document(&run.join("report.json"));
    schema::check("report", &report);
    let operations = report["operations"].as_array().unwrap();
    let shares: f64 = operations
        .iter()
        .map(|one| one["share"].as_f64().unwrap())
        .sum();
    assert!((shares - 1.0).abs() < 1e-9, "{operations:?}");
    assert!(operations.iter().all(|one| one["hits"] == one["looked_up"]));
    let text = fs_err::read_to_string(run.join("report.md")).unwrap();
    assert!(
        text.contains("## Operations") && text.contains("| gemm\\_a8w8\\_blockscale | "),
        "{text}"
    );

    // As a single step each is tried, in a process of its own through a linear of its own.
    let probed = site.run(&["probe", "--json"]);
    assert_eq!(probed.status.code(), Some(0), "{}", stderr(&probed));
    let printed: Value = serde_json::from_slice(&probed.stdout).unwrap();
    schema::check("probe", &printed);
    let tried = |found: &Value, op: &str, table: &str, linear: &str, n: u64| {
        assert_eq!((&found["op"], &found["table"]), (&op.into(), &table.into()));
        assert_eq!(found["about"]["through"], linear, "{found}");
        let checks = found["checks"].as_array().unwrap();
        assert!(
            !checks.is_empty()
                && checks
                    .iter()
                    .all(|check| check["N"] == n && check["passes"] == true),
            "{found}"
        );
        assert_eq!(
            found["times"].as_array().unwrap().len(),
            of(&tune["rows"], op),
            "{found}"
        );
    };
    tried(&printed, OP, &channel, "apply_fp8_ptpc_linear", 256);
    let also = &printed["also"][0];
    tried(also, BLOCK, &block, "aiter_w8a8_block_fp8_linear", 128);
    let said = site.run(&["probe", "--no-times"]);
    let said = stderr(&said);
    for table in [format!("{OP}, {channel}"), format!("{BLOCK}, {block}")] {
        assert!(said.contains(&table), "{said}");
    }

    // Both tables are judged as they are by a run that tunes nothing.
    let theirs = site.folder.join("theirs");
    fs_err::create_dir_all(&theirs).unwrap();
    for table in [&channel, &block] {
        let table = camino::Utf8Path::new(table);
        fs_err::copy(table, theirs.join(table.file_name().unwrap())).unwrap();
    }

    let output = site.run(&["undo"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(site.trees(), before);
    for gone in [&channel, &block, &own] {
        assert!(!std::path::Path::new(gone).exists(), "{gone}");
    }
    site.assert_nothing_left();

    let arguments = ["run", "--new", "--until", "verify", "--table"];
    let output = site.run(&[arguments.as_slice(), &[theirs.as_str()]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let taken = site.latest();
    assert_ne!(taken, run);
    let tune = document(&taken.join("tune.json"));
    assert_eq!(tune["taken_from"], theirs.as_str());
    assert_eq!(tune["rows"], serde_json::json!([]));
    let verified = document(&taken.join("verify.json"));
    for op in [OP, BLOCK] {
        let asked = &verified["engagement"]["operations"][op];
        assert!(asked["hit"].as_u64().unwrap() > 0, "{verified}");
        assert_eq!(asked["missed"], 0, "{verified}");
    }
    let output = site.run(&["undo"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(site.trees(), before);
}

#[test]
fn of_two_operations_the_configuration_has_the_last_word() {
    let site = site(BOTH);
    site.set_backend("op = \"gemm_a8w8_blockscale\"");
    let output = site.run(&["run", "--until", "plan"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    insta::assert_snapshot!(uncounted(line(&stderr(&output), "this run tunes")), @"          the workload runs gemm_a8w8_blockscale ([n] calls) and gemm_a8w8_bpreshuffle ([n] calls): this run tunes gemm_a8w8_blockscale; without `backend.op` all that can be tuned are");
    let plan = document(&site.latest().join("plan.json"));
    let rows = plan["tune"].as_array().unwrap();
    assert!(
        !rows.is_empty() && rows.iter().all(|row| row["op"] == BLOCK),
        "{plan}"
    );
}

#[test]
fn of_two_operations_one_that_this_aiter_cannot_tune_is_left_and_said() {
    let site = site(BOTH);
    let tuner = site.folder.join("aiter/csrc/ck_gemm_a8w8_bpreshuffle");
    fs_err::remove_dir_all(&tuner).unwrap();
    let output = site.run(&["run", "--until", "plan"]);
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{told}");
    let said = ["is left as it is: ", "this run tunes"].map(|part| line(&told, part));
    insta::assert_snapshot!(uncounted(&plain(&said.join("\n"), &site.folder)), @"
    gemm_a8w8_bpreshuffle is left as it is: failed to find a tuner for gemm_a8w8_bpreshuffle: `[folder]/aiter` has none of `csrc/ck_gemm_a8w8_bpreshuffle/gemm_a8w8_bpreshuffle_tune.py` that can do it
    the workload runs gemm_a8w8_blockscale ([n] calls) and gemm_a8w8_bpreshuffle ([n] calls): this run tunes gemm_a8w8_blockscale
    ");
    let plan = document(&site.latest().join("plan.json"));
    assert_eq!(plan["ops"], serde_json::json!([BLOCK]), "{plan}");
}

#[test]
fn an_operation_that_cannot_be_finished_is_refused_before_a_server_is_started() {
    let refused = |site: &Site, code: i32| {
        let output = site.run(&["run"]);
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert_eq!(count(&site.journal(), "stage_started", "baseline"), 0);
        refusal(&output, &site.folder)
    };
    // No linear calls it; SGLang never does.
    let other = site(CHANNEL);
    other.set_backend("op = \"gemm_a8w8\"");
    insta::assert_snapshot!(refused(&other, 2), @"
    error: `backend.op` asks for gemm_a8w8: no linear of SGLang 0.5.6 to 0.5.23 calls gemm_a8w8, so a tuned table of it would serve nothing

    hint: leave `backend.op` out, and the operation that runs is tuned

    hint: a table for other uses is made by `gemmtune tune --backend aiter`, which has an `--op`

    hint: change the configuration, then `gemmtune run --new`
    ");
    // Block-scaled weights run another one on this device.
    let other = site(CHANNEL);
    other.set_backend("op = \"gemm_a8w8_blockscale_bpreshuffle\"");
    insta::assert_snapshot!(refused(&other, 2), @"
    error: `backend.op` asks for gemm_a8w8_blockscale_bpreshuffle: block-scaled weights run gemm_a8w8_blockscale on this machine, and gemm_a8w8_blockscale_bpreshuffle is never called

    hint: leave `backend.op` out, and the operation that runs is tuned

    hint: a table for other uses is made by `gemmtune tune --backend aiter`, which has an `--op`

    hint: change the configuration, then `gemmtune run --new`
    ");
    // An aiter without a tuner for it, told by the model's config alone.
    let other = site(CHANNEL);
    with_model(&other);
    let tuner = other.folder.join("aiter/csrc/ck_gemm_a8w8_bpreshuffle");
    fs_err::remove_dir_all(&tuner).unwrap();
    insta::assert_snapshot!(refused(&other, 10), @"
    error: failed to find a tuner for gemm_a8w8_bpreshuffle: `[folder]/aiter` has none of `csrc/ck_gemm_a8w8_bpreshuffle/gemm_a8w8_bpreshuffle_tune.py` that can do it

    hint: nothing was measured yet, so the configuration may be changed too: then `gemmtune run` again
    ");
}

#[test]
fn an_operation_that_the_workload_never_calls_is_named_after_the_capture() {
    let site = site("256,128;128,256");
    site.set_backend("op = \"gemm_a8w8_bpreshuffle\"");
    let output = site.run(&["run"]);
    assert_eq!(output.status.code(), Some(14), "{}", stderr(&output));
    insta::assert_snapshot!(refusal(&output, &site.folder), @"
    error: the workload never called gemm_a8w8_bpreshuffle, which the configuration asks for, but gemm_a8w8_blockscale ([n] calls)

    hint: leave `backend.op` out, and what runs is tuned

    hint: fix that, then resume with `gemmtune run [folder]/runs/[time]-played`
    ");
    assert_eq!(count(&site.journal(), "stage_started", "plan"), 0);
}
