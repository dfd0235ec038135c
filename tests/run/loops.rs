//! A whole run, and what it leaves.

use super::said::{plain, refusal};
use super::support::{Change, Site, count, document, stderr};

const STAGES: [&str; 9] = [
    "inspect", "baseline", "capture", "plan", "tune", "deploy", "verify", "compare", "report",
];

#[test]
fn a_run_goes_through_every_stage_once_and_leaves_report_table_and_no_process() {
    let site = Site::new(&Change::default());
    let output = site.run(&["run", "--json"]);
    // Two pairs support no verdict, so the exit code says "not better"; the numbers are there.
    assert_eq!(output.status.code(), Some(16), "{}", stderr(&output));
    let journal = site.journal();
    for stage in STAGES {
        assert_eq!(count(&journal, "stage_finished", stage), 1, "{stage}");
    }
    let run = site.latest();
    for file in [
        "report.html",
        "report.json",
        "report.md",
        "shapes.csv",
        "plan.json",
        "table.csv",
    ] {
        assert!(run.join(file).is_file(), "{file}");
    }
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["verdict"], "inconclusive");
    assert_eq!(printed["pairs"], 2);
    assert_eq!(printed["parity"], true);
    assert!(printed["hit_rate"].as_f64().unwrap() > 0.5, "{printed}");
    assert!(printed["tuned_rows"].as_u64().unwrap() > 0, "{printed}");
    let report = fs_err::read_to_string(run.join("report.html")).unwrap();
    for outside in ["http://", "https://", "<script src", "<link "] {
        let found = report
            .replace("http://www.w3.org/", "")
            .replace("http://127.0.0.1", "");
        assert!(
            !found.contains(outside),
            "the report reaches outside: {outside}"
        );
    }
    site.assert_nothing_left();
}

#[test]
fn a_finished_run_is_not_run_again_but_a_new_one_begun() {
    let site = Site::new(&Change {
        pairs: Some(1),
        ..Change::default()
    });
    site.run(&["run", "--until", "baseline"]);
    let first = site.latest();
    let paused = site.journal();
    assert_eq!(count(&paused, "stage_finished", "baseline"), 1);
    assert_eq!(count(&paused, "stage_started", "capture"), 0);
    site.run(&["run"]);
    assert_eq!(site.latest(), first, "an unfinished run is resumed");
    assert_eq!(count(&site.journal(), "stage_finished", "baseline"), 1);
    site.run(&["run", "--until", "inspect"]);
    assert_ne!(site.latest(), first, "a finished one is not");
}

#[test]
fn a_run_folder_edited_by_hand_is_refused() {
    let site = Site::new(&Change::default());
    site.run(&["run", "--until", "inspect"]);
    let path = site.latest().join("run.toml");
    let text = fs_err::read_to_string(&path)
        .unwrap()
        .replace("prompts = 6", "prompts = 7");
    fs_err::write(&path, text).unwrap();
    let output = site.run(&["run", "runs/latest"]);
    assert_eq!(output.status.code(), Some(17), "{}", stderr(&output));
    insta::assert_snapshot!(refusal(&output, &site.folder), @"
    error: configuration was `[digest]` when this run began and is `[digest]` now

    hint: restore [folder]/runs/[time]-tiny/run.toml or begin a new run
    ");
}

#[test]
fn a_dry_run_starts_nothing() {
    let site = Site::new(&Change::default());
    let output = site.run(&["run", "--dry-run", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan["server_starts"], 7);
    assert!(!site.folder.join("runs").exists());
}

#[test]
fn status_and_undo_tell_what_is_deployed() {
    let site = Site::new(&Change::default());
    site.run(&["run", "--until", "deploy"]);
    let status: serde_json::Value =
        serde_json::from_slice(&site.run(&["status", "--json"]).stdout).unwrap();
    assert_eq!(status["stages"][5]["standing"], "finished", "{status}");
    assert_eq!(status["at_work"], serde_json::Value::Null);
    let deployment = document(&site.latest().join("deploy.json"));
    let table = deployment["table"].as_str().unwrap().to_owned();
    assert!(std::path::Path::new(&table).is_file());
    let output = site.run(&["undo"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!std::path::Path::new(&table).exists());
    let again = stderr(&site.run(&["undo"]));
    insta::assert_snapshot!(plain(&again, &site.folder), @"nothing is deployed by this run");
}

#[test]
fn comparing_the_baseline_with_itself_tunes_nothing() {
    let site = Site::new(&Change::default());
    let path = site.folder.join("gemmtune.toml");
    let text = fs_err::read_to_string(&path)
        .unwrap()
        .replace("[compare]\n", "[compare]\nonly_noise = true\n");
    fs_err::write(&path, text).unwrap();
    site.run(&["run"]);
    let journal = site.journal();
    assert_eq!(count(&journal, "stage_finished", "report"), 1);
    for stage in ["capture", "plan", "tune", "deploy", "verify"] {
        assert_eq!(count(&journal, "stage_started", stage), 0, "{stage}");
    }
}
