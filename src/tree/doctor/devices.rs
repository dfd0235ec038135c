//! Which GPUs there are: readers for what `rocminfo`, `amd-smi` and `nvidia-smi` print.
//!
//! Pure: the caller runs the programs. `rocminfo` is what aiter itself asks, so it decides for AMD; `amd-smi` adds memory
//! and names where it is there.

use serde::Serialize;

/// One GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// Architecture: `gfx942`, or a compute capability such as `9.0`.
    pub arch: String,
    /// Marketing name.
    pub name: String,
    /// Compute units; `nvidia-smi` does not tell.
    pub compute_units: Option<u32>,
    /// Memory in MiB.
    pub memory_mib: Option<u64>,
}

/// Arguments of `amd-smi` whose answer [`amd_smi`] reads.
pub const AMD_SMI: [&str; 4] = ["static", "--asic", "--vram", "--json"];

/// Arguments of `nvidia-smi` whose answer [`nvidia_smi`] reads.
pub const NVIDIA_SMI: [&str; 2] = [
    "--query-gpu=name,compute_cap,memory.total",
    "--format=csv,noheader,nounits",
];

/// Variables that hide devices, and whom they hide them from.
pub const VISIBLE: [(&str, &str); 4] = [
    (
        "ROCR_VISIBLE_DEVICES",
        "everything on ROCm, rocminfo and aiter's look-up included",
    ),
    ("HIP_VISIBLE_DEVICES", "HIP and torch, but not rocminfo"),
    ("CUDA_VISIBLE_DEVICES", "CUDA, and torch on ROCm"),
    ("GPU_DEVICE_ORDINAL", "HIP"),
];

/// Variables that replace what the hardware says in aiter, and what they replace.
pub const PRETENDED: [(&str, &str); 3] = [
    ("GPU_ARCHS", "the architecture aiter builds for"),
    (
        "CU_NUM",
        "the compute units of aiter's look-up, but not those of its tuner",
    ),
    (
        "HSA_OVERRIDE_GFX_VERSION",
        "the architecture of the ROCm runtime",
    ),
];

/// The GPU agents of `rocminfo`, in order.
pub fn rocminfo(text: &str) -> Vec<Gpu> {
    let mut gpus = Vec::new();
    // An agent starts with a line `Agent N` between two lines of stars.
    for agent in agents(text) {
        let value = |label: &str| {
            agent
                .iter()
                .find_map(|line| line.trim().strip_prefix(label))
                .map(|value| value.trim_start_matches(':').trim())
        };
        if value("Device Type") != Some("GPU") {
            continue;
        }
        let Some(arch) = value("Name").filter(|name| name.starts_with("gfx")) else {
            continue;
        };
        // The first pool of an agent is its memory: `Size: 201310208(0xbffc000) KB`.
        let kib = agent.iter().find_map(|line| {
            let size = line.trim().strip_prefix("Size:")?.trim();
            size.split('(')
                .next()?
                .trim()
                .parse::<u64>()
                .ok()
                .filter(|_| size.ends_with("KB") && size.contains('('))
        });
        gpus.push(Gpu {
            arch: arch.to_owned(),
            name: value("Marketing Name").unwrap_or_default().to_owned(),
            compute_units: value("Compute Unit").and_then(|count| count.parse().ok()),
            memory_mib: kib.filter(|kib| *kib > 1 << 20).map(|kib| kib / 1024),
        });
    }
    gpus
}

fn agents(text: &str) -> Vec<Vec<&str>> {
    let mut agents: Vec<Vec<&str>> = Vec::new();
    for line in text.lines() {
        let is_start = line
            .trim()
            .strip_prefix("Agent ")
            .is_some_and(|number| number.trim().parse::<u32>().is_ok());
        if is_start {
            agents.push(Vec::new());
        } else if let Some(agent) = agents.last_mut() {
            agent.push(line);
        }
    }
    agents
}

/// The devices of `amd-smi static --asic --vram --json`; versions differ in how they nest and name things.
pub fn amd_smi(text: &str) -> Vec<Gpu> {
    let Ok(document) = serde_json::from_str::<serde_json::Value>(text) else {
        return Vec::new();
    };
    let list = document
        .get("gpu_data")
        .unwrap_or(&document)
        .as_array()
        .cloned()
        .unwrap_or_default();
    let first = |object: &serde_json::Value, names: &[&str]| {
        names.iter().find_map(|name| object.get(name).cloned())
    };
    list.iter()
        .filter_map(|device| {
            let asic = device.get("asic")?;
            let text = |names: &[&str]| {
                first(asic, names).and_then(|value| value.as_str().map(str::to_owned))
            };
            let count = first(asic, &["num_compute_units", "num_of_compute_units"]);
            let size = device
                .get("vram")
                .and_then(|vram| first(vram, &["size", "vram_size"]));
            // `{"value": 196592, "unit": "MB"}`, or `"196592 MB"` in older versions.
            let megabytes = size.and_then(|size| match size.get("value") {
                Some(value) => value.as_u64(),
                None => size.as_str()?.split_whitespace().next()?.parse().ok(),
            });
            Some(Gpu {
                arch: text(&["target_graphics_version", "target_gfx_version"])?,
                name: text(&["market_name", "marketing_name"]).unwrap_or_default(),
                compute_units: count.and_then(|count| match count {
                    serde_json::Value::String(text) => text.parse().ok(),
                    number => number
                        .as_u64()
                        .and_then(|number| u32::try_from(number).ok()),
                }),
                memory_mib: megabytes,
            })
        })
        .collect()
}

