//! `gemmtune lookup`: which row of a table the runtime uses for each shape.

mod aiter_triton;
pub(super) mod fused_moe;
mod json;
mod moe;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;
use serde_json::{Map, Value};

use super::files;
use super::printer::Printer;
use crate::problem::{Op, Shape};
use crate::proc::quoted;
use crate::run::error::{Error, ErrorKind};
use crate::table::aiter::{Row, Table};
use crate::table::csv_text;
use crate::table::family::{self, Family};
use crate::table::fmoe::rules::Release;
use crate::table::lookup::{LookupError, Probe, Resolution, Resolver, Rules};
use crate::table::moe::counted::{CountedProblem, read as read_problems};
use crate::table::moe::folders::Tables;
use crate::table::outcome::{Runs, runs};
use crate::table::reason::Reasons;
use crate::table::revision::Revision;
use crate::table::shapes::{self, CountedShape, ShapesError};
use moe::{MoeAnswer, MoeAnswers};

/// Arguments of `gemmtune lookup`.
#[derive(Debug, clap::Args)]
pub struct LookupArgs {
    /// A tuned CSV of aiter (of a GEMM or of its fused MoE), a JSON configuration of SGLang or of aiter's Triton GEMM, or a folder
    /// of one of the latter; for SGLang's fused MoE also the folder with `triton_X_Y_Z` in it, or the `sglang` package
    #[arg(long, value_name = "TABLE")]
    table: Utf8PathBuf,

    /// Shapes to look up: the CSV of `gemmtune shapes`, or one with the columns M,N,K; `-` is standard input
    ///
    /// For a table of aiter's fused MoE: the CSV of `gemmtune shapes --fused-moe`, or one with the columns of aiter's
    /// untuned_fmoe.csv.
    #[arg(long, value_name = "CSV", required_unless_present = "shape")]
    shapes: Option<Utf8PathBuf>,

    /// A shape instead of a file of them: `M=64,N=1536,K=7168`, or `M=64,E=128,N=768` for a fused MoE; may be repeated
    ///
    /// N of a fused MoE is the width between its two GEMMs on one rank. Its weights are FP8 with scale blocks of 128 by 128 unless
    /// `dtype=` and `scales=` say otherwise; without M it is looked up at 1, 16, 64, 256, 1024 and 4096.
    #[arg(long, value_name = "KEY=VALUE,…", conflicts_with = "shapes")]
    shape: Vec<String>,

    /// Architecture of the GPU, for example gfx942; needed for a CSV table
    #[arg(long, value_name = "GFX")]
    gfx: Option<String>,

    /// Compute units of the GPU, for example 304; needed for a CSV table
    #[arg(long = "cu", value_name = "N")]
    cu_num: Option<u32>,

    /// aiter revision whose rules count: A (v0.1.7), B (v0.1.9), P (303a583c), H (e4048607) or N (after aiter#5586), or one
    /// of these tags and commits
    ///
    /// Without it: that of the aiter tree the table lies in; elsewhere both H and N, and what depends on it is reported.
    #[arg(long, value_name = "REV")]
    revision: Option<Revision>,

    /// aiter tag whose rules count for a table of the fused MoE, for example v0.1.16; --revision serves too
    #[arg(long, value_name = "TAG")]
    aiter: Option<Release>,

    /// Whether a table's gfx column is part of the key, where the user's tree differs from the revision
    #[arg(long, value_name = "BOOL")]
    keys_gfx: Option<bool>,

    /// Operation that the table serves and that shapes without one belong to
    #[arg(long, value_name = "OP")]
    op: Option<Op>,

    /// Device name in the file names of a folder of JSON configurations
    #[arg(long, value_name = "NAME")]
    device: Option<String>,

    /// SGLang release whose rules count for JSON configurations
    ///
    /// Without it: that of the package the table lies in; elsewhere 0.5.23.
    #[arg(long, value_name = "VERSION")]
    sglang: Option<String>,

    /// `triton.__version__` of the serving interpreter, which decides whose folder fused-MoE tables are read from
    #[arg(long, value_name = "VERSION")]
    triton: Option<String>,

    /// Write the CSV to this file instead of standard output
    #[arg(short, long, value_name = "CSV")]
    output: Option<Utf8PathBuf>,

