//! `gemmtune tune`: races candidates for a list of shapes and writes the table of the winners.

mod compile;

use std::io::IsTerminal as _;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;

use super::printer::Printer;
use super::tune_aiter::{AiterArgs, Common};
use super::tune_moe::{self, MoeArgs};
use super::tune_progress::TuneProgress;
use crate::problem::dtype::FLOAT8;
use crate::problem::{Op, Shape};
use crate::proc::{Interrupt, Keeper};
use crate::run::error::{Error, ErrorKind};
use crate::store::lock::LockError;
use crate::table::aiter::Table;
use crate::table::aiter_triton::{Rules as AiterRules, representatives};
use crate::table::shapes::{self, CountedShape};
use crate::tune::backends::Backend;
use crate::tune::backends::aiter_triton::AiterTriton;
use crate::tune::backends::compiled::Known;
use crate::tune::backends::families::Families;
use crate::tune::backends::reference::Reference;
use crate::tune::backends::sglang_moe::Engine;
use crate::tune::backends::sglang_triton::{SglangTriton, worker_files};
use crate::tune::compile_only::Target;
use crate::tune::ends;
use crate::tune::pool::look_at_device;
use crate::tune::results::ResultsError;
use crate::tune::task::Task;
use crate::tune::worker::WorkerCommand;
use crate::tune::{self, Effort, TuneError, TuneEvent, TuneOutcome, TuneRequest};
use crate::workload::duration::Span;

/// Arguments of `gemmtune tune`.
///
/// What is found is kept in the output folder at once: after an interrupt, a kill or a spent budget the
/// same command resumes. Exit code 0: every shape raced has a winner (the incumbent may be
/// it). 15: some shapes have none; the others are in the table. 17: another run holds the folder, or it
/// was made on another device. 130: interrupted.
#[derive(Debug, clap::Args)]
pub struct TuneArgs {
    /// What to tune
    #[arg(long, value_enum, value_name = "BACKEND")]
    backend: BackendArg,

    /// Shapes to tune: the CSV of `gemmtune shapes`, or columns M,N,K; calls of aiter's fused MoE as `plan` and `shapes --fused-moe` write them
    #[arg(long, value_name = "S.csv")]
    shapes: Utf8PathBuf,

    /// Folder for the table, results and logs
    #[arg(short, long, value_name = "DIR")]
    output: Utf8PathBuf,

    /// What serves the shapes today: a table (reference, aiter), a folder of JSON files (sglang-triton, aiter-triton), or an SGLang
    /// package or the folder of `SGLANG_MOE_CONFIG_DIR` (sglang-moe)
    #[arg(long, value_name = "TABLE")]
    table: Option<Utf8PathBuf>,

    /// Start no further race after this long, such as `10m`; what was found is kept
    #[arg(long, value_name = "TIME")]
    budget: Option<Span>,

    /// How hard to try
    #[arg(long, value_enum, default_value = "quick")]
    effort: EffortArg,

    /// Workers [default: one for each device]
    #[arg(long, value_name = "COUNT")]
    workers: Option<u32>,

    /// Interpreter that imports torch and SGLang (sglang-triton, sglang-moe) or aiter (aiter, aiter-triton)
    #[arg(long, default_value = "python3", value_name = "PY")]
    python: String,

    /// Scale block of the weight, N,K (sglang-triton, sglang-moe)
    #[arg(long, default_value = "128,128", value_name = "N,K", value_parser = block)]
    block: (u32, u32),

    /// Command that starts each worker elsewhere, such as `srun --ntasks=1 --gpus-per-task=1`
    #[arg(long, value_name = "COMMAND", value_parser = words)]
    launcher: Option<Words>,

    /// Compile every candidate for a GPU that need not be here, and run none (sglang-triton, sglang-moe, aiter-triton)
    #[arg(long, requires = "target", conflicts_with = "dry_run")]
    compile_only: bool,

    /// What `--compile-only` found: leave out what cannot run, try what spills last [default: such files in the output folder]
    #[arg(long, value_name = "FILE", conflicts_with = "compile_only")]
    compiled: Vec<Utf8PathBuf>,

