//! The deployed tables, read as the overlay reads them.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;

use super::{BLOCK, row_name};
use crate::run::documents::TunedMoe;
use crate::run::error::{Error, ErrorKind};
use crate::store::file::entries;
use crate::table::moe::name::TableName;
use crate::table::moe::serve::beyond_scale_block;
use crate::tune::backends::sglang_triton::files::read_rows;
use crate::tune::backends::sglang_triton::keys::{Rows, nearest};
use crate::tune::moe::{Sizes, pair};

/// The table of one projection of (E, N).
fn name(device: &str, (experts, n): (u32, u32), down: bool) -> TableName {
    TableName {
        experts,
        n,
        device_name: device.replace(' ', "_"),
        dtype: Some("fp8_w8a8".to_owned()),
        block_shape: Some(BLOCK),
        per_channel: false,
        down,
    }
}

/// File names of the two tables of `sizes`.
pub(super) fn names(device: &str, sizes: Sizes) -> [String; 2] {
    [false, true].map(|down| name(device, (sizes.experts, sizes.inter), down).to_string())
}

/// The rows of both projections at one M. Without a down row the runtime uses the up row for both.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    up: Value,
    down: Value,
}

impl Row {
    pub(super) fn of(up: &Value, down: &Value) -> Self {
        Self {
            up: up.clone(),
            down: if down.is_null() { up } else { down }.clone(),
        }
    }

    pub(super) fn name(&self) -> String {
        row_name(&pair(&self.up, Some(&self.down)))
    }
}

/// A folder of tables in pairs.
pub(super) struct Deployed {
    folder: Utf8PathBuf,
    tables: BTreeMap<(u32, u32), (Rows, Rows)>,
}

impl Deployed {
    /// The tables for `device` in `folder`; those that cannot be read are left out.
    pub(super) fn of(folder: &Utf8Path, device: &str) -> Self {
        let there = entries(folder).unwrap_or_default();
        let device_name = device.replace(' ', "_");
        let named = there
            .iter()
            .filter_map(|entry| entry.file_name().parse::<TableName>().ok());
        let tables = named
            .filter(|found| !found.down && found.device_name == device_name)
            .filter_map(|found| {
                let key = (found.experts, found.n);
                let rows = |down| read_rows(&folder.join(name(device, key, down).to_string()));
                Some((key, (rows(false)?, rows(true)?)))
            })
            .collect();
        Self {
            folder: folder.to_owned(),
            tables,
        }
    }

    /// (E, N) of each pair.
    pub(super) fn tables(&self) -> impl Iterator<Item = (u32, u32)> {
        self.tables.keys().copied()
    }

    /// Number of rows in the table of `sizes`.
    pub(super) fn rows(&self, sizes: Sizes) -> usize {
        let table = self.tables.get(&(sizes.experts, sizes.inter));
        table.map_or(0, |(up, _)| up.len())
    }

    /// The rows that serve `m`, by the runtime's rule.
    pub(super) fn row(&self, experts: u32, n: u32, m: u32) -> Option<Row> {
        let (up, down) = self.tables.get(&(experts, n))?;
        Some(Row::of(nearest(up, m)?, nearest(down, m)?))
    }

    /// Refuses tables that would compute wrong numbers, and tables in which the look-up does not find the race's
    /// winners.
    pub(super) fn check(&self, won: &BTreeSet<Sizes>, tuned: &TunedMoe) -> Result<(), Error> {
        let folder = &self.folder;
        let refused = |why: String| {
            Err(Error::new(
                ErrorKind::NotBetter,
                format!("the tables of fused MoE are not deployed: {why}"),
            )
            .hint("the server runs as before; `gemmtune lint` says the same of a table anywhere"))
        };
        for sizes in won {
            let key = (sizes.experts, sizes.inter);
            let Some((up, down)) = self.tables.get(&key) else {
                return refused(format!(
                    "that of E={} N={} in {folder} cannot be read",
                    key.0, key.1
                ));
            };
            let keys = |rows: &Rows| rows.iter().map(|(m, _)| *m).collect::<Vec<_>>();
            if up.is_empty() || keys(up) != keys(down) {
                return refused(format!(
                    "the up and the down projection of E={} N={} have other M",
                    key.0, key.1
                ));
            }
            let table = name("", key, false);
            for ((m, up), (_, down)) in up.iter().zip(down) {
                let at = format!("E={} N={} at M = {m}", key.0, key.1);
                for (which, row) in [("up", up), ("down", down)] {
                    let block_k = row["BLOCK_SIZE_K"].as_i64().unwrap_or(0);
                    if block_k <= 0 || beyond_scale_block(&table, block_k) {
                        return refused(format!(
                            "{at} the {which} row's BLOCK_SIZE_K of {block_k} spans several scale blocks of {}, and one scale would be used for all",
                            BLOCK.1
                        ));
                    }
                }
                if up["BLOCK_SIZE_M"] != down["BLOCK_SIZE_M"] {
                    return refused(format!(
                        "{at} BLOCK_SIZE_M is {} in the up row and {} in the down row, which share one sort of the tokens",
                        up["BLOCK_SIZE_M"], down["BLOCK_SIZE_M"]
                    ));
                }
            }
        }
        for row in tuned.won() {
            let (task, raced) = (&row.shape, &row.candidate);
            let raced = Row::of(&raced["up"], &raced["down"]);
            let found = self.row(task.experts, task.inter, task.m);
            if found.as_ref() != Some(&raced) {
                return Err(Error::new(
                    ErrorKind::Bug,
                    format!(
                        "a dry look-up of {task} finds {} in place of what won the race",
                        found.map_or_else(|| "nothing".to_owned(), |row| row.name())
                    ),
                ));
            }
        }
        Ok(())
    }
}
