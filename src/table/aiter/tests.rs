use super::*;

const HEAD: &str = "gfx,cu_num,M,N,K,libtype,kernelId,splitK,us,kernelName,tflops,bw,errRatio\n\
    gfx942,304,1,3072,1536,ck,8,0,6.6154,a8w8_blockscale_1x128x128_256x16x64x256,1.43,714.43,0.0\n\
    gfx950,256,64,3072,1536,cktile,7,2,12.5,a8w8_blockscale_cktile_192x256x128,0.5,2.25,0.001\n";

fn read(text: &str) -> Table {
    Table::read("table.csv", text.as_bytes(), None).unwrap()
}

#[test]
fn a_table_of_the_newest_form_reads_and_writes_back_to_the_byte() {
    let table = read(HEAD);
    assert_eq!(table.op, Op::Blockscale);
    assert_eq!(table.to_csv(), HEAD);
    let row = &table.rows[0];
    assert_eq!((row.line, row.m, row.n, row.k), (2, 1, 3072, 1536));
    assert_eq!(
        (row.gfx.as_deref(), row.cu_num),
        (Some("gfx942"), Some(304))
    );
    assert_eq!((row.us, row.err_ratio), (Some(6.6154), Some(0.0)));
    assert_eq!((row.kernel_id, row.split_k), (Some(8), Some(0)));
    assert!(row.is_valid(0.05));
    assert!(table.faults.is_empty());
}

