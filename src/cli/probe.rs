//! `gemmtune probe`: runs the deployed operation in a fresh process and reports its numbers and times.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;

use super::printer::Printer;
use crate::probe::found::KernelTime;
use crate::probe::ran::{Ran, Seen, judge};
use crate::probe::{self, Found, LIMIT, Order, ProbeError};
use crate::problem::{Op, Shape};
use crate::proc::{Interrupt, Keeper, RunError};
use crate::run::documents::{DeployedTable, Deployment, Inspection, Tuned};
use crate::run::error::{Error, ErrorKind};
use crate::run::stage::Stage;
use crate::table::aiter::{Row, Table};
use crate::table::shapes;
use crate::tree::aiter;
use crate::tree::doctor::caps::Capabilities;
use crate::workload::config::Config;

/// Arguments of `gemmtune probe`.
#[derive(Debug, clap::Args)]
pub struct ProbeArgs {
    /// The run whose deployment is tried; the latest of this folder's runs without --table
    #[arg(conflicts_with = "table")]
    run: Option<Utf8PathBuf>,

    /// A tuned table of aiter's to try instead
    #[arg(long, requires = "python")]
    table: Option<Utf8PathBuf>,

    /// The interpreter that imports torch, aiter and SGLang
    #[arg(long)]
    python: Option<Utf8PathBuf>,

    /// Variables of that process
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    env: Vec<(String, String)>,

    /// Only rows of this architecture
    #[arg(long)]
    gfx: Option<String>,

    /// Only rows for this many compute units
    #[arg(long)]
    cu_num: Option<u32>,

    /// Shapes whose numbers are checked; without it each weight of the table at five sizes
    #[arg(long, value_name = "CSV")]
    shapes: Option<Utf8PathBuf>,

    /// Check numbers and time nothing
    #[arg(long)]
    no_times: bool,

    /// Longest that it may take, in seconds: the first call may compile a module
    #[arg(long, default_value_t = 1800)]
    limit: u64,
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| format!("`{text}` is not NAME=VALUE"))
}

/// The tables to try, and the process in which to try them.
struct Target {
    python: String,
    folder: Option<Utf8PathBuf>,
    env: BTreeMap<String, Option<String>>,
    tables: Vec<Tried>,
}

