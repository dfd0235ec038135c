//! Why a look-up found no row: what the table has instead.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;

use super::aiter::{Row, Table};
use super::lookup::Rules;
use crate::problem::Shape;
use crate::problem::dtype;

/// Values named in a sentence; more are counted.
const NAMED: usize = 4;

/// A table's rows by weight, indexed for one GPU.
#[derive(Debug)]
pub struct Reasons<'table> {
    weights: HashMap<(u32, u32), Vec<&'table Row>>,
    rules: Rules,
    /// Whether the look-up compares the `gfx` column.
    with_gfx: bool,
    gfx: &'table str,
    cu_num: u32,
}

impl<'table> Reasons<'table> {
    /// Indexes the rows of `table`, which is looked up by `rules` on GPUs of `gfx` with `cu_num` compute units.
    pub fn new(table: &'table Table, rules: Rules, gfx: &'table str, cu_num: u32) -> Self {
        let mut weights: HashMap<(u32, u32), Vec<&Row>> = HashMap::new();
        for row in &table.rows {
            weights.entry((row.n, row.k)).or_default().push(row);
        }
        Self {
            weights,
            rules,
            with_gfx: rules.keys_gfx && table.has_column("gfx"),
            gfx,
            cu_num,
        }
    }

    /// Why no row serves `shape`, whose look-up missed.
    pub fn why(&self, shape: &Shape) -> String {
        let Some(rows) = self.weights.get(&(shape.n, shape.k)) else {
            return self.no_weight(shape);
        };
        let here: Vec<&&Row> = rows.iter().filter(|row| self.is_here(row)).collect();
        if here.is_empty() {
            let gpus: BTreeSet<String> = rows.iter().map(|row| self.gpu(row)).collect();
            return format!("the rows of this (N, K) are for {} only", list(gpus, NAMED));
        }
        let dtype = if shape.dtype.is_empty() {
            dtype::fp8_of(self.gfx)
        } else {
            &shape.dtype
        };
        let of_dtype =
            |row: &&&Row| !self.rules.keys_weight_dtype || row.q_dtype_w.as_deref() == Some(dtype);
        let m: BTreeSet<u32> = here
            .iter()
            .copied()
            .filter(of_dtype)
            .map(|row| row.m)
            .collect();
        if m.is_empty() {
            let dtypes: BTreeSet<String> = here
                .iter()
                .map(|row| row.q_dtype_w.as_deref().unwrap_or("no dtype").to_owned())
                .collect();
            return format!(
                "the rows of this (N, K) are for weights of {}, the shape's is {dtype}",
                list(dtypes, NAMED)
            );
        }
        self.gap(shape, &m)
    }

    fn no_weight(&self, shape: &Shape) -> String {
        let (n, k) = (shape.n, shape.k);
        if self.weights.is_empty() {
            return "the table has no rows".to_owned();
        }
        if self.weights.contains_key(&(k, n)) {
            return format!(
                "no row has N={n} K={k}, but some have N={k} K={n}: are the two swapped?"
            );
        }
        let of_n: BTreeSet<u32> = self
            .weights
            .keys()
            .filter(|weight| weight.0 == n)
            .map(|weight| weight.1)
            .collect();
        if of_n.is_empty() {
            format!("no row has N={n}, with whatever K")
        } else {
            format!(
                "no row has N={n} with K={k}; there is K={}",
                list(of_n, NAMED)
            )
        }
    }

    /// The weight has rows, but none at an M that is looked up.
    fn gap(&self, shape: &Shape, rows: &BTreeSet<u32>) -> String {
        let mut asked: Vec<u32> = self
            .rules
            .probes()
            .iter()
            .map(|probe| probe.m(shape.m, shape.n, shape.k))
            .collect();
        asked.dedup();
        let asked = format!("no row of this (N, K) has M={}", list(asked, NAMED));
        let below = rows.range(..shape.m).next_back();
        let above = rows.range(shape.m + 1..).next();
        match (below, above) {
            (Some(below), Some(above)) => {
                format!("{asked}: a gap between the rows of M={below} and M={above}")
            }
            (Some(below), None) => format!("{asked}: the largest row is M={below}"),
            (None, Some(above)) => format!("{asked}: the smallest row is M={above}"),
            // A row of this very M would be a hit.
            (None, None) => asked,
        }
    }

