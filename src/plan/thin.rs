//! The fewest rows of a table that give every M the kernel it has now.
//!
//! Shipped tables are redundant: a row has no effect if a padded sibling has the same kernel anyway. The minimum is
//! exact, not greedy: the coarse row of a group of M is tried present and absent, and under either choice each step
//! of the fine grid is a small problem of its own.

use std::collections::{BTreeMap, BTreeSet};

use crate::table::aiter::{Row, Table, Text};
use crate::table::lookup::{Probe, Rules};

/// What a thinned table keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thinned {
    /// Indices of the rows that are needed, ascending.
    pub needed: Vec<usize>,
    /// Rows of this GPU in the table.
    pub rows: usize,
}

/// A kernel as the look-up returns it.
type Kernel<'a> = (Option<&'a str>, Option<&'a str>, Option<i64>);

/// The rows of one weight: index in the table and kernel, by M.
type Weight<'a> = BTreeMap<u32, (usize, Kernel<'a>)>;

/// Finds the fewest rows of `table` for GPUs `gfx`/`cu_num` such that each M from 1 to `max_m` gets the same kernel
/// as from the whole table, or none where it had none. Of equal keys the first row counts.
pub fn thin(table: &Table, rules: Rules, gfx: &str, cu_num: u32, max_m: u32) -> Thinned {
    let mut weights: BTreeMap<(u32, u32, Option<&Text>), Weight<'_>> = BTreeMap::new();
    let mut rows = 0;
    for (index, row) in table.rows.iter().enumerate() {
        let here = row.cu_num == Some(cu_num) && row.gfx.as_deref().is_none_or(|own| own == gfx);
        if here {
            rows += 1;
            let dtype = row.q_dtype_w.as_ref().filter(|_| rules.keys_weight_dtype);
            let weight = weights.entry((row.n, row.k, dtype)).or_default();
            weight.entry(row.m).or_insert((index, kernel(row)));
        }
    }
    let mut needed: Vec<usize> = weights
        .iter()
        .flat_map(|((n, k, _), weight)| {
            let kept = if rules.pads_m {
                Thinner {
                    weight,
                    n: *n,
                    k: *k,
                }
                .kept(max_m)
            } else {
                weight.range(1..=max_m).map(|(m, _)| *m).collect()
            };
            kept.into_iter().map(|m| weight[&m].0).collect::<Vec<_>>()
        })
        .collect();
    needed.sort_unstable();
    Thinned { needed, rows }
}

fn kernel(row: &Row) -> Kernel<'_> {
    (
        row.libtype.as_deref(),
        row.kernel_name.as_deref(),
        row.split_k,
    )
}

struct Thinner<'a> {
    weight: &'a Weight<'a>,
    n: u32,
    k: u32,
}

impl<'a> Thinner<'a> {
    fn probe(&self, probe: Probe, m: u32) -> u32 {
        probe.m(m, self.n, self.k)
    }

