//! Fused MoE from a log to a plan, through the commands; the log's lines are those that SGLang's own code wrote
//! (`testdata/logs/ORIGIN.md`).

mod said;

use std::process::{Command, Output};

use camino::{Utf8Path, Utf8PathBuf};
use said::steady;
use serde_json::Value;

struct Place {
    _keep: tempfile::TempDir,
    folder: Utf8PathBuf,
}

impl Place {
    fn new() -> Self {
        let keep = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::try_from(keep.path().to_owned()).unwrap();
        Self {
            _keep: keep,
            folder,
        }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_gemmtune"))
            .args(arguments)
            .current_dir(&self.folder)
            .output()
            .unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[&["--json"], arguments].concat());
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
    }

    fn text(&self, file: &str) -> String {
        fs_err::read_to_string(self.folder.join(file)).unwrap()
    }
}

fn data(path: &str) -> String {
    Utf8Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("testdata")
        .join(path)
        .into_string()
}

#[test]
fn what_serves_each_table_is_told_apart_in_every_wording() {
    let place = Place::new();
    let log = data("logs/sglang-fused-moe.log");
    let document = place.json(&["shapes", &log, "-o", "s.csv"]);
    let mut told: Vec<(u64, [u64; 4])> = document["fused_moe_tables"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            let count = |field: &str| row[field].as_u64().unwrap();
            let counts = [
                "tuned_config",
                "other_triton",
                "default_config",
                "without_down",
            ]
            .map(count);
            (count("E"), counts)
        })
        .collect();
    told.sort_unstable();
    // Of two ranks each: 0.5.6 wrote of 999 experts, 0.5.16 of 998, both of the others.
    let expected = [
        (72, [0, 2, 2, 2]),
        (161, [0, 2, 2, 4]),
        (256, [4, 0, 0, 0]),
        (998, [0, 0, 2, 2]),
        (999, [0, 0, 2, 2]),
    ];
    assert_eq!(told, expected, "{document:#}");
    assert_eq!(document["malformed"], 0);
    let csv = place.text("s.csv");
    assert!(
        csv.starts_with("op,M,N,K,dtype,records,E,topk,scales\n"),
        "{csv}"
    );
    assert!(
        csv.contains("\nfused_moe_triton,,192,,fp8_w8a8,8,161,,channel\n"),
        "{csv}"
    );
    let said = String::from_utf8(place.run(&["shapes", &log]).stderr).unwrap();
    insta::assert_snapshot!(steady(&said), @"
    0 shapes in 0 records of 1 files (0.0 MB, [time])
    fused MoE: 5 problems
      E=72 N=2048 fp8_w8a8 on NVIDIA_H200: served from a table in some processes, and by the default in others
      E=161 N=192 fp8_w8a8 on NVIDIA_H200: served from a table in some processes, and by the default in others
      E=256 N=512 fp8_w8a8 on NVIDIA_H200: served from a table
      E=998 N=128 fp8_w8a8 on NVIDIA_H200: no table, the default configuration
      E=999 N=128 fp8_w8a8 on NVIDIA_H200: no table, the default configuration
    the log names E and N of fused MoE and no M: `gemmtune plan --model` has K, topk and the M to tune
    ");
}

