use super::*;

const CK8: &str = "a8w8_blockscale_1x128x128_256x16x64x256_16x16_16x16_1x1_16x16x1_16x16x1_1x16x1x16_4_1x1_intrawave_v1";
const H: &str = "gfx,cu_num,M,N,K,libtype,kernelId,splitK,us,kernelName,tflops,bw,errRatio\n";

fn table(name: &str, text: &str) -> Table {
    Table::read(name, text.as_bytes(), None).unwrap()
}

fn row(m: u32, us: &str, ratio: &str) -> String {
    format!("gfx942,304,{m},3072,1536,ck,8,0,{us},{CK8},,,{ratio}\n")
}

fn merged(texts: &[String]) -> Merged {
    let tables: Vec<Table> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| table(&format!("t{index}.csv"), text))
        .collect();
    merge(&tables, &Policy::default()).unwrap()
}

#[test]
fn the_fastest_valid_row_wins_and_the_first_of_equals() {
    let a = format!("{H}{}{}", row(1, "6.5", "0.0"), row(16, "7.0", "0.0"));
    let b = format!("{H}{}{}", row(1, "6.0", "0.0"), row(16, "7.0", "0.001"));
    let merged = merged(&[a, b]);
    let us: Vec<_> = merged
        .table
        .rows
        .iter()
        .map(|row| (row.m, row.us))
        .collect();
    assert_eq!(us, [(1, Some(6.0)), (16, Some(7.0))]);
    assert_eq!(
        merged.table.rows[1].err_ratio,
        Some(0.0),
        "the first of equally fast rows"
    );
    let shown: Vec<_> = merged
        .provenance
        .iter()
        .map(|entry| (entry.table.as_str(), entry.outcome, entry.reason.as_str()))
        .collect();
    assert_eq!(
        shown,
        [
            ("t0.csv", Outcome::Slower, "6.5 us against 6 of t1.csv:2"),
            ("t1.csv", Outcome::Kept, "the fastest of 2 valid rows"),
            ("t0.csv", Outcome::Kept, "the fastest of 2 valid rows"),
            ("t1.csv", Outcome::Slower, "7 us against 7 of t0.csv:3"),
        ]
    );
}

#[test]
fn no_failed_wrong_or_impossible_measurement_wins_though_it_is_lowest() {
    for (us, ratio) in [
        ("-1", "0.0"),
        ("0.0", "0.0"),
        ("nan", "0.0"),
        ("", "0.0"),
        ("2.0", "0.3"),
        ("2.0", "-1"),
        ("0.001", "0.0"),
        ("inf", "1.0"),
    ] {
        let bad = format!("{H}{}", row(1, us, ratio));
        let good = format!("{H}{}", row(1, "6.5", "0.0"));
        let merged = merged(&[bad.clone(), good]);
        assert_eq!(merged.table.rows.len(), 1);
        assert_eq!(
            merged.table.rows[0].us,
            Some(6.5),
            "us {us}, errRatio {ratio}"
        );
        assert_eq!(merged.count(Outcome::Invalid), 1);
        let alone = super::merge(&[table("bad.csv", &bad)], &Policy::default()).unwrap();
        assert!(alone.table.rows.is_empty());
        assert_eq!(alone.dropped, ["M=1 N=3072 K=1536"]);
    }
}

#[test]
fn an_older_table_joins_a_newer_one_by_evidence_and_never_by_zero() {
    let old_name = "a8w8_blockscale_1x128x128_256x16x128x256_16x16_16x16_16x16x1_16x16x1_1x16x1x16_8_1x2_intrawave_v1";
    let old = format!(
        "cu_num,M,N,K,kernelId,splitK,us,kernelName,tflops,bw,errRatio\n80,2,3072,1536,7,0,9.0,{old_name},2.1,526.7,0.0\n"
    );
    let new = format!("{H}{}", row(1, "6.5", "0.0"));
    let merged = merged(&[new, old]);
    let text = merged.table.to_csv();
    assert_eq!(text.lines().next(), Some(H.trim_end()));
    let added = &merged.table.rows[0];
    assert_eq!(
        (added.gfx.as_deref(), added.libtype.as_deref()),
        (Some("gfx942"), Some("ck"))
    );
    assert_eq!(
        added.kernel_name.as_deref(),
        kernels::ck_name(Op::Blockscale, 7)
    );
    insta::assert_snapshot!(merged.provenance[0].reason, @"the only row; gfx gfx942 from cu_num 80; kernelName in the spelling after v0.1.9; libtype ck from the kernel's name");
}

