//! Rules that match kernel names, in one table; the first match decides.
//!
//! A name is what the profiler recorded: Triton and hand-written kernels bare, C++ templates demangled, and those
//! whose symbol is longer than Kineto demangles (1024 letters, libkineto/src/Demangle.cpp) mangled. No rule guesses
//! from a word like "gemm": a kernel that no rule matches is shown under its own name.

use super::class::Class;
use super::class::Class::{
    Attention, Communication, DenseFp8, MoeGemm, MoeOther, OtherGemm, Quantisation, Rest,
};

/// A rule: which kernels belong to a class.
pub(super) struct Rule {
    /// Substrings that the name must all contain.
    pub(super) all: &'static [&'static str],
    /// Substrings of which the name must contain one; empty where `all` decides alone.
    pub(super) any: &'static [&'static str],
    pub(super) class: Class,
    /// Library or kind, for display.
    pub(super) family: &'static str,
    /// Where the names were found.
    #[cfg_attr(not(test), expect(dead_code, reason = "for who reads the table"))]
    pub(super) source: &'static str,
}

const SGLANG: &str =
    "SGLang 0.5.6 to 0.5.23, sglang/srt/layers, sglang/kernels and sglang/jit_kernel";
const SGL_KERNEL: &str =
    "sglang-kernel 0.4.5 (sm90/common_ops), SGLang 0.5.23 sglang/kernels/jit/csrc";
const DEEP_GEMM: &str = "sgl-deep-gemm include/deep_gemm/impls; GemmType in common/types.cuh";
const FLASHINFER: &str = "flashinfer 0.6.14 include and csrc";
const AITER: &str = "aiter e4048607a5, csrc, hsa and aiter/ops/triton";
const CK: &str =
    "composable_kernel as aiter e4048607a5 instantiates it: csrc/ck_gemm_*, ck_tile::kentry";
const TORCH: &str = "PyTorch 2.11 aten/src/ATen/native/cuda, torch.profiler's names of copies";
const VENDOR: &str = "NVIDIA's and AMD's BLAS libraries: names of their kernels in public traces";
const OWN: &str = "gemmtune's own kernels, python/gpu_worker/families";

const fn any(
    class: Class,
    family: &'static str,
    source: &'static str,
    any: &'static [&'static str],
) -> Rule {
    Rule {
        all: &[],
        any,
        class,
        family,
        source,
    }
}

const fn all(
    class: Class,
    family: &'static str,
    source: &'static str,
    all: &'static [&'static str],
) -> Rule {
    Rule {
        all,
        any: &[],
        class,
        family,
        source,
    }
}

const fn both(
    class: Class,
    family: &'static str,
    source: &'static str,
    all: &'static [&'static str],
    any: &'static [&'static str],
) -> Rule {
    Rule {
        all,
        any,
        class,
        family,
        source,
    }
}