    fn is_here(&self, row: &Row) -> bool {
        let gfx = !self.with_gfx || row.gfx.as_deref() == Some(self.gfx);
        gfx && row.cu_num == Some(self.cu_num)
    }

    fn gpu(&self, row: &Row) -> String {
        let units = row.cu_num.map_or_else(
            || "no number of compute units".to_owned(),
            |units| format!("{units} compute units"),
        );
        match row.gfx.as_deref().filter(|_| self.with_gfx) {
            Some(gfx) => format!("{gfx} with {units}"),
            None => units,
        }
    }
}

/// The first `most` of `values`, and how many more there are.
pub(super) fn list<T: ToString>(values: impl IntoIterator<Item = T>, most: usize) -> String {
    let values: Vec<String> = values.into_iter().map(|value| value.to_string()).collect();
    let mut named = values[..values.len().min(most)].join(", ");
    if values.len() > most {
        let _ = write!(named, " and {} more", values.len() - most);
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Op;
    use crate::table::revision::Revision;

    fn why(op: Op, m: u32, (n, k): (u32, u32), dtype: &str) -> String {
        let text = "gfx,cu_num,M,N,K,q_dtype_w,libtype,kernelId,splitK,us,kernelName\n\
             gfx942,80,16,512,7168,torch.float8_e4m3fnuz,ck,1,0,1.0,a\n\
             gfx942,304,16,512,4096,torch.float8_e4m3fnuz,ck,1,0,1.0,a\n\
             gfx942,304,256,512,4096,torch.float8_e4m3fnuz,ck,1,0,1.0,a\n\
             gfx942,304,16,1024,4096,torch.int8,ck,1,0,1.0,a\n";
        let table = Table::read("t.csv", text.as_bytes(), Some(op)).unwrap();
        let rules = Rules::new(op, Revision::H);
        let reasons = Reasons::new(&table, rules, "gfx942", 304);
        reasons.why(&Shape {
            op,
            m,
            n,
            k,
            dtype: dtype.to_owned(),
        })
    }

    #[test]
    fn a_miss_has_one_reason_and_it_names_what_is_there() {
        let at = |m, weight| why(Op::Bpreshuffle, m, weight, "");
        assert_eq!(
            at(16, (512, 7168)),
            "the rows of this (N, K) are for gfx942 with 80 compute units only"
        );
        assert_eq!(
            at(16, (1024, 4096)),
            "the rows of this (N, K) are for weights of torch.int8, the shape's is torch.float8_e4m3fnuz"
        );
        assert_eq!(
            at(33, (512, 4096)),
            "no row of this (N, K) has M=33, 48, 64: a gap between the rows of M=16 and M=256"
        );
        insta::assert_snapshot!(at(300, (512, 4096)), @"no row of this (N, K) has M=300, 320, 512: the largest row is M=256");
        insta::assert_snapshot!(at(16, (512, 1)), @"no row has N=512 with K=1; there is K=4096, 7168");
        insta::assert_snapshot!(at(16, (4096, 512)), @"no row has N=4096 K=512, but some have N=512 K=4096: are the two swapped?");
        assert_eq!(at(16, (3, 3)), "no row has N=3, with whatever K");
    }

    #[test]
    fn a_dtype_that_is_no_part_of_the_key_is_no_reason() {
        let reason = why(Op::Blockscale, 300, (1024, 4096), "torch.float8_e4m3fn");
        insta::assert_snapshot!(reason, @"no row of this (N, K) has M=300, 320, 512: the largest row is M=16");
    }
}