    /// Say for each shape what then runs, and why no row serves it
    #[arg(long)]
    explain: bool,
}

/// One looked-up shape: the columns of the CSV, then what only JSON has.
#[derive(Serialize)]
struct Answer {
    op: Op,
    #[serde(rename = "M")]
    m: u32,
    #[serde(rename = "N")]
    n: u32,
    #[serde(rename = "K")]
    k: u32,
    result: &'static str,
    #[serde(rename = "padded_M")]
    padded_m: Option<i64>,
    libtype: Option<String>,
    #[serde(rename = "kernelId")]
    kernel_id: Option<i64>,
    #[serde(rename = "splitK")]
    split_k: Option<i64>,
    #[serde(rename = "kernelName")]
    kernel_name: Option<String>,
    dtype: String,
    records: u64,
    probe: Option<Probe>,
    /// 1-based line of the row.
    line: Option<u64>,
    us: Option<f64>,
    /// What the runtime does as a result.
    runs: String,
    /// Whether it raises an exception.
    raises: bool,
    /// Why no row serves it.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The row whose kernel `gemm_a8w8`'s own module runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    module_kernel: Option<ModuleKernel>,
    /// What SGLang's Triton kernel is launched with.
    #[serde(skip_serializing_if = "Option::is_none")]
    config: Option<Map<String, Value>>,
}

#[derive(Serialize)]
struct ModuleKernel {
    #[serde(rename = "M")]
    m: u32,
    #[serde(rename = "kernelId")]
    kernel_id: Option<i64>,
    #[serde(rename = "kernelName")]
    kernel_name: Option<String>,
}

#[derive(Serialize)]
struct Document<'args> {
    table: &'args Utf8Path,
    hits: usize,
    misses: usize,
    hit_rate_by_records: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<&'static str>,
    /// If no revision is given: those whose rules were tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    revisions: Option<Vec<&'static str>>,
    /// Shapes of operations that another table serves.
    other_operations: usize,
    warnings: Vec<String>,
    rows: Vec<Answer>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fused_moe: Vec<MoeAnswer>,
}

/// Answers, and remarks on them.
#[derive(Default)]
struct Answers {
    rows: Vec<Answer>,
    /// The revisions whose rules were applied.
    revisions: Vec<Revision>,
    other_operations: usize,
    warnings: Vec<String>,
    fused_moe: Vec<MoeAnswer>,
}

/// Looks the shapes up and writes the results.
pub fn run(args: &LookupArgs, printer: &Printer) -> Result<(), Error> {
    let is_aiter_triton = aiter_triton::is_one(&args.table);
    let is_json = args.table.is_dir() || args.table.extension() == Some("json");
    let from = args.shapes.as_deref().unwrap_or(Utf8Path::new("--shape"));
    if let Some(output) = &args.output {
        files::refuse_overwriting(output, [args.table.as_path(), from])?;
    }
    let bytes = match &args.shapes {
        Some(path) => read(path, "the shapes")?,
        None => moe::shape_lines(&args.shape)?,
    };
    if !is_json {
        let table = read(&args.table, "the table")?;
        if crate::table::fmoe::table::is_of_moe(&table) {
            return fused_moe::run(args, &table, (from, &bytes), printer);
        }
    }
    let wrong = |error: ShapesError| {
        Error::to(ErrorKind::Usage, &format!("use `{from}`"), error)
            .hint("the columns are op,M,N,K,dtype,records, and E,topk,scales for fused MoE; only M,N,K are needed")
    };
    let problems = read_problems(&bytes).map_err(wrong)?;
    let moe_tables = Tables::open(&args.table)
        .map_err(|error| Error::to(ErrorKind::Usage, "read the table", error))?;
    if let Some(tables) = moe_tables {
        return in_moe_tables(args, &tables, from, (&bytes, &problems), printer);
    }
    let default_op = match args.op {
        Some(op) => op,
        None if is_aiter_triton => Op::Blockscale,
        None if is_json => Op::TritonBlockFp8,
        None => match (
            shapes::said_op(from.as_str(), &bytes).map_err(wrong)?,
            family::of_file_name(args.table.as_str()),
        ) {
            (Some(op), _) | (None, Some(Family::Op(op))) => op,
            (None, _) => Op::UNSAID,
        },
    };
    let shapes = shapes::read(&bytes, Some(default_op)).map_err(wrong)?;
    // A gate that looked nothing up must not pass.
    if shapes.is_empty() {
        return Err(Error::new(
            ErrorKind::NoShapes,
            match problems.len() {
                0 => format!("`{from}` holds no shape"),
                _ => format!("`{from}` holds fused MoE only, which this table does not serve"),
            },
        )
        .hint("`gemmtune shapes LOG -o S.csv` collects them from a server's log"));
    }
    let mut answers = if is_aiter_triton {
        aiter_triton::answers(args, &shapes)?
    } else if is_json {
        json::in_json(args, &shapes)?
    } else {
        in_csv(args, &shapes)?
    };
    answers.other_operations += problems.len();
    let csv = csv(&answers.rows);
    write(args, csv.as_bytes(), printer)?;
    finish(args, answers, printer)
}

