use std::fmt::Write as _;

use super::*;
use crate::plan::document::Verdict;
use crate::plan::model::{Parallel, predict};
use crate::table::lookup::{Resolver, Rules};

const CK8: &str = "a8w8_blockscale_1x128x128_256x16x64x256_16x16_16x16_1x1_16x16x1_16x16x1_1x16x1x16_4_1x1_intrawave_v1";

fn seen(op: Op, m: u32, n: u32, k: u32, records: u64) -> CountedShape {
    CountedShape {
        shape: Shape {
            op,
            m,
            n,
            k,
            dtype: String::new(),
        },
        records,
    }
}

struct Case {
    op: Op,
    shapes: Vec<CountedShape>,
    tables: Vec<Table>,
    configs: Vec<(FileName, Config)>,
    files: Vec<(aiter_triton::FileName, aiter_triton::Configs)>,
    fold: Fold,
    revision: Revision,
    capture: Vec<u32>,
    chunk: Option<u32>,
    refine: bool,
    budget_s: Option<f64>,
}

impl Case {
    fn new(op: Op, shapes: Vec<CountedShape>) -> Self {
        Self {
            op,
            shapes,
            tables: Vec::new(),
            configs: Vec::new(),
            files: Vec::new(),
            fold: Fold::Fine,
            revision: Revision::H,
            capture: Vec::new(),
            chunk: None,
            refine: false,
            budget_s: None,
        }
    }

    fn with_model(&self, model: Option<&Prediction>) -> Result<Plan, PlanError> {
        make(&PlanInput {
            op: self.op,
            shapes: &self.shapes,
            tables: &self.tables,
            configs: &self.configs,
            files: &self.files,
            model,
            capture: &self.capture,
            chunk: self.chunk,
            revision: self.revision,
            gfx: "gfx942",
            cu_num: 304,
            device: &Device::of_key("gfx942", 304).unwrap(),
            fold: self.fold,
            refine: self.refine,
            cost: &Cost::of(self.op, "gfx942"),
            budget_s: self.budget_s,
        })
    }

    fn plan(&self) -> Plan {
        self.with_model(None).unwrap()
    }
}

fn table(rows: &[(u32, &str)]) -> Table {
    let mut text =
        String::from("gfx,cu_num,M,N,K,libtype,kernelId,splitK,us,kernelName,tflops,bw,errRatio\n");
    for (m, us) in rows {
        let _ = writeln!(
            text,
            "gfx942,304,{m},512,7168,ck,8,0,{us},{CK8},1.0,1.0,0.0"
        );
    }
    Table::read("shipped.csv", text.as_bytes(), None).unwrap()
}

/// 6,000 distinct prefill shapes of four weights, M from 1 to 16384, unordered.
fn prefill_log() -> Vec<CountedShape> {
    let mut state = 12345u64;
    let mut shapes = BTreeMap::new();
    while shapes.len() < 6000 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let m = (state >> 33) as u32 % 16384 + 1;
        let (n, k) = [(3584, 5120), (5120, 2560), (17408, 5120), (5120, 8704)][shapes.len() % 4];
        *shapes.entry((m, n, k)).or_insert(0u64) += 1;
    }
    shapes
        .into_iter()
        .map(|((m, n, k), records)| seen(Op::Blockscale, m, n, k, records))
        .collect()
}

#[test]
fn a_prefill_log_folds_seven_to_one_and_every_shape_still_finds_its_row() {
    let case = Case::new(Op::Blockscale, prefill_log());
    let plan = case.plan();
    assert_eq!(plan.seen, 6000);
    assert!(plan.fold_ratio >= 7.0, "{}", plan.fold_ratio);
    assert!(plan.tune.len() * 7 <= 6000, "{} rows", plan.tune.len());
    assert_eq!(
        plan.folded.len()
            + plan
                .tune
                .iter()
                .filter(|row| row.serves.contains(&row.shape.m))
                .count(),
        6000
    );
    // Look up once more, in a table that was written and read back.
    let mut tuned = Table::new("tuned.csv", Op::Blockscale, Revision::H);
    tuned.rows = plan
        .tune
        .iter()
        .map(|row| Row {
            gfx: Some("gfx942".into()),
            cu_num: Some(304),
            m: row.shape.m,
            n: row.shape.n,
            k: row.shape.k,
            ..Row::default()
        })
        .collect();
    let tuned = Table::read("tuned.csv", tuned.to_csv().as_bytes(), None).unwrap();
    let resolver = Resolver::new(
        &tuned,
        Rules::new(Op::Blockscale, Revision::H),
        "gfx942",
        304,
    )
    .unwrap();
    for row in &plan.tune {
        for m in &row.serves {
            let found = resolver.find(&Shape {
                m: *m,
                ..row.shape.shape()
            });
            assert_eq!(found.row().map(|row| row.m), Some(row.shape.m));
        }
    }
    let hits = plan.hit_rate;
    assert!(hits.before.calls == 0.0 && (hits.after.calls - 1.0).abs() < 1e-12);
    let shares: f64 = plan.tune.iter().map(|row| row.share).sum();
    assert!((shares - 1.0).abs() < 1e-9);
    assert!(
        plan.tune
            .windows(2)
            .all(|pair| pair[0].share >= pair[1].share)
    );
}

