//! What runs after a look-up: a hit does not always mean the row's kernel, and a miss has a default.
//!
//! Sources: aiter `aiter/ops/gemm_op_a8w8.py`, `gemm_op_a4w4.py` and the `csrc/ck_gemm_*` modules at v0.1.7, v0.1.9,
//! 303a583c and e4048607. Nothing here is timed or run; texts are for people and `--json`.

use super::aiter::Row;
use super::lookup::Resolution;
use super::revision::Revision;
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

/// What `op` does at `revision` on `gfx` after `resolution`.
pub fn runs(op: Op, revision: Revision, gfx: &str, resolution: Resolution<'_>) -> Runs {
    match resolution.row() {
        Some(row) => hit(op, revision, gfx, row),
        None => miss(op, revision, gfx),
    }
}

fn hit(op: Op, revision: Revision, gfx: &str, row: &Row) -> Runs {
    use Revision::{A, B, H, P};
    let libtype = row.libtype.as_deref().unwrap_or("");
    match (op, revision) {
        // At A and B the Python result is only logged; the module probes its own copy in the same order.
        (Op::Blockscale | Op::BlockscaleBpreshuffle, A | B) | (Op::Bpreshuffle, A) => {
            Runs::RowKernel(COMPILED)
        }
        (Op::Blockscale, H) if !gfx.starts_with("gfx94") && gfx != "gfx950" && gfx != "gfx1250" => {
            Runs::Default("aiter's Triton kernel: this architecture takes no table")
        }
        (Op::Blockscale, P | H) => match libtype {
            "ck" | "cktile" if revision == P => Runs::RowKernel(COMPILED),
            "ck" | "cktile" if row.split_k.is_some_and(|split| !(0..=30).contains(&split)) => {
                Runs::Raises("a RuntimeError: splitK is outside 0..30")
            }
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
            "ck" | "cktile" | "asm" | "triton" | "flydsl" => Runs::RowKernel(BY_NAME),
            _ => Runs::Raises("an error: unsupported libtype"),
        },
        (Op::Bpreshuffle, _) => match libtype {
            "ck" | "cktile" => Runs::RowKernel(COMPILED),
            "flydsl" if revision == H || revision == P => {
                Runs::RowKernel("the FlyDSL kernel of this name, where FlyDSL is installed")
            }
            _ if revision == H => {
                Runs::Default("the CK heuristic kernel: this libtype is not known here")
            }
            _ => Runs::Raises("nothing: the function returns None for this libtype"),
        },
        (Op::A8w8, _) => Runs::RowKernel(
            "the kernel that gemm_a8w8's own module finds by its own rounding of M; the row gives splitK only",
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

fn miss(op: Op, revision: Revision, gfx: &str) -> Runs {
    Runs::Default(match op {
        Op::Blockscale
            if revision == Revision::H
                && !gfx.starts_with("gfx94")
                && gfx != "gfx950"
                && gfx != "gfx1250" =>
        {
            "aiter's Triton kernel: this architecture takes no table"
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
            ..Row::default()
        }
    }

    fn after(op: Op, revision: Revision, row: &Row) -> Runs {
        let hit = Resolution::Hit {
            row,
            padded_m: 16,
            probe: Probe::Fine,
        };
        runs(op, revision, "gfx942", hit)
    }

    #[test]
    fn a_hit_is_not_always_the_rows_kernel() {
        let asm = with_libtype("asm");
        assert!(matches!(
            after(Op::Blockscale, Revision::P, &asm),
            Runs::Raises(_)
        ));
        assert!(matches!(
            after(Op::Blockscale, Revision::A, &asm),
            Runs::RowKernel(COMPILED)
        ));
        assert!(matches!(
            after(Op::Bpreshuffle, Revision::B, &asm),
            Runs::Raises(_)
        ));
        assert!(matches!(
            after(Op::Bpreshuffle, Revision::H, &asm),
            Runs::Default(_)
        ));
        assert!(matches!(
            after(Op::BlockscaleBpreshuffle, Revision::P, &asm),
            Runs::RowKernel(BY_NAME)
        ));
        let ck = with_libtype("ck");
        assert!(matches!(
            after(Op::Blockscale, Revision::P, &ck),
            Runs::RowKernel(COMPILED)
        ));
        assert!(matches!(
            after(Op::Blockscale, Revision::H, &ck),
            Runs::RowKernel(BY_NAME)
        ));
        let split = Row {
            split_k: Some(31),
            ..ck
        };
        assert!(matches!(
            after(Op::Blockscale, Revision::H, &split),
            Runs::Raises(_)
        ));
    }

    #[test]
    fn every_operation_has_a_default_at_every_revision() {
        for op in Op::ALL {
            for revision in Revision::ALL {
                assert!(matches!(
                    runs(op, revision, "gfx942", Resolution::Miss),
                    Runs::Default(_)
                ));
            }
        }
        let radeon = runs(Op::Blockscale, Revision::H, "gfx1201", Resolution::Miss);
        assert!(radeon.text().contains("Triton"));
    }
}
