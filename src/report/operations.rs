//! The operations of dense GEMMs, where a run tuned several: the value and the outcome of each.

use maud::{Markup, html};
use serde::{Deserialize, Serialize};

use super::model::Report;
use super::number::{percent, whole};
use super::section::{Number, Wide, table};
use crate::problem::Op;

/// One of several operations of dense GEMMs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DenseOperation {
    pub op: Op,
    /// What served it before, described in words.
    pub today: String,
    /// Shapes of it that were captured.
    pub captured: usize,
    /// Its share of the estimated time of all dense GEMMs that were planned, 0 to 1.
    pub share: f64,
    pub planned: usize,
    /// Shapes that were tuned and are faster than what serves today; absent before tuning.
    pub tuned: Option<usize>,
    pub faster: Option<usize>,
    /// Rows in its deployed table; absent where it has none.
    pub deployed: Option<usize>,
    /// Shapes that the tuned server looked up, and those for which it used the deployed row; absent before.
    pub looked_up: Option<usize>,
    pub hits: Option<usize>,
}

pub(super) const HEAD: [&str; 6] = [
    "operation",
    "share of GEMM time",
    "rows planned",
    "faster than before",
    "deployed",
    "took their row",
];

/// The section of the page; absent where there is one operation only.
pub(super) fn section(report: &Report) -> Option<Markup> {
    let [first, ..] = HEAD;
    let columns: Vec<_> = HEAD
        .into_iter()
        .map(|name| (name, if name == first { Wide } else { Number }))
        .collect();
    let rows: Vec<Vec<String>> = lines(report).into_iter().map(Vec::from).collect();
    (!rows.is_empty()).then(|| {
        html! {
            p { "Each has a table, a tuner and kernels of its own. Shares are of the time that the plan estimates for all dense GEMMs." }
            @for one in &report.operations { p { (one.op) ": before, " (one.today) "." } }
            (table("Operations tuned in this run", &columns, &rows))
        }
    })
}

/// A row for each operation.
pub(super) fn lines(report: &Report) -> Vec<[String; 6]> {
    report.operations.iter().map(line).collect()
}

fn line(one: &DenseOperation) -> [String; 6] {
    let of = |part: Option<usize>, all: Option<usize>| match (part, all) {
        (Some(part), Some(all)) => format!("{} of {}", whole(part), whole(all)),
        _ => "–".to_owned(),
    };
    [
        one.op.to_string(),
        percent(one.share),
        whole(one.planned),
        of(one.faster, one.tuned),
        one.deployed.map_or_else(|| "–".to_owned(), whole),
        of(one.hits, one.looked_up),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_take_place_has_no_number() {
        let one = DenseOperation {
            op: Op::Blockscale,
            today: "Triton".to_owned(),
            captured: 9,
            share: 0.25,
            planned: 4,
            tuned: Some(4),
            faster: Some(0),
            deployed: None,
            looked_up: None,
            hits: None,
        };
        let cells = ["gemm_a8w8_blockscale", "25.0 %", "4", "0 of 4", "–", "–"];
        assert_eq!(line(&one), cells.map(str::to_owned));
        assert!(section(&Report::default()).is_none());
    }
}