fn write(args: &LookupArgs, csv: &[u8], printer: &Printer) -> Result<(), Error> {
    match &args.output {
        Some(path) => files::write(path, csv, printer),
        None if printer.is_json() => Ok(()),
        None => printer.data(csv),
    }
}

/// Looks the fused-MoE problems up; the shapes of plain GEMMs have other tables.
fn in_moe_tables(
    args: &LookupArgs,
    tables: &Tables,
    from: &Utf8Path,
    (bytes, problems): (&[u8], &[CountedProblem]),
    printer: &Printer,
) -> Result<(), Error> {
    if problems.is_empty() {
        return Err(Error::new(
            ErrorKind::NoShapes,
            format!("`{from}` holds no fused MoE, and `{}` has tables of nothing else", args.table),
        )
        .hint("`--shape M=64,E=128,N=768` is one; E are the experts on one rank, N the width between the two GEMMs"));
    }
    let MoeAnswers { rows, warnings } = moe::in_tables(args, tables, problems)?;
    let gemms = shapes::read(bytes, Some(Op::TritonBlockFp8)).map_or(0, |shapes| shapes.len());
    let mut answers = Answers {
        fused_moe: rows,
        warnings,
        other_operations: gemms,
        ..Answers::default()
    };
    if gemms > 0 {
        answers.warnings.push(format!(
            "{gemms} shapes are of plain GEMMs, which have other tables, and are left out"
        ));
    }
    write(args, moe::csv(&answers.fused_moe).as_bytes(), printer)?;
    finish(args, answers, printer)
}

fn finish(args: &LookupArgs, answers: Answers, printer: &Printer) -> Result<(), Error> {
    // (hit, records) for every row.
    let gemms = answers
        .rows
        .iter()
        .map(|row| (row.result == "hit", row.records));
    let moe = answers
        .fused_moe
        .iter()
        .map(|row| (row.result == "hit", row.records));
    let ends: Vec<(bool, u64)> = gemms.chain(moe).collect();
    let hits = ends.iter().filter(|(hit, _)| *hit).count();
    let records = |ends: &mut dyn Iterator<Item = &(bool, u64)>| -> f64 {
        // The sum of no floats is -0.0.
        ends.map(|(_, records)| *records as f64).sum::<f64>() + 0.0
    };
    let all = records(&mut ends.iter());
    let document = Document {
        table: &args.table,
        hits,
        misses: ends.len() - hits,
        hit_rate_by_records: if all > 0.0 {
            records(&mut ends.iter().filter(|(hit, _)| *hit)) / all
        } else {
            0.0
        },
        revision: match answers.revisions[..] {
            [one] => Some(one.name()),
            _ => None,
        },
        revisions: (answers.revisions.len() > 1)
            .then(|| answers.revisions.iter().map(|one| one.name()).collect()),
        other_operations: answers.other_operations,
        warnings: answers.warnings,
        rows: answers.rows,
        fused_moe: answers.fused_moe,
    };
    if printer.is_json() {
        return printer.json(&document);
    }
    for warning in &document.warnings {
        printer.warn(warning);
    }
    if args.explain {
        for row in &document.rows {
            let what = if row.raises { "raises" } else { "runs" };
            let reason = row
                .reason
                .as_ref()
                .map_or_else(String::new, |reason| format!(" ({reason})"));
            printer.say(format!(
                "{} M={} N={} K={}: {}{reason}, {what} {}",
                row.op, row.m, row.n, row.k, row.result, row.runs
            ));
        }
        for row in &document.fused_moe {
            printer.say(row.explained());
        }
    }
    printer.say(format!(
        "{} of {} shapes hit ({:.1} % by records)",
        document.hits,
        document.hits + document.misses,
        100.0 * document.hit_rate_by_records
    ));
    Ok(())
}

