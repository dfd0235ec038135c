//! `gemmtune tune --backend aiter`: aiter's own tuner, driven and supervised.

mod fused_moe;

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::str::FromStr;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;

use super::printer::Printer;
use super::tune_progress::TuneProgress;
use crate::problem::op::{ERR_RATIO_LIMIT, fused_moe_aiter};
use crate::problem::{Op, Shape};
use crate::proc::Keeper;
use crate::run::error::{Error, ErrorKind};
use crate::table::aiter::{Row, Table};
use crate::table::fmoe::table::is_of_moe;
use crate::table::shapes::said_op;
use crate::tune::aiter::{
    self, AiterOrder, AiterOutcome, AiterTuneError, Incumbent, Limits, Preview, Settings,
};
use crate::tune::results::ResultsError;
use crate::workload::duration::Span;
use crate::workload::env;
use crate::workload::share::Share;

/// Arguments that only `--backend aiter` reads.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "aiter's tuner (--backend aiter)")]
pub(super) struct AiterArgs {
    /// The aiter tree: a checkout, or the folder that holds the installed package (aiter-triton too)
    #[arg(long, value_name = "DIR")]
    pub(super) aiter_root: Option<Utf8PathBuf>,

    /// The operation, `fused_moe` included [default: the one that the name and columns of the shapes' file say, else gemm_a8w8_blockscale]
    #[arg(long, value_name = "OP")]
    op: Option<OpArg>,

    /// Times of what serves today: CSV with columns M,N,K,us and, if wanted, what
    #[arg(long, value_name = "I.csv")]
    incumbents: Option<Utf8PathBuf>,

    /// Libraries to search, as the tuner calls them [default: the widest the operation can run]
    #[arg(long, value_name = "NAME")]
    libtype: Option<String>,

    /// Whether to search splits of K [default: where the runtime obeys them]
    #[arg(long, value_name = "yes|no", value_parser = yes_or_no)]
    split_k: Option<bool>,

    /// Shapes in a batch: what a kill costs, at most [default: 8, or 4 where one shape can spoil a batch]
    #[arg(long, value_name = "COUNT")]
    batch: Option<usize>,

    /// A time limit such as `task=3m`: task (a candidate), silence (no sign of life), batch, build
    #[arg(long = "limit", value_name = "WHAT=TIME", value_parser = limit)]
    limits: Vec<(LimitOf, Duration)>,

    /// Largest share of wrong elements a row may have, in each stage [default: 0.05, or 0.1 for fused_moe]
    #[arg(long, value_name = "SHARE")]
    err_ratio: Option<Share>,

    /// Try shapes again that failed in an earlier run
    #[arg(long)]
    retry_failed: bool,
}

/// The values of `--op`.
#[derive(Clone, Copy, Debug)]
enum OpArg {
    Gemm(Op),
    FusedMoe,
}

impl FromStr for OpArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == fused_moe_aiter::TUNED_OP {
            return Ok(Self::FusedMoe);
        }
        let op = text.parse().map(Self::Gemm);
        op.map_err(|error| {
            format!(
                "{error}, and `{}` is none of them",
                fused_moe_aiter::TUNED_OP
            )
        })
    }
}

#[derive(Clone, Copy, Debug)]
enum LimitOf {
    Task,
    Silence,
    Batch,
    Build,
}

fn yes_or_no(text: &str) -> Result<bool, String> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err("yes or no is expected".to_owned()),
    }
}

fn limit(text: &str) -> Result<(LimitOf, Duration), String> {
    let (what, time) = text
        .split_once('=')
        .ok_or_else(|| "WHAT=TIME is expected, such as task=3m".to_owned())?;
    let what = match what {
        "task" => LimitOf::Task,
        "silence" => LimitOf::Silence,
        "batch" => LimitOf::Batch,
        "build" => LimitOf::Build,
        other => {
            return Err(format!(
                "`{other}` is not one of task, silence, batch, build"
            ));
        }
    };
    let time: Span = time.parse().map_err(|error| format!("{error}"))?;
    Ok((what, time.duration()))
}

