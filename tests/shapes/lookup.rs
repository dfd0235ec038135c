//! `gemmtune lookup`: what a table holds for shapes, and why a row that looks right is none.

use crate::said::steady;
use crate::{Folder, dump, finding, gemmtune, json, stderr, stdout};

#[test]
fn lookup_and_plan_read_shapes_from_standard_input() {
    let folder = Folder::new();
    let table = folder.file(
        "t.csv",
        "gfx,cu_num,M,N,K,libtype,kernelId,splitK,us,kernelName\ngfx942,304,16,512,7168,ck,7,1,5.0,a\n",
    );
    let shapes = gemmtune(&["shapes", "-"], dump(17, 512, 7168).as_bytes()).stdout;
    let gpu = ["--gfx", "gfx942", "--cu", "304", "--shapes", "-", "--json"];
    let answers = gemmtune(
        &[&["lookup", "--table", &table], &gpu[..]].concat(),
        &shapes,
    );
    assert!(answers.status.success(), "{}", stderr(&answers));
    // The rate of no hit is 0.0, not -0.0.
    assert!(stdout(&answers).contains("\"hit_rate_by_records\": 0.0"));
    let plan = json(&gemmtune(&[&["plan"], &gpu[..]].concat(), &shapes));
    assert_eq!(plan["seen"], 1);
    let none = gemmtune(&[&["plan"], &gpu[..]].concat(), b"op,M,N,K,dtype,records\n");
    assert_eq!(none.status.code(), Some(14));
    assert_eq!(json(&none)["verdict"], "nothing");
    let twice = gemmtune(&["shapes", "-", "-"], &[]);
    assert_eq!(twice.status.code(), Some(2));
}

#[test]
fn lookup_writes_one_line_per_shape() {
    let folder = Folder::new();
    let table = folder.file(
        "mine.csv",
        "gfx,cu_num,M,N,K,libtype,kernelId,splitK,us,kernelName,tflops,bw,errRatio\n\
         gfx942,304,16,512,7168,ck,7,1,5.0,a8w8_x,1.0,1.0,0.0\n\
         gfx950,256,16,512,7168,ck,8,0,5.0,a8w8_y,1.0,1.0,0.0\n",
    );
    let shapes = folder.file("shapes.csv", "M,N,K\n3,512,7168\n17,512,7168\n");
    let arguments = [
        "lookup", "--table", &table, "--gfx", "gfx942", "--cu", "304", "--shapes", &shapes,
    ];
    let output = gemmtune(&arguments, b"");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(
        stdout(&output),
        "op,M,N,K,result,padded_M,libtype,kernelId,splitK,kernelName\n\
         gemm_a8w8_blockscale,3,512,7168,hit,16,ck,7,1,a8w8_x\n\
         gemm_a8w8_blockscale,17,512,7168,miss,,,,,\n"
    );
    let document = json(&gemmtune(&[&["--json"], &arguments[..]].concat(), b""));
    assert_eq!(
        (&document["hits"], &document["misses"]),
        (&1.into(), &1.into())
    );
    assert_eq!(document["rows"][0]["probe"], "fine");
    insta::assert_snapshot!(document["rows"][1]["runs"].as_str().unwrap(), @"the CK default kernel, id 7: one 16x128x256 tile for any M");
}

