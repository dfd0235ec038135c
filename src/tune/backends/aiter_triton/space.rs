//! Rows of aiter's Triton GEMM: which there are, and which are one step apart.

use serde_json::{Map, Value, json};

use crate::problem::Shape;
use crate::tune::backends::settings::{each, one_step};
use crate::tune::backends::sglang_triton::space::{Config, LANES, is_rocm};
use crate::tune::protocol::{Candidate, Device};

/// Scale block along K; aiter's wrapper asserts that the step is one.
const BLOCK_K: u32 = 128;

/// Parameters in aiter's files that the wrapper recomputes for every call.
const COMPUTED: [&str; 3] = ["GROUP_K", "GROUP_N", "SPLITK_BLOCK_SIZE"];

/// A row. Settings that only AMD's compiler accepts are absent elsewhere.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
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
    /// Parts of K, added up by a second kernel.
    pub splits: u32,
    /// `waves_per_eu`: waves on a SIMD for which the compiler keeps registers free; 0 for its own choice.
    pub waves: Option<u32>,
    /// `matrix_instr_nonkdim`: the side of the matrix instruction.
    pub side: Option<u32>,
    /// `cache_modifier` of the loads of W: `.cg` to bypass the first-level cache, or none.
    pub cache: Value,
    /// Other keys, such as `kpack`.
    pub others: Map<String, Value>,
}

impl Setting {
    /// The row in a candidate, or in an entry of a file; `None` if a required key is missing.
    pub fn read(candidate: &Candidate) -> Option<Self> {
        let mut others = candidate.as_object()?.clone();
        for name in COMPUTED {
            others.shift_remove(name);
        }
        let cache = others.shift_remove("cache_modifier").unwrap_or(Value::Null);
        let mut take = |name: &str| {
            let number = others.shift_remove(name)?.as_u64()?;
            u32::try_from(number).ok()
        };
        Some(Self {
            block_m: take("BLOCK_SIZE_M")?,
            block_n: take("BLOCK_SIZE_N")?,
            block_k: take("BLOCK_SIZE_K")?,
            group_m: take("GROUP_SIZE_M")?,
            warps: take("num_warps")?,
            stages: take("num_stages")?,
            splits: take("NUM_KSPLIT").unwrap_or(1),
            waves: take("waves_per_eu"),
            side: take("matrix_instr_nonkdim"),
            cache,
            others,
        })
    }

    /// The row as aiter's files have it.
    pub fn candidate(&self) -> Candidate {
        let mut row = Map::new();
        let mut put = |name: &str, value: u32| row.insert(name.to_owned(), json!(value));
        put("BLOCK_SIZE_M", self.block_m);
        put("BLOCK_SIZE_N", self.block_n);
        put("BLOCK_SIZE_K", self.block_k);
        put("GROUP_SIZE_M", self.group_m);
        put("num_warps", self.warps);
        put("num_stages", self.stages);
        if let Some(waves) = self.waves {
            put("waves_per_eu", waves);
        }
        if let Some(side) = self.side {
            put("matrix_instr_nonkdim", side);
        }
        row.insert("cache_modifier".to_owned(), self.cache.clone());
        row.insert("NUM_KSPLIT".to_owned(), json!(self.splits));
        row.extend(self.others.clone());
        Value::Object(row)
    }

    /// The initial `waves_per_eu`. With 2, the value that aiter's rows have most often, a thread that sums more than
    /// 32 elements spills registers on gfx942, and with 0 none does (`docs/evidence/compile-only`).
    fn first_waves(&self) -> u32 {
        let summed = self.block_m * self.block_n / (self.warps * LANES);
        if summed <= 32 { 2 } else { 0 }
    }

    /// The corresponding configuration of SGLang's kernel, which has the same tiles and steps: the race's order is
    /// computed from it.
    pub fn as_sglang(&self) -> Config {
        Config {
            block_m: self.block_m,
            block_n: self.block_n,
            block_k: self.block_k,
            group_m: self.group_m,
            warps: self.warps,
            stages: self.stages,
            split_k: self.splits,
            swap_ab: false,
            others: Map::new(),
        }
    }
}

/// The values that each setting may take on one vendor's devices.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    block_m: &'static [u32],
    block_n: &'static [u32],
    group_m: Values,
    warps: &'static [u32],
    stages: Values,
    waves: &'static [u32],
    sides: &'static [u32],
}

/// Values of which a race starts with some; the others come up as steps from a leader.
#[derive(Clone, Copy, Debug)]
struct Values {
    first: &'static [u32],
    all: &'static [u32],
}