#[test]
fn a_log_of_one_table_becomes_a_plan_with_what_the_model_knows_and_its_rows_are_looked_up() {
    let place = Place::new();
    let name = "E=128,N=768,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128]";
    let line = format!("Using MoE kernel config from /c/configs/triton_3_6_0/{name}.json.\n");
    fs_err::write(place.folder.join("server.log"), line).unwrap();
    place.json(&["shapes", "server.log", "-o", "s.csv"]);
    let model = data("models/qwen3-30b-a3b.json");
    let with_model = [
        "plan",
        "--shapes",
        "s.csv",
        "--model",
        &model,
        "--device",
        "NVIDIA H200",
    ];
    let more = [
        "--max-bs",
        "64",
        "--chunked-prefill",
        "4096",
        "--moe-output",
        "moe.csv",
    ];
    let document = place.json(&[with_model.as_slice(), &more].concat());
    let rows = document["fused_moe"].as_array().unwrap();
    assert_eq!(rows.len(), 18, "{document:#}");
    assert!(
        rows.iter().all(|row| row["topk"] == 8 && row["K"] == 2048),
        "{document:#}"
    );
    assert!(
        place
            .text("moe.csv")
            .contains("\nfused_moe_triton,4096,768,2048,fp8_w8a8,1,128,8,128x128\n")
    );
    let table = data("moe-configs");
    let lookup = [
        "lookup",
        "--table",
        &table,
        "--triton",
        "3.6.0",
        "--device",
        "NVIDIA_H200",
        "--shapes",
        "moe.csv",
    ];
    assert_eq!(place.json(&lookup)["misses"], 18, "no such table there");
    // Without the model the log does not say enough, which is said.
    let alone = place.run(&["plan", "--shapes", "s.csv", "--device", "NVIDIA H200"]);
    assert_eq!(
        alone.status.code(),
        Some(14),
        "{}",
        String::from_utf8_lossy(&alone.stderr)
    );
}

#[test]
fn a_model_is_planned_with_its_experts_beside_its_gemms() {
    let place = Place::new();
    let plan = |model: &str, more: &[&str]| {
        let model = data(&format!("models/{model}.json"));
        let document = place.json(&[["plan", "--model", &model].as_slice(), more].concat());
        let first = document["fused_moe"][0].clone();
        (
            document,
            [&first["E"], &first["N"], &first["topk"]].map(Value::as_u64),
        )
    };
    let h200 = ["--device", "NVIDIA H200"];
    let (document, sizes) = plan("deepseek-v3", &[&h200[..], &["--tp", "8"]].concat());
    assert_eq!(sizes, [Some(257), Some(256), Some(9)]);
    assert!(!document["tune"].as_array().unwrap().is_empty());
    assert_eq!(document["model"]["experts"]["count"], 58);
    insta::assert_snapshot!(format!("{:#}", document["notes"]), @r#"
    [
      "no shapes were seen: every predicted size counts as one forward, so the order is by time alone",
      "on NVIDIA H200 SGLang runs block-FP8 GEMMs with DeepGEMM unless the server says `--fp8-gemm-backend triton` or cannot import it, and that reads no Triton table; what is tuned there is a route between kernels below it (`backend.kind = \"sglang-families\"`, `gemmtune tune --backend sglang-families`)",
      "E and topk hold the shared expert: it is computed as a routed one; a server that says `Shared experts fusion optimization is disabled` has one less"
    ]
    "#);
    let (_, sizes) = plan(
        "deepseek-v3",
        &[&h200[..], &["--tp", "8", "--ep", "8"]].concat(),
    );
    assert_eq!(sizes, [Some(32), Some(2048), Some(8)]);
    let (_, sizes) = plan(
        "qwen3-next-80b-a3b",
        &[&h200[..], &["--tp", "4", "--sglang", "0.5.13.post1"]].concat(),
    );
    assert_eq!(sizes, [Some(512), Some(128), Some(10)]);
    let (document, sizes) = plan(
        "deepseek-v3",
        &["--gfx", "gfx942", "--cu", "304", "--tp", "8"],
    );
    assert_eq!(sizes, [None, None, None]);
    insta::assert_snapshot!(format!("{:#}", document["notes"]), @r#"
    [
      "no shapes were seen: every predicted size counts as one forward, so the order is by time alone",
      "with aiter the experts run in its own fused MoE (model_dim=7168 inter_dim=256 expert=257 topk=9 Silu torch.float8_e4m3fnuz per_1x128): 15 rows, which --moe-output writes for its tuner; `gemmtune plan --shapes` of that file and `--table` leave out what a table has"
    ]
    "#);
    let refused = place.run(&[
        "plan",
        "--model",
        &data("models/deepseek-v3.json"),
        "--tp",
        "8",
        "--ep",
        "3",
    ]);
    assert_eq!(refused.status.code(), Some(2));
}
