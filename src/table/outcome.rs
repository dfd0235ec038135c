//! What runs after a look-up: a hit does not always mean the row's kernel, and a miss has a default.
//!
//! Sources: aiter `aiter/ops/gemm_op_a8w8.py`, `gemm_op_a4w4.py` and the `csrc/ck_gemm_*` modules at v0.1.7, v0.1.9,
//! 303a583c and e4048607. Nothing here is timed or run; texts are for people and `--json`.

use super::aiter::{Row, Table};
use super::lookup::Resolution;
use super::revision::{self, Revision};
use crate::shape::Op;

/// What a runtime does with the result of a look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runs {
    /// The row's kernel, passed by name or looked up again in the compiled module.
    RowKernel(&'static str),
    /// The operation's default.
    Default(&'static str),
    /// An exception at the first such GEMM.
    Raises(&'static str),
}

impl Runs {
    /// The sentence.
    pub fn text(self) -> &'static str {
        match self {
            Self::RowKernel(text) | Self::Default(text) | Self::Raises(text) => text,
        }
    }
}

const COMPILED: &str = "the kernel compiled for this row; a table newer than the module does nothing until it is rebuilt";
const BY_NAME: &str = "the kernel of this name; the module must have been built with it";
const BY_ID: &str = "the kernel of this kernelId";
const FLYDSL: &str = "the FlyDSL kernel of this name, where FlyDSL is installed";
const NO_NAME: &str =
    "a RuntimeError: the row names no kernel, and the module has none called `nan`";

/// What the operation of `table` does at `revision` on `gfx` after `resolution`.
pub fn runs(table: &Table, revision: Revision, gfx: &str, resolution: Resolution<'_>) -> Runs {
    if let Some(before) = without_table(table.op, revision, gfx) {
        return before;
    }
    match resolution.row() {
        Some(row) => hit(table, revision, gfx, row),
        None => miss(table.op),
    }
}

/// What an architecture does whatever the table says.
fn without_table(op: Op, revision: Revision, gfx: &str) -> Option<Runs> {
    let at_h = revision == Revision::H;
    // `_BLOCKSCALE_HIP_PREBUILT_ARCHES` and `_ck_a8w8_supported` of e4048607.
    let prebuilt = matches!(gfx, "gfx940" | "gfx941" | "gfx942" | "gfx950" | "gfx1250");
    match op {
        Op::Blockscale | Op::BlockscaleBpreshuffle if at_h && !prebuilt => Some(Runs::Default(
            "aiter's Triton kernel: this architecture takes no table",
        )),
        Op::BlockscaleBpreshuffle if at_h && gfx == "gfx1250" => Some(Runs::Default(
            "aiter's Triton kernel; with e8m0 scales the FlyDSL kernel of a `flydsl` row, or one by FlyDSL's heuristic",
        )),
        Op::A8w8 if at_h && !gfx.starts_with("gfx9") => Some(Runs::Default(
            "aiter's Triton kernel: this architecture takes no table",
        )),
        Op::A4w4 if gfx == "gfx942" => Some(Runs::Raises(
            "a RuntimeError: A4W4 GEMM kernel is not supported on gfx942",
        )),
        Op::A4w4 if at_h && gfx == "gfx1250" => Some(Runs::Default(
            "the F4GEMM assembly kernel: this architecture takes no table",
        )),
        _ => None,
    }
}

fn hit(table: &Table, revision: Revision, gfx: &str, row: &Row) -> Runs {
    use Revision::{A, B, H, P};
    let op = table.op;
    let libtype = row.libtype.as_deref().unwrap_or("");
    if revision::has_libtype(op, revision) && !table.has_column("libtype") {
        return Runs::Raises("a KeyError: the table has no column `libtype`");
    }
    // `int(config["splitK"])`; an empty cell is NaN.
    let splits_by_number = matches!(
        (op, revision),
        (Op::Bpreshuffle, P | H) | (Op::Blockscale, H)
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
        (Op::Blockscale, P | H) => match libtype {
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
            _ => Runs::Default("the CK default kernel: this libtype is not known here"),
        },
        (Op::BlockscaleBpreshuffle, H) => match libtype {
            "opus" => Runs::RowKernel(BY_ID),
            "ck" | "cktile" if !named => Runs::Raises(NO_NAME),
            "ck" | "cktile" | "asm" => Runs::RowKernel(BY_NAME),
            "triton" => {
                Runs::RowKernel("aiter's Triton kernel; the name may say `triton` or `gluon`")
            }
            "flydsl" => Runs::RowKernel(FLYDSL),
            _ => Runs::Default("the CK default kernel: this libtype is not known here"),
        },
        (Op::Bpreshuffle, _) => match libtype {
            "ck" | "cktile" => Runs::RowKernel(COMPILED),
            "flydsl" if matches!(revision, P | H) => Runs::RowKernel(FLYDSL),
            _ if revision == H && gfx == "gfx1250" => Runs::Default(
                "a FlyDSL kernel by aiter's heuristic, where FlyDSL is installed, else the CK heuristic kernel",
            ),
            _ if revision == H => {
                Runs::Default("the CK heuristic kernel: this libtype is not known here")
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
        (Op::A4w4, H) => Runs::RowKernel(BY_NAME),
        (Op::A4w4, _) => Runs::RowKernel(COMPILED),
        (Op::TritonBlockFp8, _) => Runs::RowKernel("the Triton kernel with this configuration"),
    }
}

fn miss(op: Op) -> Runs {
    Runs::Default(match op {
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
        runs(&Table::new("t.csv", op, revision), revision, gfx, hit)
    }

    fn after(op: Op, revision: Revision, row: &Row) -> Runs {
        on("gfx942", op, revision, row)
    }

    #[test]
    fn a_hit_is_not_always_the_rows_kernel() {
        use Op::{Blockscale, BlockscaleBpreshuffle, Bpreshuffle};
        use Revision::{A, B, H, P};
        let asm = with_libtype("asm");
        assert!(matches!(after(Blockscale, P, &asm), Runs::Raises(_)));
        assert_eq!(after(Blockscale, A, &asm), Runs::RowKernel(COMPILED));
        assert!(matches!(after(Bpreshuffle, B, &asm), Runs::Raises(_)));
        assert!(matches!(after(Bpreshuffle, H, &asm), Runs::Default(_)));
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
            assert!(matches!(then, Runs::Default(_)), "{then:?}");
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
        assert!(raises(runs(&older, Revision::P, "gfx942", hit)));
        assert!(!raises(runs(&older, Revision::A, "gfx942", hit)));
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
        let miss = runs(&table, Revision::H, "gfx942", Resolution::Miss);
        assert!(matches!(miss, Runs::Raises(_)));
    }

    #[test]
    fn every_operation_has_a_default_at_every_revision() {
        for op in Op::ALL {
            for revision in Revision::ALL {
                let table = Table::new("t.csv", op, revision);
                let then = runs(&table, revision, "gfx950", Resolution::Miss);
                assert!(matches!(then, Runs::Default(_)));
            }
        }
        let table = Table::new("t.csv", Op::Blockscale, Revision::H);
        let radeon = runs(&table, Revision::H, "gfx1201", Resolution::Miss);
        assert!(radeon.text().contains("Triton"));
    }
}
