//! SGLang's Triton block-FP8 kernel: its space of configurations, and its JSON tables.
//!
//! Candidates are tried in this order: what serves the shape today, winners of similar shapes, winners that SGLang
//! ships for this vendor's devices, then the whole space in the order of [`model`]. The runtime reads tables by
//! nearest M, so only some M are raced ([`Refine::nearest_m`]) and keys are placed so that every M gets the intended
//! row ([`keys`]).

pub mod files;
pub mod keys;
pub mod model;
pub mod space;
pub mod worker_files;

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};

use self::files::TableFile;
use self::keys::{Rows, nearest};
use self::space::{Config, Space, is_rocm};
use super::{Backend, Field, Pace, Written};
use crate::problem::{Op, Shape};
use crate::table::sglang_json::FileName;
use crate::tune::points::Refine;
use crate::tune::protocol::{Candidate, Device};
use crate::tune::race::Rules;
use crate::tune::results::Row;
use crate::tune::rules::{Effort, gpu_rules};

/// Folder of the JSON tables in the output folder.
pub const TABLES: &str = "configs";

/// The most frequent configurations in the block-FP8 tables of SGLang 0.5.23 (Apache-2.0, wheel on
/// PyPI, `sglang/kernels/ops/gemm/configs`, 128 x 128 blocks): the twelve most frequent for each range of M,
/// counted over 68 files for H100, H200, H20 and B200, and 24 for MI300X and MI325X.
const SHIPPED: &str = include_str!("sglang_triton/shipped.csv");

/// The backend of SGLang's Triton kernel.
#[derive(Clone, Debug)]
pub struct SglangTriton {
    /// Scale block of the weight: N side, K side.
    pub block: (u32, u32),
    /// Folder of the tables in use; those shipped with the worker's software when absent.
    pub tables: Option<Utf8PathBuf>,
    /// Most configurations raced before expansion.
    pub at_most: Option<usize>,
}

impl Default for SglangTriton {
    fn default() -> Self {
        Self {
            block: (128, 128),
            tables: None,
            at_most: None,
        }
    }
}

impl SglangTriton {
    /// The name under which the runtime looks for the table of (`n`, `k`) on `device`.
    pub fn file_name(&self, device: &Device, n: u32, k: u32) -> FileName {
        FileName {
            block_shape: Some(self.block),
            ..FileName::block_fp8(n, k, &device.name)
        }
    }

    /// The table in use for (`n`, `k`); empty if there is none.
    fn today(&self, device: &Device, n: u32, k: u32) -> Rows {
        let folder = match &self.tables {
            Some(folder) => folder.clone(),
            None if device.shipped.is_empty() => return Rows::new(),
            None => Utf8PathBuf::from(&device.shipped),
        };
        let name = self.file_name(device, n, k).to_string();
        files::read_rows(&folder.join(name)).unwrap_or_default()
    }

    fn default_config(&self) -> Config {
        Config::default_for(self.block.0, self.block.1)
    }
}

impl Backend for SglangTriton {
    fn name(&self) -> &'static str {
        "sglang-triton"
    }

    fn options(&self) -> Value {
        json!({"block": [self.block.0, self.block.1], "out_dtype": "bfloat16"})
    }

    fn op(&self) -> Op {
        Op::TritonBlockFp8
    }

    fn refine(&self, effort: Effort) -> Refine {
        Refine::nearest_m(effort)
    }

    fn rules(&self, effort: Effort) -> Rules {
        gpu_rules(effort)
    }

    fn pace(&self) -> Pace {
        Pace::on_gpus()
    }

    fn incumbent(&self, device: &Device, shape: &Shape) -> Option<Candidate> {
        let rows = self.today(device, shape.n, shape.k);
        let found = nearest(&rows, shape.m).cloned();
        Some(found.unwrap_or_else(|| self.default_config().candidate()))
    }

    fn field(
        &self,
        device: &Device,
        shape: &Shape,
        neighbours: &[Candidate],
        effort: Effort,
    ) -> Field {
        let space = Space::of(device, self.block.1);
        let mut ranked: Vec<(f64, Config)> = space
            .configs(device, shape)
            .into_iter()
            .map(|config| (model::seconds(device, shape, &config), config))
            .collect();
        // If the model sees no difference, bands of tiles before single rows of them: a band keeps its share of the
        // activations in the cache.
        ranked.sort_by(|a, b| {
            let single = |config: &Config| config.group_m == 1;
            a.0.total_cmp(&b.0).then(single(&a.1).cmp(&single(&b.1)))
        });
        let ranked = ranked.iter().map(|(_, config)| config.candidate());
        let mined = shipped(device, shape.m);
        // Winners from elsewhere may be one program here under several names, or the same as the incumbent's.
        let folded = |candidate: &Candidate| match Config::read(candidate) {
            Some(config) => space.canonical(&config, shape).candidate(),
            None => candidate.clone(),
        };
        let incumbent = self.incumbent(device, shape);
        let known = incumbent.as_ref().map(folded);
        let others = neighbours
            .iter()
            .chain(&mined)
            .map(folded)
            .chain(ranked)
            .filter(|candidate| Some(candidate) != known.as_ref());
        let at_most = self.at_most.unwrap_or(match effort {
            Effort::Quick => 32,
            Effort::Full => 96,
        });
        Field::new(incumbent, others, at_most)
    }

    fn relatives(&self, device: &Device, shape: &Shape, candidate: &Candidate) -> Vec<Candidate> {
        let Some(config) = Config::read(candidate) else {
            return Vec::new();
        };
        Space::of(device, self.block.1)
            .around(&config, device, shape)
            .iter()
            .map(Config::candidate)
            .collect()
    }

    fn write(&self, folder: &Utf8Path, device: &Device, rows: &[Row]) -> std::io::Result<Written> {
        if rows.is_empty() {
            return Ok(Written::default());
        }
        let mut by_weight: BTreeMap<(u32, u32), Vec<&Row>> = BTreeMap::new();
        for row in rows {
            let weight = (row.shape.n, row.shape.k);
            by_weight.entry(weight).or_default().push(row);
        }
        let tables = folder.join(TABLES);
        fs_err::create_dir_all(&tables)?;
        let mut written = Written::default();
        for ((n, k), rows) in by_weight {
            let raced: Rows = rows
                .iter()
                .map(|row| (row.shape.m, row.candidate.clone()))
                .collect();
            let file = TableFile {
                folder: &tables,
                name: self.file_name(device, n, k),
            };
            let table = file.merge(&raced, &self.today(device, n, k), &self.default_config())?;
            written.files.push(file.path());
            written.tables.push(table);
        }
        files::write_provenance(&tables, device, rows)?;
        Ok(written)
    }
}

