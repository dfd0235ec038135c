//! aiter's look-up, checked against what aiter itself answered (`testdata/lookup/ORIGIN.md`).

use std::collections::BTreeMap;

use gemmtune::problem::{Op, Shape};
use gemmtune::table::aiter::Table;
use gemmtune::table::lookup::{self, Resolution, Resolver, Rules};
use gemmtune::table::revision::Revision;

type Case = BTreeMap<String, String>;

fn cases(name: &str) -> Vec<Case> {
    let path = format!("{}/testdata/lookup/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut reader = csv::Reader::from_path(path).unwrap();
    let cases: Vec<Case> = reader.deserialize().map(Result::unwrap).collect();
    assert!(!cases.is_empty());
    cases
}

fn number<T: std::str::FromStr<Err: std::fmt::Debug>>(case: &Case, column: &str) -> T {
    case[column].parse().unwrap()
}

fn table(name: &str) -> Table {
    let path = format!("{}/testdata/lookup/{name}", env!("CARGO_MANIFEST_DIR"));
    Table::read(name, &fs_err::read(path).unwrap(), Some(Op::Blockscale)).unwrap()
}

#[test]
fn padded_m_is_what_get_padded_m_gives_at_every_revision() {
    let cases = cases("aiter-padded-m.csv");
    for case in &cases {
        let (gl, m) = (number(case, "gl"), number(case, "M"));
        let (n, k) = (number(case, "N"), number(case, "K"));
        assert_eq!(
            lookup::padded_m(gl, m, n, k),
            number::<u32>(case, "padded_M"),
            "{case:?}"
        );
    }
    assert_eq!(cases.len(), 3384);
}

#[test]
fn the_a8w8_module_rounds_m_as_compiled() {
    for case in cases("aiter-lookup-cases-a8w8-cxx.csv") {
        assert_eq!(case["gl"], "cxx_gemm_a8w8");
        assert_eq!(
            lookup::padded_m_of_a8w8_module(number(&case, "M")),
            number::<u32>(&case, "padded_M"),
            "{case:?}"
        );
    }
}

#[test]
fn every_recorded_look_up_resolves_to_the_same_row() {
    let tables = BTreeMap::from([
        ("gfx", table("aiter-lookup-e2e-fixture-gfx.csv")),
        ("legacy", table("aiter-lookup-e2e-fixture-legacy.csv")),
    ]);
    let mut hits = 0;
    for case in cases("aiter-lookup-cases-e2e.csv") {
        let revision: Revision = case["revision"].parse().unwrap();
        let rules = Rules::new(Op::Blockscale, revision);
        let table = &tables[case["fixture"].as_str()];
        let resolver = Resolver::new(table, rules, &case["gfx"], number(&case, "cu_num")).unwrap();
        assert_eq!(
            resolver.falls_back_to_cu_num(),
            revision == Revision::H && case["fixture"] == "legacy"
        );
        let shape = Shape {
            op: Op::Blockscale,
            m: number(&case, "M"),
            n: number(&case, "N"),
            k: number(&case, "K"),
            dtype: String::new(),
        };
        match resolver.find(&shape) {
            Resolution::Miss => assert_eq!(case["result"], "miss", "{case:?}"),
            Resolution::Hit { row, padded_m, .. } => {
                hits += 1;
                assert_eq!(case["result"], "hit", "{case:?}");
                assert_eq!(case["padded_M"], padded_m.to_string(), "{case:?}");
                assert_eq!(row.libtype.as_deref(), Some(case["libtype"].as_str()));
                assert_eq!(row.kernel_id, Some(number(&case, "kernelId")));
                assert_eq!(row.split_k, Some(number(&case, "splitK")));
                assert_eq!(
                    row.kernel_name.as_deref(),
                    Some(case["kernelName"].as_str())
                );
            }
        }
    }
    assert!(hits > 400, "{hits} hits");
}

#[test]
fn every_other_operation_resolves_as_its_own_function_does() {
    let mut hits = 0;
    let cases = cases("aiter-ops-cases.csv");
    for case in &cases {
        let op: Op = case["op"].parse().unwrap();
        let name = format!("aiter-ops-{op}-{}.csv", case["fixture"]);
        let path = format!("{}/testdata/lookup/{name}", env!("CARGO_MANIFEST_DIR"));
        let table = Table::read(&name, &fs_err::read(path).unwrap(), Some(op)).unwrap();
        let rules = Rules::new(op, case["revision"].parse().unwrap());
        let resolver = Resolver::new(&table, rules, &case["gfx"], number(case, "cu_num")).unwrap();
        let found = resolver.find(&Shape {
            op,
            m: number(case, "M"),
            n: number(case, "N"),
            k: number(case, "K"),
            dtype: case["dtype"].clone(),
        });
        let cells = match found {
            Resolution::Miss => [
                "miss".to_owned(),
                String::new(),
                String::new(),
                String::new(),
            ],
            Resolution::Hit { row, padded_m, .. } => {
                hits += 1;
                let kernel = row.kernel_name.as_deref().unwrap_or("");
                let library = row.libtype.as_deref().unwrap_or("");
                [
                    "hit".to_owned(),
                    padded_m.to_string(),
                    library.to_owned(),
                    kernel.to_owned(),
                ]
            }
        };
        let columns = ["result", "padded_M", "libtype", "kernelName"];
        assert_eq!(
            cells,
            columns.map(|column| case[column].clone()),
            "{case:?}"
        );
    }
    assert!(
        hits > 300 && hits < cases.len(),
        "{hits} of {}",
        cases.len()
    );
}

#[test]
fn a_gfx_table_at_a_revision_that_ignores_gfx_raises_as_pandas_does() {
    let table = table("aiter-lookup-e2e-fixture-gfx.csv");
    let rules = Rules::new(Op::Blockscale, Revision::P);
    // gfx950 and gfx1250 rows share cu_num 256.
    let error = Resolver::new(&table, rules, "gfx942", 304).unwrap_err();
    insta::assert_snapshot!(error, @"look up in `aiter-lookup-e2e-fixture-gfx.csv`: lines 62 and 110 have the key M=1 N=1536 K=7168 cu_num=256 but differ elsewhere, and aiter raises `ValueError: DataFrame index must be unique` at the first GEMM (48 such keys)");
}

#[test]
fn a_file_for_other_scale_blocks_is_said_to_miss_for_the_common_ones() {
    let folder = tempfile::tempdir().unwrap();
    let warnings = |n: u32, k: u32| {
        let shapes = folder.path().join("s.csv");
        fs_err::write(&shapes, format!("M,N,K\n8,{n},{k}\n")).unwrap();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_gemmtune"))
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata"))
            .args([
                "--json",
                "lookup",
                "--table",
                "sglang-configs",
                "--device",
                "NVIDIA_H200",
            ])
            .arg("--shapes")
            .arg(&shapes)
            .output()
            .unwrap();
        let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        document["warnings"].clone()
    };
    insta::assert_snapshot!(warnings(1152, 5120)[0].as_str().unwrap(), @"`N=1152,K=5120,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[32, 32].json` is for other scale blocks than 128 by 128, for which there is no file: a model with those misses");
    assert_eq!(warnings(1536, 7168), serde_json::json!([]));
}

#[test]
fn the_files_of_aiters_triton_gemm_are_looked_up_by_aiters_own_rules() {
    let folder = tempfile::tempdir().unwrap();
    let shapes = folder.path().join("shapes.csv");
    fs_err::write(
        &shapes,
        "op,M,N,K,dtype,records\n\
         gemm_a8w8_blockscale,3,2112,7168,,5\n\
         gemm_a8w8_blockscale,100,2112,7168,,1\n\
         gemm_a8w8_blockscale,3,512,7168,,2\n\
         gemm_a8w8_bpreshuffle,3,512,7168,,2\n",
    )
    .unwrap();
    let table = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/testdata/lookup/aiter-triton/configs"
    );
    let look = |more: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_gemmtune"))
            .args(["lookup", "--json", "--table", table, "--shapes"])
            .arg(&shapes)
            .args(more)
            .output()
            .unwrap();
        (
            serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap_or_default(),
            output,
        )
    };
    let (_, undecided) = look(&[]);
    assert_eq!(undecided.status.code(), Some(2));
    insta::assert_snapshot!(String::from_utf8_lossy(&undecided.stderr), @"
    error: the folder has files for 2 architectures: --gfx and --cu are needed

    hint: the architectures are gfx942, gfx950
    ");

    let (found, _) = look(&["--gfx", "gfx942", "--cu", "304"]);
    let rows = found["rows"].as_array().unwrap();
    let order = [(3, 2112), (100, 2112), (3, 512)];
    let of = |index: usize, name: &str| {
        let (m, n) = order[index];
        let row = rows.iter().find(|row| (row["M"] == m) && (row["N"] == n));
        row.unwrap()[name].clone()
    };
    assert_eq!(rows.len(), 3, "{found}");
    assert_eq!(found["other_operations"], 1);
    assert_eq!(
        (of(0, "result"), of(1, "result")),
        ("hit".into(), "hit".into())
    );
    // Without a file of its own a weight runs with the architecture's.
    assert_eq!(of(2, "result"), "miss");
    let runs = [0, 1, 2].map(|index| of(index, "runs").as_str().unwrap().to_owned());
    insta::assert_snapshot!(runs.join("\n"), @"
    aiter's Triton kernel with `M_LEQ_4` of `gfx942-GEMM-A8W8_BLOCKSCALE-N=2112-K=7168.json`
    aiter's Triton kernel with `M_LEQ_128` of `gfx942-GEMM-A8W8_BLOCKSCALE-N=2112-K=7168.json`
    aiter's Triton kernel with `any` of `gfx942-GEMM-A8W8_BLOCKSCALE.json`
    ");
    assert_eq!(of(2, "config")["BLOCK_SIZE_M"], 128);

    let (found, _) = look(&["--gfx", "gfx950", "--cu", "256"]);
    let hits = found["rows"].as_array().unwrap().iter();
    let hits: Vec<&serde_json::Value> = hits.filter(|row| row["result"] == "hit").collect();
    assert_eq!((hits.len(), &hits[0]["N"]), (1, &512.into()), "{found}");
}
