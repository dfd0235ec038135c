//! aiter's `gemm_a8w8`.

use super::runs::{Call, NO_TABLE, Runs};
use super::{AiterFacts, Candidates, Facts, LookupLine, SplitK, TunerScript};
use crate::problem::dtype::EIGHT_BITS;
use crate::problem::library::Library;
use crate::problem::revision::Revision;

pub(super) const FACTS: Facts = Facts {
    name: "gemm_a8w8",
    dtypes: &EIGHT_BITS,
    element_bytes: 1.0,
    scale_block: None,
    linears: &[],
    libraries: &[Library::Ck, Library::Asm],
    libtype_from: None,
    weight_dtype_from: Some(Revision::P),
    can_be_probed: true,
    without_table,
    hit: |_, _| {
        Runs::RowKernel(
            "the kernel that gemm_a8w8's own module finds by its own rounding of M; the row gives splitK only",
        )
    },
    miss: |_| {
        Runs::Default(
            "splitK 0, and the kernel that gemm_a8w8's own module finds or picks by a heuristic of M, N and K",
        )
    },
    aiter: Some(AiterFacts {
        variable: "AITER_CONFIG_GEMM_A8W8",
        stem: "a8w8_tuned_gemm",
        short_stems: &[],
        source: "aiter/ops/gemm_op_a8w8.py",
        // Plain at v0.1.7 and v0.1.9 only.
        lines: &[LookupLine::Quantised, LookupLine::Plain],
        compiled_names: "a8w8_rowwise_",
        own_names: "a8w8_rowwise_",
        ck_names: include_str!("ck/gemm_a8w8.txt"),
        older_spelling: None,
        functions: &[
            (Library::Ck, "gemm_a8w8_ck"),
            (Library::CkTile, "gemm_a8w8_cktile"),
        ],
        pads_m_from: Revision::A,
        reuses_largest_from: None,
        module_looks_up: true,
        row_first_from: None,
        split_k: SplitK::Obeyed,
        unordered_split: None,
        candidates: Candidates {
            gfx950: 86,
            older: 86,
        },
        scripts: &[TunerScript {
            path: "csrc/ck_gemm_a8w8/gemm_a8w8_tune.py",
            mode: None,
            modules: &["module_gemm_a8w8_tune"],
        }],
        libtypes: &["all", "both", "ck"],
        assembly_dtype: None,
    }),
};

/// Follows `_ck_a8w8_supported` of aiter.
fn without_table(call: Call<'_>) -> Option<Runs> {
    let supported = call.gfx.starts_with("gfx9");
    (call.revision >= Revision::H && !supported).then_some(Runs::Default(NO_TABLE))
}
