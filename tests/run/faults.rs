//! Servers that misbehave: each fault ends in a named failure with its exit code and leaves nothing.

use super::support::{Change, Site, count, stderr};

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

/// A site whose server is started by a script that sees to its environment itself.
fn site_with_script(script: &str) -> Site {
    let site = Site::new(&Change {
        pairs: Some(1),
        ..Change::default()
    });
    let path = site.folder.join("launch.sh");
    fs_err::write(&path, script.replace("SITE", site.folder.as_str())).unwrap();
    let config = site.folder.join("gemmtune.toml");
    let text = fs_err::read_to_string(&config)
        .unwrap()
        .replace("command = [", &format!("command = [\"bash\", {path:?}, "));
    fs_err::write(&config, text).unwrap();
    site
}

#[test]
fn a_server_that_reads_another_table_is_stopped_at_verify() {
    // Two rows of the deployed table: a few shapes are served as they should be.
    let site = site_with_script(
        "if [ -n \"$GEMMTUNE_REFERENCE_TABLE\" ]; then\n  head -2 \"$GEMMTUNE_REFERENCE_TABLE\" > SITE/other.csv\n  \
         export GEMMTUNE_REFERENCE_TABLE=SITE/other.csv\nfi\nexec \"$@\"",
    );
    let output = site.run(&["run"]);
    assert_eq!(output.status.code(), Some(16), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("FAILED: engagement"),
        "{}",
        stderr(&output)
    );
    assert_eq!(count(&site.journal(), "stage_started", "compare"), 0);
}

#[test]
fn a_script_that_serves_the_deployed_table_in_both_arms_is_refused() {
    let site = site_with_script(
        "table=$(ls SITE/runs/latest/deploy/*.csv 2>/dev/null | head -1)\n\
         [ -n \"$table\" ] && export GEMMTUNE_REFERENCE_TABLE=$table\nexec \"$@\"",
    );
    let output = site.run(&["run"]);
    assert_eq!(output.status.code(), Some(10), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("`GEMMTUNE_REFERENCE_TABLE` of the tuned one"),
        "{}",
        stderr(&output)
    );
    site.assert_nothing_left();
}