/// Configurations that SGLang ships for this vendor's devices and this many rows, most frequent first.
fn shipped(device: &Device, m: u32) -> Vec<Candidate> {
    let platform = if is_rocm(device) { "gfx" } else { "sm" };
    let mut reader = csv::Reader::from_reader(SHIPPED.as_bytes());
    let Ok(header) = reader.headers().cloned() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let mut range = None;
    for record in reader.records().map_while(Result::ok) {
        let cell = |index: usize| record.get(index).unwrap_or("");
        let up_to: u32 = cell(1).parse().unwrap_or(u32::MAX);
        // Ranges are ascending, so the first one that contains M is used.
        if cell(0) != platform || m > up_to || range.is_some_and(|range| range != up_to) {
            continue;
        }
        range = Some(up_to);
        let config: Candidate = header
            .iter()
            .zip(record.iter())
            .skip(3)
            .filter_map(|(name, value)| Some((name.to_owned(), json!(value.parse::<u32>().ok()?))))
            .collect::<serde_json::Map<_, _>>()
            .into();
        found.push(config);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::space::tests::{h100, shape};
    use super::*;

    #[test]
    fn shipped_winners_are_those_of_the_range_of_m() {
        let device = h100(&[]);
        let small = shipped(&device, 1);
        assert_eq!(small.len(), 12);
        assert_eq!(small[0]["BLOCK_SIZE_N"], 32);
        assert!(small[0].get("waves_per_eu").is_none());
        let large = shipped(&device, 100_000);
        assert_eq!(large.len(), 12);
        assert_ne!(small, large);
        let amd = Device {
            arch: "gfx942".to_owned(),
            ..device
        };
        assert!(
            shipped(&amd, 4096)
                .iter()
                .all(|config| config["waves_per_eu"].is_u64())
        );
    }

    #[test]
    fn the_default_is_the_incumbent_where_nothing_is_deployed() {
        let backend = SglangTriton::default();
        let field = backend.field(&h100(&[]), &shape(1, 4096, 4096), &[], Effort::Quick);
        assert!(field.has_incumbent);
        assert_eq!(
            field.candidates[0],
            json!({"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 128, "BLOCK_SIZE_K": 128,
                   "GROUP_SIZE_M": 32, "num_warps": 4, "num_stages": 3})
        );
        assert_eq!(field.candidates.len(), 32);
    }

    #[test]
    fn the_shipped_row_of_the_nearest_m_is_the_incumbent() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::try_from(folder.path().to_owned()).unwrap();
        let device = Device {
            shipped: folder.to_string(),
            ..h100(&[])
        };
        let backend = SglangTriton::default();
        let name = backend.file_name(&device, 4096, 512).to_string();
        assert_eq!(
            name,
            "N=4096,K=512,device_name=NVIDIA_H100_80GB_HBM3,dtype=fp8_w8a8,block_shape=[128, 128].json"
        );
        fs_err::create_dir_all(&folder).unwrap();
        let text = r#"{"1": {"BLOCK_SIZE_M": 16}, "64": {"BLOCK_SIZE_M": 128}}"#;
        crate::store::file::write_atomic(&folder.join(name), text.as_bytes()).unwrap();
        let incumbent = |m| backend.incumbent(&device, &shape(m, 4096, 512)).unwrap();
        assert_eq!(incumbent(30)["BLOCK_SIZE_M"], 16);
        assert_eq!(incumbent(33)["BLOCK_SIZE_M"], 128);
    }
}
