//! Devices by the name that torch reports: known names, and peak rates.
//!
//! Blanks and underscores in a name are equivalent: files have the latter. Rates are the vendors' dense peaks, for
//! FP8 if the device has it, else for INT8; where a vendor publishes only figures with sparsity, half of them.

/// Peak rates of a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Peak {
    /// Dense FP8 (or INT8) operations per second, in 10^12.
    pub(super) tera_ops: f64,
    /// Main memory, in 10^12 bytes per second.
    pub(super) tera_bytes: f64,
    /// Last-level cache in MiB.
    pub(super) cache_mib: f64,
    /// Where the figures come from.
    pub(super) source: &'static str,
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "every entry of the list below is an Option"
)]
const fn peak(
    tera_ops: f64,
    tera_bytes: f64,
    cache_mib: f64,
    source: &'static str,
) -> Option<Peak> {
    Some(Peak {
        tera_ops,
        tera_bytes,
        cache_mib,
        source,
    })
}

/// Names that SGLang 0.5.23 and vLLM 0.20.2 ship files for, or that other parts are known to report, with their peak
/// rates where the vendor publishes them.
static NAMED: [(&str, Option<Peak>); 53] = [
    ("Intel(R)_Arc(TM)_Pro_B60_Graphics", None),
    ("AMD_Radeon_8060S", None),
    ("AMD_Radeon_8060S_Graphics", None),
    ("AMD_Radeon_AI_PRO_R9700", R9700),
    ("AMD_Radeon_Graphics", None),
    ("AMD_Radeon_R9700", R9700),
    (
        "NVIDIA_A10",
        peak(250.0, 0.6, 6.0, "NVIDIA A10 data sheet (INT8)"),
    ),
    ("NVIDIA_A100-PCIE-40GB", peak(624.0, 1.555, 40.0, A100)),
    ("NVIDIA_A100-SXM4-40GB", peak(624.0, 1.555, 40.0, A100)),
    ("NVIDIA_A100-SXM4-80GB", peak(624.0, 2.039, 40.0, A100)),
    ("NVIDIA_A100_80GB_PCIe", peak(624.0, 1.935, 40.0, A100)),
    (
        "NVIDIA_A10G",
        peak(140.0, 0.6, 6.0, "AWS on the NVIDIA A10G (INT8)"),
    ),
    ("NVIDIA_A800-SXM4-80GB", peak(624.0, 2.039, 40.0, A100)),
    (
        "NVIDIA_B200",
        peak(4500.0, 8.0, 126.0, "NVIDIA B200 data sheet"),
    ),
    ("NVIDIA_B300", peak(4500.0, 8.0, 126.0, B300)),
    ("NVIDIA_B300_SXM6_AC", peak(4500.0, 8.0, 126.0, B300)),
    (
        "NVIDIA_GB10",
        peak(
            250.0,
            0.273,
            24.0,
            "NVIDIA DGX Spark: 1 PFLOPS of sparse FP4, a quarter of it",
        ),
    ),
    (
        "NVIDIA_GB200",
        peak(4500.0, 8.0, 126.0, "NVIDIA B200 data sheet"),
    ),
    ("NVIDIA_GB300", peak(4500.0, 8.0, 126.0, B300)),
    (
        "NVIDIA_GH200_144G_HBM3e",
        peak(1978.9, 4.9, 50.0, "NVIDIA GH200 data sheet"),
    ),
    (
        "NVIDIA_GH200_480GB",
        peak(1978.9, 4.8, 50.0, "NVIDIA H200 SXM data sheet"),
    ),
    ("NVIDIA_GeForce_RTX_4090", peak(330.3, 1.008, 72.0, ADA)),
    ("NVIDIA_GeForce_RTX_4090_D", peak(294.1, 1.008, 72.0, ADA)),
    (
        "NVIDIA_GeForce_RTX_5080",
        peak(225.1, 0.96, 64.0, BLACKWELL),
    ),
    (
        "NVIDIA_GeForce_RTX_5090",
        peak(419.0, 1.792, 96.0, BLACKWELL),
    ),
    (
        "NVIDIA_GeForce_RTX_5090_D",
        peak(296.9, 1.792, 96.0, BLACKWELL),
    ),
    ("NVIDIA_H100", H100),
    ("NVIDIA_H100_80GB_HBM3", H100),
    (
        "NVIDIA_H100_NVL",
        peak(1670.5, 3.9, 50.0, "NVIDIA H100 NVL data sheet"),
    ),
    (
        "NVIDIA_H100_PCIe",
        peak(1513.0, 2.0, 50.0, "NVIDIA H100 PCIe data sheet"),
    ),
    (
        "NVIDIA_H20",
        peak(296.0, 4.0, 60.0, "NVIDIA H20 data sheet"),
    ),
    (
        "NVIDIA_H20-3e",
        peak(
            296.0,
            4.8,
            60.0,
            "NVIDIA H20 data sheet, with the memory of an H200",
        ),
    ),
    (
        "NVIDIA_H200",
        peak(1978.9, 4.8, 50.0, "NVIDIA H200 SXM data sheet"),
    ),
    (
        "NVIDIA_H200_NVL",
        peak(1978.9, 4.8, 50.0, "NVIDIA H200 SXM data sheet"),
    ),
    (
        "NVIDIA_H800",
        peak(
            1978.9,
            3.35,
            50.0,
            "NVIDIA H100 SXM data sheet (H800 differs in NVLink only)",
        ),
    ),
    (
        "NVIDIA_H800_PCIe",
        peak(
            1513.0,
            2.0,
            50.0,
            "NVIDIA H100 PCIe data sheet (H800 differs in NVLink only)",
        ),
    ),
    (
        "NVIDIA_L20",
        peak(239.0, 0.864, 96.0, "NVIDIA L20 data sheet"),
    ),
    ("NVIDIA_L20Y", None),
    ("NVIDIA_L4", peak(242.5, 0.3, 48.0, "NVIDIA L4 data sheet")),
    (
        "NVIDIA_L40",
        peak(362.0, 0.864, 96.0, "NVIDIA L40 data sheet"),
    ),
    (
        "NVIDIA_L40S",
        peak(733.0, 0.864, 96.0, "NVIDIA L40S data sheet"),
    ),
    ("NVIDIA_RTX_5880_Ada_Generation", None),
    (
        "NVIDIA_RTX_6000_Ada_Generation",
        peak(728.5, 0.96, 96.0, "NVIDIA RTX 6000 Ada data sheet"),
    ),
    (
        "NVIDIA_RTX_A5000",
        peak(222.2, 0.768, 6.0, "NVIDIA RTX A5000 data sheet (INT8)"),
    ),
    (
        "NVIDIA_RTX_PRO_6000_Blackwell_Max-Q_Workstation_Edition",
        peak(878.0, 1.792, 128.0, RTX_PRO),
    ),
    (
        "NVIDIA_RTX_PRO_6000_Blackwell_Server_Edition",
        peak(1000.0, 1.597, 128.0, RTX_PRO),
    ),
    (
        "NVIDIA_RTX_PRO_6000_Blackwell_Workstation_Edition",
        peak(1000.0, 1.792, 128.0, RTX_PRO),
    ),
    (
        "NVIDIA_Thor",
        peak(
            517.0,
            0.273,
            32.0,
            "NVIDIA Jetson T5000: 2070 TFLOPS of sparse FP4, a quarter of it",
        ),
    ),
    ("Radeon_8060S_Graphics", None),
    ("AMD_Radeon_RX7900XTX", None),
    ("AMD_Radeon_RX9070XT", None),
    ("AMD_Radeon_890M", None),
    ("AMD_Radeon_RX_9070_XT", None),
];

