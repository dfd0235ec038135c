//! A tree made from the stand-in, and gemmtune run on it.

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;

use crate::schema::check;

/// Two batches of four and one of two, at the default size of the old dialect.
pub(crate) const TEN: [u32; 10] = [16, 32, 48, 64, 96, 128, 160, 192, 224, 256];

/// Which generation of aiter the stand-in plays.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Like {
    /// 303a583c89: batches are poisoned, time-outs count the queue.
    Old,
    /// e4048607a5.
    New,
}

pub(crate) struct Site {
    _keep: tempfile::TempDir,
    pub(crate) folder: Utf8PathBuf,
    tree: Utf8PathBuf,
    pub(crate) env: Vec<(String, String)>,
    args: Vec<String>,
}

pub(crate) fn write(path: &Utf8Path, text: &str) {
    fs_err::create_dir_all(path.parent().unwrap()).unwrap();
    gemmtune::store::file::write_atomic(path, text.as_bytes()).unwrap();
}

fn copy(from: &Utf8Path, to: &Utf8Path) {
    fs_err::create_dir_all(to).unwrap();
    for entry in from.read_dir_utf8().unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            if entry.file_name() != "__pycache__" {
                copy(entry.path(), &target);
            }
        } else {
            fs_err::copy(entry.path(), &target).unwrap();
        }
    }
}

fn edit(path: &Utf8Path, change: impl Fn(String) -> String) {
    let text = fs_err::read_to_string(path).unwrap();
    write(path, &change(text));
}

const MODULES: [&str; 5] = [
    "module_gemm_a8w8_blockscale_tune",
    "module_gemm_a8w8_blockscale_cktile_tune",
    "module_gemm_a8w8_bpreshuffle_tune",
    "module_gemm_a8w8_tune",
    "module_gemm_a4w4_blockscale_tune",
];

impl Site {
    pub(crate) fn new(like: Like, sizes: &[u32]) -> Self {
        let keep = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::try_from(keep.path().canonicalize().unwrap()).unwrap();
        let standin = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/aiter/standin");
        let tree = folder.join("tree");
        copy(&standin, &tree);
        if like == Like::New {
            edit(&tree.join("aiter/utility/base_tuner.py"), |text| {
                text.replace("\"timeout\": None", "\"timeout\": 1800")
                    .replace(
                        "INVALID_TIME = -1",
                        "INVALID_TIME = -1\neffective_topk = True",
                    )
            });
            edit(&tree.join("aiter/utility/mp_tuner.py"), |text| {
                text.replace(
                    "LIMIT_COUNTS_QUEUE =",
                    "_elapsed_since_task_start = output_keys = True\nLIMIT_COUNTS_QUEUE =",
                )
            });
            let script = "csrc/ck_gemm_a8w8_blockscale/gemm_a8w8_blockscale_tune.py";
            edit(&tree.join(script), |text| {
                text.replace("key = [\"cu_num\"", "key = [\"gfx\", \"cu_num\"")
            });
            let script = "csrc/ck_gemm_moe_2stages_codegen/gemm_moe_tune.py";
            edit(&tree.join(script), |text| {
                text.replace("key = [\n", "key = [\n        \"gfx\",\n")
                    .replace(
                        "\"run_1stage\",\n",
                        "\"run_1stage\",\n        \"xbf16\",\n        \"flat\",\n",
                    )
                    .replace("blockMs = [32", "blockMs = [16, 32")
                    .replace("\"errRatio\": 0.5", "\"errRatio\": 0.1")
            });
        }
        for module in MODULES {
            write(&tree.join(format!("aiter/jit/{module}.so")), "");
        }
        let env = vec![("PYTHONDONTWRITEBYTECODE".to_owned(), "1".to_owned())];
        Self::on(keep, tree, sizes, env)
    }

