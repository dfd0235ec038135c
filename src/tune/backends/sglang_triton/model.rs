//! Predicts how long a configuration takes, accurately enough to decide which to try first.
//!
//! Tiles run in waves over the multiprocessors; a step of a tile's main loop takes as long as the slowest of the
//! matrix unit, the cache, the memory behind it, the latency that the pipeline does not hide, and the scaling of the
//! accumulator. The numbers marked *fitted* were chosen so that the first 4 to 24 configurations contain the best of
//! an exhaustive sweep on one H100 (`docs/evidence/sglang-triton-h100`): the first 16 of the order reach 99.7 % of
//! its best in geometric mean, 96.9 % at worst; with an (N, K) left out of the fit still 99.5 % there. On other
//! devices rates are scaled by the data sheets, and the order is a first guess. A race never drops a candidate
//! because of the prediction; it is only tried later.

use super::space::{Config, is_rocm};
use crate::problem::Shape;
use crate::tune::protocol::Device;

/// The properties of a device that the model uses.
#[derive(Clone, Copy, Debug)]
struct Machine {
    /// Units that run blocks.
    units: f64,
    /// Bytes per µs from memory, for all units together.
    memory: f64,
    /// Bytes per µs from the last-level cache, for all units together.
    cache: f64,
    /// FP8 operations per µs of all matrix units together.
    matrix: f64,
    /// Shared memory of a unit, bytes.
    shared: f64,
}

impl Machine {
    fn of(device: &Device) -> Self {
        // Relative to an H100: vendor data sheets, dense FP8 and memory bandwidth: H100 SXM 1,979 TFLOP/s and 3.35
        // TB/s, B200 4,500 and 8.0, MI300X 2,615 and 5.3, L40S 733 and 0.86 (for any other arch).
        let (matrix, memory) = match device.arch.as_str() {
            "sm_90" => (1.0, 1.0),
            "sm_100" | "sm_103" => (2.3, 2.4),
            _ if is_rocm(device) => (1.3, 1.6),
            _ => (0.37, 0.26),
        };
        Self {
            units: f64::from(device.cu_num.max(1)),
            // Measured on an H100: a 2 GiB copy, an 8192-cubed FP8 product. The cache's 5.5 TB/s is nominal.
            memory: 3.0e6 * memory,
            cache: 5.5e6 * memory,
            matrix: 1394e6 * matrix,
            shared: if device.smem_bytes == 0 {
                64e3
            } else {
                device.smem_bytes as f64
            },
        }
    }
}

/// Registers of a unit; one thread can have 255.
const REGISTERS: f64 = 65_536.0;
const REGISTERS_OF_A_THREAD: f64 = 255.0;

/// Registers of a thread besides accumulator and product; fitted.
const OTHER_REGISTERS: f64 = 34.623;
/// Share of the matrix rate that this kernel reaches with a side of at least 128; fitted.
const EFFICIENCY: f64 = 0.253;
/// Exponent with which that share falls for a shorter side; fitted.
const SHORT_SIDE: f64 = 0.512;
/// The share if the tile is lower than a Hopper matrix instruction (64 rows); fitted.
const LOW_TILE: f64 = 0.05;
/// Latency of one step that an unpipelined loop would wait for, µs; fitted.
const LATENCY: f64 = 2.478;
/// Scaling one step's product into the accumulator, µs, and how that grows with blocks on a
/// multiprocessor; fitted.
const SCALING: f64 = 0.293;
const SCALING_GROWTH: f64 = 1.123;
/// Start and end of a wave, µs; fitted.
const WAVE: f64 = 5.0;
/// The launch that adds split-K's parts, µs; fitted.
const SUM: f64 = 4.0;
/// What K in blocks of 64 costs over blocks of 128; fitted.
const SHORT_K: f64 = 1.464;

