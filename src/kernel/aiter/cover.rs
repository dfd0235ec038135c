//! For which M the deployed table has a row that was tuned here, that is, which GEMMs a switch routes to the tuned
//! operation.
//!
//! A GEMM without a row would run the operation's only default kernel, which is slow at most sizes and has hung
//! servers, and a row that came with the tree was not measured against anything here: such GEMMs stay where they are
//! today.

use std::collections::BTreeSet;

use super::facts::KernelPath;
use crate::problem::{Op, Shape};
use crate::table::lookup::Resolver;
use crate::tree::force::Rule;

/// Prefill chunks are well below it, and above it the result does not change.
const LARGEST_M: u32 = 1 << 15;

/// Keys of rows: (M, N, K).
pub(super) type Keys = BTreeSet<(u32, u32, u32)>;

/// The GEMMs with a weight in `weights` that hit a row of `ours` in the table, as ranges of M. `left` has the keys of
/// rows that lost against what serves their shapes today and are not in the table: a coarser row must not serve those
/// shapes.
fn routes(
    resolver: &Resolver<'_>,
    op: Op,
    weights: &BTreeSet<(u32, u32)>,
    (ours, left): (&Keys, &Keys),
) -> Vec<Rule> {
    let mut routes = Vec::new();
    for &(n, k) in weights {
        let mut start: Option<u32> = None;
        let mut close = |from: Option<u32>, to: Option<u32>| {
            if let Some(from) = from {
                routes.push(Rule {
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
            let served = first
                .map(|at| (at, n, k))
                .is_some_and(|key| ours.contains(&key) && !left.contains(&key));
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

/// The input of the switch's decision.
pub(super) struct Covered {
    /// Weights (N, K) of the workload.
    pub(super) weights: BTreeSet<(u32, u32)>,
    /// Rows that were tuned here and are deployed.
    pub(super) ours: Keys,
    /// Rows whose shapes keep what serves them today.
    pub(super) left: Keys,
    /// Weights that run Triton today, if not all do.
    pub(super) stays_triton: Vec<(u64, u64)>,
}

impl Covered {
    /// The keys in `left` that the operation itself serves today, with or without a table.
    pub(super) fn of_the_operation_today(&self, way: &KernelPath) -> Keys {
        let each = self.left.iter().copied();
        each.filter(|&(_, n, k)| !way.on_triton(&self.stays_triton, (n, k)))
            .collect()
    }

    pub(super) fn routes(&self, resolver: &Resolver<'_>, way: &KernelPath, op: Op) -> Vec<Rule> {
        let whole = |&(n, k): &(u32, u32)| Rule {
            n: u64::from(n),
            k: u64::from(k),
            min_m: None,
            max_m: None,
        };
        let (triton, operation): (BTreeSet<_>, BTreeSet<_>) = self
            .weights
            .iter()
            .copied()
            .partition(|&weight| way.on_triton(&self.stays_triton, weight));
        let mut routes = routes(resolver, op, &triton, (&self.ours, &self.left));
        if way.shuffles {
            // A weight is laid out for one kernel when it is loaded, so only whole weights can be routed.
            let routed: BTreeSet<(u64, u64)> =
                routes.iter().map(|route| (route.n, route.k)).collect();
            let switched =
                |weight: &&(u32, u32)| routed.contains(&(u64::from(weight.0), u64::from(weight.1)));
            routes = triton.iter().filter(switched).map(whole).collect();
        }
        // What no rule covers goes to Triton, so weights that the operation serves today need a rule to stay.
        routes.extend(operation.iter().map(whole));
        routes
    }
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
        let ours = rows.iter().copied().filter(|row| row.2 != SHIPPED_K);
        routes(
            &resolver,
            Op::Blockscale,
            &[nk].into(),
            (&ours.collect(), &left.iter().copied().collect()),
        )
        .iter()
        .map(|route| (route.min_m, route.max_m))
        .collect()
    }

    /// K of the rows that came with the tree.
    const SHIPPED_K: u32 = 1536;

    #[test]
    fn a_row_that_came_with_the_tree_takes_nothing_from_triton() {
        assert!(ranges(&[(64, 512, SHIPPED_K)], &[], (512, SHIPPED_K)).is_empty());
    }

    #[test]
    fn ranges_are_those_the_look_up_would_hit() {
        let rows = [(16, 512, 7168), (32, 512, 7168), (64, 512, 7168)];
        assert_eq!(
            ranges(&rows, &[], (512, 7168)),
            // 33 to 48 are padded to 48 on the fine grid and to 64 on the coarse one.
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
    fn weights_that_the_operation_serves_today_stay_with_it_when_others_are_switched() {
        let table = table(&[(16, 512, 7168)]);
        let rules = Rules::new(Op::Blockscale, Revision::P);
        let resolver = Resolver::new(&table, rules, "gfx942", 304).unwrap();
        let way = KernelPath {
            op: Op::Blockscale,
            only_triton: false,
            no_triton: false,
            shuffles: false,
            because: String::new(),
        };
        let covered = Covered {
            weights: [(512, 7168), (1536, 7168)].into(),
            ours: [(16, 512, 7168)].into(),
            left: [(32, 512, 7168), (32, 1536, 7168)].into(),
            stays_triton: vec![(512, 7168)],
        };
        assert_eq!(
            covered.of_the_operation_today(&way),
            [(32, 1536, 7168)].into()
        );
        let seen: Vec<_> = covered
            .routes(&resolver, &way, Op::Blockscale)
            .iter()
            .map(|route| (route.n, route.min_m, route.max_m))
            .collect();
        assert_eq!(seen, [(512, None, Some(16)), (1536, None, None)]);
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