/// Values in the rows that aiter has shipped (744 rows of 184 tags up to e4048607, `testdata/aiter-tables`). Tiles of 4 rows
/// leave part of the matrix instruction unused, which has 16.
const ROCM: Space = Space {
    block_m: &[4, 8, 16, 32, 64, 128, 256],
    block_n: &[16, 32, 64, 128, 256],
    group_m: GROUPS,
    warps: &[1, 2, 4, 8],
    stages: Values {
        first: &[1, 2, 3],
        all: &[1, 2, 3, 5],
    },
    waves: &[0, 1, 2, 4, 6, 8],
    sides: &[16, 32],
};

/// CUDA: the same tiles and warps, because a row with 4 rows and one warp was the fastest on an H200
/// (`docs/evidence/aiter-triton-h200`), and stages as SGLang's own tuner tries them.
const CUDA: Space = Space {
    stages: Values {
        first: &[2, 3, 4, 5],
        all: &[1, 2, 3, 4, 5],
    },
    waves: &[],
    sides: &[],
    ..ROCM
};

const GROUPS: Values = Values {
    first: &[1, 4, 8],
    all: &[1, 2, 4, 5, 8, 16, 32],
};

/// `cache_modifier` of the loads of W, besides none.
const CACHES: [&str; 2] = [".cg", ".ca"];

/// Most elements that a thread may sum: more do not fit its 512 registers together with the operands.
const MOST_SUMMED: u32 = 256;

/// Largest number of parts of K in aiter's rows.
const MOST_SPLITS: u32 = 28;

impl Space {
    /// The space on `device`.
    pub fn of(device: &Device) -> Self {
        if is_rocm(device) { ROCM } else { CUDA }
    }

    /// Every setting of tiles, warps, stages and splits that can make sense for `shape`. What only AMD's compiler
    /// accepts is derived from them; [`Space::around`] has its other values.
    pub fn settings(&self, device: &Device, shape: &Shape) -> Vec<Setting> {
        let first = Setting {
            block_m: 0,
            block_n: 0,
            block_k: BLOCK_K,
            group_m: 1,
            warps: 0,
            stages: 0,
            splits: 1,
            waves: None,
            side: self.sides.first().copied(),
            // Rows for few tokens read each weight once.
            cache: if shape.m <= 64 {
                json!(".cg")
            } else {
                Value::Null
            },
            others: Map::new(),
        };
        let mut found = vec![first];
        found = each(&found, self.block_m, |row, value| row.block_m = value);
        found = each(&found, self.block_n, |row, value| row.block_n = value);
        found = each(&found, self.group_m.first, |row, value| row.group_m = value);
        found = each(&found, self.warps, |row, value| row.warps = value);
        found = each(&found, self.stages.first, |row, value| row.stages = value);
        found = each(&found, &splits(shape.k), |row, value| row.splits = value);
        found.retain(|setting| {
            // A tile that is half empty comes up as a step only.
            makes_sense(setting, self.group_m.first, device, shape)
                && (setting.block_m <= 16 || setting.block_m <= tokens(shape))
        });
        if is_rocm(device) && shape.m == 1 {
            // Triton 3.6 fails on each of them for gfx942 (`docs/evidence/compile-only`). As steps from the leaders
            // they are tried nevertheless, because another compiler may accept them.
            found.retain(|setting| setting.stages < 3);
        }
        if !self.waves.is_empty() {
            for setting in &mut found {
                setting.waves = Some(setting.first_waves());
            }
        }
        found
    }

    /// Settings one step from `setting`.
    pub fn around(&self, setting: &Setting, device: &Device, shape: &Shape) -> Vec<Setting> {
        let (waves, side) = (setting.waves.unwrap_or(0), setting.side.unwrap_or(0));
        let mut found = one_step(
            setting,
            &[
                (self.block_m, setting.block_m, |other, value| {
                    other.block_m = value;
                }),
                (self.block_n, setting.block_n, |other, value| {
                    other.block_n = value;
                }),
                (self.warps, setting.warps, |other, value| {
                    other.warps = value;
                }),
                (self.stages.all, setting.stages, |other, value| {
                    other.stages = value;
                }),
                (&splits(shape.k), setting.splits, |other, value| {
                    other.splits = value;
                }),
                (self.group_m.all, setting.group_m, |other, value| {
                    other.group_m = value;
                }),
                (self.waves, waves, |other, value| other.waves = Some(value)),
                (self.sides, side, |other, value| other.side = Some(value)),
            ],
        );
        let caches = std::iter::once(Value::Null).chain(CACHES.map(Value::from));
        found.extend(
            caches
                .filter(|cache| *cache != setting.cache)
                .map(|cache| Setting {
                    cache,
                    ..setting.clone()
                }),
        );
        found.retain(|other| makes_sense(other, self.group_m.all, device, shape));
        found
    }
}

