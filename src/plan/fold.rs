//! Which rows serve which M: folding, verified with the runtime's own look-up.

use std::collections::BTreeSet;

use super::buckets::Buckets;
use crate::problem::dtype;
use crate::problem::{Op, Shape};
use crate::table::aiter::{Row, Table, Text};
use crate::table::lookup::{self, LookupError, Probe, Resolution, Resolver, Rules};
use crate::table::revision::{self, Revision};

/// How many M share a row.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Fold {
    /// Only one: a row for each M.
    Exact,
    /// The fine grid: steps of 16, 32, 64 and 128.
    Fine,
    /// The coarse grid: powers of two.
    Coarse,
    /// All between two bounds of aiter's Triton GEMM; the row is raced at the M with most calls.
    Bucket,
}

/// The GPU for which rows are looked up, and the rules of the look-up.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Architecture, as the table's `gfx` column has it.
    pub gfx: String,
    /// Compute units, as the table's `cu_num` column has it.
    pub cu_num: u32,
    /// Rules of the operation.
    pub rules: Rules,
    /// How many M share a row.
    pub fold: Fold,
}

impl Target {
    /// A target with the rules of `op` at `revision`.
    pub fn new(op: Op, revision: Revision, gfx: &str, cu_num: u32, fold: Fold) -> Self {
        Self {
            gfx: gfx.to_owned(),
            cu_num,
            rules: Rules::new(op, revision),
            fold,
        }
    }

    /// The M of the row that should serve `shape`, if no row exists yet.
    pub fn row_m(&self, shape: &Shape) -> u32 {
        let Shape { op, m, n, k, .. } = shape;
        match (op, self.fold) {
            // At which M of a bucket a row is raced depends on the others ([`Serving::row_m`]).
            (_, Fold::Exact | Fold::Bucket) => *m,
            // The module compiled for this operation rounds by its own rules, and chooses the kernel.
            _ if module_looks_up(*op) => lookup::padded_m_of_a8w8_module(*m),
            _ if !self.rules.pads_m => *m,
            (_, Fold::Fine) => Probe::Fine.m(*m, *n, *k),
            (_, Fold::Coarse) => Probe::Coarse.m(*m, *n, *k),
        }
    }
}

/// Whether the module compiled for `op` rounds M and chooses the kernel itself.
fn module_looks_up(op: Op) -> bool {
    op.aiter().is_some_and(|aiter| aiter.module_looks_up)
}

/// The row that serves a shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Served {
    pub m: u32,
    /// Its line in the table it comes from; 0 for a planned row.
    pub line: u64,
    /// Whether only the coarse grid found it, so that it was tuned for another size.
    pub coarse: bool,
}

/// The key of a row once the device is fixed: N, K, dtype of the weight (empty where it is not part of the key), M.
pub type RowKey = (u32, u32, String, u32);

/// Rows of tables and planned rows, under one kind of look-up.
#[derive(Clone, Debug)]
pub struct Serving {
    runtime: Runtime,
    keys: BTreeSet<RowKey>,
    planned: BTreeSet<RowKey>,
}

#[derive(Clone, Debug)]
enum Runtime {
    /// aiter's look-up, which the reference engine shares.
    Aiter { table: Table, target: Target },
    /// SGLang's look-up: the key nearest to M among those of a weight.
    Nearest,
    /// The look-up of aiter's Triton GEMM.
    Buckets(Buckets),
}

impl Serving {
    /// Serves from `table`, which must contain only valid rows, each key once, and have a gfx column.
    pub fn aiter(table: Table, target: Target) -> Self {
        let keys = table
            .rows
            .iter()
            .filter(|row| {
                row.cu_num == Some(target.cu_num) && row.gfx.as_deref() == Some(target.gfx.as_str())
            })
            .map(|row| {
                let dtype = row
                    .q_dtype_w
                    .as_deref()
                    .filter(|_| target.rules.keys_weight_dtype);
                (row.n, row.k, dtype.unwrap_or("").to_owned(), row.m)
            })
            .collect();
        Self {
            runtime: Runtime::Aiter { table, target },
            keys,
            planned: BTreeSet::new(),
        }
    }

    /// Serves from the keys (N, K, M) of SGLang's files.
    pub fn nearest(keys: impl IntoIterator<Item = (u32, u32, u32)>) -> Self {
        Self {
            runtime: Runtime::Nearest,
            keys: keys
                .into_iter()
                .map(|(n, k, m)| (n, k, String::new(), m))
                .collect(),
            planned: BTreeSet::new(),
        }
    }

