//! The steps of `examples/ci/gemmtune.yml`, executed as they stand there.

use std::process::{Command, Output};

use camino::{Utf8Path, Utf8PathBuf};

const RECIPE: &str = include_str!("../examples/ci/gemmtune.yml");

/// The script of the step of that name.
fn step(name: &str) -> String {
    let mut lines = RECIPE
        .lines()
        .skip_while(|line| line.trim() != format!("- name: {name}"))
        .skip(1);
    assert_eq!(lines.next().map(str::trim), Some("run: |"), "{name}");
    lines
        .map_while(|line| line.strip_prefix("          "))
        .fold(String::new(), |script, line| script + line + "\n")
}

/// What the job's `env:` sets.
fn environment() -> Vec<(String, String)> {
    RECIPE
        .lines()
        .skip_while(|line| line.trim() != "env:")
        .skip(1)
        .map_while(|line| line.strip_prefix("      "))
        .map_while(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()))
        .collect()
}

/// A checkout with what the recipe expects.
struct Checkout {
    _keep: tempfile::TempDir,
    folder: Utf8PathBuf,
}

const HEADER: &str = "gfx,cu_num,M,N,K,libtype,kernelId,splitK,us,kernelName,tflops,bw,errRatio\n";
const ROW: &str = "gfx942,304,1,3072,1536,ck,8,0,6.6154,a8w8_blockscale_1x128x128_256x16x64x256_16x16_16x16_1x1_16x16x1_16x16x1_1x16x1x16_4_1x1_intrawave_v1,1.43,714.43,0.0\n";

impl Checkout {
    fn new() -> Self {
        let keep = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::try_from(keep.path().to_owned()).unwrap();
        for inner in ["tables", "results", "bin"] {
            fs_err::create_dir(folder.join(inner)).unwrap();
        }
        let program = Utf8Path::new(env!("CARGO_BIN_EXE_gemmtune"));
        std::os::unix::fs::symlink(program, folder.join("bin/gemmtune")).unwrap();
        let checkout = Self {
            _keep: keep,
            folder,
        };
        checkout.write(
            "tables/a8w8_blockscale_tuned_gemm.csv",
            &format!("{HEADER}{ROW}"),
        );
        checkout.write(
            "shapes.csv",
            "op,M,N,K,dtype,records\ngemm_a8w8_blockscale,1,3072,1536,torch.float8_e4m3fnuz,7\n",
        );
        checkout
    }

    fn write(&self, path: &str, text: &str) {
        fs_err::write(self.folder.join(path), text).unwrap();
    }

    /// Runs a step as a runner does: bash, ending at the first failure.
    fn run(&self, name: &str) -> Output {
        Command::new("bash")
            .args(["-e", "-o", "pipefail", "-c", &step(name)])
            .current_dir(&self.folder)
            .envs(environment())
            .env("PATH", format!("{}/bin:/usr/bin:/bin", self.folder))
            .output()
            .unwrap()
    }

    /// Six result files for each arm, the tuned one `factor` times as fast.
    fn results(&self, factor: f64) {
        let line = include_str!("../testdata/bench/bench-base.jsonl")
            .lines()
            .next()
            .unwrap();
        let line: serde_json::Value =
            serde_json::from_str(&line.replace("Infinity", "null")).unwrap();
        let throughput = line["output_throughput"].as_f64().unwrap();
        for start in 0_u32..6 {
            for (arm, factor) in [("baseline", 1.0), ("change", factor)] {
                let mut line = line.clone();
                let noise = 1.0 + 0.001 * f64::from(start);
                line["output_throughput"] = (throughput * factor * noise).into();
                self.write(
                    &format!("results/{arm}-{start}.jsonl"),
                    &format!("{line}\n"),
                );
            }
        }
    }
}

#[test]
fn sound_tables_pass_and_a_row_that_cannot_be_fails_the_build() {
    let checkout = Checkout::new();
    let output = checkout.run("tables are sound");
    assert!(output.status.success(), "{output:?}");
    checkout.write(
        "tables/a8w8_blockscale_tuned_gemm.csv",
        &format!("{HEADER}{}", ROW.replace("6.6154", "-1")),
    );
    let output = checkout.run("tables are sound");
    assert_eq!(output.status.code(), Some(15), "{output:?}");
}

#[test]
fn a_shape_without_a_row_fails_the_build() {
    let checkout = Checkout::new();
    let output = checkout.run("every shape has a row");
    assert!(output.status.success(), "{output:?}");
    checkout.write("shapes.csv", "M,N,K\n1,3072,1536\n1,512,512\n");
    let output = checkout.run("every shape has a row");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 shapes without a row"));
}

#[test]
fn a_worse_comparison_fails_the_build_and_a_better_or_equal_one_does_not() {
    let checkout = Checkout::new();
    for (factor, code) in [(1.2, 0), (1.0, 0), (0.9, 16)] {
        checkout.results(factor);
        let output = checkout.run("not worse than the baseline");
        assert_eq!(output.status.code(), Some(code), "{factor}: {output:?}");
    }
}
