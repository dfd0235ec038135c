//! What a kernel does in a step, judged by its name.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::rules::{RULES, Rule};

/// What a kernel is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The two GEMMs of a fused MoE.
    MoeGemm,
    /// Router's top-k, sorting of tokens by expert, sum over experts. Quantisers that dense GEMMs use as well are
    /// [`Class::Quantisation`].
    MoeOther,
    /// Dense FP8 GEMMs.
    DenseFp8,
    /// Quantisation of activations to FP8.
    Quantisation,
    /// Every other GEMM: the output head, the router, unquantised layers.
    OtherGemm,
    Attention,
    /// All-reduce and its kin. A rank waits here for the slowest one.
    Communication,
    /// Norms, rotary embedding, activations, sampling, copies, and kernels that no rule matches.
    Rest,
}

impl Class {
    /// All classes, in display order.
    pub const ALL: [Self; 8] = [
        Self::MoeGemm,
        Self::MoeOther,
        Self::DenseFp8,
        Self::Quantisation,
        Self::OtherGemm,
        Self::Attention,
        Self::Communication,
        Self::Rest,
    ];

    /// The name for display.
    pub fn name(self) -> &'static str {
        match self {
            Self::MoeGemm => "fused MoE GEMMs",
            Self::MoeOther => "MoE routing, sorting, sum",
            Self::DenseFp8 => "dense FP8 GEMMs",
            Self::Quantisation => "FP8 quantisation",
            Self::OtherGemm => "other GEMMs",
            Self::Attention => "attention",
            Self::Communication => "communication",
            Self::Rest => "norm, elementwise, rest",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An operation that gemmtune can tune.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    FusedMoe,
    DenseFp8,
}

impl Operation {
    /// Every operation, in display order.
    pub const ALL: [Self; 2] = [Self::FusedMoe, Self::DenseFp8];

    /// The class of kernels whose time a table decides. What surrounds a GEMM (quantiser, sorting) is not affected by
    /// tuning.
    pub(super) fn class(self) -> Class {
        match self {
            Self::FusedMoe => Class::MoeGemm,
            Self::DenseFp8 => Class::DenseFp8,
        }
    }

    /// The name for display, as the subject of a sentence.
    pub fn name(self) -> &'static str {
        match self {
            Self::FusedMoe => "fused MoE",
            Self::DenseFp8 => "dense FP8 GEMMs",
        }
    }
}

/// The family of kernels that no rule matches.
pub(super) const UNKNOWN: &str = "unknown";

/// Class and family of the kernel called `name`, by the first rule that matches.
pub fn classify(name: &str) -> (Class, &'static str) {
    RULES
        .iter()
        .find(|rule| rule.fits(name))
        .map_or((Class::Rest, UNKNOWN), |rule| (rule.class, rule.family))
}

