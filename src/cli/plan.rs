//! `gemmtune plan`: what is worth tuning, in which order, for how much.

mod fused_moe;
mod moe;
mod place;
mod tables;
mod triton;

use std::collections::BTreeSet;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;

use super::files;
use super::plan_thin;
use super::printer::Printer;
use crate::plan::cost::Cost;
use crate::plan::document::Verdict;
use crate::plan::fold::{Fold, untuned_csv};
use crate::plan::model::{self, Parallel, Prediction, Scheme};
use crate::plan::sizes::{self, Capture};
use crate::plan::{self, Plan, PlanError, PlanInput};
use crate::problem::{Op, Shape};
use crate::run::error::{Error, ErrorKind};
use crate::table::aiter::Table;
use crate::table::fmoe::rules::Release;
use crate::table::lookup::Rules;
use crate::table::moe::counted::{self, CountedProblem};
use crate::table::moe::release::Release as SglangRelease;
use crate::table::revision::Revision;
use crate::table::serves;
use crate::table::shapes::{self, CountedShape, ShapesError};
use place::Place;

/// Rows shown on the terminal; `--json` and `-o` have all.
const SHOWN: usize = 15;

/// Arguments of `gemmtune plan`.
#[derive(Debug, clap::Args)]
pub struct PlanArgs {
    /// Shapes that were seen: `op,M,N,K,dtype,records`, or a tuner's `M,N,K`; `-` is standard input
    ///
    /// Or calls of aiter's fused MoE, as `gemmtune shapes --fused-moe` writes them: then those are planned for.
    #[arg(long, value_name = "S.csv", required_unless_present_any = ["model", "thin"])]
    shapes: Option<Utf8PathBuf>,

    /// A tuned table the server has today (aiter CSV, SGLang JSON, files of aiter's Triton GEMM, or a folder of those); repeatable
    #[arg(long = "table", value_name = "T.csv")]
    tables: Vec<Utf8PathBuf>,

    /// The model's config.json: predicts its weights without a server
    #[arg(long, value_name = "config.json")]
    model: Option<Utf8PathBuf>,

    /// Tensor parallelism of the server
    #[arg(long, default_value_t = 1, value_name = "N")]
    tp: u32,

    /// Data parallelism of attention (--dp-size with --enable-dp-attention)
    #[arg(long, default_value_t = 1, value_name = "N")]
    dp_attention: u32,

    /// Split of dense MLP layers in MoE models (--moe-dense-tp-size)
    #[arg(long, value_name = "N")]
    moe_dense_tp: Option<u32>,

    /// The server runs with --disable-shared-experts-fusion
    #[arg(long)]
    no_shared_experts_fusion: bool,

    /// Expert parallelism of the server (--ep-size)
    #[arg(long, default_value_t = 1, value_name = "N")]
    ep: u32,

    /// SGLang release of the server, which decides whether a shared expert is computed as a routed one
    #[arg(long, default_value = "0.5.23", value_name = "VERSION")]
    sglang: SglangRelease,

    /// Who tunes block-FP8 GEMMs of aiter: its own tuner, or `aiter-triton`, whose rows each serve a bucket of M whatever `--fold`
    /// says [default: aiter-triton where a table is one of its files, else aiter]
    #[arg(long, value_enum, value_name = "BACKEND", conflicts_with = "thin")]
    backend: Option<BackendArg>,

    /// Operation to plan for, where shapes or the model leave a choice
    #[arg(long)]
    op: Option<Op>,

    /// Architecture as tables have it, for example gfx942
    #[arg(long, requires = "cu")]
    gfx: Option<String>,

    /// Compute units as tables have them, for example 304
    #[arg(long, requires = "gfx")]
    cu: Option<u32>,

    /// Device by the name torch gives it, for example "NVIDIA H200"
    #[arg(long, conflicts_with = "gfx")]
    device: Option<String>,

    /// Rates of a device that is not known: operations and bytes per second, for example 2e11,2e10
    #[arg(long, value_name = "FLOPS,BYTES", value_delimiter = ',', num_args = 2)]
    rates: Vec<f64>,