/// The arguments shared with the other backends.
#[derive(Debug)]
pub(super) struct Common<'a> {
    pub(super) op: Op,
    pub(super) shapes: &'a [Shape],
    pub(super) output: &'a Utf8Path,
    pub(super) table: Option<&'a Utf8Path>,
    pub(super) budget: Option<Duration>,
    pub(super) devices: Option<u32>,
    pub(super) python: &'a str,
    pub(super) dry_run: bool,
}

impl AiterArgs {
    /// The operation to tune, where `bytes` are the contents of the shapes file `path`.
    pub(super) fn op(&self, path: &Utf8Path, bytes: &[u8]) -> Result<Op, Error> {
        if let Some(OpArg::Gemm(op)) = self.op {
            return Ok(op);
        }
        let said = said_op(path.as_str(), bytes).map_err(|error| {
            Error::to(ErrorKind::Usage, "use the shapes", error)
                .hint("--op takes them for shapes of that operation all the same")
        })?;
        Ok(said.unwrap_or(Op::UNSAID))
    }

    /// Whether the fused MoE should be tuned, where `bytes` are the contents of the shapes file.
    pub(super) fn is_fused_moe(&self, bytes: &[u8]) -> bool {
        match self.op {
            Some(op) => matches!(op, OpArg::FusedMoe),
            None => is_of_moe(bytes),
        }
    }

    fn tree(&self) -> Result<&Utf8Path, Error> {
        self.aiter_root.as_deref().ok_or_else(|| {
            Error::new(
                ErrorKind::Usage,
                "tune with aiter's tuner: no aiter tree is given",
            )
            .hint("give --aiter-root DIR; `gemmtune doctor` says which tree an interpreter imports")
        })
    }

    /// Runs aiter's tuner for the shapes of `common`, or describes it for a dry run.
    pub(super) fn run(&self, common: &Common<'_>, printer: &Printer) -> Result<(), Error> {
        let tree = self.tree()?;
        let keeper = Keeper::this_binary()
            .map_err(|error| Error::to(ErrorKind::Environment, "find this program", error))?;
        let interrupt = super::interrupt()?;
        let env = kept_env();
        let output = absolute(common.output);
        let python = Utf8Path::new(common.python);
        let shapes: Vec<Shape> = common
            .shapes
            .iter()
            .filter(|shape| shape.op == common.op)
            .cloned()
            .collect();
        let incumbents = self.incumbents(&shapes)?;
        let others = common.shapes.len() - shapes.len();
        if others > 0 {
            printer.say(format!(
                "{others} shapes of other operations are left out; --op says which one is tuned"
            ));
        }
        let order = AiterOrder {
            tree,
            python,
            env: &env,
            op: common.op,
            untuned: &shapes,
            incumbents: &incumbents,
            folder: &output,
            key: None,
            budget: common.budget,
            limits: self.limits(ERR_RATIO_LIMIT),
            settings: Settings {
                shipped: Self::shipped(common)?,
                batch: self.batch,
                devices: common.devices,
                libtype: self.libtype.clone(),
                split_k: self.split_k,
                retry_failed: self.retry_failed,
            },
            keeper: &keeper,
            interrupt: &interrupt,
        };
        if common.dry_run {
            let look = |scratch: &Utf8Path| aiter::preview(&order, scratch);
            return preview(&output, look, printer);
        }
        let mut progress = TuneProgress::new(printer, std::io::stderr().is_terminal());
        let outcome = aiter::tune(&order, &mut |event| progress.tell(event));
        progress.finish();
        let outcome = outcome.map_err(|error| failure(error, common.output))?;
        for loss in outcome.losses() {
            printer.warn(loss);
        }
        if printer.is_json() {
            printer.json(&outcome)?;
        } else {
            summary(printer, &outcome);
        }
        verdict(&outcome)
    }

    fn limits(&self, usual: f64) -> Limits {
        let mut limits = Limits::with(self.err_ratio, usual);
        for (what, time) in &self.limits {
            *match what {
                LimitOf::Task => &mut limits.task,
                LimitOf::Silence => &mut limits.silence,
                LimitOf::Batch => &mut limits.batch,
                LimitOf::Build => &mut limits.build,
            } = *time;
        }
        limits
    }

