//! `gemmtune shapes` and `gemmtune lookup` as a user runs them.

mod lookup;
#[path = "../said/mod.rs"]
mod said;

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use camino::Utf8PathBuf;

struct Folder {
    _keep: tempfile::TempDir,
    path: Utf8PathBuf,
}

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::try_from(folder.path().to_owned()).unwrap();
        Self {
            _keep: folder,
            path,
        }
    }

    fn file(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let path = self.path.join(name);
        fs_err::File::create(&path)
            .unwrap()
            .write_all(text.as_ref())
            .unwrap();
        path.into_string()
    }

    /// What a command said, as a snapshot can hold it.
    fn said(&self, output: &Output) -> String {
        said::plain(&stderr(output), &self.path)
    }
}

fn gemmtune(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_gemmtune"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", stderr(output)))
}

fn dump(m: u32, n: u32, k: u32) -> String {
    format!(
        "[t TP0] [GEMM_shape_dump] aiter FP8 block GEMM path | csv_row: {m},{n},{k},torch.float8_e4m3fnuz\n"
    )
}

#[test]
fn shapes_of_files_folders_and_standard_input_make_one_sorted_csv() {
    let folder = Folder::new();
    let plain = folder.file("a.log", dump(9, 512, 7168) + &dump(1, 512, 7168));
    fs_err::create_dir(folder.path.join("more")).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all((dump(9, 512, 7168) + &dump(4, 256, 7168)).as_bytes())
        .unwrap();
    folder.file("more/b.log.gz", gzip.finish().unwrap());
    let more = folder.path.join("more").into_string();
    let output = gemmtune(
        &["shapes", &plain, &more, "-"],
        dump(2, 512, 2048).as_bytes(),
    );
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(
        stdout(&output),
        "op,M,N,K,dtype,records\n\
         gemm_a8w8_blockscale,4,256,7168,torch.float8_e4m3fnuz,1\n\
         gemm_a8w8_blockscale,2,512,2048,torch.float8_e4m3fnuz,1\n\
         gemm_a8w8_blockscale,1,512,7168,torch.float8_e4m3fnuz,1\n\
         gemm_a8w8_blockscale,9,512,7168,torch.float8_e4m3fnuz,2\n"
    );
}

