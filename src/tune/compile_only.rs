//! What every candidate of SGLang's Triton kernel needs on a GPU that is not here: compiled for real, run nowhere.
//!
//! Triton's wheel carries the compiler of every vendor, so shared memory, registers and spilled registers are known before an
//! hour of the device is spent. `python/gpu_worker/offline.py` compiles; this module says what and counts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::backends::sglang_triton::space::{self, Space};
use super::backends::sglang_triton::worker_files;
use super::protocol::{Candidate, Device};
use crate::problem::Shape;
use crate::proc::{Interrupt, Keeper, RunError, run as run_command};
use crate::store::file::write_atomic;

/// Longest that all compiles together may take: the whole space is some hundred programs of seconds each.
const LIMIT: Duration = Duration::from_secs(12 * 3600);

/// dtype of the weights on CDNA3, whatever the checkpoint's: SGLang turns them into it when it loads them
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

impl Target {
    /// Its name.
    pub fn arch(self) -> &'static str {
        match self {
            Self::Gfx942 => "gfx942",
            Self::Gfx950 => "gfx950",
        }
    }

    /// A device of this kind, as far as the space of settings asks. Shared memory is left out: what does not fit is the
    /// compiler's to say.
    fn device(self) -> Device {
        Device {
            protocol: super::protocol::VERSION,
            backend: "sglang-triton".to_owned(),
            name: self.arch().to_owned(),
            arch: self.arch().to_owned(),
            cu_num: 0,
            index: 0,
            visible: 0,
            l2_bytes: 0,
            smem_bytes: 0,
            versions: BTreeMap::new(),
            kernel_hash: String::new(),
            capabilities: Vec::new(),
            prepare_slots: 0,
            candidates: Vec::new(),
            shipped: String::new(),
        }
    }
}

/// What to compile, with what, and where to.
#[derive(Debug)]
pub struct Request<'a> {
    /// The GPU.
    pub target: Target,
    /// The shapes whose settings are compiled.
    pub shapes: &'a [Shape],
    /// Scale block of the weight: N side, K side.
    pub block: (u32, u32),
    /// Interpreter with Triton and SGLang.
    pub python: &'a str,
    /// The output folder.
    pub folder: &'a Utf8Path,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The GPU.
    pub target: String,
    /// Where the kernel was found in SGLang's package, or `gemmtune`.
    pub kernel: String,
    /// Digest of its source.
    pub kernel_hash: String,
    /// Versions of Triton and SGLang.
    pub versions: BTreeMap<String, String>,
    /// Shared memory that a block may use, bytes.
    pub shared_limit: u64,
    /// Programs: settings that differ in what is compiled.
    pub programs: usize,
    /// Programs that fit and keep every register.
    pub fit: usize,
    /// Programs that fit but keep registers in memory, which costs more than the setting can gain.
    pub spilling: usize,
    /// Programs that cannot run, by reason: as the refusals of a worker.
    pub refused: BTreeMap<String, usize>,
    /// One line for each program: shape, candidate, `shared`, `registers`, `spilled`, or `refused` and `detail`.
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
    /// It ended with an error: no Triton, or no kernel it can take.
    #[error("compile with `{python}`: exit code {code}\n{said}")]
    Failed {
        /// The interpreter.
        python: String,
        /// Its exit code.
        code: u8,
        /// The end of what it said.
        said: String,
    },
    /// It said something else than answers.
    #[error("understand the answer `{0}`")]
    Garbled(String),
}

#[derive(Debug, Deserialize)]
struct Head {
    target: String,
    kernel: String,
    kernel_hash: String,
    versions: BTreeMap<String, String>,
    shared_limit: u64,
}

#[derive(Debug, Deserialize)]
struct Answer {
    refused: Option<String>,
    spilled: Option<u64>,
}

/// Name of the file of answers for a target.
fn file_name(target: Target) -> String {
    format!("compiled-{}.jsonl", target.arch())
}

