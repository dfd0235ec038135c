//! Real SGLang releases, executed: the trace is what runs, the records are what ran, and switched numbers are right.
//!
//! Needs what `tests/realtrees/run` prepares; see `tests/realtrees/README.md`.

mod interpreter;
mod moe;
mod sabotage;
mod wanted;

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Mutex;

use camino::{Utf8Path, Utf8PathBuf};
use interpreter::Warm;
use sabotage::check_sabotage;
use serde_json::{Map, Value};
use wanted::{Change, Device, GFX942, GFX950_OLD, wanted};

/// Above bf16 rounding (0.0018), far below the smallest layout mistake (0.18).
const LIMIT: f64 = 0.005;

/// The weight (N, K) that [`Change::Routed`] sends to CK: released trees leave it on Triton.
const ROUTED: (u64, &str) = (512, "512,7168");

struct Prepared {
    python: String,
    cache: Utf8PathBuf,
    scratch: Utf8PathBuf,
}

struct Run<'a> {
    prepared: &'a Prepared,
    release: &'a str,
    device: Device,
    change: Change,
}

/// What a run said.
struct Said {
    reply: Value,
    log: String,
    records: Vec<Value>,
}

impl Prepared {
    fn variable(name: &str) -> String {
        let value = std::env::var_os(name).and_then(|value| value.into_string().ok());
        value.unwrap_or_else(|| panic!("{name} is not set: run `tests/realtrees/run`"))
    }

    fn released(&self, release: &str) -> Utf8PathBuf {
        self.cache.join(format!("sglang-{release}"))
    }
}

fn gemmtune(arguments: &[&str]) -> Result<Value, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_gemmtune"))
        .args(arguments)
        .arg("--json")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{arguments:?}: {said}"));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("{arguments:?}: {error}: {said}"))
}

impl Run<'_> {
    fn name(&self) -> String {
        let (arch, _, rocm) = self.device;
        format!("{} {arch} ROCm {rocm} {:?}", self.release, self.change)
    }

    /// A copy of the released tree whose files are links: an atomic write replaces a link and spares the original.
    fn copy(&self) -> Utf8PathBuf {
        let (arch, _, rocm) = self.device;
        let copy = self
            .prepared
            .scratch
            .join(format!("{}-{arch}-{rocm}-{:?}", self.release, self.change));
        let released = self.prepared.released(self.release);
        let copied = Command::new("cp")
            .args(["-al", released.as_str(), copy.as_str()])
            .status()
            .unwrap();
        assert!(copied.success());
        copy
    }

    /// Changes a copy of the tree as this run wants it; answers with the variables that its server needs.
    fn prepare(&self, tree: &Utf8Path, records: &Utf8Path) -> Result<Map<String, Value>, String> {
        let (arch, _, rocm) = self.device;
        let variables = |answer: Value| answer["env"].as_object().cloned().unwrap_or_default();
        let switch = |mode: &[&str]| {
            let base = [
                "switch",
                "apply",
                tree.as_str(),
                "--to",
                "ck",
                "--arch",
                arch,
                "--rocm",
                rocm,
            ];
            gemmtune(&[&base, mode].concat()).map(variables)
        };
        let instrument = |mode| {
            gemmtune(&[
                "instrument",
                "apply",
                tree.as_str(),
                "--mode",
                mode,
                "--records",
                records.as_str(),
            ])
        };
        match self.change {
            Change::Observed | Change::Silent => instrument("overlay").map(variables),
            Change::Switched => switch(&[]),
            Change::Routed => switch(&["--route", ROUTED.1]),
            Change::SwappedByHand => {
                swap_import(&tree.join("sglang/srt/layers/quantization/fp8_utils.py"));
                switch(&[])
            }
            Change::Patched | Change::PatchedSilent => {
                let mut env = instrument("patch").map(variables)?;
                // A tree that is right already has nothing to patch.
                env.extend(switch(&["--mode", "patch"])?);
                Ok(env)
            }
        }
    }

    fn execute(&self, warm: &mut Option<Warm>) -> Result<Said, String> {
        let tree = self.copy();
        let records = tree.join("records");
        let mut env = self.prepare(&tree, &records)?;
        if matches!(self.change, Change::Silent | Change::PatchedSilent) {
            env.retain(|name, _| {
                !name.starts_with("SGLANG_DUMP_") && !name.starts_with("SGLANG_LOG_")
            });
        }
        let patched = matches!(
            self.change,
            Change::Patched | Change::PatchedSilent | Change::SwappedByHand
        );
        // An overlay works on the released tree itself, untouched; its byte code is compiled once for all runs.
        let run_from = if patched {
            tree.clone()
        } else {
            self.prepared.released(self.release)
        };
        let said = self.start(&run_from, &env, warm)?;
        let records = record_objects(&records);
        fs_err::remove_dir_all(&tree).unwrap();
        Ok(Said { records, ..said })
    }

    /// Once a release, observed on gfx942, the interpreter is one of its own, so that the overlay comes in by the door it
    /// has in a server. Everything else runs in a fork of `warm`.
    fn start(
        &self,
        tree: &Utf8Path,
        env: &Map<String, Value>,
        warm: &mut Option<Warm>,
    ) -> Result<Said, String> {
        let python = &self.prepared.python;
        let (reply, log) = if self.change == Change::Observed && self.device == GFX942 {
            interpreter::fresh(python, self.device, tree, env)?
        } else {
            Warm::fork(warm, python, self.device, tree, env)?
        };
        let log = String::from_utf8_lossy(&log).into_owned();
        let reply = serde_json::from_slice(&reply).map_err(|error| {
            format!(
                "{}: {error}: …{}",
                self.name(),
                &log[log.floor_char_boundary(log.len().saturating_sub(1500))..]
            )
        })?;
        Ok(Said {
            reply,
            log,
            records: Vec::new(),
        })
    }
}

