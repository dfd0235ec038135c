//! Runs that are killed, interrupted, or started twice.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::said::refusal;
use super::support::{Change, Site, count, document, stderr};

fn send(child: &std::process::Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

/// Waits until the journal holds `records`; false when the process ended before.
fn reached(site: &Site, child: &mut std::process::Child, records: usize) -> bool {
    let until = Instant::now() + Duration::from_secs(120);
    loop {
        if site.journal().len() >= records {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return site.journal().len() >= records;
        }
        assert!(
            Instant::now() < until,
            "the journal never got {records} records"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What happened, without how often it was tried: the kinds of records a run can be killed after.
fn milestones(site: &Site) -> BTreeSet<String> {
    let journal = site.journal();
    let text = |event: &serde_json::Value, field: &str| event[field].to_string();
    journal
        .iter()
        .map(|event| {
            ["kind", "stage", "role", "pair", "arm"]
                .map(|field| text(event, field))
                .join(" ")
        })
        .collect()
}

fn journal_length(site: &Site) -> u64 {
    fs_err::metadata(site.folder.join("runs/latest/journal.jsonl")).map_or(0, |data| data.len())
}

#[test]
fn a_run_killed_after_each_record_ends_as_an_unkilled_one_does() {
    let site = Site::new(&Change {
        pairs: Some(1),
        ..Change::default()
    });
    let mut killed_after: BTreeSet<String> = BTreeSet::new();
    let mut kills = 0;
    loop {
        let mut child = site.start(&["run"]);
        // Let it live until it records something that no earlier process was killed after. Records
        // follow each other closely, so nothing slower than the file's length is looked at meanwhile.
        let mut length = 0;
        let ended = loop {
            let now = journal_length(&site);
            if now != length {
                length = now;
                if !milestones(&site).is_subset(&killed_after) {
                    break None;
                }
            } else if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
        };
        if let Some(status) = ended {
            assert_eq!(status.code(), Some(16), "one pair gives no verdict");
            break;
        }
        child.kill().unwrap();
        let _ = child.wait().unwrap();
        kills += 1;
        killed_after.extend(milestones(&site));
        if site
            .journal()
            .iter()
            .any(|event| event["kind"] == "stage_finished" && event["stage"] == "report")
        {
            break;
        }
    }
    site.assert_nothing_left();
    let journal = site.journal();
    // Two records that follow each other closely are one kill on a busy machine.
    assert!(kills >= 10, "only {kills} kills");
    for stage in [
        "inspect", "baseline", "capture", "plan", "tune", "deploy", "verify", "compare", "report",
    ] {
        assert_eq!(
            count(&journal, "stage_finished", stage),
            1,
            "{stage} is finished once"
        );
    }
    // A finished half of a pair is not measured again; a trial whose stage was killed before it could
    // record its own end is.
    let halves: Vec<_> = journal
        .iter()
        .filter(|event| event["kind"] == "trial_started" && event["role"] == "pair")
        .map(|event| event["trial"].clone())
        .collect();
    let finished = journal
        .iter()
        .filter(|event| event["kind"] == "trial_finished" && halves.contains(&event["trial"]))
        .count();
    assert_eq!(finished, 2, "two halves of one pair, each finished once");
    assert!(site.latest().join("report.html").is_file());
}

#[test]
fn a_server_whose_keeper_was_killed_with_gemmtune_is_ended_at_once_by_the_next_run() {
    let site = Site::new(&Change {
        pairs: Some(1),
        server: &["--fault", "hang-at-start"],
        ..Change::default()
    });
    let mut child = site.start(&["run"]);
    assert!(reached(&site, &mut child, 5));
    let until = Instant::now() + Duration::from_secs(20);
    // A child that was forked and has not become the server yet is a second keeper by its command line.
    let keepers = loop {
        let (keepers, servers): (Vec<u32>, Vec<u32>) = site
            .left_alive()
            .into_iter()
            .partition(|&pid| gemmtune::proc::tree::is_keeper(pid));
        if (keepers.len(), servers.len()) == (1, 1) || Instant::now() > until {
            break keepers;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(keepers.len(), 1);
    // Stopped first, or it would see to the tree of its keeper.
    send(&child, Signal::SIGSTOP);
    kill(Pid::from_raw(keepers[0].cast_signed()), Signal::SIGKILL).unwrap();
    child.kill().unwrap();
    let _ = child.wait().unwrap();
    while site.left_alive().contains(&keepers[0]) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(site.left_alive().len(), 1, "the server is an orphan");
    let orphan = site.left_alive();
    let started = Instant::now();
    let mut next = site.start(&["run"]);
    while !site.left_alive().iter().all(|pid| !orphan.contains(pid)) {
        assert!(started.elapsed() < Duration::from_secs(10), "it lives on");
        std::thread::sleep(Duration::from_millis(10));
    }
    send(&next, Signal::SIGINT);
    assert_eq!(next.wait().unwrap().code(), Some(130));
    site.assert_nothing_left();
}

#[test]
fn ctrl_c_twice_stops_everything_quickly_and_the_run_can_go_on() {
    let site = Site::new(&Change {
        pairs: Some(1),
        ..Change::default()
    });
    let mut child = site.start(&["run"]);
    // In the middle of the baseline trial.
    assert!(reached(&site, &mut child, 5));
    let stopped = Instant::now();
    send(&child, Signal::SIGINT);
    std::thread::sleep(Duration::from_millis(50));
    send(&child, Signal::SIGINT);
    let status = child.wait().unwrap();
    assert!(stopped.elapsed() < Duration::from_secs(10));
    assert_eq!(status.code(), Some(130));
    site.assert_nothing_left();
    assert!(
        site.journal()
            .iter()
            .any(|event| event["kind"] == "interrupted")
    );
    let output = site.run(&["run"]);
    assert_eq!(output.status.code(), Some(16), "{}", stderr(&output));
    let journal = site.journal();
    assert_eq!(count(&journal, "stage_finished", "report"), 1);

    // The stage took what both of its attempts took.
    let last = journal
        .iter()
        .find(|event| event["kind"] == "stage_finished" && event["stage"] == "baseline")
        .and_then(|event| event["seconds"].as_f64())
        .unwrap();
    let status = site.run(&["--json", "status"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    for document in [document(&site.latest().join("report.json")), status] {
        let baseline = &document["stages"][1];
        assert_eq!(baseline["attempts"], 2, "{baseline}");
        assert!(baseline["seconds"].as_f64().unwrap() > last, "{baseline}");
    }
    let report = fs_err::read_to_string(site.latest().join("report.md")).unwrap();
    assert!(report.contains(" in 2 attempts |"), "{report}");
    let status = stderr(&site.run(&["status"]));
    assert!(status.contains(" in 2 attempts)"), "{status}");
}

#[test]
fn a_tune_stage_that_is_interrupted_goes_on_with_the_shapes_that_are_left() {
    let site = Site::new(&Change {
        pairs: Some(1),
        ..Change::default()
    });
    let mut child = site.start(&["run", "--until", "tune"]);
    let results = site.folder.join("runs/latest/tune/results.jsonl");
    let rows = || {
        let text = fs_err::read_to_string(&results).unwrap_or_default();
        text.lines()
            .filter(|line| line.contains(r#""record":"row""#))
            .count()
    };
    while rows() == 0 {
        assert_eq!(child.try_wait().unwrap(), None, "it ended before a row");
        std::thread::sleep(Duration::from_millis(2));
    }
    send(&child, Signal::SIGINT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(count(&site.journal(), "stage_finished", "tune"), 0);
    let raced = rows();
    let output = site.run(&["run", "--until", "tune"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(count(&site.journal(), "stage_finished", "tune"), 1);
    assert!(rows() > raced, "{raced} rows and none since");
}

#[test]
fn a_copy_of_a_run_is_not_gone_on_with_and_takes_nothing_back() {
    let site = Site::new(&Change::default());
    site.run(&["run", "--until", "deploy"]);
    let table = document(&site.latest().join("deploy.json"))["table"].clone();
    let copy = site.folder.join("runs/copy");
    let copied = std::process::Command::new("cp")
        .args(["-r", site.latest().as_str(), copy.as_str()])
        .status()
        .unwrap();
    assert!(copied.success());
    let said = ["run", "undo"].map(|command| {
        let output = site.run(&[command, copy.as_str()]);
        assert_eq!(output.status.code(), Some(17), "{}", stderr(&output));
        refusal(&output, &site.folder)
    });
    insta::assert_snapshot!(said.join("\n"), @"
    error: [folder]/runs/copy is a copy of a run that began in [folder]/runs/[time]-tiny, and names files there

    hint: go on there, or move it there; `gemmtune report [folder]/runs/copy` works on a copy

    error: [folder]/runs/copy is a copy of a run that began in [folder]/runs/[time]-tiny, and names files there

    hint: go on there, or move it there; `gemmtune report [folder]/runs/copy` works on a copy
    ");
    assert!(site.folder.join(table.as_str().unwrap()).is_file());
    assert_eq!(site.run(&["status", copy.as_str()]).status.code(), Some(0));
}

#[test]
fn a_run_folder_that_cannot_be_written_is_the_environments_fault() {
    let site = Site::new(&Change::default());
    site.run(&["run", "--until", "inspect"]);
    // A folder in the lock's place cannot be written by anybody, root included.
    let lock = site.latest().join("lock");
    fs_err::remove_file(&lock).unwrap();
    fs_err::create_dir(&lock).unwrap();
    let output = site.run(&["run"]);
    assert_eq!(output.status.code(), Some(10), "{}", stderr(&output));
}

#[test]
fn a_document_that_was_cut_or_taken_away_is_named_and_no_bug() {
    let site = Site::new(&Change::default());
    site.run(&["run", "--until", "plan"]);
    let plan = site.latest().join("plan.json");
    fs_err::write(&plan, "{\"verdict\": ").unwrap();
    let said = [(); 2].map(|()| {
        let output = site.run(&["run"]);
        assert_eq!(output.status.code(), Some(17), "{}", stderr(&output));
        let _ = fs_err::remove_file(&plan);
        refusal(&output, &site.folder)
    });
    insta::assert_snapshot!(said.join("\n"), @"
    error: `[folder]/runs/[time]-tiny/plan.json` does not parse: EOF while parsing a value at line 1 column [n]

    hint: put the file back, or begin a new run: `gemmtune run --new`

    error: `[folder]/runs/[time]-tiny/plan.json` is gone

    hint: put the file back, or begin a new run: `gemmtune run --new`
    ");
}

#[test]
fn the_second_run_in_a_folder_is_refused_and_told_who_holds_it() {
    let site = Site::new(&Change {
        pairs: Some(1),
        ..Change::default()
    });
    let mut child = site.start(&["run"]);
    assert!(reached(&site, &mut child, 2));
    let output = site.run(&["run"]);
    assert_eq!(output.status.code(), Some(17), "{}", stderr(&output));
    assert!(
        stderr(&output).contains(&format!("process {}", child.id())),
        "{}",
        stderr(&output)
    );
    insta::assert_snapshot!(refusal(&output, &site.folder), @"
    error: failed to lock `[folder]/runs/[time]-tiny/lock`: held by process [pid] on [host] since [time] (`gemmtune run [folder]/runs/[time]-tiny`)

    hint: watch it with `gemmtune status [folder]/runs/[time]-tiny`
    ");
    send(&child, Signal::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    site.assert_nothing_left();
}

#[test]
fn a_folder_that_a_killed_run_only_laid_out_is_left_behind() {
    let site = Site::new(&Change::default());
    for journal in [None, Some(""), Some("{\"at\":\"2026-")] {
        let folder = site.folder.join("runs/19700101T000000Z-tiny");
        fs_err::create_dir_all(&folder).unwrap();
        if let Some(text) = journal {
            fs_err::write(folder.join("journal.jsonl"), text).unwrap();
        }
        let latest = site.folder.join("runs/latest");
        let _ = fs_err::remove_file(&latest);
        fs_err::os::unix::fs::symlink("19700101T000000Z-tiny", &latest).unwrap();
        let output = site.run(&["run", "--until", "inspect"]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_ne!(site.latest(), folder);
    }
}
