//! Configurations of SGLang's Triton block-FP8 kernel: which there are, and which are one step apart.

use serde_json::{Map, Value, json};

use crate::problem::Shape;
use crate::tune::backends::settings::{each, one_step};
use crate::tune::protocol::{Candidate, Device};

/// A configuration, including further keys of its source.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Rows of X in a tile.
    pub block_m: u32,
    /// Rows of W in a tile.
    pub block_n: u32,
    /// Columns of both in a step.
    pub block_k: u32,
    /// Rows of tiles that are walked along N together.
    pub group_m: u32,
    /// Warps of a block.
    pub warps: u32,
    /// Steps in flight: Triton's `num_stages`.
    pub stages: u32,
    /// Blocks that share a tile's K; SGLang 0.5.21 and later, on SM90.
    pub split_k: u32,
    /// Whether the weight tile is the MMA's M side; availability as for `split_k`.
    pub swap_ab: bool,
    /// Other keys, such as AMD's `waves_per_eu`.
    pub others: Map<String, Value>,
}

impl Config {
    /// The configuration that SGLang uses without a table: `w8a8_block_fp8_matmul_triton` in 0.5.5 to 0.5.23.
    pub fn default_for(block_n: u32, block_k: u32) -> Self {
        Self {
            block_m: 64,
            block_n,
            block_k,
            group_m: 32,
            warps: 4,
            stages: 3,
            split_k: 1,
            swap_ab: false,
            others: Map::new(),
        }
    }

    /// The configuration in a candidate, or in an entry of a table; `None` if a key that every release needs is
    /// missing.
    pub fn read(candidate: &Candidate) -> Option<Self> {
        let mut others = candidate.as_object()?.clone();
        let mut take = |name: &str| {
            others
                .shift_remove(name)
                .and_then(|value| value.as_u64())
                .and_then(|value| u32::try_from(value).ok())
        };
        Some(Self {
            block_m: take("BLOCK_SIZE_M")?,
            block_n: take("BLOCK_SIZE_N")?,
            block_k: take("BLOCK_SIZE_K")?,
            group_m: take("GROUP_SIZE_M")?,
            warps: take("num_warps")?,
            stages: take("num_stages")?,
            split_k: take("SPLIT_K").unwrap_or(1),
            swap_ab: others
                .shift_remove("SWAP_AB")
                .is_some_and(|value| value == json!(true) || value == json!(1)),
            others,
        })
    }

    /// The configuration in the form of the runtime and the worker. `SPLIT_K` and `SWAP_AB` are included only when
    /// one of them is used: the plain kernel has no such arguments and fails on them.
    pub fn candidate(&self) -> Candidate {
        let mut object = Map::new();
        let mut put = |name: &str, value: u32| object.insert(name.to_owned(), json!(value));
        put("BLOCK_SIZE_M", self.block_m);
        put("BLOCK_SIZE_N", self.block_n);
        put("BLOCK_SIZE_K", self.block_k);
        put("GROUP_SIZE_M", self.group_m);
        put("num_warps", self.warps);
        put("num_stages", self.stages);
        if self.split_k > 1 || self.swap_ab {
            put("SPLIT_K", self.split_k);
            object.insert("SWAP_AB".to_owned(), json!(self.swap_ab));
        }
        object.extend(self.others.clone());
        Value::Object(object)
    }

    /// Bytes of operand tiles in flight: FP8, one byte an element.
    pub fn tile_bytes(&self) -> u64 {
        u64::from(self.stages) * self.step_bytes()
    }

    fn step_bytes(&self) -> u64 {
        u64::from(self.block_m + self.block_n) * u64::from(self.block_k)
    }

    /// Whether AMD's compiler fits the tiles into `limit` bytes of shared memory: it holds one step less than there
    /// are stages, and with 64 or more rows of X for each wavefront their scales as well. This matches every program
    /// of two or more stages in `docs/evidence/compile-only` (Triton 3.6).
    pub fn fits_on_rocm(&self, limit: u64) -> bool {
        let steps = u64::from(self.stages.saturating_sub(1).max(1)) * self.step_bytes();
        let scales = if self.stages > 1 && self.block_m >= LANES * self.warps {
            4 * u64::from(self.block_m)
        } else {
            0
        };
        limit == 0 || steps + scales <= limit
    }
}

