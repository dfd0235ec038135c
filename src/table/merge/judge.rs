//! Which rows may win, and what cannot be decided: the rules of `lint`, applied to one row.

use super::super::aiter::{Table, Text};
use super::super::lint::{self, rules};
use super::super::revision::{self, Revision};
use super::{Candidate, Key, MergeError, Policy};
use crate::problem::Op;

/// Rules despite which a row is kept if there is no better one: it runs, but is not what it claims to be.
const DOUBTS: [&rules::Rule; 5] = [
    &rules::KERNEL_CONTRADICTS_ID,
    &rules::TFLOPS_CONTRADICTS_US,
    &rules::BW_CONTRADICTS_US,
    &rules::LIBTYPE_UNSET,
    &rules::ROW_UNREACHABLE,
];

/// The columns of the result that no revision has and that the policy does not mention.
pub(super) fn unknown(op: Op, columns: &[Text], policy: &Policy) -> Vec<Text> {
    let known = revision::tuned_columns(op, Revision::N);
    columns
        .iter()
        .filter(|column| {
            let column = &***column;
            !known.contains(&column)
                && !revision::NOTE_COLUMNS.contains(&column)
                && policy.keys.iter().all(|key| key != column)
        })
        .cloned()
        .collect()
}

/// Rows with one key that differ in an unknown column may have two different keys, so neither may replace the other.
pub(super) fn refuse_unknown(
    key: &Key,
    candidates: &[Candidate<'_>],
    unknown: &[Text],
) -> Result<(), MergeError> {
    let Some((first, others)) = candidates.split_first() else {
        return Ok(());
    };
    for other in others {
        let differs = unknown
            .iter()
            .find(|column| first.row.extra(column) != other.row.extra(column));
        if let Some(column) = differs {
            return Err(MergeError::UnknownColumn {
                table: first.table.to_owned(),
                line: first.row.line,
                other: other.table.to_owned(),
                other_line: other.row.line,
                key: key.to_string(),
                column: column.to_string(),
            });
        }
    }
    Ok(())
}

/// Applies the rules of `lint` to a row: what makes it unusable, and what makes it doubtful.
pub(super) fn judge(candidate: &mut Candidate<'_>, table: &Table, policy: &Policy) {
    let row = &candidate.row;
    // The merge has its own limit.
    candidate.invalid = match row.err_ratio {
        Some(ratio) if !(0.0..=policy.err_ratio_limit).contains(&ratio) => Some(format!(
            "errRatio {ratio} is not within {}",
            policy.err_ratio_limit
        )),
        None if row.extra("errRatio").is_some() => Some("errRatio is no number".to_owned()),
        _ => None,
    };
    let (doubts, faults): (Vec<_>, Vec<_>) = lint::judge(table, row, policy.revision)
        .into_iter()
        .partition(|finding| DOUBTS.iter().any(|rule| rule.id == finding.rule));
    if candidate.invalid.is_none() {
        candidate.invalid = faults.into_iter().next().map(|finding| finding.message);
    }
    candidate.doubt = doubts.into_iter().next().map(|finding| finding.message);
}
