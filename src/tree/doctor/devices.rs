//! The GPUs of a machine: parsers for the output of `rocminfo`, `amd-smi`, `rocm-smi` and `nvidia-smi`.
//!
//! Pure: the caller runs the programs. aiter itself uses `rocminfo`, so on AMD that decides; the others are used
//! where it finds nothing.

use serde::Serialize;
use serde_json::Value;

/// A GPU, as far as the vendors' tools describe it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// Architecture: `gfx942`, or a compute capability such as `9.0`.
    pub arch: String,
    /// Marketing name.
    pub name: String,
    /// Compute units; `nvidia-smi` does not report them.
    pub compute_units: Option<u32>,
    /// Memory in MiB.
    pub memory_mib: Option<u64>,
}

/// Arguments of `amd-smi` for [`amd_smi`].
pub const AMD_SMI: [&str; 4] = ["static", "--asic", "--vram", "--json"];

/// Arguments of `rocm-smi` for [`rocm_smi`]. Memory is not included: with partitions it reports the memory of the
/// whole device for each (ROCm issue 4750).
pub const ROCM_SMI: [&str; 2] = ["--showproductname", "--json"];

/// Arguments of `nvidia-smi` for [`nvidia_smi`].
pub const NVIDIA_SMI: [&str; 2] = [
    "--query-gpu=name,compute_cap,memory.total",
    "--format=csv,noheader,nounits",
];

/// Variables that hide devices, and from which software.
pub const VISIBLE: [(&str, &str); 4] = [
    (
        "ROCR_VISIBLE_DEVICES",
        "everything on ROCm, rocminfo and aiter's look-up included",
    ),
    ("HIP_VISIBLE_DEVICES", "HIP and torch, but not rocminfo"),
    ("CUDA_VISIBLE_DEVICES", "CUDA, and torch on ROCm"),
    ("GPU_DEVICE_ORDINAL", "HIP"),
];

/// Variables that override hardware properties in aiter, and which ones.
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

/// The GPU agents in the output of `rocminfo`, in order.
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
        let Some(arch) = value("Name").and_then(arch) else {
            continue;
        };
        // The first pool of an agent has its memory: `Size: 201310208(0xbffc000) KB`.
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
            arch,
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

/// The JSON document in `text`, which warnings may precede (ROCm 7.1: which device nodes cannot be opened).
fn json(text: &str) -> Option<Value> {
    let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1));
    starts
        .filter(|at| text[*at..].starts_with(['[', '{']))
        .find_map(|at| {
            let mut documents = serde_json::Deserializer::from_str(&text[at..]).into_iter();
            documents.next()?.ok()
        })
}

/// The first non-empty string under one of `names`: these tools write `N/A` for what they do not know.
fn known<'a>(object: &'a Value, names: &[&str]) -> Option<&'a str> {
    names
        .iter()
        .find_map(|name| object.get(name)?.as_str())
        .map(str::trim)
        .filter(|text| !text.is_empty() && *text != "N/A")
}

/// An architecture without its features: `gfx942:sramecc+:xnack-` is `gfx942`.
fn arch(text: &str) -> Option<String> {
    let (arch, _) = text.split_once(':').unwrap_or((text, ""));
    arch.starts_with("gfx").then(|| arch.to_owned())
}

/// MiB of `{"value": 196592, "unit": "MB"}`, or of `"196592 MB"` (ROCm 6.0).
fn mebibytes(size: &Value) -> Option<u64> {
    let (value, unit) = match size {
        Value::String(text) => {
            let (value, unit) = text.trim().split_once(' ').unwrap_or((text, "MB"));
            (value.parse().ok()?, unit)
        }
        _ => (size.get("value")?.as_u64()?, size.get("unit")?.as_str()?),
    };
    match unit.trim() {
        "MB" | "MiB" => Some(value),
        "GB" | "GiB" => value.checked_mul(1024),
        _ => None,
    }
}

/// The devices of `amd-smi static --asic --vram --json`: a list, from ROCm 7 on in `gpu_data`. Before ROCm 6.3 the
/// output has no architecture, so the result is empty.
pub fn amd_smi(text: &str) -> Vec<Gpu> {
    let document = json(text).unwrap_or_default();
    let list = document.get("gpu_data").unwrap_or(&document).as_array();
    let read = |device: &Value| {
        let asic = device.get("asic")?;
        let size = device.get("vram").and_then(|vram| {
            ["size", "vram_size_mb"]
                .iter()
                .find_map(|name| vram.get(name))
        });
        Some(Gpu {
            arch: arch(known(asic, &["target_graphics_version"])?)?,
            name: known(asic, &["market_name"]).unwrap_or_default().to_owned(),
            compute_units: asic
                .get("num_compute_units")
                .and_then(Value::as_u64)
                .and_then(|count| u32::try_from(count).ok()),
            memory_mib: size.and_then(mebibytes),
        })
    };
    list.into_iter().flatten().filter_map(read).collect()
}

