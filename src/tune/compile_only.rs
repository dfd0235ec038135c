//! What every candidate of a Triton kernel needs on a GPU that is not present: it is compiled but not run.
//!
//! Triton's wheel includes the compilers of all vendors, so shared memory, registers and spills are known before any
//! device time is spent. `python/gpu_worker/offline.py` compiles; this module selects the programs and summarises the
//! results.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::backends::aiter_triton::space as aiter;
use super::backends::sglang_moe::SglangMoe;
use super::backends::sglang_moe::task::MoeTask;
use super::backends::sglang_triton::space::{Config, Space};
use super::backends::sglang_triton::worker_files;
use super::protocol::{Candidate, Device};
use super::task::Task as _;
use crate::problem::Shape;
use crate::proc::{Interrupt, Keeper, RunError, run as run_command};
use crate::store::file::write_atomic;

/// Time limit for all compiles together: the whole space is some hundred programs of seconds each.
const LIMIT: Duration = Duration::from_secs(12 * 3600);

/// dtype of the weights on CDNA3, whatever the checkpoint's: SGLang converts them when it loads them
/// (`normalize_e4m3fn_to_e4m3fnuz`, 0.5.5 to 0.5.23).
const CDNA3_DTYPE: &str = "torch.float8_e4m3fnuz";

/// A GPU to compile for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// CDNA3: MI300X, MI325X.
    Gfx942,
    /// CDNA4: MI350X, MI355X.
    Gfx950,
}

/// Every GPU for which can be compiled.
pub(super) const TARGETS: [Target; 2] = [Target::Gfx942, Target::Gfx950];

impl Target {
    /// The architecture's name, such as `gfx942`.
    pub fn arch(self) -> &'static str {
        match self {
            Self::Gfx942 => "gfx942",
            Self::Gfx950 => "gfx950",
        }
    }

    /// Shared memory that a block may use, bytes (CDNA3 and CDNA4 ISA guides).
    const fn shared_bytes(self) -> u64 {
        match self {
            Self::Gfx942 => 64 << 10,
            Self::Gfx950 => 160 << 10,
        }
    }

    /// A device of this kind, with the properties that determine the space of settings, so that the compiled programs
    /// are those that would be raced.
    fn device(self) -> Device {
        Device {
            protocol: super::protocol::VERSION,
            backend: String::new(),
            name: self.arch().to_owned(),
            arch: self.arch().to_owned(),
            cu_num: 0,
            index: 0,
            visible: 0,
            l2_bytes: 0,
            smem_bytes: self.shared_bytes(),
            versions: BTreeMap::new(),
            kernel_hash: String::new(),
            capabilities: Vec::new(),
            prepare_slots: 0,
            candidates: Vec::new(),
            shipped: String::new(),
            taken_bytes: None,
        }
    }
}

/// The kernel whose candidates are compiled.
#[derive(Clone, Copy, Debug)]
pub enum Kernel<'a> {
    /// SGLang's block-FP8 GEMM.
    SglangTriton {
        /// The shapes whose settings are compiled.
        shapes: &'a [Shape],
        /// Scale block of the weight: N side, K side.
        block: (u32, u32),
    },
    /// The two GEMMs of SGLang's fused MoE.
    SglangMoe {
        /// The operations whose settings are compiled.
        tasks: &'a [MoeTask],
        /// Scale block of the weights: N side, K side.
        block: (u32, u32),
    },
    /// aiter's Triton GEMM.
    AiterTriton {
        /// The shapes whose settings are compiled.
        shapes: &'a [Shape],
        /// The aiter tree; the one that the interpreter would import when absent.
        root: Option<&'a Utf8Path>,
    },
}

/// What to compile, with what, and where to.
#[derive(Debug)]
pub struct Request<'a> {
    pub target: Target,
    pub kernel: Kernel<'a>,
    /// Interpreter with Triton, and with SGLang or aiter if no tree is named.
    pub python: &'a str,
    pub folder: &'a Utf8Path,
}

