//! How a kernel can be forced, per era, architecture and ROCm version: one table for `trace`,
//! `switch` and the overlay.

use serde::Serialize;

use super::era::Era;
use super::flow::Arch;
use super::route::ForceCk;

/// By what means a kernel is forced, mildest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Means {
    /// The tree does it already.
    None,
    /// An environment variable that the release reads.
    Env,
    /// Code loaded into the server, the tree untouched.
    Overlay,
    /// An edit of the tree.
    Patch,
    /// Not possible without wrong results.
    Refused,
}

/// How CK is forced on `arch`, for people and scripts.
pub fn summary(era: Era, arch: Arch) -> ForceCk {
    let (means, detail) = match (era, arch) {
        (Era::E0, _) => (Means::None, "CK is what this tree calls".to_owned()),
        (Era::E1, _) => (
            Means::Overlay,
            "bind gemm_a8w8_blockscale to aiter.gemm_a8w8_blockscale".to_owned(),
        ),
        (Era::E2, _) => (
            Means::Overlay,
            "bind triton_gemm_a8w8_blockscale to CK; commenting its import out is a NameError"
                .to_owned(),
        ),
        (Era::E3, Arch::Gfx942) => (
            Means::Overlay,
            "bind triton_gemm_a8w8_blockscale to aiter.gemm_a8w8_blockscale, which this tree does \
             not import"
                .to_owned(),
        ),
        (Era::E4 | Era::E5 | Era::E6, Arch::Gfx942) => (
            Means::Overlay,
            "bind triton_gemm_a8w8_blockscale to CK; set_force_ck_w8a8 has no effect on gfx942"
                .to_owned(),
        ),
        (Era::E7 | Era::E7b, Arch::Gfx942) => (
            Means::Env,
            "SGLANG_AITER_GFX942_BLOCKSCALE_USE_CK=1".to_owned(),
        ),
        (Era::E3, Arch::Gfx950) => (
            Means::Overlay,
            "ROCm >= 7.2: the shape predicate answers False in fp8_utils and fp8 before weights \
             load (bpreshuffle); below: bind triton_gemm_a8w8_blockscale to \
             aiter.gemm_a8w8_blockscale, with a guard above the safe M"
                .to_owned(),
        ),
        (Era::E4, Arch::Gfx950) => (
            Means::Overlay,
            "the shape predicate answers False in fp8_utils and fp8 before weights load; below \
             ROCm 7.2 with a guard above the safe M"
                .to_owned(),
        ),
        (Era::E5 | Era::E6 | Era::E7, Arch::Gfx950) => (
            Means::Overlay,
            "set_force_ck_w8a8(True) before weights load; below ROCm 7.2 with a guard above the \
             safe M"
                .to_owned(),
        ),
        (Era::E7b, Arch::Gfx950) => (
            Means::Overlay,
            "set_force_ck_w8a8(True) before weights load, and SGLANG_ROCM_SMALLM_FP8_BS=0 so that \
             the small-M kernel of the tree does not take five shapes at M <= 32"
                .to_owned(),
        ),
    };
    ForceCk {
        arch,
        means,
        detail,
    }
}
