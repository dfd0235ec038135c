//! `gemmtune merge` of SGLang's fused-MoE tables.

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};

use super::{MergeArgs, SHOWN};
use crate::cli::files;
use crate::cli::printer::Printer;
use crate::problem::op::fused_moe_triton::OP;
use crate::proc::quoted;
use crate::run::error::{Error, ErrorKind};
use crate::table::csv_text;
use crate::table::merge::Outcome;
use crate::table::moe::merge::{Input, Merged, Provenance, merge};
use crate::table::moe::name::TableName;
use crate::table::moe::release::Release;
use crate::table::sglang_json::Config;
use crate::tree::package::release_around;

const OUTCOMES: [Outcome; 4] = [
    Outcome::Kept,
    Outcome::Later,
    Outcome::Copy,
    Outcome::Invalid,
];

/// Whether the tables are JSON; an error for a mixture, because aiter's and SGLang's cannot be merged.
pub(super) fn is_asked(args: &MergeArgs) -> Result<bool, Error> {
    let is_json = |path: &&Utf8PathBuf| path.extension() == Some("json");
    match args.tables.iter().filter(is_json).count() {
        0 => Ok(false),
        all if all == args.tables.len() => Ok(true),
        _ => Err(Error::new(
            ErrorKind::Usage,
            "CSV and JSON tables do not become one table",
        )
        .hint("merge the tables of each kind by themselves")),
    }
}

/// Merges the tables of the up projection, each with the down projection's beside it.
pub(super) fn run(
    args: &MergeArgs,
    provenance: Option<&Utf8Path>,
    printer: &Printer,
) -> Result<(), Error> {
    let inputs: Vec<Input> = args
        .tables
        .iter()
        .map(|path| read(path))
        .collect::<Result<_, _>>()?;
    let down_output = down_of(&args.output);
    let downs: Vec<Utf8PathBuf> = args.tables.iter().map(|path| down_of(path)).collect();
    files::refuse_overwriting(
        &down_output,
        args.tables.iter().chain(&downs).map(Utf8PathBuf::as_path),
    )?;
    let around = args
        .tables
        .first()
        .and_then(|path| release_around(path)?.parse::<Release>().ok());
    let merged = merge(&inputs, args.sglang.or(around)).map_err(|error| {
        Error::to(ErrorKind::Usage, "make one table", error)
            .hint("tables of one (E, N), device, dtype and scale block go together")
    })?;
    if merged.up.entries.is_empty() {
        if printer.is_json() {
            printer.json(&document(args, provenance, None, &merged))?;
        }
        return Err(Error::new(
            ErrorKind::TunerFailed,
            "no row of these tables is valid; nothing was written",
        )
        .hint("`gemmtune lint` on the inputs says what is wrong with each row"));
    }
    if let Some(path) = provenance {
        files::write(path, record(&merged).as_bytes(), printer)?;
    }
    let down = merged
        .down
        .as_ref()
        .filter(|_| files::stream(&args.output).is_none());
    // Both are complete before either is visible: a lone up table would be used with another's down table.
    if let Some(down) = down {
        files::write(&down_output, down.to_json().as_bytes(), printer)?;
    }
    files::write(&args.output, merged.up.to_json().as_bytes(), printer)?;
    let down_output = down.map(|_| down_output.as_path());
    if printer.is_json() {
        return printer.json(&document(args, provenance, down_output, &merged));
    }
    tell(args, down_output, &inputs, &merged, printer);
    Ok(())
}

/// The name of the down projection's table beside that of the up projection.
fn down_of(path: &Utf8Path) -> Utf8PathBuf {
    let stem = path.as_str().strip_suffix(".json").unwrap_or(path.as_str());
    Utf8PathBuf::from(format!("{stem}_down.json"))
}

