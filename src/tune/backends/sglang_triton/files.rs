//! SGLang's JSON files: read, merged under a lock, written atomically.

use std::io::{self, Write as _};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;

use super::keys::{self, Rows};
use super::space::Config;
use crate::store::file::write_atomic;
use crate::table::sglang_json::{self, FileName};
use crate::tune::protocol::Device;
use crate::tune::results::Row;
use crate::tune::tuned::{TunedRows, TunedTable};

/// Name of the file beside the tables with the origin of each row, one JSON line for each.
pub const PROVENANCE: &str = "provenance.jsonl";

/// Held while a table is read, merged and written.
const LOCK: &str = ".gemmtune-tables.lock";

/// The rows of the table at `path`; `None` if there is no such file or the runtime would not load it.
pub fn read_rows(path: &Utf8Path) -> Option<Rows> {
    let bytes = fs_err::read(path).ok()?;
    let table = sglang_json::Config::read(path.as_str(), &bytes).ok()?;
    Some(keys::rows_of(&table))
}

/// One table in a folder.
#[derive(Clone, Debug)]
pub struct TableFile<'a> {
    pub folder: &'a Utf8Path,
    /// What the table is for.
    pub name: FileName,
}

impl TableFile<'_> {
    /// Where the table is.
    pub fn path(&self) -> Utf8PathBuf {
        self.folder.join(self.name.to_string())
    }

    /// Puts `raced` rows into the table, replacing rows that are there already, else those in use `today`, else
    /// `fallback`, and returns its new contents. Several processes may do so at once without losing a row.
    pub fn merge(&self, raced: &Rows, today: &Rows, fallback: &Config) -> io::Result<TunedTable> {
        let lock = fs_err::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.folder.join(LOCK))?
            .into_parts()
            .0;
        lock.lock()?;
        let path = self.path();
        let there = read_rows(&path);
        let rows = keys::placed(
            raced,
            there.as_ref().unwrap_or(today),
            &fallback.candidate(),
        );
        let table = TunedTable {
            name: self.name.to_string(),
            rows: TunedRows::ByM(rows),
        };
        write_atomic(&path, table.text().as_bytes())?;
        Ok(table)
    }
}

/// Writes the provenance of every row: time, incumbent, noise, device and versions.
pub(in crate::tune::backends) fn write_provenance(
    folder: &Utf8Path,
    device: &Device,
    rows: &[Row],
) -> io::Result<()> {
    let mut text = Vec::new();
    for row in rows {
        let line = json!({
            "M": row.shape.m, "N": row.shape.n, "K": row.shape.k,
            "config": row.candidate, "us": row.us, "incumbent_kept": row.incumbent_kept,
            "incumbent": row.incumbent, "incumbent_us": row.incumbent_us,
            "noise": row.noise, "err_ratio": row.err_ratio, "effort": row.effort,
            "device": device.name, "arch": device.arch, "versions": device.versions,
            "kernel_hash": device.kernel_hash, "gemmtune": env!("CARGO_PKG_VERSION"),
        });
        writeln!(text, "{line}")?;
    }
    write_atomic(&folder.join(PROVENANCE), &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(m: u32) -> Rows {
        vec![(m, json!({"BLOCK_SIZE_M": m}))]
    }

    #[test]
    fn eight_writers_at_once_lose_no_row() {
        let keep = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::try_from(keep.path().to_owned()).unwrap();
        let file = TableFile {
            folder: &folder,
            name: FileName::block_fp8(4096, 512, "NVIDIA H200"),
        };
        let fallback = Config::default_for(128, 128);
        // Far apart, so that no writer's row is within another's range.
        let ms = [1, 8, 64, 512, 4096, 32_768, 262_144, 2_097_152];
        std::thread::scope(|scope| {
            for m in ms {
                let (file, fallback) = (&file, &fallback);
                scope.spawn(move || {
                    file.merge(&row(m), &Rows::new(), fallback).unwrap();
                });
            }
        });
        let rows = read_rows(&file.path()).unwrap();
        for m in ms {
            assert_eq!(keys::nearest(&rows, m).unwrap()["BLOCK_SIZE_M"], m);
        }
    }

    #[test]
    fn a_file_the_runtime_would_not_load_is_replaced_not_merged() {
        let keep = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::try_from(keep.path().to_owned()).unwrap();
        let file = TableFile {
            folder: &folder,
            name: FileName::block_fp8(4096, 512, "NVIDIA H200"),
        };
        write_atomic(&file.path(), b"{\"one\": {}}").unwrap();
        file.merge(&row(1), &Rows::new(), &Config::default_for(128, 128))
            .unwrap();
        let rows = read_rows(&file.path()).unwrap();
        assert_eq!(keys::nearest(&rows, 1).unwrap()["BLOCK_SIZE_M"], 1);
    }
}
