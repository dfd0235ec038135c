//! The tuned kernels against what serves today: rows that are not faster are left where they were.
//!
//! The times are made up (`PLAYED_TRITON`, and the stand-in tuner's model); what is shown is what they lead to.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

use crate::said::{line, plain, refusal, uncounted};
use crate::site::{Change, Site, count, document, stderr};

/// What became of every planned shape of the latest run.
fn contests(site: &Site) -> Vec<Value> {
    let tuned = document(&site.latest().join("tune.json"));
    tuned["contests"].as_array().unwrap().clone()
}

fn findings(site: &Site) -> BTreeSet<(u64, String)> {
    contests(site)
        .iter()
        .map(|contest| {
            (
                contest["shape"]["m"].as_u64().unwrap(),
                contest["finding"].as_str().unwrap().to_owned(),
            )
        })
        .collect()
}

fn set(of: &[(u64, &str)]) -> BTreeSet<(u64, String)> {
    of.iter()
        .map(|(m, word)| (*m, (*word).to_owned()))
        .collect()
}

/// Problems of a file of answers that were begun, in order.
fn begun(site: &Site, name: &str) -> Vec<String> {
    let text = fs_err::read_to_string(site.latest().join("tune").join(name)).unwrap();
    text.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|line| Some(line.get("doing")?.to_string()))
        .collect()
}

#[test]
fn m_at_which_triton_is_faster_stay_there_even_where_a_coarser_row_would_take_them() {
    // Triton takes 60 us, 10 at M of 33 to 48, and 60 again above: CK takes 20 to 40 everywhere.
    let site = Site::new(&Change {
        env: &[("PLAYED_TRITON", "60;33:10;49:60")],
        ..Change::default()
    });
    site.loads(&[40, 60]);
    let output = site.run(&["run", "--json"]);
    assert_eq!(output.status.code(), Some(16), "{}", stderr(&output));
    assert_eq!(
        findings(&site),
        set(&[(16, "faster"), (48, "slower"), (64, "faster")])
    );
    for contest in contests(&site) {
        assert_eq!(contest["in_turn"], true, "two functions of one process");
        assert_eq!(contest["today_kernel"], "_gemm_a8w8_blockscale_kernel");
        let gain = &contest["gain"];
        let (low, high) = (
            gain["low"].as_f64().unwrap(),
            gain["high"].as_f64().unwrap(),
        );
        assert!(low < high, "{contest}: rounds differ");
        // Quantiser and kernel: 2 us and what PLAYED_TRITON says.
        let today = contest["today_us"].as_f64().unwrap();
        let expected = if contest["shape"]["m"] == 48 {
            12.0
        } else {
            62.0
        };
        assert!((today / expected - 1.0).abs() < 0.01, "{contest}");
    }

    // By the runtime's own look-up the row of 64 would serve M = 40, and the route leaves it where it was.
    let run = site.latest();
    let deployed = document(&run.join("deploy.json"));
    let table = deployed["env"]["AITER_CONFIG_GEMM_A8W8_BLOCKSCALE"]
        .as_str()
        .unwrap();
    let asked = Command::new("python3")
        .args([
            "-c",
            "import sys; from aiter import _lookup as l; print([l.find(l.table(sys.argv[1]), m, 256, 128)[0] for m in (16, 40, 64)])",
            table,
        ])
        .env("PYTHONPATH", site.python_path().split_once('=').unwrap().1)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    let found = String::from_utf8_lossy(&asked.stdout);
    assert_eq!(found.trim(), "[16, 64, 64]", "{}", stderr(&asked));
    let decision = document(&run.join("deploy/switch.json"));
    let rules = decision["actions"][0]["rules"].as_array().unwrap();
    let taken = |m: u64| {
        rules.iter().any(|rule| {
            rule["min_M"].as_u64().unwrap_or(0) <= m
                && rule["max_M"].as_u64().is_none_or(|most| m <= most)
        })
    };
    let wanted = [1, 16, 33, 40, 48, 60, 64].map(taken);
    assert_eq!(
        wanted,
        [true, true, false, false, false, true, true],
        "{decision}"
    );
    // What the server looked up while it served: M = 40 is in the workload, and is not among it.
    let verified = document(&run.join("verify.json"));
    for list in ["missed", "unplanned", "other_kernel"] {
        assert_eq!(
            verified["engagement"][list],
            serde_json::json!([]),
            "{verified}"
        );
    }
    let shapes = fs_err::read_to_string(run.join("shapes.csv")).unwrap();
    assert!(shapes.contains(",40,256,128"), "{shapes}");
    let trial = verified["trial"].as_u64().unwrap();
    let log = fs_err::read_to_string(run.join(format!("trials/{trial:02}-verify/server.log")));
    let log = log.unwrap();
    assert!(log.contains("shape is M:60, N:256, K:128, found padded_M: 64"));
    assert!(!log.contains("shape is M:40,"), "M = 40 went to CK");

    let report = fs_err::read_to_string(run.join("report.md")).unwrap();
    assert!(
        report.contains("| 256 | 128 | stays on Triton: CK")
            && report.contains("x slower at M = 48 |"),
        "{report}"
    );
    let page = fs_err::read_to_string(run.join("report.html")).unwrap();
    assert!(page.contains("Left with what served before"));
    let report = document(&run.join("report.json"));
    crate::schema::check("report", &report);
    assert_eq!(report["stays"].as_array().unwrap().len(), 2, "both weights");
    assert_eq!(site.run(&["undo"]).status.code(), Some(0));
}

