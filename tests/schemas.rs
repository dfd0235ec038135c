//! What `--json` prints is as the published schemas say. The documents of a run are in `tests/run/documents.rs`.

mod schema;
mod trees;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;

use schema::{check, closed, load, wrong};

/// A folder to run commands in.
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

    /// The one document that the command prints, however it ends.
    fn json(&self, arguments: &[&str]) -> Value {
        let output = Command::new(env!("CARGO_BIN_EXE_gemmtune"))
            .arg("--json")
            .args(arguments)
            .current_dir(&self.folder)
            .output()
            .unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!(
                "{arguments:?}: {error}: {}",
                String::from_utf8_lossy(&output.stderr)
            )
        })
    }

    fn file(&self, name: &str, text: &str) -> String {
        fs_err::write(self.folder.join(name), text).unwrap();
        name.to_owned()
    }
}

fn data(path: &str) -> Utf8PathBuf {
    Utf8Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("testdata")
        .join(path)
}

const DUMP: &str = "\
[GEMM_shape_dump] x | csv_row: 1,7168,2304,torch.float8_e4m3fn
[GEMM_shape_dump] x | csv_row: 96,7168,2304,torch.float8_e4m3fn
[GEMM_shape_dump] x | csv_row: 1,4608,torn
[Fp8LinearMethod] block_quant w8a8_block_fp8_linear=aiter_w8a8_block_fp8_linear (sglang.srt.layers.quantization.fp8_utils)
";

#[test]
fn every_published_schema_is_a_schema_and_is_listed() {
    let page = include_str!("../docs/schemas.md");
    let folder = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schemas");
    for entry in folder.read_dir_utf8().unwrap() {
        let name = entry.unwrap().file_name().to_owned();
        let schema = load(name.trim_end_matches(".json"));
        jsonschema::meta::validate(&schema).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(
            page.contains(&format!("(schemas/{name})")),
            "docs/schemas.md does not name {name}"
        );
    }
}

#[test]
fn a_missing_or_undescribed_field_is_noticed() {
    let place = Place::new();
    let document = place.json(&["lint", data("aiter-tables").as_str()]);
    let mut less = document.clone();
    less.as_object_mut().unwrap().remove("findings");
    assert_eq!(wrong(&load("lint"), &less).len(), 1);
    let mut more = document.clone();
    more["findings"][0]["new"] = 1.into();
    assert!(wrong(&load("lint"), &more).is_empty(), "readers bear it");
    assert_eq!(wrong(&closed(load("lint")), &more).len(), 1);
    let mut other = document;
    other["findings"][0]["severity"] = "grave".into();
    assert_eq!(wrong(&load("lint"), &other).len(), 1);
}

