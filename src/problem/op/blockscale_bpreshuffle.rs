//! aiter's `gemm_a8w8_blockscale_bpreshuffle`.

use super::runs::{BY_NAME, CK_DEFAULT, COMPILED, Call, FoundRow, NO_NAME, Runs};
use super::{AiterFacts, Candidates, Facts, LookupLine, SplitK, TunerScript};
use crate::problem::dtype::FLOAT8;
use crate::problem::library::Library;
use crate::problem::revision::Revision;

pub(super) const FACTS: Facts = Facts {
    name: "gemm_a8w8_blockscale_bpreshuffle",
    dtypes: &FLOAT8,
    element_bytes: 1.0,
    scale_block: Some(128),
    linears: &["aiter_w8a8_block_fp8_linear"],
    libraries: &Library::ALL,
    libtype_from: Some(Revision::P),
    weight_dtype_from: None,
    can_be_probed: true,
    without_table,
    hit,
    miss: |_| Runs::Default("the CK default kernel: a 64x64x128 tile with 256 threads for any M"),
    aiter: Some(AiterFacts {
        variable: "AITER_CONFIG_GEMM_A8W8_BLOCKSCALE_BPRESHUFFLE",
        stem: "a8w8_blockscale_bpreshuffle_tuned_gemm",
        short_stems: &[],
        source: "aiter/ops/gemm_op_a8w8.py",
        lines: &[LookupLine::Plain],
        compiled_names: "a8w8_blockscale_bpreshuffle_",
        own_names: "a8w8_blockscale_bpreshuffle_",
        ck_names: include_str!("ck/gemm_a8w8_blockscale_bpreshuffle.txt"),
        older_spelling: None,
        functions: &[
            (Library::Ck, "gemm_a8w8_blockscale_bpreshuffle_ck"),
            (Library::CkTile, "gemm_a8w8_blockscale_bpreshuffle_cktile"),
        ],
        pads_m_from: Revision::A,
        reuses_largest_from: None,
        module_looks_up: false,
        row_first_from: None,
        // CK and CK Tile never split K. Assembly does, but aiter withdrew its splits for many shapes
        // (ROCm/aiter#4326), so they are searched only on request.
        split_k: SplitK::Dropped,
        // As for the plain operation (ROCm/aiter#4581).
        unordered_split: Some(2),
        candidates: Candidates {
            gfx950: 57,
            older: 33,
        },
        scripts: &[
            TunerScript {
                path: "csrc/ck_gemm_a8w8_blockscale/gemm_a8w8_blockscale_tune.py",
                mode: Some("--preshuffle"),
                modules: &[
                    "module_gemm_a8w8_blockscale_bpreshuffle_tune",
                    "module_gemm_a8w8_blockscale_bpreshuffle_cktile_tune",
                    "module_gemm_a8w8_blockscale_bpreshuffle_asm",
                    "module_deepgemm_opus",
                ],
            },
            TunerScript {
                path: "csrc/ck_gemm_a8w8_blockscale_bpreshuffle/gemm_a8w8_blockscale_bpreshuffle_tune.py",
                mode: None,
                modules: &["module_gemm_a8w8_blockscale_bpreshuffle_tune"],
            },
        ],
        libtypes: &["all", "both", "ck"],
        assembly_dtype: None,
    }),
};

fn without_table(call: Call<'_>) -> Option<Runs> {
    if call.revision >= Revision::H && call.gfx == "gfx1250" {
        return Some(Runs::Default(
            "aiter's Triton kernel; with e8m0 scales the FlyDSL kernel of a `flydsl` row, or one by FlyDSL's heuristic",
        ));
    }
    call.triton_unless_prebuilt()
}

fn hit(call: Call<'_>, row: FoundRow<'_>) -> Runs {
    use Revision::{A, B, H, N, P};
    match (call.revision, row.libtype) {
        // The Python result is only logged; the module probes its own copy in the same order.
        (A | B, _) | (P, "ck" | "cktile") => Runs::RowKernel(COMPILED),
        (H | N, "opus") => Runs::RowKernel("the kernel of this kernelId"),
        (H | N, "ck" | "cktile") if row.kernel_name.is_none() => Runs::Raises(NO_NAME),
        (P | H | N, "asm") | (H | N, "ck" | "cktile") => Runs::RowKernel(BY_NAME),
        (H | N, "triton") => {
            Runs::RowKernel("aiter's Triton kernel; the name may say `triton` or `gluon`")
        }
        (H | N, "flydsl") => Runs::Raises(
            "a RuntimeError: this FlyDSL kernel is for gfx1250 (without FlyDSL, the CK default kernel)",
        ),
        (P | H | N, _) => Runs::Ignored(CK_DEFAULT),
    }
}