    /// The GPU to compile for, or the engine to write fused-MoE tables for [default: sglang]
    #[arg(long = "for", value_enum, value_name = "WHAT")]
    target: Option<TargetArg>,

    /// Say what would be raced, or which command would be run, and write nothing
    #[arg(long)]
    dry_run: bool,

    /// Whose rows are today's where the device has none of aiter's, such as gfx942 on an NVIDIA GPU (aiter-triton)
    #[arg(long, value_name = "GFX")]
    config_for: Option<String>,

    #[command(flatten)]
    moe: MoeArgs,

    #[command(flatten)]
    aiter: AiterArgs,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum BackendArg {
    /// The CPU kernels of the built-in reference engine
    Reference,
    /// SGLang's Triton block-FP8 kernel, on CUDA or ROCm
    SglangTriton,
    /// Every block-FP8 kernel that SGLang's interpreter has on CUDA, and gemmtune's own, into a route between them
    SglangFamilies,
    /// SGLang's Triton kernel for fused MoE with block-FP8 experts, on CUDA or ROCm
    SglangMoe,
    /// aiter's kernels, by the tuner script of an aiter tree, on ROCm
    Aiter,
    /// aiter's Triton GEMM with block-FP8 scales, by rows of its JSON files, on ROCm or CUDA
    AiterTriton,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum TargetArg {
    /// MI300X, MI325X
    Gfx942,
    /// MI350X, MI355X
    Gfx950,
    /// A row for each of the two GEMMs, as SGLang looks them up
    Sglang,
    /// One row for both GEMMs, as vLLM looks it up
    Vllm,
}

impl TargetArg {
    /// The GPU that the argument names.
    const fn gpu(self) -> Option<Target> {
        match self {
            Self::Gfx942 => Some(Target::Gfx942),
            Self::Gfx950 => Some(Target::Gfx950),
            Self::Sglang | Self::Vllm => None,
        }
    }

    /// The engine that the argument names.
    const fn engine(self) -> Option<Engine> {
        match self {
            Self::Sglang => Some(Engine::Sglang),
            Self::Vllm => Some(Engine::Vllm),
            Self::Gfx942 | Self::Gfx950 => None,
        }
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum EffortArg {
    /// Two rungs, few samples
    Quick,
    /// Three rungs, many samples, wider search
    Full,
}

impl From<EffortArg> for Effort {
    fn from(effort: EffortArg) -> Self {
        match effort {
            EffortArg::Quick => Self::Quick,
            EffortArg::Full => Self::Full,
        }
    }
}

fn block(text: &str) -> Result<(u32, u32), String> {
    let side = |text: &str| text.trim().parse().ok().filter(|side| *side > 0);
    text.split_once(',')
        .and_then(|(n, k)| Some((side(n)?, side(k)?)))
        .ok_or_else(|| "two positive numbers such as 128,128 are expected".to_owned())
}

/// A command line, split as a shell would.
#[derive(Clone, Debug)]
struct Words(Vec<String>);

fn words(text: &str) -> Result<Words, String> {
    match shlex::split(text) {
        Some(words) if !words.is_empty() => Ok(Words(words)),
        _ => Err("it is empty or a quote is not closed".to_owned()),
    }
}

/// The output of a dry run.
#[derive(Debug, Serialize)]
struct Preview {
    device: String,
    arch: String,
    stations: u32,
    shapes: usize,
    races_at_most: usize,
    candidates_at_first: usize,
    budget_s: Option<f64>,
    output: Utf8PathBuf,
}

/// Races or compiles the shapes with the chosen backend, or hands them to aiter's tuner.
pub fn run(args: &TuneArgs, printer: &Printer) -> Result<(), Error> {
    let bytes = crate::store::file::read(&args.shapes)
        .map_err(|error| Error::to(ErrorKind::Usage, "read the shapes", error))?;
    if args.compile_only {
        let gpu = args.target.and_then(TargetArg::gpu);
        let gpu = gpu.ok_or_else(|| {
            Error::new(ErrorKind::Usage, "compile for another GPU: none is named")
                .hint("add `--for gfx942` or `--for gfx950`")
        })?;
        return compile::run(args, gpu, &bytes, printer);
    }
    let engine = match args.target {
        None => Engine::default(),
        Some(target) => target
            .engine()
            .filter(|_| matches!(args.backend, BackendArg::SglangMoe))
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::Usage,
                    "take `--for`: a GPU needs `--compile-only`, an engine `--backend sglang-moe`",
                )
            })?,
    };
    let backend: Box<dyn Backend> = match args.backend {
        BackendArg::Reference => reference(args)?,
        BackendArg::SglangTriton => Box::new(sglang_triton(args)),
        BackendArg::SglangFamilies => Box::new(Families {
            triton: sglang_triton(args),
            ..Families::default()
        }),
        BackendArg::SglangMoe => {
            let backend = args.moe.backend(args.block, args.table.as_deref(), engine);
            let problems = tune_moe::problems(&args.shapes, &bytes, args.block)?;
            return race(args, &backend, problems, tune::run, printer);
        }
        BackendArg::Aiter => {
            if args.launcher.is_some() {
                return Err(Error::new(
                    ErrorKind::Usage,
                    "tune with a launcher: aiter's tuner starts its workers itself",
                ));
            }
            let mut common = Common {
                op: Op::UNSAID,
                shapes: &[],
                output: &args.output,
                table: args.table.as_deref(),
                budget: args.budget.map(Span::duration),
                devices: args.workers,
                python: &args.python,
                dry_run: args.dry_run,
            };
            if args.aiter.is_fused_moe(&bytes) {
                return args
                    .aiter
                    .run_fused_moe(&common, &args.shapes, &bytes, printer);
            }
            common.op = args.aiter.op(&args.shapes, &bytes)?;
            let shapes = shapes_of(args, &bytes, common.op)?;
            common.shapes = &shapes;
            return args.aiter.run(&common, printer);
        }
        BackendArg::AiterTriton => {
            let backend = aiter_triton(args)?;
            let counted = counted_shapes(args, &bytes, backend.op())?;
            // The finest buckets of any revision: those of older ones consist of them.
            let raced = representatives(&counted, AiterRules::Bounds { from: 1 });
            let shapes = raced.into_iter().map(|counted| counted.shape).collect();
            return race(args, &backend, shapes, ends::run, printer);
        }
    };
    let shapes = shapes_of(args, &bytes, backend.op())?;
    race(args, &*backend, shapes, tune::run, printer)
}

/// How a race is run: in the usual way, or with what its backend does in addition.
type Run<P> = fn(
    &TuneRequest<'_, P>,
    &mut dyn FnMut(&TuneEvent<P>),
    &Interrupt,
) -> Result<TuneOutcome<P>, TuneError>;

/// Races `shapes` with `run`, or describes what would be raced.
fn race<P: Task>(
    args: &TuneArgs,
    backend: &dyn Backend<P>,
    shapes: Vec<P>,
    run: Run<P>,
    printer: &Printer,
) -> Result<(), Error> {
    let keeper = Keeper::this_binary()
        .map_err(|error| Error::to(ErrorKind::Environment, "find this program", error))?;
    // A dry run writes nothing into the output folder, so its worker's files are elsewhere.
    let scratch = tempfile::tempdir()
        .map_err(|error| Error::to(ErrorKind::Environment, "make a scratch folder", error))?;
    let scratch_folder = Utf8Path::from_path(scratch.path());
    let worker_folder = match scratch_folder.filter(|_| args.dry_run) {
        Some(folder) => folder,
        None => &args.output,
    };
    let compiled = compile::before(args)?;
    let known = Known {
        backend,
        compiled: &compiled,
    };
    let request = TuneRequest {
        backend: &known,
        shapes,
        folder: args.output.clone(),
        command: worker_command(args, &keeper, worker_folder)?,
        keeper,
        workers: args.workers,
        budget: args.budget.map(Span::duration),
        effort: args.effort.into(),
    };
    let interrupt = super::interrupt()?;
    if args.dry_run {
        return preview(&request, &interrupt, printer);
    }
    let mut progress = TuneProgress::new(printer, std::io::stderr().is_terminal());
    let outcome = run(&request, &mut |event| progress.tell(event), &interrupt);
    progress.finish();
    let outcome = outcome.map_err(|error| failure(error, &args.output))?;
    if !compiled.is_empty() && !compiled.iter().any(|file| file.is_of(&outcome.device)) {
        printer.warn("what was compiled is of another kernel or GPU, so it changed no order");
    }
    if printer.is_json() {
        printer.json(&outcome)?;
    } else {
        TuneProgress::summary(printer, &outcome);
    }
    verdict(&outcome)
}

/// The requested shapes; those without an operation count as shapes of `op`.
fn shapes_of(args: &TuneArgs, bytes: &[u8], op: Op) -> Result<Vec<Shape>, Error> {
    let counted = counted_shapes(args, bytes, op)?;
    Ok(counted.into_iter().map(|counted| counted.shape).collect())
}

/// The same, with the number of calls of each.
fn counted_shapes(args: &TuneArgs, bytes: &[u8], op: Op) -> Result<Vec<CountedShape>, Error> {
    let mut counted = shapes::read(bytes, Some(op)).map_err(|error| {
        Error::to(ErrorKind::Usage, &format!("read `{}`", args.shapes), error)
            .hint("make it with `gemmtune shapes LOG -o S.csv`, or give columns M,N,K")
    })?;
    // A GPU kernel is compiled for a dtype; without a column it is that of FP8 checkpoints.
    if !matches!(args.backend, BackendArg::Reference | BackendArg::Aiter) {
        let unsaid = counted.iter_mut().filter(|one| one.shape.dtype.is_empty());
        unsaid.for_each(|one| FLOAT8[0].clone_into(&mut one.shape.dtype));
    }
    Ok(counted)
}

fn aiter_triton(args: &TuneArgs) -> Result<AiterTriton, Error> {
    // Checked before a worker opens a device only to report the same.
    if let Some(root) = &args.aiter.aiter_root
        && !root.join("aiter/ops/triton").is_dir()
    {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("`--aiter-root {root}` is no aiter tree: it has no folder aiter/ops/triton"),
        )
        .hint("name the checkout, or the folder that holds the package `aiter`"));
    }
    Ok(AiterTriton {
        // Absolute, because a worker may be started elsewhere.
        root: args
            .aiter
            .aiter_root
            .as_ref()
            .map(|root| root.canonicalize_utf8().unwrap_or_else(|_| root.clone())),
        config_for: args.config_for.clone(),
        tables: args.table.clone(),
    })
}