#[test]
fn documents_about_the_fused_moe_are_as_published() {
    let place = Place::new();
    // What 303a583c logs of a key without a row, and what e4048607 logs under expert parallelism; both loggers, two ranks.
    let key = "4096, 1536, 16, {topk}, {act}, 'torch.bfloat16', 'torch.float8_e4m3fnuz', 'torch.float8_e4m3fnuz', 'QuantType.per_1x128', True, False)";
    let older = key
        .replace("{topk}", "8")
        .replace("{act}", "'ActivationType.Silu'");
    let newer = key
        .replace("{topk}", "7")
        .replace("{act}", "<ActivationType.Silu: 0>");
    let lines = [
        format!(
            "[aiter] [fused_moe] using 2stage (kernelName1='a', kernelName2='b') for (304, 64, {older} \n"
        ),
        format!(
            "[t TP0] [fused_moe] using 2stage (kernelName1='a', kernelName2='b') for (304, 64, {older} \n"
        ),
        format!("[aiter] [fused_moe] using 1stage default for ('gfx942', 304, 128, {newer} \n"),
        format!("[aiter] [fused_moe] using 1stage default for ('gfx942', 304, 128, {newer} \n"),
    ];
    let log = place.file("server.log", &lines.concat());
    let shapes = place.json(&["shapes", &log, "--fused-moe", "calls.csv"]);
    check("shapes", &shapes);
    let calls = shapes["aiter_fused_moe"].as_array().unwrap();
    let ends: Vec<_> = calls
        .iter()
        .map(|call| {
            (
                &call["token"],
                &call["topk"],
                &call["hits"],
                &call["misses"],
            )
        })
        .map(|(token, topk, hits, misses)| {
            [token, topk, hits, misses].map(|number| number.as_u64().unwrap())
        })
        .collect();
    assert_eq!(ends, [[128, 7, 0, 2], [64, 8, 1, 0]]);
    let table = data("lookup/aiter-fmoe-traps.csv");
    let lookup = |tag: &str, calls: &str| {
        let arguments = [
            "lookup",
            "--table",
            table.as_str(),
            "--shapes",
            calls,
            "--aiter",
            tag,
        ];
        let document = place.json(&[&arguments[..], &["--gfx", "gfx942", "--cu", "304"]].concat());
        check("lookup-fused-moe", &document);
        document
    };
    let found = lookup("303a583c", "calls.csv");
    assert_eq!((&found["hits"], &found["misses"]), (&1.into(), &1.into()));
    let header = "token,model_dim,inter_dim,expert,topk,act_type,dtype,q_dtype_a,q_dtype_w,q_type,use_g1u1,doweight_stage1,ep";
    let ep = place.file(
        "ep.csv",
        &format!("{header}\n64,4096,1536,16,8,ActivationType.Silu,torch.bfloat16,torch.float8_e4m3fnuz,torch.float8_e4m3fnuz,QuantType.per_1x128,1,0,1\n"),
    );
    assert_eq!(lookup("v0.1.14", &ep)["rows"][0]["result"], "hit");
    let missed = &lookup("v0.1.16", &ep)["rows"][0];
    assert_eq!(missed["result"], "miss");
    insta::assert_snapshot!(missed["reason"].as_str().unwrap(), @"with an expert mask aiter v0.1.16 asks for topk=7, one less than topk_ids has columns (it expects a column for masked experts that servers do not add, ROCm/aiter#3999); the rows have topk=8");
    let plan = place.json(&[
        "plan",
        "--shapes",
        &ep,
        "--table",
        table.as_str(),
        "--aiter",
        "v0.1.16",
        "--gfx",
        "gfx942",
        "--cu",
        "304",
        "-o",
        "untuned.csv",
    ]);
    check("plan-fused-moe", &plan);
    assert_eq!(plan["tune"][0]["topk"], 7);
    let untuned = fs_err::read_to_string(place.folder.join("untuned.csv")).unwrap();
    assert_eq!(
        untuned.lines().nth(1).unwrap(),
        "64,4096,1536,16,7,ActivationType.Silu,torch.bfloat16,torch.float8_e4m3fnuz,torch.float8_e4m3fnuz,QuantType.per_1x128,1,0"
    );
    // A model's experts at TP8, the shared one among them, for every size up to the chunk.
    let model = data("models/deepseek-v3.json");
    place.json(&[
        "plan",
        "--model",
        model.as_str(),
        "--tp",
        "8",
        "--gfx",
        "gfx942",
        "--cu",
        "304",
        "--chunked-prefill",
        "4096",
        "--moe-output",
        "model.csv",
    ]);
    let asked = fs_err::read_to_string(place.folder.join("model.csv")).unwrap();
    let tokens: Vec<&str> = asked
        .lines()
        .skip(1)
        .filter_map(|line| line.strip_suffix(",7168,256,257,9,ActivationType.Silu,torch.bfloat16,torch.float8_e4m3fnuz,torch.float8_e4m3fnuz,QuantType.per_1x128,1,0"))
        .collect();
    assert_eq!(tokens.len(), 13, "{asked}");
    assert!(tokens.contains(&"1") && tokens.contains(&"4096"));
    let merged = place.json(&[
        "merge",
        table.as_str(),
        data("lookup/aiter-fmoe-shipped-h.csv").as_str(),
        "--aiter",
        "v0.1.16",
        "--activation",
        "Silu",
        "-o",
        "fmoe.csv",
    ]);
    check("merge-fused-moe", &merged);
    let rows = merged["rows"].as_u64().unwrap();
    let again = place.json(&["merge", "fmoe.csv", "--aiter", "v0.1.16", "-o", "again.csv"]);
    assert_eq!(
        (&again["rows"], &again["left_out"]),
        (&rows.into(), &serde_json::json!([]))
    );
    let lint = place.json(&["lint", table.as_str()]);
    check("lint", &lint);
    assert!(
        lint["findings"]
            .as_array()
            .unwrap()
            .iter()
            .any(|finding| finding["rule"] == "moe-activation-shadowed"),
        "{lint}"
    );
}

