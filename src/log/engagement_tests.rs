use super::*;

/// The first look-up a line reports.
fn classify(line: &[u8]) -> Option<Line<'_>> {
    let mut starts: Vec<usize> = memchr::memmem::find_iter(line, b"shape is M:")
        .chain(memchr::memmem::find_iter(line, b"shape M:"))
        .collect();
    starts.sort_unstable();
    match starts.into_iter().find_map(|start| parse(&line[start..]))? {
        (LookupReport::Lookup(lookup), _) => Some(lookup),
        (LookupReport::Other(_), _) => None,
    }
}

/// The operation of that look-up.
pub(crate) fn op_of(line: &[u8]) -> Option<Op> {
    classify(line).map(|lookup| lookup.op)
}

fn hit(lookup: &Line<'_>) -> Hit {
    match lookup.outcome {
        LineOutcome::Hit(hit) => hit.to_owned(),
        LineOutcome::Miss { .. } => panic!("a miss: {lookup:?}"),
    }
}

#[test]
fn blockscale_hits_of_every_revision_are_read() {
    let line = b"[aiter] shape is M:1000, N:4096, K:4096, found padded_M: 1024, N:4096, K:4096 is tuned on \
        cu_num = 304 in /tmp/a b/a8w8_blockscale_tuned_gemm.csv , kernel name is a8w8_x_v1!";
    let lookup = classify(line).unwrap();
    assert_eq!(
        (lookup.op, lookup.m, lookup.n, lookup.k),
        (Op::Blockscale, 1000, 4096, 4096)
    );
    assert_eq!(hit(&lookup).padded_m, 1024);
    assert_eq!(hit(&lookup).cu_num, Some(304));
    assert_eq!(hit(&lookup).file, "/tmp/a b/a8w8_blockscale_tuned_gemm.csv");
    assert_eq!(hit(&lookup).kernel_name.as_deref(), Some("a8w8_x_v1"));
}

fn other(line: &str) -> String {
    let at = line.find("shape ").unwrap();
    match parse(&line.as_bytes()[at..]) {
        Some((LookupReport::Other(family), _)) => family,
        said => panic!("{line}: {said:?}"),
    }
}

#[test]
fn lines_of_other_families_are_no_look_ups_of_ours() {
    // `aiter/tuned_gemm.py` at v0.1.7, v0.1.9, 303a583c and e4048607.
    let flags = "dtype=torch.bfloat16 otype=torch.bfloat16 bias=False, scaleAB=False";
    let table = "/tmp/aiter_configs/bf16_tuned_gemm.csv";
    let end = "will use default config!";
    for line in [
        format!("M:64, N:512, K:7168, not found tuned config in /tmp/bf16_tuned_gemm.csv, {end}"),
        format!(
            "M:64, N:512, K:7168, not found tuned config in /x/aiter/configs/tuned_gemm.csv, {end}"
        ),
        format!(
            "M:64, N:512, K:7168 {flags}, found padded_M: 64, N:512, K:7168 is tuned on cu_num = 304 in {table}, \
                 libtype is hipblaslt, kernel name is k"
        ),
        format!(
            "M:64, N:512, K:7168 {flags}, bpreshuffle=False , not found tuned config in {table}, {end}"
        ),
        format!(
            "M:64, N:512, K:7168 {flags}, bpreshuffle=False, not found tuned config in {table}, {end} using torch \
                 solution:0"
        ),
    ] {
        let line = format!("[aiter] shape is {line}\n");
        assert!(classify(line.as_bytes()).is_none(), "{line}");
        assert_eq!(other(&line), "bf16_tuned_gemm");
    }
    // Main of September 2026.
    let head = "[aiter] shape is M:64, N:512, K:7168";
    let missed = |table: &str| {
        other(&format!(
            "{head}, not found tuned config in /tmp/aiter_configs/{table}.csv, {end}"
        ))
    };
    for stem in [
        "a6w6_blockscale_tuned_gemm",
        "a16w8_mxfp8_asm_tuned_gemm",
        "a8w8_blockscale_group32_tuned_gemm",
        "a8w8_blockscale_abpreshuffle_tuned_gemm",
        "flydsl_a8w8_bpreshuffle_tuned_gemm",
    ] {
        assert_eq!(missed(stem), stem);
    }
    let f8 = format!(
        "{head}, b_intype:mxfp8, a_preshuffle:1, not found usable exact/padded-M config in /x.csv, {end}"
    );
    assert_eq!(other(&f8), "asm_mxfp8fp4gemm");
}

#[test]
fn a_row_that_is_reused_above_its_m_is_named() {
    let line = b"6144, K:4096; reusing the M:32768 row flydsl_y\n";
    let found = reuse(line).unwrap();
    assert_eq!((found.n, found.k, found.m), (6144, 4096, 32768));
    assert_eq!(found.kernel, "flydsl_y");
    assert_eq!(reuse(b"6144, K:4096; reusing the M:"), None);
}

