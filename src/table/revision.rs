//! What differs between aiter revisions: columns, keys, and how a file identifies its operation.
//!
//! Source of every list: aiter, the tuner scripts under `csrc/` and `aiter/ops/gemm_op_a8w8.py`, `gemm_op_a4w4.py`,
//! read at the four commits below and at main of late September 2026.

use crate::problem::Op;
pub use crate::problem::revision::{Revision, UnknownRevision};

/// The last columns of every tuned table: the kernel, and what was measured.
pub const RESULT_COLUMNS: [&str; 7] = [
    "kernelId",
    "splitK",
    "us",
    "kernelName",
    "tflops",
    "bw",
    "errRatio",
];

/// Further columns that a tuner of some revision may write; no look-up compares them.
pub const NOTE_COLUMNS: [&str; 1] = ["_tag"];

/// The columns of a tuned table, in the order that revision's tuner writes them.
pub fn tuned_columns(op: Op, revision: Revision) -> Vec<&'static str> {
    let mut columns = Vec::with_capacity(14);
    if revision >= Revision::H {
        columns.push("gfx");
    }
    columns.extend(["cu_num", "M", "N", "K"]);
    if has_weight_dtype(op, revision) {
        columns.push("q_dtype_w");
    }
    if has_libtype(op, revision) {
        columns.push("libtype");
    }
    columns.extend(RESULT_COLUMNS);
    columns
}

/// The columns of an untuned table: exactly those that the tuner reads, because with a further column it would tune
/// the same shape twice (it drops duplicates before it drops columns).
pub fn untuned_columns(op: Op, revision: Revision) -> &'static [&'static str] {
    if has_weight_dtype(op, revision) {
        &["M", "N", "K", "q_dtype_w"]
    } else {
        &["M", "N", "K"]
    }
}

/// Whether the tables of `op` are also keyed by the weight's dtype.
pub fn has_weight_dtype(op: Op, revision: Revision) -> bool {
    let from = op.facts().weight_dtype_from;
    from.is_some_and(|from| revision >= from)
}

/// Whether the tables of `op` have a column for the kernel's library.
pub fn has_libtype(op: Op, revision: Revision) -> bool {
    let from = op.facts().libtype_from;
    from.is_some_and(|from| revision >= from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_those_of_the_tuners() {
        let joined = |op, revision| tuned_columns(op, revision).join(",");
        assert_eq!(
            joined(Op::Blockscale, Revision::A),
            "cu_num,M,N,K,kernelId,splitK,us,kernelName,tflops,bw,errRatio"
        );
        assert_eq!(
            joined(Op::Blockscale, Revision::H),
            "gfx,cu_num,M,N,K,libtype,kernelId,splitK,us,kernelName,tflops,bw,errRatio"
        );
        assert_eq!(
            joined(Op::Bpreshuffle, Revision::B),
            "cu_num,M,N,K,q_dtype_w,libtype,kernelId,splitK,us,kernelName,tflops,bw,errRatio"
        );
        assert_eq!(
            joined(Op::A8w8, Revision::P),
            "cu_num,M,N,K,q_dtype_w,kernelId,splitK,us,kernelName,tflops,bw,errRatio"
        );
        assert_eq!(
            joined(Op::A4w4, Revision::H),
            "gfx,cu_num,M,N,K,kernelId,splitK,us,kernelName,tflops,bw,errRatio"
        );
    }
}