/// Whether `setting` is worth a try, and of the `groups` that are one order for it the first.
fn makes_sense(setting: &Setting, groups: &[u32], device: &Device, shape: &Shape) -> bool {
    let tile_rows = shape.m.div_ceil(setting.block_m);
    // Groups as high as the column of tiles all give the same order; with splits the kernel does not read the
    // group at all.
    let mut groups = groups.iter().copied();
    let group =
        groups.find(|&group| setting.splits > 1 || group >= setting.group_m || group >= tile_rows);
    let shared = u64::from(setting.stages.saturating_sub(1).max(1))
        * u64::from(setting.block_m + setting.block_n)
        * u64::from(setting.block_k);
    let fits = if is_rocm(device) {
        setting.as_sglang().fits_on_rocm(device.smem_bytes)
    } else {
        device.smem_bytes == 0 || shared <= device.smem_bytes
    };
    group == Some(setting.group_m)
        && fits
        && (setting.block_m <= 16 || setting.block_m <= 2 * tokens(shape))
        && (setting.block_n <= 16 || setting.block_n < 2 * shape.n.next_power_of_two())
        && setting.block_m * setting.block_n <= setting.warps * LANES * MOST_SUMMED
}

/// Rows of X, as far as the height of a tile follows them.
fn tokens(shape: &Shape) -> u32 {
    shape.m.next_power_of_two().max(32)
}

