//! The reference engine's kernels: a short list that the worker itself reports, and an aiter-style CSV.
//!
//! Every kernel is raced, those whose M tile wastes least first; split-K is added by expansion around the leaders.
//! The engine rounds M in a look-up as aiter does, but an exact row always takes precedence, so each requested M gets
//! its own row.

use std::time::Duration;

use camino::Utf8Path;
use serde_json::{Value, json};

use super::{Backend, Deadlines, Field, Pace, Written};
use crate::problem::{Op, Shape};
use crate::table::aiter::{self, Table};
use crate::table::lookup::{LookupError, Resolver, Rules as LookupRules};
use crate::table::revision::Revision;
use crate::tune::points::Refine;
use crate::tune::protocol::{Candidate, Device};
use crate::tune::race::Rules;
use crate::tune::results::Row;
use crate::tune::rules::{Effort, cpu_rules};
use crate::tune::tuned::TunedTable;

/// Name of the table in the output folder.
pub const TABLE: &str = "table.csv";

/// `libtype` of rows for the reference engine (`gemmtune_refengine::table::LIBTYPE`).
const LIBTYPE: &str = "reference";

/// Largest split-K exponent of the engine (`gemmtune_refengine::kernels::MAX_SPLIT_K`); a worker refuses what it does
/// not support.
const MAX_SPLIT_K: i64 = 3;

/// The backend of the reference engine.
#[derive(Debug, Default)]
pub struct Reference {
    /// The table in use; without one every shape is served by the engine's default kernel.
    table: Option<Table>,
}

impl Reference {
    /// The backend for servers that run with `table`, or without one.
    ///
    /// A table that the runtime would reject is refused.
    pub fn new(table: Option<Table>) -> Result<Self, LookupError> {
        if let Some(table) = &table {
            Resolver::new(table, lookup_rules(), "", 0)?;
        }
        Ok(Self { table })
    }
}

fn lookup_rules() -> LookupRules {
    LookupRules::new(Op::Blockscale, Revision::H)
}

impl Backend for Reference {
    fn name(&self) -> &'static str {
        "reference"
    }

    fn options(&self) -> Value {
        json!({})
    }

    fn op(&self) -> Op {
        Op::Blockscale
    }

    fn refine(&self, _: Effort) -> Refine {
        Refine::Every
    }

    fn rules(&self, effort: Effort) -> Rules {
        cpu_rules(effort)
    }

    fn pace(&self) -> Pace {
        Pace {
            batch: 4,
            side_by_side: 1,
            under_way: 1,
            one_at_a_time: true,
            deadlines: Deadlines {
                hello: Duration::from_secs(30),
                prepare: Duration::from_secs(30),
                floor: Duration::from_secs(20),
                // The portable kernels unoptimised, on one slow core.
                slowest_flops: 2e8,
                check_flops: 2e8,
            },
        }
    }

    fn incumbent(&self, device: &Device, shape: &Shape) -> Option<Candidate> {
        let default = || device.candidates.first().cloned();
        let Some(table) = &self.table else {
            return default();
        };
        let resolver = Resolver::new(table, lookup_rules(), &device.arch, device.cu_num).ok()?;
        match resolver.find(shape).row() {
            None => default(),
            Some(row) => device
                .candidates
                .iter()
                .find(|candidate| candidate["kernelName"].as_str() == row.kernel_name.as_deref())
                .map(|candidate| with_split_k(candidate, row.split_k.unwrap_or(0))),
        }
    }

    fn field(&self, device: &Device, shape: &Shape, neighbours: &[Candidate], _: Effort) -> Field {
        let mut listed: Vec<&Candidate> = device.candidates.iter().collect();
        // Fewest wasted rows first, then fewest tiles: a larger M tile trades one for the other.
        let waste = |candidate: &Candidate| {
            let tile = candidate["tileM"].as_u64().unwrap_or(1).max(1);
            let tiles = u64::from(shape.m).div_ceil(tile);
            let quarters_in_vain = (tiles * tile - u64::from(shape.m)) * 4 / u64::from(shape.m);
            (quarters_in_vain, tiles)
        };
        listed.sort_by_key(|candidate| waste(candidate));
        let others = neighbours.iter().chain(listed).cloned();
        Field::new(self.incumbent(device, shape), others, usize::MAX)
    }

    fn relatives(&self, _: &Device, shape: &Shape, candidate: &Candidate) -> Vec<Candidate> {
        let split_k = candidate["splitK"].as_i64().unwrap_or(0);
        [split_k - 1, split_k + 1]
            .into_iter()
            // At least one block of 128 columns for each of the 2^splitK parts.
            .filter(|split_k| {
                (0..=MAX_SPLIT_K).contains(split_k) && 1 << split_k <= shape.k.div_ceil(128)
            })
            .map(|split_k| with_split_k(candidate, split_k))
            .collect()
    }

    fn write(&self, folder: &Utf8Path, device: &Device, rows: &[Row]) -> std::io::Result<Written> {
        if rows.is_empty() {
            return Ok(Written::default());
        }
        let mut table = Table::new(TABLE, Op::Blockscale, Revision::H);
        table.rows = rows.iter().map(|row| table_row(device, row)).collect();
        let mut written = Written::default();
        written.put(folder, TunedTable::csv(TABLE, &table))?;
        Ok(written)
    }
}