/// The devices in the output of `rocm-smi` with [`ROCM_SMI`]: `card0`, `card1`, … beside other sections.
pub fn rocm_smi(text: &str) -> Vec<Gpu> {
    let document = json(text).unwrap_or_default();
    let cards = document.as_object().into_iter().flatten();
    cards
        .filter(|(name, _)| name.starts_with("card"))
        .filter_map(|(_, card)| {
            let name = known(card, &["Card Series", "Card series", "Device Name"]);
            Some(Gpu {
                arch: arch(known(card, &["GFX Version"])?)?,
                name: name.unwrap_or_default().to_owned(),
                ..Gpu::default()
            })
        })
        .collect()
}

/// The devices in the output of `nvidia-smi` with [`NVIDIA_SMI`].
pub fn nvidia_smi(text: &str) -> Vec<Gpu> {
    text.lines()
        .filter_map(|line| {
            // The name may contain commas, the two numbers after it cannot.
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

impl std::fmt::Display for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.name.is_empty() {
            write!(f, "{} ", self.name)?;
        }
        f.write_str(&self.arch)?;
        if let Some(count) = self.compute_units {
            write!(f, ", {count} CUs")?;
        }
        if let Some(mib) = self.memory_mib {
            write!(f, ", {} GiB", mib / 1024)?;
        }
        Ok(())
    }
}

/// The devices in words, with equal ones counted.
pub fn listed(gpus: &[Gpu]) -> String {
    let mut kinds: Vec<(&Gpu, usize)> = Vec::new();
    for gpu in gpus {
        match kinds.iter_mut().find(|(kind, _)| *kind == gpu) {
            Some((_, count)) => *count += 1,
            None => kinds.push((gpu, 1)),
        }
    }
    let words: Vec<String> = kinds
        .iter()
        .map(|(gpu, count)| format!("{count} x {gpu}"))
        .collect();
    words.join(" beside ")
}

/// Whether a set of AMD GPUs cannot be used together: aiter stops when their compute units differ.
pub fn mixed(gpus: &[Gpu]) -> bool {
    gpus.first().is_some_and(|first| {
        first.arch.starts_with("gfx")
            && gpus
                .iter()
                .any(|gpu| gpu.arch != first.arch || gpu.compute_units != first.compute_units)
    })
}

/// Compute units of whole devices by a part of their name, from AMD's data sheets.
const WHOLE: [(&str, u32); 7] = [
    ("MI300X", 304),
    ("MI325X", 304),
    ("MI300A", 228),
    ("MI308X", 80),
    ("MI350X", 256),
    ("MI355X", 256),
    ("MI350P", 128),
];

/// Whether `gpu` is a partition of a device: it then misses every shipped row, whose key includes the compute units.
/// In containers names are often missing; then any count that a whole device of the architecture has is accepted.
pub fn partitioned(gpu: &Gpu) -> bool {
    let Some(count) = gpu.compute_units else {
        return false;
    };
    let name = gpu.name.to_ascii_uppercase();
    let named = WHOLE.iter().find(|(part, _)| name.contains(part));
    match (named, gpu.arch.as_str()) {
        (Some((_, whole)), _) => count < *whole,
        (None, "gfx942") => ![304, 228, 80].contains(&count),
        (None, "gfx950") => ![256, 128].contains(&count),
        (None, _) => false,
    }
}

/// Why a program reported no GPU, in its own words: the last line of its errors, else the first line of its output
/// that is not a banner.
pub fn complaint(stdout: &str, stderr: &str) -> Option<String> {
    let plain = |line: &str| {
        let mut text = String::new();
        for (at, part) in line.split('\u{1b}').enumerate() {
            // `ESC [ 31m` and the like: `rocminfo` colours its output even without a terminal.
            text.push_str(match part.strip_prefix('[').filter(|_| at > 0) {
                Some(coloured) => coloured.split_once('m').map_or("", |(_, rest)| rest),
                None => part,
            });
        }
        text.trim().to_owned()
    };
    let said = |line: &String| !line.is_empty();
    let greeting = |line: &String| line.starts_with("ROCk module") && line.ends_with("is loaded");
    let error = stderr.lines().map(plain).rfind(said);
    error.or_else(|| {
        stdout
            .lines()
            .map(plain)
            .find(|line| said(line) && !greeting(line))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MI300X_VF: &str = include_str!("../../../testdata/devices/rocminfo-mi300x-vf.txt");
    const MI300X_CPX: &str = include_str!("../../../testdata/devices/rocminfo-mi300x-cpx.txt");
    const MI300A: &str = include_str!("../../../testdata/devices/rocminfo-mi300a.txt");
    const MI350X_VF: &str = include_str!("../../../testdata/devices/rocminfo-mi350x-vf.txt");
    const MI355X_CPX: &str = include_str!("../../../testdata/devices/rocminfo-mi355x-cpx.txt");

    fn gpu(arch: &str, name: &str, compute_units: Option<u32>, memory_mib: Option<u64>) -> Gpu {
        Gpu {
            arch: arch.to_owned(),
            name: name.to_owned(),
            compute_units,
            memory_mib,
        }
    }

    #[test]
    fn published_rocminfo_outputs_give_the_gpus_and_not_the_processors() {
        let mi300x = gpu("gfx942", "AMD Instinct MI300X VF", Some(304), Some(196_288));
        let part = gpu("gfx942", "AMD Instinct MI300X", Some(38), Some(24_574));
        // Its CPU agents have the accelerator's name, and its GPU agents none.
        let mi300a = gpu("gfx942", "", Some(228), Some(96_002));
        let mi350x = gpu("gfx950", "AMD Instinct MI350X VF", Some(256), Some(294_592));
        for (text, expected, is_part) in [
            (MI300X_VF, mi300x, false),
            (MI300X_CPX, part, true),
            (MI300A, mi300a, false),
            (MI350X_VF, mi350x, false),
        ] {
            assert_eq!(rocminfo(text), std::slice::from_ref(&expected));
            assert_eq!(partitioned(&expected), is_part, "{expected}");
            // Carriage returns, as copied from a terminal, change nothing.
            assert_eq!(rocminfo(&text.replace('\n', "\r\n")), [expected]);
        }
        assert_eq!(rocminfo(MI300A)[0].to_string(), "gfx942, 228 CUs, 93 GiB");
        for nothing in ["", "ROCk module is NOT loaded, possibly no GPU devices\n"] {
            assert!(rocminfo(nothing).is_empty());
        }
    }

    #[test]
    fn a_partitioned_device_beside_whole_ones_is_a_mixed_host() {
        let gpus = rocminfo(MI355X_CPX);
        assert!(mixed(&gpus));
        assert_eq!(
            listed(&gpus),
            "1 x gfx950, 256 CUs beside 2 x gfx950, 32 CUs"
        );
        assert!(!mixed(&gpus[1..]));
        // aiter's rule does not apply to NVIDIA.
        let nvidia = nvidia_smi("NVIDIA A, 9.0, 81559\nNVIDIA B, 8.9, 24564\n");
        assert!(!mixed(&nvidia));
        assert_eq!(
            listed(&nvidia),
            "1 x NVIDIA A 9.0, 79 GiB beside 1 x NVIDIA B 8.9, 23 GiB"
        );
    }

    #[test]
    fn partitions_are_told_by_the_product_where_it_is_known() {
        for (arch, name, count, expected) in [
            ("gfx950", "AMD Instinct MI350X", 128, true),
            ("gfx950", "AMD Instinct MI350P", 128, false),
            ("gfx950", "", 128, false),
            ("gfx950", "", 32, true),
            ("gfx942", "AMD Instinct Mi325X VF", 304, false),
            ("gfx942", "MI308X", 80, false),
            ("gfx942", "MI308X", 20, true),
            ("gfx90a", "AMD Instinct MI210", 104, false),
        ] {
            assert_eq!(
                partitioned(&gpu(arch, name, Some(count), None)),
                expected,
                "{name} {count}"
            );
        }
    }

    #[test]
    fn amd_smi_is_read_as_every_version_prints_it() {
        let strix = amd_smi(include_str!("../../../testdata/devices/amd-smi-6.4.json"));
        assert_eq!(
            strix,
            [gpu(
                "gfx1151",
                "Strix Halo [Radeon Graphics / Radeon 8050S Graphics / Radeon 8060S Graphics]",
                Some(40),
                Some(32_768)
            )]
        );
        // ROCm 7, with the warnings that 7.1 prints first where device nodes are not accessible.
        let enveloped = "Permission needed to access required GPU device node(s):\n  \
            - /dev/dri/card0: Permission denied; owner=root(0):video(39);\n\n\
            {\"gpu_data\": [{\"gpu\": 0, \"asic\": {\"market_name\": \"AMD Instinct MI355X\", \"num_compute_units\": 256, \
            \"target_graphics_version\": \"gfx950\"}, \"vram\": {\"type\": \"HBM3E\", \"size\": {\"value\": 294896, \"unit\": \"MB\"}}}, \
            {\"gpu\": 1, \"asic\": {\"market_name\": \"N/A\", \"num_compute_units\": \"N/A\", \"target_graphics_version\": \"gfx950\"}, \
            \"vram\": {\"size\": \"N/A\"}}, \
            {\"gpu\": 2, \"asic\": {\"target_graphics_version\": \"N/A\"}}]}\n";
        assert_eq!(
            amd_smi(enveloped),
            [
                gpu("gfx950", "AMD Instinct MI355X", Some(256), Some(294_896)),
                gpu("gfx950", "", None, None)
            ]
        );
        // ROCm 6.0 to 6.2 report no architecture.
        let old = r#"[{"gpu": 0, "asic": {"market_name": "MI300X-O", "rev_id": "0x0"}, "vram": {"vram_type": "HBM",
            "vram_size_mb": "196592 MB"}}]"#;
        for nothing in [
            old,
            "ERROR: no devices",
            "{}",
            "[",
            "[1, null]",
            "{\"gpu_data\": 3}",
        ] {
            assert!(amd_smi(nothing).is_empty(), "{nothing}");
        }
        let sizes = [
            (r#""196592 MB""#, Some(196_592)),
            (r#"{"value": 192, "unit": "GB"}"#, Some(196_608)),
            (r#"{"value": "N/A", "unit": "MB"}"#, None),
            (r#""N/A""#, None),
        ];
        for (size, expected) in sizes {
            assert_eq!(
                mebibytes(&serde_json::from_str(size).unwrap()),
                expected,
                "{size}"
            );
        }
    }

    #[test]
    fn rocm_smi_gives_architecture_and_name() {
        let two = rocm_smi(include_str!(
            "../../../testdata/devices/rocm-smi-mi300a.json"
        ));
        let mi300a = gpu("gfx942", "AMD Instinct MI300A", None, None);
        assert_eq!(two, [mi300a.clone(), mi300a]);
        assert!(!partitioned(&two[0]));
        let noisy = "WARNING: AMD GPU device(s) is/are in a low-power state. Check power control/runtime_status\n\
            {\"card0\": {\"Card series\": \"N/A\", \"GFX Version\": \"gfx942\"}, \"system\": {\"Driver version\": \"6.10.5\"}}";
        assert_eq!(rocm_smi(noisy), [gpu("gfx942", "", None, None)]);
        // ROCm 5 reports no architecture.
        for nothing in [
            r#"{"card0": {"Card series": "Arcturus GL-XL [AMD Instinct MI100]", "Card SKU": "D34316"}}"#,
            "WARNING: No JSON data to report\n",
        ] {
            assert!(rocm_smi(nothing).is_empty(), "{nothing}");
        }
    }

    #[test]
    fn nvidia_smi_is_read_and_its_errors_are_not() {
        let h100 = gpu("9.0", "NVIDIA H100 80GB HBM3", None, Some(81_559));
        assert_eq!(
            nvidia_smi("NVIDIA H100 80GB HBM3, 9.0, 81559\nNVIDIA H100 80GB HBM3, 9.0, 81559\n"),
            [h100.clone(), h100]
        );
        // A GB10 shares the host's memory and reports no size.
        assert_eq!(
            nvidia_smi("NVIDIA GB10, 12.1, [N/A]\n"),
            [gpu("12.1", "NVIDIA GB10", None, None)]
        );
        for nothing in [
            "NVIDIA-SMI has failed, because it couldn't communicate with the NVIDIA driver.",
            "Field \"compute_cap\" is not a valid field to query.\n\n",
            "No devices were found\n",
        ] {
            assert!(nvidia_smi(nothing).is_empty(), "{nothing}");
        }
    }

    #[test]
    fn what_a_program_complains_of_is_found_among_what_it_says() {
        let kfd = "\u{1b}[37mROCk module version 6.7.0 is loaded\u{1b}[0m\n\
            \u{1b}[31mUnable to open /dev/kfd read-write: Permission denied\u{1b}[0m\n\
            \u{1b}[31mFailed to get user name to check for video group membership\u{1b}[0m\n";
        assert_eq!(
            complaint(kfd, "").unwrap(),
            "Unable to open /dev/kfd read-write: Permission denied"
        );
        let groups = "Traceback (most recent call last):\n  File \"amd-smi\", line 1\nRuntimeError: WARNING: User is missing the \
            following required groups: render, video. Please add user to these groups.\n";
        assert!(
            complaint("", groups)
                .unwrap()
                .starts_with("RuntimeError: WARNING: User is missing")
        );
        assert_eq!(
            complaint("Field \"compute_cap\" is not a valid field to query.\n", "").unwrap(),
            "Field \"compute_cap\" is not a valid field to query."
        );
        assert_eq!(complaint("ROCk module is loaded\n\n", "\n"), None);
    }
}