    /// Revision of aiter: A (v0.1.7), B (v0.1.9), P (303a583c), H (e4048607) or N (after aiter#5586)
    #[arg(long, default_value = "H")]
    revision: Revision,

    /// aiter tag whose rules count for calls of the fused MoE, for example v0.1.16; --revision serves too
    #[arg(long, value_name = "TAG")]
    aiter: Option<Release>,

    /// How many M share a row: exact, fine (steps of 16 to 128) or coarse (powers of two)
    #[arg(long, default_value = "fine", value_parser = parse_fold)]
    fold: Fold,

    /// Tune again what only the coarse grid serves
    #[arg(long)]
    refine: bool,

    /// Decode batch sizes that graphs are captured for
    #[arg(long, value_delimiter = ',', value_name = "M,...")]
    capture: Vec<u32>,

    /// Largest batch a decode graph is captured for (--cuda-graph-max-bs)
    #[arg(long, value_name = "N")]
    max_bs: Option<u32>,

    /// Largest number of running requests (--max-running-requests)
    #[arg(long, value_name = "N")]
    max_running: Option<u32>,

    /// The server decodes speculatively
    #[arg(long)]
    speculative: bool,

    /// Chunked prefill size (--chunked-prefill-size)
    #[arg(long, value_name = "N")]
    chunked_prefill: Option<u32>,

    /// Seconds of one device that tuning may take
    #[arg(long, value_name = "SECONDS")]
    budget: Option<f64>,

    /// Plan nothing: say how many rows of the table serve every M from 1 to this with the same kernels; -o writes them
    #[arg(
        long,
        value_name = "M",
        value_parser = clap::value_parser!(u32).range(1..=1_048_576),
        requires = "tables",
        requires = "gfx",
        conflicts_with_all = ["shapes", "model"]
    )]
    thin: Option<u32>,

    /// Write the rows to tune as the tuner reads them
    #[arg(short, long, value_name = "UNTUNED.csv")]
    output: Option<Utf8PathBuf>,

    /// Write the fused-MoE rows to tune, as a shapes file; with aiter, as its tuner reads them
    #[arg(long, value_name = "MOE.csv")]
    moe_output: Option<Utf8PathBuf>,
}

/// Backends of `gemmtune tune` between which an operation leaves a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum BackendArg {
    /// aiter's kernels, by rows of its CSV tables
    Aiter,
    /// aiter's Triton GEMM, by rows of its JSON files
    AiterTriton,
}

fn parse_fold(text: &str) -> Result<Fold, String> {
    match text {
        "exact" => Ok(Fold::Exact),
        "fine" => Ok(Fold::Fine),
        "coarse" => Ok(Fold::Coarse),
        _ => Err("one of exact, fine, coarse".to_owned()),
    }
}

