//! A model with experts: aiter's fused MoE beside the dense GEMMs, and what goes wrong with its tables.

use camino::Utf8Path;
use serde_json::Value;

use crate::STAGES;
use crate::said::{line, refusal, uncounted};
use crate::site::{Change, Site, count, document, stderr};

/// Four experts of a width of 128 behind the usual GEMMs, whose hidden size is 128; two for each token.
const EXPERTS: &str = "4,128,2";

fn site(experts: &str, env: &[(&str, &str)]) -> Site {
    let site = Site::new(&Change {
        experts: Some(experts),
        env,
        ..Change::default()
    });
    with_budget(&site);
    site
}

/// All parts get their rows whatever else this machine does.
fn with_budget(site: &Site) {
    let path = site.folder.join("gemmtune.toml");
    let text = fs_err::read_to_string(&path).unwrap();
    fs_err::write(&path, text.replace("tune = \"60s\"", "tune = \"3000s\"")).unwrap();
}

/// A row of a shipped table: key cells, then two kernels.
fn shipped(token: u32, topk: u32, activation: &str, kernels: [&str; 2]) -> String {
    let fp8 = "torch.float8_e4m3fnuz";
    let [first, second] = kernels;
    format!(
        "304,{token},128,128,4,{topk},ActivationType.{activation},torch.bfloat16,{fp8},{fp8},QuantType.per_1x128,1,0,32,0,30.0,{first},0.0%,30.0,{second},0.5%,60.0,0,1.0,2.0,\n"
    )
}

fn ships(site: &Site, rows: &[String]) {
    let table = site.aiter("configs/tuned_fmoe.csv");
    let before = fs_err::read_to_string(&table).unwrap();
    Site::write(&table, &(before + &rows.concat()));
}

/// Sets a variable where the server of the tuned arm is started, and nowhere else.
fn in_the_tuned_server(site: &Site, set: &str) {
    let script = format!("[ -z \"$AITER_CONFIG_FMOE\" ] || export {set}\nexec \"$@\"\n");
    Site::write(&site.folder.join("launch"), &script);
    let path = site.folder.join("gemmtune.toml");
    let text = fs_err::read_to_string(&path).unwrap();
    let launched = format!("command = [\"sh\", \"{}/launch\", ", site.folder);
    fs_err::write(&path, text.replace("command = [", &launched)).unwrap();
}

