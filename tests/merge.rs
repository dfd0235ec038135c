//! `gemmtune merge` from the outside: what is written, and what never is.

mod said;

use std::process::{Command, Output};

use camino::{Utf8Path, Utf8PathBuf};
use said::steady;
use serde_json::Value;

const HEADER: &str = "gfx,cu_num,M,N,K,libtype,kernelId,splitK,us,kernelName,tflops,bw,errRatio\n";
const KERNEL: &str = "a8w8_blockscale_1x128x128_256x16x64x256_16x16_16x16_1x1_16x16x1_16x16x1_1x16x1x16_4_1x1_intrawave_v1";

fn row(m: u32, us: f64) -> String {
    format!("gfx942,304,{m},3072,1536,ck,8,0,{us:?},{KERNEL},,,0.0\n")
}

struct Folder {
    _keep: tempfile::TempDir,
    path: Utf8PathBuf,
}

impl Folder {
    fn new(files: &[(&str, String)]) -> Self {
        let keep = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::try_from(keep.path().to_owned()).unwrap();
        for (name, text) in files {
            fs_err::write(path.join(name), text).unwrap();
        }
        Self { _keep: keep, path }
    }

    fn merge(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_gemmtune"))
            .current_dir(&self.path)
            .arg("merge")
            .args(arguments)
            .output()
            .unwrap()
    }

    fn read(&self, name: &str) -> String {
        fs_err::read_to_string(self.path.join(name)).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = Utf8Path::new(&self.path)
            .read_dir_utf8()
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_owned())
            .collect();
        names.sort();
        names
    }
}

fn two_tables() -> Folder {
    Folder::new(&[
        ("a.csv", format!("{HEADER}{}{}", row(1, 6.5), row(16, 7.0))),
        (
            "b.csv",
            format!("{HEADER}{}{}", row(1, 6.0), row(32, 8.0)).replace('\n', "\r\n"),
        ),
    ])
}

#[test]
fn the_result_and_its_provenance_are_written_and_the_inputs_are_not() {
    let folder = two_tables();
    let before = (folder.read("a.csv"), folder.read("b.csv"));
    let output = folder.merge(&["a.csv", "b.csv", "-o", "out.csv", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&document["rows"], &document["slower"]),
        (&3.into(), &1.into())
    );
    assert_eq!(document["inputs"][1]["kept"], 2);
    let expected = format!("{HEADER}{}{}{}", row(1, 6.0), row(16, 7.0), row(32, 8.0));
    assert_eq!(folder.read("out.csv"), expected);
    assert!(
        folder
            .read("out.provenance.csv")
            .contains("a.csv,2,6.5,0.0,slower,6.5 us against 6 of b.csv:2")
    );
    assert_eq!((folder.read("a.csv"), folder.read("b.csv")), before);
    assert_eq!(
        folder.names(),
        ["a.csv", "b.csv", "out.csv", "out.provenance.csv"]
    );
}

#[test]
fn an_output_that_is_an_input_is_refused_under_any_name() {
    let folder = two_tables();
    std::os::unix::fs::symlink("a.csv", folder.path.join("link.csv")).unwrap();
    fs_err::hard_link(folder.path.join("a.csv"), folder.path.join("hard.csv")).unwrap();
    fs_err::hard_link(
        folder.path.join("a.csv"),
        folder.path.join("side.provenance.csv"),
    )
    .unwrap();
    let before = folder.names();
    let said = ["a.csv", "./a.csv", "link.csv", "hard.csv", "side.csv"].map(|output| {
        let result = folder.merge(&["a.csv", "b.csv", "-o", output]);
        assert_eq!(result.status.code(), Some(2), "{output}");
        String::from_utf8(result.stderr).unwrap()
    });
    insta::assert_snapshot!(said.concat(), @"
    error: `a.csv` is the input `a.csv`, which is never written

    hint: name another file with -o
    error: `./a.csv` is the input `a.csv`, which is never written

    hint: name another file with -o
    error: `link.csv` is the input `a.csv`, which is never written

    hint: name another file with -o
    error: `hard.csv` is the input `a.csv`, which is never written

    hint: name another file with -o
    error: `side.provenance.csv` is the input `a.csv`, which is never written

    hint: name another file with -o
    ");
    assert_eq!(folder.names(), before);
    assert_eq!(
        folder.read("a.csv"),
        format!("{HEADER}{}{}", row(1, 6.5), row(16, 7.0))
    );
}

#[test]
fn nothing_is_written_when_no_row_is_valid_or_a_table_cannot_be_read() {
    let bad = format!("{HEADER}{}", row(1, 6.5).replace(",6.5,", ",-1,"));
    let folder = Folder::new(&[("bad.csv", bad), ("no.csv", "a,b\n1,2\n".to_owned())]);
    assert_eq!(
        folder.merge(&["bad.csv", "-o", "out.csv"]).status.code(),
        Some(15)
    );
    let output = folder.merge(&["bad.csv", "-o", "out.csv", "--json"]);
    assert_eq!(output.status.code(), Some(15));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&document["rows"], &document["invalid"]),
        (&0.into(), &1.into())
    );
    assert_eq!(document["output"], Value::Null);
    assert_eq!(
        folder.merge(&["no.csv", "-o", "out.csv"]).status.code(),
        Some(2)
    );
    assert_eq!(
        folder.merge(&["gone.csv", "-o", "out.csv"]).status.code(),
        Some(2)
    );
    assert_eq!(folder.names(), ["bad.csv", "no.csv"]);
}

