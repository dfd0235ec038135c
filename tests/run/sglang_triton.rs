//! The loop against a stand-in for an SGLang server on an NVIDIA GPU (`testdata/sglang-standin`): the real overlay,
//! record files, race, table look-up and comparison; GEMMs and the GPU worker are played.

use std::process::{Command, Output};

use camino::{Utf8Path, Utf8PathBuf};

use super::said::{line, plain, refusal};
use super::support::{count, document, stderr};

pub(crate) struct Scene {
    _keep: tempfile::TempDir,
    pub(crate) folder: Utf8PathBuf,
}

impl Scene {
    pub(crate) fn new(pairs: u32, server: &[&str]) -> Self {
        let keep = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::try_from(keep.path().to_owned())
            .unwrap()
            .canonicalize_utf8()
            .unwrap();
        let testdata = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
        let standin = testdata.join("sglang-standin");
        let port = crate::ports::reserve().to_string();
        let python = standin.join("python");
        let mut command = vec![python.as_str(), "-m", "standin.server", "--port", &port];
        command.extend(server);
        // The model's config gives the weights that the stand-in serves.
        let model = folder.join("model");
        fs_err::create_dir(&model).unwrap();
        fs_err::write(
            model.join("config.json"),
            r#"{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 256, "intermediate_size": 512,
               "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 1000,
               "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}"#,
        )
        .unwrap();
        let config = format!(
            "[workload]\nname = \"stand-in\"\nmodel = {model:?}\n\
             [server]\ncommand = {command:?}\nport = {port}\nready_timeout_s = 60\n\
             env = {{ PYTHONPATH = \"{standin}:{testdata}/overlay-tree\", PYTHONDONTWRITEBYTECODE = \"1\" }}\n\
             [[benchmark.loads]]\nname = \"decode-1\"\nmetric = \"median_tpot_ms\"\n\
             concurrency = 1\nprompts = 3\ninput_len = 12\noutput_len = 24\n\
             [[benchmark.loads]]\nname = \"decode-4\"\nmetric = \"median_tpot_ms\"\n\
             concurrency = 4\nprompts = 8\ninput_len = 12\noutput_len = 24\nseed = 1\n\
             [backend]\nkind = \"sglang-triton\"\npython = {python:?}\n\
             [compare]\nmetric = \"output_throughput\"\npairs = {pairs}\n\
             [budget]\ntune = \"60s\"\n"
        );
        fs_err::write(folder.join("gemmtune.toml"), config).unwrap();
        Self {
            _keep: keep,
            folder,
        }
    }

    /// Changes the configuration.
    pub(crate) fn change(&self, change: impl Fn(&str) -> String) {
        let path = self.folder.join("gemmtune.toml");
        let before = fs_err::read_to_string(&path).unwrap();
        let after = change(&before);
        assert_ne!(before, after, "the change found its place");
        fs_err::write(&path, after).unwrap();
    }

    pub(crate) fn run(&self, arguments: &[&str], env: &[(&str, &str)]) -> Output {
        let mut command = self.command(arguments);
        command.envs(env.iter().copied()).output().unwrap()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gemmtune"));
        command
            .args(arguments)
            .current_dir(&self.folder)
            .env("HOME", &self.folder)
            // Tests beside this one are no runs on the same GPUs.
            .env("TMPDIR", &self.folder);
        command
    }

    /// Takes PYTHONPATH out of the configuration, as who exports it does, and answers with it.
    pub(crate) fn path_from_outside(&self) -> String {
        let config = self.folder.join("gemmtune.toml");
        let text = fs_err::read_to_string(&config).unwrap();
        let (before, rest) = text.split_once("PYTHONPATH = \"").unwrap();
        let (path, after) = rest.split_once("\", ").unwrap();
        fs_err::write(&config, format!("{before}{after}")).unwrap();
        path.to_owned()
    }

    pub(crate) fn latest(&self) -> Utf8PathBuf {
        self.folder.join("runs/latest").canonicalize_utf8().unwrap()
    }
}