    /// Serves from the files of aiter's Triton GEMM.
    pub(super) fn buckets(buckets: Buckets) -> Self {
        Self {
            runtime: Runtime::Buckets(buckets),
            keys: BTreeSet::new(),
            planned: BTreeSet::new(),
        }
    }

    /// The M of the row that should serve `shape`, if no row exists yet.
    pub fn row_m(&self, target: &Target, shape: &Shape) -> u32 {
        match &self.runtime {
            Runtime::Buckets(buckets) => buckets.row_m(shape),
            Runtime::Aiter { .. } | Runtime::Nearest => target.row_m(shape),
        }
    }

    /// The key of a row at `m` for the weight of `shape`.
    pub fn key(&self, shape: &Shape, m: u32) -> RowKey {
        let dtype = match &self.runtime {
            Runtime::Aiter { target, .. } if target.rules.keys_weight_dtype => {
                weight_dtype(shape, &target.gfx).to_owned()
            }
            _ => String::new(),
        };
        (shape.n, shape.k, dtype, m)
    }

    /// Adds a planned row, unless there is one with this key.
    pub fn plan(&mut self, key: RowKey) {
        if self.keys.insert(key.clone()) {
            self.planned.insert(key);
        }
    }

    /// Removes a planned row.
    pub fn withdraw(&mut self, key: &RowKey) {
        if self.planned.remove(key) {
            self.keys.remove(key);
        }
    }

    /// The keys of all planned rows.
    pub fn planned(&self) -> &BTreeSet<RowKey> {
        &self.planned
    }

    /// Which row serves each of `shapes`.
    pub fn serve(&self, shapes: &[Shape]) -> Result<Vec<Option<Served>>, LookupError> {
        match &self.runtime {
            Runtime::Aiter { table, target } => {
                let mut table = table.clone();
                table
                    .rows
                    .extend(self.planned.iter().map(|(n, k, dtype, m)| Row {
                        gfx: Some(Text::from(target.gfx.as_str())),
                        cu_num: Some(target.cu_num),
                        m: *m,
                        n: *n,
                        k: *k,
                        q_dtype_w: (!dtype.is_empty()).then(|| Text::from(dtype.as_str())),
                        ..Row::default()
                    }));
                let resolver = Resolver::new(&table, target.rules, &target.gfx, target.cu_num)?;
                Ok(shapes
                    .iter()
                    .map(|shape| aiter_row(&resolver, shape))
                    .collect())
            }
            Runtime::Nearest => Ok(shapes.iter().map(|shape| self.nearest_key(shape)).collect()),
            Runtime::Buckets(buckets) => {
                let served = |shape: &Shape| {
                    self.planned_in(buckets, shape)
                        .or_else(|| buckets.of_file(shape))
                };
                Ok(shapes.iter().map(served).collect())
            }
        }
    }

    fn planned_in(&self, buckets: &Buckets, shape: &Shape) -> Option<Served> {
        let key = |m: u32| (shape.n, shape.k, String::new(), m);
        let mut rows = self.planned.range(key(0)..=key(u32::MAX));
        let row = rows.find(|(_, _, _, m)| buckets.holds(*m, shape))?;
        Some(Served {
            m: row.3,
            line: 0,
            coarse: false,
        })
    }

    fn nearest_key(&self, shape: &Shape) -> Option<Served> {
        let Shape { m, n, k, .. } = *shape;
        let key = |m: u32| (n, k, String::new(), m);
        let below = self.keys.range(key(0)..=key(m)).next_back();
        let above = self.keys.range(key(m)..=key(u32::MAX)).next();
        // Files are written in ascending order, so of two equally near keys the smaller comes first.
        let found = match (below, above) {
            (Some(below), Some(above)) if above.3 - m < m - below.3 => above,
            (Some(below), _) => below,
            (None, above) => above?,
        };
        Some(Served {
            m: found.3,
            line: u64::from(!self.planned.contains(found)),
            // Tuned for this size if the fine grid rounds both to one step.
            coarse: Probe::Fine.m(found.3, n, k) != Probe::Fine.m(m, n, k),
        })
    }
}

