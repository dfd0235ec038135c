use super::*;
use crate::log::record::parse;

fn dump(op: Option<Op>, m: u32, dtype: &'static str) -> Dump {
    Dump {
        op,
        m,
        n: 512,
        k: 7168,
        dtype,
    }
}

#[test]
fn unsaid_operations_follow_the_dispatch_identity() {
    let mut log_summary = LogSummary::default();
    log_summary.add_dump(dump(None, 1, "torch.float8_e4m3fn"), 3);
    assert_eq!(log_summary.shapes(None)[0].shape.op, Op::Blockscale);
    log_summary
        .dispatch
        .insert("triton_w8a8_block_fp8_linear (m)".to_owned(), 1);
    assert_eq!(log_summary.shapes(None)[0].shape.op, Op::TritonBlockFp8);
    log_summary
        .dispatch
        .insert("aiter_w8a8_block_fp8_linear (m)".to_owned(), 1);
    assert_eq!(log_summary.shapes(None)[0].shape.op, Op::Blockscale);
    assert_eq!(
        log_summary.shapes(Some(Op::BlockscaleBpreshuffle))[0]
            .shape
            .op,
        Op::BlockscaleBpreshuffle
    );
    assert_eq!(log_summary.records(), 3);
}

#[test]
fn a_record_without_dtype_joins_the_one_shape_with_a_dtype() {
    let mut log_summary = LogSummary::default();
    let miss = b"shape is M:1, N:512, K:7168, not found tuned config in a8w8_blockscale_tuned_gemm.csv, will use default config!";
    let Some((crate::log::engagement::LookupReport::Lookup(line), _)) =
        crate::log::engagement::parse(miss)
    else {
        panic!("a look-up");
    };
    log_summary.add_lookup(line, Logger::Aiter);
    log_summary.end_log();
    assert_eq!(log_summary.shapes(None)[0].shape.dtype, "");
    log_summary.add_dump(dump(Some(Op::Blockscale), 1, "torch.float8_e4m3fn"), 3);
    let shapes = log_summary.shapes(None);
    assert_eq!(shapes.len(), 1);
    assert_eq!(
        (shapes[0].shape.dtype.as_str(), shapes[0].records),
        ("torch.float8_e4m3fn", 4)
    );
    log_summary.add_dump(dump(Some(Op::Blockscale), 1, "torch.float8_e5m2"), 3);
    assert_eq!(
        log_summary.shapes(None).len(),
        3,
        "two candidates: nothing is guessed"
    );
    assert_eq!(log_summary.hits_and_misses(), (0, 1));
}

#[test]
fn captured_calls_count_as_often_as_they_were_replayed() {
    let mut log_summary = LogSummary::default();
    let mut read = |line: &str| log_summary.add_record(parse(line.as_bytes()).unwrap());
    let calls = |m: u32, kind: &str, bs: &str, count: u32| {
        format!(
            r#"{{"op":"gemm_a8w8_blockscale","M":{m},"N":512,"K":7168,"dtype":"torch.float8_e4m3fn","kind":"{kind}","bs":{bs},"count":{count}}}"#
        )
    };
    read(r#"{"gemmtune":"hello","pid":1,"rank":0,"world":2,"version":1}"#);
    read(&calls(8, "warmup", "8", 122));
    read(&calls(8, "capture", "8", 1));
    read(&calls(8, "capture", "8", 121));
    read(r#"{"capture":8,"tokens":8,"count":2}"#);
    read(r#"{"replay":8,"tokens":8,"count":10}"#);
    read(r#"{"replay":8,"tokens":8,"count":90}"#);
    read(&calls(4, "capture", "4", 61));
    read(&calls(900, "eager", "null", 61));
    log_summary.end_record_file();
    let counts: Vec<(u32, u64)> = log_summary
        .shapes(None)
        .into_iter()
        .map(|seen| (seen.shape.m, seen.records))
        .collect();
    assert_eq!(counts, [(4, 1), (8, 6100), (900, 61)]);
    assert_eq!(log_summary.hellos.len(), 1);
}

#[test]
fn memory_is_bounded_and_what_is_left_out_is_counted() {
    let mut log_summary = LogSummary::default();
    for m in 1..=SHAPES_MAX as u32 + 7 {
        log_summary.add_dump(dump(None, m, "torch.float8_e4m3fn"), 2);
    }
    assert_eq!(log_summary.left_out, 14);
    assert_eq!(log_summary.shapes(None).len(), SHAPES_MAX);
    for _ in 0..100 {
        log_summary.add_malformed(
            "x",
            Place {
                line: None,
                offset: 0,
            },
            "torn",
            &[b'a'; 4096],
        );
    }
    assert_eq!(
        (log_summary.malformed, log_summary.malformed_shown.len()),
        (100, MALFORMED_SHOWN)
    );
    assert!(log_summary.malformed_shown[0].text.len() <= 200);
}
