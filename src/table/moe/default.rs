//! The kernel's parameters if no table serves it (`get_default_config`).

use serde_json::{Map, Value};

use super::release::Release;

/// What the default depends on besides M.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer<'a> {
    /// Local experts.
    pub experts: u32,
    /// `fp8_w8a8` and so on; `None` for bf16 and fp16.
    pub dtype: Option<&'a str>,
    /// Scale block: N side, K side.
    pub block_shape: Option<(u32, u32)>,
}

/// The default for a forward of `m` tokens on the device of this name.
pub fn default_config(
    layer: Layer<'_>,
    m: u32,
    device_name: &str,
    release: Release,
) -> Map<String, Value> {
    let is_hip = device_name.starts_with("AMD");
    let few = m <= layer.experts;
    // BLOCK_SIZE_M, N, K, GROUP_SIZE_M, then warps and stages, which are left to Triton for dtypes other than FP8.
    let (sizes, launch) = match (layer.dtype, layer.block_shape) {
        (Some("fp8_w8a8"), Some((n, k))) => ([64, n, k, 32], Some((4, if is_hip { 2 } else { 3 }))),
        (Some("fp8_w8a8"), None) => {
            let small = release.knows_small_shared_memory() && has_small_shared_memory(device_name);
            let stages = if is_hip { 2 } else { 4 };
            match (small, few) {
                (true, true) => ([32, 64, 256, 1], Some((4, 4))),
                (true, false) => ([64, 128, 256, 64], Some((4, 2))),
                (false, true) => ([64, 128, 128, 1], Some((4, stages))),
                (false, false) => ([128, 256, 128, 32], Some((8, stages))),
            }
        }
        _ if few => ([16, 32, 64, 1], None),
        _ => ([64, 64, 32, 8], None),
    };
    let names = [
        "BLOCK_SIZE_M",
        "BLOCK_SIZE_N",
        "BLOCK_SIZE_K",
        "GROUP_SIZE_M",
    ];
    let mut config: Map<String, Value> = names
        .into_iter()
        .zip(sizes)
        .map(|(name, size)| (name.to_owned(), size.into()))
        .collect();
    if let Some((warps, stages)) = launch {
        config.insert("num_warps".to_owned(), warps.into());
        config.insert("num_stages".to_owned(), stages.into());
    }
    config
}

/// Whether a block of the device has less than 128 KiB of shared memory: compute capability 8.6, 8.9 and 12.x, which
/// have 99 KiB (CUDA C++ Programming Guide, technical specifications per compute capability).
fn has_small_shared_memory(device_name: &str) -> bool {
    let name = device_name.replace(' ', "_");
    let exact = [
        "NVIDIA_A10",
        "NVIDIA_A10G",
        "NVIDIA_L4",
        "NVIDIA_L20",
        "NVIDIA_L40",
        "NVIDIA_L40S",
        "NVIDIA_GB10",
    ];
    exact.contains(&name.as_str()) || name.contains("_RTX_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(
        dtype: Option<&'static str>,
        block_shape: Option<(u32, u32)>,
        m: u32,
        device: &str,
        patch: u32,
    ) -> Vec<i64> {
        let layer = Layer {
            experts: 128,
            dtype,
            block_shape,
        };
        let config = default_config(layer, m, device, Release(0, 5, patch));
        config.values().filter_map(Value::as_i64).collect()
    }

    // The numbers are results of `get_default_config` of the wheels 0.5.6, 0.5.13.post1 and 0.5.23, run with stubs.
    #[test]
    fn the_default_is_what_the_wheels_give() {
        let fp8 = Some("fp8_w8a8");
        let sorted = |mut numbers: Vec<i64>| {
            numbers.sort_unstable();
            numbers
        };
        let is = |given: Vec<i64>, expected: &[i64]| {
            assert_eq!(sorted(given), sorted(expected.to_vec()));
        };
        is(
            of(fp8, Some((128, 128)), 1, "NVIDIA_H200", 23),
            &[64, 128, 128, 32, 4, 3],
        );
        is(
            of(fp8, Some((128, 128)), 4096, "AMD_Instinct_MI300X", 23),
            &[64, 128, 128, 32, 4, 2],
        );
        is(
            of(fp8, None, 128, "NVIDIA_H200", 23),
            &[64, 128, 128, 1, 4, 4],
        );
        is(
            of(fp8, None, 129, "NVIDIA_H200", 23),
            &[128, 256, 128, 32, 8, 4],
        );
        is(
            of(fp8, None, 1, "NVIDIA_L40S", 13),
            &[64, 128, 128, 1, 4, 4],
        );
        is(of(fp8, None, 1, "NVIDIA_L40S", 14), &[32, 64, 256, 1, 4, 4]);
        is(
            of(fp8, None, 999, "NVIDIA GeForce RTX 5090", 23),
            &[64, 128, 256, 64, 4, 2],
        );
        is(of(None, None, 1, "NVIDIA_H200", 23), &[16, 32, 64, 1]);
        is(
            of(Some("int8_w8a16"), None, 999, "NVIDIA_H200", 23),
            &[64, 64, 32, 8],
        );
    }
}