fn texts(list: &Value) -> Vec<String> {
    let each = list.as_array().unwrap().iter();
    each.map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn sizes(rows: &Value) -> Vec<u64> {
    let each = rows.as_array().unwrap().iter();
    each.map(|row| row.get("shape").unwrap_or(row)["M"].as_u64().unwrap())
        .collect()
}

#[test]
fn dense_gemms_and_the_fused_moe_are_tuned_proved_and_compared_in_one_run_and_undone() {
    let site = site(EXPERTS, &[]);
    let before = site.trees();
    let output = site.run(&["run", "--json"]);
    // Two pairs support no verdict; everything before it passed.
    assert_eq!(output.status.code(), Some(16), "{}", stderr(&output));
    let journal = site.journal();
    for stage in STAGES {
        assert_eq!(count(&journal, "stage_finished", stage), 1, "{stage}");
    }
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["parity"], true, "{printed}");

    // Weights are of the overlay's records, tokens those of the forward.
    let run = site.latest();
    let captured = document(&run.join("capture.json"));
    let seen = &captured["fused_moe"][0];
    let problem = ["E", "N", "K", "topk"].map(|size| seen[size].as_u64().unwrap());
    assert_eq!(problem, [4, 128, 128, 2]);
    assert!(seen["calls"]["40"].as_u64().unwrap() >= 4, "{seen}");
    insta::assert_snapshot!(uncounted(seen["today"].as_str().unwrap()), @"aiter's own choice, for no row serves any of [n] sizes; at M = 1: the nearest rows are for 80 compute units and have model_dim=7168 and have inter_dim=256 and have topk=8 and have token=64 and have expert=256, all of the model's, where a rank of expert parallelism holds fewer");
    let shapes = fs_err::read_to_string(run.join("shapes.csv")).unwrap();
    assert!(shapes.contains("fused_moe_aiter,40,128,128,"), "{shapes}");

    // A row for what tokens round to, and nothing between.
    let plan = document(&run.join("plan.json"));
    let planned = sizes(&plan["fused_moe"]);
    assert!(
        planned.contains(&64) && planned.iter().all(|m| m.is_power_of_two()),
        "{planned:?}"
    );
    let tuned = &document(&run.join("tune.json"))["fused_moe"];
    assert_eq!(tuned["whole"], "fused_moe");
    for row in tuned["rows"].as_array().unwrap() {
        assert_eq!(row["incumbent_kept"], false, "{row}");
        // As a whole, not as the tuner added its stages up.
        let stages: f64 = row["candidate"]["us"].as_str().unwrap().parse().unwrap();
        assert!(row["us"].as_f64().unwrap() > stages + 5.0, "{row}");
        assert!(row["incumbent_us"].as_f64().unwrap() > 150.0, "{row}");
    }

    // Two variables; the one file of the fused MoE holds ours and every shipped row, each key once.
    let deployed = document(&run.join("deploy.json"));
    assert!(
        deployed["env"]["AITER_CONFIG_GEMM_A8W8_BLOCKSCALE"].is_string(),
        "{deployed}"
    );
    let table = deployed["env"]["AITER_CONFIG_FMOE"]
        .as_str()
        .unwrap()
        .to_owned();
    let rows = fs_err::read_to_string(&table).unwrap();
    for part in [
        "80,64,7168,256,256,8,",
        "256,32,4096,384,128,8,",
        "304,64,128,128,4,2,",
    ] {
        assert_eq!(rows.matches(part).count(), 1, "{part}: {rows}");
    }
    let verified = document(&run.join("verify.json"));
    let experts = &verified["fused_moe"];
    assert_eq!(
        experts["engagement"]["missed"],
        serde_json::json!([]),
        "{experts}"
    );
    assert_eq!(
        experts["engagement"]["families"]["E=4 N=128"]["missed"], 0,
        "{experts}"
    );
    assert!(
        experts["engagement"]["hit"].as_u64().unwrap() >= 2,
        "{experts}"
    );
    for check in experts["checks"].as_array().unwrap() {
        assert!(check["relative_error"].as_f64().unwrap() < 0.02, "{check}");
    }
    let timed = |check: &&Value| check["tuned_us"].is_number() && check["us"].is_number();
    let timed = experts["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(timed)
        .count();
    assert_eq!(timed, tuned["rows"].as_array().unwrap().len());
    let report = document(&run.join("report.json"));
    assert_eq!(
        report["fused_moe"][0]["e"]
            .as_u64()
            .or(report["fused_moe"][0]["experts"].as_u64()),
        Some(4),
        "{report}"
    );

    let output = site.run(&["undo"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(site.trees(), before);
    assert!(!Utf8Path::new(&table).exists());
    site.assert_nothing_left();
}

#[test]
fn a_kernel_that_the_module_does_not_have_is_found_out_when_its_row_is_tried() {
    let site = site(EXPERTS, &[("STANDIN_LACKS", "standin_stage2")]);
    let output = site.run(&["run", "--until", "deploy"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let tuned = &document(&site.latest().join("tune.json"))["fused_moe"];
    let quarantined = texts(&tuned["quarantined"]);
    assert!(
        !quarantined.is_empty()
            && quarantined
                .iter()
                .all(|text| text.contains("has no kernel `standin_stage2_")),
        "{tuned}"
    );
    // The dense GEMMs go on without it.
    let deployed = document(&site.latest().join("deploy.json"));
    assert!(deployed["env"]["AITER_CONFIG_FMOE"].is_null(), "{deployed}");
    assert!(
        deployed["env"]["AITER_CONFIG_GEMM_A8W8_BLOCKSCALE"].is_string(),
        "{deployed}"
    );
    insta::assert_snapshot!(uncounted(line(&stderr(&output), "fused MoE is left as it is")), @"          fused MoE is left as it is: no row can be used at any of its sizes");
}

#[test]
fn a_kernel_that_only_the_server_lacks_is_found_out_though_its_log_names_it() {
    let site = site(EXPERTS, &[]);
    in_the_tuned_server(&site, "STANDIN_LACKS=standin_stage");
    let before = site.trees();
    let output = site.run(&["run"]);
    assert_eq!(output.status.code(), Some(16), "{}", stderr(&output));
    insta::assert_snapshot!(refusal(&output, &site.folder), @"
    error: engagement: fused MoE: another row than the deployed one runs: E=4 N=128 M=[m]: the compiled module has no kernel `standin_stage1_[id]`, and its own choice ran although the log names the row's; the deployment was undone

    hint: the server runs as before; `gemmtune status [folder]/runs/[time]-played` says what was found
    ");
    // aiter's own line says what was asked for.
    let log = site.latest().join("trials");
    let named = walk(&log)
        .into_iter()
        .any(|text| text.contains("using 2stage (kernelName1='standin_stage1_"));
    assert!(named, "{log}");
    assert_eq!(site.trees(), before);
    assert_eq!(count(&site.journal(), "stage_started", "compare"), 0);
    let deployed = document(&site.latest().join("deploy.json"));
    let table = deployed["env"]["AITER_CONFIG_FMOE"].as_str().unwrap();
    assert!(!Utf8Path::new(table).exists());
}

/// The server logs below `folder`.
fn walk(folder: &Utf8Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in folder.read_dir_utf8().unwrap() {
        let path = entry.unwrap().into_path();
        if path.is_dir() {
            found.extend(walk(&path));
        } else if path.extension() == Some("log") {
            found.push(fs_err::read_to_string(&path).unwrap());
        }
    }
    found
}

#[test]
fn a_gelu_row_before_a_silu_row_is_told_at_the_capture_and_is_not_in_the_deployed_table() {
    let site = site(EXPERTS, &[]);
    site.play_newer_aiter();
    let silu = ["standin_stage1_32", "standin_stage2_32"];
    let gelu = ["moe_ck2stages_gemm1_gelu", "moe_ck2stages_gemm2_gelu"];
    ships(
        &site,
        &[shipped(64, 2, "Gelu", gelu), shipped(64, 2, "Silu", silu)],
    );
    let output = site.run(&["run", "--until", "verify"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let run = site.latest();
    let captured = document(&run.join("capture.json"));
    insta::assert_snapshot!(uncounted(captured["fused_moe"][0]["today"].as_str().unwrap()), @"rows of the tables in use at [n] sizes and aiter's own choice at [n]; at M = 64: the row is of ActivationType.Gelu: aiter v0.1.20 takes the first row in file order whatever its activation; its kernel name may be unknown to the Silu module, which then runs its own choice and says `ck kernel not found`");
    assert!(sizes(&document(&run.join("plan.json"))["fused_moe"]).contains(&64));
    let deployed = document(&run.join("deploy.json"));
    let table = deployed["env"]["AITER_CONFIG_FMOE"].as_str().unwrap();
    let rows = fs_err::read_to_string(table).unwrap();
    assert!(
        !rows.contains("Gelu") && rows.contains("gfx942,304,64,128,128,4,2,"),
        "{rows}"
    );
    let verified = document(&run.join("verify.json"));
    let engagement = &verified["fused_moe"]["engagement"];
    assert_eq!(
        engagement["families"]["E=4 N=128"]["missed"], 0,
        "{engagement}"
    );
}

#[test]
fn a_table_for_expert_parallelism_that_no_look_up_asks_for_is_told_and_the_row_that_is_asked_for_is_tuned()
 {
    // This rank holds four of eight experts.
    let site = site("4,128,2,8", &[]);
    site.play_newer_aiter();
    let kernels = ["standin_stage1_32", "standin_stage2_32"];
    ships(&site, &[shipped(64, 2, "Silu", kernels)]);
    let output = site.run(&["run", "--until", "verify"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let run = site.latest();
    let seen = &document(&run.join("capture.json"))["fused_moe"][0];
    assert_eq!(seen["experts_of_all"], 8, "{seen}");
    insta::assert_snapshot!(uncounted(seen["today"].as_str().unwrap()), @"aiter's own choice, for no row serves any of [n] sizes; at M = 1: with an expert mask aiter v0.1.20 asks for topk=1, one less than topk_ids has columns (it expects a column for masked experts that servers do not add, ROCm/aiter#3999); the rows have topk=2");
    // The row that is there serves nothing, so its size is tuned, under the key that is asked for.
    assert!(sizes(&document(&run.join("plan.json"))["fused_moe"]).contains(&64));
    let deployed = document(&run.join("deploy.json"));
    let table = deployed["env"]["AITER_CONFIG_FMOE"].as_str().unwrap();
    let rows = fs_err::read_to_string(table).unwrap();
    assert!(
        rows.contains("gfx942,304,64,128,128,4,1,ActivationType.Silu,"),
        "{rows}"
    );
    let engagement = &document(&run.join("verify.json"))["fused_moe"]["engagement"];
    let asked = &engagement["families"]["E=4 N=128"];
    assert!(
        asked["hit"].as_u64().unwrap() >= 2 && asked["missed"] == 0,
        "{engagement}"
    );
}

#[test]
fn a_row_that_is_faster_for_the_tuner_and_slower_as_a_whole_is_left() {
    let site = site(EXPERTS, &[("PLAYED_BETWEEN", "300")]);
    let output = site.run(&["run", "--until", "deploy"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let tuned = &document(&site.latest().join("tune.json"))["fused_moe"];
    let rows = tuned["rows"].as_array().unwrap();
    assert!(
        !rows.is_empty() && rows.iter().all(|row| row["incumbent_kept"] == true),
        "{tuned}"
    );
    assert!(
        texts(&tuned["lost"])
            .iter()
            .any(|text| text.contains("slower end to end")),
        "{tuned}"
    );
    let deployed = document(&site.latest().join("deploy.json"));
    assert!(deployed["env"]["AITER_CONFIG_FMOE"].is_null(), "{deployed}");
}

#[test]
fn a_variable_under_which_no_row_would_serve_is_refused_at_the_capture() {
    let site = site(EXPERTS, &[("AITER_BYPASS_TUNE_CONFIG", "1")]);
    let output = site.run(&["run"]);
    assert_eq!(output.status.code(), Some(10), "{}", stderr(&output));
    insta::assert_snapshot!(refusal(&output, &site.folder), @r#"
    error: AITER_BYPASS_TUNE_CONFIG makes aiter leave every row of the fused MoE's table, so no deployed one would serve

    hint: unset AITER_BYPASS_TUNE_CONFIG for both arms, or `backend.fused_moe = "leave"`

    hint: fix that, then resume with `gemmtune run [folder]/runs/[time]-played`
    "#);
    assert_eq!(count(&site.journal(), "stage_started", "tune"), 0);
}

/// The site with a model whose linears are bf16.
fn without_dense_fp8() -> Site {
    let site = Site::new(&Change {
        experts: Some(EXPERTS),
        weights: Some("256,128,plain;128,256,plain"),
        ..Change::default()
    });
    with_budget(&site);
    site
}

/// Gives the workload a model with experts of this quantisation.
fn with_model(site: &Site, quantization: &Value) {
    let config = serde_json::json!({
        "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4, "quantization_config": quantization,
    });
    Site::write(&site.folder.join("model/config.json"), &config.to_string());
    let path = site.folder.join("gemmtune.toml");
    let text = fs_err::read_to_string(&path).unwrap();
    let named = text.replace(
        "name = \"played\"\n",
        "name = \"played\"\nmodel = \"model\"\n",
    );
    fs_err::write(path, named).unwrap();
}

#[test]
fn a_fused_moe_whose_model_has_no_dense_fp8_gemm_is_tuned_alone_from_inspect_to_report_and_undone()
{
    let site = without_dense_fp8();
    let before = site.trees();
    let output = site.run(&["run", "--json"]);
    // Two pairs support no verdict; everything before it passed.
    assert_eq!(output.status.code(), Some(16), "{}", stderr(&output));
    let journal = site.journal();
    for stage in STAGES {
        assert_eq!(count(&journal, "stage_finished", stage), 1, "{stage}");
    }
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["parity"], true, "{printed}");
    let run = site.latest();
    let seen = &document(&run.join("capture.json"))["inspection"];
    assert!(seen["dense_left"].is_string(), "{seen}");
    assert!(
        stderr(&output).contains("the fused MoE is tuned alone"),
        "{}",
        stderr(&output)
    );
    let plan = document(&run.join("plan.json"));
    assert_eq!(plan["tune"], serde_json::json!([]), "{plan}");
    let tuned = document(&run.join("tune.json"));
    assert_eq!(tuned["rows"], serde_json::json!([]), "{tuned}");
    assert_eq!(
        sizes(&tuned["fused_moe"]["rows"]),
        sizes(&plan["fused_moe"])
    );
    let deployed = document(&run.join("deploy.json"));
    let variables: Vec<&String> = deployed["env"].as_object().unwrap().keys().collect();
    assert_eq!(variables, ["AITER_CONFIG_FMOE"]);
    let table = deployed["env"]["AITER_CONFIG_FMOE"].as_str().unwrap();
    let engagement = &document(&run.join("verify.json"))["fused_moe"]["engagement"];
    assert!(engagement["hit"].as_u64().unwrap() >= 2, "{engagement}");
    assert_eq!(engagement["missed"], serde_json::json!([]), "{engagement}");
    let report = document(&run.join("report.json"));
    assert_eq!(report["fused_moe"].as_array().unwrap().len(), 1, "{report}");
    assert!(report["plan"].is_null(), "{report}");

    let output = site.run(&["undo"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(site.trees(), before);
    assert!(!Utf8Path::new(table).exists());
    site.assert_nothing_left();
}

#[test]
fn without_a_dense_operation_and_without_the_fused_moe_there_is_nothing_to_tune() {
    let site = without_dense_fp8();
    site.set_backend("fused_moe = \"leave\"");
    let output = site.run(&["run"]);
    assert_eq!(output.status.code(), Some(14), "{}", stderr(&output));
    assert_eq!(count(&site.journal(), "stage_started", "plan"), 0);
}

#[test]
fn experts_are_tuned_alone_where_this_aiter_cannot_have_their_models_dense_gemms_tuned() {
    let site = site(EXPERTS, &[]);
    let blocks = serde_json::json!({"quant_method": "fp8", "weight_block_size": [128, 128]});
    with_model(&site, &blocks);
    let without_modules =
        |site: &Site| Site::write(&site.aiter("jit/optCompilerConfig.json"), "{}");
    without_modules(&site);
    let output = site.run(&["run", "--until", "plan"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let run = site.latest();
    for document in [
        document(&run.join("inspect.json")),
        document(&run.join("capture.json"))["inspection"].clone(),
    ] {
        let why = document["dense_left"].as_str().unwrap();
        assert!(
            why.contains("makes no module from a table of gemm_a8w8_blockscale"),
            "{document}"
        );
    }
    let plan = document(&run.join("plan.json"));
    assert_eq!(plan["tune"], serde_json::json!([]), "{plan}");
    assert!(!sizes(&plan["fused_moe"]).is_empty(), "{plan}");
    // The same without experts is refused before anything is served.
    let other = Site::new(&Change::default());
    without_modules(&other);
    let output = other.run(&["run"]);
    assert_eq!(output.status.code(), Some(10), "{}", stderr(&output));
    assert_eq!(count(&other.journal(), "stage_started", "baseline"), 0);
}

#[test]
fn experts_that_are_not_tuned_are_named_at_inspect_with_what_to_do() {
    let channel =
        serde_json::json!({"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}});
    for (quantization, named) in [
        (
            serde_json::json!({"quant_method": "compressed-tensors", "config_groups": {"g": channel}}),
            "one scale per token and channel",
        ),
        (serde_json::json!({"quant_method": "mxfp4"}), "FP4 experts"),
    ] {
        let site = site(EXPERTS, &[]);
        with_model(&site, &quantization);
        let output = site.run(&["run", "--until", "inspect"]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let said = texts(&document(&site.latest().join("inspect.json"))["remarks"]).concat();
        assert!(
            said.contains(named) && said.contains("gemmtune tune --backend aiter --op fused_moe"),
            "{said}"
        );
    }
}

/// The lines of the files in which the judge's answers are kept.
fn judged(site: &Site) -> Vec<String> {
    let folder = site.folder.join("runs/latest/tune/fused-moe");
    let files = ["judged-today.jsonl", "judged-tuned.jsonl"].map(|name| folder.join(name));
    let texts = files.map(|file| fs_err::read_to_string(file).unwrap_or_default());
    texts
        .iter()
        .flat_map(|text| text.lines())
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_judge_that_is_killed_goes_on_behind_its_last_answer() {
    use std::time::{Duration, Instant};

    let site = without_dense_fp8();
    let mut running = site.start(&["run", "--until", "tune"]);
    let until = Instant::now() + Duration::from_secs(300);
    // The first line of a file says what its answers are of.
    while judged(&site).len() < 2 {
        assert!(Instant::now() < until && running.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    running.kill().unwrap();
    running.wait().unwrap();
    let answered = judged(&site);
    let output = site.run(&["run", "--until", "tune"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let all = judged(&site);
    let planned = sizes(&document(&site.latest().join("plan.json"))["fused_moe"]).len();
    // Each size once in each way, and what was answered before the kill as it stood, by its time.
    assert_eq!(all.len(), 2 * (1 + planned), "{all:#?}");
    assert!(
        answered.len() < all.len(),
        "it was killed too late to show anything: {answered:#?}"
    );
    assert!(
        answered.iter().all(|line| all.contains(line)),
        "{answered:#?} {all:#?}"
    );
    let rows = &document(&site.latest().join("tune.json"))["fused_moe"]["rows"];
    assert_eq!(sizes(rows).len(), planned, "{rows}");
}