/// The compiled programs by result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub target: String,
    /// Path of the kernel in SGLang's or aiter's package, or `gemmtune`.
    pub kernel: String,
    /// Digest of its source.
    pub kernel_hash: String,
    /// Versions of Triton and of SGLang or aiter.
    pub versions: BTreeMap<String, String>,
    /// Shared memory that a block may use, bytes.
    pub shared_limit: u64,
    /// Programs: settings with distinct compiled code.
    pub programs: usize,
    /// Programs that fit and do not spill.
    pub fit: usize,
    /// Programs that fit but spill registers, which costs more than the setting can gain.
    pub spilling: usize,
    /// Programs that cannot run, by reason, named as a worker's refusals.
    pub refused: BTreeMap<String, usize>,
    /// A line that names target, kernel and compiler, and one for each program: shape, candidate, `shared`, `registers`,
    /// `spilled`, or `refused` and `detail`.
    pub file: Utf8PathBuf,
}

/// Why nothing was compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The folder cannot be written.
    #[error("write into `{0}`")]
    Write(Utf8PathBuf, #[source] std::io::Error),
    /// The interpreter could not be run to its end.
    #[error(transparent)]
    Run(#[from] RunError),
    /// It ended with an error: no Triton, or no supported kernel.
    #[error("compile with `{python}`: exit code {code}\n{said}")]
    Failed {
        python: String,
        code: u8,
        /// The end of its output.
        said: String,
    },
    /// Its output is not in the expected format.
    #[error("understand the answer `{0}`")]
    Garbled(String),
}

/// The first line of a result file.
#[derive(Debug, Deserialize)]
pub(super) struct Head {
    pub(super) target: String,
    kernel: String,
    pub(super) kernel_hash: String,
    versions: BTreeMap<String, String>,
    shared_limit: u64,
}

/// The result for one program.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    pub(super) shape: Value,
    pub(super) candidate: Candidate,
    pub(super) refused: Option<String>,
    pub(super) spilled: Option<u64>,
}

/// Name of the result file for a target.
pub(super) fn file_name(target: Target) -> String {
    format!("compiled-{}.jsonl", target.arch())
}

/// Triton specialises integer arguments by class: 1, divisible by 16, or any other.
fn kind(value: u32) -> u8 {
    match value {
        1 => 0,
        value if value.is_multiple_of(16) => 1,
        _ => 2,
    }
}

/// The programs to compile. The first shape of a class represents all that run the same programs, and so does the
/// first GROUP_SIZE_M: the order in which tiles are walked changes neither shared memory nor registers (14 of 14
/// programs with Triton 3.6 for gfx942).
fn jobs(request: &Request<'_>) -> Vec<(Value, Candidate)> {
    let device = request.target.device();
    match request.kernel {
        Kernel::SglangTriton { shapes, block } => dense(request.target, shapes, |shape| {
            let scales = kind(shape.k.div_ceil(block.1));
            let configs = Space::of(&device, block.1).configs(&device, shape);
            let programs = configs.into_iter().map(|config| {
                let alike = Config {
                    group_m: 1,
                    ..config.clone()
                };
                (
                    format!("{scales} {}", alike.candidate()),
                    config.candidate(),
                )
            });
            programs.collect()
        }),
        // The load modifiers of W, the remaining K and its number of parts change next to nothing
        // (`docs/evidence/compile-only`), so one value of each represents all.
        Kernel::AiterTriton { shapes, .. } => dense(request.target, shapes, |shape| {
            let settings = aiter::Space::of(&device).settings(&device, shape);
            let programs = settings.into_iter().filter(|setting| setting.splits == 1);
            let programs = programs.map(|setting| {
                let alike = aiter::Setting {
                    group_m: 1,
                    cache: Value::Null,
                    ..setting.clone()
                };
                (alike.candidate().to_string(), setting.candidate())
            });
            programs.collect()
        }),
        Kernel::SglangMoe { tasks, block } => {
            let backend = SglangMoe::new(block);
            let mut seen = BTreeSet::new();
            let mut found = Vec::new();
            for part in tasks.iter().flat_map(MoeTask::parts) {
                for config in backend.settings(&device, &part) {
                    let alike = Config {
                        group_m: 1,
                        ..config.clone()
                    };
                    if seen.insert((part.sizes(), part.part, alike.candidate().to_string())) {
                        found.push((json!(part), config.candidate()));
                    }
                }
            }
            found
        }
    }
}

