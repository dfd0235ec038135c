//! The look-up of fused-MoE rows, checked against what SGLang itself answered (`testdata/moe-configs/ORIGIN.md`).

use std::collections::{BTreeMap, BTreeSet};

use camino::Utf8Path;
use gemmtune::problem::fused_moe::MoeProblem;
use gemmtune::table::moe::folders::Tables;
use gemmtune::table::moe::name::TableName;
use gemmtune::table::moe::serve::{Chosen, Pair, Server};
use serde_json::Value;

fn shown(row: &Chosen) -> String {
    let names = [
        "BLOCK_SIZE_M",
        "BLOCK_SIZE_N",
        "BLOCK_SIZE_K",
        "GROUP_SIZE_M",
        "num_warps",
        "num_stages",
    ];
    let mut parts: Vec<String> = names
        .iter()
        .map(|name| {
            row.number(name)
                .map_or("-".to_owned(), |number| number.to_string())
        })
        .collect();
    let tma = row
        .config
        .get("USE_TMA")
        .and_then(serde_json::Value::as_bool);
    parts.push(
        tma.map_or("-", |tma| if tma { "1" } else { "0" })
            .to_owned(),
    );
    parts.join("/")
}

#[test]
fn every_row_that_sglang_took_is_the_row_foreseen() {
    let root = Utf8Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/moe-configs"));
    let tables = Tables::open(root).unwrap().unwrap();
    let mut reader = csv::Reader::from_path(root.join("cases.csv")).unwrap();
    let (mut cases, mut raised, mut overridden) = (0, 0, 0);
    let mut releases = BTreeSet::new();
    for case in reader.deserialize::<BTreeMap<String, String>>() {
        let case = case.unwrap();
        let problem = MoeProblem {
            experts: case["E"].parse().unwrap(),
            n: case["N"].parse().unwrap(),
            hidden: None,
            topk: None,
            dtype: case["dtype"].clone(),
            scales: case["scales"].parse().unwrap(),
            experts_of_all: None,
        };
        let server = Server {
            release: case["release"].parse().unwrap(),
            triton: &case["triton"],
        };
        let pair = Pair::find(
            &tables,
            &TableName::of(&problem, &case["device"], false),
            server,
        )
        .unwrap();
        let served = pair.serve(case["M"].parse().unwrap()).unwrap();
        let asserts = served
            .raises
            .as_ref()
            .is_some_and(|raises| raises.contains("AssertionError"));
        assert_eq!(
            asserts,
            case["raises"] == "AssertionError",
            "{case:?} {served:?}"
        );
        if !asserts {
            assert_eq!(shown(&served.up), case["up"], "{case:?}");
            assert_eq!(shown(&served.down), case["down"], "{case:?}");
        }
        cases += 1;
        raised += usize::from(asserts);
        overridden += usize::from(served.overridden.is_some());
        releases.insert(case["release"].clone());
    }
    // The file is whole, and has what is rare.
    assert_eq!((cases, releases.len()), (2184, 8));
    assert!(raised > 0 && overridden > 0, "{raised} {overridden}");
}

/// What `gemmtune lookup` of `testdata/moe-configs` prints: the document, and the exit code.
fn lookup(arguments: &[&str]) -> (Value, i32) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_gemmtune"))
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata"))
        .args(["--json", "lookup"])
        .args(arguments)
        .output()
        .unwrap();
    let document = serde_json::from_slice(&output.stdout);
    let document =
        document.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    (document, output.status.code().unwrap())
}

const H200: [&str; 4] = ["--table", "moe-configs", "--device", "NVIDIA H200"];

#[test]
fn an_answer_names_file_row_and_triton_of_both_projections() {
    let shape = ["--shape", "M=384,E=256,N=512", "--triton", "3.8.0"];
    let (document, code) = lookup(&[H200.as_slice(), &shape].concat());
    let row = &document["fused_moe"][0];
    assert_eq!(
        (code, &document["hits"], &row["result"]),
        (0, &1.into(), &"hit".into())
    );
    let up = row["up"]["table"].as_str().unwrap();
    assert!(up.ends_with("triton_3_6_0/E=256,N=512,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json"));
    assert_eq!(row["up"]["other_triton"], "3.6.0");
    // 384 is as near to 256 as to 512, and 256 stands first.
    assert_eq!(
        (&row["up"]["key"], &row["down"]["key"]),
        (&256.into(), &256.into())
    );
    assert!(
        row["down"]["table"]
            .as_str()
            .unwrap()
            .ends_with("_down.json")
    );
    insta::assert_snapshot!(row["runs"].as_str().unwrap(), @"the row of M = 256 of `triton_3_6_0/E=256,N=512,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json`, tuned for Triton 3.6.0 for up and the row of M = 256 of `triton_3_6_0/E=256,N=512,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128]_down.json`, tuned for Triton 3.6.0 for down");
}

