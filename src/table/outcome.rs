//! What runs after a look-up: each operation's own rules ([`crate::problem::op`]), applied to a table's row.

use super::aiter::{Row, Table};
use super::lookup::Resolution;
use super::revision::{self, Revision};
pub use crate::problem::op::runs::Runs;
use crate::problem::op::runs::{Call, FoundRow};

/// What the operation of `table` does at `revision` on `gfx` with M rows of activation after `resolution`.
pub fn runs(
    table: &Table,
    revision: Revision,
    gfx: &str,
    m: u32,
    resolution: Resolution<'_>,
) -> Runs {
    let facts = table.op.facts();
    let call = Call { revision, gfx, m };
    match resolution.row() {
        Some(row) => of_row(table, revision, gfx, row),
        None => (facts.without_table)(call).unwrap_or_else(|| (facts.miss)(call)),
    }
}

/// What the operation of `table` does at `revision` on `gfx` with a call for which `row` was found.
pub fn of_row(table: &Table, revision: Revision, gfx: &str, row: &Row) -> Runs {
    let facts = table.op.facts();
    let call = Call {
        revision,
        gfx,
        m: 0,
    };
    let row_first = facts.aiter.as_ref().and_then(|aiter| aiter.row_first_from);
    let asks_first = row_first.is_some_and(|from| revision >= from);
    if let Some(before) = (facts.without_table)(call).filter(|_| !asks_first) {
        return before;
    }
    if revision::has_libtype(table.op, revision) && !table.has_column("libtype") {
        return Runs::Raises("a KeyError: the table has no column `libtype`");
    }
    let row = FoundRow {
        libtype: row.libtype.as_deref().unwrap_or(""),
        split_k: row.split_k,
        has_split_k: table.has_column("splitK"),
        kernel_name: row.kernel_name.as_deref(),
    };
    (facts.hit)(call, row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Op;
    use crate::problem::op::runs::{BY_NAME, COMPILED, TRITON};
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

    // The expectations were observed by running the functions of the four commits with stubs for the kernels.
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
        // An older table has no column for the library, and the newer call needs it.
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
        let said = [
            ("gfx1201", Op::BlockscaleBpreshuffle),
            ("gfx1250", Op::BlockscaleBpreshuffle),
            ("gfx1100", Op::A8w8),
        ]
        .map(|(gfx, op)| on(gfx, op, Revision::H, &ck).text());
        insta::assert_snapshot!(said.join("\n"), @"
        aiter's Triton kernel: this architecture takes no table
        aiter's Triton kernel; with e8m0 scales the FlyDSL kernel of a `flydsl` row, or one by FlyDSL's heuristic
        aiter's Triton kernel: this architecture takes no table
        ");
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
        // The table is consulted before the architecture.
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
        insta::assert_snapshot!(radeon.text(), @"aiter's Triton kernel: this architecture takes no table");
    }
}
