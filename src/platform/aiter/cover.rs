//! For which M the deployed table has a row: the GEMMs that a switch sends to the tuned operation.
//!
//! A GEMM without a row would run the operation's one default kernel, which is slow at most sizes and has hung servers;
//! it stays where it is today instead.

use std::collections::BTreeSet;

use crate::shape::{Op, Shape};
use crate::table::lookup::Resolver;
use crate::tree::force::Route;

/// Prefill chunks end well below it; what holds here holds above it.
const LARGEST_M: u32 = 1 << 15;

/// The GEMMs with a weight in `weights` that hit a row of the table, as ranges of M. `left` has the (M, N, K) of rows that
/// lost against what serves their shapes today and are not in the table: a coarser row must not take their place.
pub(super) fn routes(
    resolver: &Resolver<'_>,
    op: Op,
    weights: &BTreeSet<(u32, u32)>,
    left: &BTreeSet<(u32, u32, u32)>,
) -> Vec<Route> {
    let mut routes = Vec::new();
    for &(n, k) in weights {
        let mut start: Option<u32> = None;
        let mut close = |from: Option<u32>, to: Option<u32>| {
            if let Some(from) = from {
                routes.push(Route {
                    n: u64::from(n),
                    k: u64::from(k),
                    min_m: (from > 1).then_some(u64::from(from)),
                    max_m: to.map(u64::from),
                });
            }
        };
        for m in 1..=LARGEST_M {
            let shape = Shape {
                op,
                m,
                n,
                k,
                dtype: String::new(),
            };
            let found = resolver.find(&shape);
            let row_m = found.row().map(|row| row.m);
            let first = resolver
                .rules()
                .probes()
                .iter()
                .map(|probe| probe.m(m, n, k))
                .find(|at| row_m == Some(*at) || left.contains(&(*at, n, k)));
            let served = first.is_some_and(|at| !left.contains(&(at, n, k)));
            match (served, start) {
                (true, None) => start = Some(m),
                (false, Some(_)) => {
                    close(start.take(), Some(m - 1));
                }
                _ => {}
            }
        }
        close(start, None);
    }
    routes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::aiter::{Row, Table};
    use crate::table::lookup::Rules;
    use crate::table::revision::Revision;

    fn table(rows: &[(u32, u32, u32)]) -> Table {
        let mut table = Table::new("t", Op::Blockscale, Revision::P);
        table.rows = rows
            .iter()
            .map(|&(m, n, k)| Row {
                cu_num: Some(304),
                m,
                n,
                k,
                ..Row::default()
            })
            .collect();
        table
    }

    fn ranges(
        rows: &[(u32, u32, u32)],
        left: &[(u32, u32, u32)],
        nk: (u32, u32),
    ) -> Vec<(Option<u64>, Option<u64>)> {
        let table = table(rows);
        let rules = Rules::new(Op::Blockscale, Revision::P);
        let resolver = Resolver::new(&table, rules, "gfx942", 304).unwrap();
        routes(
            &resolver,
            Op::Blockscale,
            &[nk].into(),
            &left.iter().copied().collect(),
        )
        .iter()
        .map(|route| (route.min_m, route.max_m))
        .collect()
    }

    #[test]
    fn ranges_are_those_the_look_up_would_hit() {
        let rows = [(16, 512, 7168), (32, 512, 7168), (64, 512, 7168)];
        assert_eq!(
            ranges(&rows, &[], (512, 7168)),
            // 33 to 48 pads to 48 on the fine grid and to 64 on the coarse one.
            [(None, Some(64))]
        );
        assert_eq!(
            ranges(&[(16, 512, 7168), (256, 512, 7168)], &[], (512, 7168)),
            [(None, Some(16)), (Some(129), Some(256))]
        );
        assert!(ranges(&rows, &[], (512, 1024)).is_empty());
    }

    #[test]
    fn a_row_for_everything_large_leaves_the_range_open() {
        let rows = [(8192, 7168, 2048)];
        assert_eq!(ranges(&rows, &[], (7168, 2048)), [(Some(4097), None)]);
    }

    #[test]
    fn rows_that_lost_are_not_routed_to() {
        let rows = [(16, 512, 7168), (32, 512, 7168), (64, 512, 7168)];
        assert_eq!(
            ranges(&rows, &[(48, 512, 7168)], (512, 7168)),
            [(None, Some(32)), (Some(49), Some(64))],
            "33 to 48 would hit the row of 64"
        );
    }
}
