//! Damaged tables, configurations and model configs: whatever the bytes, an answer or an error.
//!
//! Cases are made by a seeded generator from real files, so that a failure names a number that makes it
//! again. The million of the extended run: `cargo nextest run --release -E 'binary(fuzz_tables)'
//! --run-ignored ignored-only`.

use std::panic::{AssertUnwindSafe, catch_unwind};

use gemmtune::plan::cost::Cost;
use gemmtune::plan::fold::Fold;
use gemmtune::plan::model::{Parallel, predict};
use gemmtune::plan::{PlanInput, make};
use gemmtune::problem::{Op, Shape};
use gemmtune::table::aiter::{Row, Table};
use gemmtune::table::family;
use gemmtune::table::lint::Report;
use gemmtune::table::lookup::{Resolver, Rules};
use gemmtune::table::merge::{Policy, merge};
use gemmtune::table::outcome::runs;
use gemmtune::table::reason::Reasons;
use gemmtune::table::revision::Revision;
use gemmtune::table::roofline::Device;
use gemmtune::table::sglang_json::{Config, FileName};
use gemmtune::table::shapes::{self, CountedShape};

const CASES: u64 = 2_000;
const MANY: u64 = 350_000;

const TABLES: [&str; 3] = [
    "gfx,cu_num,M,N,K,libtype,kernelId,splitK,us,kernelName,tflops,bw,errRatio\n\
     gfx942,304,1,3072,1536,ck,8,0,6.6154,a8w8_blockscale_1x128x128_256x16x64x256_16x16_16x16_1x1_16x16x1_16x16x1_1x16x1x16_4_1x1_intrawave_v1,1.43,714.43,0.0\n\
     gfx942,304,64,3072,1536,cktile,7,2,12.5,a8w8_blockscale_cktile_192x256x128,0.5,2.25,0.001\n\
     gfx942,304,128,3072,1536,ck,8,0,9.5,x,0.5,2.25,0.001\n",
    "cu_num,M,N,K,q_dtype_w,libtype,kernelId,splitK,us,kernelName,tflops,bw,errRatio\r\n\
     80,128,128,5120,torch.int8,asm,0,8,7.3189,_ZN5aiter41I8gemm,22.92,183.56,0.182\r\n\
     80,129,128,5120,torch.int8,ck,0,8,7.3189,\"a,b\",22.92,183.56,0.182",
    "M,N,K\n16, 1536, 7168\n16, 1536, 7168\n",
];

const TOKENS: [&str; 35] = [
    "triton",
    "w_scale_block",
    "scaletype",
    "_tuned_gemm",
    "a8w8_blockscale_",
    ",",
    "\n",
    "\r\n",
    "\"",
    "\\",
    "{",
    "}",
    "[",
    "]",
    ":",
    "-1",
    "0",
    "1e308",
    "-1e400",
    "nan",
    "inf",
    "99999999999999999999",
    "4294967296",
    "9223372036854775807",
    "gfx942",
    "null",
    "true",
    "M",
    "1.5",
    "\u{feff}",
    "\u{0}",
    "é",
    "model_dim",
    "quantization_config",
    "re:.*",
];

/// Numbers from a seed: SplitMix64.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

fn damaged(original: &[u8], seed: u64) -> Vec<u8> {
    let mut numbers = Numbers(seed);
    let mut bytes = original.to_vec();
    for _ in 0..=numbers.below(6) {
        let at = numbers.below(bytes.len() + 1);
        let end = (at + numbers.below(40)).min(bytes.len());
        match numbers.below(6) {
            0 if at < bytes.len() => bytes[at] = numbers.next() as u8,
            1 => drop(bytes.drain(at..end)),
            2 => {
                let piece = bytes[at..end].to_vec();
                let to = numbers.below(bytes.len() + 1);
                bytes.splice(to..to, piece);
            }
            3 => bytes.truncate(at),
            _ => {
                let token = TOKENS[numbers.below(TOKENS.len())];
                let end = if numbers.below(2) == 0 { at } else { end };
                bytes.splice(at..end, token.bytes());
            }
        }
    }
    bytes
}

fn every_case(originals: &[Vec<u8>], cases: u64, check: impl Fn(&[u8])) {
    for case in 0..cases {
        let original = &originals[(case % originals.len() as u64) as usize];
        let bytes = damaged(original, case);
        let answered = catch_unwind(AssertUnwindSafe(|| check(&bytes)));
        assert!(
            answered.is_ok(),
            "case {case}: {:?}",
            String::from_utf8_lossy(&bytes)
        );
    }
}

fn without_lines(rows: &[Row]) -> Vec<Row> {
    rows.iter()
        .map(|row| Row {
            line: 0,
            ..row.clone()
        })
        .collect()
}