/// Makes the plan, writes the untuned table and summarises it.
pub fn run(args: &PlanArgs, printer: &Printer) -> Result<(), Error> {
    if let Some(calls) = fused_moe::calls_of(args) {
        if let Some(output) = &args.output {
            let inputs = args.shapes.iter().chain(&args.tables);
            files::refuse_overwriting(output, inputs.map(Utf8PathBuf::as_path))?;
        }
        return fused_moe::run(args, calls, printer);
    }
    let prediction = args
        .model
        .as_deref()
        .map(|path| predict(path, args))
        .transpose()?;
    let tables::Tables {
        csv: tables,
        configs,
        files,
    } = tables::read(&args.tables)?;
    let is_triton = triton::is_planned(args, &files)?;
    if let Some(output) = &args.output {
        let inputs = args.model.iter().chain(&args.shapes).chain(&args.tables);
        files::refuse_overwriting(output, inputs.map(Utf8PathBuf::as_path))?;
    }
    if let Some(max_m) = args.thin {
        return thin(args, &tables, max_m, printer);
    }
    let op = args.op.or(is_triton.then_some(Op::Blockscale));
    let op_hint = op.or_else(|| op_of_model(prediction.as_ref(), args));
    let (seen, problems) = read_shapes(args, op_hint, &tables)?;
    let ops = ops(op, args, &seen, prediction.as_ref());
    let place = Place::of(args, &tables, &ops)?;
    let (capture, chunk) = sizes_of(args, &place, prediction.as_ref());

    let mut plans: Vec<Plan> = Vec::new();
    let mut budget_s = args.budget;
    for op in ops {
        let cost = if is_triton {
            Cost::triton_race()
        } else {
            Cost::of(op, &place.gfx)
        };
        let mut plan = plan::make(&PlanInput {
            op,
            shapes: &seen,
            tables: &tables,
            configs: &configs,
            files: &files,
            model: prediction.as_ref(),
            capture: &capture,
            chunk,
            revision: args.revision,
            gfx: &place.gfx,
            cu_num: place.cu_num,
            device: &place.device,
            fold: if is_triton { Fold::Bucket } else { args.fold },
            refine: args.refine,
            cost: &cost,
            budget_s,
        })
        .map_err(refused)?;
        plan.notes.extend(place.note.clone());
        if is_triton {
            plan.notes.extend(triton::notes(args, &files, &place.gfx));
        }
        if op == Op::TritonBlockFp8 {
            plan.notes.extend(serves::unread(&place.device.name));
        }
        budget_s = budget_s.map(|left| left - plan.gpu_seconds);
        plans.push(plan);
    }
    let (fused_moe, mut notes) = moe::plan(
        args,
        &problems,
        prediction.as_ref(),
        &place,
        (&capture, chunk),
    );
    let of_aiter = fused_moe::of_model(
        args,
        prediction.as_ref().filter(|_| problems.is_empty()),
        &place,
        (&capture, chunk),
    );
    notes.extend(of_aiter.iter().map(|(_, note)| note.clone()));
    match (&args.moe_output, &of_aiter) {
        (Some(output), Some((rows, _))) => {
            files::write(output, rows.untuned_csv().as_bytes(), printer)?;
        }
        (Some(output), None) => moe::write(output, &fused_moe, printer)?,
        (None, _) => {}
    }
    let Some(mut plan) = plans.into_iter().reduce(Plan::join) else {
        const REASON: &str = "there are no shapes to plan for";
        if !fused_moe.is_empty() {
            return moe::show_alone(&fused_moe, &notes, printer);
        }
        if printer.is_json() {
            printer.json(&json!({ "verdict": Verdict::Nothing, "reason": REASON, "tune": [] }))?;
        }
        return Err(Error::new(ErrorKind::NoShapes, REASON)
            .hint("`gemmtune shapes LOG -o S.csv` collects them from a server's log"));
    };
    if let Some(output) = &args.output {
        write_untuned(output, &plan, args, printer)?;
    }
    plan.fused_moe = fused_moe;
    plan.notes.extend(notes);
    if printer.is_json() {
        return printer.json(&plan);
    }
    show(&plan, args, printer);
    moe::show(&plan.fused_moe, printer);
    Ok(())
}

fn thin(args: &PlanArgs, tables: &[Table], max_m: u32, printer: &Printer) -> Result<(), Error> {
    let ([table], Some(gfx), Some(cu_num)) = (tables, &args.gfx, args.cu) else {
        return Err(Error::new(
            ErrorKind::Usage,
            "--thin takes one table of aiter's and its device",
        )
        .hint("`gemmtune merge` makes one table of several"));
    };
    let question = plan_thin::Question {
        rules: Rules::new(table.op, args.revision),
        gfx,
        cu_num,
        max_m,
    };
    plan_thin::run(table, &question, args.output.as_deref(), printer)
}