#[test]
fn the_loop_tunes_an_sglang_server_and_judges_each_load() {
    let scene = Scene::new(6, &[]);
    let output = scene.run(&["run", "--json"], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let run = scene.latest();

    let capture = document(&run.join("capture.json"));
    assert_eq!(capture["graphs"], serde_json::json!([1, 2, 4, 8]));
    assert!(
        capture["dispatch"][0]
            .as_str()
            .unwrap()
            .starts_with("triton_w8a8_block_fp8_linear"),
        "{capture}"
    );
    // Decode runs from graphs: 24 steps a request and more are replays, and only replays bring the count there.
    let shapes = fs_err::read_to_string(run.join("shapes.csv")).unwrap();
    let calls: u64 = shapes
        .lines()
        .find(|line| line.starts_with("w8a8_block_fp8_matmul,1,384,256,"))
        .and_then(|line| line.rsplit(',').next())
        .unwrap()
        .parse()
        .unwrap();
    assert!(calls >= 2 * 3 * 23, "{shapes}");

    let verify = document(&run.join("verify.json"));
    assert_eq!(verify["engagement"]["missed"], serde_json::json!([]));
    assert_eq!(verify["engagement"]["other_kernel"], serde_json::json!([]));
    assert!(verify["engagement"]["hit"].as_u64().unwrap() >= 8);
    assert_eq!(verify["parity"]["relation"], "equal");

    let compare = document(&run.join("compare.json"));
    assert_eq!(compare["verdict"], "better", "{compare}");
    for (index, name) in ["decode-1", "decode-4"].iter().enumerate() {
        let load = &compare["loads"][index];
        assert_eq!(load["load"], *name);
        assert_eq!(load["comparison"]["metric"], "median_tpot_ms");
        assert_eq!(load["comparison"]["verdict"], "better", "{load}");
        assert_eq!(load["comparison"]["pairs"], 6);
        // Decode steps of the stand-in last five times its kernels, so the kernels alone foresee less.
        let predicted = load["predicted"].as_f64().unwrap();
        let measured = load["comparison"]["ratio"]["median"].as_f64().unwrap();
        assert!(predicted > 1.0 && predicted < measured, "{load}");
    }
    let page = fs_err::read_to_string(run.join("report.html")).unwrap();
    assert!(page.contains("Each load on its own"));
    assert!(page.contains(">Where the time goes<"), "{page}");
    let report = document(&run.join("report.json"));
    super::schema::check("report", &report);
    assert_eq!(report["profile"].as_array().unwrap().len(), 2);
    let summary = fs_err::read_to_string(run.join("report.md")).unwrap();
    assert!(
        summary.contains("## Where the time goes: a decode step, concurrency 4"),
        "{summary}"
    );

    let deploy = document(&run.join("deploy.json"));
    let tables = deploy["env"]["GEMMTUNE_TRITON_TABLES"].as_str().unwrap();
    assert_eq!(fs_err::read_dir(tables).unwrap().count(), 4);
    assert!(scene.run(&["undo"], &[]).status.success());
    assert!(!Utf8Path::new(tables).exists());
}

#[test]
fn what_the_models_config_cannot_say_or_says_otherwise_is_told() {
    let scene = Scene::new(1, &[]);
    let path = scene.folder.join("gemmtune.toml");
    let config = fs_err::read_to_string(&path).unwrap();
    let right = format!("model = \"{}/model\"", scene.folder);
    assert!(config.contains(&right), "{config}");
    let sizes = fs_err::read_to_string(scene.folder.join("model/config.json")).unwrap();
    for (model, text) in [
        ("broken", "{}".to_owned()),
        ("other", sizes.replace("512", "1024")),
    ] {
        fs_err::create_dir(scene.folder.join(model)).unwrap();
        fs_err::write(scene.folder.join(model).join("config.json"), text).unwrap();
    }
    let told = [
        ("other", "difference"),
        ("broken", "notes"),
        ("Organisation/Model-FP8", "notes"),
    ]
    .map(|(model, field)| {
        let changed = config.replace(&right, &format!("model = {model:?}"));
        fs_err::write(&path, changed).unwrap();
        let output = scene.run(&["run", "--new", "--until", "plan"], &[]);
        assert!(output.status.success(), "{}", stderr(&output));
        let plan = document(&scene.latest().join("plan.json"));
        let said = plan[field][0].as_str().unwrap();
        assert!(
            stderr(&output).contains(said),
            "{said}: {}",
            stderr(&output)
        );
        plain(said, &scene.folder)
    });
    insta::assert_snapshot!(told.join("\n"), @"
    gate_up_proj (2048x256) is predicted and was not seen: another kernel serves it, a release fuses it with another layer, or the log ends before it ran
    no shapes or gains predicted: failed to predict FP8 layers: the config has no `quantization_config`, so the weights are not quantised (`[folder]/broken/config.json`)
    no shapes or gains predicted: `[folder]/Organisation/Model-FP8/config.json` is not there; where the server gets an id, `workload.model` can be the folder it was loaded to
    ");
    let output = scene.run(&["run"], &[]);
    assert_eq!(output.status.code(), Some(16), "one pair gives no verdict");
    assert!(!scene.latest().join("foreseen.json").exists());
    let report = fs_err::read_to_string(scene.latest().join("report.md")).unwrap();
    let said = plain(
        line(&report, "no shapes or gains predicted: "),
        &scene.folder,
    );
    insta::assert_snapshot!(said, @r"- no shapes or gains predicted: \`[folder]/Organisation/Model-FP8/config.json\` is not there; where the server gets an id, \`workload.model\` can be the folder it was loaded to");
}

#[test]
fn a_run_is_not_gone_on_with_under_another_pythonpath() {
    let scene = Scene::new(6, &[]);
    let path = &scene.path_from_outside();
    let first = scene.run(&["run", "--until", "capture"], &[("PYTHONPATH", path)]);
    assert!(first.status.success(), "{}", stderr(&first));
    // The scene's servers write no byte code, which is said.
    insta::assert_snapshot!(line(&stderr(&first), "PYTHONDONTWRITEBYTECODE is set"), @"          PYTHONDONTWRITEBYTECODE is set: modules that were never compiled are compiled again at every server start");

    // Both arms have to import what was inspected.
    let other = scene.run(&["run"], &[("PYTHONPATH", &format!("/elsewhere:{path}"))]);
    assert_eq!(other.status.code(), Some(17), "{}", stderr(&other));
    assert!(
        stderr(&other).contains("PYTHONPATH was"),
        "{}",
        stderr(&other)
    );
    let same = scene.run(&["run", "--until", "deploy"], &[("PYTHONPATH", path)]);
    assert!(same.status.success(), "{}", stderr(&same));
}

#[test]
fn a_wrong_kernel_is_stopped_at_verify_and_taken_back() {
    let scene = Scene::new(6, &[]);
    let output = scene.run(&["run"], &[("STANDIN_WRONG", "1")]);
    assert_eq!(output.status.code(), Some(16), "{}", stderr(&output));
    insta::assert_snapshot!(refusal(&output, &scene.folder), @"
    error: layout check: [n] shapes are wrong, first M=[m] N=256 K=256 with [row] (relative error 41.0 %); the deployment was undone

    hint: the server runs as before; `gemmtune status [folder]/runs/[time]-stand-in` says what was found
    ");
    let run = scene.latest();
    let journal = fs_err::read_to_string(run.join("journal.jsonl")).unwrap();
    let events: Vec<serde_json::Value> = journal
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["event"].clone())
        .collect();
    assert_eq!(count(&events, "stage_started", "compare"), 0);
    assert!(events.iter().any(|event| event["kind"] == "undone"));
    let deploy = document(&run.join("deploy.json"));
    assert!(!Utf8Path::new(deploy["table"].as_str().unwrap()).exists());
}

#[test]
fn a_run_that_lost_its_overlay_on_the_way_does_not_compare_the_baseline_with_itself() {
    let scene = Scene::new(6, &[]);
    let output = scene.run(&["run", "--until", "verify"], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    // As a folder that was packed without it and carried to another machine.
    fs_err::remove_dir_all(scene.latest().join("overlay")).unwrap();
    let output = scene.run(&["run"], &[]);
    assert_eq!(output.status.code(), Some(17), "{}", stderr(&output));
    insta::assert_snapshot!(refusal(&output, &scene.folder), @"
    error: the deployed file [folder]/runs/[time]-stand-in/overlay/gemmtune_overlay/__init__.py is gone: the tuned arm would not be what was tuned

    hint: a run folder is copied whole, `deploy` and `overlay` included; else start again: `gemmtune undo [folder]/runs/[time]-stand-in`, then `gemmtune run [folder]/runs/[time]-stand-in`
    ");
    let journal = fs_err::read_to_string(scene.latest().join("journal.jsonl")).unwrap();
    assert!(!journal.contains(r#""arm":"tuned""#), "{journal}");
}

#[test]
fn arms_that_cannot_be_compared_are_not_measured_to_the_end() {
    let scene = Scene::new(6, &[]);
    let script = "exec \"$@\" ${GEMMTUNE_TRITON_TABLES:+--chunked-prefill-size 128}\n";
    fs_err::write(scene.folder.join("tuned-otherwise"), script).unwrap();
    let config = scene.folder.join("gemmtune.toml");
    let text = fs_err::read_to_string(&config).unwrap().replace(
        "command = [",
        &format!(
            "command = [\"bash\", \"{}/tuned-otherwise\", ",
            scene.folder
        ),
    );
    fs_err::write(&config, text).unwrap();
    let output = scene.run(&["run"], &[]);
    assert_eq!(output.status.code(), Some(16), "{}", stderr(&output));
    let compare = document(&scene.latest().join("compare.json"));
    assert_eq!(compare["pairs"], 1, "{compare}");
    assert_eq!(compare["verdict"], "inconclusive");
    insta::assert_snapshot!(compare["unfair"], @r#"["server_info.chunked_prefill_size: baseline 256, tuned 128"]"#);
}

#[test]
fn a_server_on_another_kernel_is_refused_by_its_name() {
    let scene = Scene::new(6, &["--backend", "deepgemm"]);
    let output = scene.run(&["run"], &[]);
    assert_eq!(output.status.code(), Some(10), "{}", stderr(&output));
    insta::assert_snapshot!(refusal(&output, &scene.folder), @r#"
    error: the block-FP8 layers are served by deepgemm_w8a8_block_fp8_linear_with_fallback (sglang.srt.layers.quantization.fp8_utils), not by SGLang's Triton kernel

    hint: `backend.kind = "sglang-families"` tunes a route below DeepGEMM's linear, which reads no table

    hint: or add `--fp8-gemm-backend triton` to the server command, where Triton is what has to serve

    hint: fix that, then resume with `gemmtune run [folder]/runs/[time]-stand-in`
    "#);
}