/// Threads of a wavefront (CDNA3 and CDNA4 ISA guides).
pub const LANES: u32 = 64;

/// The values that each setting may take on one kind of device.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// `BLOCK_SIZE_M`.
    pub block_m: &'static [u32],
    /// `BLOCK_SIZE_N`.
    pub block_n: &'static [u32],
    /// `BLOCK_SIZE_K`.
    pub block_k: &'static [u32],
    /// `GROUP_SIZE_M`.
    pub group_m: &'static [u32],
    /// `num_warps`.
    pub warps: &'static [u32],
    /// `num_stages`.
    pub stages: &'static [u32],
    /// `SPLIT_K`.
    pub split_k: &'static [u32],
    /// `SWAP_AB`.
    pub swap_ab: &'static [bool],
    /// Scale block along K: the step must divide it.
    pub scale_k: u32,
    /// Further keys of every configuration in this space.
    pub others: &'static [(&'static str, u32)],
}

/// SGLang's own space on CUDA, 1,280 configurations (`tuning_block_wise_kernel.py`, `get_configs_compute_bound`), and
/// a sixth stage, for which large shared memories have room.
const CUDA: Space = Space {
    block_m: &[16, 32, 64, 128, 256],
    block_n: &[32, 64, 128, 256],
    block_k: &[64, 128],
    group_m: &[1, 16, 32, 64],
    warps: &[4, 8],
    stages: &[2, 3, 4, 5, 6],
    split_k: &[1],
    swap_ab: &[false],
    scale_k: 128,
    others: &[],
};

/// SGLang's own space on ROCm (`get_rocm_configs_compute_bound`), of which 600 remain because the step must divide
/// the scale block.
const ROCM: Space = Space {
    block_m: &[32, 64, 128, 256],
    block_n: &[16, 32, 64, 128, 256],
    block_k: &[32, 64, 128, 256],
    group_m: &[1, 4, 8, 16, 32],
    warps: &[4, 8],
    stages: &[2],
    split_k: &[1],
    swap_ab: &[false],
    scale_k: 128,
    others: &[("waves_per_eu", 0)],
};

impl Space {
    /// The space of the kernel on `device`, for scale blocks of `scale_k` columns.
    pub fn of(device: &Device, scale_k: u32) -> Self {
        let takes = |name: &str| device.capabilities.iter().any(|has| has == name);
        Self {
            scale_k,
            split_k: if takes("split_k") {
                &[1, 2, 4, 8, 16]
            } else {
                &[1]
            },
            swap_ab: if takes("swap_ab") {
                &[false, true]
            } else {
                &[false]
            },
            ..if is_rocm(device) { ROCM } else { CUDA }
        }
    }

    /// Every configuration that can make sense for `shape` on `device`: those that need more shared memory than there
    /// is are left out, as are groups of a single row of tiles and empty K splits.
    pub fn configs(&self, device: &Device, shape: &Shape) -> Vec<Config> {
        let others = self.others.iter();
        let others = others.map(|(name, value)| ((*name).to_owned(), json!(value)));
        let mut found = vec![Config {
            others: others.collect(),
            ..Config::default_for(0, 0)
        }];
        found = each(&found, self.block_m, |config, value| config.block_m = value);
        found = each(&found, self.block_n, |config, value| config.block_n = value);
        found = each(&found, self.block_k, |config, value| config.block_k = value);
        found = each(&found, self.group_m, |config, value| config.group_m = value);
        found = each(&found, self.warps, |config, value| config.warps = value);
        found = each(&found, self.stages, |config, value| config.stages = value);
        found = each(&found, self.split_k, |config, value| config.split_k = value);
        found = each(&found, self.swap_ab, |config, value| config.swap_ab = value);
        found.retain(|config| self.makes_sense(config, device, shape));
        found
    }