impl Rule {
    fn fits(&self, name: &str) -> bool {
        self.all.iter().all(|part| name.contains(part))
            && (self.any.is_empty() || self.any.iter().any(|part| name.contains(part)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names as profilers print them: Triton and hand-written kernels bare, templates demangled.
    #[test]
    fn kernels_of_servers_are_known_by_name() {
        for (name, class, family) in [
            ("fused_moe_kernel", Class::MoeGemm, "SGLang Triton"),
            (
                "void deep_gemm::sm90_fp8_gemm_1d2d_impl<(cute::UMMA::Major)0, 0u, 1536u, 2048u, 128u, 64u, 128u, 128u, (deep_gemm::GemmType)2>(float*, int*)",
                Class::MoeGemm,
                "DeepGEMM",
            ),
            (
                "void deep_gemm::sm90_fp8_gemm_1d2d_impl<(cute::UMMA::Major)0, 0u, 1536u, 2048u, 1u, 64u, 128u, 128u, (deep_gemm::GemmType)0>(float*, int*)",
                Class::DenseFp8,
                "DeepGEMM",
            ),
            (
                "_ZN9deep_gemm23sm90_fp8_gemm_1d2d_implILN4cute4UMMA5MajorE0ELj0ELj1536ELNS_8GemmTypeE1EEEvPfPi",
                Class::MoeGemm,
                "DeepGEMM",
            ),
            (
                "_ZN7cutlass13device_kernelIN5flash11enable_sm90INS1_16FlashAttnFwdSm90INS1_25CollectiveMainloopFwdSm90E",
                Class::Attention,
                "FlashAttention",
            ),
            (
                "_ZN7cutlass13device_kernelINS_4gemm6kernel13GemmUniversalIN4cute5tupleIJiiiiEEENS_12float_e4m3_tE",
                Class::DenseFp8,
                "CUTLASS",
            ),
            ("_w8a8_block_fp8_matmul", Class::DenseFp8, "SGLang Triton"),
            (
                "_w8a8_block_fp8_matmul_unrolledx4",
                Class::DenseFp8,
                "SGLang Triton",
            ),
            (
                "_gemm_a8w8_blockscale_kernel_GRID_MN_1_GROUP_K_128",
                Class::DenseFp8,
                "aiter Triton",
            ),
            (
                "void ck::kernel_gemm_xdl_cshuffle_v3_multi_d_b_preshuffle<ck::GridwiseGemmMultiD_blockscale_xdl_cshuffle_v3_b_preshuffle<ck::tensor_layout::gemm::RowMajor, ck::f8_t>>",
                Class::DenseFp8,
                "CK",
            ),
            (
                "void ck::kernel_moe_gemm<ck::GridwiseMoeGemmBlockScale<ck::tensor_layout::gemm::RowMajor>>",
                Class::MoeGemm,
                "CK",
            ),
            (
                "_ZN5aiter47fmoe_bf16_blockscaleFp8_g1u1_vs_pf2_silu_1tg_32x256E",
                Class::MoeGemm,
                "aiter asm",
            ),
            (
                "void ck_tile::kentry<1, ck_tile::MoeSortingMultiPhaseKernel_P0_v1<ck_tile::MoeSortingProblemMp>>",
                Class::MoeOther,
                "sorting",
            ),
            (
                "void topkGatingSoftmax<float, 4, 128, 4, 16>(float const*)",
                Class::MoeOther,
                "routing",
            ),
            (
                "void count_and_sort_expert_tokens_kernel<int>(int const*)",
                Class::MoeOther,
                "sorting",
            ),
            ("_fwd_kernel_ep_gather", Class::MoeOther, "expert parallel"),
            ("_fwd_kernel", Class::Attention, "SGLang Triton"),
            (
                "_fwd_grouped_kernel_stage1",
                Class::Attention,
                "SGLang Triton",
            ),
            (
                "void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnFwdSm90<flash::CollectiveMainloopFwdSm90<cutlass::float_e4m3_t>>>>",
                Class::Attention,
                "FlashAttention",
            ),
            (
                "void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<cutlass::gemm::GroupProblemShape<cute::tuple<int>>, cutlass::float_e4m3_t>>",
                Class::MoeGemm,
                "CUTLASS",
            ),
            (
                "void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<cute::tuple<int>, cutlass::float_e4m3_t>>",
                Class::DenseFp8,
                "CUTLASS",
            ),
            (
                "void per_token_group_quant_8bit_kernel<c10::BFloat16, __nv_fp8_e4m3, true>(void const*)",
                Class::Quantisation,
                "per group",
            ),
            (
                "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
                Class::Communication,
                "NCCL",
            ),
            (
                "void sglang::cross_device_reduce_1stage<__nv_bfloat16, 2>(sglang::RankData*)",
                Class::Communication,
                "custom all-reduce",
            ),
            (
                "nvjet_tst_128x64_64x8_2x1_v_bz_TNT",
                Class::OtherGemm,
                "cuBLASLt",
            ),
            (
                "Cijk_Alik_Bljk_BBS_BH_Bias_HA_S_SAV_UserArgs_MT16x16x512",
                Class::OtherGemm,
                "hipBLASLt",
            ),
            (
                "void flashinfer::norm::FusedAddRMSNormKernel<8u, __nv_bfloat16>(__nv_bfloat16*)",
                Class::Rest,
                "norm",
            ),
            ("Memcpy DtoD (Device -> Device)", Class::Rest, "copies"),
            ("gemmtune_never_heard_of", Class::Rest, UNKNOWN),
        ] {
            assert_eq!(classify(name), (class, family), "{name}");
        }
    }

    #[test]
    fn every_rule_can_be_reached_and_says_where_its_names_are_from() {
        for (index, rule) in RULES.iter().enumerate() {
            assert!(!rule.source.is_empty(), "{:?}", rule.family);
            assert!(!(rule.all.is_empty() && rule.any.is_empty()));
            // A name that consists of a rule's own parts is not matched by an earlier rule.
            let alone: Vec<String> = if rule.any.is_empty() {
                vec![rule.all.join(" ")]
            } else {
                rule.any
                    .iter()
                    .map(|part| format!("{} {part}", rule.all.join(" ")))
                    .collect()
            };
            for name in alone {
                let first = RULES.iter().position(|other| other.fits(&name));
                assert_eq!(first, Some(index), "{name} is an earlier rule's");
            }
        }
    }
}