#[test]
fn shapes_that_a_good_row_serves_are_dropped_and_those_a_bad_one_hides_are_not() {
    let shapes = [1, 50, 60, 100, 120].map(|m| seen(Op::Blockscale, m, 512, 7168, 10));
    let mut case = Case::new(Op::Blockscale, shapes.to_vec());
    // 64 serves 50 and 60; the row of 112 is a failed measurement; 1 has its own row.
    case.tables = vec![table(&[(1, "6.0"), (64, "7.0"), (112, "-1"), (200, "9.0")])];
    let plan = case.plan();
    let served: Vec<_> = plan
        .served
        .iter()
        .map(|served| (served.shape.m, served.by, served.line))
        .collect();
    assert_eq!(served, [(1, 1, 2), (50, 64, 3), (60, 64, 3)]);
    assert_eq!(plan.served[0].table, "shipped.csv");
    let mut tune: Vec<_> = plan
        .tune
        .iter()
        .map(|row| (row.shape.m, row.serves.clone()))
        .collect();
    tune.sort();
    assert_eq!(tune, [(112, vec![100]), (128, vec![120])]);
    assert!((plan.hit_rate.before.calls - 0.6).abs() < 1e-12);
    assert!(
        plan.notes
            .iter()
            .any(|note| note.starts_with("1 rows of the tables are no valid"))
    );
}

#[test]
fn a_coarse_row_will_do_unless_refining_is_asked_for() {
    let mut case = Case::new(Op::Blockscale, vec![seen(Op::Blockscale, 70, 512, 7168, 1)]);
    case.tables = vec![table(&[(128, "8.0")])];
    let plan = case.plan();
    assert_eq!((plan.verdict, plan.tune.len()), (Verdict::Nothing, 0));
    assert_eq!(plan.reason, "every shape is served by a good row already");
    case.refine = true;
    let plan = case.plan();
    assert_eq!((plan.verdict, plan.tune[0].shape.m), (Verdict::Tune, 80));
}

#[test]
fn calls_times_time_decides_the_order() {
    let shapes = vec![
        seen(Op::Blockscale, 16, 512, 7168, 100_000),
        seen(Op::Blockscale, 8192, 7168, 2048, 10),
        seen(Op::Blockscale, 32, 512, 7168, 1),
    ];
    let plan = Case::new(Op::Blockscale, shapes).plan();
    assert_eq!(
        plan.tune.iter().map(|row| row.shape.m).collect::<Vec<_>>(),
        [16, 8192, 32]
    );
    assert!(plan.gpu_seconds > 0.0);
    let mut poor = Case::new(Op::Blockscale, vec![seen(Op::Blockscale, 16, 512, 7168, 1)]);
    poor.budget_s = Some(0.01);
    let plan = poor.plan();
    assert_eq!((plan.verdict, plan.left_out.len()), (Verdict::Nothing, 1));
    insta::assert_snapshot!(plan.reason, @"the budget of 0 s is less than the first row takes");
    assert!(plan.hit_rate.after.calls < 1e-12);
}