    /// Configurations one step from `config` in one setting.
    pub fn around(&self, config: &Config, device: &Device, shape: &Shape) -> Vec<Config> {
        let mut found = one_step(
            config,
            &[
                (self.block_m, config.block_m, |other, value| {
                    other.block_m = value;
                }),
                (self.block_n, config.block_n, |other, value| {
                    other.block_n = value;
                }),
                (self.block_k, config.block_k, |other, value| {
                    other.block_k = value;
                }),
                (self.warps, config.warps, |other, value| other.warps = value),
                (self.stages, config.stages, |other, value| {
                    other.stages = value;
                }),
                (self.split_k, config.split_k, |other, value| {
                    other.split_k = value;
                }),
                (self.group_m, config.group_m, |other, value| {
                    other.group_m = value;
                }),
            ],
        );
        if self.swap_ab.contains(&!config.swap_ab) {
            found.push(Config {
                swap_ab: !config.swap_ab,
                ..config.clone()
            });
        }
        for other in &mut found {
            other.group_m = self.shortest_group(other, shape);
        }
        found.retain(|other| other != config && self.makes_sense(other, device, shape));
        found
    }

    /// `config` with the canonical grouping among those that walk the tiles of `shape` in the same order.
    #[must_use]
    pub fn canonical(&self, config: &Config, shape: &Shape) -> Config {
        Config {
            group_m: self.shortest_group(config, shape),
            ..config.clone()
        }
    }

    /// Groups as high as the column of tiles, or higher, all give the same order: the lowest is canonical.
    fn shortest_group(&self, config: &Config, shape: &Shape) -> u32 {
        let tile_rows = shape.m.div_ceil(config.block_m);
        let same_order = |group: &u32| *group <= config.group_m && *group >= tile_rows;
        let lowest = self.group_m.iter().copied().filter(same_order).min();
        lowest.unwrap_or(config.group_m)
    }

    fn fits(config: &Config, device: &Device) -> bool {
        if is_rocm(device) {
            config.fits_on_rocm(device.smem_bytes)
        } else {
            device.smem_bytes == 0 || config.tile_bytes() <= device.smem_bytes
        }
    }

    fn makes_sense(&self, config: &Config, device: &Device, shape: &Shape) -> bool {
        let steps = shape.k.div_ceil(config.block_k);
        self.scale_k.is_multiple_of(config.block_k)
            && Self::fits(config, device)
            && config.group_m == self.shortest_group(config, shape)
            && config.split_k <= steps.max(1)
            // Padding X to more than twice the smallest tile that contains it never pays; but Hopper's MMA needs 64
            // rows on its M side, so tiles up to that are kept.
            && (config.block_m <= 64 || config.block_m < 2 * shape.m.next_power_of_two())
    }
}

/// Whether `arch` is one of AMD's names.
pub fn is_rocm(device: &Device) -> bool {
    device.arch.starts_with("gfx")
}