    /// Rows of the table in use.
    fn shipped(common: &Common<'_>) -> Result<Vec<Row>, Error> {
        let Some(path) = common.table else {
            return Ok(Vec::new());
        };
        let bytes = crate::store::file::read(path)
            .map_err(|error| Error::to(ErrorKind::Usage, "read the table of today", error))?;
        let table = Table::read(path.as_str(), &bytes, Some(common.op)).map_err(|error| {
            Error::to(ErrorKind::Usage, "read the table of today", error)
                .hint("`gemmtune lint` says what is wrong with it")
        })?;
        Ok(table.rows)
    }

    /// Measured times of what serves the shapes today.
    fn incumbents(&self, shapes: &[Shape]) -> Result<BTreeMap<Shape, Incumbent>, Error> {
        let mut known: BTreeMap<Shape, Incumbent> = BTreeMap::new();
        let Some(path) = &self.incumbents else {
            return Ok(known);
        };
        let failed = |error: csv::Error| {
            Error::to(ErrorKind::Usage, &format!("read `{path}`"), error)
                .hint("columns M,N,K,us are needed; a column `what` names it")
        };
        let mut reader = csv::Reader::from_path(path).map_err(failed)?;
        for measured in reader.deserialize::<Measured>() {
            let measured = measured.map_err(failed)?;
            let size = (measured.m, measured.n, measured.k);
            for shape in shapes {
                let stands = known.get(shape).is_some_and(|is| is.us <= measured.us);
                if (shape.m, shape.n, shape.k) == size && !stands {
                    let what = measured.what.clone();
                    let us = measured.us;
                    known.insert(shape.clone(), Incumbent { us, what });
                }
            }
        }
        Ok(known)
    }
}

/// Variables that gemmtune prepends to or reads, which must not be lost.
fn kept_env() -> BTreeMap<String, Option<String>> {
    ["PYTHONPATH", "AITER_JIT_DIR"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), Some(env::variable(name)?))))
        .collect()
}

fn absolute(path: &Utf8Path) -> Utf8PathBuf {
    std::path::absolute(path)
        .ok()
        .and_then(|path| Utf8PathBuf::from_path_buf(path).ok())
        .unwrap_or_else(|| path.to_owned())
}

/// A line of `--incumbents`.
#[derive(Debug, Deserialize)]
struct Measured {
    #[serde(rename = "M")]
    m: u32,
    #[serde(rename = "N")]
    n: u32,
    #[serde(rename = "K")]
    k: u32,
    us: f64,
    #[serde(default = "unnamed")]
    what: String,
}

fn unnamed() -> String {
    "what serves today".to_owned()
}

/// Describes what would be run, as `look` finds it with a scratch folder: a dry run writes nothing into the output
/// folder.
fn preview(
    folder: &Utf8Path,
    look: impl FnOnce(&Utf8Path) -> Result<Preview, AiterTuneError>,
    printer: &Printer,
) -> Result<(), Error> {
    let scratch = tempfile::tempdir()
        .map_err(|error| Error::to(ErrorKind::Environment, "make a scratch folder", error))?;
    let scratch = Utf8Path::from_path(scratch.path())
        .ok_or_else(|| Error::new(ErrorKind::Environment, "the scratch folder is not UTF-8"))?;
    let preview = look(scratch).map_err(|error| failure(error, folder))?;
    if printer.is_json() {
        return printer.json(&preview);
    }
    printer.data(command_line(&preview).as_bytes())?;
    let device = preview.device.as_ref().map_or_else(
        || "devices not counted".to_owned(),
        |device| {
            format!(
                "{} x {} ({}, {} compute units)",
                device.count, device.name, device.gfx, device.cu_num
            )
        },
    );
    printer.say(format!(
        "{device}: {} shapes in batches of {}, {}; the table would go to `{}`",
        preview.shapes,
        preview.batch,
        match preview.budget_s {
            Some(seconds) => format!("at most {seconds:.0} s"),
            None => "no budget: until all are tuned".to_owned(),
        },
        preview.output
    ));
    if !preview.to_compile.is_empty() {
        printer.say(format!(
            "to be compiled first: {}",
            preview.to_compile.join(", ")
        ));
    }
    for remark in &preview.remarks {
        printer.say(remark);
    }
    Ok(())
}

