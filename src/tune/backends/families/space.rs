//! Settings of gemmtune's two streaming kernels (`python/gpu_worker/families/stream.cu`, `stream_wg.cu`) worth
//! racing.
//!
//! The settings are explained in the sources and in `stream.py`, whose formulas for shared memory are repeated here:
//! the worker would also refuse a setting that does not fit, only later.

use serde_json::{Map, Value, json};

use crate::problem::Shape;
use crate::tune::protocol::{Candidate, Device};

/// Range of bytes of weights in flight on one multiprocessor for which a setting is worth trying. An H200 needs about
/// 30 KiB on each of 132 to keep its memory busy (4.8 TB/s times 0.8 us); of 218 settings raced there, all winners
/// had 48 to 128.
const UNDER_WAY: (f64, f64) = (40.0 * 1024.0, 136.0 * 1024.0);

/// The middle of the winners' range there, bytes; settings near it are tried first.
const USUAL: f64 = 64.0 * 1024.0;

/// Share of the multiprocessors' time, and of the warps' steps, that a setting must keep busy to be worth trying.
const LEAST_BUSY: f64 = 0.7;

/// Registers of a multiprocessor, and shared memory that the driver reserves for each resident block.
const REGISTERS: u32 = 65_536;
const RESERVED: u32 = 1024;

/// Columns of a scale block.
const BLOCK: u32 = 128;

/// One of the two kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernel {
    /// For up to 16 rows of the activation; sm_89 and later.
    Stream,
    /// For up to 32 rows, with warpgroups; sm_90.
    StreamWg,
}

impl Kernel {
    /// Its name in candidates.
    pub(super) fn family(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::StreamWg => "stream-wg",
        }
    }

    fn most_rows(self) -> u32 {
        match self {
            Self::Stream => 16,
            Self::StreamWg => 32,
        }
    }

    /// Names of its settings, in the order of [`Setting::values`], and the values each may take.
    fn values(self) -> [(&'static str, &'static [u32]); 7] {
        match self {
            Self::Stream => [
                ("ROW_TILES", &[1, 2, 3, 4]),
                ("WARPS_K", &[1, 2, 4, 8, 16]),
                ("WARPS_N", &[1, 2, 4]),
                ("CLUSTER", &[1, 2, 4, 8]),
                ("DEPTH", &[1, 2, 3]),
                ("BLOCKS", &[1, 2, 3]),
                ("PERSISTENT", &[0, 1]),
            ],
            // Its rows of B are fixed, so it has no ROW_TILES; an empty name means no setting.
            Self::StreamWg => [
                ("", &[1]),
                ("GROUPS_K", &[1, 2, 4]),
                ("GROUPS_N", &[1, 2, 4]),
                ("CLUSTER", &[1, 2, 4, 8]),
                ("DEPTH", &[2, 3, 4, 6]),
                ("BLOCKS", &[1, 2, 3]),
                ("PERSISTENT", &[0, 1]),
            ],
        }
    }
}

/// A setting of one kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Setting {
    kernel: Kernel,
    /// Row tiles, warps or warpgroups along K, along N, blocks of a cluster, depth, resident blocks, persistent.
    values: [u32; 7],
}

impl Setting {
    /// The setting in the worker's form.
    pub(super) fn candidate(&self) -> Candidate {
        let mut object = Map::new();
        object.insert("family".to_owned(), json!(self.kernel.family()));
        for ((name, _), value) in self.kernel.values().iter().zip(self.values) {
            if !name.is_empty() {
                object.insert((*name).to_owned(), json!(value));
            }
        }
        Value::Object(object)
    }

    /// Whether `candidate` is the same kernel with exactly one different value.
    pub(super) fn is_one_step_from(&self, candidate: &Candidate) -> bool {
        let (Value::Object(ours), Some(theirs)) = (self.candidate(), candidate.as_object()) else {
            return false;
        };
        ours.get("family") == theirs.get("family")
            && ours
                .iter()
                .filter(|(name, value)| theirs.get(*name) != Some(value))
                .count()
                == 1
    }

    fn warps(&self) -> u32 {
        let [_, along_k, along_n, ..] = self.values;
        match self.kernel {
            Kernel::Stream => along_k * along_n,
            Kernel::StreamWg => 4 * along_k * along_n,
        }
    }