#[cfg(test)]
pub(in crate::tune::backends) mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::problem::Op;

    pub(in crate::tune::backends) fn h100(capabilities: &[&str]) -> Device {
        Device {
            protocol: 1,
            backend: "sglang-triton".to_owned(),
            name: "NVIDIA H100 80GB HBM3".to_owned(),
            arch: "sm_90".to_owned(),
            cu_num: 132,
            index: 0,
            visible: 1,
            l2_bytes: 50 << 20,
            smem_bytes: 232_448,
            versions: std::collections::BTreeMap::new(),
            kernel_hash: String::new(),
            capabilities: capabilities.iter().map(|&name| name.to_owned()).collect(),
            prepare_slots: 8,
            candidates: Vec::new(),
            shipped: String::new(),
            taken_bytes: None,
        }
    }

    /// Every recorded program of two or more stages that was compiled, or refused for its shared memory.
    #[test]
    fn what_fits_on_an_amd_gpu_is_what_its_compiler_said() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/evidence/compile-only");
        let (mut fit, mut refused) = (0, 0);
        for file in fs_err::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_none_or(|ending| ending != "gz") {
                continue;
            }
            let mut text = String::new();
            flate2::read::GzDecoder::new(fs_err::File::open(&path).unwrap())
                .read_to_string(&mut text)
                .unwrap();
            let mut lines = text.lines();
            let head: Value = serde_json::from_str(lines.next().unwrap()).unwrap();
            let limit = head["shared_limit"].as_u64().unwrap();
            for line in lines {
                let answer: Value = serde_json::from_str(line).unwrap();
                let config = Config::read(&answer["candidate"]).unwrap();
                let too_much = answer["detail"]
                    .as_str()
                    .is_some_and(|detail| detail.contains("shared memory"));
                if config.stages < 2 || (answer.get("refused").is_some() && !too_much) {
                    continue;
                }
                assert_eq!(config.fits_on_rocm(limit), !too_much, "{path:?}: {line}");
                *if too_much { &mut refused } else { &mut fit } += 1;
            }
        }
        assert_eq!((fit, refused), (1335, 40));
    }

    pub(in crate::tune::backends) fn shape(m: u32, n: u32, k: u32) -> Shape {
        Shape {
            op: Op::TritonBlockFp8,
            m,
            n,
            k,
            dtype: "torch.float8_e4m3fn".to_owned(),
        }
    }

    #[test]
    fn the_space_holds_sglangs_own() {
        let mut device = h100(&[]);
        device.smem_bytes = 0;
        let configs = Space::of(&device, 128).configs(&device, &shape(20_000, 4096, 4096));
        let upstream = configs.iter().filter(|config| config.stages <= 5).count();
        assert_eq!(upstream, 1280);
        device.arch = "gfx942".to_owned();
        let configs = Space::of(&device, 128).configs(&device, &shape(20_000, 4096, 4096));
        assert_eq!(configs.len(), 600);
    }

    #[test]
    fn what_cannot_fit_or_cannot_differ_is_left_out() {
        let device = h100(&["split_k", "swap_ab"]);
        let configs = Space::of(&device, 128).configs(&device, &shape(1, 4096, 4096));
        assert!(configs.iter().all(|config| config.tile_bytes() <= 232_448));
        assert!(configs.iter().all(|config| config.group_m == 1));
        assert!(
            configs
                .iter()
                .any(|config| config.split_k == 16 && config.swap_ab)
        );
    }

    #[test]
    fn the_plain_kernel_is_not_handed_arguments_it_lacks() {
        let plain = Config::default_for(128, 128);
        let candidate = plain.candidate();
        assert!(candidate.get("SPLIT_K").is_none() && candidate.get("SWAP_AB").is_none());
        let split = Config {
            split_k: 4,
            ..plain
        };
        assert_eq!(split.candidate()["SWAP_AB"], json!(false));
        assert_eq!(Config::read(&split.candidate()), Some(split));
    }

    #[test]
    fn relatives_differ_in_one_setting_and_in_what_groups_mean() {
        let device = h100(&["split_k", "swap_ab"]);
        let space = Space::of(&device, 128);
        let config = Config::default_for(128, 128);
        let shape = shape(512, 4096, 4096);
        let around = space.around(&config, &device, &shape);
        assert!(around.len() >= 10, "{}", around.len());
        for other in &around {
            let differences = [
                config.block_m != other.block_m,
                config.block_n != other.block_n,
                config.block_k != other.block_k,
                config.warps != other.warps,
                config.stages != other.stages,
                config.split_k != other.split_k,
                config.swap_ab != other.swap_ab,
            ];
            let count = differences.iter().filter(|differs| **differs).count();
            assert!(count <= 1, "{other:?}");
            // With eight or fewer rows of tiles, groups of 16 and more give one order.
            assert!(other.block_m < 64 || other.group_m <= 16, "{other:?}");
        }
    }
}
