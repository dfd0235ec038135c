//! Merges several tables of the fused MoE into the one file that `AITER_CONFIG_FMOE` names.
//!
//! That variable replaces every table aiter ships, so the shipped ones are merged as well. For equal keys the row of
//! the table given first is kept: times of different tuners exclude different parts, and are not compared. Rows that
//! no look-up of the release would find are left out, and what would make its first call raise is repaired.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::rules::{ActivationRule, FALLBACK_TAG, Rules, TagRule};
use super::table::{FLAGS, NUMBERS, Row, TEXTS, Table, TableError};
use crate::table::aiter::{first_line, is_unset};
use crate::table::csv_text;

/// Columns that aiter fills with 0 if a table lacks them, and converts to numbers (`merge` of `aiter/jit/core.py` at
/// e4048607).
const FILLED: [&str; 4] = ["run_1stage", "ksplit", "xbf16", "flat"];

/// The rules and the activation for which tables are merged.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Rules of the aiter that will read the result.
    pub rules: Rules,
    /// The only activation whose rows are kept, without the enumeration's name; if the release does not compare
    /// activations, a table with several uses one activation's kernels for another.
    pub activation: Option<String>,
}

/// What was done with a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub table: String,
    /// 1-based line.
    pub line: u64,
    /// Why it was left out; `None` for a row of the result.
    pub left_out: Option<String>,
}

/// The merged table, and what was done with each row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The table as CSV.
    pub csv: String,
    /// Every row of every table, in order.
    pub decisions: Vec<Decision>,
}

impl Merged {
    /// Rows of the result.
    pub fn kept(&self) -> usize {
        self.decisions
            .iter()
            .filter(|decision| decision.left_out.is_none())
            .count()
    }

    /// Where each row of the result comes from, and why the others were left out.
    pub fn provenance_csv(&self) -> String {
        let cells = |decision: &Decision| {
            let why = decision.left_out.as_deref();
            [
                decision.table.clone(),
                decision.line.to_string(),
                u8::from(why.is_none()).to_string(),
                why.unwrap_or("").to_owned(),
            ]
        };
        let header = ["table", "line", "kept", "why"];
        csv_text::text(header, self.decisions.iter().map(cells))
    }
}

/// Why tables cannot be merged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// A table cannot be read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A line cannot be read.
    #[error("read `{table}`: line {line}: {what}")]
    Line {
        table: String,
        /// 1-based line.
        line: u64,
        what: String,
    },
    /// There are rows with one key for several activations, and no activation was chosen.
    #[error("{0}")]
    Activations(Box<Clash>),
}

/// Two rows that the release cannot distinguish.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "line {} of `{}` is of {}, and line {} of `{}` has the same key for {}: aiter {release} does not tell them apart",
    row.line, row.table, row.activation, other.line, other.table, other.activation
)]
pub struct Clash {
    row: Origin,
    /// The one before it.
    other: Origin,
    release: &'static str,
}

/// Where a row is, and its activation.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    table: String,
    line: u64,
    activation: String,
}

/// A table: its name and its bytes.
pub type File = (String, Vec<u8>);

/// The parts of a key; the activation is last, and empty where it is not compared.
type Key = (String, [u32; 6], [String; 4], [Option<bool>; 2], String);

/// Merges the tables, of which earlier ones take precedence.
pub fn merge(tables: &[File], policy: &Policy) -> Result<Merged, MergeError> {
    let mut decisions = Vec::new();
    let mut kept: Vec<(usize, Vec<String>)> = Vec::new();
    let mut columns: Vec<String> = Vec::new();
    let mut headers: Vec<Vec<String>> = Vec::new();
    let mut taken: HashMap<Key, Origin> = HashMap::new();
    for (name, bytes) in tables {
        let table = Table::read(name, bytes)?;
        if let Some(fault) = table.faults.iter().find(|fault| fault.drops_row) {
            return Err(MergeError::Line {
                table: name.clone(),
                line: fault.line,
                what: fault.what.clone(),
            });
        }
        for column in &table.columns {
            if !columns.contains(column) {
                columns.push(column.clone());
            }
        }
        let cells = cells(bytes);
        for row in &table.rows {
            let key = key(row, policy.rules);
            let left_out = match (unfit(row, policy), taken.get(&key)) {
                (Some(why), _) => Some(why),
                (None, None) => None,
                (None, Some(first)) if first.activation == row.act_type() => Some(format!(
                    "line {} of `{}` has the key",
                    first.line, first.table
                )),
                (None, Some(first)) => {
                    return Err(MergeError::Activations(Box::new(Clash {
                        row: origin(name, row),
                        other: first.clone(),
                        release: policy.rules.release.name(),
                    })));
                }
            };
            if left_out.is_none() {
                taken.insert(key, origin(name, row));
                if let Some(cells) = cells.get(&row.line) {
                    kept.push((headers.len(), cells.clone()));
                }
            }
            decisions.push(Decision {
                table: name.clone(),
                line: row.line,
                left_out,
            });
        }
        headers.push(table.columns);
    }
    let csv = written(&order(columns, policy.rules), &headers, &kept, policy.rules);
    Ok(Merged { csv, decisions })
}

