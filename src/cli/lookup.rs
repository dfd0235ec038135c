//! `gemmtune lookup`: which row of a table the runtime takes for each shape.

use std::collections::BTreeSet;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;
use serde_json::{Map, Value};

use super::files;
use super::printer::Printer;
use crate::proc::quoted;
use crate::run::error::{Error, ErrorKind};
use crate::shape::{Op, Shape};
use crate::store::file::entries;
use crate::table::aiter::{Row, Table};
use crate::table::lookup::{Probe, Resolution, Resolver, Rules};
use crate::table::nearest::{Clamp, Site, default_config, nearest};
use crate::table::outcome::{Runs, runs};
use crate::table::revision::{Revision, op_of_file_name};
use crate::table::sglang_json::{Config, FileName};
use crate::table::shapes::{self, CountedShape};

/// Arguments of `gemmtune lookup`.
#[derive(Debug, clap::Args)]
pub struct LookupArgs {
    /// A tuned CSV of aiter, a JSON configuration of SGLang, or a folder of the latter
    #[arg(long, value_name = "TABLE")]
    table: Utf8PathBuf,

    /// Shapes to look up: the CSV of `gemmtune shapes`, or one with the columns M,N,K; `-` is standard input
    #[arg(long, value_name = "CSV")]
    shapes: Utf8PathBuf,

    /// Architecture of the GPU, for example gfx942; needed for a CSV table
    #[arg(long, value_name = "GFX")]
    gfx: Option<String>,

    /// Compute units of the GPU, for example 304; needed for a CSV table
    #[arg(long = "cu", value_name = "N")]
    cu_num: Option<u32>,

    /// aiter revision whose rules count: A (v0.1.7), B (v0.1.9), P (303a583c) or H (e4048607), or one of these tags and
    /// commits
    #[arg(long, default_value = "H", value_name = "REV")]
    revision: Revision,

    /// Whether a table's gfx column is part of the key, where the tree at hand differs from the revision
    #[arg(long, value_name = "BOOL")]
    keys_gfx: Option<bool>,

    /// Operation that the table serves and that shapes without one belong to
    #[arg(long, value_name = "OP")]
    op: Option<Op>,

    /// Device name in the file names of a folder of JSON configurations
    #[arg(long, value_name = "NAME")]
    device: Option<String>,

    /// SGLang release whose rules count for JSON configurations
    #[arg(long, default_value = "0.5.23", value_name = "VERSION")]
    sglang: String,

    /// Write the CSV to this file instead of standard output
    #[arg(short, long, value_name = "CSV")]
    output: Option<Utf8PathBuf>,

    /// Say for each shape what then runs
    #[arg(long)]
    explain: bool,
}

/// One looked-up shape: the columns of the CSV, then what only JSON says.
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
    /// What the runtime does then.
    runs: String,
    /// Whether it raises an exception.
    raises: bool,
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
    /// Shapes of operations that another table serves.
    other_operations: usize,
    warnings: Vec<String>,
    rows: Vec<Answer>,
}

/// Answers, and what is odd about them.
#[derive(Default)]
struct Answers {
    rows: Vec<Answer>,
    other_operations: usize,
    warnings: Vec<String>,
}

/// Looks the shapes up and writes what was found.
pub fn run(args: &LookupArgs, printer: &Printer) -> Result<(), Error> {
    let is_json = args.table.is_dir() || args.table.extension() == Some("json");
    if let Some(output) = &args.output {
        files::refuse_overwriting(output, [args.table.as_path(), &args.shapes])?;
    }
    let bytes = read(&args.shapes, "the shapes")?;
    let default_op = args.op.unwrap_or(if is_json {
        Op::TritonBlockFp8
    } else {
        op_of_file_name(args.table.as_str()).unwrap_or(Op::Blockscale)
    });
    let shapes = shapes::read(&bytes, Some(default_op)).map_err(|error| {
        Error::to(ErrorKind::Usage, &format!("use `{}`", args.shapes), error)
            .hint("the columns are op,M,N,K,dtype,records; only M,N,K are needed")
    })?;
    // A gate that looked nothing up has checked nothing.
    if shapes.is_empty() {
        return Err(Error::new(
            ErrorKind::NoShapes,
            format!("`{}` holds no shape", args.shapes),
        )
        .hint("`gemmtune shapes LOG -o S.csv` collects them from a server's log"));
    }
    let answers = if is_json {
        in_json(args, &shapes)?
    } else {
        in_csv(args, &shapes)?
    };
    let csv = csv(&answers.rows)?;
    match &args.output {
        Some(path) => files::write(path, &csv, printer)?,
        None if printer.is_json() => {}
        None => printer.data(&csv)?,
    }
    finish(args, answers, is_json, printer)
}

