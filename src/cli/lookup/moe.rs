//! Look-ups of fused-MoE rows in SGLang's tables.

use std::collections::BTreeMap;

use camino::Utf8Path;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Error, ErrorKind, LookupArgs};
use crate::problem::fused_moe::MoeProblem;
use crate::problem::op::fused_moe_triton::OP;
use crate::proc::quoted;
use crate::table::csv_text;
use crate::table::moe::counted::CountedProblem;
use crate::table::moe::folders::Tables;
use crate::table::moe::name::TableName;
use crate::table::moe::release::Release;
use crate::table::moe::serve::{Chosen, Pair, Served, Server, Source};
use crate::tree::package::{release_around, triton_around};

/// The M at which a problem is looked up if its source has none: a line of SGLang's log has only E and N.
const WITHOUT_M: [u32; 6] = [1, 16, 64, 256, 1024, 4096];

/// One looked-up fused MoE.
#[derive(Serialize)]
pub(super) struct MoeAnswer {
    op: &'static str,
    #[serde(rename = "M")]
    m: u32,
    #[serde(flatten)]
    problem: MoeProblem,
    pub(super) records: u64,
    pub(super) result: &'static str,
    up: Projection,
    down: Projection,
    /// `BLOCK_SIZE_M` of the down row in its table, if the up row's replaces it.
    #[serde(skip_serializing_if = "Option::is_none")]
    overridden: Option<i64>,
    /// What the runtime does as a result.
    runs: String,
    raises: bool,
    /// Why the kernel computes wrong numbers with these rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    wrong: Option<String>,
    /// Why no table serves it.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// The row of one projection.
#[derive(Serialize)]
struct Projection {
    source: &'static str,
    table: Option<String>,
    /// The Triton version whose folder the table is in, if it is not the running one.
    other_triton: Option<String>,
    key: Option<i64>,
    line: Option<u64>,
    config: Map<String, Value>,
}

impl MoeAnswer {
    /// One line for display.
    pub(super) fn explained(&self) -> String {
        let what = if self.raises { "raises" } else { "runs" };
        let more = |text: &Option<String>, before: &str, after: &str| {
            text.as_ref()
                .map_or_else(String::new, |text| format!("{before}{text}{after}"))
        };
        format!(
            "{} M={}: {}{}, {what} {}{}",
            self.problem,
            self.m,
            self.result,
            more(&self.reason, " (", ")"),
            self.runs,
            more(&self.wrong, "; its numbers are wrong: ", "")
        )
    }
}

pub(super) struct MoeAnswers {
    pub(super) rows: Vec<MoeAnswer>,
    pub(super) warnings: Vec<String>,
}

/// Looks up every problem as a server on one device does.
pub(super) fn in_tables(
    args: &LookupArgs,
    tables: &Tables,
    problems: &[CountedProblem],
) -> Result<MoeAnswers, Error> {
    let device = device(args, tables)?;
    let triton = triton(args, tables)?;
    let release = release(args)?;
    let server = Server {
        release,
        triton: &triton,
    };
    let mut pairs: BTreeMap<TableName, Pair> = BTreeMap::new();
    let mut rows = Vec::new();
    for CountedProblem {
        problem,
        m,
        records,
    } in problems
    {
        let name = TableName::of(problem, &device, false);
        if !pairs.contains_key(&name) {
            let pair =
                Pair::find(tables, &name, server).map_err(|error| unusable(args, &name, error))?;
            pairs.insert(name.clone(), pair);
        }
        let Some(pair) = pairs.get(&name) else {
            continue;
        };
        for m in m.map_or_else(|| WITHOUT_M.to_vec(), |m| vec![m]) {
            let served = pair
                .serve(m)
                .map_err(|error| unusable(args, &name, error))?;
            let reason = (served.up.source == Source::Default).then(|| why(tables, &name, server));
            rows.push(answer(tables, problem, m, *records, served, reason));
        }
    }
    let mut warnings = Vec::new();
    let (pinned, running) = (release.required_triton(), triton.as_str());
    if let Some(pinned) = pinned.filter(|pinned| tables.by_triton() && *pinned != running) {
        warnings.push(format!("SGLang {release} requires a PyTorch with Triton {pinned}, and rows were looked up for Triton {running}"));
    }
    Ok(MoeAnswers { rows, warnings })
}

fn unusable(
    args: &LookupArgs,
    name: &TableName,
    error: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    Error::to(
        ErrorKind::Usage,
        &format!("use `{name}` as the runtime does"),
        error,
    )
    .hint(format!(
        "`gemmtune lint {}` lists what is wrong with it",
        quoted(&args.table)
    ))
}

fn device(args: &LookupArgs, tables: &Tables) -> Result<String, Error> {
    if let Some(device) = &args.device {
        return Ok(device.replace(' ', "_"));
    }
    let devices: Vec<String> = tables.devices().into_iter().collect();
    match &devices[..] {
        [one] => Ok(one.clone()),
        _ => Err(Error::new(
            ErrorKind::Usage,
            format!(
                "the folder has tables for {} devices: --device is needed",
                devices.len()
            ),
        )
        .hint(format!("the devices are {}", devices.join(", ")))),
    }
}

fn triton(args: &LookupArgs, tables: &Tables) -> Result<String, Error> {
    if let Some(triton) = &args.triton {
        return Ok(triton.clone());
    }
    let around = || triton_around(&args.table);
    match tables.tritons()[..] {
        [] => Ok(String::new()),
        [one] if args.table.file_name().is_some_and(|name| name.starts_with("triton_")) => Ok(one.to_owned()),
        ref several => around().ok_or_else(|| {
            Error::new(
                ErrorKind::Usage,
                "the tables lie in folders of several Triton versions: --triton is needed",
            )
            .hint("the serving interpreter says it: `python -c 'import triton; print(triton.__version__)'`")
            .hint(format!("there are folders of {}", several.join(", ")))
        }),
    }
}

fn release(args: &LookupArgs) -> Result<Release, Error> {
    let around = || release_around(&args.table)?.parse().ok();
    match &args.sglang {
        Some(text) => text
            .parse()
            .map_err(|error| Error::to(ErrorKind::Usage, "read --sglang", error)),
        None => Ok(around().unwrap_or(Release::NEWEST)),
    }
}

fn shown_path(tables: &Tables, path: &Utf8Path) -> String {
    path.strip_prefix(&tables.root).unwrap_or(path).to_string()
}

fn answer(
    tables: &Tables,
    problem: &MoeProblem,
    m: u32,
    records: u64,
    served: Served,
    reason: Option<String>,
) -> MoeAnswer {
    let runs = match &served.raises {
        Some(raises) => raises.clone(),
        None => runs(tables, &served),
    };
    MoeAnswer {
        op: OP,
        m,
        problem: problem.clone(),
        records,
        result: if served.up.source == Source::Default {
            "miss"
        } else {
            "hit"
        },
        overridden: served.overridden,
        raises: served.raises.is_some(),
        runs,
        wrong: served.wrong,
        up: projection(served.up),
        down: projection(served.down),
        reason,
    }
}

fn runs(tables: &Tables, served: &Served) -> String {
    let row = |chosen: &Chosen| match &chosen.source {
        Source::File { path, other_triton } => {
            let key = chosen
                .key
                .map_or_else(String::new, |key| format!("the row of M = {key} of "));
            let other = other_triton
                .as_ref()
                .map_or_else(String::new, |triton| format!(", tuned for Triton {triton}"));
            format!("{key}`{}`{other}", shown_path(tables, path))
        }
        Source::UpRow => "the same row".to_owned(),
        Source::Default => "the default configuration".to_owned(),
    };
    let overridden = served.overridden.map_or_else(String::new, |size| {
        format!(" with BLOCK_SIZE_M of the up row instead of {size}")
    });
    match (&served.up.source, &served.down.source) {
        (Source::Default, Source::Default) => {
            "the Triton kernel with its default configuration".to_owned()
        }
        _ => format!(
            "{} for up and {}{overridden} for down",
            row(&served.up),
            row(&served.down)
        ),
    }
}

fn projection(chosen: Chosen) -> Projection {
    let (source, table, other_triton) = match chosen.source {
        Source::File { path, other_triton } => ("table", Some(path.into_string()), other_triton),
        Source::UpRow => ("up row", None, None),
        Source::Default => ("default", None, None),
    };
    Projection {
        source,
        table,
        other_triton,
        key: chosen.key,
        line: chosen.line,
        config: chosen.config,
    }
}

/// Why no table of the up projection is found, and what comes close.
fn why(tables: &Tables, name: &TableName, server: Server<'_>) -> String {
    let wanted = name.to_string();
    let unread = tables.files().find(|(_, file, _)| *file == wanted);
    if let Some((Some(triton), ..)) = unread {
        return format!(
            "the table of Triton {triton} is not opened by SGLang {} on Triton {}",
            server.release, server.triton
        );
    }
    let near = |test: &dyn Fn(&TableName) -> bool| {
        let found = tables.files().find_map(|(_, file, _)| {
            let parsed = file.parse::<TableName>().ok()?;
            test(&parsed).then(|| file.to_owned())
        });
        found.map(|file| format!("; there is `{file}`"))
    };
    let spelled = || {
        let found = near(&|found| found == name)?;
        Some(format!("{found}, which is not how SGLang spells the name"))
    };
    let of_double = || {
        let found = near(&|found| {
            *found
                == TableName {
                    n: name.n.saturating_mul(2),
                    ..name.clone()
                }
        })?;
        Some(format!(
            "{found}: N is counted after the activation, half of the rows of `w13`"
        ))
    };
    let other_device = || {
        near(&|found| {
            *found
                == TableName {
                    device_name: found.device_name.clone(),
                    ..name.clone()
                }
        })
    };
    let near = spelled()
        .or_else(of_double)
        .or_else(other_device)
        .unwrap_or_default();
    format!("there is no table `{wanted}`{near}")
}

fn number(number: Option<impl ToString>) -> String {
    number.map_or_else(String::new, |number| number.to_string())
}

/// The answers as CSV: the columns of every look-up, then those of a fused MoE.
pub(super) fn csv(rows: &[MoeAnswer]) -> String {
    let header = "op,M,N,K,result,padded_M,libtype,kernelId,splitK,kernelName,E,topk,table,down_padded_M,down_kernelName,down_table";
    let config = |projection: &Projection| {
        let pairs = projection
            .config
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        pairs.collect::<Vec<_>>().join(" ")
    };
    let cells = |row: &MoeAnswer| {
        let library = if row.result == "hit" { "triton" } else { "" };
        [
            row.op.to_owned(),
            row.m.to_string(),
            row.problem.n.to_string(),
            number(row.problem.hidden),
            row.result.to_owned(),
            number(row.up.key),
            library.to_owned(),
            String::new(),
            String::new(),
            config(&row.up),
            row.problem.experts.to_string(),
            number(row.problem.topk),
            row.up.table.clone().unwrap_or_default(),
            number(row.down.key),
            config(&row.down),
            row.down.table.clone().unwrap_or_default(),
        ]
    };
    csv_text::text(header.split(','), rows.iter().map(cells))
}

/// The lines of a shapes file that correspond to `--shape KEY=VALUE,…`. A fused MoE without further specification has
/// FP8 weights with scale blocks of 128 by 128.
pub(super) fn shape_lines(given: &[String]) -> Result<Vec<u8>, Error> {
    const COLUMNS: [&str; 9] = [
        "op", "M", "N", "K", "dtype", "records", "E", "topk", "scales",
    ];
    let mut text = format!("{}\n", COLUMNS.join(","));
    for shape in given {
        let wrong = || {
            Error::new(ErrorKind::Usage, format!("`{shape}` is no shape"))
                .hint("a GEMM is `M=64,N=1536,K=7168`, a fused MoE `M=64,E=128,N=768`")
                .hint(format!("the keys are {}", COLUMNS.join(", ")))
        };
        let mut cells: BTreeMap<&str, &str> = BTreeMap::new();
        for pair in shape.split(',') {
            let (key, value) = pair.split_once('=').ok_or_else(wrong)?;
            let known = COLUMNS.contains(&key.trim()) && !value.contains(['"', '\n', '\r']);
            if !known || cells.insert(key.trim(), value.trim()).is_some() {
                return Err(wrong());
            }
        }
        if cells.contains_key("E") {
            cells.entry("op").or_insert(OP);
            if !cells.contains_key("dtype") {
                cells.insert("dtype", "fp8_w8a8");
                cells.entry("scales").or_insert("128x128");
            }
        }
        let line: Vec<&str> = COLUMNS
            .iter()
            .map(|column| cells.get(column).copied().unwrap_or(""))
            .collect();
        text.push_str(&line.join(","));
        text.push('\n');
    }
    Ok(text.into_bytes())
}
