//! A run in a folder of its own, driven through the real binary.

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;

/// A folder with a `gemmtune.toml` that serves a tiny model.
pub(crate) struct Site {
    _keep: tempfile::TempDir,
    pub(crate) folder: Utf8PathBuf,
}

/// What a test changes about the usual configuration.
#[derive(Default)]
pub(crate) struct Change<'a> {
    /// Arguments added to the server command.
    pub(crate) server: &'a [&'a str],
    /// `server.ready_timeout_s`.
    pub(crate) ready_timeout_s: Option<u32>,
    /// `benchmark.timeout_s`.
    pub(crate) benchmark_timeout_s: Option<u32>,
    /// `compare.pairs`.
    pub(crate) pairs: Option<u32>,
}

const MODEL: &str = include_str!("../../testdata/models/tiny/config.json");

impl Site {
    pub(crate) fn new(change: &Change<'_>) -> Self {
        let keep = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::try_from(keep.path().to_owned())
            .unwrap()
            .canonicalize_utf8()
            .unwrap();
        let model = folder.join("model");
        fs_err::create_dir(&model).unwrap();
        fs_err::write(model.join("config.json"), MODEL).unwrap();
        let port = crate::ports::reserve().to_string();
        let mut command = vec![
            env!("CARGO_BIN_EXE_gemmtune"),
            "reference-server",
            "--model",
            model.as_str(),
            "--port",
            &port,
        ];
        command.extend(change.server);
        let config = format!(
            "[workload]\nname = \"tiny\"\nmodel = {model:?}\n\
             [server]\ncommand = {command:?}\nport = {port}\n\
             ready_log = \"The server is fired up and ready to roll!\"\nready_timeout_s = {}\n\
             [benchmark]\n\
             builtin = {{ concurrency = 3, prompts = 6, input_len = 9, output_len = 5 }}\n\
             timeout_s = {}\n\
             [backend]\nkind = \"reference\"\n\
             [compare]\npairs = {}\n\
             [budget]\ntune = \"6s\"\n", // half of the rows, most of those that win
            change.ready_timeout_s.unwrap_or(60),
            change.benchmark_timeout_s.unwrap_or(60),
            change.pairs.unwrap_or(2),
        );
        fs_err::write(folder.join("gemmtune.toml"), config).unwrap();
        Self {
            _keep: keep,
            folder,
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gemmtune"));
        command
            .args(arguments)
            .current_dir(&self.folder)
            .env("HOME", &self.folder);
        command
    }

    /// Runs gemmtune to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs gemmtune to its end with more variables.
    pub(crate) fn run_with(&self, env: &[(&str, &str)], arguments: &[&str]) -> Output {
        self.command(arguments)
            .envs(env.iter().copied())
            .output()
            .unwrap()
    }

    /// Changes the configuration.
    pub(crate) fn edit(&self, from: &str, to: &str) {
        let path = self.folder.join("gemmtune.toml");
        let text = fs_err::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        fs_err::write(&path, text.replace(from, to)).unwrap();
    }

    /// Starts gemmtune and leaves it running.
    pub(crate) fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// The folder of the latest run.
    pub(crate) fn latest(&self) -> Utf8PathBuf {
        self.folder.join("runs/latest").canonicalize_utf8().unwrap()
    }

    /// The whole records of the latest run's journal; none while there is no journal.
    pub(crate) fn journal(&self) -> Vec<Value> {
        let Ok(run) = self.folder.join("runs/latest").canonicalize_utf8() else {
            return Vec::new();
        };
        let text = fs_err::read_to_string(run.join("journal.jsonl")).unwrap_or_default();
        text.split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["event"].clone())
            .collect()
    }

    /// Processes that were started for this site and still live.
    pub(crate) fn left_alive(&self) -> Vec<u32> {
        let mark = format!("GEMMTUNE_RUN={}", self.folder);
        let mut left = Vec::new();
        for entry in fs_err::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let Ok(environ) = fs_err::read(format!("/proc/{pid}/environ")) else {
                continue;
            };
            if environ
                .split(|&byte| byte == 0)
                .any(|variable| variable.starts_with(mark.as_bytes()))
            {
                left.push(pid);
            }
        }
        left
    }

    /// Waits until nothing of this site lives.
    pub(crate) fn assert_nothing_left(&self) {
        let until = Instant::now() + Duration::from_secs(20);
        while !self.left_alive().is_empty() {
            assert!(
                Instant::now() < until,
                "still alive: {:?}",
                self.left_alive()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Standard error as text.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// How often `kind` was recorded for `stage`.
pub(crate) fn count(journal: &[Value], kind: &str, stage: &str) -> usize {
    journal
        .iter()
        .filter(|event| event["kind"] == kind && event["stage"] == stage)
        .count()
}

/// Reads a JSON document of a run.
pub(crate) fn document(path: &Utf8Path) -> Value {
    serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap()
}
