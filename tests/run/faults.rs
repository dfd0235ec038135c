//! Servers that misbehave: each fault ends in a named failure with its exit code and leaves nothing.

use super::support::{Change, Site, stderr};

fn fails(change: &Change<'_>, code: i32, says: &str) -> Site {
    let site = Site::new(change);
    let output = site.run(&["run"]);
    assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
    assert!(stderr(&output).contains(says), "{}", stderr(&output));
    site.assert_nothing_left();
    site
}

#[test]
fn a_server_that_dies_while_loading_was_not_ready() {
    let change = Change {
        server: &["--fault", "die-while-loading"],
        ..Change::default()
    };
    fails(&change, 13, "before it was ready");
}

#[test]
fn a_server_that_hangs_at_start_was_not_ready() {
    let change = Change {
        server: &["--fault", "hang-at-start"],
        ready_timeout_s: Some(1),
        ..Change::default()
    };
    fails(&change, 13, "not ready after 1 s");
}

#[test]
fn a_request_that_hangs_fails_the_workload() {
    let change = Change {
        server: &["--fault", "hang-in-request"],
        benchmark_timeout_s: Some(2),
        ..Change::default()
    };
    fails(&change, 12, "benchmark");
}

#[test]
fn torn_log_lines_are_counted_and_do_not_stop_the_run() {
    let site = fails(
        &Change {
            server: &["--fault", "torn-log-lines"],
            pairs: Some(1),
            ..Change::default()
        },
        16,
        "1 pair",
    );
    let capture = super::support::document(&site.latest().join("capture.json"));
    assert!(capture["malformed"].as_u64().unwrap() > 0, "{capture}");
}

#[test]
fn numbers_that_are_not_finite_in_the_workload_fail_it() {
    let change = Change {
        server: &["--fault", "nan-above-m=2"],
        ..Change::default()
    };
    fails(&change, 12, "not finite");
}

#[test]
fn numbers_that_are_not_finite_are_stopped_at_verify_and_undone() {
    // Neither the workload nor the greedy questions reach 100 tokens; the layout probe does.
    let change = Change {
        server: &["--fault", "nan-above-m=100"],
        ..Change::default()
    };
    let site = fails(&change, 16, "layout");
    let journal = site.journal();
    assert!(
        journal.iter().any(|event| event["kind"] == "undone"),
        "{journal:?}"
    );
    let deployment = super::support::document(&site.latest().join("deploy.json"));
    assert!(!std::path::Path::new(deployment["table"].as_str().unwrap()).exists());
}

#[test]
fn a_child_that_ignores_sigterm_is_killed() {
    let change = Change {
        server: &["--fault", "child-ignores-sigterm"],
        pairs: Some(1),
        ..Change::default()
    };
    let site = Site::new(&change);
    let output = site.run(&["run", "--until", "baseline"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    site.assert_nothing_left();
}
