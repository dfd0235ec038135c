//! aiter's `gemm_a8w8_blockscale`.

use super::runs::{BY_NAME, COMPILED, Call, FoundRow, NO_NAME, NO_NUMBER, Runs, TRITON};
use super::{AiterFacts, Candidates, Facts, LookupLine, SplitK, TunerScript};
use crate::problem::dtype::FLOAT8;
use crate::problem::library::Library;
use crate::problem::revision::Revision;

pub(super) const FACTS: Facts = Facts {
    name: "gemm_a8w8_blockscale",
    dtypes: &FLOAT8,
    element_bytes: 1.0,
    scale_block: Some(128),
    linears: &["aiter_w8a8_block_fp8_linear"],
    // Triton from aiter#5586 on.
    libraries: &[Library::Ck, Library::CkTile, Library::Triton],
    libtype_from: Some(Revision::P),
    weight_dtype_from: None,
    can_be_probed: true,
    without_table: |call| call.triton_unless_prebuilt(),
    hit,
    miss,
    aiter: Some(AiterFacts {
        variable: "AITER_CONFIG_GEMM_A8W8_BLOCKSCALE",
        stem: "a8w8_blockscale_tuned_gemm",
        short_stems: &[],
        source: "aiter/ops/gemm_op_a8w8.py",
        lines: &[LookupLine::Plain],
        compiled_names: "a8w8_blockscale_",
        // CK Tile's names are shared with the pre-shuffled operation, so they identify neither.
        own_names: "a8w8_blockscale_1x128x128_",
        ck_names: include_str!("ck/gemm_a8w8_blockscale.txt"),
        older_spelling: Some(before_wave_map),
        functions: &[
            (Library::Ck, "gemm_a8w8_blockscale_ck"),
            (Library::CkTile, "gemm_a8w8_blockscale_cktile"),
        ],
        pads_m_from: Revision::A,
        reuses_largest_from: None,
        module_looks_up: false,
        row_first_from: Some(Revision::N),
        // Until v0.1.13 the split was ignored, so that every candidate was timed up to five times under names that
        // mean nothing.
        split_k: SplitK::AsTheTreeSays,
        // CK and CK Tile add partial sums into bf16 with atomics, in no fixed order (ROCm/aiter#4581).
        unordered_split: Some(2),
        candidates: Candidates {
            gfx950: 52,
            older: 27,
        },
        scripts: &[TunerScript {
            path: "csrc/ck_gemm_a8w8_blockscale/gemm_a8w8_blockscale_tune.py",
            mode: None,
            modules: &[
                "module_gemm_a8w8_blockscale_tune",
                "module_gemm_a8w8_blockscale_cktile_tune",
            ],
        }],
        // The dispatcher ends in an assertion for every libtype except CK and CKTile.
        libtypes: &["both", "all", "ck"],
        assembly_dtype: None,
    }),
};

fn hit(call: Call<'_>, row: FoundRow<'_>) -> Runs {
    use Revision::{A, B, H, N, P};
    if call.revision >= N && row.libtype == "triton" {
        return Runs::RowKernel(TRITON);
    }
    if call.revision >= H && row.splits_by_nan() {
        return Runs::Raises(NO_NUMBER);
    }
    match (call.revision, row.libtype) {
        // The Python result is only logged; the module probes its own copy in the same order.
        (A | B, _) | (P, "ck" | "cktile") => Runs::RowKernel(COMPILED),
        (N, "ck" | "cktile") if !call.is_prebuilt() => Runs::Raises(
            "a crash: the row is asked for first, and CK has no code for this architecture",
        ),
        (H | N, "ck" | "cktile") if row.split_k.is_some_and(|split| !(0..=30).contains(&split)) => {
            Runs::Raises("a RuntimeError: splitK is outside 0..30")
        }
        (H | N, "ck" | "cktile") if row.kernel_name.is_none() => Runs::Raises(NO_NAME),
        (H | N, "ck" | "cktile") => Runs::RowKernel(BY_NAME),
        (P | H | N, _) => Runs::Raises("an AssertionError: unsupported libtype"),
    }
}

/// From aiter#5586 on, large calls run Triton (`_BLOCKSCALE_TRITON_FALLBACK_MIN_M`).
fn miss(call: Call<'_>) -> Runs {
    let triton_from = match call.gfx {
        "gfx942" => Some(2048),
        "gfx950" => Some(384),
        _ => None,
    };
    let large = triton_from.is_some_and(|least| call.m >= least);
    Runs::Default(if call.revision >= Revision::N && large {
        "aiter's Triton kernel: without a row it runs from M = 2048 on gfx942 and M = 384 on gfx950"
    } else {
        "the CK default kernel, id 7: one 16x128x256 tile for any M"
    })
}

/// A kernel's name without its wave-map field (`2x2`, the seventh), as it was before that field was added.
fn before_wave_map(name: &str) -> String {
    let fields = name.split('_').enumerate().filter(|(index, _)| *index != 6);
    fields.map(|(_, field)| field).collect::<Vec<_>>().join("_")
}
