//! `gemmtune init` on real files and a real process.

use std::process::{Command, Output};

use camino::{Utf8Path, Utf8PathBuf};
use gemmtune::store::file::write_atomic;
use gemmtune::workload::config::{BackendKind, Config, Measure};
use serde_json::Value;

struct Job {
    _keep: tempfile::TempDir,
    folder: Utf8PathBuf,
}

impl Job {
    /// A folder with an interpreter to be found and a launch script.
    fn new(script: &str) -> Self {
        let keep = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::try_from(keep.path().canonicalize().unwrap()).unwrap();
        fs_err::create_dir_all(folder.join("venv/bin")).unwrap();
        std::os::unix::fs::symlink("/bin/sleep", folder.join("venv/bin/python3")).unwrap();
        write_atomic(&folder.join("launch.sh"), script.as_bytes()).unwrap();
        Self {
            _keep: keep,
            folder,
        }
    }

    fn init(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_gemmtune"))
            .arg("init")
            .args(arguments)
            .current_dir(&self.folder)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HF_TOKEN", "hunter2")
            .output()
            .unwrap()
    }

    fn written(&self) -> String {
        fs_err::read_to_string(self.folder.join("gemmtune.toml")).unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

const WHOLE: &str = "
source venv/bin/activate
export SGLANG_USE_AITER=1 HF_TOKEN=hunter2
python3 -m sglang.launch_server --model-path /m/Qwen3 --tp-size 2 --port 31000 &
python3 -m sglang.bench_serving --port 31000 --max-concurrency 16
";

#[test]
fn a_whole_script_gives_a_configuration_that_is_accepted() {
    let job = Job::new(WHOLE);
    let output = job.init(&["launch.sh"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "");
    let config = Config::parse(&job.written()).unwrap();
    let python = job.folder.join("venv/bin/python3");
    assert_eq!(config.workload.name, "launch");
    assert_eq!(
        (config.workload.tp, config.workload.concurrency),
        (2, Some(16))
    );
    assert_eq!(config.server.command.as_ref().unwrap()[0], python.as_str());
    assert_eq!(config.server.port, 31000);
    assert_eq!(config.server.cwd.as_deref(), Some(job.folder.as_path()));
    assert_eq!(config.server.env["SGLANG_USE_AITER"], "1");
    assert_eq!(
        (config.backend.kind, config.backend.python.as_deref()),
        (BackendKind::Aiter, Some(python.as_path()))
    );
    let Measure::Command { command, results } = config.measure().unwrap() else {
        panic!("a command was there")
    };
    assert_eq!(
        command[command.len() - 2..],
        ["--output-file", "bench.jsonl"]
    );
    assert_eq!(results, "bench.jsonl");
    assert!(
        !job.written().contains("hunter2"),
        "a secret is never copied"
    );
}

#[test]
fn what_could_not_be_told_is_asked_for_by_name_and_stands_in_the_file() {
    let job = Job::new("python9 -m sglang.launch_server --model-path $1 --tp 8\n");
    let output = job.init(&["launch.sh", "--json"]);
    assert!(output.status.success());
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["complete"], false);
    let asked: Vec<_> = said["questions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|question| question["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        asked,
        [
            "workload.model",
            "workload.concurrency",
            "server.command",
            "benchmark.command",
            "backend.kind",
            "backend.python"
        ]
    );
    let written = job.written();
    assert!(
        written.contains("# ? command = … # `$1` depends on argument 1 of the script"),
        "{written}"
    );
    assert!(
        Config::parse(&written).is_err(),
        "an unfinished draft is not accepted by accident"
    );
}

#[test]
fn a_configuration_that_is_there_is_kept() {
    let job = Job::new(WHOLE);
    write_atomic(&job.folder.join("gemmtune.toml"), b"mine").unwrap();
    let output = job.init(&["launch.sh"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--force"));
    assert_eq!(job.written(), "mine");
    assert!(job.init(&["launch.sh", "--force"]).status.success());
    assert!(job.written().contains("[server]"));
}

#[test]
fn a_running_server_is_observed() {
    let job = Job::new("");
    let python = job.folder.join("venv/bin/python3");
    // `sleep` under an interpreter's name: it lives long enough and takes any number of durations.
    let mut server = Command::new(&python)
        .args(["30", "0"])
        .current_dir(&job.folder)
        .env("SGLANG_USE_AITER", "1")
        .spawn()
        .unwrap();
    // The kernel fills the command line in a moment after the start has succeeded.
    let cmdline = format!("/proc/{}/cmdline", server.id());
    while fs_err::read(&cmdline).unwrap().is_empty() {
        assert!(server.try_wait().unwrap().is_none(), "it ended early");
        std::thread::yield_now();
    }
    let output = job.init(&["--pid", &server.id().to_string()]);
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let written = job.written();
    assert!(
        written.contains(&format!("command = [\"{python}\", \"30\", \"0\"]")),
        "{written}"
    );
    assert!(written.contains("SGLANG_USE_AITER = \"1\""), "{written}");
    assert!(!written.contains("hunter2"), "{written}");
}

#[test]
fn a_missing_script_a_script_that_is_none_and_a_dead_process_are_clear_errors() {
    let job = Job::new("if then fi (");
    for (arguments, code, said) in [
        (&["launch.sh"][..], 2, "is not bash"),
        (&["missing.sh"], 2, "missing.sh"),
        (&["--pid", "999999999"], 10, "process 999999999"),
    ] {
        let output = job.init(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert!(
            text(&output.stderr).contains(said),
            "{}",
            text(&output.stderr)
        );
        assert!(!Utf8Path::new(&job.folder).join("gemmtune.toml").exists());
    }
}

#[test]
fn what_may_stand_in_a_file_of_options_is_asked_for() {
    let job =
        Job::new("python3 -m sglang.launch_server --config server.yaml --fp8-gemm-backend triton");
    job.init(&["launch.sh"]);
    let written = job.written();
    for name in ["model", "tp", "port"] {
        let asked = format!("# ? {name} = … # it may stand in `server.yaml` (`--config`)");
        assert!(written.contains(&asked), "{written}");
    }
}

#[test]
fn an_interpreter_of_an_environment_that_is_not_here_is_asked_for() {
    for (activate, why) in [
        (
            "source /nowhere/venv/bin/activate",
            "`python3` is not in `/nowhere/venv/bin`, and the script activates `/nowhere/venv`",
        ),
        (
            "conda activate sgl",
            "`python3` depends on the conda environment `sgl`, activated at line 1",
        ),
    ] {
        let job = Job::new(&format!(
            "{activate}\npython3 -m sglang.launch_server --model-path /m --fp8-gemm-backend triton"
        ));
        job.init(&["launch.sh"]);
        let written = job.written();
        assert!(
            written.contains(&format!("# ? python = … # {why}")),
            "{written}"
        );
        assert!(
            written.contains(&format!("# ? command = … # {why}")),
            "{written}"
        );
    }
}

#[test]
fn a_server_that_asks_for_a_key_is_remarked() {
    for (key, remarked) in [("--api-key s3", true), ("--api-key=s3", true), ("", false)] {
        let job = Job::new(&format!(
            "python3 -m sglang.launch_server --model-path /m {key}"
        ));
        let said = text(&job.init(&["launch.sh"]).stderr);
        let about_it = said.contains("asks for a key");
        assert_eq!(about_it, remarked, "{key}: {said}");
    }
}

#[test]
fn a_server_that_listens_elsewhere_is_remarked() {
    let job = Job::new("python3 -m sglang.launch_server --model-path /m --host 10.0.0.5");
    let output = job.init(&["launch.sh"]);
    assert!(
        text(&output.stderr).contains("listens on 10.0.0.5"),
        "{output:?}"
    );
}