#[test]
fn what_raises_and_what_computes_wrong_numbers_is_said() {
    let of = |device: &str, shape: &str, sglang: &str| {
        let arguments = [
            "--table",
            "moe-configs",
            "--triton",
            "3.6.0",
            "--device",
            device,
        ];
        let more = ["--shape", shape, "--sglang", sglang];
        lookup(&[arguments.as_slice(), &more].concat()).0["fused_moe"][0].clone()
    };
    let wrong = of("NVIDIA_H100_80GB_HBM3", "M=64,E=512,N=256", "0.5.16");
    insta::assert_snapshot!(wrong["wrong"].as_str().unwrap(), @"the up row's BLOCK_SIZE_K of 256 spans several scale blocks and one scale is used for all");
    let raises = of("NVIDIA_H200", "M=64,E=8,N=128", "0.5.12.post1");
    assert_eq!(raises["raises"], true);
    insta::assert_snapshot!(raises["runs"].as_str().unwrap(), @"an AssertionError: BLOCK_SIZE_M is 64 in the up row and 32 in the down row");
    let overridden = of("NVIDIA_H200", "M=64,E=8,N=128", "0.5.13.post1");
    assert_eq!(
        (&overridden["raises"], &overridden["overridden"]),
        (&false.into(), &32.into())
    );
    assert_eq!(overridden["down"]["config"]["BLOCK_SIZE_M"], 64);
    let tma = of("NVIDIA_H200", "M=64,E=72,N=2048", "0.5.16");
    assert_eq!(tma["raises"], true, "USE_TMA in an up row: {tma}");
    assert_eq!(
        of("NVIDIA_H200", "M=64,E=72,N=2048", "0.5.18")["raises"],
        false
    );
}

#[test]
fn a_miss_says_what_comes_near() {
    let reason = |more: &[&str]| {
        let arguments = ["--table", "moe-configs"];
        let row = lookup(&[arguments.as_slice(), more].concat()).0["fused_moe"][0].clone();
        assert_eq!(
            (&row["result"], &row["up"]["source"]),
            (&"miss".into(), &"default".into())
        );
        row["reason"].as_str().unwrap().to_owned()
    };
    let of = ["--triton", "3.6.0", "--device", "NVIDIA_H200", "--shape"];
    let reason_of = |shape: &str| reason(&[of.as_slice(), &[shape]].concat());
    let reasons = ["M=1,E=9,N=128", "M=1,E=256,N=256", "M=1,E=257,N=256"].map(reason_of);
    insta::assert_snapshot!(reasons.join("\n"), @"
    there is no table `E=9,N=128,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json`
    there is no table `E=256,N=256,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json`; there is `E=256,N=512,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json`: N is counted after the activation, half of the rows of `w13`
    there is no table `E=257,N=256,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json`; there is `E=257,N=256,device_name=NVIDIA_H20,dtype=fp8_w8a8,block_shape=[128, 128].json`
    ");
    let h20 = [
        "--device",
        "NVIDIA_B200",
        "--sglang",
        "0.5.11",
        "--triton",
        "3.6.0",
    ];
    let unread = reason(&[h20.as_slice(), &["--shape", "E=16,N=1024,dtype="]].concat());
    insta::assert_snapshot!(unread, @"the table of Triton 3.3.0 is not opened by SGLang 0.5.11 on Triton 3.6.0");
}

#[test]
fn a_table_of_fused_moe_needs_a_fused_moe_a_device_and_a_triton_version() {
    let refused = |arguments: &[&str], code: i32| {
        let (document, got) = lookup(arguments);
        assert_eq!(got, code, "{document}");
        document["error"]["message"].as_str().unwrap().to_owned()
    };
    let shape = ["--shape", "M=1,E=9,N=128"];
    let triton = ["--triton", "3.6.0", "--shape"];
    let with = |shape| [H200.as_slice(), &triton, &[shape]].concat();
    let dense = ["--table", "sglang-configs", "--device", "NVIDIA_H200"];
    let said = [
        refused(&[["--table", "moe-configs"].as_slice(), &shape].concat(), 2),
        refused(&[H200.as_slice(), &shape].concat(), 2),
        refused(&with("M=1,N=9,K=128"), 14),
        refused(&with("M=1,E=x,N=128"), 2),
        refused(&with("M=1,E=1,N=128,Q=1"), 2),
        refused(&[&dense[..], &["--shape", "E=1,N=128"]].concat(), 14),
    ];
    insta::assert_snapshot!(said.join("\n"), @"
    the folder has tables for 5 devices: --device is needed
    the tables lie in folders of several Triton versions: --triton is needed
    `--shape` holds no fused MoE, and `moe-configs` has tables of nothing else
    failed to use `--shape`: read `x` in column E of line 2 as an integer from 1 to 4294967295
    `M=1,E=1,N=128,Q=1` is no shape
    `--shape` holds fused MoE only, which this table does not serve
    ");
}

#[test]
fn without_m_a_problem_is_looked_up_at_six_of_them_and_dense_shapes_are_left_out() {
    let keep = tempfile::tempdir().unwrap();
    let shapes = keep.path().join("s.csv");
    let text = "op,M,N,K,dtype,records,E,topk,scales\n\
        fused_moe_triton,,512,,fp8_w8a8,1,256,,128x128\n\
        w8a8_block_fp8_matmul,1,1536,7168,torch.float8_e4m3fn,1\n";
    fs_err::write(&shapes, text).unwrap();
    let arguments = ["--triton", "3.6.0", "--shapes", shapes.to_str().unwrap()];
    let (document, code) = lookup(&[H200.as_slice(), &arguments].concat());
    assert_eq!(
        (code, document["fused_moe"].as_array().unwrap().len()),
        (0, 6)
    );
    assert_eq!(
        (&document["other_operations"], &document["rows"]),
        (&1.into(), &Value::Array(vec![]))
    );
    insta::assert_snapshot!(document["warnings"][0].as_str().unwrap(), @"1 shapes are of plain GEMMs, which have other tables, and are left out");
}