/// The programs of dense shapes; `programs` returns those of one shape, each with what distinguishes it.
fn dense(
    target: Target,
    shapes: &[Shape],
    programs: impl Fn(&Shape) -> Vec<(String, Candidate)>,
) -> Vec<(Value, Candidate)> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for shape in shapes {
        let mut shape = shape.clone();
        if target == Target::Gfx942 {
            CDNA3_DTYPE.clone_into(&mut shape.dtype);
        }
        let kinds = [shape.m, shape.n, shape.k].map(kind);
        for (program, candidate) in programs(&shape) {
            if seen.insert((kinds, shape.dtype.clone(), program)) {
                found.push((json!(shape), candidate));
            }
        }
    }
    found
}

/// Compiles what `request` names.
pub fn run(
    request: &Request<'_>,
    keeper: &Keeper,
    interrupt: &Interrupt,
) -> Result<Report, CompileError> {
    let broken = |error| CompileError::Write(request.folder.to_owned(), error);
    fs_err::create_dir_all(request.folder).map_err(broken)?;
    let worker = worker_files::write(request.folder).map_err(broken)?;
    let jobs_file = request
        .folder
        .join(format!("jobs-{}.jsonl", request.target.arch()));
    let asked: Vec<String> = jobs(request)
        .iter()
        .map(|(shape, candidate)| json!({"shape": shape, "candidate": candidate}).to_string())
        .collect();
    let text = asked.join("\n") + "\n";
    write_atomic(&jobs_file, text.as_bytes()).map_err(broken)?;
    let mut argv: Vec<String> = [
        request.python,
        worker.as_str(),
        "offline",
        "--target",
        request.target.arch(),
        "--jobs",
        jobs_file.as_str(),
    ]
    .map(str::to_owned)
    .into();
    let mut blocks = |(n, k): (u32, u32)| {
        argv.extend(["--block".to_owned(), n.to_string(), k.to_string()]);
    };
    match request.kernel {
        Kernel::SglangTriton { block, .. } => blocks(block),
        Kernel::SglangMoe { block, .. } => {
            blocks(block);
            argv.extend(["--problem", "fused_moe"].map(str::to_owned));
        }
        Kernel::AiterTriton { root, .. } => {
            argv.extend(["--problem", "aiter_gemm"].map(str::to_owned));
            if let Some(root) = root {
                argv.extend(["--aiter-root".to_owned(), root.to_string()]);
            }
        }
    }
    let ran = run_command(keeper, &argv, None, [], LIMIT, interrupt)?;
    if ran.code != 0 {
        let said = String::from_utf8_lossy(&ran.stderr);
        let start = said.len().saturating_sub(2000);
        return Err(CompileError::Failed {
            python: request.python.to_owned(),
            code: ran.code,
            said: said.get(start..).unwrap_or(&said).to_owned(),
        });
    }
    let file = request.folder.join(file_name(request.target));
    let said = String::from_utf8_lossy(&ran.stdout);
    let (head, answers) = read(&said)?;
    write_atomic(&file, said.as_bytes()).map_err(broken)?;
    fs_err::remove_file(&jobs_file).map_err(broken)?;
    Ok(counted(head, &answers, file))
}

/// Parses the results in a file or in the worker's output.
pub(super) fn read(said: &str) -> Result<(Head, Vec<Answer>), CompileError> {
    let garbled = |line: &str| CompileError::Garbled(line.chars().take(200).collect());
    let mut lines = said.lines();
    let first = lines.next().unwrap_or_default();
    let head = serde_json::from_str(first).map_err(|_| garbled(first))?;
    let answers = lines
        .map(|line| serde_json::from_str(line).map_err(|_| garbled(line)))
        .collect::<Result<Vec<_>, _>>()?;
    Ok((head, answers))
}