fn check_table(bytes: &[u8]) {
    let mut report = Report::default();
    for name in [
        "a8w8_blockscale_tuned_gemm.csv",
        "a8w8_bpreshuffle_tuned_gemm.csv",
    ] {
        report.check_csv(name, bytes, None);
    }
    report.sort();
    assert!(report.rows <= bytes.len() * 2);
    let _ = shapes::read(bytes, Some(Op::Blockscale));
    let name = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]);
    let _ = (family::of_file_name(&name), shapes::said_op(&name, bytes));
    let Ok(table) = Table::read("t.csv", bytes, Some(Op::Blockscale)) else {
        return;
    };
    // What was read is written and read again as the same.
    let again = Table::read("t.csv", table.to_csv().as_bytes(), Some(Op::Blockscale)).unwrap();
    assert_eq!(without_lines(&again.rows), without_lines(&table.rows));
    let shape = Shape {
        op: Op::Blockscale,
        m: 60,
        n: 3072,
        k: 1536,
        dtype: String::new(),
    };
    for revision in Revision::ALL {
        let rules = Rules::new(Op::Blockscale, revision);
        if let Ok(resolver) = Resolver::new(&table, rules, "gfx942", 304) {
            let found = resolver.find(&shape);
            runs(&table, revision, "gfx942", shape.m, found);
            if found.row().is_none() {
                assert!(
                    !Reasons::new(&table, rules, "gfx942", 304)
                        .why(&shape)
                        .is_empty()
                );
            }
        }
    }
    if let Ok(merged) = merge(&[table.clone(), again], &Policy::default()) {
        assert!(merged.table.rows.iter().all(|row| row.is_valid(0.05)));
        let rows = merged.provenance_csv();
        assert!(rows.len() >= merged.provenance.len());
    }
    let shapes: Vec<CountedShape> = table
        .rows
        .iter()
        .filter(|row| row.m > 0 && row.n > 0 && row.k > 0)
        .map(|row| CountedShape {
            shape: row.shape(Op::Blockscale),
            records: 1,
        })
        .collect();
    let plan = make(&PlanInput {
        op: Op::Blockscale,
        shapes: &shapes,
        tables: std::slice::from_ref(&table),
        configs: &[],
        files: &[],
        model: None,
        capture: &[1, 8],
        chunk: Some(100),
        revision: Revision::H,
        gfx: "gfx942",
        cu_num: 304,
        device: &Device::of_key("gfx942", 304).unwrap(),
        fold: Fold::Fine,
        refine: false,
        cost: &Cost::reference(),
        budget_s: None,
    });
    if let Ok(plan) = plan {
        assert!((0.0..=1.0 + 1e-9).contains(&plan.hit_rate.after.calls));
        assert!(
            (plan.hit_rate.after.calls - 1.0).abs() < 1e-9,
            "everything planned hits"
        );
    }
}

fn check_config(bytes: &[u8]) {
    let name = "N=512,K=7168,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json";
    let mut report = Report::default();
    report.check_json(name, bytes);
    let text = String::from_utf8_lossy(bytes);
    report.check_json(&text, b"{}");
    if let Ok(name) = text.parse::<FileName>() {
        assert_eq!(name.to_string().parse(), Ok(name));
    }
    let Ok(config) = Config::read(name, bytes) else {
        return;
    };
    let again = Config::read(name, config.to_json().as_bytes()).unwrap();
    assert_eq!(again.by_m().is_some(), config.by_m().is_some());
    assert_eq!(again.entries.len(), config.entries.len());
}

fn check_model(bytes: &[u8]) {
    for parallel in [
        Parallel::tp(1),
        Parallel::tp(8),
        Parallel {
            dp_attention: 2,
            moe_dense_tp: Some(1),
            ..Parallel::tp(6)
        },
    ] {
        if let Ok(prediction) = predict(bytes, &parallel) {
            assert!(prediction.layers.len() < 20);
            prediction.weights();
        }
    }
}

fn tables() -> Vec<Vec<u8>> {
    TABLES.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn read_all(folder: &str, extension: &str) -> Vec<Vec<u8>> {
    let folder = format!("{}/testdata/{folder}", env!("CARGO_MANIFEST_DIR"));
    let mut paths: Vec<_> = fs_err::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|own| own == extension))
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| fs_err::read(path).unwrap())
        .collect()
}

fn configs() -> Vec<Vec<u8>> {
    // Two entries of each are enough to break, and short enough that most damage shows.
    let mut configs: Vec<Vec<u8>> = read_all("sglang-configs", "json")
        .iter()
        .map(|bytes| {
            let mut config = Config::read("c.json", bytes).unwrap();
            config.entries.truncate(2);
            config.to_json().into_bytes()
        })
        .collect();
    configs.push(b"{\"1\": {\"BLOCK_SIZE_M\": 16}, \"64\": {\"num_warps\": 4}}".to_vec());
    configs.push(
        b"N=512,K=7168,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json".to_vec(),
    );
    configs
}

#[test]
fn damaged_tables_are_read_judged_merged_and_planned_with_or_refused() {
    every_case(&tables(), CASES, check_table);
}

#[test]
fn damaged_configurations_are_judged_or_refused() {
    every_case(&configs(), CASES, check_config);
}

#[test]
fn damaged_model_configs_predict_something_or_say_why_not() {
    every_case(&read_all("models", "json"), CASES, check_model);
}

#[test]
#[ignore = "a million cases take minutes; run in release before a change to a reader lands"]
fn a_million_damaged_files() {
    every_case(&tables(), MANY, check_table);
    every_case(&configs(), MANY, check_config);
    every_case(&read_all("models", "json"), MANY, check_model);
}
