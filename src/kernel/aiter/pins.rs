//! Rows that keep a shape on the kernel it has today, where the operation serves it already.
//!
//! Rows are looked up by padded M, finer before coarser. A shape whose tuned row lost has none in the new table, and
//! could then be served by a coarser row that won elsewhere. Instead it gets the row that serves it today, under its
//! own M.

use super::cover::Keys;
use crate::problem::{Op, Shape};
use crate::table::aiter::Row;
use crate::table::lookup::Resolver;

/// Rows to add to the table of `after` so that each of `left` finds what it finds in that of `before`. If it finds
/// nothing there, so that the operation's default kernel serves it, no row can express that; then its own row from
/// `lost` is added, since the tuner had the default kernel among its candidates.
pub(super) fn pins(
    left: &Keys,
    op: Op,
    before: &Resolver<'_>,
    after: &Resolver<'_>,
    lost: &[Row],
) -> Vec<Row> {
    let kernel = |row: &Row| {
        (
            row.libtype.clone(),
            row.kernel_id,
            row.kernel_name.clone(),
            row.split_k,
        )
    };
    let pin = |&(m, n, k): &(u32, u32, u32)| {
        let shape = Shape {
            op,
            m,
            n,
            k,
            dtype: String::new(),
        };
        let now = after.find(&shape).row()?;
        match before.find(&shape).row() {
            Some(today) if kernel(today) == kernel(now) => None,
            Some(today) => Some(Row { m, ..today.clone() }),
            None => lost
                .iter()
                .find(|row| (row.m, row.n, row.k) == (m, n, k))
                .cloned(),
        }
    };
    left.iter().filter_map(pin).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::aiter::Table;
    use crate::table::lookup::Rules;
    use crate::table::revision::Revision;

    fn row(m: u32, name: &str) -> Row {
        Row {
            cu_num: Some(304),
            m,
            n: 512,
            k: 7168,
            kernel_name: Some(name.into()),
            ..Row::default()
        }
    }

    fn table(rows: &[Row]) -> Table {
        let mut table = Table::new("t", Op::Blockscale, Revision::P);
        table.rows = rows.to_vec();
        table
    }

    fn found(table: &Table, m: u32) -> Option<String> {
        let shape = row(m, "").shape(Op::Blockscale);
        let row = resolver(table).find(&shape).row()?.kernel_name.clone();
        row.map(|name| name.to_string())
    }

    fn resolver(table: &Table) -> Resolver<'_> {
        Resolver::new(
            table,
            Rules::new(Op::Blockscale, Revision::P),
            "gfx942",
            304,
        )
        .unwrap()
    }

    #[test]
    fn a_shape_that_lost_is_served_by_todays_row_and_not_by_a_coarser_one_that_won() {
        let before = table(&[row(64, "shipped")]);
        let mut after = table(&[row(64, "tuned")]);
        assert_eq!(found(&after, 40).as_deref(), Some("tuned"), "by padding");
        let left: Keys = [(48, 512, 7168)].into();
        let kept = pins(
            &left,
            Op::Blockscale,
            &resolver(&before),
            &resolver(&after),
            &[row(48, "lost")],
        );
        after.rows.extend(kept);
        for m in [33, 40, 48] {
            assert_eq!(found(&after, m).as_deref(), Some("shipped"), "M = {m}");
        }
        assert_eq!(found(&after, 64).as_deref(), Some("tuned"));
    }

    #[test]
    fn a_shape_that_the_default_kernel_serves_keeps_its_own_row_before_a_coarser_one() {
        let before = table(&[]);
        let after = table(&[row(64, "tuned")]);
        let left: Keys = [(48, 512, 7168), (128, 512, 7168)].into();
        let kept = pins(
            &left,
            Op::Blockscale,
            &resolver(&before),
            &resolver(&after),
            &[row(48, "own"), row(128, "own too")],
        );
        let kept: Vec<_> = kept
            .iter()
            .map(|row| (row.m, row.kernel_name.as_deref()))
            .collect();
        assert_eq!(
            kept,
            [(48, Some("own"))],
            "nothing takes 128 from its default"
        );
    }
}
