//! Look-ups in a table of aiter's fused MoE.

use camino::Utf8Path;
use serde::Serialize;

use super::super::files;
use super::super::printer::Printer;
use super::LookupArgs;
use crate::problem::op::fused_moe_aiter::{Problem, Request};
use crate::proc::quoted;
use crate::run::error::{Error, ErrorKind};
use crate::table::csv_text;
use crate::table::fmoe::lookup::{Answer, Resolver, Served, Site, kernel};
use crate::table::fmoe::reason::why;
use crate::table::fmoe::requests::{self, Counted};
use crate::table::fmoe::rules::{Release, Rules};
use crate::table::fmoe::table::Table;

/// One call: its request and the result.
#[derive(Serialize)]
struct Row {
    tokens: u32,
    /// With the names of the enumerations, as in a row of a table.
    #[serde(flatten)]
    problem: Problem,
    ep: bool,
    records: u64,
    result: &'static str,
    /// `token` and `topk` of the key.
    key_token: u32,
    key_topk: u32,
    line: Option<u64>,
    stages: Option<u8>,
    block_m: Option<f64>,
    ksplit: Option<f64>,
    #[serde(rename = "kernelName1")]
    kernel_name_1: Option<String>,
    #[serde(rename = "kernelName2")]
    kernel_name_2: Option<String>,
    us: Option<f64>,
    runs: String,
    raises: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Serialize)]
struct Document<'a> {
    table: &'a Utf8Path,
    op: &'static str,
    aiter: &'static str,
    gfx: &'a str,
    cu_num: u32,
    hits: usize,
    misses: usize,
    hit_rate_by_records: f64,
    warnings: Vec<String>,
    rows: Vec<Row>,
}

/// Looks up the calls in `shapes` in `table`, both given as file contents.
pub(super) fn run(
    args: &LookupArgs,
    table: &[u8],
    (from, shapes): (&Utf8Path, &[u8]),
    printer: &Printer,
) -> Result<(), Error> {
    let calls = read_calls(from, shapes)?;
    let (gfx, cu_num) = card(args.gfx.as_deref(), args.cu_num, &calls)?;
    let mut warnings = Vec::new();
    let said = args
        .aiter
        .or_else(|| args.revision.map(Release::of_revision))
        .or_else(|| crate::tree::aiter::revision_around(&args.table).map(Release::of_revision));
    if said.is_none() {
        warnings.push(
            "which aiter runs this? --aiter TAG says it, for example v0.1.16; e4048607 is assumed"
                .to_owned(),
        );
    }
    let release = said.unwrap_or(Release::H);
    let table = Table::read(args.table.as_str(), table)
        .map_err(|error| Error::to(ErrorKind::Usage, "use the table", error))?;
    let resolver =
        Resolver::new(&table, Rules::new(release), Site::new(&gfx, cu_num)).map_err(|error| {
            Error::to(ErrorKind::Usage, "use the table as the runtime does", error).hint(format!(
                "`gemmtune lint {}` lists every such line",
                quoted(&args.table)
            ))
        })?;
    let rows: Vec<Row> = calls
        .iter()
        .map(|call| row(&table, &resolver, call))
        .collect();
    let elsewhere = calls
        .iter()
        .filter(|call| call.card.cu_num.is_some_and(|units| units != cu_num))
        .count();
    if elsewhere > 0 {
        warnings.push(format!(
            "{elsewhere} of the calls were made on other compute units than {cu_num}"
        ));
    }
    let csv = csv(&rows);
    match &args.output {
        Some(path) => files::write(path, csv.as_bytes(), printer)?,
        None if printer.is_json() => {}
        None => printer.data(csv.as_bytes())?,
    }
    let hits = rows.iter().filter(|row| row.result == "hit").count();
    let records = |hit: bool| -> f64 {
        let counted = rows.iter().filter(|row| !hit || row.result == "hit");
        counted.map(|row| row.records as f64).sum::<f64>() + 0.0
    };
    let document = Document {
        table: &args.table,
        op: "fused_moe",
        aiter: release.name(),
        gfx: &gfx,
        cu_num,
        hits,
        misses: rows.len() - hits,
        hit_rate_by_records: records(true) / records(false).max(1.0),
        warnings,
        rows,
    };
    if printer.is_json() {
        return printer.json(&document);
    }
    for warning in &document.warnings {
        printer.warn(warning);
    }
    if args.explain {
        for row in &document.rows {
            printer.say(explained(row));
        }
    }
    printer.say(format!(
        "{hits} of {} calls hit ({:.1} % by records)",
        document.rows.len(),
        100.0 * document.hit_rate_by_records
    ));
    Ok(())
}

/// The calls of a file whose header was recognised.
pub(in crate::cli) fn read_calls(path: &Utf8Path, bytes: &[u8]) -> Result<Vec<Counted>, Error> {
    if !crate::table::fmoe::table::is_of_moe(bytes) {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("`{path}` holds shapes of single GEMMs, and the table is one of the fused MoE"),
        )
        .hint(
            "`gemmtune shapes LOG --fused-moe CALLS.csv` collects its calls from a server's log",
        ));
    }
    let calls = requests::read(bytes).map_err(|error| {
        Error::to(ErrorKind::Usage, &format!("use `{path}`"), error).hint(
            "the columns are those of aiter's untuned_fmoe.csv; gfx, cu_num, ep and records may stand beside them",
        )
    })?;
    if calls.is_empty() {
        return Err(
            Error::new(ErrorKind::NoShapes, format!("`{path}` holds no call")).hint(
                "`gemmtune shapes LOG --fused-moe CALLS.csv` collects them from a server's log",
            ),
        );
    }
    Ok(calls)
}

