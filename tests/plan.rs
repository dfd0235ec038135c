//! `gemmtune plan` from the outside: documents, the untuned file, refusals.

use std::process::{Command, Output};

use serde_json::Value;

fn plan(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gemmtune"))
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata"))
        .arg("plan")
        .args(arguments)
        .output()
        .unwrap()
}

fn document(arguments: &[&str]) -> Value {
    let mut all = vec!["--json"];
    all.extend(arguments);
    let output = plan(&all);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn weights(document: &Value) -> Vec<(u64, u64)> {
    let rows = document["tune"].as_array().unwrap();
    let mut weights: Vec<_> = rows
        .iter()
        .map(|row| (row["N"].as_u64().unwrap(), row["K"].as_u64().unwrap()))
        .collect();
    weights.sort_unstable();
    weights.dedup();
    weights
}

#[test]
fn a_model_alone_gives_the_weights_of_its_table() {
    let document = document(&["--model", "models/qwen3-14b.json", "--tp", "2"]);
    assert_eq!(
        weights(&document),
        [(3584, 5120), (5120, 2560), (5120, 8704), (17408, 5120)]
    );
    assert_eq!(document["verdict"], "tune");
    assert_eq!(document["ops"], serde_json::json!(["gemm_a8w8_blockscale"]));
    let largest = document["tune"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["M"].as_u64().unwrap())
        .max();
    assert_eq!(
        largest,
        Some(16384),
        "the default chunk of a 192 GiB device"
    );
    assert!(document["gpu_seconds"].as_f64().unwrap() > 0.0);
}

#[test]
fn shapes_with_shipped_rows_are_served_and_the_rest_is_written_for_the_tuner() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs_err::write(
        path("s.csv"),
        "op,M,N,K,dtype,records\n\
         gemm_a8w8_blockscale,64,1280,4096,,9\n\
         gemm_a8w8_blockscale,64,1280,5120,,1\n\
         gemm_a8w8_blockscale,60,1280,5120,,1\n",
    )
    .unwrap();
    let table = "aiter-tables/a8w8_blockscale_tuned_gemm_qwen3_235b.csv";
    let arguments = [
        "--shapes",
        &path("s.csv"),
        "--table",
        table,
        "-o",
        &path("u.csv"),
    ];
    let document = document(&arguments);
    assert_eq!(
        (&document["gfx"], &document["cu_num"]),
        (&"gfx950".into(), &256.into())
    );
    assert_eq!(document["served"][0]["by"], 64);
    assert_eq!(document["folded"][0]["M"], 60);
    assert!((document["hit_rate"]["before"]["calls"].as_f64().unwrap() - 9.0 / 11.0).abs() < 1e-9);
    assert!((document["hit_rate"]["after"]["calls"].as_f64().unwrap() - 1.0).abs() < 1e-9);
    assert_eq!(
        fs_err::read_to_string(path("u.csv")).unwrap(),
        "M,N,K\n64,1280,5120\n"
    );
}

