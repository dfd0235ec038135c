//! How long a configuration should take, well enough to say which to try first.
//!
//! An order, not a prediction: bytes, waves, occupancy and pipeline depth, each with the one number that
//! matters. A race never drops a candidate because of it; it only comes later.

use super::space::{Config, is_rocm};
use crate::shape::Shape;
use crate::tune::protocol::Device;

/// What the order needs to know of a device.
#[derive(Clone, Copy, Debug)]
struct Machine {
    /// Units that run blocks.
    units: f64,
    /// Bytes per second from memory, all units together.
    memory: f64,
    /// Bytes per second from the last-level cache, all units together.
    cache: f64,
    /// FP8 operations per second of the matrix units, all together.
    matrix: f64,
    /// float32 operations per second of the vector units, all together: what scaling costs.
    vector: f64,
    /// Shared memory of a unit, bytes.
    shared: f64,
    /// Seconds from asking for a tile to having it.
    latency: f64,
    /// Seconds that a second, summing launch takes.
    launch: f64,
}

impl Machine {
    fn of(device: &Device) -> Self {
        // Vendor data sheets, dense FP8 and memory bandwidth: H100 SXM 1,979 TFLOP/s and 3.35 TB/s,
        // B200 4,500 and 8.0, MI300X 2,615 and 5.3, L40S 733 and 0.86 (for any other arch). Cache
        // bandwidth is taken as 1.7 times memory bandwidth. Only ratios matter here.
        let (matrix, memory) = match device.arch.as_str() {
            "sm_90" => (1979e12, 3.35e12),
            "sm_100" | "sm_103" => (4500e12, 8.0e12),
            _ if is_rocm(device) => (2615e12, 5.3e12),
            _ => (733e12, 0.86e12),
        };
        Self {
            units: f64::from(device.cu_num.max(1)),
            memory,
            cache: 1.7 * memory,
            matrix,
            // A matrix unit does 30 FP8 operations in the time of one float32 operation (H100: 1,979
            // against 67 TFLOP/s).
            vector: matrix / 30.0,
            shared: if device.smem_bytes == 0 {
                64e3
            } else {
                device.smem_bytes as f64
            },
            latency: 0.8e-6,
            launch: 2.5e-6,
        }
    }
}

/// Seconds that `config` should take on `shape`.
pub fn seconds(device: &Device, shape: &Shape, config: &Config) -> f64 {
    let machine = Machine::of(device);
    let (m, n, k) = (f64::from(shape.m), f64::from(shape.n), f64::from(shape.k));
    let (block_m, block_n, block_k) = (
        f64::from(config.block_m),
        f64::from(config.block_n),
        f64::from(config.block_k),
    );
    let split = f64::from(config.split_k.max(1));
    let rows = (m / block_m).ceil();
    let columns = (n / block_n).ceil();
    let tiles = rows * columns * split;
    let steps = ((k / block_k).ceil() / split).ceil();

    // Registers: the sum and the product of a step, over the threads of a block; beyond 255 they spill.
    let threads = 32.0 * f64::from(config.warps);
    let registers = 2.0 * block_m * block_n / threads + 60.0;
    let spill = (registers / 255.0).max(1.0).powi(2);
    let by_shared = (machine.shared / config.tile_bytes() as f64).floor();
    let by_registers = (65_536.0 / (registers.min(255.0) * threads)).floor();
    let resident = by_shared.min(by_registers).clamp(1.0, 8.0);
    // Blocks that really share a unit.
    let together = resident.min((tiles / machine.units).ceil());
    let waves = (tiles / (machine.units * together)).ceil();

    // One step of one block while `together` of them share a unit.
    let per_unit = |total: f64| total / machine.units / together;
    let side = if config.swap_ab { block_n } else { block_m };
    // Hopper's warp-group MMA needs 64 rows on its M side; below, the older instruction does at half rate.
    let rate = if device.arch == "sm_90" && side < 64.0 {
        0.5
    } else {
        1.0
    };
    let multiply = 2.0 * block_m * block_n * block_k / per_unit(machine.matrix * rate);
    let scale = 3.0 * block_m * block_n / per_unit(machine.vector);
    let bytes = (block_m + block_n) * block_k;
    let load = bytes / per_unit(machine.cache);
    // So many steps are on their way at once; with one, every step waits for its own bytes.
    let wait = machine.latency / f64::from(config.stages.saturating_sub(1).max(1));
    let step = (multiply + scale * spill).max(load).max(wait);
    let block =
        machine.latency * 2.0 + steps * step + block_m * block_n * 4.0 / per_unit(machine.cache);

    // From memory: everything once, and once more for each wave that walks past what the cache holds.
    let once = m * k + n * k + 2.0 * m * n;
    let in_flight = (machine.units * together).min(tiles);
    let group = f64::from(config.group_m).min(rows);
    let across = (in_flight / group).min(columns);
    let walked = waves * (group.min(in_flight) * block_m + across * block_n) * k / split;
    let from_memory = if n * k > device.l2_bytes as f64 {
        once.max(walked)
    } else {
        once
    };
    let partial = if split > 1.0 {
        machine.launch + 2.0 * 4.0 * split * m * n / machine.cache
    } else {
        0.0
    };
    (waves * block).max(from_memory / machine.memory) + partial
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

    /// The best found in a quick search on one H100, M = 1 (24 to 72 configurations a shape, cold L2), were
    /// narrow in N and deep; the default (64 x 128, 3 stages) took twice as long.
    #[test]
    fn one_row_wants_narrow_deep_tiles_before_the_default() {
        let device = h100(&[]);
        let shape = shape(1, 4096, 4096);
        let default = seconds(&device, &shape, &Config::default_for(128, 128));
        for config in first(&shape, &[], 16) {
            assert!(config.block_n <= 64 && config.stages >= 4, "{config:?}");
            assert!(seconds(&device, &shape, &config) < 0.8 * default);
        }
    }

    #[test]
    fn many_rows_want_large_tiles() {
        for config in first(&shape(4096, 4096, 4096), &[], 8) {
            assert!(config.block_m * config.block_n >= 128 * 64, "{config:?}");
            assert_eq!(config.block_k, 128, "{config:?}");
        }
    }

    #[test]
    fn a_narrow_weight_wants_its_k_split() {
        let configs = first(&shape(8, 512, 7168), &["split_k", "swap_ab"], 8);
        assert!(
            configs.iter().all(|config| config.split_k > 1),
            "{configs:?}"
        );
    }
}