/// The card that look-ups are made for: the one given by the user, else that of the calls if they agree.
pub(in crate::cli) fn card(
    gfx: Option<&str>,
    cu_num: Option<u32>,
    calls: &[Counted],
) -> Result<(String, u32), Error> {
    let units = cu_num.or_else(|| {
        let first = calls.first()?.card.cu_num;
        calls
            .iter()
            .all(|call| call.card.cu_num == first)
            .then_some(first)?
    });
    let said = gfx.map(str::to_owned).or_else(|| {
        let first = calls.first()?.card.gfx.clone();
        calls
            .iter()
            .all(|call| call.card.gfx == first)
            .then_some(first)?
    });
    let gfx = said.or_else(|| {
        units
            .and_then(crate::table::roofline::gfx_of_cu_num)
            .map(str::to_owned)
    });
    gfx.zip(units).ok_or_else(|| {
        Error::new(
            ErrorKind::Usage,
            "a table is looked up for one GPU, and the calls do not say which: --gfx and --cu are needed",
        )
        .hint("MI300X and MI325X: --gfx gfx942 --cu 304; MI308X: --gfx gfx942 --cu 80; MI350X and MI355X: --gfx gfx950 --cu 256")
    })
}

fn row(table: &Table, resolver: &Resolver<'_>, call: &Counted) -> Row {
    let Request {
        problem,
        tokens,
        ep,
    } = &call.request;
    let answer = resolver.find(&call.request);
    let served = answer.served.row();
    let (stages, block_m, ksplit) = match &answer.served {
        Served::Row(row) => (
            Some(if row.run_1stage { 1 } else { 2 }),
            row.block_m,
            row.ksplit,
        ),
        Served::Default(default) | Served::Bypassed(_, default) => (
            Some(if default.one_stage { 1 } else { 2 }),
            Some(f64::from(default.block_m)),
            Some(f64::from(default.ksplit)),
        ),
        Served::Raises(_) => (None, None, None),
    };
    let name = |stage| {
        served
            .and_then(|row| kernel(row, stage))
            .map(ToString::to_string)
    };
    Row {
        tokens: *tokens,
        problem: problem.in_a_row(),
        ep: *ep,
        records: call.records,
        result: if served.is_some() { "hit" } else { "miss" },
        key_token: answer.token,
        key_topk: answer.topk,
        line: served.map(|row| row.line),
        stages,
        block_m,
        ksplit,
        kernel_name_1: name(0),
        kernel_name_2: name(1),
        us: served.and_then(|row| row.us[2]),
        runs: runs(&answer),
        raises: matches!(answer.served, Served::Raises(_)),
        reason: why(table, resolver, &call.request, &answer),
    }
}

fn runs(answer: &Answer<'_>) -> String {
    let default = |default: crate::table::fmoe::lookup::Default| {
        if default.one_stage {
            return "the one-stage assembly kernel that aiter picks".to_owned();
        }
        let split = match default.ksplit {
            0 | 1 => String::new(),
            split => format!(", K split by {split}"),
        };
        format!(
            "aiter's own choice of two-stage kernels, tiles of {} rows{split}",
            default.block_m
        )
    };
    match &answer.served {
        Served::Row(row) => format!(
            "the {} of line {}",
            if row.run_1stage { "kernel" } else { "kernels" },
            row.line
        ),
        Served::Default(choice) | Served::Bypassed(_, choice) => default(*choice),
        Served::Raises(what) => (*what).to_owned(),
    }
}

fn explained(row: &Row) -> String {
    let what = if row.raises { "raises" } else { "runs" };
    let reason = row
        .reason
        .as_ref()
        .filter(|_| !row.raises)
        .map_or_else(String::new, |reason| format!(" ({reason})"));
    format!(
        "fused_moe tokens={} model_dim={} inter_dim={} expert={} topk={}{} {}: {}{reason}, {what} {}",
        row.tokens,
        row.problem.model_dim,
        row.problem.inter_dim,
        row.problem.expert,
        row.problem.topk,
        if row.ep { " with an expert mask" } else { "" },
        row.problem.activation,
        row.result,
        row.runs
    )
}

fn csv(rows: &[Row]) -> String {
    let header = "token,model_dim,inter_dim,expert,topk,act_type,q_dtype_w,q_type,result,key_token,key_topk,line,stages,block_m,ksplit,kernelName1,kernelName2";
    let number = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
    let cells = |row: &Row| {
        [
            row.tokens.to_string(),
            row.problem.model_dim.to_string(),
            row.problem.inter_dim.to_string(),
            row.problem.expert.to_string(),
            row.problem.topk.to_string(),
            row.problem.activation.clone(),
            row.problem.q_dtype_w.clone(),
            row.problem.q_type.clone(),
            row.result.to_owned(),
            row.key_token.to_string(),
            row.key_topk.to_string(),
            row.line.map(|line| line.to_string()).unwrap_or_default(),
            row.stages
                .map(|stages| stages.to_string())
                .unwrap_or_default(),
            number(row.block_m),
            number(row.ksplit),
            row.kernel_name_1.clone().unwrap_or_default(),
            row.kernel_name_2.clone().unwrap_or_default(),
        ]
    };
    csv_text::text(header.split(','), rows.iter().map(cells))
}