const A100: &str = "NVIDIA A100 data sheet (INT8)";
const B300: &str = "NVIDIA B300: FP8 as the B200 data sheet";
const ADA: &str = "NVIDIA Ada architecture paper: FP8 with FP32 accumulation";
const BLACKWELL: &str = "NVIDIA RTX Blackwell architecture paper: FP8 with FP32 accumulation, by the AI TOPS of the part";
const RTX_PRO: &str = "NVIDIA RTX PRO 6000 Blackwell: AI TOPS of sparse FP4, a quarter of them";
const H100: Option<Peak> = peak(1978.9, 3.35, 50.0, "NVIDIA H100 SXM data sheet");
const R9700: Option<Peak> = peak(383.0, 0.64, 64.0, "AMD Radeon AI PRO R9700 data sheet");

/// Instinct parts with their table key.
static INSTINCT: [(&str, &str, u32); 9] = [
    ("MI300X", "gfx942", 304),
    ("MI300XHF", "gfx942", 304),
    ("MI325X", "gfx942", 304),
    ("MI300A", "gfx942", 228),
    ("MI308X", "gfx942", 80),
    ("MI350X", "gfx950", 256),
    ("MI355X", "gfx950", 256),
    ("MI350P", "gfx950", 128),
    ("MI455X", "gfx1250", 256),
];

