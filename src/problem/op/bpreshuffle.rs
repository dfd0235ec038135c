//! aiter's `gemm_a8w8_bpreshuffle`.

use super::runs::{COMPILED, Call, FoundRow, NO_NUMBER, Runs, by_table};
use super::{AiterFacts, Candidates, Facts, LookupLine, SplitK, TunerScript};
use crate::problem::dtype::{EIGHT_BITS, INT8};
use crate::problem::library::Library;
use crate::problem::revision::Revision;

pub(super) const FACTS: Facts = Facts {
    name: "gemm_a8w8_bpreshuffle",
    dtypes: &EIGHT_BITS,
    element_bytes: 1.0,
    scale_block: None,
    linears: &["apply_fp8_linear", "apply_fp8_ptpc_linear"],
    libraries: &[Library::Ck, Library::CkTile, Library::Asm, Library::FlyDsl],
    libtype_from: Some(Revision::B),
    weight_dtype_from: Some(Revision::A),
    can_be_probed: true,
    without_table: by_table,
    hit,
    miss: |_| {
        Runs::Default(
            "a CK kernel by a heuristic of M, N and K; K below 192, or below 512 and no multiple of 64, is an error",
        )
    },
    aiter: Some(AiterFacts {
        variable: "AITER_CONFIG_GEMM_A8W8_BPRESHUFFLE",
        stem: "a8w8_bpreshuffle_tuned_gemm",
        short_stems: &[],
        source: "aiter/ops/gemm_op_a8w8.py",
        lines: &[LookupLine::Quantised],
        compiled_names: "a8w8_bpreshuffle_",
        own_names: "a8w8_bpreshuffle_",
        ck_names: include_str!("ck/gemm_a8w8_bpreshuffle.txt"),
        older_spelling: None,
        functions: &[
            (Library::Ck, "gemm_a8w8_bpreshuffle_ck"),
            (Library::CkTile, "gemm_a8w8_bpreshuffle_cktile"),
        ],
        pads_m_from: Revision::B,
        reuses_largest_from: Some(Revision::N),
        module_looks_up: false,
        row_first_from: None,
        split_k: SplitK::Obeyed,
        unordered_split: None,
        // The script prunes FlyDSL's candidates before it times them.
        candidates: Candidates {
            gfx950: 2730,
            older: 2800,
        },
        scripts: &[TunerScript {
            path: "csrc/ck_gemm_a8w8_bpreshuffle/gemm_a8w8_bpreshuffle_tune.py",
            mode: None,
            modules: &[
                "module_gemm_a8w8_bpreshuffle_tune",
                "module_gemm_a8w8_bpreshuffle_cktile_tune",
                "module_gemm_a8w8_asm",
            ],
        }],
        libtypes: &["all", "both", "ck"],
        // `gemm_a8w8_bpreshuffle_tune.py`, `get_asm_gemm_i8_tasks`.
        assembly_dtype: Some(INT8),
    }),
};

fn hit(call: Call<'_>, row: FoundRow<'_>) -> Runs {
    use Revision::{A, B, H, N, P};
    if call.revision == A {
        // The Python result is only logged; the module probes its own copy in the same order.
        return Runs::RowKernel(COMPILED);
    }
    if call.revision >= P && row.splits_by_nan() {
        return Runs::Raises(NO_NUMBER);
    }
    match (call.revision, row.libtype) {
        (_, "ck" | "cktile") => Runs::RowKernel(COMPILED),
        (P | H | N, "flydsl") => {
            Runs::RowKernel("the FlyDSL kernel of this name, where FlyDSL is installed")
        }
        (N, _) => Runs::Raises("a RuntimeError: gemm_a8w8_bpreshuffle has no such libtype"),
        (H, _) if call.gfx == "gfx1250" => Runs::Ignored(
            "a FlyDSL kernel by aiter's heuristic, where FlyDSL is installed, else the CK heuristic kernel",
        ),
        (H, _) => Runs::Ignored("the CK heuristic kernel: this libtype is not known here"),
        (A | B | P, _) => Runs::Raises("nothing: the function returns None for this libtype"),
    }
}
