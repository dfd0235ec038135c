//! The loop with a model with experts, against the stand-in for an SGLang server: its look-up, the overlay, capture, race,
//! tables, check and engagement are the real ones; GEMMs and the GPU worker are played.

use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};

use super::said::{line, plain, refusal, uncounted};
use super::sglang_triton::Scene;
use super::support::{count, document, stderr};

const NAME: &str = "E=8,N=128,device_name=NVIDIA_Stand-in,dtype=fp8_w8a8,block_shape=[128, 128]";

/// A scene whose model has eight experts a layer and whose dense GEMMs run `dense`; `kind` is what is tuned.
fn scene(pairs: u32, dense: &str, kind: &str) -> Scene {
    let scene = Scene::new(pairs, &["--backend", dense, "--experts", "8"]);
    let model = scene.folder.join("model/config.json");
    let sizes = fs_err::read_to_string(&model).unwrap();
    let with_experts = sizes
        .replace("Qwen3ForCausalLM", "Qwen3MoeForCausalLM")
        .replace("\"qwen3\"", "\"qwen3_moe\"")
        .replace(
            "\"vocab_size\"",
            "\"moe_intermediate_size\": 128, \"num_experts\": 8, \"num_experts_per_tok\": 2, \"vocab_size\"",
        );
    fs_err::write(&model, with_experts).unwrap();
    if kind != "sglang-triton" {
        scene.change(|config| {
            config.replace("kind = \"sglang-triton\"", &format!("kind = {kind:?}"))
        });
    }
    scene
}

/// The tables that SGLang ships for the stand-in, with the row of `row(M)` at each M.
fn ships(scene: &Scene, row: impl Fn(u32) -> Value) -> Utf8PathBuf {
    let folder = scene.folder.join("shipped");
    let configs = folder.join("configs/triton_3_6_0");
    fs_err::create_dir_all(&configs).unwrap();
    let rows: serde_json::Map<String, Value> = [1, 2, 4, 8, 16, 32, 64, 96, 128, 256]
        .into_iter()
        .map(|m: u32| (m.to_string(), row(m)))
        .collect();
    fs_err::write(
        configs.join(format!("{NAME}.json")),
        Value::Object(rows).to_string(),
    )
    .unwrap();
    folder
}

fn row(block_m: u32) -> Value {
    json!({"BLOCK_SIZE_M": block_m, "BLOCK_SIZE_N": 128, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1, "num_warps": 4, "num_stages": 3})
}

/// Has the server started by a script that does `first` where the tuned arm is served.
fn in_the_tuned_server(scene: &Scene, first: &str) {
    let script = format!("[ -z \"$GEMMTUNE_MOE_TABLES\" ] || {first}\nexec \"$@\"\n");
    fs_err::write(scene.folder.join("launch"), script).unwrap();
    let command = format!("command = [\"bash\", \"{}/launch\", ", scene.folder);
    scene.change(|config| config.replace("command = [", &command));
}

fn events(run: &Utf8Path) -> Vec<Value> {
    let journal = fs_err::read_to_string(run.join("journal.jsonl")).unwrap();
    let event = |line: &str| serde_json::from_str::<Value>(line).unwrap()["event"].clone();
    journal.lines().map(event).collect()
}

/// The run stopped at verify with `said`, and what was deployed is gone.
/// What a run said that was stopped before it compared.
fn stopped(scene: &Scene, output: &Output) -> String {
    assert_eq!(output.status.code(), Some(16), "{}", stderr(output));
    let run = scene.latest();
    let events = events(&run);
    assert_eq!(count(&events, "stage_started", "compare"), 0);
    assert!(events.iter().any(|event| event["kind"] == "undone"));
    let deploy = document(&run.join("deploy.json"));
    let tables = deploy["fused_moe"]["table"].as_str().unwrap();
    assert!(!Utf8Path::new(tables).exists());
    refusal(output, &scene.folder)
}