fn reference(args: &TuneArgs) -> Result<Box<dyn Backend>, Error> {
    let table = args.table.as_deref().map(read_table).transpose()?;
    let backend = Reference::new(table).map_err(|error| {
        Error::to(ErrorKind::Usage, "take the table of today", error)
            .hint("`gemmtune lint` says what is wrong with it")
    })?;
    Ok(Box::new(backend))
}

fn sglang_triton(args: &TuneArgs) -> SglangTriton {
    SglangTriton {
        block: args.block,
        tables: args.table.clone(),
        ..SglangTriton::default()
    }
}

fn read_table(path: &Utf8Path) -> Result<Table, Error> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        Error::to(ErrorKind::Usage, "read the table of today", error)
    };
    let bytes = crate::store::file::read(path).map_err(|error| failed(error.into()))?;
    Table::read(path.as_str(), &bytes, None).map_err(|error| failed(error.into()))
}

/// How to start workers; their files are written to `folder`.
fn worker_command(
    args: &TuneArgs,
    keeper: &Keeper,
    folder: &Utf8Path,
) -> Result<WorkerCommand, Error> {
    let argv = match args.backend {
        BackendArg::Reference => {
            vec![keeper.program().to_string(), "reference-worker".to_owned()]
        }
        BackendArg::SglangTriton
        | BackendArg::SglangFamilies
        | BackendArg::SglangMoe
        | BackendArg::AiterTriton
        | BackendArg::Aiter => {
            let worker = worker_files::write(folder).map_err(|error| {
                Error::to(ErrorKind::Environment, "write the GPU worker", error)
            })?;
            vec![args.python.clone(), worker.to_string()]
        }
    };
    Ok(WorkerCommand {
        argv,
        launcher: args
            .launcher
            .clone()
            .map(|Words(words)| words)
            .unwrap_or_default(),
        env: std::collections::BTreeMap::new(),
    })
}

