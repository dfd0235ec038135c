//! Merging tables of aiter's fused MoE.

use camino::Utf8Path;
use serde_json::json;

use super::super::files;
use super::super::printer::Printer;
use super::{MergeArgs, SHOWN};
use crate::run::error::{Error, ErrorKind};
use crate::table::fmoe::merge::{File, MergeError, Policy, merge, summary};
use crate::table::fmoe::rules::{Release, Rules};
use crate::table::fmoe::table::is_of_moe;
use crate::tree::aiter::revision_around;

/// The tables with their contents, if all of them are of the fused MoE.
pub(super) fn tables(args: &MergeArgs) -> Result<Option<Vec<File>>, Error> {
    let mut tables = Vec::new();
    for path in &args.tables {
        if path.extension() != Some("csv") {
            return Ok(None);
        }
        let bytes = crate::store::file::read(path)
            .map_err(|error| Error::to(ErrorKind::Usage, "read a table", error))?;
        tables.push((path.to_string(), bytes));
    }
    let ours = tables.iter().filter(|(_, bytes)| is_of_moe(bytes)).count();
    if ours > 0 && ours < tables.len() {
        return Err(Error::new(
            ErrorKind::Usage,
            "some of the tables are of the fused MoE and some of a GEMM",
        )
        .hint("merge the tables of each operation by themselves"));
    }
    Ok((ours > 0).then_some(tables))
}

pub(super) fn run(
    args: &MergeArgs,
    tables: &[File],
    provenance: Option<&Utf8Path>,
    printer: &Printer,
) -> Result<(), Error> {
    let around = || {
        let mut around = args.tables.iter().map(|path| revision_around(path));
        let first = around.next()??;
        around.all(|other| other == Some(first)).then_some(first)
    };
    let release = args
        .aiter
        .or_else(|| args.revision.or_else(around).map(Release::of_revision))
        .unwrap_or(Release::H);
    let policy = Policy {
        rules: Rules::new(release),
        activation: args
            .activation
            .as_deref()
            .map(|name| crate::problem::op::fused_moe_aiter::member(name).to_owned()),
    };
    let merged = merge(tables, &policy).map_err(|error| {
        let hint = match &error {
            MergeError::Activations(_) => {
                "say which one the model has: `--activation Silu`; only its rows are kept"
            }
            MergeError::Table(_) | MergeError::Line { .. } => {
                "`gemmtune lint` on the inputs says what is wrong with them"
            }
        };
        Error::to(ErrorKind::Usage, "merge the tables", error).hint(hint)
    })?;
    if merged.kept() == 0 {
        return Err(Error::new(
            ErrorKind::TunerFailed,
            "no row of these tables would be found; nothing was written",
        )
        .hint("`gemmtune lint` on the inputs says what is wrong with each row"));
    }
    // The provenance first: a table without it would be the worse half to be left with.
    if let Some(provenance) = provenance {
        files::write(provenance, merged.provenance_csv().as_bytes(), printer)?;
    }
    files::write(&args.output, merged.csv.as_bytes(), printer)?;
    let left_out: Vec<_> = merged
        .decisions
        .iter()
        .filter_map(|decision| Some((decision, decision.left_out.as_deref()?)))
        .collect();
    if printer.is_json() {
        let listed: Vec<_> = left_out
            .iter()
            .map(|(decision, why)| json!({ "table": decision.table, "line": decision.line, "why": why }))
            .collect();
        return printer.json(&json!({
            "op": "fused_moe",
            "aiter": release.name(),
            "output": args.output,
            "rows": merged.kept(),
            "left_out": listed,
        }));
    }
    for (decision, why) in left_out.iter().take(SHOWN) {
        printer.say(format!("{}:{}: {why}", decision.table, decision.line));
    }
    if left_out.len() > SHOWN {
        printer.say(format!("and {} more", left_out.len() - SHOWN));
    }
    printer.say(format!(
        "{} for aiter {release} in `{}`; AITER_CONFIG_FMOE names the one file, by its absolute path",
        summary(&merged),
        args.output
    ));
    Ok(())
}