#[test]
fn byte_order_mark_crlf_blank_lines_and_a_missing_end_change_nothing_about_the_rows() {
    let plain = read(HEAD);
    let odd = format!("\u{feff}{}", HEAD.trim_end().replace('\n', "\r\n\r\n"));
    let odd = Table::read("table.csv", odd.as_bytes(), None).unwrap();
    let keys = |table: &Table| {
        table
            .rows
            .iter()
            .map(|row| (row.m, row.us, row.kernel_name.clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(keys(&odd), keys(&plain));
    assert_eq!(odd.to_csv(), HEAD);
    assert!(odd.quirks.byte_order_mark && odd.quirks.crlf && odd.quirks.no_final_newline);
    assert_eq!(odd.rows[1].line, 5, "line numbers are those of the file");
}

#[test]
fn unknown_columns_and_unreadable_cells_survive() {
    let text = "cu_num,M,N,K,us,_tag,libtype,errRatio\n80,1,2,3,fast,\"a,b\",None,0.1\n";
    let table = read(text);
    assert_eq!(table.to_csv(), text);
    let row = &table.rows[0];
    assert_eq!((row.us, row.extra("us")), (None, Some("fast")));
    assert_eq!(
        (row.libtype.as_deref(), row.extra("libtype")),
        (None, Some("None"))
    );
    assert_eq!(row.extra("_tag"), Some("a,b"));
    assert_eq!(
        table.faults,
        [Fault::BadNumber {
            line: 2,
            column: "us",
            text: "fast".into()
        }]
    );
    assert!(!row.is_valid(0.05));
}

#[test]
fn numbers_pandas_wrote_as_floats_are_whole() {
    let table = read("cu_num,M,N,K,kernelId,splitK\n304.0,16,512,7168,3.0,\n");
    let row = &table.rows[0];
    assert_eq!(
        (row.cu_num, row.kernel_id, row.split_k),
        (Some(304), Some(3), None)
    );
}

#[test]
fn glued_rows_and_bad_keys_are_faults_with_their_line() {
    let text = "cu_num,M,N,K,us\n80,1,2,3,4.080,2,2,3,5.0\n80,x,2,3,4\n80,7,2,3,4\n80,-1,2,3,4\n";
    let table = read(text);
    assert_eq!(table.rows.len(), 1);
    assert_eq!(
        table.faults.iter().map(Fault::line).collect::<Vec<_>>(),
        [2, 3, 5]
    );
    assert!(matches!(
        table.faults[0],
        Fault::TooManyCells {
            expected: 5,
            found: 9,
            ..
        }
    ));
}

#[test]
fn a_quote_that_is_never_closed_is_a_fault_and_not_a_long_name() {
    let open = "cu_num,M,N,K,kernelName\n80,1,2,3,a\n80,2,2,3,\"b\n80,3,2,3,c\n";
    let table = read(open);
    assert_eq!(table.rows.len(), 1);
    assert_eq!(table.faults, [Fault::OpenQuote { line: 3 }]);
    // Closed quotes, and quotes inside a cell, do not count.
    for name in ["\"b\"", "\"b,\n\"", "b\"c", "\"\"", "\"b\"\"\""] {
        for end in ["", "\n"] {
            let text = format!("cu_num,M,N,K,kernelName\n80,1,2,3,{name}{end}");
            assert_eq!(read(&text).faults, [], "{text}");
        }
    }
}

#[test]
fn a_row_with_a_failed_measurement_is_not_valid() {
    for (us, ratio, valid) in [
        ("-1", "0.0", false),
        ("0.0", "0.0", false),
        ("inf", "1.0", false),
        ("nan", "0.0", false),
        ("", "0.0", false),
        ("1.5", "0.06", false),
        ("1.5", "nan", false),
        ("1.5", "0.05", true),
        ("1.5", "", true),
    ] {
        let table = read(&format!(
            "cu_num,M,N,K,us,errRatio\n80,1,2,3,{us},{ratio}\n"
        ));
        assert_eq!(
            table.rows[0].is_valid(0.05),
            valid,
            "us {us}, errRatio {ratio}"
        );
    }
}

#[test]
fn the_operation_comes_from_the_file_name_the_kernels_or_the_columns() {
    let op = |name: &str, text: &str| Table::read(name, text.as_bytes(), None).unwrap().op;
    assert_eq!(
        op("glm5_a8w8_bpreshuffle_tuned_gemm.csv", "M,N,K\n"),
        Op::Bpreshuffle
    );
    assert_eq!(
        op("t.csv", "cu_num,M,N,K,q_dtype_w,libtype\n"),
        Op::Bpreshuffle
    );
    assert_eq!(op("t.csv", "cu_num,M,N,K,q_dtype_w\n"), Op::A8w8);
    assert_eq!(op("t.csv", "cu_num,M,N,K\n"), Op::Blockscale);
    let kernel = "cu_num,M,N,K,kernelName\n80,1,2,3,a8w8_blockscale_bpreshuffle_1x128x128_2\n";
    assert_eq!(op("t.csv", kernel), Op::BlockscaleBpreshuffle);
}

#[test]
fn what_is_no_gemm_table_is_refused_with_its_reason() {
    let error = |text: &str| Table::read("t.csv", text.as_bytes(), None).unwrap_err();
    assert!(matches!(error(""), TableError::Empty { .. }));
    assert!(matches!(error("\u{feff}"), TableError::Empty { .. }));
    assert!(matches!(
        error("a,b\n1,2\n"),
        TableError::MissingColumns { .. }
    ));
    assert!(matches!(
        error("M,N,K,M\n"),
        TableError::DuplicateColumn { .. }
    ));
    assert!(matches!(
        error("cu_num,token,model_dim\n"),
        TableError::NotGemm { kind: "MoE", .. }
    ));
    assert!(matches!(
        error("cu_num,B,M,N,K\n"),
        TableError::NotGemm { .. }
    ));
    assert!(matches!(
        Table::read("t.csv", b"M,N,\xff\n", None),
        Err(TableError::HeaderNotUtf8 { .. })
    ));
}

#[test]
fn a_header_with_blanks_reads_but_is_noted() {
    let table = read("cu_num, M, N, K\n80, 1, 2, 3\n");
    assert_eq!(table.rows[0].k, 3);
    assert_eq!(table.quirks.padded_columns, [" M", " N", " K"]);
}