#[test]
fn lookup_refuses_a_table_with_conflicting_rows_as_the_runtime_would() {
    let folder = Folder::new();
    let table = folder.file(
        "t.csv",
        "cu_num,M,N,K,libtype,kernelId,splitK,us,kernelName\n304,16,512,7168,ck,7,0,5.0,a\n304,16,512,7168,ck,8,0,6.0,b\n",
    );
    let shapes = folder.file("shapes.csv", "M,N,K\n3,512,7168\n");
    let output = gemmtune(
        &[
            "lookup", "--table", &table, "--gfx", "gfx942", "--cu", "304", "--shapes", &shapes,
        ],
        b"",
    );
    assert_eq!(output.status.code(), Some(2));
    insta::assert_snapshot!(folder.said(&output), @"
    error: failed to use the table as the runtime does: look up in `[folder]/t.csv`: lines 2 and 3 have the key M=16 N=512 K=7168 cu_num=304 but differ elsewhere, and aiter raises `ValueError: DataFrame index must be unique` at the first GEMM (1 such keys)

    hint: `gemmtune lint [folder]/t.csv` lists every such line

    hint: `gemmtune merge [folder]/t.csv -o OUT.csv` keeps the best valid row per key
    ");
}

#[test]
fn lookup_takes_the_nearest_key_of_a_json_configuration() {
    let folder = Folder::new();
    folder.file(
        "N=512,K=7168,device_name=NVIDIA_H100_80GB_HBM3,dtype=fp8_w8a8,block_shape=[128, 128].json",
        r#"{"64": {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_K": 128}, "16": {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_K": 128}}"#,
    );
    let shapes = folder.file(
        "shapes.csv",
        "op,M,N,K\nw8a8_block_fp8_matmul,40,512,7168\nw8a8_block_fp8_matmul,1,512,7168\nw8a8_block_fp8_matmul,1,256,7168\n",
    );
    let output = gemmtune(
        &[
            "lookup",
            "--table",
            folder.path.as_str(),
            "--shapes",
            &shapes,
        ],
        b"",
    );
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(
        stdout(&output),
        "op,M,N,K,result,padded_M,libtype,kernelId,splitK,kernelName\n\
         w8a8_block_fp8_matmul,1,256,7168,miss,,,,,\n\
         w8a8_block_fp8_matmul,1,512,7168,hit,16,triton,,,BLOCK_SIZE_M=16 BLOCK_SIZE_K=128\n\
         w8a8_block_fp8_matmul,40,512,7168,hit,64,triton,,,BLOCK_SIZE_M=64 BLOCK_SIZE_K=128\n"
    );
}

#[test]
fn lookup_in_a_folder_without_tables_fails() {
    let folder = Folder::new();
    let shapes = folder.file("shapes.csv", "op,M,N,K\nw8a8_block_fp8_matmul,1,512,7168\n");
    let output = gemmtune(
        &[
            "lookup",
            "--table",
            folder.path.as_str(),
            "--shapes",
            &shapes,
        ],
        b"",
    );
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stdout(&output), "");
    insta::assert_snapshot!(folder.said(&output), @"
    error: `[folder]` holds no block-FP8 configuration of SGLang's

    hint: aiter's tables are files: give one with `--table FILE.csv`

    hint: SGLang's are named `N=…,K=…,device_name=…,dtype=fp8_w8a8,block_shape=[128, 128].json`
    ");
}

/// The document of a look-up on a GPU, with `more` arguments.
fn looked_up(table: &str, shapes: &str, gpu: [&str; 2], more: &[&str]) -> serde_json::Value {
    let mut arguments = vec!["lookup", "--table", table, "--shapes", shapes];
    arguments.extend(["--gfx", gpu[0], "--cu", gpu[1], "--explain", "--json"]);
    arguments.extend(more);
    json(&gemmtune(&arguments, b""))
}

#[test]
fn a_miss_is_explained_by_what_the_table_has() {
    let table = finding("no-reason/a8w8_blockscale_bpreshuffle_tuned_gemm.csv");
    let shapes = finding("no-reason/shapes.csv");
    let reason = |gpu: [&str; 2]| {
        let document = looked_up(&table, &shapes, gpu, &[]);
        document["rows"][0]["reason"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        reason(["gfx942", "304"]),
        "the rows of this (N, K) are for gfx942 with 80 compute units only"
    );
    assert_eq!(
        reason(["gfx942", "80"]),
        "no row of this (N, K) has M=8192: a gap between the rows of M=7680 and M=15360"
    );
    let output = gemmtune(
        &[
            "lookup",
            "--table",
            &table,
            "--shapes",
            &shapes,
            "--gfx",
            "gfx942",
            "--cu",
            "304",
            "--explain",
        ],
        b"",
    );
    insta::assert_snapshot!(steady(&stderr(&output)), @"
    gemm_a8w8_blockscale_bpreshuffle M=8192 N=1536 K=4096: miss (the rows of this (N, K) are for gfx942 with 80 compute units only), runs the CK default kernel: a 64x64x128 tile with 256 threads for any M
    0 of 1 shapes hit (0.0 % by records)
    ");
}

#[test]
fn what_depends_on_the_aiter_at_hand_is_asked_and_not_said_as_a_fact() {
    let table = finding("after-5586/a8w8_blockscale_tuned_gemm_triton.csv");
    let shapes = finding("after-5586/shapes.csv");
    let at = |more: &[&str]| looked_up(&table, &shapes, ["gfx950", "256"], more);
    let open = at(&[]);
    assert!(open.get("revision").is_none());
    assert_eq!(
        open["revisions"],
        serde_json::json!(["e4048607a5", "aiter#5586"])
    );
    insta::assert_snapshot!(open["warnings"][0].as_str().unwrap(), @"which aiter runs this? 2 of the answers depend on it: say --revision H (up to e4048607a5, August 2026) or --revision N (main after aiter#5586, September 2026)");
    let runs = |document: &serde_json::Value, row: usize| {
        document["rows"][row]["runs"].as_str().unwrap().to_owned()
    };
    insta::assert_snapshot!([runs(&open, 0), runs(&open, 1)].join("\n"), @"
    at e4048607a5 an AssertionError: unsupported libtype; at aiter#5586 aiter's Triton kernel, configured by its own tables
    at e4048607a5 the CK default kernel, id 7: one 16x128x256 tile for any M; at aiter#5586 aiter's Triton kernel: without a row it runs from M = 2048 on gfx942 and M = 384 on gfx950
    ");
    let newest = at(&["--revision", "N"]);
    assert_eq!(newest["revision"], "aiter#5586");
    assert_eq!(newest["rows"][0]["raises"], false);
    insta::assert_snapshot!(runs(&newest, 1), @"aiter's Triton kernel: without a row it runs from M = 2048 on gfx942 and M = 384 on gfx950");
    assert_eq!(
        newest["rows"][1]["reason"],
        "no row has N=34816, with whatever K"
    );
    let august = at(&["--revision", "e4048607"]);
    assert_eq!(august["rows"][0]["raises"], true);
    insta::assert_snapshot!(runs(&august, 1), @"the CK default kernel, id 7: one 16x128x256 tile for any M");
}

#[test]
fn a_file_that_the_runtime_never_opens_is_no_hit() {
    let output = gemmtune(
        &[
            "lookup",
            "--table",
            &finding("unread-json/configs"),
            "--device",
            "NVIDIA_L40S",
            "--shapes",
            &finding("unread-json/shapes.csv"),
            "--explain",
            "--json",
        ],
        b"",
    );
    let document = json(&output);
    assert_eq!(
        (&document["hits"], &document["misses"]),
        (&0.into(), &2.into())
    );
    let said = [&document["warnings"][0], &document["rows"][0]["reason"]];
    let said = said.map(|text| text.as_str().unwrap()).join("\n");
    insta::assert_snapshot!(steady(&said), @"
    SGLang never opens `[project]/testdata/findings/unread-json/configs/N=17408,K=5120,device_name=NVIDIA_L40S,dtype=fp8_w8a8,block_shape=[128,128].json`: it looks for `N=17408,K=5120,device_name=NVIDIA_L40S,dtype=fp8_w8a8,block_shape=[128, 128].json`; vLLM reads this spelling
    `N=17408,K=5120,device_name=NVIDIA_L40S,dtype=fp8_w8a8,block_shape=[128,128].json` is not how SGLang spells the name
    ");
}