/// The playbook's edit: the Triton import commented out, the CK import in.
fn swap_import(path: &Utf8Path) {
    let triton = "    from aiter.ops.triton.gemm_a8w8_blockscale import gemm_a8w8_blockscale\n";
    let ck = "    from aiter import gemm_a8w8_bpreshuffle, get_hip_quant\n";
    let text = fs_err::read_to_string(path).unwrap();
    assert_eq!(text.matches(triton).count(), 1, "{path}");
    assert_eq!(text.matches(ck).count(), 1, "{path}");
    let text = text
        .replace(triton, &format!("    # {}", triton.trim_start()))
        .replace(
            ck,
            "    from aiter import gemm_a8w8_blockscale, gemm_a8w8_bpreshuffle, get_hip_quant\n",
        );
    fs_err::remove_file(path).unwrap(); // a link to the released file
    fs_err::write(path, text).unwrap();
}

fn record_objects(folder: &Utf8Path) -> Vec<Value> {
    let Ok(files) = folder.read_dir_utf8() else {
        return Vec::new();
    };
    let texts = files.map(|file| fs_err::read_to_string(file.unwrap().path()).unwrap());
    texts
        .flat_map(|text| {
            text.lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect::<Vec<_>>()
        })
        .collect()
}

impl Said {
    /// The cases that ran; 0.5.5 and 0.5.5.post1 take no pre-quantised pair, and say so.
    fn cases(&self) -> Vec<&Value> {
        let old = ["0.5.5", "0.5.5.post1"]
            .iter()
            .any(|old| self.reply["sglang"] == *old);
        let cases = self.reply["cases"].as_array().unwrap().iter();
        cases
            .filter(|case| {
                !(old
                    && case["case"].as_str().unwrap().starts_with("tuple")
                    && !case["raised"].is_null())
            })
            .collect()
    }

    /// The per-channel cases that ran.
    fn channel(&self) -> &[Value] {
        self.reply["channel"].as_array().unwrap()
    }

    /// Block-scaled kernels that ran, as the trace names them.
    fn kernels(&self) -> BTreeSet<&str> {
        self.cases().iter().map(|case| kernel(case)).collect()
    }

    /// Rows `M,N,K` that ran.
    fn rows(&self) -> BTreeSet<String> {
        let cases = self.cases().into_iter().chain(self.channel());
        cases
            .map(|case| format!("{},{},{}", case["M"], case["N"], case["K"]))
            .collect()
    }

    /// Whether the log says which linears serve per-channel weights: those that ran, once each.
    fn told_channel(&self, problems: &mut Vec<String>) {
        for (linear, way) in [
            ("apply_fp8_ptpc_linear", "ptpc"),
            ("apply_fp8_linear", "per-token"),
        ] {
            let line = format!(
                "[Fp8LinearMethod] per_channel fp8_linear={linear} (sglang.srt.layers.quantization.fp8_utils)"
            );
            let ran = self.channel().iter().any(|case| case["case"] == way);
            let told = self.log.matches(&line).count();
            if told != usize::from(ran) {
                problems.push(format!("{told} lines about {linear}, which ran: {ran}"));
            }
        }
    }

    /// Rows of the dump lines in the log.
    fn dumped(&self) -> BTreeSet<String> {
        let rows = self
            .log
            .split("csv_row: ")
            .skip(1)
            .filter(|_| self.log.contains("[GEMM_shape_dump]"));
        rows.map(|row| row.split(',').take(3).collect::<Vec<_>>().join(","))
            .collect()
    }

