//! The tables of a deployment: those in use and the tuned rows as one, in a file that aiter reads.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};

use super::facts::read;
use crate::problem::Op;
use crate::run::error::{Error, ErrorKind};
use crate::table::aiter::{Row, Table};
use crate::table::merge::{self, Policy};

pub(super) fn read_table(path: &Utf8Path, op: Op) -> Result<Table, Error> {
    Table::read(path.as_str(), &read(path)?, Some(op))
        .map_err(|error| Error::caused(ErrorKind::Environment, &error))
}

/// The previous tables as one, with the rows of `mine` replacing theirs for equal keys.
pub(super) fn merged(
    mine: Table,
    before: &[Utf8PathBuf],
    policy: &Policy,
    notes: &mut Vec<String>,
) -> Result<Table, Error> {
    let (op, name) = (mine.op, mine.name.clone());
    let mut tables = before
        .iter()
        .map(|path| read_table(path, op))
        .collect::<Result<Vec<_>, _>>()?;
    tables.push(mine);
    let merge::Merged {
        table, provenance, ..
    } = merge::merge(&tables, policy)
        .map_err(|error| Error::caused(ErrorKind::Environment, &error))?;
    let key = |row: &Row| {
        (
            row.gfx.clone(),
            row.cu_num,
            row.n,
            row.k,
            row.m,
            row.q_dtype_w.clone(),
        )
    };
    // Our row was measured here, the others wherever they were tuned: for an equal key ours is used, faster or not.
    let mut rows: BTreeMap<_, Row> = table.rows.into_iter().map(|row| (key(&row), row)).collect();
    let mut dropped = 0_usize;
    for entry in provenance {
        let key = key(&entry.row);
        let ran = entry.row.us.is_some_and(|us| us.is_finite() && us > 0.0);
        if entry.table == name {
            rows.insert(key, entry.row);
        } else if ran {
            // The merge chose a row, unless none of this key is credible; in that case the one in use is kept.
            rows.entry(key).or_insert(entry.row);
        } else if !rows.contains_key(&key) {
            dropped += 1;
        }
    }
    if dropped > 0 {
        notes.push(format!(
            "{dropped} rows of the tables before never ran (no time) and are left out"
        ));
    }
    Ok(Table {
        name: "the deployed table".to_owned(),
        op,
        columns: table.columns,
        rows: rows.into_values().collect(),
        faults: Vec::new(),
        quirks: crate::table::aiter::Quirks::default(),
    })
}

/// Checks a path: aiter passes it to a shell unquoted, and `:` separates paths.
pub(super) fn plain(path: Utf8PathBuf) -> Result<Utf8PathBuf, Error> {
    let fits =
        |character: char| character.is_ascii_alphanumeric() || "/._-+=@,".contains(character);
    if path.is_absolute() && path.as_str().chars().all(fits) {
        return Ok(path);
    }
    Err(Error::new(
        ErrorKind::Environment,
        format!("aiter hands the path of a table to a shell unquoted and splits it at `:`, and `{path}` would not survive that"),
    )
    .hint("keep gemmtune.toml in a folder whose path has letters, digits and ./_-+=@, only"))
}