#[test]
fn graphs_and_chunks_add_the_m_a_log_has_not_seen() {
    let mut case = Case::new(Op::Blockscale, vec![seen(Op::Blockscale, 8, 7168, 2048, 1)]);
    case.capture = vec![1, 8, 24, 48];
    case.chunk = Some(8192);
    let plan = case.plan();
    let because = |m: u32| {
        plan.tune
            .iter()
            .find(|row| row.shape.m == m)
            .map(|row| row.because)
    };
    assert_eq!(because(16), Some(PlanReason::Seen));
    assert_eq!(because(48), Some(PlanReason::Graph));
    assert_eq!(because(8192), Some(PlanReason::Prefill));
    assert!(plan.added > 3 && plan.seen == 1);
    // Every prefill of up to the chunk size now finds a row.
    let rows: BTreeSet<u32> = plan.tune.iter().map(|row| row.shape.m).collect();
    for m in 17..=8192 {
        let probes = [0, 1].map(|gl| crate::table::lookup::padded_m(gl, m, 7168, 2048));
        assert!(
            rows.contains(&m) || probes.iter().any(|m| rows.contains(m)),
            "M={m}"
        );
    }
}

#[test]
fn keys_of_a_nearest_m_table_are_those_its_look_up_returns() {
    let op = Op::TritonBlockFp8;
    let shapes: Vec<_> = [1, 2, 33, 40, 47, 100, 5000]
        .map(|m| seen(op, m, 512, 7168, 5))
        .to_vec();
    let mut case = Case::new(op, shapes);
    // A truncated file: its smallest key serves every decode, and does not count as good.
    let file = FileName::block_fp8(512, 7168, "NVIDIA H200");
    let mut config = Config::default();
    for m in [2048, 4096, 5120] {
        config.set(m, vec![]);
    }
    case.configs = vec![(file, config)];
    let plan = case.plan();
    assert_eq!(
        plan.served
            .iter()
            .map(|served| (served.shape.m, served.by))
            .collect::<Vec<_>>(),
        [(5000, 5120)]
    );
    let keys: BTreeSet<u32> = plan
        .tune
        .iter()
        .map(|row| row.shape.m)
        .chain([2048, 4096, 5120])
        .collect();
    for row in &plan.tune {
        for m in &row.serves {
            let nearest = keys.iter().min_by_key(|key| key.abs_diff(*m)).unwrap();
            assert_eq!(nearest, &row.shape.m, "M={m}");
        }
    }
    let total: usize = plan.tune.iter().map(|row| row.serves.len()).sum();
    assert_eq!(total + plan.served.len(), 7);
    assert!((plan.hit_rate.after.calls - 1.0).abs() < 1e-12);
}

