//! What SGLang's block-FP8 linears run unless a flag changes it, and which table applies: on an NVIDIA device,
//! and with aiter on AMD.
//!
//! From `_dispatch_auto_backend` and `initialize_fp8_gemm_config` of SGLang 0.5.16 (Apache-2.0); the order is the
//! same from 0.5.6.post2 to 0.5.23.

use super::moe::release::Release;

/// What computes the GEMMs on a device by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByDefault {
    /// DeepGEMM, if it can be imported.
    DeepGemm,
    /// CUTLASS, from `sgl_kernel`.
    Cutlass,
    /// SGLang's Triton kernel.
    Triton,
}

/// Product names, each a word or the beginning of two, with what SGLang uses there: Hopper and data-centre Blackwell
/// (sm_90, sm_100, sm_103); sm_120; sm_89 and older.
const PRODUCTS: [(&[&str], ByDefault); 3] = [
    (
        &[
            "H100", "H200", "H800", "H20", "GH200", "B200", "B300", "GB200", "GB300",
        ],
        ByDefault::DeepGemm,
    ),
    (&["RTX 50", "RTX PRO"], ByDefault::Cutlass),
    (
        &[
            "L4",
            "L40",
            "L40S",
            "L20",
            "RTX 40",
            "RTX 6000 Ada",
            "A100",
            "A800",
            "A10",
            "A10G",
        ],
        ByDefault::Triton,
    ),
];

impl ByDefault {
    /// What serves on the device with this name, spelt with blanks or underscores; `None` if it is not known.
    pub fn on(device: &str) -> Option<Self> {
        let name = device.replace(['_', '-'], " ");
        let rest = name.strip_prefix("NVIDIA ")?;
        let rest = rest.strip_prefix("GeForce ").unwrap_or(rest);
        let is = |product: &&str| {
            let begins = rest.strip_prefix(*product);
            begins.is_some_and(|after| {
                // `H200` does not match `H20`, but an `RTX 4090` matches `RTX 40`.
                product.contains(' ') || after.is_empty() || after.starts_with(' ')
            })
        };
        let found = PRODUCTS
            .iter()
            .find(|(products, _)| products.iter().any(&is));
        found.map(|(_, by_default)| *by_default)
    }

    /// Its name for display.
    pub fn name(self) -> &'static str {
        match self {
            Self::DeepGemm => "DeepGEMM",
            Self::Cutlass => "CUTLASS",
            Self::Triton => "its Triton kernel",
        }
    }
}

/// A remark if a Triton table is not read on `device` by default, and what to tune instead.
pub fn unread(device: &str) -> Option<String> {
    let by_default = ByDefault::on(device)?;
    let instead = match by_default {
        ByDefault::Triton => return None,
        ByDefault::DeepGemm => {
            "; what is tuned there is a route between kernels below it (`backend.kind = \"sglang-families\"`, `gemmtune tune --backend sglang-families`)"
        }
        ByDefault::Cutlass => "",
    };
    Some(format!(
        "on {} SGLang runs block-FP8 GEMMs with {} unless the server says `--fp8-gemm-backend triton`{}, and that reads no Triton table{instead}",
        device.replace('_', " "),
        by_default.name(),
        match by_default {
            ByDefault::DeepGemm => " or cannot import it",
            _ => "",
        },
    ))
}

/// What computes block-FP8 GEMMs where SGLang runs with aiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithAiter {
    /// aiter's CK entry point, which reads CSV tables.
    Ck,
    /// aiter's Triton GEMM, which reads JSON files.
    Triton,
    /// One or the other, by the shape of the weight and its M.
    ByShape,
}

impl WithAiter {
    /// What serves with the release `version` of SGLang on `gfx`; `wants_ck` is whether
    /// `SGLANG_AITER_GFX942_BLOCKSCALE_USE_CK` is set. `None` if that depends on an architecture that is not known,
    /// or the version is not that of a release.
    ///
    /// From `aiter_w8a8_block_fp8_linear` in `fp8_utils.py` of 18 releases from 0.5.5 to 0.5.23 (Apache-2.0).
    pub fn on(version: &str, gfx: Option<&str>, wants_ck: bool) -> Option<Self> {
        let release: Release = version.parse().ok()?;
        if release < Release(0, 5, 6) {
            return Some(Self::Ck);
        }
        if release < Release(0, 5, 10) {
            return Some(Self::Triton);
        }
        Some(match gfx? {
            "gfx942" if wants_ck && release >= Release(0, 5, 22) => Self::Ck,
            "gfx950" => Self::ByShape,
            _ => Self::Triton,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_known_by_its_product() {
        for (name, by_default) in [
            ("NVIDIA_H100_80GB_HBM3", Some(ByDefault::DeepGemm)),
            ("NVIDIA H200", Some(ByDefault::DeepGemm)),
            ("NVIDIA_H20-3e", Some(ByDefault::DeepGemm)),
            ("NVIDIA GB200", Some(ByDefault::DeepGemm)),
            ("NVIDIA L40S", Some(ByDefault::Triton)),
            ("NVIDIA GeForce RTX 4090", Some(ByDefault::Triton)),
            ("NVIDIA GeForce RTX 5090", Some(ByDefault::Cutlass)),
            (
                "NVIDIA_RTX_PRO_6000_Blackwell_Server_Edition",
                Some(ByDefault::Cutlass),
            ),
            ("NVIDIA H2000", None),
            ("AMD Instinct MI300X", None),
            ("", None),
        ] {
            assert_eq!(ByDefault::on(name), by_default, "{name}");
        }
    }

    #[test]
    fn with_aiter_the_release_the_architecture_and_a_switch_decide() {
        use WithAiter::{ByShape, Ck, Triton};
        for (version, gfx, wants_ck, serves) in [
            ("0.5.5", Some("gfx942"), false, Some(Ck)),
            ("0.5.6.post2", None, false, Some(Triton)),
            ("0.5.9", Some("gfx950"), false, Some(Triton)),
            ("0.5.10.post1", Some("gfx950"), false, Some(ByShape)),
            ("0.5.16", Some("gfx942"), true, Some(Triton)),
            ("0.5.23", Some("gfx942"), true, Some(Ck)),
            ("0.5.23", Some("gfx942"), false, Some(Triton)),
            ("0.5.23", None, false, None),
            ("main", Some("gfx942"), false, None),
        ] {
            assert_eq!(
                WithAiter::on(version, gfx, wants_ck),
                serves,
                "{version} {gfx:?}"
            );
        }
    }

    #[test]
    fn a_table_that_is_not_read_is_told_with_what_serves_instead() {
        let said = unread("NVIDIA_H200").unwrap();
        insta::assert_snapshot!(said, @r#"on NVIDIA H200 SGLang runs block-FP8 GEMMs with DeepGEMM unless the server says `--fp8-gemm-backend triton` or cannot import it, and that reads no Triton table; what is tuned there is a route between kernels below it (`backend.kind = "sglang-families"`, `gemmtune tune --backend sglang-families`)"#);
        insta::assert_snapshot!(unread("NVIDIA GeForce RTX 5090").unwrap(), @"on NVIDIA GeForce RTX 5090 SGLang runs block-FP8 GEMMs with CUTLASS unless the server says `--fp8-gemm-backend triton`, and that reads no Triton table");
        assert_eq!(unread("NVIDIA L4"), None);
    }
}