/// The command, quoted for a shell.
fn command_line(preview: &Preview) -> String {
    let quoted = |text: &str| {
        shlex::try_quote(text).map_or_else(|_| text.to_owned(), std::borrow::Cow::into_owned)
    };
    let set = preview
        .env
        .iter()
        .filter_map(|(name, value)| Some(format!("{name}={}", quoted(value.as_deref()?))));
    let words: Vec<String> = set
        .chain(preview.command.iter().map(|word| quoted(word)))
        .collect();
    words.join(" ") + "\n"
}

fn summary(printer: &Printer, outcome: &AiterOutcome) {
    let routes = outcome.routes().count();
    printer.say(format!(
        "{} rows for the table, {routes} shapes stay with what serves them, {} rows refused, {} shapes failed; {:.0} s",
        outcome.wins().count(),
        outcome.refused.len(),
        outcome.failed.len(),
        outcome.seconds
    ));
    for route in outcome.routes() {
        if let (Some(us), Some(incumbent)) = (route.row.us, &route.incumbent) {
            printer.say(format!(
                "{}: leave it to {}, {:.1} us against {us:.1} us",
                route.shape, incumbent.what, incumbent.us
            ));
        }
    }
    if !outcome.not_reached.is_empty() && !outcome.interrupted {
        printer.warn(format!(
            "{} shapes were not reached and keep what serves them; run the same command again to go on",
            outcome.not_reached.len()
        ));
    }
}

fn failure(error: AiterTuneError, folder: &Utf8Path) -> Error {
    let (kind, hint) = match &error {
        AiterTuneError::NoShapes => (ErrorKind::NoShapes, None),
        AiterTuneError::OtherOperation { .. } => (
            ErrorKind::Usage,
            Some("say which one is meant with --op".to_owned()),
        ),
        AiterTuneError::NoTree { .. } | AiterTuneError::OtherTree { .. } => (
            ErrorKind::Environment,
            Some("`gemmtune doctor` says which tree an interpreter imports".to_owned()),
        ),
        AiterTuneError::NoScript { .. }
        | AiterTuneError::NoFmoeScript { .. }
        | AiterTuneError::OtherFmoeKey { .. }
        | AiterTuneError::Flag(_) | AiterTuneError::Source(_) => (
            ErrorKind::SourceNotRecognised,
            Some("look with --dry-run; `gemmtune doctor` says what the tree can do".to_owned()),
        ),
        AiterTuneError::Results(ResultsError::OtherIdentity { .. }) => (
            ErrorKind::NotResumable,
            Some(format!(
                "give another folder than `{folder}` with -o, or remove it"
            )),
        ),
        AiterTuneError::Results(ResultsError::Lock(_)) => (ErrorKind::NotResumable, None),
        AiterTuneError::Interrupted => (ErrorKind::Interrupted, None),
        AiterTuneError::NoLibraryWhole(_) => (
            ErrorKind::TunerFailed,
            Some("fix what is named and tune into a new folder, or name the libraries to search with --libtype".to_owned()),
        ),
        AiterTuneError::Broken { .. } => (
            ErrorKind::TunerFailed,
            Some(format!("all it printed is below `{folder}/attempts`")),
        ),
        _ => (ErrorKind::Environment, None),
    };
    let failure = Error::to(kind, "tune", error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// The result of a completed run, which determines the exit code.
fn verdict(outcome: &AiterOutcome) -> Result<(), Error> {
    if outcome.interrupted {
        return Err(super::tune::interrupted(outcome.rows.len()));
    }
    if !outcome.failed.is_empty() {
        return Err(Error::new(
            ErrorKind::TunerFailed,
            format!("{} shapes have no row", outcome.failed.len()),
        )
        .hint("their reasons are above, and in `--json` under `failed`; --retry-failed tries them again"));
    }
    Ok(())
}
