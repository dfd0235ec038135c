//! Rules about keys: a look-up finds at most one row for each.

use std::collections::HashMap;

use super::super::aiter::{Row, Table, Text};
use super::super::family;
use super::super::kernels::Library;
use super::{Finding, Severity, Sink, rules};
use crate::problem::Op;

/// The columns that the look-up compares. `libtype` is not one of them, for any operation.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    gfx: Option<Text>,
    cu_num: Option<u32>,
    m: u32,
    n: u32,
    k: u32,
    dtype: Option<Text>,
}

impl Key {
    fn of(row: &Row) -> Self {
        Self {
            gfx: row.gfx.clone(),
            cu_num: row.cu_num,
            m: row.m,
            n: row.n,
            k: row.k,
            dtype: row.q_dtype_w.clone(),
        }
    }
}

pub(super) fn within(table: &Table, sink: &mut Sink<'_>) {
    duplicates(table, sink);
    ids(table, sink);
}

fn duplicates(table: &Table, sink: &mut Sink<'_>) {
    let mut seen: HashMap<Key, &Row> = HashMap::with_capacity(table.rows.len());
    for row in &table.rows {
        let Some(first) = seen.get(&Key::of(row)) else {
            seen.insert(Key::of(row), row);
            continue;
        };
        if first.is_copy_of(row) {
            sink.add(
                &rules::DUPLICATE_EQUAL,
                Some(row.line),
                format!("the same row is on line {}", first.line),
            );
        } else {
            sink.add(
                &rules::DUPLICATE_CONFLICTING,
                Some(row.line),
                format!("line {} has the same key and other values", first.line),
            );
        }
    }
}

/// The same key in two tables of one operation: if aiter merges them, it rewrites the files and raises.
pub(super) fn across(tables: &[Table], findings: &mut Vec<Finding>) {
    let mut seen: HashMap<(Op, Key), (&Table, u64)> = HashMap::new();
    for table in tables {
        for row in &table.rows {
            let place = (table, row.line);
            let first = *seen.entry((table.op, Key::of(row))).or_insert(place);
            if first.0.name == table.name {
                continue;
            }
            let mut finding = rules::DUPLICATE_ACROSS_FILES.finding(
                &table.name,
                Some(row.line),
                format!("line {} of `{}` has the same key", first.1, first.0.name),
            );
            if !are_merged(first.0, table) {
                finding.severity = Severity::Warning;
            }
            findings.push(finding);
        }
    }
}

/// Whether aiter merges the two on its own, judged by the names and places of the files: the default table and those
/// in `model_configs` beside it that contain its stem.
fn are_merged(one: &Table, other: &Table) -> bool {
    let Some(stem) = family::stem(one.op) else {
        return false;
    };
    let parts = |table: &Table| {
        let (folder, file) = match table.name.rsplit_once('/') {
            Some((folder, file)) => (folder.to_owned(), file.to_owned()),
            None => (String::new(), table.name.clone()),
        };
        let root = match folder.as_str() {
            "model_configs" => "",
            folder => folder.strip_suffix("/model_configs").unwrap_or(folder),
        };
        (root.to_owned(), file)
    };
    let ((root, file), (other_root, other_file)) = (parts(one), parts(other));
    root == other_root && file.contains(stem) && other_file.contains(stem)
}

/// Ids that are not recorded here must still mean one kernel within a file.
fn ids(table: &Table, sink: &mut Sink<'_>) {
    let mut names: HashMap<NamedKey<'_>, Spellings<'_>> = HashMap::new();
    for row in &table.rows {
        let Some((key, name)) = named(row) else {
            continue;
        };
        let count = names
            .entry(key)
            .or_default()
            .entry(name)
            .or_insert((0, row.line));
        count.0 += 1;
    }
    for row in &table.rows {
        let Some((key, name)) = named(row) else {
            continue;
        };
        let Some(all) = names.get(&key).filter(|all| all.len() > 1) else {
            continue;
        };
        // The name that most rows have is assumed to be right; of equally frequent ones, the first.
        let Some((usual, _)) = all
            .iter()
            .max_by_key(|(_, (count, line))| (*count, std::cmp::Reverse(*line)))
        else {
            continue;
        };
        if *usual != name {
            sink.add(
                &rules::KERNEL_ID_DRIFT,
                Some(row.line),
                format!(
                    "{} kernelId {} is `{usual}` elsewhere in the file, here `{name}`",
                    key.0.name(),
                    key.1
                ),
            );
        }
    }
}

/// Library, id and architecture, which must identify one kernel.
type NamedKey<'a> = (Library, i64, Option<&'a str>);
/// The names for one id, with the number of rows that have each and the line of the first.
type Spellings<'a> = HashMap<&'a str, (usize, u64)>;

fn named(row: &Row) -> Option<(NamedKey<'_>, &str)> {
    let name = row.kernel_name.as_deref()?;
    let library = match row.libtype.as_deref() {
        Some(libtype) => Library::of_libtype(libtype)?,
        None => Library::of_kernel(name)?,
    };
    // CK ids are recorded and have their own rule; assembly ids number tile and split together in some revisions;
    // Triton has a single name.
    let checked = matches!(library, Library::CkTile | Library::FlyDsl | Library::Opus);
    let consistent = Library::of_kernel(name).is_none_or(|named| named == library);
    // One id may name different kernels on different architectures.
    (checked && consistent).then_some(((library, row.kernel_id?, row.gfx.as_deref()), name))
}