/// A name as files spell it.
fn filed(name: &str) -> String {
    name.trim().replace(' ', "_")
}

/// Whether some device reports `name`.
pub fn is_known(name: &str) -> bool {
    let name = filed(name);
    key(&name).is_some() || NAMED.iter().any(|(known, _)| *known == name)
}

/// Every known name, with the Instinct parts in their plain spelling.
pub fn names() -> impl Iterator<Item = String> {
    let instinct = INSTINCT
        .iter()
        .map(|(model, ..)| format!("AMD_Instinct_{model}"));
    instinct.chain(NAMED.iter().map(|(name, _)| (*name).to_owned()))
}

/// Architecture and compute units of an Instinct part, including the names of virtual functions and OAM boards.
pub fn key(name: &str) -> Option<(&'static str, u32)> {
    let name = filed(name);
    let mut model = name.strip_prefix("AMD_Instinct_")?;
    while let Some(rest) = ["_VF", "_OAM"]
        .iter()
        .find_map(|suffix| model.strip_suffix(suffix))
    {
        model = rest;
    }
    // vLLM names the OAM boards by the number alone (`AMD_Instinct_MI355_OAM`), and the HF part with an underscore.
    let found = |model: &str| INSTINCT.iter().find(|(known, ..)| *known == model);
    let oam = name.ends_with("_OAM").then(|| format!("{model}X"));
    found(model)
        .or_else(|| found(&model.replace("_HF", "HF")))
        .or_else(|| oam.and_then(|model| found(&model)))
        .map(|(_, gfx, units)| (*gfx, *units))
}

/// The peak rates of a device that is not an Instinct part.
pub(super) fn peaks(name: &str) -> Option<Peak> {
    let name = filed(name);
    NAMED.iter().find(|(known, _)| *known == name)?.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instinct_parts_answer_to_every_name_they_report() {
        for name in [
            "AMD Instinct MI300X",
            "AMD_Instinct_MI300X_OAM",
            "AMD Instinct MI300X VF",
            "AMD_Instinct_MI300XHF",
            "AMD_Instinct_MI300X_HF",
            "AMD_Instinct_MI325X_OAM_VF",
            "AMD_Instinct_MI325_OAM",
        ] {
            assert_eq!(key(name), Some(("gfx942", 304)), "{name}");
            assert!(is_known(name));
        }
        assert_eq!(key("AMD_Instinct_MI355_OAM"), Some(("gfx950", 256)));
        assert_eq!(key("AMD_Instinct_MI350P"), Some(("gfx950", 128)));
        assert_eq!(key("AMD_Instinct_MI308X_VF"), Some(("gfx942", 80)));
        assert_eq!(key("AMD_Instinct_MI300"), None);
        assert_eq!(key("NVIDIA_H100"), None);
    }

    #[test]
    fn names_are_listed_once_and_their_figures_are_positive() {
        let mut seen = std::collections::BTreeSet::new();
        for name in names() {
            assert!(is_known(&name), "{name}");
            assert!(seen.insert(name.clone()), "{name} twice");
        }
        for peak in NAMED.iter().filter_map(|(_, peak)| *peak) {
            assert!(peak.tera_ops > 0.0 && peak.tera_bytes > 0.0 && peak.cache_mib > 0.0);
        }
    }
}
