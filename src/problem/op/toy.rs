//! An operation of no runtime, in tests only; everything about it is in this file.
//!
//! As it is a variant of [`Op`], an exhaustive match on operations in another room does not compile under test. The
//! test below follows it through the rooms that must accept an operation they do not know.

use super::runs::{BY_NAME, Runs, by_table};
use super::{AiterFacts, Candidates, Facts, LookupLine, SplitK, TunerScript};
use crate::problem::library::Library;
use crate::problem::revision::Revision;

pub(super) const FACTS: Facts = Facts {
    name: "gemm_a9w9_toy",
    dtypes: &["torch.toy9"],
    element_bytes: 2.0,
    scale_block: None,
    linears: &["toy_linear"],
    libraries: &[Library::Ck],
    libtype_from: Some(Revision::P),
    weight_dtype_from: None,
    can_be_probed: false,
    without_table: by_table,
    hit: |_, _| Runs::RowKernel(BY_NAME),
    miss: |_| Runs::Default("the toy's default"),
    aiter: Some(AiterFacts {
        variable: "AITER_CONFIG_GEMM_A9W9_TOY",
        stem: "a9w9_toy_tuned_gemm",
        short_stems: &[],
        source: "aiter/ops/gemm_op_a9w9.py",
        lines: &[LookupLine::Plain],
        compiled_names: "a9w9_toy_",
        own_names: "a9w9_toy_",
        ck_names: "a9w9_toy_256x128x128",
        older_spelling: None,
        functions: &[(Library::Ck, "gemm_a9w9_toy_ck")],
        pads_m_from: Revision::A,
        reuses_largest_from: None,
        module_looks_up: false,
        row_first_from: None,
        split_k: SplitK::Dropped,
        unordered_split: None,
        candidates: Candidates {
            gfx950: 3,
            older: 2,
        },
        scripts: &[TunerScript {
            path: "csrc/ck_gemm_a9w9_toy/gemm_a9w9_toy_tune.py",
            mode: None,
            modules: &["module_gemm_a9w9_toy_tune"],
        }],
        libtypes: &["ck"],
        assembly_dtype: None,
    }),
};

#[cfg(test)]
mod tests {
    use camino::Utf8Path;

    use super::*;
    use crate::log::engagement;
    use crate::plan::cost::Cost;
    use crate::plan::fold::{Fold, Target, untuned_csv};
    use crate::problem::{Op, Shape};
    use crate::table::aiter::Table;
    use crate::table::family::{self, Family};
    use crate::table::lookup::{Resolver, Rules};
    use crate::table::{kernels, lint, merge, outcome, revision, roofline, shapes};
    use crate::tree::aiter;

    const TABLE: &str = "gfx,cu_num,M,N,K,libtype,kernelId,splitK,us,kernelName,tflops,bw,errRatio\n\
        gfx942,304,16,512,7168,ck,0,0,10.0,a9w9_toy_256x128x128,11.74,758.58,0.0\n";

    fn shape(m: u32) -> Shape {
        Shape {
            op: Op::Toy,
            m,
            n: 512,
            k: 7168,
            dtype: "torch.toy9".to_owned(),
        }
    }

    #[test]
    fn a_new_operation_is_known_to_every_room_that_reads_tables() {
        let file = "model_configs/some_model_a9w9_toy_tuned_gemm.csv";
        assert_eq!(family::of_file_name(file), Some(Family::Op(Op::Toy)));
        for (name, known) in [(file, None), ("t.csv", None), ("t.csv", Some(Op::Toy))] {
            let table = Table::read(name, TABLE.as_bytes(), known).unwrap();
            assert_eq!(table.op, Op::Toy, "{name}");
        }
        let table = Table::read(file, TABLE.as_bytes(), None).unwrap();
        assert_eq!(
            revision::tuned_columns(Op::Toy, Revision::H).join(","),
            TABLE.lines().next().unwrap()
        );
        assert_eq!(kernels::ck_name(Op::Toy, 0), Some("a9w9_toy_256x128x128"));
        let resolver =
            Resolver::new(&table, Rules::new(Op::Toy, Revision::H), "gfx942", 304).unwrap();
        let found = resolver.find(&shape(13));
        assert_eq!(found.row().map(|row| row.m), Some(16));
        let then = outcome::runs(&table, Revision::H, "gfx942", 13, found);
        assert_eq!(then, Runs::RowKernel(BY_NAME));
        let mut report = lint::Report::default();
        report.check_csv(file, TABLE.as_bytes(), Some(Revision::H));
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        let merged = merge::merge(&[table], &merge::Policy::default()).unwrap();
        assert_eq!(merged.table.rows.len(), 1);
    }

    #[test]
    fn a_new_operations_look_ups_are_read_from_a_log() {
        let line =
            b"[aiter] shape is M:13, N:512, K:7168, found padded_M: 16, N:512, K:7168 is tuned on \
            cu_num = 304 in /t/a9w9_toy_tuned_gemm.csv , kernel name is a9w9_toy_256x128x128!";
        assert_eq!(engagement::tests::op_of(line), Some(Op::Toy));
    }

    #[test]
    fn a_new_operations_tables_and_modules_are_found_in_a_tree_and_written_for_its_tuner() {
        let keep = tempfile::tempdir().unwrap();
        let package = Utf8Path::from_path(keep.path()).unwrap();
        let shipped = "configs/a9w9_toy_tuned_gemm.csv";
        for (path, text) in [
            (
                "jit/core.py",
                "os.getenv(\"AITER_CONFIG_GEMM_A9W9_TOY\", x)\n",
            ),
            (
                "jit/optCompilerConfig.json",
                r#"{"module_gemm_a9w9_toy": {"blob_gen_cmd": "f'x --tune_file {AITER_CONFIGS.AITER_CONFIG_GEMM_A9W9_TOY_FILE}'"}}"#,
            ),
            (shipped, TABLE),
        ] {
            let path = package.join(path);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            crate::store::file::write_atomic(&path, text.as_bytes()).unwrap();
        }
        let found = aiter::tables(package, Op::Toy, |_| None).unwrap();
        assert_eq!(found.files, [package.join(shipped)]);
        let modules = aiter::modules(package, Op::Toy).unwrap();
        assert_eq!(modules[0].name, "module_gemm_a9w9_toy");
        let untuned = untuned_csv(Op::Toy, Revision::H, "gfx942", &[shape(16)]);
        assert_eq!(untuned, "M,N,K\n16,512,7168\n");
    }

    #[test]
    fn a_new_operation_is_planned_and_weighed_by_its_own_facts() {
        let target = Target::new(Op::Toy, Revision::H, "gfx942", 304, Fold::Fine);
        assert_eq!(target.row_m(&shape(13)), 16);
        assert!((roofline::bytes(Op::Toy, 1, 8, 8) - (2.0 * (8.0 + 64.0) + 16.0)).abs() < 1e-9);
        assert!((Cost::of(Op::Toy, "gfx950").candidates - 3.0).abs() < 1e-9);
        let untuned = b"M,N,K\n13,512,7168\n";
        let said = shapes::said_op("a9w9_toy_untuned_gemm.csv", untuned).unwrap();
        assert_eq!(said, Some(Op::Toy));
    }
}