#[test]
fn documents_about_trees_are_as_published() {
    let place = Place::new();
    for era in ["e0", "e1", "e2", "e3", "e4", "e5", "e6", "e7", "e7b"] {
        check(
            "trace",
            &place.json(&["trace", data(&format!("trees/{era}")).as_str()]),
        );
    }
    for (era, mode) in [("e5", "overlay"), ("e1", "patch")] {
        let copy = trees::Tree::fixture(era);
        let tree = copy.root.as_str();
        for arguments in [
            ["instrument", "apply", tree, "--mode", mode, "--dry-run"].as_slice(),
            &["instrument", "apply", tree, "--mode", mode],
        ] {
            check("instrument-apply", &place.json(arguments));
        }
        check(
            "instrument-status",
            &place.json(&["instrument", "status", tree]),
        );
        check(
            "instrument-undo",
            &place.json(&["instrument", "undo", tree]),
        );
        let switch = [
            "switch", "apply", tree, "--to", "ck", "--arch", "gfx942", "--mode", mode,
        ];
        for _ in ["new", "in place already"] {
            check("switch-apply", &place.json(&switch));
        }
        check("switch-status", &place.json(&["switch", "status", tree]));
        check("switch-undo", &place.json(&["switch", "undo", tree]));
    }
}

#[test]
fn documents_about_shapes_and_tables_are_as_published() {
    let place = Place::new();
    place.file("dump.log", DUMP);
    let moe = data("moe-configs");
    let moe = ["lookup", "--table", moe.as_str(), "--triton", "3.6.0"];
    for more in [
        ["--device", "NVIDIA_H200", "--shape", "E=256,N=512,M=64"],
        ["--device", "NVIDIA_H200", "--shape", "E=8,N=128"],
        [
            "--device",
            "NVIDIA_B200",
            "--shape",
            "E=8,N=129,K=64,topk=2",
        ],
    ] {
        check("lookup", &place.json(&[moe.as_slice(), &more].concat()));
    }
    place.file(
        "bare.csv",
        "M,N,K\n1,1280,4096\n1,7168,2304\n64,7168,2304\n1000,4608,7168\n",
    );
    let real = data("logs/sglang-0.5.16-h100-qwen3-8b.log");
    let table = data("aiter-tables/a8w8_blockscale_tuned_gemm_qwen3_235b.csv");
    let table = table.as_str();
    check(
        "shapes",
        &place.json(&["shapes", "dump.log", "-o", "s.csv"]),
    );
    check("shapes", &place.json(&["shapes", real.as_str()]));
    let moe = data("logs/sglang-fused-moe.log");
    check("shapes", &place.json(&["shapes", moe.as_str()]));
    let experts = data("models/qwen3-30b-a3b.json");
    check(
        "plan",
        &place.json(&[
            "plan",
            "--model",
            experts.as_str(),
            "--device",
            "NVIDIA H200",
        ]),
    );

    let device = ["--gfx", "gfx942", "--cu", "304"];
    for arguments in [
        ["plan", "--shapes", "s.csv", "--table", table].as_slice(),
        &["plan", "--shapes", "s.csv", "--budget", "1"],
        &[
            "plan",
            "--model",
            data("models/qwen3-8b.json").as_str(),
            "--op",
            "gemm_a8w8_blockscale",
        ],
    ] {
        check("plan", &place.json(&[arguments, &device].concat()));
    }
    let thin = [
        "plan", "--thin", "4096", "--table", table, "--gfx", "gfx950",
    ];
    let thin = [thin.as_slice(), &["--cu", "256", "-o", "thin.csv"]].concat();
    check("plan-thin", &place.json(&thin));
    place.file("none.csv", "op,M,N,K,dtype,records\n");
    let nothing = place.json(&[["plan", "--shapes", "none.csv"].as_slice(), &device].concat());
    assert_eq!(nothing["verdict"], "nothing");
    check("plan", &nothing);

    for (table, more) in [
        (table, ["--gfx", "gfx950", "--cu", "256"].as_slice()),
        (
            data("sglang-configs").as_str(),
            &["--device", "NVIDIA_H200"],
        ),
        (
            data("aiter-tables/a8w8_bpreshuffle_tuned_gemm.csv").as_str(),
            &["--gfx", "gfx950", "--cu", "256"],
        ),
    ] {
        let arguments = ["lookup", "--shapes", "bare.csv", "--table", table];
        check("lookup", &place.json(&[&arguments, more].concat()));
    }
    check(
        "lint",
        &place.json(&[
            "lint",
            data("aiter-tables").as_str(),
            data("sglang-configs").as_str(),
        ]),
    );
    check("lint", &place.json(&["lint", "."]));
    check("lint-rules", &place.json(&["lint", "--rules"]));
    check("merge", &place.json(&["merge", table, "-o", "merged.csv"]));
}

