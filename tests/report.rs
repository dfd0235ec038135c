//! `gemmtune report` from outside.

use std::process::{Command, Output};

fn report(folder: &std::path::Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gemmtune"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

#[test]
fn a_run_folder_gives_a_page_and_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("runs/latest");
    fs_err::create_dir_all(&run).unwrap();
    fs_err::write(
        run.join("report.json"),
        include_str!("../testdata/report/sample.json"),
    )
    .unwrap();
    let output = report(folder.path(), &["report"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "runs/latest/report.html\n"
    );
    let page = fs_err::read_to_string(run.join("report.html")).unwrap();
    assert!(page.contains("<h1"));
    assert!(
        fs_err::read_to_string(run.join("report.md"))
            .unwrap()
            .starts_with("# Sample")
    );

    let output = report(folder.path(), &["--json", "report", "runs/latest"]);
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["comparison"]["verdict"], "better");
}

#[test]
fn a_folder_without_a_document_exits_2_and_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let output = report(folder.path(), &["report"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    insta::assert_snapshot!(String::from_utf8_lossy(&output.stderr), @"
    error: failed to make the report: read the report: failed to open file `runs/latest/report.json`: No such file or directory (os error 2)

    hint: name a run folder that has finished its report stage; `gemmtune status RUN_DIR` says how far one has got, `gemmtune run` resumes it
    ");
}