#[test]
fn a_merge_into_the_folder_aiter_reads_is_refused() {
    let folder = two_tables();
    fs_err::create_dir(folder.path.join("model_configs")).unwrap();
    let output = folder.merge(&[
        "a.csv",
        "-o",
        "model_configs/a8w8_blockscale_tuned_gemm_mine.csv",
    ]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        folder
            .path
            .join("model_configs")
            .read_dir_utf8()
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn a_table_named_twice_is_counted_once() {
    let folder = two_tables();
    let output = folder.merge(&["a.csv", "a.csv", "-o", "out.csv", "--json"]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["inputs"].as_array().unwrap().len(), 1);
    assert_eq!(document["inputs"][0]["kept"], 2);
    assert_eq!(document["inputs"][0]["copy"], 2);
}

#[test]
fn an_output_that_is_a_folder_leaves_nothing_behind() {
    let folder = two_tables();
    fs_err::create_dir(folder.path.join("sub")).unwrap();
    let before = folder.names();
    let output = folder.merge(&["a.csv", "b.csv", "-o", "sub"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(folder.names(), before);
}

fn finding(name: &str) -> String {
    format!("{}/testdata/findings/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_table_of_another_family_is_named_and_left_alone() {
    let folder = Folder::new(&[]);
    let mine = finding("families/my_a8w8_blockscale_tuned_gemm.csv");
    let said = [
        "families/dsv41_a8w8_blockscale_group32_tuned_gemm.csv",
        "families/dsv4_a8w8_blockscale_mxscale_bpreshuffle_tuned_gemm.csv",
    ]
    .map(|other| {
        let output = folder.merge(&[&mine, &finding(other), "-o", "o.csv"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(folder.names().is_empty(), "nothing was written");
        steady(&text)
    });
    insta::assert_snapshot!(said.concat(), @"
    error: failed to use a table: read `[project]/testdata/findings/families/dsv41_a8w8_blockscale_group32_tuned_gemm.csv`: a table of `a8w8_blockscale_group32_tuned_gemm`, a family of its own that is left alone

    hint: leave it out: aiter reads it for another operation, and by rules that are not known here
    error: failed to use a table: read `[project]/testdata/findings/families/dsv4_a8w8_blockscale_mxscale_bpreshuffle_tuned_gemm.csv`: a table of `a8w8_blockscale_mxscale_bpreshuffle_tuned_gemm`, a family of its own that is left alone

    hint: leave it out: aiter reads it for another operation, and by rules that are not known here
    ");
    // The column gives it away under any name.
    let text = fs_err::read_to_string(finding(
        "families/dsv4_a8w8_blockscale_mxscale_bpreshuffle_tuned_gemm.csv",
    ));
    let folder = Folder::new(&[("t.csv", text.unwrap())]);
    let output = folder.merge(&["t.csv", "-o", "o.csv"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn the_merged_table_never_makes_a_look_up_end_in_an_exception() {
    let folder = Folder::new(&[("shapes.csv", "M,N,K\n16,1792,5120\n".to_owned())]);
    let input = |name: &str| {
        finding(&format!(
            "crashing-rows/{name}_a8w8_blockscale_tuned_gemm.csv"
        ))
    };
    for bad in ["asm", "triton", "nolib"] {
        let output = folder.merge(&[&input("good"), &input(bad), "-o", "o.csv", "--json"]);
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (&document["rows"], &document["invalid"]),
            (&1.into(), &1.into()),
            "{bad}"
        );
        let looked_up = Command::new(env!("CARGO_BIN_EXE_gemmtune"))
            .current_dir(&folder.path)
            .args([
                "lookup", "--table", "o.csv", "--gfx", "gfx950", "--cu", "256",
            ])
            .args([
                "--op",
                "gemm_a8w8_blockscale",
                "--shapes",
                "shapes.csv",
                "--explain",
                "--json",
            ])
            .output()
            .unwrap();
        let document: Value = serde_json::from_slice(&looked_up.stdout).unwrap();
        assert_eq!(document["hits"], 1);
        assert_eq!(document["rows"][0]["raises"], false, "{document}");
        assert_eq!(document["rows"][0]["us"], 12.6558);
    }
}

#[test]
fn rows_that_differ_in_an_unknown_column_are_refused_until_it_is_said_what_it_is() {
    let folder = Folder::new(&[]);
    let input = finding("scaletype/a8w8_blockscale_tuned_gemm.csv");
    let output = folder.merge(&[&input, "-o", "o.csv"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    insta::assert_snapshot!(steady(&text), @"
    error: failed to make one table: merge line 2 of `[project]/testdata/findings/scaletype/a8w8_blockscale_tuned_gemm.csv` with line 3 of `[project]/testdata/findings/scaletype/a8w8_blockscale_tuned_gemm.csv`: they have the key M=16 N=3072 K=4096 and differ in column `scaletype`, which may be a part of it

    hint: say `--key COLUMN` if it is part of the key, or remove the column
    ");
    assert!(folder.names().is_empty());
    let output = folder.merge(&[&input, "-o", "o.csv", "--key", "scaletype"]);
    assert_eq!(output.status.code(), Some(0));
    let merged = folder.read("o.csv");
    assert!(
        merged.contains(",fp32\n") && merged.contains(",e8m0\n"),
        "{merged}"
    );
}
