//! Harvesting logs: what is found does not depend on how the bytes arrive, on what stands around them, or on luck.

mod mutated;

use std::io::Read;

use gemmtune::log::CaptureUnit;
use gemmtune::log::scan::{Lines, number_lines, scan};
use gemmtune::log::summary::{LogSummary, Seen};
use gemmtune::problem::Op;

const TAGGED: &str = "[2026-09-01 10:00:00 TP0] [GEMM_shape_dump] aiter FP8 block GEMM path block_size=[128, 128] | \
    x.shape=(1, 2) weight.shape=(1, 2) | M=1 N=2 K=3 (aiter gemm_a8w8_blockscale / bpreshuffle tune CSV) | csv_row: ";

fn dump(row: &str) -> String {
    format!("{TAGGED}{row}")
}

fn log_summary(log: impl AsRef<[u8]>) -> LogSummary {
    let mut log_summary = LogSummary::default();
    scan(log.as_ref(), "test", Lines::Count, &mut log_summary).unwrap();
    log_summary
}

fn rows(log_summary: &LogSummary) -> Vec<(u32, u32, u32, u64)> {
    log_summary
        .shapes(None)
        .into_iter()
        .map(|Seen { shape, records }| (shape.m, shape.n, shape.k, records))
        .collect()
}

/// A reader that hands out the bytes in pieces of the given lengths, over and over.
struct Pieces<'a> {
    bytes: &'a [u8],
    lengths: &'a [usize],
    next: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let wanted = self.lengths[self.next % self.lengths.len()].max(1);
        self.next += 1;
        let length = wanted.min(buffer.len()).min(self.bytes.len());
        buffer[..length].copy_from_slice(&self.bytes[..length]);
        self.bytes = &self.bytes[length..];
        Ok(length)
    }
}

#[test]
fn a_recorded_server_log_gives_its_weights_its_captured_sizes_and_its_batches() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/testdata/logs/sglang-0.5.16-h100-qwen3-8b.log"
    );
    let log_summary = log_summary(fs_err::read(path).unwrap());
    let weights: Vec<(u32, u32)> = log_summary.nk_only.keys().copied().collect();
    assert_eq!(
        weights,
        [(4096, 4096), (4096, 12288), (6144, 4096), (24576, 4096)]
    );
    let first = log_summary.nk_only.values().next().unwrap();
    assert_eq!(first.device, "NVIDIA_H100_80GB_HBM3");
    assert_eq!((first.default_config, first.tuned_config), (1, 0));
    let decode = log_summary
        .captures
        .keys()
        .find(|capture| capture.unit == CaptureUnit::Bs)
        .unwrap();
    assert_eq!(decode.role, "target decode");
    assert_eq!(decode.sizes, [1, 2, 4, 8, 12, 16, 24, 32]);
    assert_eq!(decode.tokens_per_request, Some(1));
    let prefill = log_summary
        .captures
        .keys()
        .find(|capture| capture.unit == CaptureUnit::NumTokens)
        .unwrap();
    assert_eq!(
        (prefill.sizes.len(), prefill.sizes.last()),
        (58, Some(&8192))
    );
    assert_eq!(log_summary.decode_batches.values().sum::<u64>(), 20);
    assert_eq!(log_summary.prefill_batches.values().sum::<u64>(), 36);
    let limits = log_summary.limits.keys().next().unwrap();
    assert_eq!(limits.max_running_requests, Some(4096));
    assert_eq!(limits.chunked_prefill_size, Some(8192));
    assert_eq!(log_summary.shapes(None), [], "no M is made up");
    assert_eq!(log_summary.malformed, 0);
}

#[test]
fn records_are_found_behind_bars_colours_and_prefixes_and_several_in_a_line() {
    let row = dump("8,512,7168,torch.float8_e4m3fn");
    let torn = "[GEMM_shape_dump] aiter FP8 bl";
    let bar = "  0%|          | 0/23 [00:00<?, ?it/s]";
    let log = format!(
        "{bar}{row}\n\
         (RayWorker pid=7) \x1b[33m{row}\x1b[0m\n\
         {bar}\r{bar}\r{row}\r{bar}{row}{row}\n\
         {torn}{row}\n\
         {TAGGED}\x1b[1m8\x1b[0m,512,\x1b[4m7168\x1b[0m,torch.float8_e4m3fn \n\
         \u{fffd}\0{row}"
    );
    let log_summary = log_summary(&log);
    assert_eq!(rows(&log_summary), [(8, 512, 7168, 8)]);
    assert_eq!(log_summary.malformed, 1);
    assert_eq!(log_summary.malformed_shown[0].line, Some(4));
}