    /// The kernel M has with the whole table.
    fn wanted(&self, m: u32) -> Option<Kernel<'a>> {
        [Probe::Exact, Probe::Fine, Probe::Coarse]
            .into_iter()
            .find_map(|probe| self.weight.get(&self.probe(probe, m)))
            .map(|(_, kernel)| *kernel)
    }

    fn own(&self, m: u32) -> Option<Kernel<'a>> {
        self.weight.get(&m).map(|(_, kernel)| *kernel)
    }

    fn kept(&self, max_m: u32) -> BTreeSet<u32> {
        // Below 17 one fine step spans several coarse groups; there the five shared rows are tried in all
        // combinations. Above that, groups do not share rows.
        let small: Vec<u32> = (1..=max_m.min(16)).collect();
        let mut kept = self.best_of(&[1, 2, 4, 8, 16], &small);
        let mut groups: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for m in 17..=max_m {
            groups
                .entry(self.probe(Probe::Coarse, m))
                .or_default()
                .push(m);
        }
        for (coarse, members) in groups {
            kept.extend(self.best_of(&[coarse], &members));
        }
        kept
    }

    /// The smallest set of rows that serves `members`, over every choice of the rows `shared`.
    fn best_of(&self, shared: &[u32], members: &[u32]) -> BTreeSet<u32> {
        let shared: Vec<u32> = shared
            .iter()
            .copied()
            .filter(|m| self.weight.contains_key(m))
            .collect();
        let mut best: Option<BTreeSet<u32>> = None;
        for choice in 0..1u32 << shared.len() {
            let present: BTreeSet<u32> = shared
                .iter()
                .enumerate()
                .filter(|(bit, _)| choice >> bit & 1 == 1)
                .map(|(_, m)| *m)
                .collect();
            if let Some(rows) = self.with(&present, &shared, members)
                && best.as_ref().is_none_or(|best| rows.len() < best.len())
            {
                best = Some(rows);
            }
        }
        // With every row present nothing changes, so at least one choice is valid.
        best.unwrap_or_else(|| shared.into_iter().collect())
    }

    /// The rows needed for `members` when exactly `present` of `shared` are kept.
    fn with(
        &self,
        present: &BTreeSet<u32>,
        shared: &[u32],
        members: &[u32],
    ) -> Option<BTreeSet<u32>> {
        let mut steps: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for m in members {
            steps
                .entry(self.probe(Probe::Fine, *m))
                .or_default()
                .push(*m);
        }
        let mut rows = present.clone();
        for (fine, members) in steps {
            // Whether the step's own row is kept is already decided if it is a shared one.
            let choices: &[bool] = match (shared.contains(&fine), self.weight.contains_key(&fine)) {
                (false, true) => &[false, true],
                _ => &[false],
            };
            let best = choices
                .iter()
                .filter_map(|with_fine| self.step(fine, *with_fine, present, shared, &members))
                .min_by_key(BTreeSet::len)?;
            rows.extend(best);
        }
        Some(rows)
    }

    fn step(
        &self,
        fine: u32,
        with_fine: bool,
        present: &BTreeSet<u32>,
        shared: &[u32],
        members: &[u32],
    ) -> Option<BTreeSet<u32>> {
        let mut rows = BTreeSet::new();
        if with_fine {
            rows.insert(fine);
        }
        let there = |m: u32| present.contains(&m) || (with_fine && m == fine);
        for m in members {
            let found = [Probe::Exact, Probe::Fine, Probe::Coarse]
                .into_iter()
                .map(|probe| self.probe(probe, *m))
                .find(|m| there(*m))
                .and_then(|m| self.own(m));
            if found == self.wanted(*m) {
                continue;
            }
            // Only its own row can give M its kernel; a shared row is not a choice here.
            let own = self.own(*m).is_some() && !shared.contains(m) && *m != fine;
            if !own {
                return None;
            }
            rows.insert(*m);
        }
        Some(rows)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fmt::Write as _;
    use std::io::Read as _;

    use super::*;
    use crate::problem::{Op, Shape};
    use crate::table::lookup::{Resolution, Resolver};
    use crate::table::revision::Revision;

    fn shipped() -> Table {
        let packed = include_bytes!(
            "../../testdata/aiter-tables/a8w8_blockscale_tuned_gemm_gfx942_304.csv.gz"
        );
        let mut text = Vec::new();
        flate2::read::GzDecoder::new(&packed[..])
            .read_to_end(&mut text)
            .unwrap();
        Table::read("a8w8_blockscale_tuned_gemm.csv", &text, None).unwrap()
    }

    fn rules() -> Rules {
        Rules::new(Op::Blockscale, Revision::H)
    }

    fn kept(table: &Table, thinned: &Thinned) -> Table {
        Table {
            rows: thinned
                .needed
                .iter()
                .map(|index| table.rows[*index].clone())
                .collect(),
            ..table.clone()
        }
    }

    /// Every M of every weight, looked up in both tables.
    fn same_kernels(whole: &Table, thinned: &Table, max_m: u32) -> usize {
        let resolver = |table| Resolver::new(table, rules(), "gfx942", 304).unwrap();
        let (before, after) = (resolver(whole), resolver(thinned));
        let weights: BTreeSet<(u32, u32)> = whole.rows.iter().map(|row| (row.n, row.k)).collect();
        let mut asked = 0;
        for (n, k) in weights {
            for m in 1..=max_m {
                let shape = Shape {
                    op: Op::Blockscale,
                    m,
                    n,
                    k,
                    dtype: String::new(),
                };
                let kernel_of = |found: Resolution<'_>| {
                    found
                        .row()
                        .map(|row| (row.libtype.clone(), row.kernel_name.clone(), row.split_k))
                };
                assert_eq!(
                    kernel_of(before.find(&shape)),
                    kernel_of(after.find(&shape)),
                    "{shape}"
                );
                asked += 1;
            }
        }
        asked
    }

    #[test]
    fn a_seventeenth_of_the_rows_shipped_for_mi300x_serves_every_m_with_the_same_kernels() {
        let table = shipped();
        let thinned = thin(&table, rules(), "gfx942", 304, 16384);
        assert_eq!(thinned.rows, 23_414);
        assert_eq!(thinned.needed.len(), NEEDED);
        assert_eq!(
            same_kernels(&table, &kept(&table, &thinned), 16384),
            51 * 16384
        );
    }

    /// Rows of the 23,414 that are needed for M from 1 to 16384.
    const NEEDED: usize = 1350;

    #[test]
    fn no_smaller_table_does_for_small_ones_tried_exhaustively() {
        // Kernels by M, chosen so that exact, fine and coarse rows compete.
        let cases: [&[(u32, &str)]; 5] = [
            &[(1, "a"), (2, "a"), (4, "b"), (8, "a"), (16, "a"), (32, "b")],
            &[(3, "a"), (16, "b"), (48, "a"), (64, "a"), (50, "b")],
            &[(33, "a"), (40, "a"), (48, "b"), (64, "a"), (60, "c")],
            &[
                (16, "a"),
                (32, "a"),
                (48, "a"),
                (64, "a"),
                (128, "a"),
                (96, "b"),
            ],
            &[
                (5, "a"),
                (6, "a"),
                (7, "b"),
                (8, "a"),
                (1, "c"),
                (2, "c"),
                (16, "c"),
            ],
        ];
        for case in cases {
            let mut text = String::from("gfx,cu_num,M,N,K,libtype,splitK,kernelName\n");
            for (m, kernel) in case {
                let _ = writeln!(text, "gfx942,304,{m},512,7168,ck,0,{kernel}");
            }
            let table = Table::read("t.csv", text.as_bytes(), Some(Op::Blockscale)).unwrap();
            let thinned = thin(&table, rules(), "gfx942", 304, 256);
            same_kernels(&table, &kept(&table, &thinned), 256);
            let smallest = (0..1u32 << case.len())
                .filter(|choice| {
                    let subset: HashMap<u32, &str> = case
                        .iter()
                        .enumerate()
                        .filter(|(bit, _)| choice >> bit & 1 == 1)
                        .map(|(_, row)| *row)
                        .collect();
                    let whole: HashMap<u32, &str> = case.iter().copied().collect();
                    let find = |rows: &HashMap<u32, &'static str>, m: u32| {
                        [Probe::Exact, Probe::Fine, Probe::Coarse]
                            .into_iter()
                            .find_map(|probe| rows.get(&probe.m(m, 512, 7168)).copied())
                    };
                    let subset: HashMap<u32, &'static str> = subset
                        .into_iter()
                        .map(|(m, kernel)| (m, leak(kernel)))
                        .collect();
                    let whole: HashMap<u32, &'static str> = whole
                        .into_iter()
                        .map(|(m, kernel)| (m, leak(kernel)))
                        .collect();
                    (1..=256).all(|m| find(&subset, m) == find(&whole, m))
                })
                .map(u32::count_ones)
                .min();
            assert_eq!(Some(thinned.needed.len() as u32), smallest, "{case:?}");
        }
    }

    fn leak(kernel: &str) -> &'static str {
        match kernel {
            "a" => "a",
            "b" => "b",
            _ => "c",
        }
    }
}
