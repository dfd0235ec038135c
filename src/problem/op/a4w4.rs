//! aiter's `gemm_a4w4`.

use super::runs::{BY_NAME, COMPILED, Call, FoundRow, Runs};
use super::{AiterFacts, Candidates, Facts, LookupLine, SplitK, TunerScript};
use crate::problem::dtype::FLOAT4;
use crate::problem::library::Library;
use crate::problem::revision::Revision;

pub(super) const FACTS: Facts = Facts {
    name: "gemm_a4w4",
    dtypes: &FLOAT4,
    element_bytes: 0.5,
    scale_block: None,
    linears: &[],
    libraries: &[Library::Ck, Library::Asm],
    libtype_from: None,
    weight_dtype_from: None,
    can_be_probed: false,
    without_table,
    hit,
    miss: |_| Runs::Default("an assembly kernel by aiter's heuristic"),
    aiter: Some(AiterFacts {
        variable: "AITER_CONFIG_GEMM_A4W4",
        stem: "a4w4_blockscale_tuned_gemm",
        short_stems: &["a4w4"],
        source: "aiter/ops/gemm_op_a4w4.py",
        lines: &[LookupLine::CkOrAsm, LookupLine::Plain],
        compiled_names: "a4w4_blockscale_",
        own_names: "a4w4_",
        ck_names: include_str!("ck/gemm_a4w4.txt"),
        older_spelling: None,
        functions: &[(Library::Ck, "gemm_a4w4_blockscale")],
        pads_m_from: Revision::A,
        reuses_largest_from: None,
        module_looks_up: false,
        row_first_from: None,
        split_k: SplitK::Obeyed,
        unordered_split: None,
        candidates: Candidates {
            gfx950: 54,
            older: 54,
        },
        scripts: &[TunerScript {
            path: "csrc/ck_gemm_a4w4_blockscale/gemm_a4w4_blockscale_tune.py",
            mode: None,
            modules: &["module_gemm_a4w4_blockscale_tune"],
        }],
        libtypes: &["all", "both", "ck"],
        assembly_dtype: None,
    }),
};

fn without_table(call: Call<'_>) -> Option<Runs> {
    match call.gfx {
        "gfx942" => Some(Runs::Raises(
            "a RuntimeError: A4W4 GEMM kernel is not supported on gfx942",
        )),
        "gfx1250" if call.revision >= Revision::H => Some(Runs::Default(
            "the F4GEMM assembly kernel: this architecture takes no table",
        )),
        _ => None,
    }
}

fn hit(call: Call<'_>, row: FoundRow<'_>) -> Runs {
    match row.kernel_name {
        None => Runs::Raises(
            "an AttributeError: the row names no kernel, and pandas makes that a number",
        ),
        Some(name) if name.contains("_ZN") => {
            Runs::RowKernel("the assembly kernel of this name, splitK as its logarithm")
        }
        Some(_) if call.revision >= Revision::H => Runs::RowKernel(BY_NAME),
        Some(_) => Runs::RowKernel(COMPILED),
    }
}