fn read(path: &Utf8Path) -> Result<Input, Error> {
    let name: TableName = path.file_name().unwrap_or("").parse().map_err(|error| {
        Error::to(ErrorKind::Usage, "use a table", error)
            .hint("of JSON tables only those of SGLang's fused MoE are merged")
    })?;
    if name.down {
        return Err(Error::new(
            ErrorKind::Usage,
            format!(
                "`{path}` is the down projection's: it goes with the up projection's row by row"
            ),
        )
        .hint("give the tables of the up projection; the `_down` beside each is taken along"));
    }
    let config = |path: &Utf8Path| {
        let bytes = crate::store::file::read(path)
            .map_err(|error| Error::to(ErrorKind::Usage, "read a table", error))?;
        Config::read(path.as_str(), &bytes).map_err(|error| {
            Error::to(ErrorKind::Usage, "use a table", error).hint(format!(
                "`gemmtune lint {}` says more about the file",
                quoted(path)
            ))
        })
    };
    let down = down_of(path);
    Ok(Input {
        path: path.to_string(),
        up: config(path)?,
        down: down.is_file().then(|| config(&down)).transpose()?,
        name,
    })
}

fn record(merged: &Merged) -> String {
    let cells = |row: &Provenance| {
        let (line, outcome) = (row.line.to_string(), row.outcome.name().to_owned());
        let (key, table, reason) = (row.key.clone(), row.table.clone(), row.reason.clone());
        [key, table, line, outcome, reason]
    };
    let header = ["M", "table", "line", "outcome", "reason"];
    csv_text::text(header, merged.provenance.iter().map(cells))
}

fn of_input(merged: &Merged, path: &str, outcome: Outcome) -> usize {
    let rows = merged.provenance.iter();
    rows.filter(|row| row.table == path && row.outcome == outcome)
        .count()
}

fn document(
    args: &MergeArgs,
    provenance: Option<&Utf8Path>,
    down: Option<&Utf8Path>,
    merged: &Merged,
) -> Value {
    let mut inputs: Vec<Value> = Vec::new();
    for path in &args.tables {
        if inputs.iter().any(|input| input["file"] == path.as_str()) {
            continue;
        }
        let mut input = json!({ "file": path, "slower": 0 });
        for outcome in OUTCOMES {
            input[outcome.name()] = of_input(merged, path.as_str(), outcome).into();
        }
        inputs.push(input);
    }
    let written = !merged.up.entries.is_empty();
    json!({
        "output": written.then_some(&args.output),
        "down_output": down,
        "provenance": provenance.filter(|_| written),
        "op": OP,
        "rows": merged.up.entries.len(),
        // These tables have no times: the first one given is kept.
        "slower": 0,
        "later": merged.count(Outcome::Later),
        "copies": merged.count(Outcome::Copy),
        "invalid": merged.count(Outcome::Invalid),
        "dropped": [],
        "doubtful": merged.uncoupled,
        "inputs": inputs,
    })
}

fn tell(
    args: &MergeArgs,
    down: Option<&Utf8Path>,
    inputs: &[Input],
    merged: &Merged,
    printer: &Printer,
) {
    for path in &args.tables {
        let count = |outcome| of_input(merged, path.as_str(), outcome);
        printer.say(format!(
            "{path}: {} rows kept, {} given later, {} copies, {} invalid",
            count(Outcome::Kept),
            count(Outcome::Later),
            count(Outcome::Copy),
            count(Outcome::Invalid)
        ));
    }
    let invalid = merged
        .provenance
        .iter()
        .filter(|row| row.outcome == Outcome::Invalid);
    for row in invalid.take(SHOWN) {
        printer.warn(format!(
            "key {} of {} (line {}) is left out: {}",
            row.key, row.table, row.line, row.reason
        ));
    }
    for uncoupled in merged.uncoupled.iter().take(SHOWN) {
        printer.warn(format!("the up row is in both tables at {uncoupled}"));
    }
    let wanted = inputs.first().map(|input| input.name.to_string());
    if let Some(wanted) = wanted.filter(|wanted| args.output.file_name() != Some(wanted.as_str())) {
        printer.warn(format!("SGLang looks for the name `{wanted}`"));
    }
    let beside = down.map_or_else(String::new, |down| format!(" and {down}"));
    printer.say(format!(
        "{} rows in {}{beside}",
        merged.up.entries.len(),
        args.output
    ));
}
