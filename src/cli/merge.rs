//! `gemmtune merge`: several tuned tables into one.

mod fused_moe;
mod moe;

use std::collections::BTreeSet;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};

use super::files;
use super::printer::Printer;
use crate::problem::op::ERR_RATIO_LIMIT;
use crate::proc::quoted;
use crate::run::error::{Error, ErrorKind};
use crate::table::aiter::{Table, TableError};
use crate::table::fmoe::rules::Release as AiterRelease;
use crate::table::merge::{self, MergeError, Merged, Outcome, Policy};
use crate::table::moe::release::Release;
use crate::table::revision::Revision;
use crate::tree::aiter::revision_around;

/// Losing rows whose reason is shown; the provenance file has all of them.
const SHOWN: usize = 5;

/// Arguments of `gemmtune merge`.
#[derive(Debug, clap::Args)]
pub struct MergeArgs {
    /// Tuned tables of one operation; of equally fast rows the one given first is kept
    ///
    /// Of SGLang's fused-MoE tables (JSON), which hold no times, the first valid row for each M is; the `_down` table beside each goes along.
    ///
    /// Of tables of aiter's fused MoE, whose times leave parts out, the row of the table given first is kept.
    #[arg(required = true, value_name = "TABLE")]
    tables: Vec<Utf8PathBuf>,

    /// The file to write; `OUT.provenance.csv` beside it says where each row comes from
    #[arg(short, long, value_name = "OUT.csv")]
    output: Utf8PathBuf,

    /// Architecture of rows that have none and whose compute units do not say it
    #[arg(long)]
    gfx: Option<String>,

    /// aiter revision that is to run the result: A (v0.1.7), B (v0.1.9), P (303a583c), H (e4048607) or N (after aiter#5586)
    ///
    /// Without it: that of the aiter tree the tables lie in; elsewhere a row has to do for both H and N.
    #[arg(long, value_name = "REV")]
    revision: Option<Revision>,

    /// A further column that is part of the key: rows that differ in it are all kept; repeatable
    #[arg(long = "key", value_name = "COLUMN")]
    keys: Vec<String>,

    /// SGLang release that is to read fused-MoE tables; without it a row has to do for that of the package around them, or for every one
    #[arg(long, value_name = "VERSION")]
    sglang: Option<Release>,

    /// aiter tag that is to read tables of its fused MoE, for example v0.1.16; --revision serves too
    #[arg(long, value_name = "TAG")]
    aiter: Option<AiterRelease>,

    /// Activation of the model, for example Silu: of tables of aiter's fused MoE only its rows are kept
    #[arg(long, value_name = "NAME")]
    activation: Option<String>,

    /// Largest error ratio a row may have
    #[arg(long, default_value_t = ERR_RATIO_LIMIT)]
    err_ratio: f64,
}

/// Reads the tables, merges them and writes the result and its provenance.
pub fn run(args: &MergeArgs, printer: &Printer) -> Result<(), Error> {
    let provenance = provenance_path(&args.output);
    refuse_overwriting(args, provenance.as_deref())?;
    if moe::is_asked(args)? {
        return moe::run(args, provenance.as_deref(), printer);
    }
    if let Some(tables) = fused_moe::tables(args)? {
        return fused_moe::run(args, &tables, provenance.as_deref(), printer);
    }
    let tables: Vec<Table> = args
        .tables
        .iter()
        .map(|path| read(path))
        .collect::<Result<_, _>>()?;
    let policy = Policy {
        err_ratio_limit: args.err_ratio,
        gfx: args.gfx.clone(),
        revision: args.revision.or_else(|| {
            let mut around = args.tables.iter().map(|path| revision_around(path));
            let first = around.next()??;
            around.all(|other| other == Some(first)).then_some(first)
        }),
        keys: args.keys.clone(),
    };
    let merged = merge::merge(&tables, &policy).map_err(refused)?;
    if merged.table.rows.is_empty() {
        if printer.is_json() {
            printer.json(&document(args, None, false, &merged))?;
        }
        return Err(Error::new(
            ErrorKind::TunerFailed,
            "no row of these tables is valid; nothing was written",
        )
        .hint("`gemmtune lint` on the inputs says what is wrong with each row"));
    }
    // The provenance first: a table without it would be the worse half to be left with.
    if let Some(provenance) = &provenance {
        files::write(provenance, merged.provenance_csv().as_bytes(), printer)?;
    }
    files::write(&args.output, merged.table.to_csv().as_bytes(), printer)?;
    report(args, provenance.as_deref(), &merged, printer)
}

fn read(path: &Utf8Path) -> Result<Table, Error> {
    let bytes = crate::store::file::read(path)
        .map_err(|error| Error::to(ErrorKind::Usage, "read a table", error))?;
    Table::read(path.as_str(), &bytes, None).map_err(|error| {
        let hint = match error {
            TableError::OtherFamily { .. } => {
                "leave it out: aiter reads it for another operation, and by rules that are not known here".to_owned()
            }
            _ => format!("`gemmtune lint {}` says more about the file", quoted(path)),
        };
        Error::to(ErrorKind::Usage, "use a table", error).hint(hint)
    })
}

