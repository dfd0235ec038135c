//! Merges several tables of one fused MoE into one: for each M the first valid row, with the down projection's row of
//! the same table.
//!
//! Such tables have no times, so the order in which they are given decides. The down row accompanies its up row,
//! because both must have the same BLOCK_SIZE_M: if a table's down row has another, or there is none, the up row is
//! used in both tables.

use std::collections::BTreeMap;

use super::name::TableName;
use super::release::Release;
use crate::table::lint::judge_moe_row;
use crate::table::merge::Outcome;
use crate::table::nearest;
use crate::table::sglang_json::{Config, Entry, Params};

/// A table of the up projection, and the down projection's that belongs to it.
#[derive(Clone, Debug)]
pub struct Input {
    pub path: String,
    /// Its parsed name.
    pub name: TableName,
    pub up: Config,
    /// The rows of the down projection, if it has a table.
    pub down: Option<Config>,
}

/// An input row and what was done with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// The file that has it.
    pub table: String,
    pub key: String,
    pub line: u64,
    /// What was done with it.
    pub outcome: Outcome,
    pub reason: String,
}

/// The merged tables, and what was done with each row.
#[derive(Clone, Debug)]
pub struct Merged {
    /// The up projection's table.
    pub up: Config,
    /// The down projection's table; present if any input has one.
    pub down: Option<Config>,
    /// Every row of every input.
    pub provenance: Vec<Provenance>,
    /// M whose down row is a copy of the up row although its table has another one, with the reason.
    pub uncoupled: Vec<String>,
}

impl Merged {
    /// Number of rows with an outcome.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.provenance
            .iter()
            .filter(|entry| entry.outcome == outcome)
            .count()
    }
}

/// The tables are not for the same problem.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{first}` and `{second}` are tables of different problems, devices or kinds")]
pub struct DifferentTables {
    /// The first table's name.
    pub first: String,
    /// Name of the one that differs.
    pub second: String,
}

/// Merges tables with one name; a row must be valid for `release`, or for every one.
pub fn merge(inputs: &[Input], release: Option<Release>) -> Result<Merged, DifferentTables> {
    let mut rows: BTreeMap<u32, (&Input, &Entry)> = BTreeMap::new();
    let mut provenance = Vec::new();
    for input in inputs {
        if let Some(first) = inputs.first().filter(|first| first.name != input.name) {
            return Err(DifferentTables {
                first: first.name.to_string(),
                second: input.name.to_string(),
            });
        }
        for entry in &input.up.entries {
            let wrong = judge_moe_row(&input.name, entry, release);
            // Of a duplicate key the runtime uses the last.
            let doubled = input
                .up
                .entries
                .iter()
                .rev()
                .find(|other| other.m == entry.m);
            let size = entry
                .m
                .and_then(|m| u32::try_from(m).ok())
                .filter(|m| *m > 0);
            let (outcome, reason) = match size {
                _ if !wrong.is_empty() => (Outcome::Invalid, wrong.join("; ")),
                None => (Outcome::Invalid, "no M has this key".to_owned()),
                Some(_) if doubled != Some(entry) => {
                    (Outcome::Later, "the key appears again below".to_owned())
                }
                Some(m) => match rows.get(&m) {
                    Some((of, known)) if known.params == entry.params => {
                        (Outcome::Copy, format!("of {}", of.path))
                    }
                    Some((of, _)) => (
                        Outcome::Later,
                        format!("the row of {} was given earlier", of.path),
                    ),
                    None => {
                        rows.insert(m, (input, entry));
                        (Outcome::Kept, String::new())
                    }
                },
            };
            provenance.push(Provenance {
                table: input.path.clone(),
                key: entry.key.clone(),
                line: entry.line,
                outcome,
                reason,
            });
        }
    }
    let pairs = |params: &Params| match params {
        Params::Object(pairs) => pairs.clone(),
        Params::Other(_) => Vec::new(),
    };
    let (mut up, mut down) = (Config::default(), Config::default());
    let mut uncoupled = Vec::new();
    for (m, (input, entry)) in rows {
        up.set(m, pairs(&entry.params));
        let of_down = input
            .down
            .as_ref()
            .map(|table| down_row(input, table, m, entry, release));
        let row = match of_down {
            Some(Ok(row)) => row,
            Some(Err(reason)) => {
                uncoupled.push(format!("M = {m}: {reason}"));
                &entry.params
            }
            None => &entry.params,
        };
        down.set(m, pairs(row));
    }
    let any_down = inputs.iter().any(|input| input.down.is_some());
    Ok(Merged {
        up,
        down: any_down.then_some(down),
        provenance,
        uncoupled,
    })
}