fn finish(
    args: &LookupArgs,
    answers: Answers,
    is_json: bool,
    printer: &Printer,
) -> Result<(), Error> {
    let hits = answers
        .rows
        .iter()
        .filter(|row| row.result == "hit")
        .count();
    let records = |wanted: fn(&Answer) -> bool| -> f64 {
        let wanted = answers.rows.iter().filter(|row| wanted(row));
        // The sum of no floats is -0.0.
        wanted.map(|row| row.records as f64).sum::<f64>() + 0.0
    };
    let all = records(|_| true);
    let document = Document {
        table: &args.table,
        hits,
        misses: answers.rows.len() - hits,
        hit_rate_by_records: if all > 0.0 {
            records(|row| row.result == "hit") / all
        } else {
            0.0
        },
        revision: (!is_json).then(|| args.revision.name()),
        other_operations: answers.other_operations,
        warnings: answers.warnings,
        rows: answers.rows,
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
            printer.say(format!(
                "{} M={} N={} K={}: {}, {what} {}",
                row.op, row.m, row.n, row.k, row.result, row.runs
            ));
        }
    }
    printer.say(format!(
        "{} of {} shapes hit ({:.1} % by records)",
        document.hits,
        document.rows.len(),
        100.0 * document.hit_rate_by_records
    ));
    Ok(())
}

fn read(path: &Utf8Path, what: &str) -> Result<Vec<u8>, Error> {
    files::read(path).map_err(|error| Error::to(ErrorKind::Usage, &format!("read {what}"), error))
}