#[test]
fn a_model_alone_makes_a_plan_and_beside_a_log_explains_the_difference() {
    let bytes = include_bytes!("../../testdata/models/qwen3-14b.json");
    let model = predict(bytes, &Parallel::tp(2)).unwrap();
    let mut case = Case::new(Op::Blockscale, Vec::new());
    case.capture = vec![1, 16, 64];
    case.chunk = Some(4096);
    let plan = case.with_model(Some(&model)).unwrap();
    let weights: BTreeSet<_> = plan
        .tune
        .iter()
        .map(|row| (row.shape.n, row.shape.k))
        .collect();
    assert_eq!(
        weights,
        BTreeSet::from([(3584, 5120), (5120, 2560), (17408, 5120), (5120, 8704)])
    );
    assert!(plan.difference.is_empty() && plan.seen == 0);

    // A log of the same model with qkv and gate_up fused, and one layer that did not run.
    case.shapes = vec![
        seen(Op::Blockscale, 16, 3584 + 17408, 5120, 1),
        seen(Op::Blockscale, 16, 5120, 2560, 1),
        seen(Op::A8w8, 16, 5120, 2560, 1),
    ];
    let plan = case.with_model(Some(&model)).unwrap();
    insta::assert_snapshot!(plan.difference.join("\n"), @"
    qkv_proj (3584x5120) is predicted and was not seen: another kernel serves it, a release fuses it with another layer, or the log ends before it ran
    gate_up_proj (17408x5120) is predicted and was not seen: another kernel serves it, a release fuses it with another layer, or the log ends before it ran
    down_proj (5120x8704) is predicted and was not seen: another kernel serves it, a release fuses it with another layer, or the log ends before it ran
    20992x5120 was seen and is not predicted: it has the size of gate_up_proj and qkv_proj fused into one
    ");
    assert_eq!(plan.other_ops, 1);
    let weights: BTreeSet<_> = plan
        .tune
        .iter()
        .map(|row| (row.shape.n, row.shape.k))
        .collect();
    assert_eq!(
        weights,
        BTreeSet::from([(20992, 5120), (5120, 2560)]),
        "the dump is trusted over the formula"
    );
}

#[test]
fn a_plan_without_shapes_is_an_error_and_tables_of_other_operations_are_left_alone() {
    let case = Case::new(Op::A4w4, vec![seen(Op::Blockscale, 1, 2, 3, 1)]);
    assert!(matches!(
        case.with_model(None),
        Err(PlanError::NoShapes(Op::A4w4))
    ));
    let mut case = Case::new(
        Op::Bpreshuffle,
        vec![seen(Op::Bpreshuffle, 5, 512, 7168, 1)],
    );
    case.tables = vec![table(&[(16, "7.0")])];
    let plan = case.plan();
    assert_eq!(plan.tune[0].shape.dtype, "torch.float8_e4m3fnuz");
    assert_eq!(plan.notes[0], "1 tables of other operations are left alone");
}

/// A file of aiter's Triton GEMM for N = 512, K = 7168 on `gfx`.
fn triton_file(gfx: &str, keys: &[&str]) -> (aiter_triton::FileName, aiter_triton::Configs) {
    let name = format!("{gfx}-GEMM-A8W8_BLOCKSCALE-N=512-K=7168.json");
    let rows: serde_json::Map<String, serde_json::Value> = keys
        .iter()
        .map(|key| ((*key).to_owned(), serde_json::json!({})))
        .collect();
    let bytes = serde_json::to_vec(&rows).unwrap();
    (
        name.parse().unwrap(),
        aiter_triton::Configs::read(&bytes).unwrap(),
    )
}

fn buckets(ms: &[(u32, u64)]) -> Case {
    let shapes = ms
        .iter()
        .map(|&(m, records)| seen(Op::Blockscale, m, 512, 7168, records));
    Case {
        fold: Fold::Bucket,
        ..Case::new(Op::Blockscale, shapes.collect())
    }
}

fn rows_and_what_they_serve(plan: &Plan) -> Vec<(u32, Vec<u32>)> {
    let mut rows: Vec<(u32, Vec<u32>)> = plan
        .tune
        .iter()
        .map(|row| (row.shape.m, row.serves.clone()))
        .collect();
    rows.sort();
    rows
}

#[test]
fn a_row_of_aiters_triton_gemm_is_planned_for_each_bucket_at_its_most_called_m() {
    let case = buckets(&[(1, 1), (2, 9), (4, 1), (40, 3), (64, 3), (9000, 1)]);
    let plan = case.plan();
    assert_eq!(
        rows_and_what_they_serve(&plan),
        [
            (1, vec![1]),
            (2, vec![2, 4]),
            (64, vec![40, 64]),
            (9000, vec![9000])
        ]
    );
    assert_eq!(plan.fold, Fold::Bucket);
    let folded: Vec<(u32, u32)> = plan
        .folded
        .iter()
        .map(|one| (one.shape.m, one.into))
        .collect();
    assert_eq!(folded, [(4, 2), (40, 64)]);
    // Before v0.1.20 a bound of 1 is not looked up.
    let older = Case {
        revision: Revision::P,
        ..case
    };
    assert_eq!(
        rows_and_what_they_serve(&older.plan())[0],
        (2, vec![1, 2, 4])
    );
    let oldest = Case {
        revision: Revision::A,
        ..older
    };
    assert!(matches!(oldest.with_model(None), Err(PlanError::Names)));
}

#[test]
fn a_bucket_that_the_weights_own_file_serves_needs_no_row() {
    let case = Case {
        files: vec![
            triton_file("gfx942", &["M_LEQ_4", "M_LEQ_128"]),
            triton_file("gfx950", &["any"]),
        ],
        ..buckets(&[(4, 1), (64, 5), (100, 5), (300, 2)])
    };
    let plan = case.plan();
    assert_eq!(rows_and_what_they_serve(&plan), [(300, vec![300])]);
    assert_eq!((plan.served[1].shape.m, plan.served[1].by), (64, 128));
    assert_eq!(
        plan.served[0].table,
        "gfx942-GEMM-A8W8_BLOCKSCALE-N=512-K=7168.json"
    );
    // The row up to 128 was tuned for more than one bucket.
    let refined = Case {
        refine: true,
        ..case
    };
    assert_eq!(
        rows_and_what_they_serve(&refined.plan()),
        [(64, vec![64]), (300, vec![300])]
    );
}
