//! Peak rates of devices, and the least time that a GEMM can take.
//!
//! The figures are the vendors' dense peaks. They bound a measurement from below (lint) and weight shapes relative to
//! one another (plan); they do not predict what a kernel achieves.

use super::aiter::Row;
use super::devices;
use crate::problem::{Op, Shape};

/// A device's peak rates.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// Its name in messages.
    pub name: String,
    /// Dense FP8 (or INT8) operations per second.
    pub fp8_flops: f64,
    /// Dense FP4 operations per second, where the device has them.
    pub fp4_flops: Option<f64>,
    /// Main memory, bytes per second, of the slowest part with this name.
    pub memory: f64,
    /// Main memory, bytes per second, of the fastest part with this name.
    pub memory_most: f64,
    /// Last-level cache, bytes; 0 where unknown.
    pub cache_bytes: f64,
    /// Last-level cache, bytes per second; equals `memory_most` where unknown.
    pub cache: f64,
    /// Shortest time of any launched kernel in microseconds.
    pub floor_us: f64,
    /// Where the figures come from.
    pub source: &'static str,
}

const TERA: f64 = 1e12;
const MIB: f64 = 1024.0 * 1024.0;
/// Smallest credible time in aiter's shipped FP8 tables (e4048607a5: 2.41 us, M=4, N=256, K=512 on
/// gfx950), rounded down; NVIDIA parts are given the same.
const GPU_FLOOR_US: f64 = 2.0;

impl Device {
    /// The device that a table key identifies. Rates scale with the compute units, memory does not: a partition can
    /// use the whole bandwidth of its part.
    pub fn of_key(gfx: &str, cu_num: u32) -> Option<Self> {
        let units = f64::from(cu_num);
        let (per_unit, fp4, memory, memory_most, cache, source) = match gfx {
            // 4096 FP8 operations per clock and unit at 2.1 GHz: 2614.9 TFLOPS over 304 units.
            "gfx940" | "gfx941" | "gfx942" => (
                4096.0 * 2.1e9,
                None,
                5.3 * TERA,
                if cu_num == 80 { 5.3 * TERA } else { 6.0 * TERA },
                17.2 * TERA,
                "AMD Instinct MI300X data sheet: 2614.9 TFLOPS FP8, 5.3 TB/s, Infinity Cache 256 MB at 17.2 TB/s; MI325X: 6.0 TB/s",
            ),
            // 8192 per clock and unit at 2.4 GHz: 5033 TFLOPS over 256 units.
            "gfx950" => (
                8192.0 * 2.4e9,
                Some(16384.0 * 2.4e9),
                8.0 * TERA,
                8.0 * TERA,
                17.2 * TERA,
                "AMD Instinct MI355X data sheet: 5033 TFLOPS FP8, 10066 TFLOPS FP4, 8 TB/s; cache rate as MI300X",
            ),
            "gfx1250" => (
                20e15 / 256.0,
                Some(40e15 / 256.0),
                19.6 * TERA,
                19.6 * TERA,
                40.0 * TERA,
                "AMD's announcement of MI455X: 20 PFLOPS FP8, 40 PFLOPS FP4, 19.6 TB/s; cache rate assumed twice that",
            ),
            _ => return None,
        };
        Some(Self {
            name: format!("{gfx} with {cu_num} compute units"),
            fp8_flops: per_unit * units,
            fp4_flops: fp4.map(|rate: f64| rate * units),
            memory,
            memory_most,
            cache_bytes: 256.0 * MIB,
            cache,
            floor_us: GPU_FLOOR_US,
            source,
        })
    }

    /// The device a row was measured on; without an architecture, the one implied by its compute units.
    pub fn of_row(row: &Row) -> Option<Self> {
        let cu_num = row.cu_num?;
        Self::of_key(
            row.gfx.as_deref().or_else(|| gfx_of_cu_num(cu_num))?,
            cu_num,
        )
    }

    /// The device whose `torch.cuda.get_device_name()` (blanks or underscores) this is.
    pub fn of_name(name: &str) -> Option<Self> {
        if let Some((gfx, cu_num)) = devices::key(name) {
            return Self::of_key(gfx, cu_num);
        }
        let peak = devices::peaks(name)?;
        Some(Self {
            name: name.replace(' ', "_"),
            fp8_flops: peak.tera_ops * TERA,
            fp4_flops: None,
            memory: peak.tera_bytes * TERA,
            memory_most: peak.tera_bytes * TERA,
            cache_bytes: peak.cache_mib * MIB,
            cache: peak.tera_bytes * TERA * 4.0,
            floor_us: GPU_FLOOR_US,
            source: peak.source,
        })
    }

    /// A device of unknown make with `units` multiprocessors or compute units: its rates only weight shapes relative
    /// to one another.
    pub fn unknown(name: &str, units: u32) -> Self {
        // An H100's rates, scaled by the number of multiprocessors.
        let mut device = Self::measured(name, f64::from(units) * 1.5e13, 3e12);
        device.source = "assumed: an H100's rates by its multiprocessors";
        device
    }

    /// A device whose rates were measured or given: operations and bytes per second.
    pub fn measured(name: &str, flops: f64, memory: f64) -> Self {
        Self {
            name: name.to_owned(),
            fp8_flops: flops,
            fp4_flops: None,
            memory,
            memory_most: memory,
            cache_bytes: 0.0,
            cache: memory,
            floor_us: 0.0,
            source: "measured or given",
        }
    }

