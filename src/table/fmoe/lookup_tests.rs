use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;
use crate::problem::op::fused_moe_aiter::{Problem, member};

/// Names the folder with the vectors of `tests/aiter/fmoe/make.py`, which generates more than are checked in.
const ELSEWHERE: &str = "GEMMTUNE_FMOE_CASES";

fn path(file: &str) -> PathBuf {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/lookup").into();
    let elsewhere = std::env::var_os(ELSEWHERE)
        .map(PathBuf::from)
        .filter(|folder| folder.join(file).exists());
    elsewhere.unwrap_or(folder).join(file)
}

fn rows(file: &str) -> Vec<BTreeMap<String, String>> {
    let mut reader = csv::Reader::from_path(path(file)).unwrap();
    reader.deserialize().map(Result::unwrap).collect()
}

fn by_number(file: &str, column: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    rows(file)
        .into_iter()
        .map(|row| (row[column].clone(), row))
        .collect()
}

fn problem(row: &BTreeMap<String, String>, topk: u32, activation: &str) -> Problem {
    let number = |column: &str| row[column].parse().unwrap();
    Problem {
        model_dim: number("model_dim"),
        inter_dim: number("inter_dim"),
        expert: number("expert"),
        topk,
        activation: activation.to_owned(),
        dtype: row["dtype"].clone(),
        q_dtype_a: row["q_dtype_a"].clone(),
        q_dtype_w: row["q_dtype_w"].clone(),
        q_type: member(&row["q_type"]).to_owned(),
        use_g1u1: row["use_g1u1"] == "1",
        doweight_stage1: row["doweight_stage1"] == "1",
    }
}

/// A case's answer as the vectors write it: letter, row, stage, block_m, ksplit.
fn answer(answer: &Answer<'_>, rules: Rules) -> (char, String, String, String) {
    let default = |default: Default| {
        (
            if default.one_stage { "1" } else { "2" }.to_owned(),
            default.block_m.to_string() + "/" + &default.ksplit.to_string(),
        )
    };
    match &answer.served {
        Served::Row(row) => {
            let xbf16 = rules.reads_xbf16
                && match row.xbf16.as_deref() {
                    Some(cell) => cell == "1",
                    None => kernel(row, 0).is_some_and(|name| name.contains("blockscaleBf16")),
                };
            let stage = match (row.run_1stage, xbf16) {
                (true, true) => "1x",
                (true, false) => "1",
                _ => "2",
            };
            ('r', row.line.to_string(), stage.to_owned(), String::new())
        }
        Served::Default(choice) => {
            let (stage, sizes) = default(*choice);
            ('d', String::new(), stage, sizes)
        }
        Served::Bypassed(_, choice) => {
            let (stage, sizes) = default(*choice);
            ('b', String::new(), stage, sizes)
        }
        Served::Raises(what) => {
            let kind = what.split(':').next().unwrap_or("").to_owned();
            ('!', kind, String::new(), String::new())
        }
    }
}

#[test]
fn every_answer_is_the_one_aiter_gave() {
    let groups = by_number("aiter-fmoe-groups.csv", "group");
    let problems = by_number("aiter-fmoe-problems.csv", "problem");
    let mut tables: BTreeMap<String, Table> = BTreeMap::new();
    for group in groups.values() {
        tables.entry(group["table"].clone()).or_insert_with(|| {
            let file = format!("aiter-fmoe-{}.csv", group["table"]);
            Table::read(&file, &std::fs::read(path(&file)).unwrap()).unwrap()
        });
    }
    let mut resolvers = BTreeMap::new();
    let (mut cases, mut hits, mut apart) = (0, 0, Vec::new());
    for case in rows("aiter-fmoe-cases.csv") {
        let group = &groups[&case["group"]];
        let release: Release = match group["revision"].as_str() {
            "HEAD" => Release::H,
            tag => tag.parse().unwrap(),
        };
        let shuffled = case["shuffled"] == "1";
        let resolver = resolvers
            .entry((case["group"].clone(), shuffled))
            .or_insert_with(|| {
                let site = Site {
                    has_flydsl: group["flydsl"] == "1",
                    is_shuffled: shuffled,
                    bypasses: group["bypass"] == "1" && release > Release::V7,
                    ..Site::new(&group["gfx"], group["cu"].parse().unwrap())
                };
                Resolver::new(&tables[&group["table"]], Rules::new(release), site)
            });
        cases += 1;
        let expected = (
            case["answer"].chars().next().unwrap(),
            case["row"].clone(),
            case["stage"].clone(),
            match (case["block_m"].as_str(), case["ksplit"].as_str()) {
                ("", "") => String::new(),
                (block, split) => format!("{block}/{split}"),
            },
        );
        let given = match resolver {
            Err(LookupError::Repeats { .. }) => {
                ('!', "ValueError".to_owned(), String::new(), String::new())
            }
            Err(error) => panic!("{error}"),
            Ok(resolver) => {
                let request = Request {
                    problem: problem(
                        &problems[&case["problem"]],
                        case["topk"].parse().unwrap(),
                        &case["act"],
                    ),
                    tokens: case["M"].parse().unwrap(),
                    ep: case["ep"] == "1",
                };
                answer(&resolver.find(&request), resolver.rules())
            }
        };
        hits += usize::from(expected.0 == 'r');
        let same = match expected.0 {
            // A row whose first kernel has no number: the line does not tell which row it is.
            'u' => given.0 == 'r' && given.2 == expected.2,
            // The line gives no sizes of a row, and v0.1.9 none of a choice that another path then replaces.
            'd' | 'b' if expected.3.is_empty() => (given.0, &given.2) == (expected.0, &expected.2),
            'r' => (given.0, &given.1, &given.2) == (expected.0, &expected.1, &expected.2),
            _ => given == expected,
        };
        if !same {
            apart.push(format!(
                "{group:?} {case:?}\n  {:?}\n  {given:?}, not {expected:?}",
                problems[&case["problem"]]
            ));
        }
    }
    let shown = apart
        .iter()
        .take(12)
        .cloned()
        .collect::<Vec<_>>()
        .join("\n");
    assert!(
        apart.is_empty(),
        "{} of {cases} differ:\n{shown}",
        apart.len()
    );
    assert!(cases >= 5000 && hits >= 1000, "{cases} cases, {hits} hits");
}