#[test]
fn the_json_summary_counts_what_the_csv_holds() {
    let folder = Folder::new();
    let text = format!(
        "[Fp8LinearMethod] block_quant w8a8_block_fp8_linear=aiter_w8a8_block_fp8_linear (m)\n{}{}[GEMM_shape_dump] csv_row: 0,512,7168,torch.float8_e4m3fnuz\n",
        dump(1, 512, 7168),
        dump(1, 512, 7168)
    );
    let log = folder.file("server.log", &text);
    let csv = folder.path.join("shapes.csv");
    let output = gemmtune(&["--json", "shapes", &log, "-o", csv.as_str()], b"");
    let summary = json(&output);
    assert_eq!(summary["bytes"], text.len());
    assert_eq!(summary["records"], 2);
    assert_eq!(summary["distinct"], 1);
    assert_eq!(summary["malformed"], 1);
    assert_eq!(summary["malformed_records"][0]["line"], 4);
    assert_eq!(
        summary["dispatch"],
        serde_json::json!(["aiter_w8a8_block_fp8_linear (m)"])
    );
    assert!(summary["seconds"].as_f64().unwrap() >= 0.0);
    assert_eq!(
        fs_err::read_to_string(csv).unwrap(),
        "op,M,N,K,dtype,records\ngemm_a8w8_blockscale,1,512,7168,torch.float8_e4m3fnuz,2\n"
    );
    insta::assert_snapshot!(folder.said(&output), @"
    1 shapes in 2 records of 1 files (0.0 MB, [time])
    dispatch: aiter_w8a8_block_fp8_linear (m)
    warning: 1 records are torn or impossible:
      [folder]/server.log:4: M is at least 1: [GEMM_shape_dump] csv_row: 0,512,7168,torch.float8_e4m3fnuz
    written to `[folder]/shapes.csv`
    ");
}

#[test]
fn an_empty_result_says_which_variable_or_stage_to_look_at() {
    let folder = Folder::new();
    let said = [
        "",
        "nothing here\n",
        "block_quant w8a8_block_fp8_linear=triton_w8a8_block_fp8_linear (m)\n",
        "block_quant w8a8_block_fp8_linear=aiter_w8a8_block_fp8_linear (m)\n",
        "[GEMM_shape_dump] csv_row: 1,2\n",
        r#"{"gemmtune":"hello","pid":1,"rank":0,"world":1,"version":1}"#,
    ]
    .map(|text| {
        let log = folder.file("x.log", text);
        let output = gemmtune(&["shapes", &log], b"");
        assert_eq!(output.status.code(), Some(14), "{}", stderr(&output));
        assert_eq!(stdout(&output), "");
        format!("{text:?}\n{}", folder.said(&output))
    });
    insta::assert_snapshot!("logs_without_shapes", said.join("\n"));
    let missing = gemmtune(&["shapes", "no/such.log"], b"");
    assert_eq!(missing.status.code(), Some(2));
    insta::assert_snapshot!(stderr(&missing), @"
    error: failed to find the log `no/such.log`: No such file or directory (os error 2)

    hint: `gemmtune help shapes` describes the arguments
    ");
}

#[test]
fn weights_without_m_are_reported_and_never_become_shapes() {
    let log = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/testdata/logs/sglang-0.5.16-h100-qwen3-8b.log"
    );
    let output = gemmtune(&["--json", "shapes", log], b"");
    assert!(output.status.success(), "{}", stderr(&output));
    let summary = json(&output);
    assert_eq!(summary["distinct"], 0);
    let weights: Vec<_> = summary["weights_nk"]
        .as_array()
        .unwrap()
        .iter()
        .map(|weight| (weight["N"].as_u64().unwrap(), weight["K"].as_u64().unwrap()))
        .collect();
    assert_eq!(
        weights,
        [(4096, 4096), (4096, 12288), (6144, 4096), (24576, 4096)]
    );
    assert_eq!(
        summary["decode_batches"],
        serde_json::json!({"1": 1, "32": 19})
    );
    insta::assert_snapshot!(said::steady(&stderr(&output)), @"
    0 shapes in 0 records of 1 files (0.1 MB, [time])
    warning: the logs name weights but no M, so there are no shapes: SGLang's Triton kernel logs (N, K) only
      N=4096 K=4096 on NVIDIA_H100_80GB_HBM3: no file, the default configuration
      N=4096 K=12288 on NVIDIA_H100_80GB_HBM3: no file, the default configuration
      N=6144 K=4096 on NVIDIA_H100_80GB_HBM3: no file, the default configuration
      N=24576 K=4096 on NVIDIA_H100_80GB_HBM3: no file, the default configuration

    hint: run the server instrumented (`gemmtune instrument apply`), or plan from the model and what this log says: `gemmtune plan --model config.json --tp N --capture 1,2,4,8,12,16,24,32 --chunked-prefill 8192 --device NVIDIA_H100_80GB_HBM3 -o untuned.csv`
    ");

    // The CSV is the header alone: a file of an earlier log must not pass for this one's.
    let folder = Folder::new();
    let old = folder.file("shapes.csv", "M,N,K\n1,2,3\n");
    let output = gemmtune(&["shapes", log, "-o", &old], b"");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(
        fs_err::read_to_string(&old).unwrap(),
        "op,M,N,K,dtype,records\n"
    );
}

#[test]
fn an_input_is_never_written_over_under_another_name() {
    let folder = Folder::new();
    let log = folder.file("a.log", dump(9, 512, 7168));
    let shapes = folder.file("s.csv", "M,N,K\n3,512,7168\n");
    let table = folder.file(
        "t.csv",
        "gfx,cu_num,M,N,K,libtype,kernelId,splitK,us,kernelName\ngfx942,304,16,512,7168,ck,7,1,5.0,a\n",
    );
    let alias = |name: &str| folder.path.join("./").join(name).into_string();
    let link = folder.path.join("link").into_string();
    std::os::unix::fs::symlink(&table, &link).unwrap();
    let gpu = ["--gfx", "gfx942", "--cu", "304"];
    let lookup = ["lookup", "--table", &table, "--shapes", &shapes];
    let plan = ["plan", "--table", &table, "--shapes", &shapes];
    let said = [
        (["shapes", &log].to_vec(), alias("a.log")),
        ([&lookup[..], &gpu].concat(), alias("s.csv")),
        ([&lookup[..], &gpu].concat(), link.clone()),
        ([&plan[..], &gpu].concat(), alias("s.csv")),
        ([&plan[..], &gpu].concat(), link.clone()),
    ]
    .map(|(command, output)| {
        let before = fs_err::read(&output).unwrap();
        let result = gemmtune(&[&command[..], &["-o", &output]].concat(), b"");
        assert_eq!(result.status.code(), Some(2), "{command:?}");
        assert_eq!(fs_err::read(&output).unwrap(), before, "{command:?}");
        folder.said(&result)
    });
    insta::assert_snapshot!(said.concat(), @"
    error: `[folder]/./a.log` is the input `[folder]/a.log`, which is never written

    hint: name another file with -o
    error: `[folder]/./s.csv` is the input `[folder]/s.csv`, which is never written

    hint: name another file with -o
    error: `[folder]/link` is the input `[folder]/t.csv`, which is never written

    hint: name another file with -o
    error: `[folder]/./s.csv` is the input `[folder]/s.csv`, which is never written

    hint: name another file with -o
    error: `[folder]/link` is the input `[folder]/t.csv`, which is never written

    hint: name another file with -o
    ");
}

#[test]
fn lookup_lines_torn_at_either_end_are_counted() {
    let whole = "[aiter] shape is M:128, N:2112, K:7168, not found tuned config in /x/a8w8_blockscale_tuned_gemm.csv, will use default config!";
    let lines = [
        "[aiter] shape is M:128, N:21",
        whole,
        "12, K:7168, not found tuned config in /x/a8w8_blockscale_tuned_gemm.csv, will use default config!",
        // Another operation's, which is none of ours.
        "[aiter] shape B:4, M:128, N:21, K:7168, not found tuned config in /x/batched.csv",
        "[aiter] shape is M:7, N:2[aiter] shape is M:128, N:2112, K:7168, not found tuned config in /x/a8w8_blockscale_tuned_gemm.csv, will use default config!",
        "[aiter] shape is M:128,",
    ];
    let summary = json(&gemmtune(
        &["shapes", "-", "--json"],
        lines.join("\n").as_bytes(),
    ));
    assert_eq!(
        (&summary["records"], &summary["distinct"]),
        (&2.into(), &1.into())
    );
    let shown = summary["malformed_records"].as_array().unwrap();
    let at: Vec<_> = shown.iter().map(|record| &record["line"]).collect();
    assert_eq!(at, [1, 3, 5, 6], "{shown:?}");
    assert_eq!(shown[3]["reason"], "cut off by the end of the input");
}

#[test]
fn what_is_not_tuned_here_is_named_with_numbers() {
    let logs =
        ["batched", "bf16", "moe"].map(|name| finding(&format!("other-operations/{name}.log")));
    let mut arguments = vec!["shapes"];
    arguments.extend(logs.iter().map(String::as_str));
    let output = gemmtune(&arguments, b"");
    assert_eq!(output.status.code(), Some(14));
    insta::assert_snapshot!(stderr(&output), @"
    error: no GEMM shapes were found: 3 batched look-ups, 1 batched bf16 look-up, 2 bf16 look-ups, 1 fused-MoE key of aiter: not tuned here yet; `--fused-moe FILE` writes the fused-MoE keys as rows for aiter's tuner

    hint: serve a block-FP8 or per-channel FP8 model whose GEMMs this program tunes
    ");
    // Beside shapes it is a remark.
    let output = gemmtune(
        &["shapes", &logs[2], "-"],
        format!("{}\n", dump(1, 512, 7168)).as_bytes(),
    );
    assert!(output.status.success());
    insta::assert_snapshot!(said::steady(&stderr(&output)), @"
    1 shapes in 1 records of 2 files (0.0 MB, [time])
    1 fused-MoE key of aiter: not tuned here yet; `--fused-moe FILE` writes the fused-MoE keys as rows for aiter's tuner
    ");
    let found = json(&gemmtune(
        &["shapes", &logs[2], "-", "--json"],
        format!("{}\n", dump(1, 512, 7168)).as_bytes(),
    ));
    assert_eq!(found["fused_moe_keys"].as_array().unwrap().len(), 1);
}

#[test]
fn hits_and_misses_stand_beside_each_shape() {
    let line = |m: u32, end: &str| format!("[aiter] shape is M:{m}, N:512, K:7168, {end}\n");
    let missed =
        "not found tuned config in /x/a8w8_blockscale_tuned_gemm.csv, will use default config!";
    let hit = "found padded_M: 16, N:512, K:7168 is tuned on cu_num = 304 in /x/a8w8_blockscale_tuned_gemm.csv , kernel name is k!";
    let log = [
        line(9, hit),
        line(9, hit),
        line(9, missed),
        line(40, missed),
        format!("{}\n", dump(9, 512, 7168)),
    ]
    .concat();
    let output = gemmtune(&["shapes", "-"], log.as_bytes());
    // The look-ups do not say the dtype that the dump says.
    assert_eq!(
        stdout(&output),
        "op,M,N,K,dtype,records,hits,misses\n\
         gemm_a8w8_blockscale,9,512,7168,torch.float8_e4m3fnuz,4,2,1\n\
         gemm_a8w8_blockscale,40,512,7168,,1,0,1\n"
    );
    let found = json(&gemmtune(&["shapes", "-", "--json"], log.as_bytes()));
    let ends: Vec<_> = found["shapes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|shape| (&shape["hits"], &shape["misses"]))
        .collect();
    assert_eq!(ends, [(&2.into(), &1.into()), (&0.into(), &1.into())]);
    // What comes next reads the file as ever.
    let output = gemmtune(
        &["plan", "--shapes", "-", "--gfx", "gfx942", "--cu", "304"],
        stdout(&output).as_bytes(),
    );
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn weights_that_were_served_are_told_from_those_that_were_not() {
    let output = gemmtune(
        &["shapes", &finding("other-operations/nk-hit-and-miss.log")],
        b"",
    );
    insta::assert_snapshot!(said::steady(&stderr(&output)), @"
    0 shapes in 0 records of 1 files (0.0 MB, [time])
    warning: the logs name weights but no M, so there are no shapes: SGLang's Triton kernel logs (N, K) only
      N=8192 K=5120 on NVIDIA_L40S: served from a file
      N=17408 K=5120 on NVIDIA_L40S: no file, the default configuration

    hint: run the server instrumented (`gemmtune instrument apply`), or plan from the model and what this log says: `gemmtune plan --model config.json --tp N --device NVIDIA_L40S -o untuned.csv`
    ");
}

#[test]
fn a_log_in_utf_16_is_a_log() {
    let units: Vec<u8> = format!("{}\r\n", dump(3, 512, 7168))
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let log = [&[0xff, 0xfe][..], &units].concat();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs_err::write(file.path(), &log).unwrap();
    let path = file.path().to_str().unwrap();
    for output in [
        gemmtune(&["shapes", path], b""),
        gemmtune(&["shapes", "-"], &log),
    ] {
        assert!(
            stdout(&output).contains("\ngemm_a8w8_blockscale,3,512,7168,"),
            "{}",
            stderr(&output)
        );
    }
}

#[test]
fn with_json_a_completion_script_is_inside_the_document() {
    let plain = stdout(&gemmtune(&["completions", "bash"], b""));
    let document = json(&gemmtune(&["completions", "bash", "--json"], b""));
    assert_eq!(document["shell"], "bash");
    assert_eq!(document["script"], plain);
}

#[test]
fn one_payload_of_two_operations_is_two_shapes() {
    let row = "csv_row: 128,512,7168,torch.float8_e4m3fn";
    let aiter = format!("[GEMM_shape_dump] aiter FP8 block GEMM path | {row}\n");
    let triton = format!("[GEMM_shape_dump] w8a8_block_fp8_matmul | {row}\n");
    let output = gemmtune(
        &["shapes", "-"],
        [&aiter, &triton, &aiter]
            .map(String::as_str)
            .concat()
            .as_bytes(),
    );
    assert_eq!(
        stdout(&output),
        "op,M,N,K,dtype,records\n\
         gemm_a8w8_blockscale,128,512,7168,torch.float8_e4m3fn,2\n\
         w8a8_block_fp8_matmul,128,512,7168,torch.float8_e4m3fn,1\n"
    );
}

fn finding(name: &str) -> String {
    format!("{}/testdata/findings/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn logs_of_other_families_alone_are_no_shapes_and_say_what_they_were() {
    let output = gemmtune(&["shapes", &finding("families/newtables.log")], b"");
    assert_eq!(output.status.code(), Some(14), "{}", stderr(&output));
    insta::assert_snapshot!(stderr(&output), @"
    error: no GEMM shapes were found: 1 look-up in `a16w8_mxfp8_asm_tuned_gemm`, 1 look-up in `a4w6_asm_tuned_gemm`, 1 look-up in `a6w4_asm_tuned_gemm`, 1 look-up in `a6w4_flydsl_tuned_gemm`, 1 look-up in `a6w6_blockscale_tuned_gemm`, 1 look-up in `a8w8_blockscale_abpreshuffle_tuned_gemm`, 1 look-up in `a8w8_bpreshuffle_mxfp8_tuned_gemm`, 1 look-up in `flydsl_a8w8_bpreshuffle_tuned_gemm`, 1 look-up in `grouped_gemm_mxfp8_tuned`: not tuned here yet

    hint: serve a block-FP8 or per-channel FP8 model whose GEMMs this program tunes
    ");
    let found = json(&gemmtune(
        &["shapes", &finding("after-5586/newest.log"), "--json"],
        b"",
    ));
    assert_eq!((&found["distinct"], &found["hits"]), (&1.into(), &1.into()));
    assert_eq!(found["other_families"].as_object().unwrap().len(), 3);
}