#[test]
fn the_table_name_tells_operations_of_one_form_apart() {
    let op = |file: &str| {
        let line = format!(
            "shape is M:1, N:8, K:8, not found tuned config in {file}, will use default config!"
        );
        classify(line.as_bytes()).unwrap().op
    };
    assert_eq!(op("/x/a8w8_blockscale_tuned_gemm.csv"), Op::Blockscale);
    assert_eq!(
        op("/x/a8w8_blockscale_bpreshuffle_tuned_gemm.csv"),
        Op::BlockscaleBpreshuffle
    );
    assert_eq!(
        op("/bpreshuffle/mine.csv"),
        Op::Blockscale,
        "folders say nothing"
    );
    assert_eq!(op("/x/a4w4_blockscale_tuned_gemm.csv"), Op::A4w4);
    assert_eq!(op("/x/a8w8_tuned_gemm.csv"), Op::A8w8);
    assert_eq!(op("CKGEMM or asmGEMM"), Op::A4w4);
}

#[test]
fn a4w4_hits_have_a_tail_of_their_own() {
    let line = b"shape is M:3, N:512, K:1024, found padded_M: 16, N:512, K:1024 is tuned on cu_num = 256 in \
        t.csv, kernel name is _ZN5aiter, splitK is 0!";
    let lookup = classify(line).unwrap();
    assert_eq!(lookup.op, Op::A4w4);
    assert_eq!(hit(&lookup).kernel_name.as_deref(), Some("_ZN5aiter"));
    assert_eq!(hit(&lookup).split_k.as_deref(), Some("0"));
    assert_eq!(hit(&lookup).file, "t.csv");
}

#[test]
fn bpreshuffle_lines_of_all_four_revisions_are_read() {
    let head = "shape M:3, N:512, K:1024 q_dtype_w:torch.float8_e4m3fnuz";
    let found = ", found padded_M: 16, N:512, K:1024 is tuned, in a8w8_bpreshuffle_tuned_gemm.csv";
    let read = |line: String| classify(line.leak().as_bytes()).unwrap();

    let a = read(format!(
        "{head} is tuned, in a8w8_bpreshuffle_tuned_gemm.csv!"
    ));
    assert_eq!((a.op, hit(&a).padded_m), (Op::Bpreshuffle, 3));
    assert_eq!(a.dtype, Some(b"torch.float8_e4m3fnuz".as_slice()));

    let b = read(format!("{head}{found}, libtype is ck!"));
    assert_eq!(hit(&b).libtype.as_deref(), Some("ck"));
    assert_eq!(hit(&b).file, "a8w8_bpreshuffle_tuned_gemm.csv");

    let p = read(format!("{head}{found}! libtype is cktile!"));
    assert_eq!(
        (hit(&p).libtype.as_deref(), hit(&p).padded_m),
        (Some("cktile"), 16)
    );

    let h = read(format!(
        "{head}{found}! libtype is flydsl! kernelName is k(1) (kernelId 7)!"
    ));
    assert_eq!(hit(&h).kernel_name.as_deref(), Some("k(1)"));
    assert_eq!(hit(&h).kernel_id.as_deref(), Some("7"));

    let a8w8 = found.replace("a8w8_bpreshuffle", "a8w8");
    let a8w8 = read(format!("{head}{a8w8}! kernelName is x (kernelId 1)!"));
    assert_eq!(a8w8.op, Op::A8w8);

    let miss = read(
        "shape is M:3, N:512, K:1024, q_dtype_w:torch.int8, not found tuned config in /x/a8w8_tuned_gemm.csv, will use default config!".to_owned(),
    );
    assert_eq!(miss.op, Op::A8w8);
    assert!(matches!(
        miss.outcome,
        LineOutcome::Miss {
            file: Some(b"/x/a8w8_tuned_gemm.csv")
        }
    ));
}

#[test]
fn torn_and_contradicting_lines_are_none() {
    for line in [
        "shape is M:3, N:512, K:10",
        "shape is M:3, N:512, K:1024, found padded_M: 16, N:512, K:1024 is tuned on cu_num = 30",
        "shape is M:3, N:512, K:1024, found padded_M: 16, N:513, K:1024 is tuned on cu_num = 304 in f , kernel name is k!",
        "shape is M:3, N:512, K:1024, not found tuned config in /x/a8w8_blo",
        "shape is M:0, N:512, K:1024, not found tuned config in f, will use default config!",
        "shape is M:99999999999, N:512, K:1024, not found tuned config in f, will use default config!",
    ] {
        assert!(classify(line.as_bytes()).is_none(), "{line}");
    }
}