/// Where the provenance is written: beside the table, or nowhere if that is a stream.
fn provenance_path(output: &Utf8Path) -> Option<Utf8PathBuf> {
    if files::stream(output).is_some() {
        return None;
    }
    let stem = output
        .as_str()
        .strip_suffix(".csv")
        .or_else(|| output.as_str().strip_suffix(".json"))
        .unwrap_or(output.as_str());
    Some(Utf8PathBuf::from(format!("{stem}.provenance.csv")))
}

/// Checks that no file to be written is also read, under whatever name.
fn refuse_overwriting(args: &MergeArgs, provenance: Option<&Utf8Path>) -> Result<(), Error> {
    for written in std::iter::once(args.output.as_path()).chain(provenance) {
        files::refuse_overwriting(written, args.tables.iter().map(Utf8PathBuf::as_path))?;
    }
    let folder = args.output.parent().and_then(Utf8Path::file_name);
    if folder == Some("model_configs") {
        return Err(Error::new(
            ErrorKind::Usage,
            "aiter reads every table in `model_configs`, so the result and its provenance would be merged with the inputs again",
        )
        .hint("write elsewhere and name the file in the AITER_CONFIG_ variable of the operation"));
    }
    Ok(())
}

fn refused(error: MergeError) -> Error {
    let hint = match &error {
        MergeError::DifferentOps { .. } => "merge the tables of each operation by themselves",
        MergeError::UnknownArch { .. } => "say the architecture with --gfx",
        MergeError::UnknownColumn { .. } => {
            "say `--key COLUMN` if it is part of the key, or remove the column"
        }
        MergeError::UnknownLibrary { .. } => "fill in the libtype of that row, or remove it",
        MergeError::Unreadable { .. } | MergeError::MissingColumn { .. } | MergeError::NoTables => {
            "`gemmtune lint` on the inputs says what is wrong with them"
        }
    };
    Error::to(ErrorKind::Usage, "make one table", error).hint(hint)
}

fn report(
    args: &MergeArgs,
    provenance: Option<&Utf8Path>,
    merged: &Merged,
    printer: &Printer,
) -> Result<(), Error> {
    if printer.is_json() {
        return printer.json(&document(args, provenance, true, merged));
    }
    for path in inputs(args) {
        printer.say(format!(
            "{path}: {} rows kept, {} slower, {} copies, {} invalid",
            of_input(merged, path, Outcome::Kept),
            of_input(merged, path, Outcome::Slower),
            of_input(merged, path, Outcome::Copy),
            of_input(merged, path, Outcome::Invalid),
        ));
    }
    let won = merged
        .provenance
        .iter()
        .filter(|entry| entry.outcome == Outcome::Slower);
    for entry in won.take(SHOWN) {
        printer.say(format!(
            "  M={} N={} K={}: {} (line {} of {})",
            entry.row.m, entry.row.n, entry.row.k, entry.reason, entry.row.line, entry.table
        ));
    }
    for key in &merged.dropped {
        printer.warn(format!("{key} is left out: none of its rows is valid"));
    }
    for doubtful in merged.doubtful.iter().take(SHOWN) {
        printer.warn(format!("no better row was there than that of {doubtful}"));
    }
    let more = merged.doubtful.len().saturating_sub(SHOWN);
    if more > 0 {
        printer.warn(format!("and {more} more such rows"));
    }
    let why = provenance.map_or_else(String::new, |provenance| {
        format!("; {provenance} says why each row was kept or not")
    });
    printer.say(format!(
        "{} rows in {}{why}",
        merged.table.rows.len(),
        args.output
    ));
    Ok(())
}

/// The inputs without duplicates, whose rows could not be distinguished.
fn inputs(args: &MergeArgs) -> Vec<&Utf8Path> {
    let mut named = BTreeSet::new();
    let paths = args.tables.iter().map(Utf8PathBuf::as_path);
    paths.filter(|path| named.insert(*path)).collect()
}

fn of_input(merged: &Merged, path: &Utf8Path, outcome: Outcome) -> usize {
    let of = |entry: &&merge::Provenance| entry.table == path.as_str() && entry.outcome == outcome;
    merged.provenance.iter().filter(of).count()
}

/// The JSON document; `written` is whether a table was written.
fn document(
    args: &MergeArgs,
    provenance: Option<&Utf8Path>,
    written: bool,
    merged: &Merged,
) -> Value {
    let inputs: Vec<_> = inputs(args)
        .into_iter()
        .map(|path| {
            let mut input = json!({ "file": path });
            for outcome in [
                Outcome::Kept,
                Outcome::Slower,
                Outcome::Copy,
                Outcome::Invalid,
            ] {
                input[outcome.name()] = of_input(merged, path, outcome).into();
            }
            input
        })
        .collect();
    json!({
        "output": written.then_some(&args.output),
        "provenance": provenance,
        "op": merged.table.op,
        "rows": merged.table.rows.len(),
        "slower": merged.count(Outcome::Slower),
        "copies": merged.count(Outcome::Copy),
        "invalid": merged.count(Outcome::Invalid),
        "dropped": merged.dropped,
        "doubtful": merged.doubtful,
        "inputs": inputs,
    })
}