    /// A site on a real tree, whose compiled modules are those of `tests/aiter/cpu`.
    pub(crate) fn real(tree: &Utf8Path, python: &str, sizes: &[u32]) -> Self {
        let keep = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::try_from(keep.path().canonicalize().unwrap()).unwrap();
        let cpu = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/aiter/cpu");
        // aiter makes folders of its own beside the modules.
        copy(&cpu.join("jit"), &folder.join("jit"));
        let path = format!(
            "{}:{}",
            cpu.join("bin"),
            gemmtune::workload::env::variable("PATH").unwrap()
        );
        let env = [
            ("AITER_JIT_DIR", folder.join("jit").as_str()),
            ("PATH", &path),
            ("ROCM_HOME", cpu.as_str()),
            ("GPU_ARCHS", "gfx942"),
            ("CU_NUM", "304"),
            // Two workers share the cores.
            ("OMP_NUM_THREADS", "1"),
            ("PYTHONDONTWRITEBYTECODE", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
        Self::on(keep, tree.to_owned(), sizes, env).args(&["--python", python])
    }

    fn on(
        keep: tempfile::TempDir,
        tree: Utf8PathBuf,
        sizes: &[u32],
        env: Vec<(String, String)>,
    ) -> Self {
        let folder = Utf8PathBuf::try_from(keep.path().canonicalize().unwrap()).unwrap();
        let lines: Vec<String> = sizes
            .iter()
            .map(|size| format!("{size},256,512\n"))
            .collect();
        let shapes = "M,N,K\n".to_owned() + &lines.concat();
        write(&folder.join("s.csv"), &shapes);
        Self {
            _keep: keep,
            folder,
            tree,
            env,
            args: Vec::new(),
        }
    }

    #[must_use]
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    #[must_use]
    pub(crate) fn faults(self, faults: &str) -> Self {
        self.env("STANDIN_FAULTS", faults)
    }

    #[must_use]
    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// Takes a flag back with its value.
    #[must_use]
    pub(crate) fn without(mut self, flag: &str) -> Self {
        if let Some(at) = self.args.iter().position(|arg| arg == flag) {
            self.args.drain(at..at + 2);
        }
        self
    }

    pub(crate) fn without_fault(&mut self) {
        self.env
            .retain(|(name, _)| !["STANDIN_FAULTS", "CPU_FAULTS"].contains(&name.as_str()));
    }

    pub(crate) fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gemmtune"));
        command
            .current_dir(&self.folder)
            .args([
                "--json",
                "tune",
                "--backend",
                "aiter",
                "--aiter-root",
                self.tree.as_str(),
            ])
            .args(["--shapes", "s.csv", "-o", "out"])
            .args(&self.args)
            .args(more)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, more: &[&str]) -> Ran {
        Ran::of(self.command(more).output().unwrap())
    }

    /// Processes of this site's tuners: the keepers, the tuners, their workers.
    pub(crate) fn alive(&self) -> Vec<u32> {
        (1..20_u32)
            .flat_map(|attempt| {
                let mark = self.folder.join(format!("out/attempts/{attempt:02}"));
                gemmtune::proc::tree::marked("GEMMTUNE_TUNER", mark.as_str())
            })
            .collect()
    }

    /// Kills the tuner itself, not its keeper, nor its workers. The stand-in's workers are forks with the same command line, and their numbers may be
    /// smaller where the system's have wrapped around; the tuner is the one whose parent is none of them.
    pub(crate) fn kill_the_tuner(&self) {
        let is_tuner = |pid: &u32| {
            let line = fs_err::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            // The fused MoE's is the third argument of its runner.
            words.iter().take(4).any(|word| word.ends_with(b"_tune.py"))
        };
        let parent = |pid: u32| -> Option<u32> {
            let status = fs_err::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
            line.trim().parse().ok()
        };
        let found: Vec<u32> = self.alive().into_iter().filter(is_tuner).collect();
        let first = found
            .iter()
            .find(|pid| parent(**pid).is_some_and(|parent| !found.contains(&parent)));
        if let Some(pid) = first {
            let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }

    pub(crate) fn start(&self) -> Child {
        self.command(&[])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Waits until so many rows are durable.
    pub(crate) fn wait_for_rows(&self, count: usize) {
        let until = Instant::now() + Duration::from_secs(180);
        while self.durable() < count {
            assert!(Instant::now() < until, "no {count} rows came");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn durable(&self) -> usize {
        fs_err::read_to_string(self.folder.join("out/results.jsonl"))
            .unwrap_or_default()
            .matches("\"record\":\"row\"")
            .count()
    }

    /// M of the input of an attempt.
    pub(crate) fn asked(&self, attempt: &str) -> Vec<u32> {
        let path = self
            .folder
            .join("out/attempts")
            .join(attempt)
            .join("untuned.csv");
        let text = fs_err::read_to_string(path).unwrap();
        text.lines()
            .skip(1)
            .map(|line| line.split(',').next().unwrap().parse().unwrap())
            .collect()
    }

    pub(crate) fn table(&self) -> String {
        fs_err::read_to_string(self.folder.join("out/tuned.csv")).unwrap()
    }

    /// Fails if a process of this site's tuners is alive, after the moments that an orphan has to be reaped.
    pub(crate) fn nothing_is_left(&self) {
        let until = Instant::now() + Duration::from_secs(20);
        while !self.alive().is_empty() {
            assert!(Instant::now() < until, "{:?} are alive", self.alive());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) json: Value,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn of(output: Output) -> Self {
        let stderr = String::from_utf8(output.stderr).unwrap();
        let json = serde_json::Deserializer::from_slice(&output.stdout)
            .into_iter::<Value>()
            .next()
            .transpose()
            .unwrap_or_else(|error| panic!("{error}: {stderr}"))
            .unwrap_or(Value::Null);
        // Whatever it printed is as published.
        let is = |field: &str| json.get(field).is_some();
        match () {
            () if is("attempts") && is("op") => check("tune-aiter-fused-moe", &json),
            () if is("attempts") => check("tune-aiter", &json),
            () if is("flags_from") => check("tune-aiter-dry-run", &json),
            () if is("error") => check("error", &json),
            () => {}
        }
        Self {
            code: output.status.code(),
            json,
            stderr,
        }
    }

    /// The document of a run that took place, whatever its exit code.
    pub(crate) fn list(&self, field: &str) -> &Vec<Value> {
        self.json[field]
            .as_array()
            .unwrap_or_else(|| panic!("no {field} in {} {}", self.json, self.stderr))
    }

    /// M of the entries of a list.
    pub(crate) fn sizes(&self, field: &str) -> Vec<u64> {
        self.list(field)
            .iter()
            .map(|entry| {
                let shape = entry.get("shape").unwrap_or(entry);
                shape["m"].as_u64().unwrap()
            })
            .collect()
    }

    pub(crate) fn row(&self, size: u64) -> &Value {
        self.list("rows")
            .iter()
            .find(|row| row["shape"]["m"] == size)
            .unwrap()
    }
}