/// The devices of `nvidia-smi` with [`NVIDIA_SMI`].
pub fn nvidia_smi(text: &str) -> Vec<Gpu> {
    text.lines()
        .filter_map(|line| {
            // The name may hold commas, the two numbers behind it do not.
            let mut parts = line.rsplitn(3, ',').map(str::trim);
            let (memory, arch, name) = (parts.next()?, parts.next()?, parts.next()?);
            let is_capability = arch.split_once('.').is_some_and(|(major, minor)| {
                major.parse::<u32>().is_ok() && minor.parse::<u32>().is_ok()
            });
            is_capability.then(|| Gpu {
                arch: arch.to_owned(),
                name: name.to_owned(),
                compute_units: None,
                memory_mib: memory.parse().ok(),
            })
        })
        .collect()
}

/// What makes a set of GPUs unusable as one: aiter stops when their compute units differ.
pub fn mixed(gpus: &[Gpu]) -> Option<String> {
    let first = gpus.first()?;
    let other = gpus
        .iter()
        .find(|gpu| gpu.arch != first.arch || gpu.compute_units != first.compute_units)?;
    let units = |gpu: &Gpu| {
        gpu.compute_units
            .map_or_else(|| "?".to_owned(), |count| count.to_string())
    };
    Some(format!(
        "{} with {} CUs beside {} with {} CUs",
        first.arch,
        units(first),
        other.arch,
        units(other)
    ))
}

/// Compute units of a whole device, by architecture; a device that reports fewer is partitioned and misses every
/// shipped row, whose key holds the count. From AMD's data sheets: MI300X/MI325X, MI300A and MI308X; MI350X/MI355X, MI350P.
pub fn whole(arch: &str) -> &'static [u32] {
    match arch {
        "gfx942" => &[304, 228, 80],
        "gfx950" => &[256, 128],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROCMINFO: &str = include_str!("../../../testdata/devices/rocminfo-mi300x.txt");

    #[test]
    fn rocminfo_gives_the_gpus_and_not_the_processors() {
        let gpus = rocminfo(ROCMINFO);
        let expected = Gpu {
            arch: "gfx942".to_owned(),
            name: "AMD Instinct MI300X".to_owned(),
            compute_units: Some(304),
            memory_mib: Some(196_592),
        };
        assert_eq!(gpus, [expected.clone(), expected]);
        assert_eq!(mixed(&gpus), None);
        assert!(rocminfo("").is_empty());
        assert!(rocminfo("ROCk module is NOT loaded, possibly no GPU devices\n").is_empty());
    }

    #[test]
    fn amd_smi_is_read_in_both_shapes() {
        let new = r#"{"gpu_data": [{"gpu": 0, "asic": {"market_name": "AMD Instinct MI355X", "num_compute_units": 256,
            "target_graphics_version": "gfx950"}, "vram": {"type": "HBM3E", "size": {"value": 294896, "unit": "MB"}}}]}"#;
        let old = r#"[{"gpu": 0, "asic": {"market_name": "AMD Instinct MI355X", "num_of_compute_units": "256",
            "target_graphics_version": "gfx950"}, "vram": {"vram_size": "294896 MB"}}]"#;
        for text in [new, old] {
            let gpus = amd_smi(text);
            assert_eq!(gpus.len(), 1, "{text}");
            assert_eq!(
                (
                    gpus[0].arch.as_str(),
                    gpus[0].compute_units,
                    gpus[0].memory_mib
                ),
                ("gfx950", Some(256), Some(294_896))
            );
        }
        assert!(amd_smi("ERROR: no devices").is_empty());
        assert!(amd_smi("{}").is_empty());
    }

    #[test]
    fn nvidia_smi_is_read_and_its_errors_are_not() {
        let gpus =
            nvidia_smi("NVIDIA H100 80GB HBM3, 9.0, 81559\nNVIDIA H100 80GB HBM3, 9.0, 81559\n");
        assert_eq!(gpus.len(), 2);
        assert_eq!(
            (gpus[0].arch.as_str(), gpus[0].memory_mib),
            ("9.0", Some(81_559))
        );
        assert!(
            nvidia_smi(
                "NVIDIA-SMI has failed, because it couldn't communicate with the NVIDIA driver."
            )
            .is_empty()
        );
    }

    #[test]
    fn a_mixed_host_is_named() {
        let mut gpus = rocminfo(ROCMINFO);
        gpus[1].compute_units = Some(38);
        assert_eq!(
            mixed(&gpus).unwrap(),
            "gfx942 with 304 CUs beside gfx942 with 38 CUs"
        );
    }
}