    /// Peak operations per second for `op`; `None` where the device cannot run it.
    pub fn flops(&self, op: Op) -> Option<f64> {
        if op.facts().element_bytes < 1.0 {
            self.fp4_flops
        } else {
            Some(self.fp8_flops)
        }
    }

    /// The roofline time of one call in microseconds: the largest of arithmetic, memory and launch time.
    pub fn estimate_us(&self, shape: &Shape) -> f64 {
        let flops = self.flops(shape.op).unwrap_or(self.fp8_flops);
        let compute = shape.flops() / flops;
        let moving = bytes(shape.op, shape.m, shape.n, shape.k) / self.memory;
        (compute.max(moving) * 1e6).max(self.floor_us)
    }
}

/// Bytes of both inputs and the output of one call, as aiter's tuner counts them (scales left out):
/// `base_tuner.py`, `calculate`, at e4048607a5.
pub fn bytes(op: Op, m: u32, n: u32, k: u32) -> f64 {
    let (m, n, k) = (f64::from(m), f64::from(n), f64::from(k));
    let input = op.facts().element_bytes;
    (m * k + n * k) * input + m * n * 2.0
}

/// The `tflops` column: 2·M·N·K / us in 10^12 per second, not rounded.
pub fn tflops(m: u32, n: u32, k: u32, us: f64) -> f64 {
    2.0 * f64::from(m) * f64::from(n) * f64::from(k) / us / 1e6
}

/// The `bw` column: [`bytes`] / us in 10^9 bytes per second, not rounded.
pub fn bandwidth(op: Op, m: u32, n: u32, k: u32, us: f64) -> f64 {
    bytes(op, m, n, k) / us / 1e3
}

/// Why `row` claims more than its device can do, if it does. A row whose device is unknown, or without a positive
/// time, makes no claim.
pub fn impossible(op: Op, row: &Row) -> Option<String> {
    let us = row.us.filter(|us| us.is_finite() && *us > 0.0)?;
    let device = Device::of_row(row)?;
    let peak = device.flops(op)?;
    let reached = tflops(row.m, row.n, row.k, us);
    if reached * 1e12 > peak {
        return Some(format!(
            "{us} us means {reached:.0} TFLOPS; {} does at most {:.0}",
            device.name,
            peak / 1e12
        ));
    }
    let moved = bandwidth(op, row.m, row.n, row.k, us);
    let (most, from) = if bytes(op, row.m, row.n, row.k) <= device.cache_bytes {
        (device.cache, "its last-level cache")
    } else {
        (device.memory_most, "memory")
    };
    (moved * 1e9 > most).then(|| {
        format!(
            "{us} us means {moved:.0} GB/s; {} moves at most {:.0} from {from}",
            device.name,
            most / 1e9
        )
    })
}

/// The architecture of a row without one, by its compute units, as aiter's own merge infers it
/// (`aiter/jit/core.py` at e4048607a5); `None` for other counts.
pub fn gfx_of_cu_num(cu_num: u32) -> Option<&'static str> {
    match cu_num {
        80 | 304 => Some("gfx942"),
        256 => Some("gfx950"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_those_of_the_data_sheets() {
        let near = |a: f64, b: f64| (a / b - 1.0).abs() < 0.001;
        assert!(near(
            Device::of_key("gfx942", 304).unwrap().fp8_flops,
            2614.9e12
        ));
        assert!(near(
            Device::of_key("gfx950", 256).unwrap().fp8_flops,
            5033e12
        ));
        assert_eq!(
            Device::of_name("AMD Instinct MI308X"),
            Device::of_key("gfx942", 80)
        );
        assert!(near(Device::of_name("NVIDIA_H200").unwrap().memory, 4.8e12));
        assert_eq!(Device::of_name("NVIDIA_T4"), None);
        let h100 = Device::of_name("NVIDIA H100 80GB HBM3").unwrap();
        assert!(near(h100.fp8_flops, 1978.9e12) && near(h100.memory, 3.35e12));
        assert_eq!(Device::of_key("gfx90a", 104), None);
    }

    #[test]
    fn derived_columns_are_those_a_shipped_row_carries() {
        // aiter e4048607a5, a8w8_blockscale_tuned_gemm_ds_v3.csv, first row.
        let us = 6.6154;
        assert!((tflops(1, 3072, 1536, us) - 1.43).abs() < 0.005);
        assert!((bandwidth(Op::Blockscale, 1, 3072, 1536, us) - 714.43).abs() < 0.005);
    }

    #[test]
    fn small_calls_cost_a_launch_and_large_ones_the_arithmetic() {
        let device = Device::of_key("gfx942", 304).unwrap();
        let shape = |m, n, k| Shape {
            op: Op::Blockscale,
            m,
            n,
            k,
            dtype: String::new(),
        };
        assert!((device.estimate_us(&shape(1, 128, 128)) - device.floor_us).abs() < 1e-12);
        let large = shape(16384, 7168, 16384);
        assert!((device.estimate_us(&large) - large.flops() / device.fp8_flops * 1e6).abs() < 1e-9);
        let thin = shape(1, 36864, 7168);
        assert!(device.estimate_us(&thin) > 36864.0 * 7168.0 / 5.3e12 * 1e6);
    }
}
