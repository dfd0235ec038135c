//! An AMD site that is played, in a folder of its own, driven through the real binary.

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;

use crate::trees::{copy_folder, snapshot};

/// A folder with trees, a server and a `gemmtune.toml`.
pub(crate) struct Site {
    _keep: tempfile::TempDir,
    pub(crate) folder: Utf8PathBuf,
}

/// What a test changes about the usual site.
#[derive(Default)]
pub(crate) struct Change<'a> {
    /// Variables of the server.
    pub(crate) env: &'a [(&'a str, &'a str)],
    /// A released SGLang on a real torch, in place of the reduced tree on the played one.
    pub(crate) real: Option<Real>,
    /// The reduced tree, `e1` unless told otherwise.
    pub(crate) era: Option<&'a str>,
    /// Plays gfx950 with ROCm 7.2 instead of gfx942 with 7.0.
    pub(crate) gfx950: bool,
    /// The weights of the server's model, in place of the usual ones.
    pub(crate) weights: Option<&'a str>,
    /// A fused MoE behind them: experts, their width, experts of a token, and experts of all ranks under a mask.
    pub(crate) experts: Option<&'a str>,
    /// A checkout of aiter whose tables, build configuration and texts take the place of the played ones.
    pub(crate) aiter: Option<Utf8PathBuf>,
}

/// A released SGLang.
#[derive(Clone)]
pub(crate) struct Real {
    pub(crate) release: String,
    /// The folder it is unpacked in.
    pub(crate) tree: Utf8PathBuf,
    /// An interpreter with torch and what SGLang imports.
    pub(crate) python: Utf8PathBuf,
}

/// Weights of the server's model: K of each is N of the one before.
const WEIGHTS: &str = "256,128;128,256";

/// The same for a real torch.
const REAL_WEIGHTS: &str = "512,1024;1024,512";

impl Site {
    pub(crate) fn new(change: &Change<'_>) -> Self {
        let keep = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::try_from(keep.path().to_owned())
            .unwrap()
            .canonicalize_utf8()
            .unwrap();
        let tests = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        // The tuner and what belongs to it, then everything that runs in the server.
        copy_folder(&tests.join("aiter/standin"), &folder.join("aiter"));
        fs_err::remove_file(folder.join("aiter/torch.py")).unwrap();
        let played = tests.join("rocm/site");
        copy_folder(&played.join("aiter"), &folder.join("aiter"));
        if change.real.is_some() {
            let package = folder.join("aiter/aiter");
            copy_folder(&tests.join("realtrees/standin/aiter"), &package);
            let around = fs_err::read_to_string(tests.join("rocm/real/with_tables.py")).unwrap();
            let standin = fs_err::read_to_string(package.join("__init__.py")).unwrap();
            fs_err::write(package.join("__init__.py"), standin + &around).unwrap();
            // The played fused MoE needs the played torch.
            fs_err::copy(
                tests.join("rocm/real/fused_moe.py"),
                package.join("fused_moe.py"),
            )
            .unwrap();
        } else {
            for part in ["torch", "sglang"] {
                copy_folder(&played.join(part), &folder.join(part));
            }
            let reduced = Utf8Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("testdata/trees")
                .join(change.era.unwrap_or("e1"));
            copy_folder(&reduced, &folder.join("sglang"));
        }
        fs_err::copy(played.join("server.py"), folder.join("server.py")).unwrap();
        let site = Self {
            _keep: keep,
            folder,
        };
        if let Some(checkout) = &change.aiter {
            site.take_from(checkout);
        }
        // What gemmtune recognises 303a583c by, where the stand-ins have no use for it.
        site.append("utility/base_tuner.py", "# run_config\n");
        site.append(
            "utility/mp_tuner.py",
            "# pool_restart_needed AcceleratorError\n",
        );
        if change.gfx950 {
            Self::write(
                &site.folder.join("torch/torch/version.py"),
                "__version__ = \"2.9.0+rocm7.2\"\nhip = \"7.2.26015\"\ncuda = None\n",
            );
        }
        // A module from before, built from a table without a row for this machine.
        Self::write(
            &site.aiter("jit/module_gemm_a8w8_blockscale.so"),
            "ELF, as it were\n",
        );
        Self::write(
            &site.aiter("jit/build/module_gemm_a8w8_blockscale/gemm.cu"),
            "of another table\n",
        );
        Self::write(
            &site.folder.join("shapes.csv"),
            "op,M,N,K,dtype,records\ngemm_a8w8_blockscale,16,256,128,torch.float8_e4m3fnuz,3\n",
        );
        site.write_config(change);
        site
    }