/// Seconds that `config` should take on `shape`; infinite where a block needs more shared memory than there is.
pub fn seconds(device: &Device, shape: &Shape, config: &Config) -> f64 {
    let machine = Machine::of(device);
    let [block_m, block_n, block_k] =
        [config.block_m, config.block_n, config.block_k].map(f64::from);
    let [stages, split_k] = [config.stages, config.split_k.max(1)].map(f64::from);
    let threads = f64::from(config.warps * 32);
    let down = f64::from(shape.m.div_ceil(config.block_m));
    let across = f64::from(shape.n.div_ceil(config.block_n));
    let blocks = down * across * split_k;
    let steps = (f64::from(shape.k.div_ceil(config.block_k)) / split_k).ceil();

    // Swapped, the weights' side of the tile is the instruction's long side. A tile lower than the instruction uses
    // the older path, which keeps one stage in registers.
    let (high, wide) = if config.swap_ab {
        (block_n, block_m)
    } else {
        (block_m, block_n)
    };
    let low_tile = block_m < 64.0 && !config.swap_ab;
    let in_shared = if low_tile {
        (stages - 1.0).max(1.0)
    } else {
        stages
    };
    let shared = in_shared * (block_m + block_n) * block_k;
    if shared > machine.shared {
        return f64::INFINITY;
    }
    let registers = block_m * block_n * 2.0 / threads + OTHER_REGISTERS;
    let spilling = 1.0 + (registers - REGISTERS_OF_A_THREAD).max(0.0) / 64.0;
    let by_registers = REGISTERS / (threads * registers.min(REGISTERS_OF_A_THREAD));
    let by_shared = machine.shared / shared;
    let resident = by_registers.min(by_shared).floor().clamp(1.0, 32.0);
    let at_once = blocks.min(machine.units * resident);
    let waves = blocks / at_once;
    // Many waves average out; with a few, the last costs as much as a full one.
    let waves = if waves < 6.0 { waves.ceil() } else { waves };

    let efficiency = if high >= 64.0 {
        let mut share = EFFICIENCY * (wide / 128.0).min(1.0).powf(SHORT_SIDE);
        if high * wide / threads > 128.0 {
            share *= 0.8;
        }
        if config.warps == 8 && high < 128.0 {
            share *= 0.7;
        }
        share
    } else {
        LOW_TILE
    };
    let matrix =
        2.0 * block_m * block_n * block_k * at_once / (machine.matrix * efficiency) * spilling;
    let cache = (block_m + block_n) * block_k * at_once / machine.cache;
    // Tiles of one column that run together read a weight from memory once.
    let together = down.min(at_once / (across * split_k).max(1.0)).max(1.0);
    let memory = block_n * block_k * at_once / machine.memory / together;
    let latency = LATENCY / (stages - 1.0).max(1.0);
    let scaling = SCALING * (at_once / machine.units).ceil().powf(SCALING_GROWTH);
    let step = matrix.max(cache).max(memory).max(latency).max(scaling);

    let mut us = waves * (steps * step + WAVE);
    if config.split_k > 1 {
        let elements = f64::from(shape.m) * f64::from(shape.n);
        us += SUM + split_k * elements * 8.0 / machine.cache;
    }
    if config.block_k < 128 {
        us *= SHORT_K;
    }
    us * 1e-6
}

#[cfg(test)]
mod tests {
    use super::super::space::Space;
    use super::super::space::tests::{h100, shape};
    use super::*;

    fn first(shape: &Shape, capabilities: &[&str], count: usize) -> Vec<Config> {
        let device = h100(capabilities);
        let mut configs = Space::of(&device, 128).configs(&device, shape);
        configs.sort_by(|a, b| seconds(&device, shape, a).total_cmp(&seconds(&device, shape, b)));
        configs.truncate(count);
        configs
    }

    #[test]
    fn one_row_wants_narrow_deep_tiles_before_the_default() {
        let device = h100(&[]);
        let shape = shape(1, 4096, 4096);
        let default = seconds(&device, &shape, &Config::default_for(128, 128));
        for config in first(&shape, &[], 4) {
            assert!(config.block_n <= 64 && config.stages >= 4, "{config:?}");
            assert!(seconds(&device, &shape, &config) < 0.8 * default);
        }
    }

    #[test]
    fn many_rows_want_the_tile_that_hopper_runs_best() {
        for config in first(&shape(4096, 4096, 4096), &[], 4) {
            assert_eq!(
                (config.block_m, config.block_n, config.block_k),
                (64, 128, 128)
            );
        }
    }

    #[test]
    fn splitting_k_pays_where_tiles_are_few_and_costs_where_they_are_many() {
        let device = h100(&["split_k"]);
        let whole = Config::default_for(128, 128);
        let split = Config {
            split_k: 4,
            ..whole.clone()
        };
        let few = shape(16, 4096, 12288);
        assert!(seconds(&device, &few, &split) < seconds(&device, &few, &whole));
        let many = shape(4096, 24576, 4096);
        assert!(seconds(&device, &many, &split) > seconds(&device, &many, &whole));
    }

    #[test]
    fn a_block_that_does_not_fit_comes_last() {
        let huge = Config {
            block_m: 256,
            block_n: 256,
            stages: 5,
            ..Config::default_for(128, 128)
        };
        assert!(seconds(&h100(&[]), &shape(4096, 4096, 4096), &huge).is_infinite());
    }
}