#[test]
fn lines_of_the_bf16_gemm_are_neither_shapes_nor_torn() {
    // `aiter/tuned_gemm.py` at 303a583c: a hit has no comma before `found`, so only its head is known.
    let log = "[aiter] shape is M:64, N:512, K:7168 dtype=torch.bfloat16 otype=torch.bfloat16 bias=False, scaleAB=False, \
        bpreshuffle=False found padded_M: 64, N:512, K:7168 is tuned on cu_num = 304 in /tmp/aiter_configs/bf16_tuned_gemm.csv, \
        libtype is hipblaslt, kernel name is foo\n";
    let log_summary = log_summary(log);
    assert_eq!((log_summary.malformed, rows(&log_summary)), (0, vec![]));
    // The same beginning without the flags, torn, is one.
    let torn = self::log_summary("[aiter] shape is M:64, N:512, K:7168\n");
    assert_eq!(torn.malformed, 1);
}

#[test]
fn torn_and_impossible_records_are_counted_and_shown_with_their_lines() {
    let log = [
        dump("1,512,7168,torch.float8_e4m3fnuz"),
        dump("1,512,71"),
        dump("0,512,7168,torch.float8_e4m3fnuz"),
        String::from("csv_row: 5,512,7168,torch.float8_e4m3fnuz"),
        dump("1,513,7168,torch.float8_e4m3fnuz"),
        dump("1,512,7168,torch.bfloat16"),
        String::from("[aiter] shape is M:1, N:512, K:7168, not found tuned config in /x/a8w8_bl"),
        dump("2,512,7168,torch.float8_e4m3fnuz"),
        dump("2,512,7168,torch.float8_e4m3fn"),
    ]
    .join("\n");
    let mut later = LogSummary::default();
    scan(log.as_bytes(), "test", Lines::Later, &mut later).unwrap();
    assert!(
        later
            .malformed_shown
            .iter()
            .all(|shown| shown.line.is_none())
    );
    number_lines(log.as_bytes(), "test", &mut later).unwrap();
    for log_summary in [log_summary(&log), later] {
        assert_eq!(rows(&log_summary), [(1, 512, 7168, 1), (2, 512, 7168, 1)]);
        let lines: Vec<Option<u64>> = log_summary
            .malformed_shown
            .iter()
            .map(|shown| shown.line)
            .collect();
        // The last one ends the file in what may be the front half of `…fnuz`.
        assert_eq!(lines, [2, 3, 5, 6, 7, 9].map(Some));
        assert_eq!(log_summary.malformed, 6);
    }
}

#[test]
fn aiter_lines_are_shapes_and_say_how_they_were_served() {
    let log = "\
        [aiter] shape is M:9, N:512, K:7168, not found tuned config in /x/a8w8_blockscale_tuned_gemm.csv, will use default config!\n\
        3%|#  |[aiter] shape is M:9, N:512, K:7168, found padded_M: 16, N:512, K:7168 is tuned on cu_num = 304 in /x/a8w8_blockscale_tuned_gemm.csv , kernel name is k7!\n\
        [aiter] shape M:3, N:512, K:1024 q_dtype_w:torch.float8_e4m3fnuz, found padded_M: 16, N:512, K:1024 is tuned, in /x/a8w8_bpreshuffle_tuned_gemm.csv! libtype is ck! kernelName is x (kernelId 3)!\n\
        [aiter] /x/t.csv has no 'gfx' column -- falling back to cu_num-only key. Re-run the tuner or migrate the CSV to add a gfx column.\n";
    let log_summary = log_summary(log);
    let shapes = log_summary.shapes(None);
    assert_eq!(shapes.len(), 2);
    assert_eq!((shapes[0].shape.op, shapes[0].records), (Op::Blockscale, 2));
    assert_eq!(shapes[1].shape.op, Op::Bpreshuffle);
    assert_eq!(shapes[1].shape.dtype, "torch.float8_e4m3fnuz");
    let served: Vec<_> = log_summary.served().collect();
    assert_eq!((served[0].1.hits, served[0].1.misses), (1, 1));
    let hit = served[0].1.hit.as_deref().unwrap();
    assert_eq!((hit.padded_m, hit.kernel_name.as_deref()), (16, Some("k7")));
    assert_eq!(log_summary.legacy_tables.keys().next().unwrap(), "/x/t.csv");
    assert_eq!(log_summary.malformed, 0);
}