fn aiter_row(resolver: &Resolver<'_>, shape: &Shape) -> Option<Served> {
    if module_looks_up(shape.op) {
        return resolver.find_in_a8w8_module(shape).map(|row| Served {
            m: row.m,
            line: row.line,
            coarse: false,
        });
    }
    match resolver.find(shape) {
        Resolution::Hit { row, probe, .. } if probe != Probe::Largest => Some(Served {
            m: row.m,
            line: row.line,
            coarse: probe == Probe::Coarse
                && row.m != shape.m
                && row.m != Probe::Fine.m(shape.m, shape.n, shape.k),
        }),
        // The largest row is better than nothing, but tuned for a smaller size, so the shape deserves its own.
        Resolution::Miss | Resolution::Hit { .. } => None,
    }
}

/// The weight's dtype as a table's key spells it.
pub fn weight_dtype<'a>(shape: &'a Shape, gfx: &str) -> &'a str {
    if shape.dtype.is_empty() {
        dtype::fp8_of(gfx)
    } else {
        &shape.dtype
    }
}

/// An untuned table of `rows`, in the form that the tuner of `op` at `revision` reads.
pub fn untuned_csv<'a>(
    op: Op,
    revision: Revision,
    gfx: &str,
    rows: impl IntoIterator<Item = &'a Shape>,
) -> String {
    use std::fmt::Write as _;
    let columns = revision::untuned_columns(op, revision);
    let mut text = columns.join(",");
    text.push('\n');
    for shape in rows {
        let _ = write!(text, "{},{},{}", shape.m, shape.n, shape.k);
        if columns.len() > 3 {
            let _ = write!(text, ",{}", weight_dtype(shape, gfx));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(op: Op, m: u32) -> Shape {
        Shape {
            op,
            m,
            n: 512,
            k: 7168,
            dtype: String::new(),
        }
    }

    #[test]
    fn the_row_a_shape_is_folded_into_is_the_row_it_finds() {
        for op in [
            Op::Blockscale,
            Op::BlockscaleBpreshuffle,
            Op::Bpreshuffle,
            Op::A8w8,
            Op::A4w4,
        ] {
            for fold in [Fold::Exact, Fold::Fine, Fold::Coarse] {
                for revision in Revision::ALL {
                    let target = Target::new(op, revision, "gfx950", 256, fold);
                    for m in [
                        1, 2, 15, 16, 17, 33, 250, 257, 1000, 1025, 4097, 9000, 20000, 70000,
                    ] {
                        let shape = shape(op, m);
                        let mut serving =
                            Serving::aiter(Table::new("t", op, Revision::H), target.clone());
                        let key = serving.key(&shape, target.row_m(&shape));
                        serving.plan(key.clone());
                        let served = serving.serve(std::slice::from_ref(&shape)).unwrap()[0];
                        assert_eq!(
                            served.map(|served| served.m),
                            Some(target.row_m(&shape)),
                            "{op} {fold:?} {revision} {m}"
                        );
                        serving.withdraw(&key);
                        assert_eq!(serving.serve(&[shape]).unwrap(), [None]);
                    }
                }
            }
        }
    }

    #[test]
    fn the_nearest_key_serves_and_of_two_the_smaller() {
        let op = Op::TritonBlockFp8;
        let serving = Serving::nearest([(512, 7168, 16), (512, 7168, 64), (512, 512, 1)]);
        let served = |m| serving.serve(&[shape(op, m)]).unwrap()[0].unwrap().m;
        assert_eq!(
            [1, 16, 40, 41, 64, 9000].map(served),
            [16, 16, 16, 64, 64, 64]
        );
        assert_eq!(Serving::nearest([]).serve(&[shape(op, 1)]).unwrap(), [None]);
    }

    #[test]
    fn the_untuned_table_has_the_columns_of_its_tuner() {
        let rows = [shape(Op::Bpreshuffle, 16)];
        let text = |op, revision, gfx| untuned_csv(op, revision, gfx, &rows);
        assert_eq!(
            text(Op::Blockscale, Revision::H, "gfx942"),
            "M,N,K\n16,512,7168\n"
        );
        assert_eq!(
            text(Op::Bpreshuffle, Revision::A, "gfx942"),
            "M,N,K,q_dtype_w\n16,512,7168,torch.float8_e4m3fnuz\n"
        );
        assert_eq!(
            text(Op::A8w8, Revision::B, "gfx942"),
            "M,N,K\n16,512,7168\n"
        );
        assert_eq!(
            text(Op::A8w8, Revision::P, "gfx950"),
            "M,N,K,q_dtype_w\n16,512,7168,torch.float8_e4m3fn\n"
        );
    }
}