    /// `released`: the tree's own dispatch ran. Below ROCm 7.2 it may take CK above the M that is safe, and gets the
    /// NaN that a server would: most releases have no guard, 0.5.15.post1 not for every shape.
    fn check_numbers(&self, released: bool, problems: &mut Vec<String>) {
        for case in self.channel() {
            let right = case["error"].as_f64().is_some_and(|error| error < LIMIT);
            if !right || case["kernel"] != "gemm_a8w8_bpreshuffle" {
                problems.push(format!("per-channel: {case}"));
            }
        }
        for case in self.cases() {
            let unguarded = released
                && case["N"] == 4096
                && case["M"].as_u64() > Some(2048)
                && kernel(case) == "ck"
                && case["error"].is_null();
            if unguarded {
                continue;
            }
            match case["error"].as_f64() {
                Some(error) if error < LIMIT => {}
                _ => problems.push(format!("wrong numbers: {case}")),
            }
        }
    }
}

fn kernel(case: &Value) -> &str {
    match case["kernel"].as_str() {
        Some("gemm_a8w8_blockscale") => "ck",
        Some("gemm_a8w8_blockscale_bpreshuffle") => "bpreshuffle",
        Some("triton") => "triton",
        _ => "none",
    }
}

/// Kernels the trace says run on the device with no variable of SGLang's set.
fn traced(trace: &Value, device: Device) -> BTreeSet<String> {
    let (arch, _, rocm) = device;
    let wanted = if rocm == "7.2" { ">=7.2" } else { "<7.2" };
    let path = trace["paths"]
        .as_array()
        .unwrap()
        .iter()
        .find(|path| path["arch"] == arch && (path["rocm"] == "any" || path["rocm"] == wanted));
    let path = path.unwrap_or_else(|| panic!("no path for {device:?} in {trace}"));
    match path["by_default"]
        .as_str()
        .or(path["kernel"].as_str())
        .unwrap()
    {
        "depends" => path["choices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|choice| choice["kernel"].as_str().unwrap().to_owned())
            .collect(),
        one => BTreeSet::from([one.to_owned()]),
    }
}

/// What is wrong with a run, if anything; the first line is for people.
fn check(run: &Run<'_>, warm: &mut Option<Warm>) -> (String, Vec<String>) {
    let mut problems = Vec::new();
    let said = match run.execute(warm) {
        Ok(said) => said,
        Err(error) => return (run.name(), vec![error]),
    };
    let kernels = said.kernels();
    let worst = said
        .cases()
        .iter()
        .filter_map(|case| case["error"].as_f64())
        .fold(0.0, f64::max);
    let line = format!(
        "{:<42} {} cases and {} per channel, kernels {kernels:?}, largest error {worst:.4}",
        run.name(),
        said.cases().len(),
        said.channel().len()
    );
    let released = matches!(run.change, Change::Observed | Change::Silent);
    said.check_numbers(released && run.device == GFX950_OLD, &mut problems);
    if said.reply["dispatch"] != "aiter_w8a8_block_fp8_linear" {
        problems.push(format!("dispatch chose {}", said.reply["dispatch"]));
    }
    let lines = said
        .log
        .matches("[Fp8LinearMethod] block_quant w8a8_block_fp8_linear=aiter_w8a8_block_fp8_linear")
        .count();
    match run.change {
        Change::Observed => {
            let trace = gemmtune(&["trace", run.prepared.released(run.release).as_str()]).unwrap();
            let allowed = traced(&trace, run.device);
            let ran: BTreeSet<_> = kernels.iter().map(|kernel| (*kernel).to_owned()).collect();
            if allowed != ran {
                problems.push(format!("the trace says {allowed:?}, {ran:?} ran"));
            }
            if said.dumped() != said.rows() {
                problems.push(format!(
                    "dump lines have {:?}, {:?} ran",
                    said.dumped(),
                    said.rows()
                ));
            }
            if lines != 1 {
                problems.push(format!("{lines} dispatch lines"));
            }
            said.told_channel(&mut problems);
            check_records(&said, &mut problems);
        }
        Change::Silent | Change::PatchedSilent => {
            if !said.dumped().is_empty() || lines != 0 || !said.records.is_empty() {
                problems.push("lines or records with no variable set".to_owned());
            }
        }
        Change::Switched | Change::Patched | Change::SwappedByHand => {
            check_switched(run, &said, &mut problems);
        }
        Change::Routed => check_routed(&said, &mut problems),
    }
    if run.change == Change::Patched {
        if !said.rows().is_subset(&said.dumped()) {
            problems.push(format!(
                "dump lines have {:?}, {:?} ran",
                said.dumped(),
                said.rows()
            ));
        }
        if lines == 0 {
            problems.push("no dispatch line".to_owned());
        }
        said.told_channel(&mut problems);
    }
    (line, problems)
}

/// Triton may still run only above the largest M at which CK is right.
fn check_switched(run: &Run<'_>, said: &Said, problems: &mut Vec<String>) {
    for case in said.cases() {
        let guarded =
            run.device == GFX950_OLD && case["N"] == 4096 && case["M"].as_u64() > Some(2048);
        if guarded != (kernel(case) == "triton") {
            problems.push(format!("not as forced: {case}"));
        }
    }
}

/// The routed weight runs CK at every M, and every other one Triton.
fn check_routed(said: &Said, problems: &mut Vec<String>) {
    for case in said.cases() {
        let routed = case["N"].as_u64() == Some(ROUTED.0);
        if routed == (kernel(case) == "triton") {
            problems.push(format!("not as routed: {case}"));
        }
    }
}

/// The record file must tell each call: one per case, of the kernel that ran.
fn check_records(said: &Said, problems: &mut Vec<String>) {
    let mut recorded = std::collections::BTreeMap::new();
    for record in said
        .records
        .iter()
        .filter(|record| record["op"].is_string())
    {
        let row = format!("{},{},{}", record["M"], record["N"], record["K"]);
        *recorded.entry(row).or_insert(0) += record["count"].as_u64().unwrap();
    }
    let mut expected = std::collections::BTreeMap::new();
    // Calls that 0.5.5 refuses were calls too.
    let cases = said.reply["cases"].as_array().unwrap().iter();
    for case in cases.chain(said.channel()) {
        *expected
            .entry(format!("{},{},{}", case["M"], case["N"], case["K"]))
            .or_insert(0) += 1;
    }
    if recorded != expected {
        problems.push(format!("{recorded:?} was recorded, {expected:?} ran"));
    }
    let hello = said
        .records
        .iter()
        .rfind(|record| record["gemmtune"] == "hello");
    if hello.is_none_or(|hello| hello["rank"] != 0) {
        problems.push(format!("no hello with a rank: {hello:?}"));
    }
    problems.extend(
        said.records
            .iter()
            .filter(|record| record["error"].is_string())
            .map(Value::to_string),
    );
}

#[expect(
    clippy::print_stdout,
    reason = "a run of minutes shows what it has found so far"
)]
#[test]
#[ignore = "needs torch and SGLang releases: `tests/realtrees/run` fetches them and runs this"]
fn real_releases_run_as_traced_and_as_switched() {
    let scratch = tempfile::Builder::new()
        .prefix("scratch-")
        .tempdir_in(Prepared::variable("GEMMTUNE_TESTS_CACHE")) // links do not cross file systems
        .unwrap();
    let prepared = Prepared {
        python: Prepared::variable("GEMMTUNE_REALTREES_PYTHON"),
        cache: Prepared::variable("GEMMTUNE_TESTS_CACHE").into(),
        scratch: Utf8PathBuf::try_from(scratch.path().to_owned()).unwrap(),
    };
    let releases = Prepared::variable("GEMMTUNE_REALTREES");
    let depth = Prepared::variable("GEMMTUNE_REALTREES_DEPTH");
    let mut work: Vec<Run<'_>> = Vec::new();
    for (index, release) in releases.split_whitespace().enumerate() {
        work.extend(
            wanted(index, release, &depth)
                .into_iter()
                .map(|(device, change)| Run {
                    prepared: &prepared,
                    release,
                    device,
                    change,
                }),
        );
    }
    let total = work.len();
    // A worker's warm process is for one device; the queue is taken from its end.
    work.sort_by_key(|run| std::cmp::Reverse((run.device.0, run.device.2)));
    let (queue, failures) = (Mutex::new(work), Mutex::new(Vec::new()));
    let workers = std::env::var_os("GEMMTUNE_REALTREES_JOBS")
        .and_then(|jobs| jobs.to_str()?.parse().ok())
        .or_else(|| Some(std::thread::available_parallelism().ok()?.get().min(4)))
        .unwrap_or(1);
    let report = |(line, problems): (String, Vec<String>)| {
        println!("{line}");
        failures.lock().unwrap().extend(
            problems
                .into_iter()
                .map(|problem| format!("{line}\n    {problem}")),
        );
    };
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                let mut warm = None;
                loop {
                    let next = queue.lock().unwrap().pop();
                    let Some(run) = next else { break };
                    report(check(&run, &mut warm));
                }
            });
        }
    });
    let newest = releases.split_whitespace().last().unwrap();
    let utils = "sglang/srt/layers/quantization/fp8_utils.py";
    let utils = fs_err::read_to_string(prepared.released(newest).join(utils)).unwrap();
    // The mistakes are those that two layouts of the weight allow.
    if utils.contains("_use_aiter_bpreshuffle_gfx95") {
        report(check_sabotage(&prepared, newest));
    }
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "{} of {total} runs:\n{}",
        failures.len(),
        failures.join("\n")
    );
}