#[test]
fn look_ups_of_other_families_are_counted_by_family_and_are_no_shapes() {
    let found = log_summary(include_str!(
        "../../testdata/findings/families/newtables.log"
    ));
    assert_eq!(found.shapes(None), []);
    assert_eq!((found.malformed, found.hits_and_misses()), (0, (0, 0)));
    assert_eq!(found.others.len(), 9);
    assert!(found.others.values().all(|count| *count == 1));
    assert!(
        found
            .others
            .contains_key("a8w8_bpreshuffle_mxfp8_tuned_gemm")
    );
    // A bf16 hit of e4048607, which has no comma before `found`, and a miss by two loggers.
    let line = "shape is M:80, N:256, K:6144 dtype='torch.bfloat16' otype='torch.float32' bias=False, scaleAB=False, \
        bpreshuffle=False found padded_M: 80, N:256, K:6144 is tuned on cu_num = 304 in /x/bf16_tuned_gemm.csv, libtype \
        is hipblaslt, kernel name is \n";
    let missed = "shape is M:81, N:256, K:6144 dtype='torch.bfloat16' otype='torch.bfloat16' bias=False, scaleAB=False, \
        bpreshuffle=False, not found tuned config in /x/bf16_tuned_gemm.csv, will use default config! using torch \
        solution:0\n";
    let found = log_summary(format!("[aiter] {line}[aiter] {missed}[t TP4] {missed}"));
    assert_eq!(found.others, [("bf16_tuned_gemm".to_owned(), 2)].into());
    assert_eq!((found.malformed, found.shapes(None).len()), (0, 0));
}

#[test]
fn a_line_that_two_loggers_wrote_counts_once_and_those_of_several_processes_each() {
    let found = log_summary(include_str!(
        "../../testdata/findings/copied-lines/two-loggers.log"
    ));
    assert_eq!(rows(&found), [(16384, 2112, 7168, 1)]);
    assert_eq!((found.hits_and_misses(), found.malformed), ((0, 1), 0));
    assert_eq!(found.fused_moe.len(), 1);
    // Two ranks of one server, their lines in any order, and a log with one logger only.
    let line = |m: u32| {
        format!(
            "shape is M:{m}, N:512, K:7168, not found tuned config in /x/a8w8_blockscale_tuned_gemm.csv, will use default config!\n"
        )
    };
    let both = format!(
        "[aiter] {0}[aiter] {0}[t TP0] {0}[t TP1] {0}[aiter] {1}",
        line(1),
        line(2)
    );
    let found = log_summary(&both);
    assert_eq!(rows(&found), [(1, 512, 7168, 2), (2, 512, 7168, 1)]);
    let one = format!("[t TP0] {0}[t TP1] {0}", line(1));
    assert_eq!(rows(&log_summary(&one)), [(1, 512, 7168, 2)]);
    // Two logs, each of another logger, are two servers.
    let mut two = LogSummary::default();
    for log in [
        format!("[aiter] {}", line(1)),
        format!("[t TP0] {}", line(1)),
    ] {
        scan(log.as_bytes(), "test", Lines::Count, &mut two).unwrap();
    }
    assert_eq!(
        (rows(&two), two.hits_and_misses()),
        (vec![(1, 512, 7168, 2)], (0, 2))
    );
}

#[test]
fn look_up_lines_that_were_wrapped_or_cut_off_behind_their_shape_are_read() {
    for (log, shape) in [
        (
            include_str!("../../testdata/findings/copied-lines/wrapped.log"),
            (8192, 2624, 6144, 1),
        ),
        (
            include_str!("../../testdata/findings/copied-lines/no-file.log"),
            (1, 6144, 4096, 1),
        ),
        (
            include_str!("../../testdata/findings/copied-lines/cut.log"),
            (8192, 2624, 6144, 1),
        ),
    ] {
        let found = log_summary(log);
        assert_eq!((rows(&found), found.malformed), (vec![shape], 0), "{log}");
        assert_eq!(found.hits_and_misses(), (0, 1));
    }
    // Wrapped at every blank and at every column, with and without an indent, as a hit and as a miss.
    let tail = "\n[aiter] shape is M:7, N:512, K:7168, not found tuned config in /x/a8w8_blockscale_tuned_gemm.csv, will use default config!\n";
    for line in [
        "[aiter] shape is M:9, N:512, K:7168, not found tuned config in /x/a8w8_blockscale_tuned_gemm.csv, will use default config!",
        "[aiter] shape is M:9, N:512, K:7168, found padded_M: 16, N:512, K:7168 is tuned on cu_num = 304 in /x/a8w8_blockscale_tuned_gemm.csv , kernel name is k7!",
    ] {
        for at in "[aiter] shape is M:".len()..line.len() {
            let (first, second) = line.split_at(at);
            // A terminal breaks anywhere, an editor at a blank, which it may keep.
            let mut logs = vec![
                format!("{first}\n{second}{tail}"),
                format!("{first}\r\n{second}{tail}"),
            ];
            if let Some(second) = second.strip_prefix(' ') {
                logs.push(format!("{first}\n        {second}{tail}"));
            }
            for log in logs {
                let found = log_summary(&log);
                let expected = vec![(7, 512, 7168, 1), (9, 512, 7168, 1)];
                assert_eq!((rows(&found), found.malformed), (expected, 0), "{log:?}");
            }
        }
    }
    // Torn lines of two processes stay torn.
    let torn = format!("[aiter] shape is M:9, N:512, K:71{tail}");
    assert_eq!(rows(&log_summary(&torn)), [(7, 512, 7168, 1)]);
    assert_eq!(log_summary(&torn).malformed, 1);
}