fn preview<P: Task>(
    request: &TuneRequest<'_, P>,
    interrupt: &Interrupt,
    printer: &Printer,
) -> Result<(), Error> {
    let device =
        look_at_device(request, interrupt).map_err(|error| failure(error, &request.folder))?;
    // Races of parts come first.
    let first: Option<P> = request.shapes.first().map(|shape| {
        let part = shape.parts().into_iter().next();
        part.unwrap_or_else(|| shape.clone())
    });
    let races = |shape: &P| shape.parts().len() + 1;
    let preview = Preview {
        device: device.name.clone(),
        arch: device.arch.clone(),
        stations: request.workers.unwrap_or(device.visible).max(1),
        shapes: request.shapes.len(),
        races_at_most: request.shapes.iter().map(races).sum(),
        candidates_at_first: first.as_ref().map_or(0, |shape| {
            let field = request.backend.field(&device, shape, &[], request.effort);
            field.candidates.len()
        }),
        budget_s: request.budget.map(|budget| budget.as_secs_f64()),
        output: request.folder.clone(),
    };
    if printer.is_json() {
        return printer.json(&preview);
    }
    printer.say(format!(
        "{} ({}): {} shapes, {} candidates at first for `{}`, {}; the table would go to `{}`",
        preview.device,
        preview.arch,
        preview.shapes,
        preview.candidates_at_first,
        first.as_ref().map_or_else(String::new, ToString::to_string),
        match &request.budget {
            Some(budget) => format!("at most {} s", budget.as_secs()),
            None => "no budget: until all are raced".to_owned(),
        },
        preview.output
    ));
    Ok(())
}