#[test]
fn what_no_evidence_says_is_refused_with_its_line() {
    let new = table("new.csv", &format!("{H}{}", row(1, "6.5", "0.0")));
    let refused = |text: &str| {
        let other = Table::read("other.csv", text.as_bytes(), Some(Op::Blockscale)).unwrap();
        merge(&[new.clone(), other], &Policy::default()).unwrap_err()
    };
    let unknown_gpu = "cu_num,M,N,K,us,kernelName\n37,2,3072,1536,9.0,x\n";
    assert!(matches!(
        refused(unknown_gpu),
        MergeError::UnknownArch {
            line: 2,
            cu_num: 37,
            ..
        }
    ));
    let unknown_kernel = "cu_num,M,N,K,us,kernelName\n304,2,3072,1536,9.0,mystery\n";
    assert!(matches!(
        refused(unknown_kernel),
        MergeError::UnknownLibrary { line: 2, .. }
    ));
    let glued = "cu_num,M,N,K,us,kernelName\n304,2,3072,1536,9.0,a304,3,3072,1536,9.0,b\n";
    assert!(matches!(refused(glued), MergeError::Unreadable { .. }));
    let keyless = "M,N,K,us,kernelName\n2,3072,1536,9.0,a\n";
    assert!(matches!(
        refused(keyless),
        MergeError::MissingColumn {
            column: "cu_num",
            ..
        }
    ));
    let other_op = table(
        "p.csv",
        "gfx,cu_num,M,N,K,q_dtype_w,libtype,us,kernelName\n",
    );
    assert!(matches!(
        merge(&[new.clone(), other_op], &Policy::default()),
        Err(MergeError::DifferentOps { .. })
    ));
    assert_eq!(merge(&[], &Policy::default()), Err(MergeError::NoTables));
    let given = Policy {
        gfx: Some("gfx942".into()),
        ..Policy::default()
    };
    let named = unknown_gpu.replace(",x\n", &format!(",{CK8}\n"));
    let other = Table::read("other.csv", named.as_bytes(), Some(Op::Blockscale)).unwrap();
    assert_eq!(
        merge(&[new.clone(), other], &given)
            .unwrap()
            .table
            .rows
            .len(),
        2
    );
}

#[test]
fn zero_as_library_is_unset_and_copies_are_told_from_losers() {
    let zero = row(1, "6.5", "0.0").replace(",ck,", ",0,");
    let merged = merged(&[format!("{H}{zero}"), format!("{H}{}", row(1, "6.5", "0.0"))]);
    assert_eq!(merged.table.rows[0].libtype.as_deref(), Some("ck"));
    assert_eq!(merged.count(Outcome::Copy), 1);
}

#[test]
fn columns_of_all_inputs_are_kept() {
    let a = format!(
        "{}{}",
        H.replace("errRatio", "errRatio,_tag"),
        row(1, "6.5", "0.0").replace(",0.0\n", ",0.0,mine\n")
    );
    let b = format!("{H}{}", row(16, "7.0", "0.0"));
    let merged = merged(&[b, a]);
    let text = merged.table.to_csv();
    assert!(
        text.starts_with(&H.replace("errRatio\n", "errRatio,_tag\n")),
        "{text}"
    );
    assert!(
        text.contains(",0.0,mine\n") && text.contains(",0.0,\n"),
        "{text}"
    );
    let provenance = merged.provenance_csv();
    assert_eq!(provenance.lines().count(), 3);
    assert!(
        provenance.contains(",t1.csv,2,6.5,0.0,kept,the only row\n"),
        "{provenance}"
    );
}

#[test]
fn merging_shipped_tables_twice_changes_nothing() {
    let text =
        include_str!("../../testdata/aiter-tables/a8w8_blockscale_tuned_gemm_qwen3_235b.csv");
    let once = merge(&[table("q.csv", text)], &Policy::default()).unwrap();
    assert_eq!((once.table.rows.len(), once.dropped.len()), (128, 0));
    let twice = merge(
        &[once.table.clone(), table("q.csv", text)],
        &Policy::default(),
    )
    .unwrap();
    assert_eq!(twice.table.to_csv(), once.table.to_csv());
    assert_eq!(twice.count(Outcome::Copy), 128);
}

#[test]
fn a_row_whose_dtype_nothing_says_is_not_given_an_empty_one() {
    let older = "cu_num,M,N,K,kernelId,splitK,us,kernelName,errRatio\n80,16,4096,4096,1,0,9.0,a8w8_rowwise_k,0.0\n";
    let newer = "cu_num,M,N,K,q_dtype_w,kernelId,splitK,us,kernelName,errRatio\n\
        80,16,4096,4096,torch.int8,1,0,9.5,a8w8_rowwise_k,0.0\n";
    let read = |name: &str, text: &str| Table::read(name, text.as_bytes(), Some(Op::A8w8)).unwrap();
    let (older, newer) = (read("old.csv", older), read("new.csv", newer));
    assert_eq!(
        merge(&[newer, older.clone()], &Policy::default()).unwrap_err(),
        MergeError::MissingColumn {
            table: "old.csv".to_owned(),
            column: "q_dtype_w"
        }
    );
    assert!(merge(&[older], &Policy::default()).is_ok());
}