#[test]
fn documents_about_measurements_are_as_published() {
    let place = Place::new();
    let base = data("bench/bench-base.jsonl");
    let tuned = data("bench/bench-tuned.jsonl");
    for metric in ["output_throughput", "median_ttft_ms"] {
        check(
            "compare",
            &place.json(&[
                "compare",
                "--baseline",
                base.as_str(),
                "--tuned",
                tuned.as_str(),
                "--metric",
                metric,
            ]),
        );
    }
    place.file("t.csv", "M,N,K\n1,256,512\n16,256,512\n");
    let tune = [
        "tune",
        "--backend",
        "reference",
        "--shapes",
        "t.csv",
        "-o",
        "tuned",
    ];
    check(
        "tune-dry-run",
        &place.json(&[tune.as_slice(), &["--dry-run"]].concat()),
    );
    for _ in ["first", "resumed"] {
        check("tune", &place.json(&tune));
    }
    let server = Server::start();
    let bench = [
        "bench",
        "--url",
        &server.url,
        "--token-ids",
        "1-99",
        "--concurrency",
        "2",
        "--requests",
        "4",
        "--input-len",
        "16",
        "--output-len",
        "4",
        "-o",
        "b.jsonl",
    ];
    for more in [
        [].as_slice(),
        &["--details", "--sequence", "1", "--tag", "x"],
    ] {
        check("bench", &place.json(&[bench.as_slice(), more].concat()));
    }
    check(
        "profile",
        &place.json(&["profile", data("profile").as_str()]),
    );
    for line in fs_err::read_to_string(place.folder.join("b.jsonl"))
        .unwrap()
        .lines()
    {
        check("bench", &serde_json::from_str(line).unwrap());
    }
}

#[test]
fn documents_about_the_machine_and_about_failures_are_as_published() {
    let place = Place::new();
    check("doctor", &place.json(&["doctor"]));
    place.file(
        "launch.sh",
        "export SGLANG_USE_AITER=1\npython3 -m sglang.launch_server --model-path /models/Q --tp 2 &\n\
         python3 -m sglang.bench_serving --output-file bench.jsonl\n",
    );
    check("init", &place.json(&["init", "launch.sh"]));
    for arguments in [
        ["lint", "nowhere"].as_slice(),
        &["lookup"],
        &["trace", "."],
        &["status"],
        &["run", "nowhere.toml"],
    ] {
        check("error", &place.json(arguments));
    }
}

/// A reference server that ends with the test.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_gemmtune"))
            .args([
                "--json",
                "reference-server",
                "--port",
                "0",
                "--model",
                data("models/tiny").as_str(),
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut text = String::new();
        for line in lines {
            text += &line.unwrap();
            if let Ok(document) = serde_json::from_str::<Value>(&text) {
                let url = format!("http://{}", document["address"].as_str().unwrap());
                return Self { child, url };
            }
        }
        panic!("the server ended: {:?}", child.wait());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