fn predict(path: &Utf8Path, args: &PlanArgs) -> Result<Prediction, Error> {
    let bytes = crate::store::file::read(path)
        .map_err(|error| Error::to(ErrorKind::Usage, "read the model's config", error))?;
    let parallel = Parallel {
        tp: args.tp,
        dp_attention: args.dp_attention,
        moe_dense_tp: args.moe_dense_tp,
        shared_experts_fusion: args.no_shared_experts_fusion.then_some(false),
        ep: args.ep,
        release: args.sglang,
        is_hip: args.gfx.is_some()
            || args
                .device
                .as_deref()
                .is_some_and(|name| name.starts_with("AMD")),
    };
    let prediction = model::predict(&bytes, &parallel).map_err(|error| {
        Error::to(ErrorKind::Usage, "plan from the model's config", error)
            .hint("collect shapes from a server instead: `gemmtune shapes LOG -o S.csv`")
    })?;
    if !prediction.rejected.is_empty() {
        return Err(Error::new(
            ErrorKind::Usage,
            format!(
                "no server loads this model with --tp {}: {}",
                args.tp,
                prediction.rejected.join("; ")
            ),
        )
        .hint("choose another --tp; split sides have to be whole scale blocks on every rank"));
    }
    Ok(prediction)
}

/// The operation that serves a model's weights, if its scheme and the device determine it.
fn op_of_model(prediction: Option<&Prediction>, args: &PlanArgs) -> Option<Op> {
    let nvidia = args
        .device
        .as_deref()
        .is_some_and(|name| name.starts_with("NVIDIA"));
    match (&prediction?.scheme, nvidia) {
        (Scheme::PerChannel, _) => Some(Op::PER_CHANNEL),
        (Scheme::Block { .. }, true) => Some(Op::TritonBlockFp8),
        (Scheme::Block { .. }, false) => Some(Op::UNSAID),
    }
}

/// The captured shapes. Those without an operation are attributed to the one given, else to the one that their file's
/// name and columns imply, else to the model's or the tables'.
fn read_shapes(
    args: &PlanArgs,
    op_hint: Option<Op>,
    tables: &[Table],
) -> Result<(Vec<CountedShape>, Vec<CountedProblem>), Error> {
    let Some(path) = &args.shapes else {
        return Ok((Vec::new(), Vec::new()));
    };
    let bytes =
        files::read(path).map_err(|error| Error::to(ErrorKind::Usage, "read the shapes", error))?;
    let wrong = |error: ShapesError| {
        let hint = match &error {
            ShapesError::OtherGemm { .. } => {
                "--op takes them for shapes of that operation all the same"
            }
            _ => "`gemmtune shapes LOG -o S.csv` writes such a file",
        };
        Error::to(ErrorKind::Usage, "use the shapes", error).hint(hint)
    };
    let of_tables = || {
        let ops: BTreeSet<Op> = tables.iter().map(|table| table.op).collect();
        ops.first().copied().filter(|_| ops.len() == 1)
    };
    let op = match args.op {
        Some(op) => op,
        None => shapes::said_op(path.as_str(), &bytes)
            .map_err(wrong)?
            .or(op_hint)
            .or_else(of_tables)
            .unwrap_or(Op::UNSAID),
    };
    let problems = counted::read(&bytes).map_err(wrong)?;
    Ok((shapes::read(&bytes, Some(op)).map_err(wrong)?, problems))
}

fn ops(
    op: Option<Op>,
    args: &PlanArgs,
    seen: &[CountedShape],
    prediction: Option<&Prediction>,
) -> Vec<Op> {
    if let Some(op) = op {
        return vec![op];
    }
    let ops: BTreeSet<Op> = seen.iter().map(|counted| counted.shape.op).collect();
    if ops.is_empty() {
        return op_of_model(prediction, args).into_iter().collect();
    }
    ops.into_iter().collect()
}

/// Captured sizes and the prefill chunk: the ones given, else a server's defaults if a model is planned for.
fn sizes_of(
    args: &PlanArgs,
    place: &Place,
    prediction: Option<&Prediction>,
) -> (Vec<u32>, Option<u32>) {
    let memory = sizes::memory_gib(&place.gfx, place.cu_num, args.device.as_deref());
    let (chunk, max_bs) = sizes::defaults(memory, args.tp);
    let by_default = prediction.is_some();
    let chunk = args
        .chunked_prefill
        .or(by_default.then_some(chunk / args.dp_attention.max(1)));
    let max_bs = args
        .max_bs
        .or((by_default && args.capture.is_empty()).then_some(max_bs));
    let mut capture = args.capture.clone();
    if let Some(max_bs) = max_bs {
        let ranks = args.tp / args.dp_attention.max(1);
        capture.extend(sizes::capture_list(&Capture {
            max_bs,
            max_running: args.max_running,
            speculative: args.speculative,
            multiple_of: if args.dp_attention > 1 { ranks } else { 1 },
        }));
        capture.sort_unstable();
        capture.dedup();
    }
    (capture, chunk)
}