fn origin(table: &str, row: &Row) -> Origin {
    Origin {
        table: table.to_owned(),
        line: row.line,
        activation: row.act_type().to_owned(),
    }
}

/// Why no look-up would find the row; `None` if one would.
fn unfit(row: &Row, policy: &Policy) -> Option<String> {
    let rules = policy.rules;
    let wanted = policy
        .activation
        .as_ref()
        .map(|name| format!("ActivationType.{name}"));
    if wanted.is_some_and(|wanted| wanted != row.act_type()) {
        return Some(format!("it is of {}", row.act_type()));
    }
    if !rules.rounding.tokens().contains(&row.token) {
        return Some(format!("no look-up asks for token {}", row.token));
    }
    let fallback = &*row.tag == FALLBACK_TAG;
    let served = match rules.tags {
        TagRule::All => true,
        TagRule::Untagged => row.tag.is_empty() || fallback,
        TagRule::NoFallback => !fallback,
    };
    if !served {
        return Some(format!(
            "aiter {} serves no row tagged {}",
            rules.release, row.tag
        ));
    }
    let prefixes = [
        "ActivationType.",
        "torch.",
        "torch.",
        "torch.",
        "QuantType.",
    ];
    let misspelt = row
        .texts
        .iter()
        .zip(prefixes)
        .find(|(text, prefix)| !text.starts_with(prefix));
    if let Some((text, _)) = misspelt {
        return Some(format!("no look-up asks for `{text}`"));
    }
    let unnamed = row.kernels[0].is_none() || (row.kernels[1].is_none() && !row.run_1stage);
    unnamed.then(|| "it names no kernel".to_owned())
}

fn key(row: &Row, rules: Rules) -> Key {
    let gfx = if rules.keys_gfx { row.gfx_or("") } else { "" };
    // Rows for machines without FlyDSL are looked up separately.
    let tag = if &*row.tag == FALLBACK_TAG {
        FALLBACK_TAG
    } else {
        ""
    };
    let activation = match rules.activation {
        ActivationRule::Ignored => "",
        ActivationRule::Matched | ActivationRule::MatchedFirst => row.act_type(),
    };
    (
        format!("{gfx}/{tag}"),
        row.numbers(),
        [1, 2, 3, 4].map(|at| row.texts[at].to_string()),
        row.flags,
        activation.to_owned(),
    )
}

/// The cells of each line.
fn cells(bytes: &[u8]) -> HashMap<u64, Vec<String>> {
    let bytes = csv_text::unmarked(bytes);
    let mut reader = csv_text::reader(bytes);
    reader
        .records()
        .flatten()
        .map(|record| {
            let line = first_line(bytes, record.as_byte_record());
            (line, record.iter().map(str::to_owned).collect())
        })
        .collect()
}

/// The columns of the result: the key first, as the release's tuner writes it.
fn order(columns: Vec<String>, rules: Rules) -> Vec<String> {
    let has_gfx = rules.keys_gfx || columns.iter().any(|column| column == "gfx");
    let key = NUMBERS.iter().chain(&TEXTS).chain(&FLAGS);
    let mut ordered: Vec<String> = has_gfx.then(|| "gfx".to_owned()).into_iter().collect();
    ordered.extend(key.map(ToString::to_string));
    for column in columns {
        if !ordered.contains(&column) {
            ordered.push(column);
        }
    }
    ordered
}

fn written(
    columns: &[String],
    headers: &[Vec<String>],
    kept: &[(usize, Vec<String>)],
    rules: Rules,
) -> String {
    let records = kept.iter().map(|(table, cells)| {
        let cell = |column: &str| {
            let at = headers[*table].iter().position(|name| name == column);
            at.and_then(|at| cells.get(at))
                .map_or("", |cell| cell.trim())
        };
        let units = cell("cu_num").trim_end_matches(".0");
        let record = columns.iter().map(|column| {
            let text = cell(column);
            match column.as_str() {
                "gfx" if rules.keys_gfx && (is_unset(text) || text == "0") => match units {
                    "256" => "gfx950",
                    "80" | "304" => "gfx942",
                    _ => text,
                },
                name if FILLED.contains(&name) && is_unset(text) => "0",
                _ => text,
            }
        });
        record.map(str::to_owned).collect::<Vec<_>>()
    });
    csv_text::text(columns, records)
}