#[test]
fn several_operations_are_planned_together() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.csv").to_str().unwrap().to_owned();
    fs_err::write(
        &path,
        "op,M,N,K,dtype,records\n\
         gemm_a8w8_blockscale,64,1280,4096,,9\n\
         gemm_a8w8_bpreshuffle,64,1280,5120,,1\n",
    )
    .unwrap();
    let document = document(&["--shapes", &path]);
    assert_eq!(document["ops"].as_array().unwrap().len(), 2);
    let shares: f64 = document["tune"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["share"].as_f64().unwrap())
        .sum();
    assert!((shares - 1.0).abs() < 1e-9);
    assert_eq!(document["other_ops"], 1);
    let refused = plan(&["--shapes", &path, "-o", "/dev/null/x.csv"]);
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn a_split_that_no_server_loads_and_files_that_cannot_be_used_are_refused() {
    let output = plan(&["--model", "models/qwen3-4b.json", "--tp", "8"]);
    assert_eq!(output.status.code(), Some(2));
    insta::assert_snapshot!(String::from_utf8(output.stderr).unwrap(), @"
    error: no server loads this model with --tp 8: gate_up_proj: a part of N = 1216 on a rank is no multiple of 128; down_proj: K = 1216 on a rank is no multiple of 128

    hint: choose another --tp; split sides have to be whole scale blocks on every rank
    ");
    assert_eq!(
        plan(&["--shapes", "models/ORIGIN.md"]).status.code(),
        Some(2)
    );
    assert_eq!(plan(&["--shapes", "nowhere.csv"]).status.code(), Some(2));
    assert_eq!(plan(&[]).status.code(), Some(2));
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("s.csv").to_str().unwrap().to_owned();
    fs_err::write(&empty, "op,M,N,K,dtype,records\n").unwrap();
    assert_eq!(plan(&["--shapes", &empty]).status.code(), Some(14));
}

#[test]
fn a_per_channel_model_is_planned_for_the_operation_it_needs() {
    let document = document(&["--model", "models/glm-4.6.json", "--tp", "8"]);
    assert_eq!(
        document["ops"],
        serde_json::json!(["gemm_a8w8_bpreshuffle"])
    );
    assert_eq!(document["tune"][0]["dtype"], "torch.float8_e4m3fnuz");
    insta::assert_snapshot!(format!("{:#}", document["model"]["notes"]), @r#"
    [
      "routed experts run in the fused MoE operation, which has tables of its own",
      "per-channel weights never reach gemm_a8w8_blockscale: they need gemm_a8w8_bpreshuffle tuned"
    ]
    "#);
}

#[test]
fn a_table_thinned_to_the_rows_that_matter_serves_every_m_alike() {
    let keep = tempfile::tempdir().unwrap();
    let path = |name: &str| keep.path().join(name).to_str().unwrap().to_owned();
    let row = |m: u32, kernel: u32| {
        format!("gfx942,304,{m},512,7168,ck,{kernel},0,{m}.5,k{kernel},0.0\n")
    };
    let head = "gfx,cu_num,M,N,K,libtype,kernelId,splitK,us,kernelName,errRatio\n";
    // 16 and 64 have the kernel of 32 and 128, which serve their M as well; 96 has another one.
    let rows = [(16, 1), (32, 1), (64, 2), (96, 3), (128, 2)];
    let rows: String = rows.iter().map(|(m, kernel)| row(*m, *kernel)).collect();
    let table = path("a8w8_blockscale_tuned_gemm.csv");
    fs_err::write(&table, format!("{head}{rows}")).unwrap();
    let thin = path("thin.csv");
    let device = ["--gfx", "gfx942", "--cu", "304", "--table", &table];
    let found = document(&[["--thin", "200", "-o", &thin].as_slice(), &device].concat());
    assert_eq!(
        (&found["rows"], &found["lookups_compared"]),
        (&5.into(), &200.into())
    );
    let written = fs_err::read_to_string(&thin).unwrap();
    assert_eq!(found["needed"], written.lines().count() as u64 - 1);
    // M = 1 to 15 finds 16 by the fine grid, and without it coarse rows up to 16 only: that row stays.
    assert!(
        written.contains(&row(96, 3)) && written.contains(&row(16, 1)),
        "{written}"
    );
    let nobody = plan(&[
        "--thin", "200", "--table", &table, "--gfx", "gfx950", "--cu", "256",
    ]);
    assert_eq!(nobody.status.code(), Some(2));
    let over = plan(&[["--thin", "200", "-o", &table].as_slice(), &device].concat());
    assert_eq!(over.status.code(), Some(2), "the table is an input");
}

#[test]
fn a_tuners_input_is_planned_for_the_operation_it_is_for() {
    let folder = "findings/untuned";
    let glm = document(&[
        "--shapes",
        &format!("{folder}/a8w8_bpreshuffle_untuned_gemm_glm5.2.csv"),
        "--table",
        &format!("{folder}/a8w8_bpreshuffle_tuned_gemm_glm5.2.csv"),
        "--gfx",
        "gfx950",
        "--cu",
        "256",
    ]);
    assert_eq!(glm["ops"], serde_json::json!(["gemm_a8w8_bpreshuffle"]));
    let notes = glm["notes"].to_string();
    assert!(!notes.contains("other operations"), "{notes}");
    let fp4 = document(&[
        "--shapes",
        &format!("{folder}/a4w4_blockscale_untuned_gemm.csv"),
        "--gfx",
        "gfx950",
        "--cu",
        "256",
    ]);
    assert_eq!(fp4["ops"], serde_json::json!(["gemm_a4w4"]));
    let bf16 = plan(&[
        "--shapes",
        &format!("{folder}/bf16_untuned_gemm.csv"),
        "--gfx",
        "gfx950",
        "--cu",
        "256",
    ]);
    assert_eq!(bf16.status.code(), Some(2));
    insta::assert_snapshot!(String::from_utf8_lossy(&bf16.stderr), @"
    error: failed to use the shapes: take `findings/untuned/bf16_untuned_gemm.csv` for shapes of an FP8 or FP4 GEMM: column `bias` is of bf16 GEMMs, which are not tuned here

    hint: --op takes them for shapes of that operation all the same
    ");
}

#[test]
fn a_device_whose_rates_are_not_known_is_planned_for_with_a_remark() {
    let known = |name: &str| {
        let document = document(&[
            "--model",
            "models/qwen3-14b.json",
            "--tp",
            "2",
            "--device",
            name,
        ]);
        !document["notes"].to_string().contains("are not known")
    };
    for name in [
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA_GeForce_RTX_5090_D",
        "NVIDIA_RTX_PRO_6000_Blackwell_Max-Q_Workstation_Edition",
        "AMD Instinct MI300X VF",
        "AMD_Instinct_MI325X_OAM",
        "AMD_Instinct_MI350P",
        "AMD_Radeon_AI_PRO_R9700",
    ] {
        assert!(known(name), "{name}");
    }
    assert!(
        !known("NVIDIA_L20Y"),
        "what `shapes` suggests from a log is taken all the same"
    );
    assert_eq!(
        plan(&["--model", "models/qwen3-14b.json", "--device", "H2O"])
            .status
            .code(),
        Some(2)
    );
}

#[test]
fn rows_of_aiters_triton_gemm_are_planned_by_bucket_where_a_table_is_its_file_or_the_backend_says_so()
 {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs_err::write(
        path("s.csv"),
        "op,M,N,K,dtype,records\n\
         gemm_a8w8_blockscale,33,1280,4096,,9\n\
         gemm_a8w8_blockscale,64,1280,4096,,1\n\
         gemm_a8w8_blockscale,64,1280,5120,,1\n",
    )
    .unwrap();
    let file = path("gfx942-GEMM-A8W8_BLOCKSCALE-N=1280-K=5120.json");
    fs_err::write(&file, r#"{"any": {"BLOCK_SIZE_M": 16}}"#).unwrap();
    let (shapes, untuned) = (path("s.csv"), path("u.csv"));
    let said = document(&["--shapes", &shapes, "--backend", "aiter-triton"]);
    assert_eq!(said["fold"], "bucket");
    assert_eq!(said["tune"].as_array().unwrap().len(), 2);
    let document = document(&["--shapes", &shapes, "--table", &file, "-o", &untuned]);
    assert_eq!(document["fold"], "bucket");
    assert_eq!(document["cost"][0]["tuner"], "gemmtune race");
    assert_eq!(document["served"][0]["K"], 5120);
    assert_eq!(
        fs_err::read_to_string(untuned).unwrap(),
        "M,N,K\n33,1280,4096\n"
    );
    for arguments in [
        &["--table", &file, "--backend", "aiter"][..],
        &["--backend", "aiter-triton", "--op", "gemm_a8w8"],
        &["--backend", "aiter-triton", "--revision", "A"],
        &["--table", "gfx942-GEMM-A8W8_PER_TOKEN_SCALE.json"],
    ] {
        let mut all = vec!["--shapes", shapes.as_str()];
        all.extend(arguments);
        assert_eq!(plan(&all).status.code(), Some(2), "{arguments:?}");
    }
}
