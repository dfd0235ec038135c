//! Logs that are torn, glued and overwritten at random read the same however they arrive.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use camino::Utf8Path;
use gemmtune::log::scan::{Lines, number_lines, scan};
use gemmtune::log::sections::scan_file;
use gemmtune::log::summary::LogSummary;
use proptest::prelude::*;

use crate::{Pieces, dump, log_summary, rows};

/// A small deterministic generator (SplitMix64, Steele et al. 2014), so that a failing case is its number.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// Lines of every kind, whole: what the generator tears, glues and mutates.
fn vocabulary() -> Vec<String> {
    let mut lines = vec![
        dump("8,512,7168,torch.float8_e4m3fn"),
        dump("8,512,7168,torch.float8_e4m3fnuz"),
        dump("16384,36864,7168,torch.float8_e4m3fnuz"),
        dump("0,512,7168,torch.float8_e4m3fnuz"),
        dump(" 1, 512, 7168, torch.float8_e5m2, more"),
        String::from(
            "[GEMM_shape_dump] op=gemm_a8w8_bpreshuffle | csv_row: 4,512,7168,torch.float8_e4m3fn",
        ),
    ];
    let more = "\
[aiter] shape is M:9, N:512, K:7168, not found tuned config in /x/a8w8_blockscale_tuned_gemm.csv, will use default config!
[aiter] shape is M:9, N:512, K:7168, found padded_M: 16, N:512, K:7168 is tuned on cu_num = 304 in /x/a8w8_blockscale_tuned_gemm.csv , kernel name is k7!
[aiter] shape M:3, N:512, K:1024 q_dtype_w:torch.float8_e4m3fnuz, found padded_M: 16, N:512, K:1024 is tuned, in /x/a8w8_bpreshuffle_tuned_gemm.csv! libtype is ck! kernelName is x (kernelId 3)!
[aiter] shape M:3, N:512, K:1024 q_dtype_w:torch.int8 is tuned, in /x/a8w8_bpreshuffle_tuned_gemm.csv!
[aiter] shape is M:3, N:512, K:1024, q_dtype_w:torch.int8, not found tuned config in /x/a8w8_tuned_gemm.csv, will use default config!
[aiter] /x/t.csv has no 'gfx' column -- falling back to cu_num-only key. Re-run the tuner or migrate the CSV to add a gfx column.
[t TP0] Using default W8A8 Block FP8 kernel config. Performance might be sub-optimal! Config file not found at /c/N=6144,K=4096,device_name=NVIDIA_H100,dtype=fp8_w8a8,block_shape=[128, 128].json
[t] Using configuration from /c/N=512,K=7168,device_name=X,dtype=fp8_w8a8,block_shape=[128, 128].json for W8A8 Block FP8 kernel.
[t] Decode batch, #running-req: 32, #token: 32896, token usage: 0.08, cuda graph: True, gen throughput (token/s): 2.83, #queue-req: 0
[t] Decode batch [7], #running-req: 3, #full token: 9, cuda graph: False
[t] Prefill batch, #new-seq: 8, #new-token: 8192, #cached-token: 0, token usage: 0.04, #running-req: 1
[t] max_total_num_tokens=393044, chunked_prefill_size=8192, max_prefill_tokens=16384, max_running_requests=4096, context_len=40960
[t] Capture cuda graph bs [1, 2, 4, 8]
[t] Capture target decode CUDA graph begin. backend=full, num_tokens_per_req=1, bs=[1, 2, 4, 8], avail mem=13.55 GB
[t] Capture target prefill CUDA graph end. num_tokens=[4, 8], elapsed=1 s
[Fp8LinearMethod] block_quant w8a8_block_fp8_linear=aiter_w8a8_block_fp8_linear (sglang.srt.layers.quantization.fp8_utils)
\u{1b}[33mCapturing batches (bs=136 avail_mem=9.96 GB):  44%|\u{258d}| 16/36 [00:04<00:04,  4.82it/s]\u{1b}[0m
INFO:     10.0.0.2:55254 - \"POST /v1/chat/completions HTTP/1.1\" 200 OK";
    let newer = [
        include_str!("../../testdata/findings/families/newtables.log"),
        include_str!("../../testdata/findings/after-5586/newest.log"),
        "[aiter] shape is M:64, N:512, K:7168, b_intype:mxfp8, a_preshuffle:1, not found usable exact/padded-M config in \
         /x.csv, will use default config!",
    ];
    let all = std::iter::once(more).chain(newer);
    lines.extend(all.flat_map(str::lines).map(String::from));
    lines
}

/// A log of up to 30 pieces, some torn, glued, repeated, or with bytes overwritten.
fn mutated_log(random: &mut Random, vocabulary: &[String]) -> Vec<u8> {
    let mut log = Vec::new();
    for _ in 0..random.below(30) {
        let line = vocabulary[random.below(vocabulary.len())].as_bytes();
        match random.below(8) {
            0 => log.extend_from_slice(&line[..random.below(line.len())]),
            1 => log.extend_from_slice(&line[random.below(line.len())..]),
            2 => {
                let start = log.len();
                log.extend_from_slice(line);
                for _ in 0..=random.below(4) {
                    let at = start + random.below(line.len());
                    log[at] = random.next() as u8;
                }
            }
            3 => log.extend((0..random.below(300)).map(|_| random.next() as u8)),
            _ => log.extend_from_slice(line),
        }
        match random.below(6) {
            0 => {}
            1 => log.push(b'\r'),
            2 => log.extend_from_slice(b"\r\n"),
            _ => log.push(b'\n'),
        }
    }
    log
}

/// Everything a log summary says, to compare two of them.
fn summary(log_summary: &LogSummary) -> String {
    format!(
        "{:?}\n{:?}\n{:?}\n{:?}\n{:?}\n{:?}\n{:?}\n{:?}\n{:?}\n{:?}\n{}",
        log_summary.shapes(None),
        log_summary.served().collect::<Vec<_>>(),
        log_summary.nk_only,
        log_summary.dispatch,
        log_summary.captures,
        (&log_summary.decode_batches, &log_summary.decode_eager),
        log_summary.prefill_batches,
        log_summary.limits,
        (
            &log_summary.legacy_tables,
            &log_summary.others,
            &log_summary.fused_moe
        ),
        log_summary.malformed_shown,
        log_summary.malformed,
    )
}

fn fuzz(cases: std::ops::Range<u64>) {
    let vocabulary = vocabulary();
    for case in cases {
        let mut random = Random(case);
        let log = mutated_log(&mut random, &vocabulary);
        let whole = log_summary(&log);
        let lengths: Vec<usize> = (0..5).map(|_| 1 + random.below(97)).collect();
        let mut pieces = LogSummary::default();
        let input = Pieces {
            bytes: &log,
            lengths: &lengths,
            next: 0,
        };
        scan(input, "test", Lines::Count, &mut pieces).unwrap();
        assert_eq!(summary(&whole), summary(&pieces), "case {case}");
        let newlines = memchr::memchr_iter(b'\n', &log).count() as u64;
        for malformed in &whole.malformed_shown {
            let line = malformed.line.unwrap();
            assert!((1..=newlines + 1).contains(&line), "case {case}");
        }
    }
}

#[test]
fn thousands_of_mutated_logs_read_the_same_however_they_arrive() {
    fuzz(0..2_000);
}

#[test]
#[ignore = "a million cases take some minutes in a release build"]
fn a_million_mutated_logs_read_the_same_however_they_arrive() {
    fuzz(1_000_000..2_000_000);
}

#[test]
fn sections_with_more_shapes_than_they_hold_give_the_same_harvest() {
    let mut log = String::new();
    for m in 1..=120_000 {
        let _ = writeln!(
            log,
            "{}",
            dump(&format!("{m},512,7168,torch.float8_e4m3fn"))
        );
    }
    log += &dump("7,512,7168,torch.float8_e4m3fn");
    let file = tempfile::NamedTempFile::new().unwrap();
    fs_err::write(file.path(), &log).unwrap();
    let path = Utf8Path::from_path(file.path()).unwrap();
    let mut side_by_side = LogSummary::default();
    let read = scan_file(path, 2, 1, &mut side_by_side, &|_| {}).unwrap();
    assert_eq!(
        (read, side_by_side.bytes),
        (log.len() as u64, log.len() as u64)
    );
    assert_eq!(side_by_side.records(), 120_001);
    assert_eq!(rows(&side_by_side), rows(&log_summary(&log)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_split_of_a_log_gives_the_same_harvest(
        seed in any::<u64>(),
        lengths in prop::collection::vec(1usize..400, 1..12),
        padding in 0usize..3,
    ) {
        let vocabulary = vocabulary();
        let mut random = Random(seed);
        let mut log = mutated_log(&mut random, &vocabulary);
        // Some logs larger than the read buffer, so that records straddle its end.
        if padding == 2 {
            while log.len() < (1 << 20) + 4096 {
                let mut more = mutated_log(&mut random, &vocabulary);
                more.extend(std::iter::repeat_n(b'.', 20_000));
                log.extend(more);
            }
        }
        let whole = log_summary(&log);
        let mut pieces = LogSummary::default();
        let input = Pieces { bytes: &log, lengths: &lengths, next: 0 };
        scan(input, "test", Lines::Count, &mut pieces).unwrap();
        prop_assert_eq!(summary(&whole), summary(&pieces));
    }

    #[test]
    fn sections_read_side_by_side_give_the_same_harvest(
        seed in any::<u64>(),
        logs in 1usize..12,
        sections in 2usize..7,
        section_min in 1u64..3000,
    ) {
        let vocabulary = vocabulary();
        let mut random = Random(seed);
        let log: Vec<u8> = (0..logs)
            .flat_map(|_| mutated_log(&mut random, &vocabulary))
            .collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), &log).unwrap();
        let path = Utf8Path::from_path(file.path()).unwrap();
        let mut side_by_side = LogSummary::default();
        let told = AtomicU64::new(0);
        let count = |bytes| {
            told.fetch_add(bytes, Ordering::Relaxed);
        };
        let read = scan_file(path, sections, section_min, &mut side_by_side, &count).unwrap();
        number_lines(&*log, path.as_str(), &mut side_by_side).unwrap();
        prop_assert_eq!(read, log.len() as u64);
        prop_assert_eq!(told.into_inner(), read, "finding the cuts is not reading");
        let mut whole = LogSummary::default();
        scan(&*log, path.as_str(), Lines::Count, &mut whole).unwrap();
        prop_assert_eq!(summary(&whole), summary(&side_by_side));
    }
}