/// A one-line summary of the result.
pub fn summary(merged: &Merged) -> String {
    let left_out = merged.decisions.len() - merged.kept();
    let mut text = format!("{} rows", merged.kept());
    if left_out > 0 {
        let _ = write!(text, ", {left_out} left out");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::lookup::{Resolver, Served, Site};
    use super::super::rules::Release;
    use super::*;
    use crate::problem::op::fused_moe_aiter::Request;

    fn read(file: &str) -> (String, Vec<u8>) {
        let path = format!(
            "{}/testdata/lookup/aiter-fmoe-{file}.csv",
            env!("CARGO_MANIFEST_DIR")
        );
        (file.to_owned(), std::fs::read(path).unwrap())
    }

    fn policy(release: Release, activation: Option<&str>) -> Policy {
        Policy {
            rules: Rules::new(release),
            activation: activation.map(str::to_owned),
        }
    }

    #[test]
    fn the_result_serves_every_kept_row_and_raises_on_none() {
        for release in [Release::P, Release::V16, Release::V18, Release::H] {
            let tables = [read("traps"), read("shipped-p"), read("shipped-h")];
            let merged = merge(&tables, &policy(release, Some("Silu"))).unwrap();
            let table = Table::read("merged", merged.csv.as_bytes()).unwrap();
            assert_eq!(table.rows.len(), merged.kept());
            assert!(table.faults.is_empty() && merged.kept() > 300);
            let again = merge(
                &[("merged".to_owned(), merged.csv.clone().into_bytes())],
                &policy(release, Some("Silu")),
            );
            assert_eq!(
                again.unwrap().csv,
                merged.csv,
                "merged again it is the same"
            );
            for (gfx, units) in [("gfx942", 304), ("gfx942", 80), ("gfx950", 256)] {
                let resolver =
                    Resolver::new(&table, Rules::new(release), Site::new(gfx, units)).unwrap();
                let here = table.rows.iter().filter(|row| {
                    let keyed = Rules::new(release).keys_gfx;
                    // Opus kernels run on one card only, whatever the table contains.
                    let opus = row
                        .kernels
                        .iter()
                        .flatten()
                        .any(|name| name.starts_with("opus_"));
                    !opus && row.cu_num == units && (!keyed || row.gfx_or(gfx) == gfx)
                });
                for row in
                    here.filter(|row| row.tag.is_empty() && row.problem().q_type != "per_1x32")
                {
                    let answer = resolver.find(&Request {
                        problem: row.problem(),
                        tokens: row.token,
                        ep: false,
                    });
                    assert_eq!(answer.served, Served::Row(row), "{release} {}", row.line);
                }
            }
        }
    }

    #[test]
    fn the_table_given_first_has_the_key_and_every_row_its_reason() {
        let twice = read("repeats");
        let merged = merge(&[twice.clone(), twice], &policy(Release::P, None)).unwrap();
        // 28 rows, four of them duplicates; none is taken from the second table.
        let kept: Vec<_> = merged
            .decisions
            .iter()
            .filter(|decision| decision.left_out.is_none())
            .collect();
        assert_eq!(kept.len() * 2 + 8, merged.decisions.len());
        let left_out = merged
            .decisions
            .iter()
            .find_map(|one| one.left_out.as_ref());
        insta::assert_snapshot!(left_out.unwrap(), @"line 2 of `repeats` has the key");
        assert!(summary(&merged).ends_with("left out"));
    }

    #[test]
    fn two_activations_of_one_key_are_refused_where_the_release_does_not_tell_them_apart() {
        let tables = [read("traps")];
        insta::assert_snapshot!(merge(&tables, &policy(Release::H, None)).unwrap_err(), @"line 15 of `traps` is of ActivationType.Silu, and line 14 of `traps` has the same key for ActivationType.Gelu: aiter v0.1.20 does not tell them apart");
        assert!(merge(&tables, &policy(Release::P, None)).is_ok());
        let merged = merge(&tables, &policy(Release::H, Some("Silu"))).unwrap();
        assert!(!merged.csv.contains("Gelu"));
        let why = |line: u64| {
            let decision = merged
                .decisions
                .iter()
                .find(|decision| decision.line == line);
            decision.unwrap().left_out.clone().unwrap_or_default()
        };
        assert_eq!(why(6), "no look-up asks for token 24");
        insta::assert_snapshot!(why(14), @"it is of ActivationType.Gelu");
    }
}