/// The programs of `shapes`: Triton compiles again for an integer that is 1 and for one that 16 divides, and nothing else about
/// a shape matters. The first shape of a kind stands for all, and the first GROUP_SIZE_M: the order in which tiles are walked
/// changes neither shared memory nor registers (14 of 14 programs alike with Triton 3.6 for gfx942).
fn jobs(request: &Request<'_>) -> Vec<(Shape, Candidate)> {
    let device = request.target.device();
    let space = Space::of(&device, request.block.1);
    let kind = |value: u32| match value {
        1 => 0_u8,
        value if value.is_multiple_of(16) => 1,
        _ => 2,
    };
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for shape in request.shapes {
        let mut shape = shape.clone();
        if request.target == Target::Gfx942 {
            CDNA3_DTYPE.clone_into(&mut shape.dtype);
        }
        let scales = shape.k.div_ceil(request.block.1);
        let kinds = [shape.m, shape.n, shape.k, scales].map(kind);
        for config in space.configs(&device, &shape) {
            let candidate = config.candidate();
            let alike = space::Config {
                group_m: 1,
                ..config
            };
            if seen.insert((kinds, shape.dtype.clone(), alike.candidate().to_string())) {
                found.push((shape.clone(), candidate));
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
    let text = asked.join(
        "
",
    ) + "
";
    write_atomic(&jobs_file, text.as_bytes()).map_err(broken)?;
    let (block_n, block_k) = (request.block.0.to_string(), request.block.1.to_string());
    let argv: [&str; 10] = [
        request.python,
        worker.as_str(),
        "offline",
        "--target",
        request.target.arch(),
        "--jobs",
        jobs_file.as_str(),
        "--block",
        &block_n,
        &block_k,
    ];
    let argv = argv.map(str::to_owned);
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
    let (head, answers) = read(&String::from_utf8_lossy(&ran.stdout))?;
    let lines: Vec<&str> = answers.iter().map(|(line, _)| line.as_str()).collect();
    let lines = lines.join(
        "
",
    ) + "
";
    write_atomic(&file, lines.as_bytes()).map_err(broken)?;
    fs_err::remove_file(&jobs_file).map_err(broken)?;
    Ok(counted(
        head,
        answers.iter().map(|(_, answer)| answer),
        file,
    ))
}

fn read(said: &str) -> Result<(Head, Vec<(String, Answer)>), CompileError> {
    let garbled = |line: &str| CompileError::Garbled(line.chars().take(200).collect());
    let mut lines = said.lines();
    let first = lines.next().unwrap_or_default();
    let head = serde_json::from_str(first).map_err(|_| garbled(first))?;
    let answers = lines
        .map(|line| {
            let answer = serde_json::from_str(line).map_err(|_| garbled(line))?;
            Ok::<_, CompileError>((line.to_owned(), answer))
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok((head, answers))
}

fn counted<'a>(head: Head, answers: impl Iterator<Item = &'a Answer>, file: Utf8PathBuf) -> Report {
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
    /// The report in words, a few lines.
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

    fn shape(m: u32, n: u32, k: u32) -> Shape {
        Shape {
            op: Op::TritonBlockFp8,
            m,
            n,
            k,
            dtype: "torch.float8_e4m3fn".to_owned(),
        }
    }

    fn jobs_for(target: Target, shapes: &[Shape]) -> Vec<(Shape, Candidate)> {
        jobs(&Request {
            target,
            shapes,
            block: (128, 128),
            python: "python3",
            folder: Utf8Path::new("/nowhere"),
        })
    }

    #[test]
    fn a_program_is_compiled_once_however_many_shapes_run_it() {
        let one = jobs_for(Target::Gfx942, &[shape(4096, 4096, 4096)]);
        let alike = [shape(4096, 4096, 4096), shape(4096, 6144, 4096)];
        assert_eq!(jobs_for(Target::Gfx942, &alike).len(), one.len());
        let other = [shape(4096, 4096, 4096), shape(4095, 4096, 4096)];
        assert!(jobs_for(Target::Gfx942, &other).len() > one.len());
        // 4 x 5 tiles, 3 steps that divide the scale block, 2 warp counts.
        assert_eq!(one.len(), 120);
    }

    #[test]
    fn what_needs_too_much_shared_memory_is_left_to_the_compiler_to_say() {
        let found = jobs_for(Target::Gfx942, &[shape(4096, 4096, 4096)]);
        assert!(
            found
                .iter()
                .any(|(_, one)| one["BLOCK_SIZE_M"] == 256 && one["BLOCK_SIZE_N"] == 256)
        );
    }

    #[test]
    fn weights_have_the_dtype_that_the_device_computes_with() {
        let dtype = |target| jobs_for(target, &[shape(1, 512, 512)])[0].0.dtype.clone();
        assert_eq!(dtype(Target::Gfx942), "torch.float8_e4m3fnuz");
        assert_eq!(dtype(Target::Gfx950), "torch.float8_e4m3fn");
    }

    #[test]
    fn answers_are_counted_by_what_became_of_them() {
        let said = r#"{"target":"gfx942","kernel":"k.py","kernel_hash":"sha256:0","versions":{"triton":"3.6.0"},"shared_limit":65536}
{"shared":1536,"registers":36,"spilled":0,"seconds":1.0}
{"shared":65536,"registers":256,"spilled":77,"seconds":1.0}
{"refused":"out_of_resources","detail":"shared memory 66560 > 65536","shared":66560,"seconds":1.0}
"#;
        let (head, answers) = read(said).unwrap();
        let report = counted(head, answers.iter().map(|(_, one)| one), "f.jsonl".into());
        assert_eq!((report.programs, report.fit, report.spilling), (3, 1, 1));
        assert_eq!(report.refused["out_of_resources"], 1);
        assert!(
            report
                .to_text()
                .contains("1 cannot run (1 out of resources)")
        );
        assert!(matches!(read("Traceback"), Err(CompileError::Garbled(_))));
    }
}