    fn write_config(&self, change: &Change<'_>) {
        let folder = &self.folder;
        let port = crate::ports::reserve();
        let mut env = vec![
            ("PYTHONPATH", self.path(change.real.as_ref())),
            ("PYTHONDONTWRITEBYTECODE", "1".to_owned()),
            ("SGLANG_USE_AITER", "1".to_owned()),
            ("HOME", folder.to_string()),
        ];
        if change.gfx950 {
            env.push(("PLAYED_ARCH", "gfx950".to_owned()));
        }
        if change.real.is_some() {
            let look = [
                ("REALTREES_ARCH", "gfx942"),
                ("REALTREES_HIP", "7.0.51831"),
                // Otherwise the import compiles an extension.
                ("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1"),
                ("OMP_NUM_THREADS", "1"),
            ];
            env.extend(look.map(|(name, value)| (name, value.to_owned())));
        }
        env.extend(
            change
                .env
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned())),
        );
        let env: Vec<String> = env
            .iter()
            .map(|(name, value)| format!("{name} = {value:?}"))
            .collect();
        let (gfx, cu_num) = if change.gfx950 {
            ("gfx950", 256)
        } else {
            ("gfx942", 304)
        };
        let (python, usual) = match &change.real {
            Some(real) => (real.python.as_str(), REAL_WEIGHTS),
            None => ("python3", WEIGHTS),
        };
        let weights = change.weights.unwrap_or(usual);
        let experts = change
            .experts
            .map_or_else(String::new, |sizes| format!(", \"--experts\", \"{sizes}\""));
        let config = format!(
            "[workload]\nname = \"played\"\n\
             [server]\ncommand = [{python:?}, \"server.py\", \"--port\", \"{port}\", \"--weights\", \"{weights}\"{experts}]\n\
             port = {port}\nready_log = \"The server is fired up and ready to roll!\"\nready_timeout_s = 600\n\
             env = {{ {} }}\n\
             [benchmark]\nbuiltin = {{ concurrency = 2, prompts = 4, input_len = 40, output_len = 3 }}\ntimeout_s = 300\n\
             [backend]\nkind = \"aiter\"\npython = {python:?}\ngfx = \"{gfx}\"\ncu_num = {cu_num}\n\
             [compare]\npairs = 2\n[budget]\ntune = \"60s\"\n",
            env.join(", ")
        );
        fs_err::write(folder.join("gemmtune.toml"), config).unwrap();
    }

    /// Serves prompts of these lengths, each in a load of its own.
    pub(crate) fn loads(&self, lengths: &[u32]) {
        let path = self.folder.join("gemmtune.toml");
        let text = fs_err::read_to_string(&path).unwrap();
        let (before, rest) = text.split_once("builtin = {").unwrap();
        let (_, rest) = rest.split_once("}\n").unwrap();
        let (benchmark, rest) = rest.split_once("[backend]").unwrap();
        let load = |length: &u32| {
            format!(
                "[[benchmark.loads]]\nname = \"of {length}\"\nconcurrency = 2\nprompts = 2\n\
                 input_len = {length}\noutput_len = 3\n"
            )
        };
        let loads = lengths.iter().map(load).collect::<Vec<_>>().concat();
        fs_err::write(path, format!("{before}{benchmark}{loads}[backend]{rest}")).unwrap();
    }

    fn path(&self, real: Option<&Real>) -> String {
        let here = |part: &str| self.folder.join(part).into_string();
        let Some(real) = real else {
            return ["torch", "aiter", "sglang"].map(here).join(":");
        };
        let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");
        [
            format!("{tests}/rocm/real"),
            format!("{tests}/realtrees"),
            here("aiter"),
            real.tree.to_string(),
        ]
        .join(":")
    }

    /// `PYTHONPATH=…`, for a process of its own.
    pub(crate) fn python_path(&self) -> String {
        format!("PYTHONPATH={}", self.path(None))
    }

    /// Sets a variable of the server.
    pub(crate) fn set(&self, name: &str, value: &str) {
        let path = self.folder.join("gemmtune.toml");
        let text = fs_err::read_to_string(&path).unwrap();
        let text = text.replace("SGLANG_USE_AITER = \"1\", ", &{
            if name == "SGLANG_USE_AITER" {
                format!("SGLANG_USE_AITER = {value:?}, ")
            } else {
                format!("SGLANG_USE_AITER = \"1\", {name} = {value:?}, ")
            }
        });
        fs_err::write(path, text).unwrap();
    }

    /// Adds a line to the `[backend]` of `gemmtune.toml`.
    pub(crate) fn set_backend(&self, line: &str) {
        let path = self.folder.join("gemmtune.toml");
        let text = fs_err::read_to_string(&path).unwrap();
        fs_err::write(
            path,
            text.replace("kind = \"aiter\"\n", &format!("kind = \"aiter\"\n{line}\n")),
        )
        .unwrap();
    }

    /// A file of the aiter package.
    pub(crate) fn aiter(&self, relative: &str) -> Utf8PathBuf {
        self.folder.join("aiter/aiter").join(relative)
    }

    /// Takes over what a deployment reads of a real tree: texts are appended as comments, since the played code beside them runs.
    fn take_from(&self, checkout: &Utf8Path) {
        let real = |relative: &str| fs_err::read_to_string(checkout.join(relative)).unwrap();
        for relative in ["jit/core.py", "jit/optCompilerConfig.json"] {
            Self::write(&self.aiter(relative), &real(&format!("aiter/{relative}")));
        }
        // Nothing imports it here, and how it calls its modules is read.
        let ops = real("aiter/ops/gemm_op_a8w8.py");
        Self::write(&self.aiter("ops/gemm_op_a8w8.py"), &ops);
        for relative in [
            "utility/base_tuner.py",
            "utility/mp_tuner.py",
            "ops/gemm_op_common.py",
        ] {
            let comment: String = real(&format!("aiter/{relative}"))
                .lines()
                .flat_map(|line| ["# ", line, "\n"])
                .collect();
            self.append(relative, &comment);
        }
        fs_err::remove_dir_all(self.aiter("configs")).unwrap();
        copy_folder(&checkout.join("aiter/configs"), &self.aiter("configs"));
        // Whether the module itself takes a kernel's name: the declaration ends at its first `...`.
        let newer = ops
            .split("def gemm_a8w8_blockscale_ck(")
            .nth(1)
            .and_then(|rest| rest.split("...").next())
            .is_some_and(|declared| declared.contains("kernelName"));
        Self::write(&self.aiter("REVISION"), if newer { "H\n" } else { "P\n" });
        if newer {
            // The stand-in tuner writes what this tree's tuner writes.
            self.append("utility/base_tuner.py", "\neffective_topk = 1\n");
        }
    }

    fn append(&self, relative: &str, text: &str) {
        let path = self.aiter(relative);
        let before = fs_err::read_to_string(&path).unwrap();
        fs_err::write(&path, before + text).unwrap();
    }

    /// Makes the tree behave, and be recognised, as e4048607: kernels are asked for by name.
    pub(crate) fn play_newer_aiter(&self) {
        Self::write(&self.aiter("REVISION"), "H\n");
        self.append(
            "utility/base_tuner.py",
            "# \"gfx\" effective_topk\neffective_topk = 1\n",
        );
        let ops = self.aiter("ops/gemm_op_a8w8.py");
        let text = fs_err::read_to_string(&ops).unwrap();
        let named = text
            .replace("Out): ...", "Out, kernelName=\"\"): ...")
            .replace("=False): ...", "=False, kernelName=\"\"): ...")
            .replace("=True): ...", "=True, kernelName=\"\"): ...")
            .lines()
            .map(|line| {
                // The call for want of a row, in the function's own block, names none.
                let for_a_row = line.starts_with("            return ") && line.ends_with("Y)");
                if for_a_row {
                    line.replace("Y)", "Y, kernelName=str(config[\"kernelName\"]))")
                } else {
                    line.to_owned()
                }
            })
            .collect::<Vec<_>>()
            .join("\n");
        Self::write(&ops, &(named + "\n# _CKGEMM_HAS_GFX\n"));
        let fill = |relative: &str| {
            let path = self.aiter(relative);
            let text = fs_err::read_to_string(&path).unwrap();
            let rows: Vec<String> = text
                .lines()
                .map(|row| match row.split(',').next() {
                    Some("cu_num") => format!("gfx,{row}"),
                    Some("304") => format!("gfx942,{row}"),
                    _ => format!("gfx950,{row}"),
                })
                .collect();
            fs_err::write(path, rows.join("\n") + "\n").unwrap();
        };
        let moe = fs_err::read_to_string(self.aiter("fused_moe_newer.py")).unwrap();
        Self::write(&self.aiter("fused_moe.py"), &moe);
        let script = self
            .folder
            .join("aiter/csrc/ck_gemm_moe_2stages_codegen/gemm_moe_tune.py");
        let text = fs_err::read_to_string(&script).unwrap();
        let text = text
            .replace("key = [\n", "key = [\n        \"gfx\",\n")
            .replace(
                "\"run_1stage\",\n",
                "\"run_1stage\",\n        \"xbf16\",\n        \"flat\",\n",
            )
            .replace("blockMs = [32", "blockMs = [16, 32");
        Self::write(&script, &text);
        fill("configs/a8w8_blockscale_tuned_gemm.csv");
        fill("configs/model_configs/a8w8_blockscale_tuned_gemm_other_model.csv");
    }

    pub(crate) fn write(path: &Utf8Path, text: &str) {
        Self::write_bytes(path, text.as_bytes());
    }

    pub(crate) fn write_bytes(path: &Utf8Path, bytes: &[u8]) {
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, bytes).unwrap();
    }

    /// Makes a file `seconds` old.
    pub(crate) fn age(path: &Utf8Path, seconds: u64) {
        let file = fs_err::File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds))
            .unwrap();
    }

    /// Every file of the trees with a hash of its bytes and its mode.
    pub(crate) fn trees(&self) -> Vec<(String, u64, u32)> {
        let mut files = Vec::new();
        for part in ["aiter", "sglang", "torch"] {
            let folder = self.folder.join(part);
            if folder.is_dir() {
                snapshot(&folder, &mut files);
            }
        }
        files.sort();
        files
    }

    /// Runs gemmtune to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Starts gemmtune, which says nothing.
    pub(crate) fn start(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gemmtune"));
        command
            .args(arguments)
            .current_dir(&self.folder)
            .env("HOME", &self.folder)
            // Tests beside this one are no runs on the same GPUs.
            .env("TMPDIR", &self.folder);
        command
    }

    /// The folder of the latest run.
    pub(crate) fn latest(&self) -> Utf8PathBuf {
        self.folder.join("runs/latest").canonicalize_utf8().unwrap()
    }

    /// The records of the latest run's journal.
    pub(crate) fn journal(&self) -> Vec<Value> {
        let text = fs_err::read_to_string(self.latest().join("journal.jsonl")).unwrap();
        text.lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["event"].clone())
            .collect()
    }

    /// Waits until nothing that was started for this site lives.
    pub(crate) fn assert_nothing_left(&self) {
        let mark = format!("GEMMTUNE_RUN={}", self.folder);
        let alive = || {
            fs_err::read_dir("/proc")
                .unwrap()
                .flatten()
                .filter_map(|entry| fs_err::read(entry.path().join("environ")).ok())
                .any(|environ| {
                    environ
                        .split(|&byte| byte == 0)
                        .any(|variable| variable.starts_with(mark.as_bytes()))
                })
        };
        let until = Instant::now() + Duration::from_secs(20);
        while alive() {
            assert!(Instant::now() < until, "something is still alive");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What the caller of the tests set.
pub(crate) fn asked(name: &str) -> Option<String> {
    std::env::var_os(name)?.into_string().ok()
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
