//! The command blocks of the README that are marked `<!-- runs: NAME -->`, executed as printed.

mod trees;

use std::process::{Command, Output};
use std::time::Instant;

use camino::{Utf8Path, Utf8PathBuf};

const README: &str = include_str!("../README.md");

/// The commands of a block, one each, continuation lines joined and comment lines left out.
fn block(name: &str) -> Vec<String> {
    let rest = README
        .split_once(&format!("<!-- runs: {name} -->\n```sh\n"))
        .unwrap_or_else(|| panic!("the README has no block `{name}`"))
        .1;
    let text = rest.split_once("\n```").unwrap().0.replace("\\\n", "");
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

#[expect(
    clippy::print_stdout,
    reason = "with --nocapture the walk's times are what one wants to see"
)]
fn bash(line: &str, folder: &Utf8Path, path: &str, variables: &[(&str, &str)]) -> Output {
    let begun = Instant::now();
    let output = Command::new("bash")
        .args(["-e", "-c", line])
        .current_dir(folder)
        .env("PATH", format!("{path}:/usr/local/bin:/usr/bin:/bin"))
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    println!(
        "{:6.1} s  {}  {line}",
        begun.elapsed().as_secs_f64(),
        output.status
    );
    output
}

/// A folder with this build of gemmtune in `bin` and the repository's `testdata`.
struct Place {
    _keep: tempfile::TempDir,
    folder: Utf8PathBuf,
}

impl Place {
    fn new() -> Self {
        let keep = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::try_from(keep.path().to_owned()).unwrap();
        fs_err::create_dir(folder.join("bin")).unwrap();
        let link = std::os::unix::fs::symlink::<&Utf8Path, Utf8PathBuf>;
        link(
            Utf8Path::new(env!("CARGO_BIN_EXE_gemmtune")),
            folder.join("bin/gemmtune"),
        )
        .unwrap();
        link(&repository().join("testdata"), folder.join("testdata")).unwrap();
        Self {
            _keep: keep,
            folder,
        }
    }

    fn bin(&self) -> String {
        self.folder.join("bin").into_string()
    }

    fn write(&self, path: &str, text: &str) {
        fs_err::write(self.folder.join(path), text).unwrap();
    }
}

fn repository() -> &'static Utf8Path {
    Utf8Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_real_log_becomes_a_plan_and_a_tuners_input() {
    let place = Place::new();
    for line in block("log-to-plan") {
        // /tmp is shared between the tests of this machine.
        let line = line.replace("/tmp/", "");
        let output = bash(&line, &place.folder, &place.bin(), &[]);
        assert!(output.status.success(), "{line}: {output:?}");
    }
    let untuned = fs_err::read_to_string(place.folder.join("untuned.csv")).unwrap();
    assert!(untuned.lines().count() > 20, "{untuned}");
    // The four linear layers of the model, as the log names them.
    for weight in ["4096,4096", "4096,12288", "6144,4096", "24576,4096"] {
        assert!(untuned.contains(weight), "{weight}: {untuned}");
    }
}

const HEADER: &str = "gfx,cu_num,M,N,K,libtype,kernelId,splitK,us,kernelName,tflops,bw,errRatio\n";

fn row(m: u32, us: f64) -> String {
    let flops = 2.0 * f64::from(m) * 3072.0 * 1536.0;
    let bytes = f64::from(m) * 1536.0 + 3072.0 * 1536.0 + 2.0 * f64::from(m) * 3072.0;
    format!(
        "gfx942,304,{m},3072,1536,ck,8,0,{us},a8w8_blockscale_1x128x128_256x16x64x256_16x16_16x16_1x1_16x16x1_16x16x1_1x16x1x16_4_1x1_intrawave_v1,{:.2},{:.2},0.0\n",
        flops / us / 1e6,
        bytes / us / 1e3
    )
}

const LAUNCH: &str = "export SGLANG_USE_AITER=1\npython3 -m sglang.launch_server --model-path /models/Q --tp 2 &\n\
         python3 -m sglang.bench_serving --output-file bench.jsonl\n";

/// Up to `run` itself, which `tests/run` and `tests/rocm` drive against servers that are there.
#[test]
fn a_launch_script_becomes_a_configuration_that_run_takes() {
    let place = Place::new();
    place.write("launch.sh", LAUNCH);
    let lines = block("your-server");
    assert!(lines[3].starts_with("gemmtune run "), "{lines:?}");
    for line in &lines[..3] {
        let output = bash(line, &place.folder, &place.bin(), &[]);
        let code = output.status.code().unwrap();
        let fits = code == 0 || (code == 10 && line.contains("gemmtune doctor"));
        assert!(fits, "{line}: {output:?}");
    }
}

/// Everything but the GPU: a launch script, a reduced tree, a log, tables and results stand where the commands
/// expect them. `doctor` may find the machine wanting, and the tuner may find no device: then its table is the one that
/// was put there.
#[test]
fn every_line_for_amd_runs_as_printed() {
    let place = Place::new();
    place.write("launch.sh", LAUNCH);
    place.write(
        "server.log",
        "[Fp8LinearMethod] block_quant w8a8_block_fp8_linear=aiter_w8a8_block_fp8_linear (sglang.srt.layers.quantization.fp8_utils)\n\
         [GEMM_shape_dump] x | csv_row: 1,3072,1536,torch.float8_e4m3fnuz\n\
         [GEMM_shape_dump] x | csv_row: 2,3072,1536,torch.float8_e4m3fnuz\n",
    );
    place.write("shipped.csv", &format!("{HEADER}{}", row(1, 6.6)));
    fs_err::create_dir(place.folder.join("tuned")).unwrap();
    place.write(
        "tuned/tuned.csv",
        &format!("{HEADER}{}{}", row(1, 6.5), row(2, 6.6)),
    );
    let recorded = include_str!("../testdata/bench/bench-base.jsonl");
    let line = recorded.lines().next().unwrap().replace("Infinity", "null");
    let mut line: serde_json::Value = serde_json::from_str(&line).unwrap();
    for start in 0_u32..6 {
        line["output_throughput"] = (100.0 + f64::from(start) / 10.0).into();
        place.write(&format!("base{start}.jsonl"), &format!("{line}\n"));
        line["output_throughput"] = (110.0 + f64::from(start) / 10.0).into();
        place.write(&format!("tuned{start}.jsonl"), &format!("{line}\n"));
    }
    let tree = trees::Tree::fixture("e1");
    let lines = block("amd");
    assert_eq!(lines.len(), 10, "ten lines were promised");
    for line in lines {
        let trees = [("SITE", tree.root.as_str()), ("AITER", "aiter")];
        let output = bash(&line, &place.folder, &place.bin(), &trees);
        let code = output.status.code().unwrap();
        let of_the_machine = line.contains("gemmtune doctor") || line.contains("--backend aiter");
        let fits = code == 0 || (code == 10 && of_the_machine);
        assert!(fits, "{line}: {output:?}");
    }
}

#[test]
#[ignore = "builds a release and runs the whole demo: several minutes"]
fn from_a_clone_to_a_verdict() {
    let place = Place::new();
    let cargo = Utf8Path::new(env!("CARGO")).parent().unwrap();
    let installed = place.folder.join("installed");
    for line in block("demo") {
        let output = bash(
            &line,
            repository(),
            &format!("{installed}/bin:{cargo}"),
            &[("CARGO_INSTALL_ROOT", installed.as_str())],
        );
        let code = output.status.code().unwrap();
        // A busy machine may leave the demo without a verdict.
        assert!(code == 0 || code == 16, "{line}: {output:?}");
    }
}