/// The operation a table is looked up for: what the user says, else the file's name, else the shapes' own where they
/// agree, else what the table's kernels and columns say.
fn table_op(args: &LookupArgs, shapes: &[CountedShape]) -> Option<Op> {
    args.op
        .or_else(|| op_of_file_name(args.table.as_str()))
        .or_else(|| {
            let first = shapes.first()?.shape.op;
            shapes
                .iter()
                .all(|shape| shape.shape.op == first)
                .then_some(first)
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
    let mut rules = Rules::new(table.op, args.revision);
    rules.keys_gfx = args.keys_gfx.unwrap_or(rules.keys_gfx);
    let resolver = Resolver::new(&table, rules, gfx, cu_num).map_err(|error| {
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
    let mut answers = Answers::default();
    if resolver.falls_back_to_cu_num() {
        answers.warnings.push(format!(
            "`{}` has no `gfx` column: rows match by cu_num alone, as the runtime warns too",
            args.table
        ));
    }
    for CountedShape { shape, records } in shapes {
        if shape.op != table.op {
            answers.other_operations += 1;
            continue;
        }
        let resolution = resolver.find(shape);
        let then = runs(&table, args.revision, gfx, resolution);
        let mut answer = csv_answer(shape, *records, resolution, then);
        if table.op == Op::A8w8 {
            answer.module_kernel = resolver.find_in_a8w8_module(shape).map(|row| ModuleKernel {
                m: row.m,
                kernel_id: row.kernel_id,
                kernel_name: text(row.kernel_name.as_ref()),
            });
        }
        answers.rows.push(answer);
    }
    if answers.other_operations > 0 {
        answers.warnings.push(format!(
            "{} shapes are of other operations than {}, whose table this is, and are left out",
            answers.other_operations, table.op
        ));
    }
    Ok(answers)
}

fn text(text: Option<&crate::table::aiter::Text>) -> Option<String> {
    text.map(ToString::to_string)
}

fn csv_answer(shape: &Shape, records: u64, resolution: Resolution<'_>, then: Runs) -> Answer {
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
        runs: then.text().to_owned(),
        raises: matches!(then, Runs::Raises(_)),
        module_kernel: None,
        config: None,
    }
}

/// A configuration file and what its name says.
struct ConfigFile {
    name: FileName,
    config: Config,
}

fn in_json(args: &LookupArgs, shapes: &[CountedShape]) -> Result<Answers, Error> {
    let mut answers = Answers::default();
    let files = config_files(args, &mut answers.warnings)?;
    let common = Some((128, 128));
    let of = |shape: &Shape, file: &ConfigFile| (file.name.n, file.name.k) == (shape.n, shape.k);
    let mut other_blocks: BTreeSet<String> = BTreeSet::new();
    for CountedShape { shape, records } in shapes {
        if shape.op != Op::TritonBlockFp8 && args.op != Some(shape.op) {
            answers.other_operations += 1;
            continue;
        }
        answers
            .rows
            .push(json_answer(args, &files, shape, *records)?);
        let mut matching = files.iter().filter(|file| of(shape, file)).peekable();
        let first = matching.peek().map(|file| file.name.to_string());
        if matching.all(|file| file.name.block_shape != common) {
            other_blocks.extend(first);
        }
    }
    for name in other_blocks {
        answers.warnings.push(format!(
            "`{name}` is for other scale blocks than 128 by 128, for which there is no file: a model with those misses"
        ));
    }
    if answers.other_operations > 0 {
        answers.warnings.push(format!(
            "{} shapes are of aiter's operations, which read no JSON, and are left out; `--op {}` takes them for \
             SGLang's kernel's",
            answers.other_operations,
            shapes.iter().map(|shape| shape.shape.op).find(|op| *op != Op::TritonBlockFp8).unwrap_or(Op::Blockscale)
        ));
    }
    Ok(answers)
}

fn config_files(args: &LookupArgs, warnings: &mut Vec<String>) -> Result<Vec<ConfigFile>, Error> {
    let mut paths = vec![args.table.clone()];
    if args.table.is_dir() {
        paths = entries(&args.table)
            .map_err(|error| Error::to(ErrorKind::Usage, "look tables up", error))?
            .into_iter()
            .map(camino::Utf8DirEntry::into_path)
            .filter(|path| path.extension() == Some("json"))
            .collect();
        paths.sort();
    }
    let mut files: Vec<ConfigFile> = Vec::new();
    for path in paths {
        let text = path.file_name().unwrap_or_default();
        let name: FileName = match text.parse() {
            Ok(name) => name,
            // Folders hold files of other kernels too.
            Err(_) if args.table.is_dir() => continue,
            Err(error) => return Err(Error::to(ErrorKind::Usage, "use the file", error)),
        };
        let device = args.device.as_ref().map(|device| device.replace(' ', "_"));
        if name.dtype != "fp8_w8a8" || device.is_some_and(|device| device != name.device_name) {
            continue;
        }
        if name.to_string() != text {
            warnings.push(format!(
                "the runtime never opens `{path}`: it looks for `{name}`"
            ));
        }
        let config = Config::read(path.as_str(), &read(&path, "the configuration")?)
            .map_err(|error| Error::to(ErrorKind::Usage, "use the file", error))?;
        files.push(ConfigFile { name, config });
    }
    if files.is_empty() && args.table.is_dir() {
        let of = args
            .device
            .as_ref()
            .map_or_else(String::new, |device| format!(" for `{device}`"));
        return Err(Error::new(
            ErrorKind::Usage,
            format!(
                "`{}` holds no block-FP8 configuration of SGLang's{of}",
                args.table
            ),
        )
        .hint("aiter's tables are files: give one with `--table FILE.csv`")
        .hint(
            "SGLang's are named `N=…,K=…,device_name=…,dtype=fp8_w8a8,block_shape=[128, 128].json`",
        ));
    }
    let mut devices: Vec<&str> = files
        .iter()
        .map(|file| file.name.device_name.as_str())
        .collect();
    devices.dedup();
    devices.sort_unstable();
    devices.dedup();
    if devices.len() > 1 {
        return Err(Error::new(
            ErrorKind::Usage,
            format!(
                "the folder has files for {} devices: --device is needed",
                devices.len()
            ),
        )
        .hint(format!("the devices are {}", devices.join(", "))));
    }
    Ok(files)
}

fn json_answer(
    args: &LookupArgs,
    files: &[ConfigFile],
    shape: &Shape,
    records: u64,
) -> Result<Answer, Error> {
    let mut found = None;
    let mut block_shape = (128, 128);
    // Of files for several scale blocks the common one counts.
    let mut matching: Vec<&ConfigFile> = files
        .iter()
        .filter(|file| (file.name.n, file.name.k) == (shape.n, shape.k))
        .collect();
    matching.sort_by_key(|file| file.name.block_shape != Some((128, 128)));
    if let Some(file) = matching.first() {
        block_shape = file.name.block_shape.unwrap_or(block_shape);
        let site = Site {
            block_shape,
            is_cuda: !file.name.device_name.starts_with("AMD"),
            clamp: Clamp::of_release(&args.sglang),
        };
        found = nearest(&file.config, shape.m, site).map_err(|error| {
            Error::to(
                ErrorKind::Usage,
                &format!("use `{}` as the runtime does", file.name),
                error,
            )
            .hint(format!(
                "`gemmtune lint {}` lists what is wrong with it",
                quoted(&args.table)
            ))
        })?;
    }
    let hit = found.is_some();
    let padded_m = found.as_ref().map(|found| found.key);
    let runs = match &found {
        Some(found) if found.clamped => {
            "the Triton kernel with the nearest key's configuration, BLOCK_SIZE_K raised to the scale block"
        }
        Some(_) => "the Triton kernel with the nearest key's configuration",
        None => "the Triton kernel with its default configuration: no file for this (N, K)",
    };
    let config = found.map_or_else(|| default_config(block_shape), |found| found.config);
    let name: Vec<String> = config
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    Ok(Answer {
        op: shape.op,
        m: shape.m,
        n: shape.n,
        k: shape.k,
        result: if hit { "hit" } else { "miss" },
        padded_m,
        libtype: hit.then(|| "triton".to_owned()),
        kernel_id: None,
        split_k: hit
            .then(|| config.get("SPLIT_K").and_then(Value::as_i64))
            .flatten(),
        kernel_name: hit.then(|| name.join(" ")),
        dtype: shape.dtype.clone(),
        records,
        probe: None,
        line: None,
        us: None,
        runs: runs.to_owned(),
        raises: false,
        module_kernel: None,
        config: Some(config),
    })
}

fn csv(rows: &[Answer]) -> Result<Vec<u8>, Error> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let failed = |error: csv::Error| Error::to(ErrorKind::Bug, "write the answers", error);
    let header = "op,M,N,K,result,padded_M,libtype,kernelId,splitK,kernelName";
    writer.write_record(header.split(',')).map_err(failed)?;
    let number = |number: Option<i64>| number.map(|number| number.to_string()).unwrap_or_default();
    for row in rows {
        writer
            .write_record([
                row.op.name(),
                &row.m.to_string(),
                &row.n.to_string(),
                &row.k.to_string(),
                row.result,
                &number(row.padded_m),
                row.libtype.as_deref().unwrap_or(""),
                &number(row.kernel_id),
                &number(row.split_k),
                row.kernel_name.as_deref().unwrap_or(""),
            ])
            .map_err(failed)?;
    }
    writer
        .into_inner()
        .map_err(|error| Error::to(ErrorKind::Bug, "write the answers", error.into_error()))
}
