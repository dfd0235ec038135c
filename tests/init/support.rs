//! A folder with a launch script, and processes that end with their test.

use std::process::{Command, Output};

use camino::{Utf8Path, Utf8PathBuf};
use gemmtune::store::file::write_atomic;

pub(crate) struct Job {
    _keep: tempfile::TempDir,
    pub(crate) folder: Utf8PathBuf,
}

impl Job {
    /// A folder with an interpreter to be found and a launch script.
    pub(crate) fn new(script: &str) -> Self {
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

    pub(crate) fn init(&self, arguments: &[&str]) -> Output {
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

    pub(crate) fn written(&self) -> String {
        fs_err::read_to_string(self.folder.join("gemmtune.toml")).unwrap()
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub(crate) const WHOLE: &str = "
export PATH=$PWD/venv/bin:$PATH
export SGLANG_USE_AITER=1 HF_TOKEN=hunter2
python3 -m sglang.launch_server --model-path /m/Qwen3 --tp-size 2 --port 31000 &
python3 -m sglang.bench_serving --port 31000 --max-concurrency 16
";

/// The folder that plays SGLang's and vLLM's entry points.
pub(crate) fn site() -> Utf8PathBuf {
    Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/init/site")
}

/// A child that is ended with its test.
pub(crate) struct Running(pub(crate) std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until `ready` says so.
pub(crate) fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !ready() {
        assert!(std::time::Instant::now() < until, "{what}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

pub(crate) fn python3(job: &Job) -> Command {
    let mut command = Command::new("python3");
    command
        .current_dir(&job.folder)
        .env("PYTHONPATH", site())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stderr(std::process::Stdio::null())
        .stdin(std::process::Stdio::null());
    command
}

/// Processes that `parent` started.
pub(crate) fn tree_of(parent: &str) -> Vec<u32> {
    gemmtune::proc::tree::descendants(parent.parse().unwrap())
}

/// `init -- bash launch.sh` with the site's Python on the path, started and left running.
pub(crate) fn watching(job: &Job, arguments: &[&str]) -> Command {
    let python = Command::new("python3")
        .args(["-c", "import sys; print(sys.executable)"])
        .output()
        .unwrap();
    let python = text(&python.stdout);
    let bin = Utf8Path::new(python.trim()).parent().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_gemmtune"));
    command
        .arg("init")
        .args(arguments)
        .current_dir(&job.folder)
        .env_clear()
        .env("PATH", format!("{bin}:/usr/bin:/bin"))
        .env("HOME", &job.folder)
        .env("PYTHONPATH", site())
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command
}
