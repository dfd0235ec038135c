//! What runs after a look-up: a hit does not always mean the row's kernel, and a miss has a default.
//!
//! Sources: aiter `aiter/ops/gemm_op_a8w8.py`, `gemm_op_a4w4.py` and the `csrc/ck_gemm_*` modules at v0.1.7, v0.1.9,
//! 303a583c, e4048607 and main after ROCm/aiter#5586. Nothing here is timed or run; texts are for people and `--json`.

use super::aiter::{Row, Table};
use super::lookup::Resolution;
use super::revision::{self, Revision};
use crate::shape::Op;

/// What a runtime does with the result of a look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runs {
    /// The row's kernel, passed by name or looked up again in the compiled module.
    RowKernel(&'static str),
    /// The operation's default, for want of a row or whatever the row.
    Default(&'static str),
    /// The operation's default although there is a row: its library is not called.
    Ignored(&'static str),
    /// An exception at the first such GEMM.
    Raises(&'static str),
}

impl Runs {
    /// The sentence.
    pub fn text(self) -> &'static str {
        match self {
            Self::RowKernel(text)
            | Self::Default(text)
            | Self::Ignored(text)
            | Self::Raises(text) => text,
        }
    }
}

const COMPILED: &str = "the kernel compiled for this row; a table newer than the module does nothing until it is rebuilt";
const BY_NAME: &str = "the kernel of this name; the module must have been built with it";
const BY_ID: &str = "the kernel of this kernelId";
const TRITON: &str = "aiter's Triton kernel, configured by its own tables";
const FLYDSL: &str = "the FlyDSL kernel of this name, where FlyDSL is installed";
const NO_NAME: &str =
    "a RuntimeError: the row names no kernel, and the module has none called `nan`";

/// What the operation of `table` does at `revision` on `gfx` with M rows of activation after `resolution`.
pub fn runs(
    table: &Table,
    revision: Revision,
    gfx: &str,
    m: u32,
    resolution: Resolution<'_>,
) -> Runs {
    match resolution.row() {
        Some(row) => of_row(table, revision, gfx, row),
        None => without_table(table.op, revision, gfx)
            .unwrap_or_else(|| miss(table.op, revision, gfx, m)),
    }
}

/// What the operation of `table` does at `revision` on `gfx` with a call that `row` was found for.
pub fn of_row(table: &Table, revision: Revision, gfx: &str, row: &Row) -> Runs {
    // From aiter#5586 on this operation asks its table first.
    let asked = table.op == Op::Blockscale && revision >= Revision::N;
    match without_table(table.op, revision, gfx) {
        Some(before) if !asked => before,
        _ => hit(table, revision, gfx, row),
    }
}

/// `_BLOCKSCALE_HIP_PREBUILT_ARCHES` of e4048607 and later.
fn is_prebuilt(gfx: &str) -> bool {
    matches!(gfx, "gfx940" | "gfx941" | "gfx942" | "gfx950" | "gfx1250")
}

/// What an architecture does whatever the table says.
fn without_table(op: Op, revision: Revision, gfx: &str) -> Option<Runs> {
    let from_h = revision >= Revision::H;
    match op {
        Op::Blockscale | Op::BlockscaleBpreshuffle if from_h && !is_prebuilt(gfx) => Some(
            Runs::Default("aiter's Triton kernel: this architecture takes no table"),
        ),
        Op::BlockscaleBpreshuffle if from_h && gfx == "gfx1250" => Some(Runs::Default(
            "aiter's Triton kernel; with e8m0 scales the FlyDSL kernel of a `flydsl` row, or one by FlyDSL's heuristic",
        )),
        // `_ck_a8w8_supported`.
        Op::A8w8 if from_h && !gfx.starts_with("gfx9") => Some(Runs::Default(
            "aiter's Triton kernel: this architecture takes no table",
        )),
        Op::A4w4 if gfx == "gfx942" => Some(Runs::Raises(
            "a RuntimeError: A4W4 GEMM kernel is not supported on gfx942",
        )),
        Op::A4w4 if from_h && gfx == "gfx1250" => Some(Runs::Default(
            "the F4GEMM assembly kernel: this architecture takes no table",
        )),
        _ => None,
    }
}

fn hit(table: &Table, revision: Revision, gfx: &str, row: &Row) -> Runs {
    use Revision::{A, B, H, N, P};
    let op = table.op;
    let libtype = row.libtype.as_deref().unwrap_or("");
    if revision::has_libtype(op, revision) && !table.has_column("libtype") {
        return Runs::Raises("a KeyError: the table has no column `libtype`");
    }
    let triton_of_plain = op == Op::Blockscale && revision >= N && libtype == "triton";
    if triton_of_plain {
        return Runs::RowKernel(TRITON);
    }
    // `int(config["splitK"])`; an empty cell is NaN.
    let splits_by_number = matches!(
        (op, revision),
        (Op::Bpreshuffle, P | H | N) | (Op::Blockscale, H | N)
    );
    if splits_by_number && table.has_column("splitK") && row.split_k.is_none() {
        return Runs::Raises("a ValueError: splitK is no number");
    }
    let named = row.kernel_name.is_some();
    match (op, revision) {
        // At A and B the Python result is only logged; the module probes its own copy in the same order.
        (Op::Blockscale | Op::BlockscaleBpreshuffle, A | B) | (Op::Bpreshuffle, A) => {
            Runs::RowKernel(COMPILED)
        }
        (Op::Blockscale, P | H | N) => match libtype {
            "ck" | "cktile" if revision >= N && !is_prebuilt(gfx) => Runs::Raises(
                "a crash: the row is asked for first, and CK has no code for this architecture",
            ),
            "ck" | "cktile" if revision == P => Runs::RowKernel(COMPILED),
            "ck" | "cktile" if row.split_k.is_some_and(|split| !(0..=30).contains(&split)) => {
                Runs::Raises("a RuntimeError: splitK is outside 0..30")
            }
            "ck" | "cktile" if !named => Runs::Raises(NO_NAME),
            "ck" | "cktile" => Runs::RowKernel(BY_NAME),
            _ => Runs::Raises("an AssertionError: unsupported libtype"),
        },
        (Op::BlockscaleBpreshuffle, P) => match libtype {
            "ck" | "cktile" => Runs::RowKernel(COMPILED),
            "asm" => Runs::RowKernel(BY_NAME),
            _ => Runs::Ignored("the CK default kernel: this libtype is not known here"),
        },
        (Op::BlockscaleBpreshuffle, H | N) => match libtype {
            "opus" => Runs::RowKernel(BY_ID),
            "ck" | "cktile" if !named => Runs::Raises(NO_NAME),
            "ck" | "cktile" | "asm" => Runs::RowKernel(BY_NAME),
            "triton" => {
                Runs::RowKernel("aiter's Triton kernel; the name may say `triton` or `gluon`")
            }
            "flydsl" => Runs::Raises(
                "a RuntimeError: this FlyDSL kernel is for gfx1250 (without FlyDSL, the CK default kernel)",
            ),
            _ => Runs::Ignored("the CK default kernel: this libtype is not known here"),
        },
        (Op::Bpreshuffle, _) => match libtype {
            "ck" | "cktile" => Runs::RowKernel(COMPILED),
            "flydsl" if revision >= P => Runs::RowKernel(FLYDSL),
            _ if revision >= N => {
                Runs::Raises("a RuntimeError: gemm_a8w8_bpreshuffle has no such libtype")
            }
            _ if revision == H && gfx == "gfx1250" => Runs::Ignored(
                "a FlyDSL kernel by aiter's heuristic, where FlyDSL is installed, else the CK heuristic kernel",
            ),
            _ if revision == H => {
                Runs::Ignored("the CK heuristic kernel: this libtype is not known here")
            }
            _ => Runs::Raises("nothing: the function returns None for this libtype"),
        },
        (Op::A8w8, _) => Runs::RowKernel(
            "the kernel that gemm_a8w8's own module finds by its own rounding of M; the row gives splitK only",
        ),
        (Op::A4w4, _) if !named => Runs::Raises(
            "an AttributeError: the row names no kernel, and pandas makes that a number",
        ),
        (Op::A4w4, _)
            if row
                .kernel_name
                .as_deref()
                .is_some_and(|name| name.contains("_ZN")) =>
        {
            Runs::RowKernel("the assembly kernel of this name, splitK as its logarithm")
        }
        (Op::A4w4, H | N) => Runs::RowKernel(BY_NAME),
        (Op::A4w4, _) => Runs::RowKernel(COMPILED),
        (Op::TritonBlockFp8, _) => Runs::RowKernel("the Triton kernel with this configuration"),
    }
}

/// The M from which a GEMM without a row runs Triton (`_BLOCKSCALE_TRITON_FALLBACK_MIN_M` of aiter#5586).
fn triton_from(gfx: &str) -> Option<u32> {
    match gfx {
        "gfx942" => Some(2048),
        "gfx950" => Some(384),
        _ => None,
    }
}

fn miss(op: Op, revision: Revision, gfx: &str, m: u32) -> Runs {
    let large = triton_from(gfx).is_some_and(|least| m >= least);
    Runs::Default(match op {
        Op::Blockscale if revision >= Revision::N && large => {
            "aiter's Triton kernel: without a row it runs from M = 2048 on gfx942 and M = 384 on gfx950"
        }
        Op::Blockscale => "the CK default kernel, id 7: one 16x128x256 tile for any M",
        Op::BlockscaleBpreshuffle => {
            "the CK default kernel: a 64x64x128 tile with 256 threads for any M"
        }
        Op::Bpreshuffle => {
            "a CK kernel by a heuristic of M, N and K; K below 192, or below 512 and no multiple of 64, is an error"
        }
        Op::A8w8 => {
            "splitK 0, and the kernel that gemm_a8w8's own module finds or picks by a heuristic of M, N and K"
        }
        Op::A4w4 => "an assembly kernel by aiter's heuristic",
        Op::TritonBlockFp8 => "the Triton kernel with its default configuration",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::aiter::Text;
    use crate::table::lookup::Probe;

    fn with_libtype(libtype: &str) -> Row {
        Row {
            libtype: Some(Text::from(libtype)),
            split_k: Some(0),
            kernel_name: Some(Text::from("k")),
            ..Row::default()
        }
    }

    fn on(gfx: &str, op: Op, revision: Revision, row: &Row) -> Runs {
        let hit = Resolution::Hit {
            row,
            padded_m: 16,
            probe: Probe::Fine,
        };
        runs(&Table::new("t.csv", op, revision), revision, gfx, 16, hit)
    }

    fn after(op: Op, revision: Revision, row: &Row) -> Runs {
        on("gfx942", op, revision, row)
    }

    #[test]
    fn a_hit_is_not_always_the_rows_kernel() {
        use Op::{Blockscale, BlockscaleBpreshuffle, Bpreshuffle};
        use Revision::{A, B, H, N, P};
        let asm = with_libtype("asm");
        assert!(matches!(after(Blockscale, P, &asm), Runs::Raises(_)));
        assert_eq!(after(Blockscale, A, &asm), Runs::RowKernel(COMPILED));
        assert!(matches!(after(Bpreshuffle, B, &asm), Runs::Raises(_)));
        assert!(matches!(after(Bpreshuffle, H, &asm), Runs::Ignored(_)));
        assert!(matches!(after(Bpreshuffle, N, &asm), Runs::Raises(_)));
        assert_eq!(
            after(BlockscaleBpreshuffle, P, &asm),
            Runs::RowKernel(BY_NAME)
        );
        let ck = with_libtype("ck");
        assert_eq!(after(Blockscale, P, &ck), Runs::RowKernel(COMPILED));
        assert_eq!(after(Blockscale, H, &ck), Runs::RowKernel(BY_NAME));
        let split = Row {
            split_k: Some(31),
            ..ck
        };
        assert!(matches!(after(Blockscale, H, &split), Runs::Raises(_)));
    }

    // What these tests say was seen by running the functions of the four commits with stand-ins for the kernels.
    #[test]
    fn a_library_the_shuffled_operation_does_not_know_runs_its_default() {
        let other = with_libtype("hipblaslt");
        for revision in [Revision::P, Revision::H] {
            let then = after(Op::BlockscaleBpreshuffle, revision, &other);
            assert!(matches!(then, Runs::Ignored(_)), "{then:?}");
        }
    }

    #[test]
    fn a_row_that_lacks_what_the_call_converts_raises() {
        let (ck, raises) = (with_libtype("ck"), |then| matches!(then, Runs::Raises(_)));
        let split = Row {
            split_k: None,
            ..ck.clone()
        };
        assert!(raises(after(Op::Bpreshuffle, Revision::P, &split)));
        assert!(raises(after(Op::Blockscale, Revision::H, &split)));
        assert!(!raises(after(Op::Blockscale, Revision::P, &split)));
        let name = Row {
            kernel_name: None,
            ..ck.clone()
        };
        assert!(raises(after(Op::Blockscale, Revision::H, &name)));
        assert!(!raises(after(Op::Blockscale, Revision::P, &name)));
        assert!(raises(on("gfx950", Op::A4w4, Revision::P, &name)));
        // An older table has no column for the library, and the newer call asks for it.
        let older = Table::new("t.csv", Op::BlockscaleBpreshuffle, Revision::A);
        let hit = Resolution::Hit {
            row: &ck,
            padded_m: 16,
            probe: Probe::Fine,
        };
        assert!(raises(runs(&older, Revision::P, "gfx942", 16, hit)));
        assert!(!raises(runs(&older, Revision::A, "gfx942", 16, hit)));
    }

    #[test]
    fn some_architectures_take_no_table() {
        let ck = with_libtype("ck");
        let then = on("gfx1201", Op::BlockscaleBpreshuffle, Revision::H, &ck);
        assert!(then.text().contains("Triton"));
        let then = on("gfx1250", Op::BlockscaleBpreshuffle, Revision::H, &ck);
        assert!(then.text().contains("Triton"));
        let then = on("gfx1100", Op::A8w8, Revision::H, &ck);
        assert!(then.text().contains("Triton"));
        let table = Table::new("t.csv", Op::A4w4, Revision::H);
        let miss = runs(&table, Revision::H, "gfx942", 16, Resolution::Miss);
        assert!(matches!(miss, Runs::Raises(_)));
    }

    #[test]
    fn after_5586_a_large_block_scaled_gemm_without_a_row_runs_triton_and_a_row_may_name_it() {
        let table = Table::new("t.csv", Op::Blockscale, Revision::N);
        let miss = |revision, gfx: &str, m| {
            let then = runs(&table, revision, gfx, m, Resolution::Miss);
            assert!(matches!(then, Runs::Default(_)));
            then.text().contains("Triton")
        };
        assert!(miss(Revision::N, "gfx950", 384) && !miss(Revision::N, "gfx950", 383));
        assert!(miss(Revision::N, "gfx942", 2048) && !miss(Revision::N, "gfx942", 2047));
        assert!(!miss(Revision::N, "gfx1250", 65536), "not measured there");
        assert!(!miss(Revision::H, "gfx950", 65536));
        let triton = Row {
            split_k: None,
            ..with_libtype("triton")
        };
        assert_eq!(
            on("gfx950", Op::Blockscale, Revision::N, &triton),
            Runs::RowKernel(TRITON)
        );
        let before = on("gfx950", Op::Blockscale, Revision::H, &triton);
        assert!(matches!(before, Runs::Raises(_)));
        // The table is asked before the architecture.
        let ck = with_libtype("ck");
        let crash = on("gfx1201", Op::Blockscale, Revision::N, &ck);
        assert!(matches!(crash, Runs::Raises(_)));
    }

    #[test]
    fn a_flydsl_row_of_the_shuffled_operation_is_for_one_architecture() {
        let flydsl = with_libtype("flydsl");
        for revision in Revision::TODAY {
            let then = on("gfx950", Op::BlockscaleBpreshuffle, revision, &flydsl);
            assert!(matches!(then, Runs::Raises(_)));
            let then = on("gfx1250", Op::BlockscaleBpreshuffle, revision, &flydsl);
            assert!(matches!(then, Runs::Default(_)));
        }
    }

    #[test]
    fn every_operation_has_a_default_at_every_revision() {
        for op in Op::ALL {
            for revision in Revision::ALL {
                let table = Table::new("t.csv", op, revision);
                let then = runs(&table, revision, "gfx950", 16, Resolution::Miss);
                assert!(matches!(then, Runs::Default(_)));
            }
        }
        let table = Table::new("t.csv", Op::Blockscale, Revision::H);
        let radeon = runs(&table, Revision::H, "gfx1201", 16, Resolution::Miss);
        assert!(radeon.text().contains("Triton"));
    }
}