/// The rows of one operation.
struct Tried {
    op: Op,
    /// SGLang's function that calls the operation, if it is known.
    linear: Option<String>,
    /// The table's path.
    name: String,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Document {
    op: Op,
    table: String,
    about: BTreeMap<String, Option<String>>,
    checks: Vec<Check>,
    times: Vec<Time>,
    ran: Ran,
    modules: BTreeMap<String, Utf8PathBuf>,
    broke_off: Option<String>,
    /// The same for each further operation with a deployed table.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    also: Vec<Self>,
}

#[derive(Debug, Serialize)]
struct Check {
    #[serde(rename = "M")]
    m: u32,
    #[serde(rename = "N")]
    n: u32,
    #[serde(rename = "K")]
    k: u32,
    kernel: String,
    error: Option<f64>,
    limit: f64,
    passes: bool,
    said: Option<String>,
}

#[derive(Debug, Serialize)]
struct Time {
    #[serde(rename = "M")]
    m: u32,
    #[serde(rename = "N")]
    n: u32,
    #[serde(rename = "K")]
    k: u32,
    tuned_us: f64,
    us: Option<f64>,
    clock: String,
    kernel: Option<String>,
    agrees: bool,
    said: Option<String>,
}

/// Tries each operation and reports the results.
pub fn run(args: &ProbeArgs, printer: &Printer) -> Result<ExitCode, Error> {
    let target = match &args.table {
        Some(table) => of_table(args, table)?,
        None => of_run(&super::status::chosen(args.run.as_ref()))?,
    };
    let surroundings = (super::run::keeper()?, super::interrupt()?);
    let (mut documents, mut is_right) = (Vec::new(), true);
    for tried in &target.tables {
        let Some(document) = try_one(args, &target, tried, &surroundings)? else {
            printer.warn(format!("no row of {} is to be tried", tried.op));
            continue;
        };
        if target.tables.len() > 1 {
            printer.say(format!("{}, {}", document.op, document.table));
        }
        is_right &= tell(&document, printer);
        documents.push(document);
    }
    let mut documents = documents.into_iter();
    let Some(mut first) = documents.next() else {
        return Err(
            Error::new(ErrorKind::NoShapes, "the table has no row to try")
                .hint("look at --gfx and --cu-num, or name shapes with --shapes"),
        );
    };
    first.also = documents.collect();
    if printer.is_json() {
        printer.json(&first)?;
    }
    Ok(if is_right {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(ErrorKind::NotBetter as u8)
    })
}

/// Tries one operation in its own process; `None` if it has no row or shape to try.
fn try_one(
    args: &ProbeArgs,
    target: &Target,
    tried: &Tried,
    (keeper, interrupt): &(Keeper, Interrupt),
) -> Result<Option<Document>, Error> {
    let op = tried.op;
    let rows: Vec<_> = tried
        .rows
        .iter()
        .filter(|row| args.cu_num.is_none_or(|count| row.cu_num == Some(count)))
        .filter(|row| {
            args.gfx.is_none() || row.gfx.is_none() || row.gfx.as_deref() == args.gfx.as_deref()
        })
        .filter_map(|row| {
            Some((
                row.shape(op),
                row.us.filter(|us| us.is_finite() && *us > 0.0)?,
                row,
            ))
        })
        .collect();
    let checks = match &args.shapes {
        Some(path) => read_shapes(path, op)?,
        None => probe::sizes(
            &rows
                .iter()
                .map(|(shape, ..)| shape.clone())
                .collect::<BTreeSet<_>>(),
        ),
    };
    let timed: Vec<_> = rows
        .iter()
        .filter(|_| !args.no_times)
        .take(probe::TIMED)
        .collect();
    let times: Vec<Shape> = timed.iter().map(|(shape, ..)| shape.clone()).collect();
    if checks.is_empty() && times.is_empty() {
        return Ok(None);
    }
    let found = probe::probe(&Order {
        python: &target.python,
        folder: target.folder.clone(),
        env: target.env.clone(),
        op,
        linear: tried.linear.as_deref(),
        checks: &checks,
        times: &times,
        limit: Duration::from_secs(args.limit),
        keeper,
        interrupt,
    })
    .map_err(failure)?;
    let tuned: Vec<(f64, &Row)> = timed.iter().map(|(_, us, row)| (*us, *row)).collect();
    Ok(Some(document(op, &tried.name, &tuned, found)))
}

/// Reports the results for one operation; true if all are right.
fn tell(document: &Document, printer: &Printer) -> bool {
    let wrong = document.checks.iter().filter(|check| !check.passes).count();
    let apart = document.times.iter().filter(|time| !time.agrees).count();
    for check in &document.checks {
        let error = check.error.map_or_else(
            || "no number".to_owned(),
            |error| format!("error {error:.5}"),
        );
        let said = check
            .said
            .as_deref()
            .map_or_else(String::new, |said| format!(": {said}"));
        printer.say(format!(
            "{} M={} N={} K={}  {error}  {}{said}",
            if check.passes { "ok   " } else { "WRONG" },
            check.m,
            check.n,
            check.k,
            check.kernel
        ));
    }
    for time in &document.times {
        let us = time
            .us
            .map_or_else(|| "no time".to_owned(), |us| format!("{us:.2} us"));
        printer.say(format!(
            "{} M={} N={} K={}  {us} ({} time), tuned at {:.2} us",
            if time.agrees { "ok   " } else { "APART" },
            time.m,
            time.n,
            time.k,
            time.clock,
            time.tuned_us
        ));
    }
    if let Some(ended) = &document.broke_off {
        printer.warn(format!("not everything was tried: {ended}"));
    }
    printer.say(format!(
        "{} of {} checks are right, {} of {} kernels take the time they were tuned at",
        document.checks.len() - wrong,
        document.checks.len(),
        document.times.len() - apart,
        document.times.len()
    ));
    match &document.ran {
        Ran::Tuned => {}
        Ran::Explained(because) => printer.warn(format!(
            "the times of the tuned kernels tell nothing: {because}"
        )),
        Ran::Other(why) => {
            printer.warn(format!("another kernel than the tuned one runs: {why}"));
        }
    }
    let other = matches!(document.ran, Ran::Other(_));
    wrong == 0 && !other && document.broke_off.is_none()
}

fn document(op: Op, table: &str, tuned: &[(f64, &Row)], found: Found) -> Document {
    let Found {
        about,
        checks,
        times,
        modules,
        broke_off,
    } = found;
    let capabilities = about
        .get("aiter")
        .and_then(|path| {
            Some(Capabilities::read(
                Utf8Path::new(path.as_deref()?).parent()?,
            ))
        })
        .unwrap_or_default();
    let mut said = Vec::new();
    let times: Vec<KernelTime> = times
        .into_iter()
        .zip(tuned)
        .map(|(time, (tuned_us, _))| {
            said.push(time.said);
            KernelTime {
                shape: time.shape,
                tuned_us: *tuned_us,
                us: time.us,
                clock: time.clock,
                kernel: time.kernel,
            }
        })
        .collect();
    let seen: Vec<Seen<'_>> = times
        .iter()
        .zip(tuned)
        .map(|(time, (_, row))| Seen {
            row: row.kernel_name.as_deref().unwrap_or_default(),
            time,
            by_name: capabilities.is_named(op, row.libtype.as_deref()),
        })
        .collect();
    Document {
        op,
        table: table.to_owned(),
        about,
        ran: judge(&seen),
        modules,
        checks: checks
            .into_iter()
            .map(|check| Check {
                m: check.shape.m,
                n: check.shape.n,
                k: check.shape.k,
                passes: check.passes(),
                kernel: check.kernel,
                error: check.error,
                limit: LIMIT,
                said: check.said,
            })
            .collect(),
        times: times
            .into_iter()
            .zip(said)
            .map(|(time, said)| Time {
                m: time.shape.m,
                n: time.shape.n,
                k: time.shape.k,
                agrees: time.agrees(),
                tuned_us: time.tuned_us,
                us: time.us,
                clock: time.clock,
                kernel: time.kernel,
                said,
            })
            .collect(),
        broke_off,
        also: Vec::new(),
    }
}

fn of_table(args: &ProbeArgs, path: &Utf8Path) -> Result<Target, Error> {
    let absolute = path
        .canonicalize_utf8()
        .map_err(|error| Error::to(ErrorKind::Usage, &format!("find the table `{path}`"), error))?;
    let table = read_table(&absolute)?;
    let mut env: BTreeMap<String, Option<String>> = args
        .env
        .iter()
        .map(|(name, value)| (name.clone(), Some(value.clone())))
        .collect();
    let variable =
        aiter::variable(table.op).map_err(|_| failure(ProbeError::Operation(table.op)))?;
    env.insert(variable.to_owned(), Some(absolute.to_string()));
    Ok(Target {
        python: args.python.clone().unwrap_or_default().into_string(),
        folder: None,
        env,
        tables: vec![Tried {
            op: table.op,
            linear: None,
            name: table.name,
            rows: table.rows,
        }],
    })
}

fn of_run(path: &Utf8Path) -> Result<Target, Error> {
    let run = super::run::open(path)?;
    let read = |path: Utf8PathBuf| {
        crate::store::file::read_text(&path).map_err(|error| {
            Error::to(ErrorKind::Usage, "read what the run deployed", error)
                .hint("go on with the run until `deploy`, or name a table with --table")
        })
    };
    let config = Config::parse(&read(run.config())?)
        .map_err(|error| Error::to(ErrorKind::NotResumable, &error.to_string(), error))?;
    let parse = |error: serde_json::Error| {
        Error::to(ErrorKind::NotResumable, "read the run's documents", error)
    };
    let inspection = crate::engine::inspection(&run)?;
    let deployment: Deployment =
        serde_json::from_str(&read(run.stage(Stage::Deploy.name()))?).map_err(parse)?;
    let Some(python) = config.backend.python else {
        return Err(Error::new(
            ErrorKind::Usage,
            "the run is not one of SGLang with aiter, whose operation can be tried",
        ));
    };
    let mut env: BTreeMap<String, Option<String>> = config
        .server
        .unset
        .into_iter()
        .map(|name| (name, None))
        .collect();
    env.extend(
        config
            .server
            .env
            .into_iter()
            .map(|(name, value)| (name, Some(value))),
    );
    env.extend(deployment.environment());
    let tuned: Tuned =
        serde_json::from_str(&read(run.stage(Stage::Tune.name()))?).map_err(parse)?;
    let deployed = deployment.tables(&inspection);
    if let Some((_, gone)) = deployed.iter().find(|(_, table)| !table.table.is_file()) {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("the deployed table `{}` is gone", gone.table),
        )
        .hint("a deployment that was undone has none; name one with --table"));
    }
    if deployed.is_empty() {
        return Err(Error::new(
            ErrorKind::Usage,
            "the run deployed no table of dense GEMMs, whose operation can be tried",
        ));
    }
    let tried = |(operation, table): (Inspection, DeployedTable)| Tried {
        op: operation.op,
        linear: operation.linear,
        name: table.table.into_string(),
        rows: tuned.placed(operation.op).cloned().collect(),
    };
    Ok(Target {
        python: python.into_string(),
        folder: config.server.cwd,
        env,
        tables: deployed.into_iter().map(tried).collect(),
    })
}

