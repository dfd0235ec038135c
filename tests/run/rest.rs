//! `examples/sglang-h100/rest.sh`, made for GPUs that are lent for minutes, against the stand-in for a server.

use std::process::{Command, Output};

use camino::{Utf8Path, Utf8PathBuf};

use super::said::{line, plain};
use super::sglang_triton::Scene;
use super::support::{document, stderr};

/// In place of what breaks SGLang's kernel: what breaks the stand-in's.
const WRONG: &str = "import os\nif os.environ.get('GEMMTUNE_TRITON_TABLES'):\n    os.environ['STANDIN_WRONG'] = '1'\n";

fn example() -> Utf8PathBuf {
    Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/sglang-h100")
}

struct Rest {
    folder: Utf8PathBuf,
    path: String,
}

impl Rest {
    /// The example's scripts around the scene's server; `wrong` stands in `sabotage/`.
    fn new(scene: &Scene, wrong: &str) -> Self {
        let path = scene.path_from_outside();
        let folder = scene.folder.join("h100");
        let own = folder.join("qwen3-14b");
        fs_err::create_dir_all(folder.join("sabotage")).unwrap();
        fs_err::create_dir_all(own.join("model")).unwrap();
        for script in ["rest.sh", "sabotage.py"] {
            fs_err::copy(example().join(script), folder.join(script)).unwrap();
        }
        fs_err::write(folder.join("sabotage/sitecustomize.py"), wrong).unwrap();
        fs_err::copy(
            scene.folder.join("model/config.json"),
            own.join("model/config.json"),
        )
        .unwrap();
        // The example names its model beside the configuration, and is run from the folder above.
        let config = fs_err::read_to_string(scene.folder.join("gemmtune.toml")).unwrap();
        let whole = format!("model = \"{}/model\"", scene.folder);
        assert!(config.contains(&whole), "{config}");
        let config = config.replace(&whole, "model = \"model\"");
        fs_err::write(own.join("gemmtune.toml"), config).unwrap();
        Self { folder, path }
    }

    fn run(&self, seconds: &str) -> Output {
        let gemmtune = Utf8Path::new(env!("CARGO_BIN_EXE_gemmtune"));
        let programs = gemmtune.parent().unwrap().as_str();
        Command::new("bash")
            .args([
                "-c",
                "PATH=$0:$PATH exec bash rest.sh $1",
                programs,
                seconds,
            ])
            .current_dir(&self.folder)
            .env("HOME", &self.folder)
            .env("TMPDIR", &self.folder)
            .env("PYTHONPATH", &self.path)
            .output()
            .unwrap()
    }
}

#[test]
fn slices_of_time_add_up_to_a_wrong_kernel_stopped_and_a_verdict() {
    let scene = Scene::new(1, &[]);
    let rest = Rest::new(&scene, WRONG);
    let output = rest.run("1");
    assert_eq!(output.status.code(), Some(75), "{}", stderr(&output));
    let output = rest.run("300");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let said = plain(
        line(&stderr(&output), "was stopped at verify"),
        &rest.folder,
    );
    insta::assert_snapshot!(said, @"the wrong kernel was stopped at verify and taken back");
    let runs = rest.folder.join("qwen3-14b/runs");
    let compare = document(&runs.join("latest/compare.json"));
    assert_eq!(compare["pairs"], 1, "{compare}");
    assert!(runs.join("latest/deploy.json").is_file());
    // The model was found although no command ran beside it.
    let plan = document(&runs.join("latest/plan.json"));
    assert_eq!(
        plan["model"]["architecture"], "Qwen3ForCausalLM",
        "{}",
        plan["notes"]
    );
    assert_eq!(plan["difference"], serde_json::json!([]));
    assert_eq!(
        document(&runs.join("latest/foreseen.json"))[0]["load"],
        "decode-1"
    );
    assert!(
        compare["loads"][0]["predicted"].as_f64().is_some(),
        "{compare}"
    );
    let stopped = fs_err::read_to_string(runs.join("wrong/stopped")).unwrap();
    assert!(stopped.contains("verify    failed"), "{stopped}");

    let journal = || fs_err::read_to_string(runs.join("latest/journal.jsonl")).unwrap();
    let before = journal();
    let output = rest.run("300");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(journal(), before, "nothing is run twice");
}

#[test]
fn a_wrong_kernel_that_was_not_stopped_is_no_success() {
    let scene = Scene::new(1, &[]);
    let rest = Rest::new(&scene, "");
    let output = rest.run("300");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let said = plain(line(&stderr(&output), "NOT stopped"), &rest.folder);
    insta::assert_snapshot!(said, @"the wrong kernel was NOT stopped at verify (exit code 16)");
}

#[test]
fn the_models_without_weights_have_the_gemms_of_the_real_ones() {
    let keep = tempfile::tempdir().unwrap();
    let untuned = keep.path().join("untuned.csv");
    let planned = |config: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_gemmtune"))
            .args(["plan", "--json", "--tp", "1", "--capture", "1,32"])
            .args(["--chunked-prefill", "8192", "--device", "NVIDIA_H200"])
            .args(["--model", config, "-o"])
            .arg(&untuned)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        plan["tune"].clone()
    };
    for (model, gemms) in [("qwen3-8b", 4), ("qwen3-14b", 4)] {
        let made = keep.path().join(model);
        let script = format!(
            "import json, sys; sys.dont_write_bytecode = True; import make_model as m; \
             print(json.dumps(m.config(*m.SIZES[{model:?}])))"
        );
        let output = Command::new("python3")
            .args(["-c", &script])
            .current_dir(example())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        fs_err::write(&made, output.stdout).unwrap();
        let ours = planned(made.to_str().unwrap());
        let real =
            Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("testdata/models/{model}.json"));
        assert_eq!(ours, planned(real.as_str()), "{model}");
        let mut weights: Vec<_> = ours
            .as_array()
            .unwrap()
            .iter()
            .map(|row| (row["N"].as_u64(), row["K"].as_u64()))
            .collect();
        weights.sort_unstable();
        weights.dedup();
        assert_eq!(weights.len(), gemms, "{weights:?}");
    }
}