/// Parts into which K can be split: equal ones of whole scale blocks, because the kernel reads past the end of a row
/// in a shorter last part.
pub fn splits(k: u32) -> Vec<u32> {
    let blocks = k / BLOCK_K;
    (1..=MOST_SPLITS)
        .filter(|&splits| {
            splits == 1
                || (k.is_multiple_of(BLOCK_K) && blocks.is_multiple_of(splits) && blocks > splits)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{gfx942, shape};
    use super::*;
    use crate::tune::backends::sglang_triton::space::tests::h100;

    #[test]
    fn parts_of_k_are_all_alike() {
        assert_eq!(splits(7168), [1, 2, 4, 7, 8, 14, 28]);
        assert_eq!(splits(1536), [1, 2, 3, 4, 6]);
        assert_eq!(splits(512), [1, 2]);
        assert_eq!(splits(4160), [1]);
    }

    #[test]
    fn a_row_is_read_back_as_written_without_what_the_wrapper_computes() {
        let row = json!({"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1, "num_warps": 2,
            "num_stages": 2, "waves_per_eu": 1, "matrix_instr_nonkdim": 16, "cache_modifier": ".cg", "NUM_KSPLIT": 4,
            "GROUP_K": 128, "GROUP_N": 128, "kpack": 2, "SPLITK_BLOCK_SIZE": 1792});
        let read = Setting::read(&row).unwrap();
        assert_eq!((read.splits, read.waves, read.side), (4, Some(1), Some(16)));
        let written = read.candidate();
        assert_eq!(written["kpack"], 2);
        assert!(written.get("GROUP_K").is_none());
        assert_eq!(Setting::read(&written), Some(read));
        assert_eq!(Setting::read(&json!({"BLOCK_SIZE_M": 16})), None);
    }

    #[test]
    fn only_amd_gets_options_of_its_compiler() {
        let shape = shape(16, 2112, 7168);
        for (device, has) in [(gfx942(), true), (h100(&[]), false)] {
            let space = Space::of(&device);
            let settings = space.settings(&device, &shape);
            assert!(settings.len() > 100, "{}", settings.len());
            let around = space.around(&settings[0], &device, &shape);
            assert!(around.len() > 4, "{around:?}");
            for one in settings.iter().chain(&around) {
                let row = one.candidate();
                assert_eq!(row.get("waves_per_eu").is_some(), has, "{row}");
                assert_eq!(row.get("matrix_instr_nonkdim").is_some(), has, "{row}");
                assert!(splits(7168).contains(&one.splits));
            }
        }
    }

    #[test]
    fn what_no_compiler_took_for_one_row_is_no_beginning_but_a_step() {
        let device = gfx942();
        let (space, one) = (Space::of(&device), shape(1, 2112, 7168));
        let settings = space.settings(&device, &one);
        assert!(settings.iter().all(|setting| setting.stages < 3));
        let two = settings.iter().find(|setting| setting.stages == 2).unwrap();
        let around = space.around(two, &device, &one);
        assert!(around.iter().any(|setting| setting.stages == 3));
        let more = space.settings(&device, &shape(16, 2112, 7168));
        assert!(more.iter().any(|setting| setting.stages == 3));
    }

    #[test]
    fn groups_that_change_nothing_stand_once() {
        let device = gfx942();
        let settings = Space::of(&device).settings(&device, &shape(16, 2112, 7168));
        // Two rows of tiles are walked together or they are not.
        assert!(
            settings
                .iter()
                .all(|one| one.group_m == 1 || one.block_m <= 8 && one.group_m == 4)
        );
        let settings = Space::of(&device).settings(&device, &shape(4096, 2112, 7168));
        assert!(settings.iter().any(|one| one.group_m == 8));
        assert!(
            settings
                .iter()
                .all(|one| one.splits == 1 || one.group_m == 1)
        );
    }
    /// Every row that aiter has shipped for a GEMM with scale blocks, by the file it stands in.
    const SHIPPED: &str =
        include_str!("../../../../testdata/aiter-tables/triton_blockscale_rows.csv");

    /// The row as a setting, with the number of tokens that its bucket goes up to; files of v0.1.7 and v0.1.8, which are not tuned,
    /// name their buckets otherwise.
    fn shipped(cells: &csv::StringRecord) -> (Setting, Option<u32>) {
        let number = |at: usize| cells[at].parse::<u32>().ok();
        let setting = Setting {
            block_m: number(4).unwrap(),
            block_n: number(5).unwrap(),
            block_k: number(6).unwrap(),
            group_m: number(7).unwrap(),
            warps: number(8).unwrap(),
            stages: number(9).unwrap(),
            waves: number(10),
            side: number(11),
            cache: if cells[12].is_empty() {
                Value::Null
            } else {
                json!(cells[12])
            },
            splits: number(13).unwrap(),
            others: Map::new(),
        };
        let bound = cells[3].strip_prefix("M_LEQ_");
        let last = match &cells[3] {
            "any" => Some(8192),
            _ => bound.and_then(|bound| bound.parse().ok()),
        };
        (setting, last)
    }

    #[test]
    fn every_row_that_aiter_has_shipped_is_in_the_space() {
        let mut reader = csv::Reader::from_reader(SHIPPED.as_bytes());
        let (mut rows, mut tried) = (0, 0);
        for cells in reader.records() {
            let cells = cells.unwrap();
            let (row, last) = shipped(&cells);
            rows += 1;
            for space in [ROCM, CUDA] {
                let holds = |values: &[u32], value: u32| {
                    assert!(values.contains(&value), "{value} of {cells:?}");
                };
                holds(space.block_m, row.block_m);
                holds(space.block_n, row.block_n);
                holds(&[BLOCK_K], row.block_k);
                holds(space.group_m.all, row.group_m);
                holds(space.warps, row.warps);
                holds(space.stages.all, row.stages);
            }
            let is_one = |values: &[u32], value: Option<u32>| {
                value.is_none_or(|value| values.contains(&value))
            };
            assert!(
                is_one(ROCM.waves, row.waves) && is_one(ROCM.sides, row.side),
                "{cells:?}"
            );
            assert!(
                row.cache.is_null() || CACHES.map(Value::from).contains(&row.cache),
                "{cells:?}"
            );
            let device = match &cells[0] {
                "gfx942" => gfx942(),
                "gfx950" => Device {
                    smem_bytes: 160 << 10,
                    ..gfx942()
                },
                _ => continue,
            };
            let (Some(last), Ok(n), Ok(k)) = (last, cells[1].parse(), cells[2].parse()) else {
                continue;
            };
            tried += 1;
            let of = shape(last, n, k);
            assert!(splits(k).contains(&row.splits), "{cells:?}");
            // Of groups that are one order for the row's sizes one stands for all.
            let stands = |group: &u32| {
                let other = Setting {
                    group_m: *group,
                    ..row.clone()
                };
                makes_sense(&other, GROUPS.all, &device, &of)
            };
            assert!(GROUPS.all.iter().any(stands), "{cells:?}");
        }
        assert_eq!((rows, tried), (744, 320));
    }
}
