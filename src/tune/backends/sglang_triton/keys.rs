//! Which keys a table needs so that the runtime's nearest-M rule gives every M the intended row.
//!
//! The runtime takes the key nearest to M by difference, the first in file order when two are equally near. A row
//! raced at M = 32 must not end up serving M = 2,000 only because the next key is 4,096. So a raced row serves M up
//! to twice its own and down to three quarters of it; in the gap to the next raced row, whatever serves those M today
//! continues to do so: keys of the existing table, and guard keys with the configuration in use at the ends of the
//! gap.

use crate::table::sglang_json;
use crate::tune::protocol::Candidate;

/// A guard above a raced M is at this multiple of it, so that the midpoint is twice the raced M.
const GUARD_ABOVE: u32 = 3;

/// A guard below a raced M is at this fraction of it, so that the midpoint is three quarters of it.
const GUARD_BELOW: u32 = 2;

/// Rows by M, as in a table.
pub type Rows = Vec<(u32, Candidate)>;

/// The row that the runtime uses for `m`: the nearest key, the first of two equally near.
pub fn nearest(rows: &Rows, m: u32) -> Option<&Candidate> {
    rows.iter()
        .min_by_key(|(key, _)| key.abs_diff(m))
        .map(|(_, candidate)| candidate)
}

/// The rows of a table file that the runtime would load; empty if it would not load it.
pub fn rows_of(table: &sglang_json::Config) -> Rows {
    let Some(keys) = table.by_m() else {
        return Rows::new();
    };
    keys.into_iter()
        .filter_map(|(m, params)| {
            let sglang_json::Params::Object(pairs) = params else {
                return None;
            };
            let candidate: Candidate = pairs.iter().cloned().collect();
            Some((u32::try_from(m).ok()?, candidate))
        })
        .collect()
}

/// Merges `raced` rows into those in `there`; `fallback` serves an M for which there is nothing.
///
/// Keys are ascending, so of two equally near keys the smaller M's row wins.
pub fn placed(raced: &Rows, there: &Rows, fallback: &Candidate) -> Rows {
    let mut raced = raced.clone();
    raced.sort_by_key(|(m, _)| *m);
    raced.dedup_by_key(|(m, _)| *m);
    let today = |m: u32| {
        nearest(there, m)
            .cloned()
            .unwrap_or_else(|| fallback.clone())
    };
    let mut rows = Rows::new();
    // Fills the gap between two raced M: `low` is 0 before the first, `high` is `None` after the last.
    let gap = |low: u32, high: Option<u32>, rows: &mut Rows| {
        let from = low.saturating_mul(GUARD_ABOVE);
        let to = high.map_or(u32::MAX, |high| high / GUARD_BELOW);
        if from > to || to == 0 {
            return;
        }
        let inside = |m: &u32| from < *m && *m < to;
        let mut keys: Vec<u32> = there.iter().map(|(m, _)| *m).filter(inside).collect();
        keys.extend((low > 0).then_some(from));
        keys.extend(high.is_some().then_some(to));
        keys.sort_unstable();
        keys.dedup();
        rows.extend(keys.into_iter().map(|m| (m, today(m))));
    };
    let mut low = 0;
    for (m, candidate) in &raced {
        gap(low, Some(*m), &mut rows);
        rows.push((*m, candidate.clone()));
        low = *m;
    }
    gap(low, None, &mut rows);
    rows
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::space::Config;
    use super::*;

    fn row(m: u32, id: u32) -> (u32, Candidate) {
        (m, json!({ "id": id }))
    }

    fn id(rows: &Rows, m: u32) -> Option<u64> {
        nearest(rows, m)?["id"].as_u64()
    }

    #[test]
    fn of_two_equally_near_keys_the_first_in_file_order_wins() {
        let rows = vec![row(8, 1), row(4, 2)];
        assert_eq!(id(&rows, 6), Some(1));
    }

    #[test]
    fn a_decode_row_does_not_serve_prefill() {
        let raced = vec![row(1, 1), row(32, 2)];
        let default = Config::default_for(128, 128).candidate();
        let rows = placed(&raced, &Rows::new(), &default);
        assert_eq!(id(&rows, 1), Some(1));
        assert_eq!(id(&rows, 32), Some(2));
        assert_eq!(id(&rows, 64), Some(2));
        assert_eq!(nearest(&rows, 65), Some(&default));
        assert_eq!(nearest(&rows, 4096), Some(&default));
    }

    #[test]
    fn what_serves_other_m_today_goes_on_serving_them() {
        let there: Rows = [1, 16, 64, 256, 1024, 4096].map(|m| row(m, 100 + m)).into();
        let raced = vec![row(16, 1), row(32, 2)];
        let rows = placed(&raced, &there, &Config::default_for(128, 128).candidate());
        for m in [1, 4, 100, 256, 300, 1024, 3000, 4096, 100_000] {
            assert_eq!(id(&rows, m), id(&there, m), "M = {m}");
        }
        assert_eq!(id(&rows, 16), Some(1));
        assert_eq!(id(&rows, 40), Some(2));
    }

    proptest! {
        #[test]
        fn every_raced_m_gets_its_own_row_and_far_ones_what_serves_them_today(
            raced in prop::collection::btree_set(1u32..9000, 1..12),
            there in prop::collection::btree_set(1u32..9000, 0..12),
        ) {
            let raced: Rows = raced.into_iter().map(|m| row(m, m)).collect();
            let there: Rows = there.into_iter().map(|m| row(m, 100_000 + m)).collect();
            let fallback = Config::default_for(128, 128).candidate();
            let rows = placed(&raced, &there, &fallback);
            let keys: Vec<u32> = rows.iter().map(|(m, _)| *m).collect();
            prop_assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
            for (m, candidate) in &raced {
                prop_assert_eq!(nearest(&rows, *m), Some(candidate));
            }
            // At three times the last raced M none of this run's rows applies.
            let last = raced.last().map_or(1, |(m, _)| *m);
            for m in [3 * last, 5 * last, 50_000] {
                let serves = nearest(&rows, m).unwrap();
                prop_assert!(raced.iter().all(|(_, candidate)| candidate != serves));
            }
        }
    }
}