fn read_table(path: &Utf8Path) -> Result<Table, Error> {
    let bytes = crate::store::file::read(path)
        .map_err(|error| Error::to(ErrorKind::Usage, "read the table", error))?;
    Table::read(path.as_str(), &bytes, None)
        .map_err(|error| Error::to(ErrorKind::Usage, "read the table", error))
}

fn read_shapes(path: &Utf8Path, op: Op) -> Result<Vec<Shape>, Error> {
    let bytes = super::files::read(path)
        .map_err(|error| Error::to(ErrorKind::Usage, "read the shapes", error))?;
    let counted = shapes::read(&bytes, Some(op))
        .map_err(|error| Error::to(ErrorKind::Usage, "read the shapes", error))?;
    Ok(counted
        .into_iter()
        .map(|counted| counted.shape)
        .filter(|shape| shape.op == op)
        .collect())
}

fn failure(error: ProbeError) -> Error {
    let kind = match &error {
        ProbeError::Operation(_) => ErrorKind::Usage,
        ProbeError::Run(RunError::Interrupted(_)) => ErrorKind::Interrupted,
        ProbeError::Run(RunError::DeadlinePassed { .. }) => ErrorKind::WorkloadFailed,
        ProbeError::Run(_) | ProbeError::Nothing { .. } => ErrorKind::Environment,
        ProbeError::Write(_) => ErrorKind::Bug,
    };
    Error::to(kind, "try the deployed operation", error)
}