    fn block_rows(&self) -> u32 {
        let [row_tiles, _, along_n, ..] = self.values;
        match self.kernel {
            Kernel::Stream => 16 * row_tiles * along_n,
            Kernel::StreamWg => 64 * along_n,
        }
    }

    /// Bytes of weights in flight for one block.
    fn under_way(&self) -> u32 {
        let [row_tiles, _, _, _, depth, ..] = self.values;
        match self.kernel {
            Kernel::Stream => self.warps() * depth * row_tiles * 2048,
            Kernel::StreamWg => self.warps() / 4 * (depth - 1) * 8192,
        }
    }

    /// Registers of a thread with `tiles` eights of rows, within a tenth of the compiler's own reports.
    fn registers(&self, tiles: u32) -> u32 {
        let row_tiles = self.values[0];
        match self.kernel {
            Kernel::Stream => 40 + 8 * row_tiles * tiles + 16 * row_tiles + 8 * tiles,
            Kernel::StreamWg => 56 + 10 * tiles,
        }
    }

    /// Dynamic shared memory of a block, as `stream.py` computes it.
    fn shared_bytes(&self, tiles: u32) -> u32 {
        let [row_tiles, _, _, _, depth, _, persistent] = self.values;
        let buffers = 1 + persistent;
        match self.kernel {
            Kernel::Stream => {
                let scales_b = if row_tiles == 3 { 3 } else { 1 };
                let scales = scales_b + 2 * tiles;
                let stage = 32 * self.warps() * (16 * (4 * row_tiles + 2 * tiles) + 4 * scales);
                depth * stage + buffers * self.warps() * 8 * tiles * (16 * row_tiles + 4) * 4
            }
            Kernel::StreamWg => {
                let tokens = 8 * tiles;
                let ring = depth * ((64 + tokens) * 128 + (tokens + 1) * 4);
                self.warps() / 4 * (ring.next_multiple_of(1024) + buffers * tokens * 68 * 4)
            }
        }
    }

    /// How promising the setting is for `shape`, smaller is better; `None` if it is not worth trying.
    fn promise(&self, device: &Device, shape: &Shape) -> Option<f64> {
        let [_, along_k, _, cluster, depth, resident, persistent] = self.values;
        let (warps, tiles) = (self.warps(), shape.m.div_ceil(8));
        let clusters_fit = cluster == 1 || device.arch != "sm_89";
        if !(4..=16).contains(&warps) || !(8..=24).contains(&(warps * resident)) || !clusters_fit {
            return None;
        }
        let units = device.cu_num.max(1);
        let blocks = shape.n.div_ceil(self.block_rows()) * cluster;
        let waves = f64::from(blocks) / f64::from(units);
        let steps = shape.k.div_ceil(BLOCK * along_k * cluster);
        // More resident blocks than there are, or more stages than steps, give the same program; and a block with
        // fewer than two tiles gains nothing by being persistent.
        if f64::from(resident) > waves.ceil()
            || depth > steps + 1
            || (persistent == 1 && blocks < 2 * resident * units)
        {
            return None;
        }
        let busy = waves / waves.ceil();
        let stepping = f64::from(shape.k) / f64::from(BLOCK * along_k * cluster * steps);
        if busy < LEAST_BUSY
            || stepping < LEAST_BUSY
            || self.registers(tiles) * warps * resident * 32 > REGISTERS
            || u64::from(resident * (self.shared_bytes(tiles) + RESERVED)) > device.smem_bytes
        {
            return None;
        }
        let weights = f64::from(shape.n) * f64::from(shape.k) / f64::from(units);
        let under_way = f64::from(resident).min(waves) * f64::from(self.under_way());
        if under_way < UNDER_WAY.0.min(weights / 2.0) || under_way > UNDER_WAY.1 {
            return None;
        }
        Some((under_way / USUAL).log2().abs() / 4.0 - busy - stepping)
    }
}