fn counted(head: Head, answers: &[Answer], file: Utf8PathBuf) -> Report {
    let mut report = Report {
        target: head.target,
        kernel: head.kernel,
        kernel_hash: head.kernel_hash,
        versions: head.versions,
        shared_limit: head.shared_limit,
        programs: 0,
        fit: 0,
        spilling: 0,
        refused: BTreeMap::new(),
        file,
    };
    for answer in answers {
        report.programs += 1;
        match answer {
            Answer {
                refused: Some(reason),
                ..
            } => *report.refused.entry(reason.clone()).or_default() += 1,
            Answer {
                spilled: Some(1..), ..
            } => report.spilling += 1,
            _ => report.fit += 1,
        }
    }
    report
}

impl Report {
    /// The report as a few lines of text.
    pub fn to_text(&self) -> String {
        let refused: usize = self.refused.values().sum();
        let reasons: Vec<String> = self
            .refused
            .iter()
            .map(|(reason, count)| format!("{count} {}", reason.replace('_', " ")))
            .collect();
        let versions: Vec<String> = self
            .versions
            .iter()
            .map(|(name, version)| format!("{name} {version}"))
            .collect();
        let why = if reasons.is_empty() {
            String::new()
        } else {
            format!(" ({})", reasons.join(", "))
        };
        format!(
            "{}: {} programs of `{}` compiled, none run ({})\n  {} fit, {} spill registers, {refused} cannot run{why}\n  each of them: {}",
            self.target,
            self.programs,
            self.kernel,
            versions.join(", "),
            self.fit,
            self.spilling,
            self.file,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Op;
    use crate::tune::backends::sglang_moe::task::Sizes;

    fn shape(m: u32, n: u32, k: u32) -> Shape {
        Shape {
            op: Op::TritonBlockFp8,
            m,
            n,
            k,
            dtype: "torch.float8_e4m3fn".to_owned(),
        }
    }

    fn jobs_of(target: Target, kernel: Kernel<'_>) -> Vec<(Value, Candidate)> {
        jobs(&Request {
            target,
            kernel,
            python: "python3",
            folder: Utf8Path::new("/nowhere"),
        })
    }

    fn jobs_for(target: Target, shapes: &[Shape]) -> Vec<(Value, Candidate)> {
        let block = (128, 128);
        jobs_of(target, Kernel::SglangTriton { shapes, block })
    }

    #[test]
    fn aiters_rows_are_compiled_once_for_each_tile_warps_and_stages() {
        let shapes = [shape(4096, 2112, 7168), shape(4096, 7168, 2048)];
        let found = |shapes| jobs_of(Target::Gfx942, Kernel::AiterTriton { shapes, root: None });
        let both = found(&shapes);
        assert_eq!(both.len(), found(&shapes[..1]).len());
        assert!(both.len() > 200, "{}", both.len());
        assert!(
            both.iter()
                .all(|(_, row)| row["NUM_KSPLIT"] == 1 && row["GROUP_SIZE_M"] == 1)
        );
        // Among them are tiles of 4 rows, which shipped rows of both architectures use.
        let low = |target| {
            let all = jobs_of(
                target,
                Kernel::AiterTriton {
                    shapes: &shapes,
                    root: None,
                },
            );
            let low = all
                .iter()
                .filter(|(_, row)| row["BLOCK_SIZE_M"] == 4)
                .count();
            (all.len(), low)
        };
        assert_eq!(
            (low(Target::Gfx942), low(Target::Gfx950)),
            ((365, 56), (408, 60))
        );
        // Few rows: only low tiles.
        assert!(found(&[shape(16, 2112, 7168)]).len() < both.len());
    }

    #[test]
    fn both_gemms_of_a_fused_moe_are_compiled_under_each_block_size() {
        let sizes = Sizes {
            experts: 128,
            inter: 768,
            hidden: 2048,
            topk: 8,
        };
        let tasks = [MoeTask::whole(sizes, 256), MoeTask::whole(sizes, 4096)];
        let block = (128, 128);
        let found = jobs_of(
            Target::Gfx950,
            Kernel::SglangMoe {
                tasks: &tasks,
                block,
            },
        );
        for part in ["up", "down"] {
            for block_m in [32, 64, 128] {
                let one = |(shape, row): &&(Value, Candidate)| {
                    shape["part"] == part
                        && shape["block_m"] == block_m
                        && row["BLOCK_SIZE_M"] == block_m
                };
                assert!(found.iter().filter(one).count() >= 20, "{part} {block_m}");
            }
        }
    }

    #[test]
    fn a_program_is_compiled_once_however_many_shapes_run_it() {
        let one = jobs_for(Target::Gfx942, &[shape(4096, 4096, 4096)]);
        let alike = [shape(4096, 4096, 4096), shape(4096, 6144, 4096)];
        assert_eq!(jobs_for(Target::Gfx942, &alike).len(), one.len());
        let other = [shape(4096, 4096, 4096), shape(4095, 4096, 4096)];
        assert!(jobs_for(Target::Gfx942, &other).len() > one.len());
        // 4 x 5 tiles, 3 steps that divide the scale block, 2 warp counts, without the one that does not fit.
        assert_eq!(one.len(), 119);
    }

    #[test]
    fn what_needs_more_shared_memory_than_there_is_is_not_compiled() {
        let found = |target, warps| {
            let jobs = jobs_for(target, &[shape(4096, 4096, 4096)]);
            let largest = |(_, one): &(Value, Candidate)| {
                ["BLOCK_SIZE_M", "BLOCK_SIZE_N"]
                    .iter()
                    .all(|name| one[*name] == 256)
                    && (&one["BLOCK_SIZE_K"], &one["num_warps"]) == (&json!(128), &json!(warps))
            };
            jobs.iter().any(largest)
        };
        assert!(!found(Target::Gfx942, 4) && found(Target::Gfx942, 8));
        assert!(found(Target::Gfx950, 4));
    }

    /// The programs that could not run in the recorded run: none of them is offered any more.
    #[test]
    fn none_of_aiters_programs_that_the_compiler_refused_is_offered() {
        let shapes = [shape(4096, 2112, 7168)];
        let offered = jobs_of(
            Target::Gfx942,
            Kernel::AiterTriton {
                shapes: &shapes,
                root: None,
            },
        );
        let has = |m: u32, n: u32, warps: u32, stages: u32| {
            offered.iter().any(|(_, one)| {
                let said = ["BLOCK_SIZE_M", "BLOCK_SIZE_N", "num_warps", "num_stages"]
                    .map(|name| one[name].clone());
                said == [m, n, warps, stages].map(|value| json!(value))
            })
        };
        assert!(!has(256, 256, 4, 2) && has(256, 256, 8, 2));
        assert!(!has(128, 128, 1, 3) && !has(128, 128, 2, 3) && has(128, 128, 4, 3));
        assert!(!has(16, 256, 4, 3) && has(16, 256, 4, 2));
    }

    #[test]
    fn weights_have_the_dtype_that_the_device_computes_with() {
        let dtype = |target| jobs_for(target, &[shape(1, 512, 512)])[0].0["dtype"].clone();
        assert_eq!(dtype(Target::Gfx942), "torch.float8_e4m3fnuz");
        assert_eq!(dtype(Target::Gfx950), "torch.float8_e4m3fn");
    }

    #[test]
    fn answers_are_counted_by_what_became_of_them() {
        let said = r#"{"target":"gfx942","kernel":"k.py","kernel_hash":"sha256:0","versions":{"triton":"3.6.0"},"shared_limit":65536}
{"shape":{},"candidate":{},"shared":1536,"registers":36,"spilled":0,"seconds":1.0}
{"shape":{},"candidate":{},"shared":65536,"registers":256,"spilled":77,"seconds":1.0}
{"shape":{},"candidate":{},"refused":"out_of_resources","detail":"shared memory 66560 > 65536","shared":66560,"seconds":1.0}
"#;
        let (head, answers) = read(said).unwrap();
        let report = counted(head, &answers, "f.jsonl".into());
        assert_eq!((report.programs, report.fit, report.spilling), (3, 1, 1));
        assert_eq!(report.refused["out_of_resources"], 1);
        insta::assert_snapshot!(report.to_text(), @"
        gfx942: 3 programs of `k.py` compiled, none run (triton 3.6.0)
          1 fit, 1 spill registers, 1 cannot run (1 out of resources)
          each of them: f.jsonl
        ");
        assert!(matches!(read("Traceback"), Err(CompileError::Garbled(_))));
    }
}
