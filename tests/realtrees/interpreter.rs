//! The processes that run a tree: a fresh interpreter, or a fork of one that is warm already (`warm.py`).

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Map, Value, json};

use super::wanted::Device;

/// Where the scripts of these tests are.
fn here() -> Utf8PathBuf {
    Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/realtrees")
}

/// What `PYTHONPATH` is for `tree`: the overlay of `env` in front, these scripts, the stand-in for aiter.
fn python_path(tree: &Utf8Path, env: &Map<String, Value>) -> String {
    let front = env.get("PYTHONPATH").and_then(Value::as_str);
    let front = front.map_or(String::new(), |path| format!("{path}:"));
    format!("{front}{here}:{here}/standin:{tree}", here = here())
}

/// A run of `script` on `device`, whatever the tree.
fn command(python: &str, script: &str, (arch, hip, _): Device) -> Command {
    let mut command = Command::new(python);
    command
        .arg(here().join(script))
        .env("REALTREES_ARCH", arch)
        .env("REALTREES_HIP", hip)
        .env("SGLANG_USE_AITER", "1")
        .env("OMP_NUM_THREADS", "1")
        // Otherwise apache-tvm-ffi compiles an extension at import.
        .env("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")
        // Compiled once for all runs; and buffers of 100 MB are kept instead of faulted in anew for each case.
        .env_remove("PYTHONDONTWRITEBYTECODE")
        .env("MALLOC_MMAP_THRESHOLD_", "4294967296")
        .env("MALLOC_TRIM_THRESHOLD_", "8589934592");
    command
}

/// Standard output and error of `run_tree.py` in an interpreter of its own, as each rank of a server has one.
pub(super) fn fresh(
    python: &str,
    device: Device,
    tree: &Utf8Path,
    env: &Map<String, Value>,
) -> Result<(Vec<u8>, Vec<u8>), String> {
    let output = command(python, "run_tree.py", device)
        .envs(
            env.iter()
                .filter_map(|(name, value)| Some((name, value.as_str()?))),
        )
        .env("PYTHONPATH", python_path(tree, env))
        .output()
        .map_err(|error| error.to_string())?;
    Ok((output.stdout, output.stderr))
}

/// A process that has imported what takes long, for one device.
pub(super) struct Warm {
    device: Device,
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    files: tempfile::TempDir,
}

impl Warm {
    fn start(python: &str, device: Device) -> Result<Self, String> {
        let mut process = command(python, "warm.py", device)
            .env("PYTHONPATH", here())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| error.to_string())?;
        Ok(Self {
            device,
            requests: process.stdin.take().expect("it is piped"),
            answers: BufReader::new(process.stdout.take().expect("it is piped")),
            process,
            files: tempfile::tempdir().map_err(|error| error.to_string())?,
        })
    }

    /// Standard output and error of `run_tree.py` in a fork of `warm`, which is started, or started anew for another
    /// device.
    pub(super) fn fork(
        warm: &mut Option<Self>,
        python: &str,
        device: Device,
        tree: &Utf8Path,
        env: &Map<String, Value>,
    ) -> Result<(Vec<u8>, Vec<u8>), String> {
        if warm.as_ref().is_none_or(|warm| warm.device != device) {
            *warm = None;
            *warm = Some(Self::start(python, device)?);
        }
        let answer = warm.as_mut().map(|warm| warm.run(tree, env));
        answer
            .expect("it was started")
            .inspect_err(|_| *warm = None)
    }

    fn run(
        &mut self,
        tree: &Utf8Path,
        env: &Map<String, Value>,
    ) -> Result<(Vec<u8>, Vec<u8>), String> {
        let [reply, log] = ["reply", "log"].map(|name| self.files.path().join(name));
        let mut env = env.clone();
        env.insert("PYTHONPATH".to_owned(), python_path(tree, &env).into());
        let request = json!({"env": env, "reply": reply, "log": log});
        let failed = |error: std::io::Error| format!("the warm process: {error}");
        writeln!(self.requests, "{request}").map_err(failed)?;
        let mut answer = String::new();
        if self.answers.read_line(&mut answer).map_err(failed)? == 0 {
            return Err("the warm process ended".to_owned());
        }
        Ok((
            fs_err::read(reply).map_err(failed)?,
            fs_err::read(log).map_err(failed)?,
        ))
    }
}

impl Drop for Warm {
    fn drop(&mut self) {
        // It waits for a request, or is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