/// The row of the input's own down table for `m`, if it can be used with the up row.
fn down_row<'a>(
    input: &Input,
    table: &'a Config,
    m: u32,
    up: &Entry,
    release: Option<Release>,
) -> Result<&'a Params, String> {
    let Ok(Some((key, params))) = nearest::row(table, m) else {
        return Err("the down table cannot be loaded".to_owned());
    };
    let entry = table
        .entries
        .iter()
        .rev()
        .find(|entry| entry.m == Some(key));
    let wrong = entry.map_or_else(Vec::new, |entry| {
        judge_moe_row(&input.name.with_down(true), entry, release)
    });
    if !wrong.is_empty() {
        return Err(format!("the down row is left out: {}", wrong.join("; ")));
    }
    let sizes = [&up.params, params].map(|params| params.get("BLOCK_SIZE_M").cloned());
    if sizes[0] == sizes[1] {
        Ok(params)
    } else {
        Err("the down row has another BLOCK_SIZE_M than the up row".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str =
        "E=8,N=128,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json";

    fn table(rows: &[(u32, u32, u32)]) -> Config {
        let row = |(m, block_m, block_k): &(u32, u32, u32)| {
            format!(
                "\"{m}\": {{\"BLOCK_SIZE_M\": {block_m}, \"BLOCK_SIZE_N\": 128, \"BLOCK_SIZE_K\": {block_k}, \"GROUP_SIZE_M\": 1, \
                 \"num_warps\": 4, \"num_stages\": 3}}"
            )
        };
        let text = format!("{{{}}}", rows.iter().map(row).collect::<Vec<_>>().join(","));
        Config::read("t.json", text.as_bytes()).unwrap()
    }

    fn input(path: &str, up: &[(u32, u32, u32)], down: Option<&[(u32, u32, u32)]>) -> Input {
        Input {
            path: path.to_owned(),
            name: NAME.parse().unwrap(),
            up: table(up),
            down: down.map(table),
        }
    }

    fn shown(config: &Config) -> Vec<(i64, i64)> {
        let rows = config.by_m().unwrap();
        rows.iter()
            .map(|(m, row)| (*m, row.get("BLOCK_SIZE_M").unwrap().as_i64().unwrap()))
            .collect()
    }

    #[test]
    fn the_first_valid_row_of_each_m_stays_and_wrong_numbers_never_do() {
        let mine = input("mine", &[(64, 16, 128), (1, 16, 256)], None);
        let shipped = input(
            "shipped",
            &[(1, 32, 128), (64, 32, 128), (4096, 64, 128)],
            None,
        );
        let merged = merge(&[mine, shipped], None).unwrap();
        assert_eq!(shown(&merged.up), [(1, 32), (64, 16), (4096, 64)]);
        assert!(merged.down.is_none());
        assert_eq!(
            [Outcome::Kept, Outcome::Later, Outcome::Invalid].map(|outcome| merged.count(outcome)),
            [3, 1, 1]
        );
        let invalid = merged
            .provenance
            .iter()
            .find(|entry| entry.outcome == Outcome::Invalid)
            .unwrap();
        insta::assert_snapshot!(invalid.reason, @"key `1` has BLOCK_SIZE_K = 256 with scale blocks of 128");
    }

    #[test]
    fn a_down_row_goes_with_its_up_row_and_only_where_both_share_a_block_size_m() {
        let mine = input(
            "mine",
            &[(1, 16, 128), (64, 32, 128)],
            Some(&[(1, 16, 64), (64, 128, 128)]),
        );
        let shipped = input("shipped", &[(4096, 64, 128)], None);
        let merged = merge(&[mine, shipped], None).unwrap();
        let down = merged.down.unwrap();
        assert_eq!(shown(&down), shown(&merged.up));
        let row = down.by_m().unwrap()[0].1.get("BLOCK_SIZE_K").cloned();
        assert_eq!(row, Some(64.into()), "its own down row");
        insta::assert_snapshot!(merged.uncoupled.join("\n"), @"M = 64: the down row has another BLOCK_SIZE_M than the up row");
    }

    #[test]
    fn tables_of_two_problems_are_refused_and_a_doubled_key_counts_once() {
        let mut other = input("other", &[(1, 16, 128)], None);
        other.name.n = 256;
        assert!(merge(&[input("a", &[(1, 16, 128)], None), other], None).is_err());
        let doubled = input("a", &[(1, 16, 128), (1, 32, 128)], None);
        let merged = merge(&[doubled.clone(), doubled], None).unwrap();
        assert_eq!(shown(&merged.up), [(1, 32)], "the runtime takes the last");
        assert_eq!(merged.count(Outcome::Copy), 1);
    }
}