fn with_split_k(candidate: &Candidate, split_k: i64) -> Candidate {
    let mut candidate = candidate.clone();
    candidate["splitK"] = json!(split_k);
    candidate
}

fn table_row(device: &Device, row: &Row) -> aiter::Row {
    let Shape { m, n, k, .. } = row.shape;
    let (rows, columns, depth) = (f64::from(m), f64::from(n), f64::from(k));
    // As in aiter's rows: TFLOP/s and GB/s to two digits, one byte for each FP8 element of an operand, two for each
    // bf16 element of the output, scales not counted.
    let bytes = rows * depth + columns * depth + 2.0 * rows * columns;
    let two_digits = |value: f64| (value * 100.0).round() / 100.0;
    aiter::Row {
        line: 0,
        gfx: Some(device.arch.as_str().into()),
        cu_num: Some(device.cu_num),
        m,
        n,
        k,
        q_dtype_w: None,
        libtype: Some(LIBTYPE.into()),
        kernel_id: row.candidate["kernelId"].as_i64(),
        split_k: row.candidate["splitK"].as_i64(),
        us: Some((row.us * 1e4).round() / 1e4),
        kernel_name: row.candidate["kernelName"].as_str().map(Into::into),
        tflops: Some(two_digits(row.shape.flops() / row.us / 1e6)),
        bw: Some(two_digits(bytes / row.us / 1e3)),
        err_ratio: Some(row.err_ratio),
        extra: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Device {
        let kernel = |id: u32, name: &str, tile: u32| json!({"kernelId": id, "splitK": 0, "kernelName": name, "tileM": tile});
        Device {
            protocol: 1,
            backend: "reference".to_owned(),
            name: "cpu".to_owned(),
            arch: "avx2".to_owned(),
            cu_num: 2,
            index: 0,
            visible: 1,
            l2_bytes: 0,
            smem_bytes: 0,
            versions: std::collections::BTreeMap::new(),
            kernel_hash: String::new(),
            capabilities: Vec::new(),
            prepare_slots: 0,
            candidates: vec![
                kernel(123, "default16", 16),
                kernel(100, "one", 1),
                kernel(107, "two", 2),
                kernel(117, "eight", 8),
            ],
            shipped: String::new(),
            taken_bytes: None,
        }
    }

    fn shape(m: u32, k: u32) -> Shape {
        Shape {
            op: Op::Blockscale,
            m,
            n: 512,
            k,
            dtype: String::new(),
        }
    }

    fn ids(candidates: &[Candidate]) -> Vec<u64> {
        candidates
            .iter()
            .map(|candidate| candidate["kernelId"].as_u64().unwrap())
            .collect()
    }

    #[test]
    fn the_default_kernel_is_the_incumbent_where_no_row_serves() {
        let backend = Reference::new(None).unwrap();
        let field = backend.field(&device(), &shape(1, 512), &[], Effort::Quick);
        assert!(field.has_incumbent);
        assert_eq!(ids(&field.candidates), [123, 100, 107, 117]);
        let field = backend.field(&device(), &shape(8, 512), &[], Effort::Quick);
        assert_eq!(ids(&field.candidates), [123, 117, 107, 100]);
    }

    #[test]
    fn a_table_row_found_by_rounding_m_is_the_incumbent() {
        let csv = "gfx,cu_num,M,N,K,libtype,kernelId,splitK,us,kernelName,tflops,bw,errRatio\n\
                   avx2,2,16,512,512,reference,107,1,5.0,two,1.0,1.0,0.0\n";
        let table = Table::read("t.csv", csv.as_bytes(), Some(Op::Blockscale)).unwrap();
        let backend = Reference::new(Some(table)).unwrap();
        let incumbent = backend.incumbent(&device(), &shape(9, 512)).unwrap();
        assert_eq!(
            (&incumbent["kernelId"], &incumbent["splitK"]),
            (&json!(107), &json!(1))
        );
        let miss = backend.incumbent(&device(), &shape(17, 512)).unwrap();
        assert_eq!(miss["kernelId"], 123);
    }

    #[test]
    fn split_k_never_exceeds_the_blocks_of_k() {
        let backend = Reference::new(None).unwrap();
        let device = device();
        let whole = &device.candidates[0];
        assert!(backend.relatives(&device, &shape(1, 128), whole).is_empty());
        let relatives = backend.relatives(&device, &shape(1, 256), whole);
        assert_eq!(relatives.len(), 1);
        assert_eq!(relatives[0]["splitK"], 1);
    }
}