/// Specific names come before general ones.
#[rustfmt::skip]
pub(super) const RULES: &[Rule] = &[
    // A collective that also norms or quantises counts as a collective, because that determines its time.
    any(Communication, "NCCL", VENDOR, &["ncclDevKernel", "ncclKernel", "rcclDevKernel", "mscclKernel", "mscclpp"]),
    any(Communication, "custom all-reduce", SGL_KERNEL, &[
        "cross_device_reduce", "all_reduce_1shot", "all_reduce_2shot", "one_shot_all_reduce", "two_shot_all_reduce",
        "multimem_all_reduce", "multimem_one_shot", "multimem_full_oneshot", "all_reduce_pull", "all_reduce_push", "all_gather_kernel",
        "reduce_scatter", "_all_gather_kernel_inner",
    ]),
    any(Communication, "fused all-reduce", FLASHINFER, &["allreduce_fusion_kernel", "trtllm_allreduce", "trtllm_mnnvl_allreduce", "oneshotAllreduceFusionKernel", "twoshotAllreduceKernel"]),
    any(Communication, "quick all-reduce", AITER, &["allreduce_prototype", "allreduce_rmsnorm_prototype", "allReduceQuantFp8", "local_device_load_rmsnorm"]),
    any(Communication, "DeepEP", SGLANG, &["deep_ep::", "nvshmem", "mori::"]),

    // Attention before GEMMs: FlashAttention and CUTLASS share `cutlass::device_kernel` and FP8 types.
    any(Attention, "FlashAttention", SGL_KERNEL, &["flash::", "flash_fwd_", "FlashAttnFwd", "prepare_varlen_num_blocks_kernel"]),
    any(Attention, "FlashInfer", FLASHINFER, &["BatchDecodeWithPagedKV", "BatchPrefillWithPaged", "BatchPrefillWithRagged", "SinglePrefillWithKV", "BatchMLAPaged", "MergeState", "merge_attn_states", "PersistentVariableLengthMerge", "fmhaSm100", "fmhaSm90"]),
    any(Attention, "CUTLASS", SGL_KERNEL, &["cutlass::fmha", "cutlass4fmha", "Sm100FmhaMla"]),
    any(Attention, "cuDNN", VENDOR, &["cudnn_generated_fort_native_sdpa"]),
    any(MoeOther, "expert parallel", SGLANG, &["_fwd_kernel_ep_", "deepep_permute", "deepep_post_reorder", "deepep_compute_src2dst", "_fwd_kernel_expand_to_masked_slab", "_fwd_kernel_masked_slab_to_expand", "_fwd_kernel_fill_m_indices"]),
    any(Attention, "aiter", AITER, &["paged_attention_ll4mi", "pa_decode", "pa_prefill", "_ZN5aiter18pa_", "aiter::pa_", "mla_a8w8", "mla_pfl", "mla_dec", "kn_mla_reduce", "kn_get_mla_metadata", "mla_decode_fwd", "fmha_fwd", "FmhaFwd", "FmhaBatchPrefill", "kernel_unified_attention", "reduce_segments"]),
    any(Attention, "linear attention", SGLANG, &["gated_delta_rule", "chunk_fwd_kernel", "causal_conv1d", "chunk_gla_fwd", "lightning_attn", "_fwd_diag_kernel", "_fwd_kv_parallel", "_fwd_none_diag_kernel", "fused_recurrent_", "selective_scan", "_chunk_scan_fwd", "_chunk_state_fwd"]),
    any(Attention, "SGLang Triton", SGLANG, &["_fwd_grouped_kernel_stage1", "_fwd_kernel", "_sparse_mla_", "_flash_attn_fwd", "_attn_fwd", "_decode_score", "_verify_mla_"]),
    any(Attention, "FlashMLA", SGL_KERNEL, &["flash_mla", "get_mla_metadata", "sparse_mla", "runMla"]),

    // Fused MoE.
    any(MoeOther, "routing", SGLANG, &["fused_moe_router_", "_router_triton_kernel"]),
    any(MoeGemm, "SGLang Triton", SGLANG, &["fused_moe_kernel", "_fused_moe_persistent_kernel", "_fused_moe_silu_kernel", "_fused_moe_persistent_silu_kernel"]),
    both(MoeGemm, "DeepGEMM", DEEP_GEMM, &["deep_gemm"], &["GemmType)1", "GemmType)2", "GemmType)5", "GemmTypeE1E", "GemmTypeE2E", "GemmTypeE5E", "mega_moe_impl", "GemmType::MGrouped"]),
    all(MoeGemm, "CUTLASS", SGL_KERNEL, &["cutlass", "GroupProblemShape"]),
    any(MoeGemm, "CUTLASS", FLASHINFER, &["MoeFCGemm", "fused_moe::run_global", "moe_gemm_kernel"]),
    any(MoeGemm, "TensorRT-LLM", FLASHINFER, &["bmm_E4m3", "bmm_Bfloat16_E4m3", "bmm_E2m1", "bmm_Bfloat16_E2m1", "bmm_MxE4m3"]),
    any(MoeOther, "TensorRT-LLM", FLASHINFER, &["moe::dev", "3moe3dev", "routingIndices", "routingMainKernel", "routingInitExpertCounts", "activationDeepSeekKernel", "finalizeDeepSeekKernel", "finalizeKernelVecLoad", "finalizeMoeRouting", "expandInputRowsKernel", "doActivationKernel", "blockExpertPrefixSum", "globalExpertPrefixSum", "mergeExpertPrefixSum", "computeStridesTmaWarpSpecialized"]),
    any(MoeGemm, "CK", CK, &["kernel_moe_gemm", "kernel_moe_mxgemm", "MoeFlatmm", "moe_flatmm", "GridwiseMoeGemm"]),
    any(MoeGemm, "aiter asm", AITER, &["fmoe_"]),
    any(MoeGemm, "FlyDSL", AITER, &["flydsl_moe", "moe_gemm1_", "moe_gemm2_"]),
    any(MoeGemm, "small M", SGLANG, &["smallm_f8_p", "smallm_p1_", "smallm_p2"]),
    any(MoeGemm, "Marlin", SGL_KERNEL, &["marlin_moe", "moe_wna16"]),
    any(MoeOther, "sorting", AITER, &["MoeSorting", "moe_sorting", "opus_moe_sorting", "fused_mx_quant_moe_sort", "_fused_quant_fp8_sort", "sort_count_kernel_impl", "sort_cumsum_kernel_impl", "sort_place_pad_kernel_impl"]),
    any(MoeOther, "sorting", SGL_KERNEL, &["moe_align_block_size", "count_and_sort_expert_tokens", "count_and_sort_checked_expert_tokens", "align_single_token_kernel", "compute_expert_offsets", "compute_problem_sizes", "compute_arg_sorts", "get_group_gemm_starts", "shuffleRowsKernel", "group_mm_pre_compute", "moe_permute_prepare", "_expert_chunk_blocks"]),
    any(MoeOther, "routing", SGL_KERNEL, &["topkGating", "topk_gating_kernel", "moeSoftmax", "moeSigmoid", "moeTopK", "moe_fused_gate", "kimi_k2_moe_fused_gate", "grouped_topk", "route_radix", "_streaming_topk_kernel", "_fused_append_shared_experts", "_fused_append_remap_shared_experts"]),
    any(MoeOther, "sum over experts", SGL_KERNEL, &["moe_sum", "moe_fused_mul_sum", "moeFinalizeKernel", "topk_sum_kernel", "shuffle_weighted_sum", "experts_combine_kernel", "post_reorder_", "apply_shuffle_mul_sum"]),
    any(MoeOther, "grouped inputs", SGLANG, &["fill_gateup_input", "pre_reorder_triton_kernel", "silu_mul_static_tensorwise_quant_triton_kernel_for_cutlass_moe", "silu_mul_dynamic_scale_triton_kernel_for_cutlass_moe", "fused_moe_dispatch_index", "_silu_and_mul_post_quant"]),

    // Dense FP8.
    any(DenseFp8, "SGLang Triton", SGLANG, &["_w8a8_block_fp8_matmul", "_fp8_scaled_mm_kernel"]),
    both(DenseFp8, "DeepGEMM", DEEP_GEMM, &["deep_gemm"], &["fp8_gemm", "fp8_fp4_gemm"]),
    any(DenseFp8, "gemmtune", OWN, &["block_fp8_stream"]),
    both(DenseFp8, "CUTLASS", SGL_KERNEL, &["cutlass"], &["float_e4m3_t", "float_e5m2_t", "float_ue8m0_t"]),
    any(DenseFp8, "small M", SGL_KERNEL, &["sm120_fp8_gemv_kernel", "sm120_fp8_skinny_gemm"]),
    any(DenseFp8, "aiter Triton", AITER, &["_gemm_a8w8_"]),
    any(DenseFp8, "aiter asm", AITER, &["fp8gemm_bf16_", "f8_block_scale_", "flatmm_uk_gfx9", "i8gemm_bf16_"]),
    both(DenseFp8, "CK", CK, &["kernel_gemm_xdl"], &["f8_t", "blockscale", "ABScale", "b_preshuffle"]),
    both(DenseFp8, "CK tile", CK, &["ck_tile"], &["QuantGemm", "fp8_t", "FlatmmKernel"]),
    any(DenseFp8, "FlyDSL", AITER, &["flydsl_mxfp8", "flydsl_a8w8", "preshuffle_gemm"]),
    any(DenseFp8, "cuBLASLt", VENDOR, &["nvjet_qq", "nvjet_sm90_qq", "nvjet_sm100_qq", "xmma_gemm_e4m3", "sm89_xmma_gemm_e4m3"]),
    any(DenseFp8, "hipBLASLt", VENDOR, &["Cijk_Alik_Bljk_F8", "Cijk_Ailk_Bljk_F8"]),

    // Quantisation.
    any(Quantisation, "per group", SGL_KERNEL, &["per_token_group_quant", "_per_token_group_quant", "per_group_transpose", "dynamic_per_group_scaled_quant", "group_fp8_quant", "fp8_group_quant", "_fused_flatten_fp8_group_quant", "scale_1x128_kernel"]),
    any(Quantisation, "per token", SGL_KERNEL, &["per_token_quant_fp8", "dynamic_per_token_scaled_quant", "_dynamic_per_token_quant_fp8", "per_tensor_quant_fp8", "per_tensor_absmax", "_static_quant_fp8", "_per_token_quant", "_dynamic_per_tensor_quant_fp8", "scaled_quant_kernel", "initializeScale", "dynamic_per_tensor"]),
    any(Quantisation, "layout of scales", DEEP_GEMM, &["transpose_fp32", "transpose_and_pack_fp32", "pack_fp32_into_ue8m0"]),
    any(Quantisation, "with an activation or norm", AITER, &["act_and_mul_quant_kernel", "scaled_act_and_mul_kernel", "add_rmsnorm_quant", "rmsnorm_quant", "rmsnorm_group_quant"]),

    // Every other GEMM.
    both(OtherGemm, "DeepGEMM", DEEP_GEMM, &["deep_gemm"], &["bf16_gemm", "bmn_bnk_mn_gemm", "hc_prenorm_gemm"]),
    any(OtherGemm, "cuBLASLt", VENDOR, &["nvjet_", "xmma_gemm", "cublasLt", "cublasSplitK", "gemvNSP", "gemv2T", "gemvx::kernel", "splitKreduce_kernel", "cublasGemv", "internal::gemvx", "s16816gemm", "s161616gemm"]),
    any(OtherGemm, "hipBLASLt", VENDOR, &["Cijk_"]),
    any(OtherGemm, "router or low rank", SGL_KERNEL, &["router_gemm", "fused_a_gemm", "hopper_bf16_gemv", "router_gate_matvec", "dual_gemv_kernel", "tiny_gemm", "matmul_kernel_persistent"]),
    any(OtherGemm, "aiter", AITER, &["wvSplitK", "LLGemm1_kernel", "_gemm_a16_w16", "_gemm_a16w16", "gemm_a16w16", "bf16gemm_", "_batched_gemm_"]),
    any(OtherGemm, "CUTLASS", SGL_KERNEL, &["cutlass::Kernel2", "cutlass7Kernel2"]),
    both(OtherGemm, "CUTLASS", SGL_KERNEL, &["cutlass"], &["bfloat16_t", "half_t"]),
    any(OtherGemm, "CK", CK, &["ck::kernel_gemm", "kernel_gemm_xdl"]),

    // What is known and small.
    any(Rest, "norm", SGL_KERNEL, &["RMSNorm", "rmsnorm", "layer_norm", "LayerNorm", "layernorm", "l2norm", "qknorm", "rms_norm"]),
    any(Rest, "rotary embedding", SGL_KERNEL, &["rotary", "Rotary", "RotaryPosIds", "BatchQKApplyRotary", "rope_kernel", "fused_rope", "QKNormRope", "_rope_"]),
    any(Rest, "activation", FLASHINFER, &["act_and_mul_kernel", "silu_and_mul", "gelu"]),
    any(Rest, "KV cache", SGLANG, &["store_kvcache", "set_kv_buffer", "set_mla_kv_buffer", "reshape_and_cache", "concat_and_cache", "create_flashinfer_kv_indices", "kv_indices", "alloc_decode_kernel", "alloc_extend_kernel", "write_req_to_token", "get_num_kv_splits", "assign_req_to_token", "page_table"]),
    any(Rest, "positions", SGLANG, &["compute_position_kernel", "clamp_position_kernel"]),
    any(Rest, "sampling", FLASHINFER, &["flashinfer::sampling", "flashinfer8sampling", "Sampling", "softmax", "cunn_SoftMax", "argmax", "ArgMax", "TopPRenorm", "TopKMask"]),
    any(Rest, "copies", TORCH, &["Memcpy ", "Memset ", "memcpy_kernel", "CatArrayBatchedCopy", "copyBuffer", "fillBuffer"]),
    any(Rest, "elementwise", TORCH, &["elementwise_kernel", "vectorized_elementwise", "unrolled_elementwise", "index_elementwise", "reduce_kernel", "indexSelect", "vectorized_gather", "triton_poi_", "triton_red_", "triton_per_", "_scatter_gather", "DeviceScan", "RadixSort", "at::native::", "2at6native", "distribution_"]),
];
