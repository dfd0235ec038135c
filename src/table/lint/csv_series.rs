//! Rules about the rows of one weight: how their times compare over M.

use std::collections::BTreeMap;

use super::super::aiter::{Row, Table};
use super::super::lookup::Probe;
use super::{Sink, rules};

/// A row slower than the next one by more than this factor is not explained by measurement noise; shipped neighbours
/// with the same kernel differ by less.
const SHADOW_SLACK: f64 = 1.02;
/// Factor by which a time may fall from one M to the next, because a better kernel may start there.
const MONOTONE_SLACK: f64 = 1.10;

/// The rows that compete in look-ups for one weight on one device, by M.
type Series<'a> = BTreeMap<u32, &'a Row>;

pub(super) fn check(table: &Table, sink: &mut Sink<'_>) {
    let mut all: BTreeMap<_, Series<'_>> = BTreeMap::new();
    for row in &table.rows {
        // An invalid time is reported by another rule and would only distort the comparison.
        if row.us.is_some_and(|us| us.is_finite() && us > 0.0) {
            let key = (
                row.n,
                row.k,
                row.gfx.as_deref(),
                row.cu_num,
                row.q_dtype_w.as_deref(),
            );
            all.entry(key).or_default().entry(row.m).or_insert(row);
        }
    }
    for series in all.values() {
        shadows(series, sink);
        monotone(series, sink);
    }
}

fn shadows(series: &Series<'_>, sink: &mut Sink<'_>) {
    for (m, row) in series {
        let Some(us) = row.us else { continue };
        let behind = [Probe::Fine, Probe::Coarse]
            .into_iter()
            .map(|probe| probe.m(*m, row.n, row.k))
            .filter(|padded| padded > m)
            .find_map(|padded| series.get(&padded))
            .filter(|other| {
                other.us.is_some_and(|other| us > other * SHADOW_SLACK) && !same_kernel(row, other)
            });
        if let Some(other) = behind {
            sink.add(
                &rules::SHADOWS_FASTER,
                Some(row.line),
                format!(
                    "M={m} takes {us} us here; without this row the look-up would take the one of M={} on line {}, {} us",
                    other.m,
                    other.line,
                    other.us.unwrap_or(f64::NAN),
                ),
            );
        }
    }
}

fn monotone(series: &Series<'_>, sink: &mut Sink<'_>) {
    let rows: Vec<&&Row> = series.values().collect();
    for pair in rows.windows(2) {
        let (small, large) = (pair[0], pair[1]);
        if let (Some(less), Some(more)) = (small.us, large.us)
            && less > more * MONOTONE_SLACK
        {
            sink.add(
                &rules::TIME_NOT_MONOTONE,
                Some(small.line),
                format!(
                    "M={} takes {less} us, M={} on line {} only {more}",
                    small.m, large.m, large.line
                ),
            );
        }
    }
}

fn same_kernel(a: &Row, b: &Row) -> bool {
    a.kernel_name == b.kernel_name && a.libtype == b.libtype && a.split_k == b.split_k
}
