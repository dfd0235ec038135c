//! Rows of aiter's Triton GEMM, each of which serves a range of M called a bucket.

use std::collections::BTreeMap;

use super::fold::Served;
use crate::problem::Shape;
use crate::table::aiter_triton::{Bucket, Configs, FileName, Rules, representatives};
use crate::table::shapes::CountedShape;

/// The files that apply on one architecture, and the M at which each bucket would be raced.
#[derive(Clone, Debug)]
pub(super) struct Buckets {
    rules: Rules,
    files: BTreeMap<(u32, u32), Configs>,
    raced: BTreeMap<(u32, u32, Bucket), u32>,
}

impl Buckets {
    /// Uses those of `files` that are for `gfx`; `demands` are the shapes to serve, with their calls.
    pub(super) fn of(
        files: &[(FileName, Configs)],
        gfx: &str,
        rules: Rules,
        demands: &[CountedShape],
    ) -> Self {
        let of_weight = |(name, configs): &(FileName, Configs)| {
            let ours = name.gfx == gfx && !name.preshuffled;
            Some((name.weight.filter(|_| ours)?, configs.clone()))
        };
        let raced = representatives(demands, rules).into_iter().map(|one| {
            let Shape { m, n, k, .. } = one.shape;
            ((n, k, rules.bucket(m)), m)
        });
        Self {
            rules,
            files: files.iter().filter_map(of_weight).collect(),
            raced: raced.collect(),
        }
    }

    /// The M to race for the bucket of `shape`.
    pub(super) fn row_m(&self, shape: &Shape) -> u32 {
        let key = (shape.n, shape.k, self.rules.bucket(shape.m));
        self.raced.get(&key).copied().unwrap_or(shape.m)
    }

    /// Whether a row raced at `m` serves `shape`.
    pub(super) fn holds(&self, m: u32, shape: &Shape) -> bool {
        self.rules.bucket(m) == self.rules.bucket(shape.m)
    }

    /// The row of the weight's own file. A row of a wider bucket counts as tuned for another size; the file for all
    /// weights is what runs without a row.
    pub(super) fn of_file(&self, shape: &Shape) -> Option<Served> {
        let configs = self.files.get(&(shape.n, shape.k))?;
        let (key, _) = configs.find(self.rules, shape.m)?;
        let bound = key
            .strip_prefix("M_LEQ_")
            .and_then(|bound| bound.parse().ok());
        Some(Served {
            // `any` has no bound, so the row counts as that of M itself.
            m: bound.unwrap_or(shape.m),
            line: 1,
            coarse: bound != self.rules.bucket(shape.m),
        })
    }
}