#[test]
fn where_triton_is_faster_everywhere_nothing_is_deployed() {
    let site = Site::new(&Change {
        env: &[("PLAYED_TRITON", "10")],
        ..Change::default()
    });
    let before = site.trees();
    let output = site.run(&["run", "--json"]);
    let journal = site.journal();
    assert_eq!(
        count(&journal, "stage_finished", "tune"),
        1,
        "{}",
        stderr(&output)
    );
    for stage in ["deploy", "verify", "compare"] {
        assert_eq!(count(&journal, "stage_started", stage), 0, "{stage}");
    }
    assert_eq!(site.trees(), before, "no module was built in the tree");
    assert!(!site.latest().join("deploy").exists());
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let report = fs_err::read_to_string(site.latest().join("report.md")).unwrap();
    insta::assert_snapshot!(uncounted(line(&report, "**Nothing to gain")), @"**Nothing to gain: no kernel was found that is faster than what serves any of [n] shapes today; at best, at M=[m] N=256 K=128, CK [ratio]x slower against Triton.**");
    assert!(report.contains("x slower against Triton"), "{report}");
    assert!(report.contains("slower at every planned M |"), "{report}");
    assert_eq!(output.status.code(), Some(0), "{printed}");
}

#[test]
fn a_shape_whose_time_today_is_not_known_stays_and_is_named() {
    let mut said = Vec::new();
    for fault in ["unseen", "raises", "dies"] {
        let site = Site::new(&Change {
            // The quantiser's kernel is seen all the same.
            env: &[
                ("PLAYED_TRITON", &format!("60;48:{fault}")),
                (
                    "PLAYED_QUANTISER",
                    if fault == "unseen" { "unseen" } else { "2" },
                ),
            ],
            ..Change::default()
        });
        let output = site.run(&["run", "--until", "deploy"]);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{fault}: {}",
            stderr(&output)
        );
        assert_eq!(
            findings(&site),
            set(&[(16, "faster"), (48, "not_timed")]),
            "{fault}"
        );
        for contest in contests(&site) {
            if contest["shape"]["m"] == 48 {
                said.push(plain(contest["said"].as_str().unwrap(), &site.folder));
            }
        }
        // What was answered before a process died is not asked again.
        for name in ["serving-today.jsonl", "serving-tuned.jsonl"] {
            let begun = begun(&site, name);
            let distinct: BTreeSet<&String> = begun.iter().collect();
            assert_eq!(begun.len(), distinct.len(), "{fault}: {begun:?}");
        }
        let decision = document(&site.latest().join("deploy/switch.json"));
        for rule in decision["actions"][0]["rules"].as_array().unwrap() {
            assert_eq!(rule["max_M"], 16, "{fault}: {decision}");
        }
    }
    said.dedup();
    insta::assert_snapshot!(said.join("\n"), @"
    today: RuntimeError: the profiler saw nothing on the device
    today: RuntimeError: out of resource: shared memory
    signal 11 ended the process
    ");
}

#[test]
fn a_device_that_cannot_be_timed_ends_the_run_before_tuning() {
    let site = Site::new(&Change {
        env: &[("PLAYED_TRITON", "raises")],
        ..Change::default()
    });
    let output = site.run(&["run"]);
    assert_eq!(output.status.code(), Some(10), "{}", stderr(&output));
    insta::assert_snapshot!(refusal(&output, &site.folder), @"
    error: what serves today could not be timed for any of [n] shapes: today: RuntimeError: out of resource: shared memory

    hint: a profiler must see the GPU: `gemmtune doctor` looks at the device, `gemmtune probe` times a table

    hint: fix that, then resume with `gemmtune run [folder]/runs/[time]-played`
    ");
    assert!(!site.latest().join("tune/results.jsonl").exists());
}

#[test]
fn a_table_that_serves_today_is_timed_in_a_process_of_its_own() {
    // With its variable 0.5.22 runs CK today: one table is read in a process, so there are two.
    let site = Site::new(&Change {
        era: Some("e7"),
        env: &[("SGLANG_AITER_GFX942_BLOCKSCALE_USE_CK", "1")],
        ..Change::default()
    });
    let output = site.run(&["run", "--until", "tune"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for contest in contests(&site) {
        assert_eq!(contest["in_turn"], false);
        assert_eq!(contest["today"], "the row in use");
        assert_eq!(contest["today_kernel"], "default_16x128x256");
        assert_eq!(contest["finding"], "faster", "{contest}");
    }
}