#[test]
fn look_ups_of_operations_that_are_not_tuned_are_named() {
    let of = |text: &str| {
        let found = log_summary(text);
        assert_eq!(
            (found.malformed, found.shapes(None).len()),
            (0, 0),
            "{text}"
        );
        let others: Vec<_> = found.others.into_iter().collect();
        (others, found.fused_moe)
    };
    let batched = include_str!("../../testdata/findings/other-operations/batched.log");
    let expected = [
        ("a8w8_tuned_batched_gemm", 3_u64),
        ("bf16_tuned_batched_gemm", 1),
    ];
    let expected: Vec<_> = expected
        .map(|(family, count)| (family.to_owned(), count))
        .into();
    assert_eq!(of(batched).0, expected);
    // The same from two loggers, of which the server's names no hit.
    let server = batched.replace("[aiter]", "[t TP0]");
    assert_eq!(of(&format!("{batched}{server}")).0, expected);
    let bf16 = include_str!("../../testdata/findings/other-operations/bf16.log");
    assert_eq!(of(bf16).0, [("bf16_tuned_gemm".to_owned(), 2)]);
    let moe = include_str!("../../testdata/findings/other-operations/moe.log");
    let (others, keys) = of(&format!("{moe}{moe}"));
    assert_eq!((others, keys.len()), (vec![], 1));
    assert!(
        keys.first()
            .unwrap()
            .starts_with("(256, 16384, 6144, 256, 257, 9, 'ActivationType.Silu'")
    );
    assert!(
        keys.first()
            .unwrap()
            .ends_with("'QuantType.per_1x128', True, False)")
    );
}

#[test]
fn a_row_reused_above_its_m_is_a_hit_of_every_larger_m() {
    let log = include_str!("../../testdata/findings/after-5586/newest.log");
    let found = log_summary(log);
    assert_eq!(found.malformed, 0);
    let families: Vec<_> = found.others.iter().collect();
    assert_eq!(
        families,
        [
            (&"a8w8_blockscale_abpreshuffle_tuned_gemm".to_owned(), &1),
            (&"a8w8_blockscale_group32_tuned_gemm".to_owned(), &1),
            (
                &"a8w8_blockscale_mxscale_bpreshuffle_tuned_gemm".to_owned(),
                &2
            ),
        ]
    );
    let shapes = found.shapes(None);
    assert_eq!(shapes.len(), 1);
    assert_eq!(
        (shapes[0].shape.op, shapes[0].shape.m),
        (Op::Bpreshuffle, 65536)
    );
    assert_eq!(found.hits_and_misses(), (1, 0));
    let (_, served) = found.served().next().unwrap();
    let hit = served.hit.unwrap();
    assert_eq!(
        (hit.padded_m, hit.kernel_name.as_deref()),
        (32768, Some("flydsl_y"))
    );
    assert_eq!(
        hit.file,
        "/tmp/aiter_configs/a8w8_bpreshuffle_tuned_gemm.csv"
    );
    // aiter says it once a weight; a smaller M stays a miss.
    let miss = |m: u32| {
        format!(
            "[aiter] shape is M:{m}, N:6144, K:4096, q_dtype_w:torch.float8_e4m3fn, not found tuned config in \
             /x/a8w8_bpreshuffle_tuned_gemm.csv, will use default config!\n"
        )
    };
    let found = log_summary([log, &miss(70000), &miss(96)].concat());
    assert_eq!(found.hits_and_misses(), (2, 1));
}