#[test]
fn the_fused_moe_alone_is_tuned_proved_compared_and_taken_back() {
    let scene = scene(6, "deepgemm", "sglang-moe");
    let output = scene.run(&["run", "--json"], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let run = scene.latest();

    // The dense GEMMs are left as they are, so they are no part of the bound.
    let profile = document(&run.join("profile.json"));
    let decode = &profile["loads"][0]["ranks"][0]["phases"][0];
    let bounds = decode["bound"]["operations"].as_array().unwrap();
    assert_eq!(bounds.len(), 1, "{decode}");
    assert_eq!(bounds[0]["operation"], "fused_moe");
    let ran: Vec<&Value> = decode["operations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| &part["operation"])
        .collect();
    assert!(ran.contains(&&json!("dense_fp8")), "{decode}");
    let says = profile["loads"][0]["says"].as_str().unwrap();
    assert!(
        says.contains("fused MoE") && !says.contains("dense"),
        "{says}"
    );

    // Decode runs from graphs: 24 steps a request and more are replays, and only replays bring the count there.
    let capture = document(&run.join("capture.json"));
    let seen = &capture["fused_moe"][0];
    assert_eq!(
        (&seen["E"], &seen["N"], &seen["K"]),
        (&json!(8), &json!(128), &json!(256))
    );
    assert_eq!(seen["per_forward"], 2, "{capture}");
    assert!(
        seen["calls"]["1"].as_u64().unwrap() >= 2 * 3 * 23,
        "{capture}"
    );
    insta::assert_snapshot!(seen["today"].as_str().unwrap(), @"the default configuration, for there is no table `E=8,N=128,device_name=NVIDIA_Stand-in,dtype=fp8_w8a8,block_shape=[128, 128].json`");
    let shapes = fs_err::read_to_string(run.join("shapes.csv")).unwrap();
    assert!(
        shapes.contains("fused_moe_triton,1,128,256,fp8_w8a8,"),
        "{shapes}"
    );

    // The prefill chunk and sizes between are raced too, after what was seen.
    let plan = document(&run.join("plan.json"));
    let planned: Vec<u64> = plan["fused_moe"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["M"].as_u64().unwrap())
        .collect();
    assert!(
        [1, 2, 4, 8, 16, 64, 256]
            .iter()
            .all(|m| planned.contains(m)),
        "{planned:?}"
    );

    let tune = document(&run.join("tune.json"));
    assert_eq!(tune["rows"], json!([]), "dense GEMMs are left alone");
    let deploy = document(&run.join("deploy.json"));
    assert_eq!(deploy["dense"], false);
    let tables = Utf8Path::new(deploy["env"]["GEMMTUNE_MOE_TABLES"].as_str().unwrap());
    let up = document(&tables.join(format!("{NAME}.json")));
    assert_eq!(up["1"]["BLOCK_SIZE_M"], 16, "{up}");

    let verify = document(&run.join("verify.json"));
    let moe = &verify["fused_moe"];
    assert!(moe["checks"].as_array().unwrap().len() >= 7, "{verify}");
    assert_eq!(moe["engagement"]["missed"], json!([]));
    assert_eq!(moe["engagement"]["other_kernel"], json!([]));
    assert!(moe["engagement"]["hit"].as_u64().unwrap() >= 5, "{verify}");

    let compare = document(&run.join("compare.json"));
    assert_eq!(compare["verdict"], "better", "{compare}");
    for load in compare["loads"].as_array().unwrap() {
        let predicted = load["predicted"].as_f64().unwrap();
        let measured = load["comparison"]["ratio"]["median"].as_f64().unwrap();
        // Decode steps of the stand-in last five times its kernels, so the kernels alone foresee less.
        assert!(predicted > 1.0 && predicted < measured, "{load}");
    }
    let report = document(&run.join("report.json"));
    let rows = report["fused_moe"][0]["rows"].as_array().unwrap();
    let first = rows.iter().find(|row| row["m"] == 1).unwrap();
    assert!(
        first["before"]["us"].as_f64() > first["after"]["us"].as_f64(),
        "{first}"
    );
    let page = fs_err::read_to_string(run.join("report.html")).unwrap();
    assert!(page.contains("Fused MoE before and after"));
    let summary = fs_err::read_to_string(run.join("report.md")).unwrap();
    assert!(
        summary.contains("## Fused MoE E=8 N=128 K=256 topk=2"),
        "{summary}"
    );

    assert!(scene.run(&["undo"], &[]).status.success());
    assert!(!tables.exists());
}

#[test]
fn dense_gemms_and_the_fused_moe_are_tuned_in_one_run() {
    let scene = scene(1, "triton", "sglang-triton");
    let output = scene.run(&["run", "--until", "verify"], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let run = scene.latest();
    let deploy = document(&run.join("deploy.json"));
    for variable in ["GEMMTUNE_TRITON_TABLES", "GEMMTUNE_MOE_TABLES"] {
        let folder = deploy["env"][variable].as_str().unwrap();
        assert!(fs_err::read_dir(folder).unwrap().count() >= 2, "{deploy}");
    }
    let verify = document(&run.join("verify.json"));
    assert!(
        verify["engagement"]["hit"].as_u64().unwrap() >= 4,
        "{verify}"
    );
    assert!(
        verify["fused_moe"]["engagement"]["hit"].as_u64().unwrap() >= 5,
        "{verify}"
    );
    assert!(scene.run(&["undo"], &[]).status.success());
    for variable in ["GEMMTUNE_TRITON_TABLES", "GEMMTUNE_MOE_TABLES"] {
        assert!(!Utf8Path::new(deploy["env"][variable].as_str().unwrap()).exists());
    }
}

#[test]
fn a_part_that_wins_nothing_is_left_as_it_is_and_said() {
    let scene = scene(1, "triton", "sglang-triton");
    let shipped = ships(&scene, |m| row(if m <= 64 { 16 } else { 64 }));
    let output = scene.run(
        &["run", "--until", "verify"],
        &[("SGLANG_MOE_CONFIG_DIR", shipped.as_str())],
    );
    assert!(output.status.success(), "{}", stderr(&output));
    insta::assert_snapshot!(uncounted(line(&stderr(&output), "fused MoE is left as it is")), @"          fused MoE is left as it is: no row was found that is faster than what serves any of [n] sizes of fused MoE today");
    let deploy = document(&scene.latest().join("deploy.json"));
    assert!(
        deploy["env"].get("GEMMTUNE_MOE_TABLES").is_none(),
        "{deploy}"
    );
    assert!(
        deploy["env"].get("GEMMTUNE_TRITON_TABLES").is_some(),
        "{deploy}"
    );
    let verify = document(&scene.latest().join("verify.json"));
    assert!(verify.get("fused_moe").is_none(), "{verify}");
}

#[test]
fn a_run_that_is_killed_while_its_tables_are_verified_goes_on() {
    let scene = scene(1, "deepgemm", "sglang-moe");
    let mut command = scene.command(&["run", "--until", "verify"]);
    let mut running = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let until = Instant::now() + Duration::from_secs(240);
    loop {
        let journal = scene.folder.join("runs/latest/journal.jsonl");
        let text = fs_err::read_to_string(&journal).unwrap_or_default();
        if text.contains("\"stage\":\"verify\"") {
            break;
        }
        assert!(Instant::now() < until, "{text}");
        std::thread::sleep(Duration::from_millis(20));
    }
    running.kill().unwrap();
    running.wait().unwrap();
    let deployed = document(&scene.latest().join("deploy.json"));
    let output = scene.run(&["run", "--until", "verify"], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let events = events(&scene.latest());
    assert_eq!(count(&events, "stage_started", "verify"), 2);
    assert_eq!(count(&events, "stage_started", "tune"), 1);
    assert_eq!(document(&scene.latest().join("deploy.json")), deployed);
}

#[test]
fn a_fused_moe_that_is_to_be_left_is_left() {
    let scene = scene(1, "triton", "sglang-triton");
    scene.change(|config| config.replace("[backend]\n", "[backend]\nfused_moe = \"leave\"\n"));
    let output = scene.run(&["run", "--until", "deploy"], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let deploy = document(&scene.latest().join("deploy.json"));
    assert!(
        deploy["env"].get("GEMMTUNE_MOE_TABLES").is_none(),
        "{deploy}"
    );
    assert!(
        document(&scene.latest().join("plan.json"))
            .get("fused_moe")
            .is_none()
    );
}

#[test]
fn a_shipped_table_that_nothing_beats_leaves_the_server_as_it_is() {
    let scene = scene(6, "deepgemm", "sglang-moe");
    // What is right here (`standin/cost.py`): tiles of 16 rows up to 64 tokens of two experts, of 64 above.
    let shipped = ships(&scene, |m| row(if m <= 64 { 16 } else { 64 }));
    let output = scene.run(&["run"], &[("SGLANG_MOE_CONFIG_DIR", shipped.as_str())]);
    assert!(output.status.success(), "{}", stderr(&output));
    let run = scene.latest();
    let tune = document(&run.join("tune.json"));
    let rows = tune["fused_moe"]["rows"].as_array().unwrap();
    assert!(
        !rows.is_empty() && rows.iter().all(|row| row["incumbent_kept"] == true),
        "{tune}"
    );
    let report = fs_err::read_to_string(run.join("report.md")).unwrap();
    let said = ["Nothing to gain", "served today by the table"].map(|part| line(&report, part));
    insta::assert_snapshot!(uncounted(&plain(&said.join("\n"), &scene.folder)), @r"
    **Nothing to gain: no row was found that is faster than what serves any of [n] sizes of fused MoE today.**
    - fused MoE E=8 N=128 is served today by the table \`E=8,N=128,device\_name=NVIDIA\_Stand-in,dtype=fp8\_w8a8,block\_shape=\[128, 128].json\`, its rows for the down projection too
    ");
    assert!(!run.join("deploy.json").exists());
}

#[test]
fn a_size_that_the_workload_does_not_run_is_no_reason_to_compare() {
    let scene = scene(6, "deepgemm", "sglang-moe");
    // Wrong above 64 tokens, where no load of the scene comes.
    let shipped = ships(&scene, |_| row(16));
    let output = scene.run(&["run"], &[("SGLANG_MOE_CONFIG_DIR", shipped.as_str())]);
    assert!(output.status.success(), "{}", stderr(&output));
    let run = scene.latest();
    let report = fs_err::read_to_string(run.join("report.md")).unwrap();
    let said = plain(
        line(&report, "of those that the workload runs"),
        &scene.folder,
    );
    insta::assert_snapshot!(uncounted(&said), @"**Nothing to gain: no row was found that is faster than what serves any of [n] sizes of fused MoE today of those that the workload runs; 3 other sizes are, and their rows are in [folder]/runs/[time]-stand-in/tune/fused-moe/configs.**");
    assert!(!run.join("deploy.json").exists());
}

#[test]
fn rows_of_the_shipped_table_are_carried_along() {
    let scene = scene(1, "deepgemm", "sglang-moe");
    // Right for many tokens only.
    let shipped = ships(&scene, |_| row(64));
    let output = scene.run(
        &["run", "--until", "verify"],
        &[("SGLANG_MOE_CONFIG_DIR", shipped.as_str())],
    );
    assert!(output.status.success(), "{}", stderr(&output));
    let deploy = document(&scene.latest().join("deploy.json"));
    let tables = Utf8Path::new(deploy["fused_moe"]["table"].as_str().unwrap());
    let (up, down) = (
        document(&tables.join(format!("{NAME}.json"))),
        document(&tables.join(format!("{NAME}_down.json"))),
    );
    assert_eq!(
        up["256"],
        row(64),
        "what was not beaten is what served before: {up}"
    );
    assert_eq!(down["256"], row(64), "the up row served both");
    assert_eq!(up["1"]["BLOCK_SIZE_M"], 16);
}

#[test]
fn wrong_numbers_are_stopped_before_a_server_starts_with_them() {
    let scene = scene(6, "deepgemm", "sglang-moe");
    let output = scene.run(&["run"], &[("STANDIN_WRONG", "fused-moe")]);
    insta::assert_snapshot!(stopped(&scene, &output), @"
    error: check of fused MoE: [n] sizes are wrong, first fused_moe_triton E=8 N=128 K=256 topk=2 M=[m] with [row] (relative error 41.0 %); the deployment was undone

    hint: the server runs as before; `gemmtune status [folder]/runs/[time]-stand-in` says what was found
    ");
    let trials = fs_err::read_dir(scene.latest().join("trials")).unwrap();
    assert_eq!(trials.count(), 2, "baseline and capture");
}

#[test]
fn a_tuned_server_without_its_tables_is_not_compared() {
    let said = [
        "unset GEMMTUNE_MOE_TABLES",
        "export GEMMTUNE_MOE_TABLES=/nowhere",
        "PYTHONPATH=${PYTHONPATH#*:}",
    ]
    .map(|first| {
        let scene = scene(6, "deepgemm", "sglang-moe");
        in_the_tuned_server(&scene, first);
        let output = scene.run(&["run"], &[]);
        stopped(&scene, &output)
    });
    insta::assert_snapshot!(said.join("\n"), @"
    error: engagement: no process of the server loaded the overlay, so nothing was recorded; the deployment was undone

    hint: the server runs as before; `gemmtune status [folder]/runs/[time]-stand-in` says what was found

    error: engagement: fused MoE: [n] sizes were not served by the row that is deployed for them, first E=8 N=128 M=[m]: [row] instead of [row]; the deployment was undone

    hint: the server runs as before; `gemmtune status [folder]/runs/[time]-stand-in` says what was found

    error: engagement: no process of the server loaded the overlay, so nothing was recorded; the deployment was undone

    hint: the server runs as before; `gemmtune status [folder]/runs/[time]-stand-in` says what was found
    ");
}

#[test]
fn a_tuned_server_that_is_served_other_rows_is_not_compared() {
    let scene = scene(6, "deepgemm", "sglang-moe");
    let other = scene.folder.join("other");
    fs_err::create_dir(&other).unwrap();
    for suffix in ["", "_down"] {
        let text = json!({"1": row(32)}).to_string();
        fs_err::write(other.join(format!("{NAME}{suffix}.json")), text).unwrap();
    }
    in_the_tuned_server(&scene, &format!("export GEMMTUNE_MOE_TABLES={other}"));
    let output = scene.run(&["run"], &[]);
    insta::assert_snapshot!(stopped(&scene, &output), @"
    error: engagement: fused MoE: another row than the deployed one runs: E=8 N=128 M=[m]: [row] instead of [row]; the deployment was undone

    hint: the server runs as before; `gemmtune status [folder]/runs/[time]-stand-in` says what was found
    ");
}

#[test]
fn every_rank_of_a_tuned_server_has_to_have_its_tables() {
    for stray in ["", "GEMMTUNE_MOE_TABLES"] {
        let scene = scene(1, "deepgemm", "sglang-moe");
        scene.change(|config| {
            config
                .replace("\"--experts\"", "\"--tp-size\", \"2\", \"--experts\"")
                .replace("[server]", "tp = 2\n[server]")
                // The stand-in writes the trace of one rank; the other would be waited for.
                .replacen(
                    "[[benchmark.loads]]",
                    "[benchmark]\nprofile = false\n[[benchmark.loads]]",
                    1,
                )
        });
        let env = [("STANDIN_STRAY", stray)];
        let output = scene.run(&["run", "--until", "verify"], &env);
        if stray.is_empty() {
            assert!(output.status.success(), "{}", stderr(&output));
        } else {
            insta::assert_snapshot!(stopped(&scene, &output), @"
            error: engagement: 1 of 2 ranks recorded nothing: 1; the deployment was undone

            hint: the server runs as before; `gemmtune status [folder]/runs/[time]-stand-in` says what was found
            ");
        }
    }
}

/// A MoE model on four ranks; the stand-in's experts are 128 columns wide on a rank and eight, or eight of `experts`.
fn on_four_ranks(experts: u32, inter: u32, ep: u32) -> Scene {
    let scene = scene(1, "deepgemm", "sglang-moe");
    let model = scene.folder.join("model/config.json");
    let sizes = fs_err::read_to_string(&model).unwrap();
    let sizes = sizes
        .replace("\"num_experts\": 8", &format!("\"num_experts\": {experts}"))
        // Each rank has two heads and one of keys and values.
        .replace("\"num_attention_heads\": 4", "\"num_attention_heads\": 8")
        .replace("\"num_key_value_heads\": 1", "\"num_key_value_heads\": 4")
        .replace("\"head_dim\": 64", "\"head_dim\": 128")
        .replace(
            "\"moe_intermediate_size\": 128",
            &format!("\"moe_intermediate_size\": {inter}"),
        );
    fs_err::write(&model, sizes).unwrap();
    scene.change(|config| {
        config
            .replace(
                "\"--experts\", \"8\"",
                &format!(
                    "\"--tp-size\", \"4\", \"--ep-size\", \"{ep}\", \"--experts\", \"{experts}\""
                ),
            )
            .replace("[server]", "tp = 4\n[server]")
            // The stand-in writes the trace of one rank; the others would be waited for.
            .replacen(
                "[[benchmark.loads]]",
                "[benchmark]\nprofile = false\n[[benchmark.loads]]",
                1,
            )
    });
    scene
}

#[test]
fn four_ranks_run_the_experts_that_the_config_predicts_for_how_they_are_split() {
    for (experts, inter, ep) in [(8, 512, 1), (32, 128, 4)] {
        let scene = on_four_ranks(experts, inter, ep);
        let output = scene.run(&["run", "--until", "plan"], &[]);
        assert!(output.status.success(), "{}", stderr(&output));
        let run = scene.latest();
        let capture = document(&run.join("capture.json"));
        let seen = &capture["fused_moe"][0];
        assert_eq!((&seen["E"], &seen["N"]), (&json!(8), &json!(128)));
        let plan = document(&run.join("plan.json"));
        let compared = plan["notes"].as_array().unwrap().last().unwrap();
        assert_eq!(
            compared,
            "fused MoE E=8 N=128 K=256 topk=2 ran, as the model's config predicts"
        );
    }
}

#[test]
fn four_devices_race_for_four_ranks_though_one_is_shared_and_one_loses_its_worker() {
    let scene = on_four_ranks(32, 128, 4);
    let killed = scene.folder.join("killed");
    let env = [
        ("STANDIN_GPUS", "4"),
        ("STANDIN_TAKEN", "3"),
        ("STANDIN_KILLED", killed.as_str()),
    ];
    let output = scene.run(&["run", "--until", "verify"], &env);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(killed.exists(), "the third device's worker was killed");
    let run = scene.latest();
    let raced = document(&run.join("tune.json"))["fused_moe"].take();
    assert_eq!(
        raced["remarks"],
        json!([
            "device 3: 40 GiB were taken before racing began; another process on it makes times wrong"
        ])
    );
    assert_eq!((&raced["failed"], &raced["lost"]), (&json!([]), &json!([])));
    let devices = raced["devices"].as_array().unwrap();
    let raced_on: Vec<&Value> = devices
        .iter()
        .filter(|time| time["busy_s"].as_f64().unwrap() > 0.0)
        .map(|time| &time["device"])
        .collect();
    assert_eq!(raced_on, [0, 1, 2, 3], "{devices:?}");
    let engagement = document(&run.join("verify.json"))["fused_moe"]["engagement"].take();
    assert_eq!(engagement["missed"], json!([]), "{engagement}");
}

#[test]
fn a_model_without_experts_is_refused_by_what_would_tune_nothing_else() {
    let scene = Scene::new(1, &[]);
    scene.change(|config| config.replace("kind = \"sglang-triton\"", "kind = \"sglang-moe\""));
    let output = scene.run(&["run"], &[]);
    assert_eq!(output.status.code(), Some(14), "{}", stderr(&output));
    insta::assert_snapshot!(refusal(&output, &scene.folder), @"
    error: the instrumented server served the workload and ran no fused MoE of SGLang's Triton kernel

    hint: does the model have experts in FP8, and does `--moe-runner-backend` leave them on triton (its default on Hopper without DeepEP)?

    hint: fix that, then resume with `gemmtune run [folder]/runs/[time]-stand-in`
    ");
    let table = scene.run(&["run", "--new", "--table", "model"], &[]);
    insta::assert_snapshot!(refusal(&table, &scene.folder), @"
    error: `run --table` judges no table of fused MoE

    hint: leave `--table` out: a race of its sizes takes minutes

    hint: change the configuration, then `gemmtune run --new`
    ");
}
