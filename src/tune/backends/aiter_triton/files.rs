//! aiter's JSON files: what serves an M today, and where rows are placed so that each serves the M it was raced for.
//!
//! A row serves a *bucket*: the M above one of aiter's bounds, up to the next. What is written names every bucket in
//! which two rows differ, so that what was not raced is served as before.

use std::collections::BTreeMap;
use std::io;

use camino::Utf8Path;
use serde_json::{Map, Value};

use crate::store::file::write_atomic;
use crate::table::aiter_triton::{Configs, FileName, Rules};
use crate::tune::protocol::Candidate;
use crate::tune::tuned::{TunedRows, TunedTable};

/// Held while a file is read, merged and written.
const LOCK: &str = ".gemmtune-tables.lock";

/// The file that serves a weight: its own, else the one for all weights.
pub fn in_force(folder: &Utf8Path, name: &FileName) -> Option<Configs> {
    let read = |name: &FileName| {
        let bytes = fs_err::read(folder.join(name.to_string())).ok()?;
        Configs::read(&bytes).ok()
    };
    read(name).or_else(|| read(&name.default_of()))
}

/// Rows by key, ascending: `raced` in their buckets, and those in `there` in all others.
///
/// # Errors
///
/// If there is a key with a lower bound (`M_GEQ_x`), because its row would serve half a bucket. aiter ships none.
pub fn placed(
    raced: &BTreeMap<u32, Candidate>,
    there: Option<&Configs>,
    rules: Rules,
) -> io::Result<Map<String, Value>> {
    if there.is_some_and(|configs| configs.keys().any(|key| key.starts_with("M_GEQ_"))) {
        return Err(io::Error::other(
            "a file with `M_GEQ_x` keys is not rewritten",
        ));
    }
    let mut by_bucket: BTreeMap<u32, Candidate> = BTreeMap::new();
    for (&m, row) in raced {
        // Ascending, so the row raced for the largest M of a bucket is kept.
        by_bucket.insert(rules.bucket(m).unwrap_or(u32::MAX), row.clone());
    }
    let buckets = rules.bounds().into_iter().chain([u32::MAX]);
    let mut rows: Vec<(u32, Option<Candidate>)> = buckets
        .map(|bound| {
            let today = there.and_then(|configs| configs.find(rules, bound));
            let today = today.map(|(_, row)| Value::Object(row.clone()));
            (bound, by_bucket.remove(&bound).or(today))
        })
        .collect();
    // A bucket that nothing serves, because there was no file, gets the next row upwards, else the last.
    let last = rows.iter().rev().find_map(|(_, row)| row.clone());
    if let Some((_, row @ None)) = rows.last_mut() {
        *row = last;
    }
    let mut kept: Vec<(String, Value)> = Vec::new();
    for (bound, row) in rows.into_iter().rev() {
        let Some(row) = row else { continue };
        if kept.last().is_none_or(|(_, next)| *next != row) {
            let key = match bound {
                u32::MAX => "any".to_owned(),
                bound => format!("M_LEQ_{bound}"),
            };
            kept.push((key, row));
        }
    }
    Ok(kept.into_iter().rev().collect())
}

/// Puts `raced` rows into the file `name` of `folder`, replacing rows that are there already, else those of
/// `shipped`. Several processes may do so at once without losing a row. Returns the new contents of the file.
pub fn merge(
    folder: &Utf8Path,
    name: &FileName,
    raced: &BTreeMap<u32, Candidate>,
    shipped: Option<&Configs>,
    rules: Rules,
) -> io::Result<TunedTable> {
    let lock = fs_err::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(folder.join(LOCK))?
        .into_parts()
        .0;
    lock.lock()?;
    let path = folder.join(name.to_string());
    let there = fs_err::read(&path)
        .ok()
        .and_then(|bytes| Configs::read(&bytes).ok());
    let rows = placed(raced, there.as_ref().or(shipped), rules)?;
    let table = TunedTable {
        name: name.to_string(),
        rows: TunedRows::ByBucket(rows),
    };
    write_atomic(&path, table.text().as_bytes())?;
    Ok(table)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const NEW: Rules = Rules::Bounds { from: 1 };
    const OLD: Rules = Rules::Bounds { from: 4 };

    fn configs(text: &Value) -> Configs {
        Configs::read(text.to_string().as_bytes()).unwrap()
    }

    fn written(rows: &Map<String, Value>) -> Configs {
        configs(&Value::Object(rows.clone()))
    }

    fn id(configs: &Configs, rules: Rules, m: u32) -> Option<u64> {
        configs.find(rules, m)?.1.get("id")?.as_u64()
    }

    #[test]
    fn a_bound_that_a_revision_does_not_look_for_is_not_written() {
        let raced = BTreeMap::from([(1, json!({"id": 1})), (4, json!({"id": 4}))]);
        let there = configs(&json!({"any": {"id": 0}}));
        let rows = placed(&raced, Some(&there), OLD).unwrap();
        assert_eq!(rows.keys().collect::<Vec<_>>(), ["M_LEQ_4", "any"]);
        assert_eq!(id(&written(&rows), OLD, 1), Some(4));
        let rows = placed(&raced, Some(&there), NEW).unwrap();
        assert_eq!(
            rows.keys().collect::<Vec<_>>(),
            ["M_LEQ_1", "M_LEQ_4", "any"]
        );
    }

    #[test]
    fn a_key_from_a_bound_upwards_is_refused() {
        let there = configs(&json!({"M_GEQ_64": {"id": 1}, "any": {"id": 0}}));
        assert!(placed(&BTreeMap::new(), Some(&there), NEW).is_err());
    }

    #[test]
    fn without_a_file_every_m_is_served_by_what_was_raced() {
        let rows = placed(&BTreeMap::from([(16, json!({"id": 16}))]), None, NEW).unwrap();
        assert_eq!(rows.keys().collect::<Vec<_>>(), ["any"]);
    }

    proptest! {
        #[test]
        fn raced_buckets_get_their_row_and_all_others_what_serves_them_today(
            raced in prop::collection::btree_set(1u32..20_000, 0..8),
            there in prop::collection::btree_set(0usize..13, 0..6),
            old in any::<bool>(),
        ) {
            let rules = if old { OLD } else { NEW };
            let bounds = NEW.bounds();
            let mut file: Map<String, Value> = there
                .iter()
                .map(|&index| (format!("M_LEQ_{}", bounds[index]), json!({"id": 100_000 + bounds[index]})))
                .collect();
            file.insert("any".to_owned(), json!({"id": 99_999}));
            let file = configs(&Value::Object(file));
            let rows: BTreeMap<u32, Value> = raced.iter().map(|&m| (m, json!({"id": m}))).collect();
            let found = written(&placed(&rows, Some(&file), rules).unwrap());
            for m in (1..200).chain([255, 256, 257, 1000, 4096, 8192, 8193, 19_999, 100_000]) {
                let own = raced.iter().filter(|&&other| rules.bucket(other) == rules.bucket(m)).max();
                let expected = own.map(|&m| u64::from(m)).or(id(&file, rules, m));
                prop_assert_eq!(id(&found, rules, m), expected, "M = {}", m);
            }
        }
    }
}