#[test]
fn every_log_line_aiter_wrote_for_the_recorded_look_ups_is_classified_as_what_happened() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/testdata/lookup/aiter-lookup-cases-e2e.csv"
    );
    let mut reader = csv::Reader::from_path(path).unwrap();
    let header = reader.headers().unwrap().clone();
    let mut all = String::new();
    let (mut hits, mut misses) = (0, 0);
    for case in reader.records() {
        let case = case.unwrap();
        let cell = |name: &str| &case[header.iter().position(|column| column == name).unwrap()];
        let lines = cell("log_lines");
        let lines = format!("[aiter] {}\n", lines.replace(" || ", "\n[aiter] "));
        let said = log_summary(&lines);
        let (shape, served) = said.served().next().unwrap();
        let number = |name: &str| cell(name).parse::<u32>().unwrap();
        assert_eq!(shape.op, Op::Blockscale);
        assert_eq!(
            (shape.m, shape.n, shape.k),
            (number("M"), number("N"), number("K"))
        );
        let fixture = format!("aiter-lookup-e2e-fixture-{}.csv", cell("fixture"));
        if let Some(hit) = served.hit {
            hits += 1;
            assert_eq!(cell("result"), "hit");
            assert_eq!(hit.padded_m, number("padded_M"));
            assert_eq!(hit.cu_num, Some(number("cu_num")));
            assert_eq!(hit.kernel_name.as_deref(), Some(cell("kernelName")));
            assert_eq!(hit.file, fixture);
        } else {
            misses += 1;
            assert_eq!(cell("result"), "miss");
            assert_eq!(served.missed_in.as_deref(), Some(fixture.as_str()));
        }
        all.push_str(&lines);
    }
    let log_summary = log_summary(&all);
    assert_eq!(log_summary.hits_and_misses(), (hits, misses));
    assert_eq!(log_summary.malformed, 0);
    assert!(hits > 400 && misses > 400);
}

#[test]
fn dispatch_identities_and_old_capture_lists_are_collected() {
    let log = "[t TP1] [Fp8LinearMethod] block_quant w8a8_block_fp8_linear=aiter_w8a8_block_fp8_linear (sglang.srt.layers.quantization.fp8_utils)\n\
        [t] Capture cuda graph bs [1, 2, 4, 8]\n\
        [t] Decode batch [40], #running-req: 3, #token: 9, token usage: 0.00, cuda graph: False, x\n\
        [t] Using configuration from /c/N=512,K=7168,device_name=AMD_Instinct_MI300X,dtype=fp8_w8a8,block_shape=[128, 128].json for W8A8 Block FP8 kernel.\n";
    let log_summary = log_summary(log);
    let identities: Vec<&String> = log_summary.dispatch.keys().collect();
    assert_eq!(
        identities,
        ["aiter_w8a8_block_fp8_linear (sglang.srt.layers.quantization.fp8_utils)"]
    );
    assert_eq!(
        log_summary.captures.keys().next().unwrap().sizes,
        [1, 2, 4, 8]
    );
    assert_eq!(log_summary.decode_eager.get(&3), Some(&1));
    assert_eq!(log_summary.nk_only[&(512, 7168)].tuned_config, 1);
}

#[test]
fn record_files_count_calls_and_survive_a_half_line() {
    let log = r#"{"gemmtune": "hello", "pid": 7, "rank": 0, "world": 1, "version": 1}
{"op":"gemm_a8w8_blockscale","M":8,"N":512,"K":7168,"dtype":"torch.float8_e4m3fn","kind":"capture","bs":8,"count":2}
{"replay":8,"tokens":8,"count":50}
not json
{"replay":8,"tok"#;
    let log_summary = log_summary(log);
    assert_eq!(rows(&log_summary), [(8, 512, 7168, 100)]);
    let lines: Vec<_> = log_summary
        .malformed_shown
        .iter()
        .map(|shown| shown.line)
        .collect();
    assert_eq!(lines, [Some(4), Some(5)]);
    assert_eq!(log_summary.hellos.len(), 1);
}

#[test]
fn a_line_without_end_costs_no_memory_and_loses_no_record() {
    let mut log = vec![b'x'; 3 << 20];
    let row = dump("8,512,7168,torch.float8_e4m3fn");
    log[(2 << 20)..(2 << 20) + row.len()].copy_from_slice(row.as_bytes());
    // A dump tag whose fields never come.
    log[100..117].copy_from_slice(b"[GEMM_shape_dump]");
    // The character behind the dtype must not be a part of it.
    log[(2 << 20) + row.len()] = b' ';
    let log_summary = log_summary(&log);
    assert_eq!(rows(&log_summary), [(8, 512, 7168, 1)]);
    assert_eq!(log_summary.malformed, 1);
    assert_eq!(log_summary.bytes, 3 << 20);
}