fn read(path: &Utf8Path, what: &str) -> Result<Vec<u8>, Error> {
    files::read(path).map_err(|error| Error::to(ErrorKind::Usage, &format!("read {what}"), error))
}

/// The operation that a table is looked up for: the one given by the user, else by the file's name, else by the
/// shapes if they agree, else by the table's kernels and columns.
fn table_op(args: &LookupArgs, shapes: &[CountedShape]) -> Option<Op> {
    let of_shapes = || {
        let first = shapes.first()?.shape.op;
        shapes
            .iter()
            .all(|shape| shape.shape.op == first)
            .then_some(first)
    };
    args.op
        .or_else(|| match family::of_file_name(args.table.as_str()) {
            Some(Family::Op(op)) => Some(op),
            // Reading the table reports it.
            Some(Family::Other(_)) => None,
            None => of_shapes(),
        })
}

fn in_csv(args: &LookupArgs, shapes: &[CountedShape]) -> Result<Answers, Error> {
    let (Some(gfx), Some(cu_num)) = (&args.gfx, args.cu_num) else {
        return Err(Error::new(
            ErrorKind::Usage,
            "a CSV table is looked up for one GPU: --gfx and --cu are needed",
        )
        .hint("MI300X and MI325X: --gfx gfx942 --cu 304; MI308X: --gfx gfx942 --cu 80; MI350X and MI355X: --gfx gfx950 --cu 256"));
    };
    let bytes = read(&args.table, "the table")?;
    let table = Table::read(args.table.as_str(), &bytes, table_op(args, shapes))
        .map_err(|error| Error::to(ErrorKind::Usage, "use the table", error))?;
    if table.rows.is_empty() {
        return Err(
            Error::new(ErrorKind::Usage, format!("`{}` holds no row", args.table))
                .hint(format!("`gemmtune lint {}` says why", quoted(&args.table))),
        );
    }
    let revisions = revisions(args);
    let resolvers = revisions
        .iter()
        .map(|revision| {
            let mut rules = Rules::new(table.op, *revision);
            rules.keys_gfx = args.keys_gfx.unwrap_or(rules.keys_gfx);
            Ok((*revision, Resolver::new(&table, rules, gfx, cu_num)?))
        })
        .collect::<Result<Vec<_>, LookupError>>()
        .map_err(|error| {
            Error::to(ErrorKind::Usage, "use the table as the runtime does", error)
                .hint(format!(
                    "`gemmtune lint {}` lists every such line",
                    quoted(&args.table)
                ))
                .hint(format!(
                    "`gemmtune merge {} -o OUT.csv` keeps the best valid row per key",
                    quoted(&args.table)
                ))
        })?;
    let mut answers = Answers {
        revisions,
        ..Answers::default()
    };
    // The first one's row is shown.
    let Some((_, first)) = resolvers.first() else {
        return Ok(answers);
    };
    if first.falls_back_to_cu_num() {
        answers.warnings.push(format!(
            "`{}` has no `gfx` column: rows match by cu_num alone, as the runtime warns too",
            args.table
        ));
    }
    let reasons = Reasons::new(&table, first.rules(), gfx, cu_num);
    let mut open = 0;
    for CountedShape { shape, records } in shapes {
        if shape.op != table.op {
            answers.other_operations += 1;
            continue;
        }
        let outcomes: Vec<(Revision, Resolution<'_>, Runs)> = resolvers
            .iter()
            .map(|(revision, resolver)| {
                let resolution = resolver.find(shape);
                let then = runs(&table, *revision, gfx, shape.m, resolution);
                (*revision, resolution, then)
            })
            .collect();
        let resolution = outcomes
            .first()
            .map_or(Resolution::Miss, |(_, resolution, _)| *resolution);
        let mut answer = csv_answer(shape, *records, resolution, &outcomes);
        open += usize::from(!agree(&outcomes));
        if resolution.row().is_none() {
            answer.reason = Some(reasons.why(shape));
        }
        if table.op.aiter().is_some_and(|aiter| aiter.module_looks_up) {
            answer.module_kernel = first.find_in_a8w8_module(shape).map(|row| ModuleKernel {
                m: row.m,
                kernel_id: row.kernel_id,
                kernel_name: text(row.kernel_name.as_ref()),
            });
        }
        answers.rows.push(answer);
    }
    if open > 0 {
        answers.warnings.push(format!(
            "which aiter runs this? {open} of the answers depend on it: say --revision H (up to e4048607a5, August 2026) or \
             --revision N (main after aiter#5586, September 2026)"
        ));
    }
    if answers.other_operations > 0 {
        answers.warnings.push(format!(
            "{} shapes are of other operations than {}, whose table this is, and are left out",
            answers.other_operations, table.op
        ));
    }
    Ok(answers)
}

/// The revisions whose rules apply: the one that is given, or that of the tree around the table, or all current ones.
fn revisions(args: &LookupArgs) -> Vec<Revision> {
    let known = args
        .revision
        .or_else(|| crate::tree::aiter::revision_around(&args.table));
    known.map_or_else(|| Revision::TODAY.to_vec(), |revision| vec![revision])
}

/// Whether the result for a shape is the same at every revision.
fn agree(outcomes: &[(Revision, Resolution<'_>, Runs)]) -> bool {
    outcomes.windows(2).all(|pair| {
        pair[0].2 == pair[1].2
            && pair[0].1.row().map(|row| row.line) == pair[1].1.row().map(|row| row.line)
    })
}

fn text(text: Option<&crate::table::aiter::Text>) -> Option<String> {
    text.map(ToString::to_string)
}

fn csv_answer(
    shape: &Shape,
    records: u64,
    resolution: Resolution<'_>,
    outcomes: &[(Revision, Resolution<'_>, Runs)],
) -> Answer {
    let then = |revision: Revision, resolution: &Resolution<'_>, runs: &Runs| {
        let row = match resolution {
            Resolution::Hit {
                row,
                probe: Probe::Largest,
                ..
            } => format!(" (the row of M={}, the largest)", row.m),
            _ => String::new(),
        };
        format!("at {revision} {}{row}", runs.text())
    };
    let runs = match outcomes {
        [(_, _, one), ..] if agree(outcomes) => one.text().to_owned(),
        _ => outcomes
            .iter()
            .map(|(revision, resolution, runs)| then(*revision, resolution, runs))
            .collect::<Vec<_>>()
            .join("; "),
    };
    let (padded_m, probe) = match resolution {
        Resolution::Hit {
            padded_m, probe, ..
        } => (Some(i64::from(padded_m)), Some(probe)),
        Resolution::Miss => (None, None),
    };
    let row = resolution.row();
    let cell = |cell: fn(&Row) -> Option<String>| row.and_then(cell);
    Answer {
        op: shape.op,
        m: shape.m,
        n: shape.n,
        k: shape.k,
        result: if row.is_some() { "hit" } else { "miss" },
        padded_m,
        libtype: cell(|row| text(row.libtype.as_ref())),
        kernel_id: row.and_then(|row| row.kernel_id),
        split_k: row.and_then(|row| row.split_k),
        kernel_name: cell(|row| text(row.kernel_name.as_ref())),
        dtype: shape.dtype.clone(),
        records,
        probe,
        line: row.map(|row| row.line),
        us: row.and_then(|row| row.us),
        runs,
        raises: outcomes
            .iter()
            .any(|(_, _, runs)| matches!(runs, Runs::Raises(_))),
        reason: None,
        module_kernel: None,
        config: None,
    }
}

fn csv(rows: &[Answer]) -> String {
    let header = "op,M,N,K,result,padded_M,libtype,kernelId,splitK,kernelName";
    let number = |number: Option<i64>| number.map(|number| number.to_string()).unwrap_or_default();
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let cells = |row: &Answer| {
        [
            row.op.to_string(),
            row.m.to_string(),
            row.n.to_string(),
            row.k.to_string(),
            row.result.to_owned(),
            number(row.padded_m),
            text(&row.libtype),
            number(row.kernel_id),
            number(row.split_k),
            text(&row.kernel_name),
        ]
    };
    csv_text::text(header.split(','), rows.iter().map(cells))
}