fn failure(error: TuneError, folder: &Utf8Path) -> Error {
    let kind = match &error {
        TuneError::NoShapes => ErrorKind::NoShapes,
        TuneError::OtherOperation { .. } => ErrorKind::Usage,
        TuneError::Results(
            ResultsError::Lock(LockError::Held { .. }) | ResultsError::OtherIdentity { .. },
        ) => ErrorKind::NotResumable,
        TuneError::Worker(_) | TuneError::Write { .. } | TuneError::Results(_) => {
            ErrorKind::Environment
        }
        TuneError::Interrupted => ErrorKind::Interrupted,
    };
    let other = matches!(
        error,
        TuneError::Results(ResultsError::OtherIdentity { .. })
    );
    let operation = matches!(
        error,
        TuneError::OtherOperation {
            backend: "aiter-triton",
            ..
        }
    );
    let failure = Error::to(kind, "tune", error);
    if operation {
        failure.hint("SGLang calls aiter's Triton GEMM for plain block-scaled weights alone; `--backend aiter` tunes preshuffled and per-channel ones")
    } else if other {
        failure.hint(format!(
            "give another folder than `{folder}` with -o, or remove it"
        ))
    } else {
        failure
    }
}

/// The error of a run that the user interrupted.
pub(super) fn interrupted(rows: usize) -> Error {
    Error::new(
        ErrorKind::Interrupted,
        format!("interrupted; {rows} rows are kept"),
    )
    .hint("run the same command again to go on")
}

/// The result of a completed run, which determines the exit code.
fn verdict<P>(outcome: &TuneOutcome<P>) -> Result<(), Error> {
    if outcome.interrupted {
        return Err(interrupted(outcome.rows.len()));
    }
    if !outcome.failed.is_empty() {
        return Err(Error::new(
            ErrorKind::TunerFailed,
            format!("{} shapes have no winner", outcome.failed.len()),
        )
        .hint("their reasons are above, and in `--json` under `failed`"));
    }
    if !outcome.lost.is_empty() && !outcome.not_reached.is_empty() {
        return Err(Error::new(
            ErrorKind::TunerFailed,
            format!(
                "every worker was lost, {} shapes are left",
                outcome.not_reached.len()
            ),
        )
        .hint("run the same command again to go on"));
    }
    Ok(())
}
