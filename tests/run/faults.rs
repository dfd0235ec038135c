//! Servers that misbehave: each fault ends in a named failure with its exit code and leaves nothing.

use super::said::refusal;
use super::support::{Change, Site, count, stderr};

/// The site, and what a run there ended with.
fn fails(change: &Change<'_>, code: i32) -> (Site, String) {
    let site = Site::new(change);
    let output = site.run(&["run"]);
    assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
    site.assert_nothing_left();
    let said = refusal(&output, &site.folder);
    (site, said)
}

#[test]
fn a_server_that_dies_while_loading_was_not_ready() {
    let change = Change {
        server: &["--fault", "die-while-loading"],
        ..Change::default()
    };
    insta::assert_snapshot!(fails(&change, 13).1, @"
    error: the server exited with code 13 before it was ready; its last words: hint: read the server's log, then run `gemmtune reference-server` again

    hint: read its log: [folder]/runs/[time]-tiny/trials/01-baseline/server.log

    hint: nothing was measured yet, so the configuration may be changed too: then `gemmtune run` again
    ");
}

#[test]
fn a_server_that_hangs_at_start_was_not_ready() {
    let change = Change {
        server: &["--fault", "hang-at-start"],
        ready_timeout_s: Some(1),
        ..Change::default()
    };
    insta::assert_snapshot!(fails(&change, 13).1, @r#"
    error: the server was not ready after 1 s: its log never said "The server is fired up and ready to roll!"

    hint: read its log: [folder]/runs/[time]-tiny/trials/01-baseline/server.log; a slow first start needs a larger `server.ready_timeout_s`

    hint: nothing was measured yet, so the configuration may be changed too: then `gemmtune run` again
    "#);
}

#[test]
fn a_request_that_hangs_fails_the_workload() {
    let change = Change {
        server: &["--fault", "hang-in-request"],
        benchmark_timeout_s: Some(2),
        ..Change::default()
    };
    insta::assert_snapshot!(fails(&change, 12).1, @"
    error: 6 of 6 benchmark requests failed; the first: no end of the answer within 2s

    hint: read the server's log: [folder]/runs/[time]-tiny/trials/01-baseline/server.log

    hint: nothing was measured yet, so the configuration may be changed too: then `gemmtune run` again
    ");
}

#[test]
fn torn_log_lines_are_counted_and_do_not_stop_the_run() {
    let change = Change {
        server: &["--fault", "torn-log-lines"],
        pairs: Some(1),
        ..Change::default()
    };
    let (site, said) = fails(&change, 16);
    assert!(said.contains("1 pair"), "{said}");
    let capture = super::support::document(&site.latest().join("capture.json"));
    assert!(capture["malformed"].as_u64().unwrap() > 0, "{capture}");
}

#[test]
fn numbers_that_are_not_finite_in_the_workload_fail_it() {
    let change = Change {
        server: &["--fault", "nan-above-m=2"],
        ..Change::default()
    };
    insta::assert_snapshot!(fails(&change, 12).1, @"
    error: 6 of 6 benchmark requests failed; the first: the server reported: sample a token: the logits are not finite

    hint: read the server's log: [folder]/runs/[time]-tiny/trials/01-baseline/server.log

    hint: nothing was measured yet, so the configuration may be changed too: then `gemmtune run` again
    ");
}

#[test]
fn numbers_that_are_not_finite_are_stopped_at_verify_and_undone() {
    // Neither the workload nor the greedy questions reach 100 tokens; the layout probe does.
    let change = Change {
        server: &["--fault", "nan-above-m=100"],
        ..Change::default()
    };
    let (site, said) = fails(&change, 16);
    assert!(said.contains("layout"), "{said}");
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
    let said = refusal(&output, &site.folder);
    // Which shape is the first depends on what was tuned in time.
    let (said, _) = said.split_once(", first ").unwrap();
    insta::assert_snapshot!(said, @"error: engagement: [n] shapes were not served by the row that is deployed for them");
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
    insta::assert_snapshot!(refusal(&output, &site.folder), @"
    error: the untuned server (process [pid]) was started with the `GEMMTUNE_REFERENCE_TABLE` of the tuned one: both arms would be the same

    hint: take `GEMMTUNE_REFERENCE_TABLE` out of the launch script

    hint: fix that, then resume with `gemmtune run [folder]/runs/[time]-tiny`
    ");
    site.assert_nothing_left();
}