fn refused(error: PlanError) -> Error {
    let (kind, hint) = match &error {
        PlanError::NoShapes(_) => (
            ErrorKind::NoShapes,
            "`gemmtune shapes LOG -o S.csv` collects shapes; --op says for which operation to plan",
        ),
        PlanError::Names => (
            ErrorKind::Usage,
            "`--revision` says which aiter serves; from v0.1.9 on keys are bounds of M",
        ),
        PlanError::Tables(_) | PlanError::Lookup(_) | PlanError::Config(_) => (
            ErrorKind::Usage,
            "`gemmtune lint` on the tables says what is wrong with them",
        ),
    };
    Error::to(kind, "make a plan", error).hint(hint)
}

fn write_untuned(
    output: &Utf8Path,
    plan: &Plan,
    args: &PlanArgs,
    printer: &Printer,
) -> Result<(), Error> {
    let [op] = plan.ops[..] else {
        return Err(Error::new(
            ErrorKind::Usage,
            "a tuner's file holds one operation, and the shapes have several",
        )
        .hint("say which with --op"));
    };
    let rows: Vec<Shape> = plan.tune.iter().map(|row| row.shape.shape()).collect();
    let text = untuned_csv(op, args.revision, &plan.gfx, &rows);
    files::write(output, text.as_bytes(), printer)
}

fn show(plan: &Plan, args: &PlanArgs, printer: &Printer) {
    if let Some(model) = &plan.model {
        printer.say(format!("{} at TP{}:", model.architecture, model.tp));
        for layer in &model.layers {
            let condition = layer
                .condition
                .as_ref()
                .map_or_else(String::new, |text| format!("  {text}"));
            let mark = if layer.present { ' ' } else { '-' };
            printer.say(format!(
                "  {mark} {:<30} {:>6} x {:<6} in {} layers{condition}",
                layer.name, layer.n, layer.k, layer.count
            ));
        }
        for note in &model.notes {
            printer.say(format!("  {note}"));
        }
    }
    for line in &plan.difference {
        printer.say(format!("difference: {line}"));
    }
    for row in plan.tune.iter().take(SHOWN) {
        printer.say(format!(
            "{:>6.2} %  {}  serves {} M",
            row.share * 100.0,
            row.shape.shape(),
            row.serves.len()
        ));
    }
    if plan.tune.len() > SHOWN {
        printer.say(format!(
            "          and {} more rows",
            plan.tune.len() - SHOWN
        ));
    }
    if !plan.left_out.is_empty() {
        printer.say(format!(
            "{} rows are beyond the budget",
            plan.left_out.len()
        ));
    }
    let percent = |rate: f64| format!("{:.1} %", rate * 100.0);
    printer.say(format!(
        "{} seen shapes: {} served already, {} folded into others; {} sizes added",
        plan.seen,
        plan.served.len(),
        plan.folded.len(),
        plan.added
    ));
    printer.say(format!(
        "hits by calls {} -> {}, by estimated time {} -> {}",
        percent(plan.hit_rate.before.calls),
        percent(plan.hit_rate.after.calls),
        percent(plan.hit_rate.before.time),
        percent(plan.hit_rate.after.time)
    ));
    printer.say(format!(
        "times are roofline estimates for {} ({})",
        plan.device, plan.device_source
    ));
    for note in &plan.notes {
        printer.say(note);
    }
    match plan.verdict {
        Verdict::Nothing => printer.say(format!("nothing is worth tuning: {}", plan.reason)),
        Verdict::Tune => printer.say(&plan.reason),
    }
    if let (Some(output), Verdict::Tune) = (&args.output, plan.verdict) {
        printer.say(format!("{output} holds the rows for the tuner"));
    }
}