fn finding(name: &str) -> Table {
    let path = format!("{}/testdata/findings/{name}", env!("CARGO_MANIFEST_DIR"));
    let bytes = fs_err::read(path).unwrap();
    Table::read(name, &bytes, None).unwrap()
}

#[test]
fn a_row_that_lint_calls_an_error_never_beats_a_good_one() {
    let good = finding("crashing-rows/good_a8w8_blockscale_tuned_gemm.csv");
    let text = good.to_csv();
    let changed = |from: &str, to: &str| {
        let text = text
            .replace("12.6558", "6.3279")
            .replace("23.2,735.97", "46.4,1471.94");
        assert!(text.contains(from), "{from}");
        table(
            "bad_a8w8_blockscale_tuned_gemm.csv",
            &text.replace(from, to),
        )
    };
    let kernel = "a8w8_blockscale_1x128x128_256x16x64x256_16x16_16x16_1x1_16x16x1_16x16x1_1x16x1x16_4_1x1_intrawave_v1";
    let shuffled = "a8w8_blockscale_bpreshuffle_1x128x128_256x16x64x256_16x16_16x16_16x16x1_16x16x1_1x16x1x16_4_1x1_intrawave_v1";
    for bad in [
        finding("crashing-rows/asm_a8w8_blockscale_tuned_gemm.csv"),
        finding("crashing-rows/triton_a8w8_blockscale_tuned_gemm.csv"),
        finding("crashing-rows/nolib_a8w8_blockscale_tuned_gemm.csv"),
        changed(",ck,8", ",hipblaslt,8"),
        changed(",ck,8", ",0,8"),
        changed(",ck,8", ",ck,7"),
        changed(",ck,8", ",cktile,8"),
        changed(",ck,8,0", ",ck,8,31"),
        changed(",ck,8,0", ",ck,8,"),
        changed(",ck,8,0", ",ck,8,none at all"),
        changed("46.4,", "23.2,"),
        changed(",1471.94", ",735.97"),
        changed(kernel, shuffled),
        changed(kernel, ""),
    ] {
        for order in [[&good, &bad], [&bad, &good]] {
            let tables = order.map(Clone::clone);
            let merged = merge(&tables, &Policy::default()).unwrap();
            assert_eq!(merged.table.rows.len(), 1);
            assert_eq!(merged.table.rows[0].us, Some(12.6558), "{}", bad.to_csv());
            assert_eq!(merged.count(Outcome::Invalid), 1);
        }
    }
    // The given aiter calls Triton.
    let triton = finding("crashing-rows/triton_a8w8_blockscale_tuned_gemm.csv");
    let newest = Policy {
        revision: Some(Revision::N),
        ..Policy::default()
    };
    let merged = merge(&[good, triton], &newest).unwrap();
    assert_eq!(merged.table.rows[0].libtype.as_deref(), Some("triton"));
}

#[test]
fn a_row_that_runs_is_kept_where_no_better_one_is_and_one_that_does_not_is_never() {
    let alone = |name: &str| {
        let tables = [finding(name)];
        merge(&tables, &Policy::default()).unwrap()
    };
    let kept = alone("crashing-rows/nolib_a8w8_blockscale_tuned_gemm.csv");
    assert_eq!(kept.table.rows[0].libtype.as_deref(), Some("ck"));
    assert_eq!(kept.doubtful.len(), 1);
    insta::assert_snapshot!(kept.provenance[0].reason, @"the only row, though libtype is ``; libtype ck from the kernel's name");
    for name in ["asm", "triton"] {
        let dropped = alone(&format!(
            "crashing-rows/{name}_a8w8_blockscale_tuned_gemm.csv"
        ));
        assert!(dropped.table.rows.is_empty(), "{name}");
        assert_eq!(dropped.dropped, ["M=16 N=1792 K=5120"]);
    }
}

#[test]
fn rows_that_differ_in_an_unknown_column_are_refused_or_all_kept() {
    let tables = [finding("scaletype/a8w8_blockscale_tuned_gemm.csv")];
    let refused = merge(&tables, &Policy::default()).unwrap_err();
    assert!(
        matches!(&refused, MergeError::UnknownColumn { line: 2, other_line: 3, column, .. } if column == "scaletype"),
        "{refused}"
    );
    let keyed = Policy {
        keys: vec!["scaletype".to_owned()],
        ..Policy::default()
    };
    let both = merge(&tables, &keyed).unwrap();
    assert_eq!(both.table.rows.len(), 2);
    assert!(both.table.to_csv().contains(",fp32\n"));
    // A table without the column may belong to either key.
    let without = table(
        "a8w8_blockscale_tuned_gemm.csv",
        &format!(
            "{H}{}",
            row(16, "8.0", "0.0")
                .replace("gfx942,304", "gfx950,256")
                .replace("3072,1536", "3072,4096")
        ),
    );
    assert!(merge(&[tables[0].clone(), without], &Policy::default()).is_err());
}