/// The settings of `kernel` worth racing for `shape` on `device`, the most promising first.
pub(super) fn settings(kernel: Kernel, device: &Device, shape: &Shape) -> Vec<Setting> {
    if shape.m > kernel.most_rows() || !shape.k.is_multiple_of(BLOCK) {
        return Vec::new();
    }
    let mut found = Vec::new();
    let names = kernel.values();
    let mut values = [0; 7];
    each(&names, 0, &mut values, &mut |values| {
        let setting = Setting {
            kernel,
            values: *values,
        };
        if let Some(promise) = setting.promise(device, shape) {
            found.push((promise, setting));
        }
    });
    found.sort_by(|a, b| a.0.total_cmp(&b.0));
    found.into_iter().map(|(_, setting)| setting).collect()
}

/// Calls `visit` with every combination of the values from `at` on.
fn each(
    names: &[(&'static str, &'static [u32]); 7],
    at: usize,
    values: &mut [u32; 7],
    visit: &mut dyn FnMut(&[u32; 7]),
) {
    let Some((_, choices)) = names.get(at) else {
        visit(values);
        return;
    };
    for &choice in *choices {
        values[at] = choice;
        each(names, at + 1, values, visit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::backends::sglang_triton::space::tests::{h100, shape};

    /// Winners on an H200, which differs from an H100 only in its memory: `docs/evidence/kernel-contest-h200`.
    const WINNERS: [(Kernel, [u32; 3], [u32; 7]); 8] = [
        (Kernel::Stream, [1, 4096, 4096], [2, 16, 1, 1, 1, 1, 0]),
        (Kernel::Stream, [1, 6144, 4096], [3, 16, 1, 1, 1, 1, 0]),
        (Kernel::Stream, [1, 24576, 4096], [2, 4, 1, 1, 2, 2, 1]),
        (Kernel::Stream, [4, 7168, 2304], [2, 4, 2, 1, 2, 1, 0]),
        (Kernel::StreamWg, [16, 6144, 4096], [1, 4, 1, 1, 3, 1, 0]),
        (Kernel::StreamWg, [16, 4096, 12288], [1, 4, 1, 2, 3, 1, 0]),
        (Kernel::StreamWg, [16, 2112, 7168], [1, 1, 1, 8, 4, 2, 0]),
        (Kernel::StreamWg, [32, 4608, 7168], [1, 1, 1, 4, 4, 3, 0]),
    ];

    #[test]
    fn the_winners_measured_are_among_the_settings() {
        for (kernel, [m, n, k], values) in WINNERS {
            let found = settings(kernel, &h100(&[]), &shape(m, n, k));
            assert!(
                found.contains(&Setting { kernel, values }),
                "{kernel:?} {m} {n} {k}"
            );
        }
    }

    #[test]
    fn every_setting_fits_and_none_is_offered_above_its_rows() {
        let device = h100(&[]);
        for (kernel, [m, n, k], _) in WINNERS {
            let found = settings(kernel, &device, &shape(m, n, k));
            assert!(found.len() > 10 && found.len() < 700, "{}", found.len());
            for one in &found {
                let tiles = m.div_ceil(8);
                assert!(u64::from(one.values[5] * one.shared_bytes(tiles)) <= device.smem_bytes);
            }
            let above = shape(kernel.most_rows() + 1, n, k);
            assert!(settings(kernel, &device, &above).is_empty());
        }
    }

    /// `experiments/kernel-contest/settings.py`, which made the measurements, has the same settings.
    #[test]
    fn as_many_settings_are_raced_as_were_measured() {
        let count = |kernel, m| settings(kernel, &h100(&[]), &shape(m, 4096, 4096)).len();
        assert_eq!([1, 16, 32].map(|m| count(Kernel::Stream, m)), [181, 140, 0]);
        assert_eq!(
            [1, 16, 32].map(|m| count(Kernel::StreamWg, m)),
            [26, 26, 19]
        );
    }

    #[test]
    fn the_worker_finds_the_settings_it_asks_for() {
        let found = settings(Kernel::StreamWg, &h100(&[]), &shape(16, 4096, 4096));
        let candidate = found[0].candidate();
        let mut names: Vec<_> = candidate.as_object().unwrap().keys().cloned().collect();
        names.sort_unstable();
        let expected = [
            "BLOCKS",
            "CLUSTER",
            "DEPTH",
            "GROUPS_K",
            "GROUPS_N",
            "PERSISTENT",
            "family",
        ];
        assert_eq!(names, expected);
    }
}
