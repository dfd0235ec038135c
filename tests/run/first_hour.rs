//! What goes wrong in the first hour: proxies, secrets, configurations that are not right yet, lost files.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use gemmtune::store::ledger::{Change as Edit, Ledger};

use super::said::{line, plain, refusal};
use super::support::{Change, Site, count, document, stderr};

fn one_pair() -> Site {
    Site::new(&Change {
        pairs: Some(1),
        ..Change::default()
    })
}

/// A site whose server is started by a script.
fn with_script(site: &Site, script: &str) {
    let path = site.folder.join("launch.sh");
    fs_err::write(&path, script).unwrap();
    site.edit("command = [", &format!("command = [\"bash\", {path:?}, "));
}

/// Every file below `folder` that holds `text`.
fn holding(folder: &Utf8Path, text: &str) -> Vec<Utf8PathBuf> {
    let mut found = Vec::new();
    for entry in folder.read_dir_utf8().unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(holding(entry.path(), text));
        } else if kind.is_file() {
            let bytes = fs_err::read(entry.path()).unwrap();
            if memchr::memmem::find(&bytes, text.as_bytes()).is_some() {
                found.push(entry.into_path());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn no_proxy_of_the_environment_stands_between_a_run_and_its_server() {
    let site = one_pair();
    // Nobody listens there: whatever asks it fails.
    let proxy = "http://127.0.0.1:9";
    let proxies = [
        "http_proxy",
        "HTTP_PROXY",
        "https_proxy",
        "all_proxy",
        "ALL_PROXY",
    ]
    .map(|name| (name, proxy));
    let output = site.run_with(&proxies, &["run", "--until", "baseline"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    // The benchmark client of the user's is told as well.
    let client = "import os, urllib.request as r; \
                  print('{}', file=open('bench.jsonl', 'w')) if r.proxy_bypass('127.0.0.1') else exit(3)";
    let command = format!("command = [\"python3\", \"-c\", {client:?}]\nresults = \"bench.jsonl\"");
    site.edit(
        "builtin = { concurrency = 3, prompts = 6, input_len = 9, output_len = 5 }",
        &command,
    );
    let output = site.run_with(&proxies, &["run", "--new", "--until", "baseline"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn secrets_reach_no_terminal_and_no_document_of_the_run() {
    const TOKEN: &str = "hf_AbCdEfGhIjKl";
    const KEY: &str = "sk-0123456789";
    let site = one_pair();
    with_script(
        &site,
        "echo \"api_key='$2' $HF_TOKEN\"\n[ -e go ] || exit 3\nshift 2\nexec \"$@\"\n",
    );
    site.edit(
        "launch.sh\", ",
        &format!("launch.sh\", \"--api-key\", \"{KEY}\", "),
    );
    site.edit(
        "[benchmark]",
        &format!("env = {{ HF_TOKEN = \"{TOKEN}\" }}\n[benchmark]"),
    );
    let dry = site.run(&["run", "--dry-run", "--json"]);
    let failed = site.run(&["run"]);
    assert_eq!(failed.status.code(), Some(13), "{}", stderr(&failed));
    insta::assert_snapshot!(refusal(&failed, &site.folder), @"
    error: the server exited with code 3 before it was ready; its last words: api_key='***' ***

    hint: read its log: [folder]/runs/[time]-tiny/trials/01-baseline/server.log

    hint: nothing was measured yet, so the configuration may be changed too: then `gemmtune run` again
    ");
    fs_err::write(site.folder.join("go"), "").unwrap();
    let served = site.run(&["run"]);
    assert_eq!(served.status.code(), Some(16), "{}", stderr(&served));
    site.edit(KEY, "sk-another-one");
    let differs = site.run(&["run", "--dry-run", site.latest().as_str()]);
    for output in [dry, failed, served, differs] {
        for text in [&output.stdout, &output.stderr] {
            let text = String::from_utf8_lossy(text);
            assert!(!text.contains(TOKEN) && !text.contains(KEY), "{text}");
        }
    }
    let run = site.latest();
    for secret in [TOKEN, KEY] {
        for file in holding(&run, secret) {
            let name = file.file_name().unwrap();
            assert!(["run.toml", "server.log"].contains(&name), "{file}");
            let mode = fs_err::metadata(&file).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{file}");
        }
    }
    let trial = run.join("trials/01-baseline");
    let started = document(&trial.join("command.json"));
    assert_eq!(started["env"]["HF_TOKEN"], "***");
    assert!(
        fs_err::read_to_string(run.join("report.json"))
            .unwrap()
            .contains("--api-key '***'")
    );
}

#[test]
fn a_configuration_may_be_mended_until_something_was_measured() {
    let site = one_pair();
    site.edit("\"--port\",", "\"--no-such-option\", \"--port\",");
    let output = site.run(&["run"]);
    assert_eq!(output.status.code(), Some(13), "{}", stderr(&output));
    insta::assert_snapshot!(refusal(&output, &site.folder), @"
    error: the server exited with code 2 before it was ready; its last words: For more information, try '--help'.

    hint: read its log: [folder]/runs/[time]-tiny/trials/01-baseline/server.log

    hint: nothing was measured yet, so the configuration may be changed too: then `gemmtune run` again
    ");
    let first = site.latest();
    site.edit("\"--no-such-option\", ", "");
    let output = site.run(&["run", "--until", "baseline"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let anew = plain(line(&stderr(&output), "beginning a new run"), &site.folder);
    insta::assert_snapshot!(anew, @"the configuration was changed since [folder]/runs/[time]-tiny began, which had measured nothing yet: beginning a new run");
    assert_ne!(site.latest(), first);
    let how_long = stderr(&site.run(&["run", "--dry-run"]));
    assert!(how_long.contains("how long      about"), "{how_long}");
    site.edit("pairs = 1", "pairs = 2");
    let output = site.run(&["run"]);
    assert_eq!(output.status.code(), Some(17), "{}", stderr(&output));
    insta::assert_snapshot!(refusal(&output, &site.folder), @"
    error: the unfinished run [folder]/runs/[time]-tiny began with another configuration:
    @@ -34 +34 @@
    -pairs = 1
    +pairs = 2


    hint: resume it as it was: `gemmtune run [folder]/runs/[time]-tiny`; or begin a new one: `gemmtune run --new`
    ");
}

#[test]
fn a_port_that_is_taken_is_waited_for_and_takes_no_deployment_back() {
    let site = one_pair();
    site.run(&["run", "--until", "deploy"]);
    let config = fs_err::read_to_string(site.folder.join("gemmtune.toml")).unwrap();
    let port = config.split("port = ").nth(1).unwrap();
    let port: u16 = port.lines().next().unwrap().parse().unwrap();
    // As a server that was killed a moment ago holds it.
    let dying = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_secs(2));
            drop(dying);
        });
        site.run(&["run", "--until", "verify"])
    });
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let undone = site.journal().iter().any(|event| event["kind"] == "undone");
    assert!(!undone, "{:?}", site.journal());
}

#[test]
fn a_draft_that_is_not_filled_in_names_what_it_lacks() {
    let site = one_pair();
    let path = site.folder.join("gemmtune.toml");
    let text = fs_err::read_to_string(&path).unwrap();
    let asked = text.replace("kind = \"reference\"", "# ? kind = … # no server was seen");
    fs_err::write(&path, asked).unwrap();
    let output = site.run(&["run"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    insta::assert_snapshot!(refusal(&output, &site.folder), @"
    error: `gemmtune.toml` is not complete; it lacks
      line 13: backend.kind: no server was seen
      backend.python: the interpreter that runs the server

    hint: fill them in (the lines that start with `# ?`), then `gemmtune run --dry-run gemmtune.toml`
    ");
    assert!(!site.folder.join("runs").exists());
    // Another port than the server's.
    fs_err::write(&path, text.replace("\"--port\", \"", "\"--port\", \"1")).unwrap();
    let said = [&["run", "--dry-run"][..], &["run"]].map(|arguments| {
        let output = site.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        refusal(&output, &site.folder)
    });
    assert_eq!(said[0], said[1]);
    let (_, port) = text.split_once("\"--port\", \"").unwrap();
    let (port, _) = port.split_once('"').unwrap();
    insta::assert_snapshot!(said[0].replace(port, "[port]"), @"
    error: the configuration contradicts itself: `server.port` is [port] and the server command says `--port 1[port]`

    hint: make the two agree in gemmtune.toml
    ");
}

#[test]
fn a_trial_whose_results_were_lost_is_measured_anew() {
    let site = Site::new(&Change::default());
    let mut child = site.start(&["run"]);
    let until = Instant::now() + Duration::from_secs(300);
    let half = loop {
        let journal = site.journal();
        let halves = journal.iter().filter(|event| event["role"] == "pair");
        let finished = |trial: &serde_json::Value| {
            let ended = |event: &&serde_json::Value| {
                event["kind"] == "trial_finished" && event["trial"] == *trial
            };
            journal.iter().any(|event| ended(&event))
        };
        let done = halves
            .map(|event| &event["trial"])
            .find(|trial| finished(trial));
        if let Some(trial) = done {
            break trial.as_u64().unwrap();
        }
        assert!(Instant::now() < until && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    };
    child.kill().unwrap();
    let _ = child.wait().unwrap();
    let results = site
        .latest()
        .join(format!("trials/{half:02}-baseline/bench.jsonl"));
    fs_err::remove_file(results).unwrap();
    let output = site.run(&["run"]);
    assert_eq!(output.status.code(), Some(16), "{}", stderr(&output));
    let said = format!("the results of trial {half} are gone or damaged: it is measured again");
    assert!(stderr(&output).contains(&said), "{}", stderr(&output));
    assert_eq!(document(&site.latest().join("compare.json"))["pairs"], 2);
    assert_eq!(count(&site.journal(), "stage_finished", "compare"), 1);
}

#[test]
fn what_the_ledger_knows_is_taken_back_although_the_journal_is_damaged() {
    let site = one_pair();
    site.run(&["run", "--until", "inspect"]);
    let run = site.latest();
    let edited = site.folder.join("fp8_utils.py");
    let edit = || {
        fs_err::write(&edited, "before\n").unwrap();
        let mut ledger = Ledger::open(&run.join("ledger"), "a test").unwrap();
        let change = Edit::Edit {
            path: edited.clone(),
            before: b"before\n".to_vec(),
            after: b"after\n".to_vec(),
        };
        ledger
            .apply("switch", serde_json::Value::Null, &[change])
            .unwrap();
    };
    edit();
    let journal = run.join("journal.jsonl");
    let text = fs_err::read_to_string(&journal).unwrap();
    fs_err::write(&journal, text.replacen("\"event\"", "\"ev", 1)).unwrap();
    let output = site.run(&["undo", "--dry-run"]);
    insta::assert_snapshot!(plain(&stderr(&output), &site.folder), @"
    warning: failed to read the journal `[folder]/runs/[time]-tiny/journal.jsonl`: line 1 is damaged (expected `:` at line 1 column [n]): what was changed outside the run folder is known from its ledger alone
    would take back what was done to [folder]/fp8_utils.py
    ");
    let output = site.run(&["undo"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    insta::assert_snapshot!(plain(&stderr(&output), &site.folder), @"
    warning: failed to read the journal `[folder]/runs/[time]-tiny/journal.jsonl`: line 1 is damaged (expected `:` at line 1 column [n]): what was changed outside the run folder is known from its ledger alone
    took back what was done to [folder]/fp8_utils.py
    ");
    assert_eq!(fs_err::read_to_string(&edited).unwrap(), "before\n");

    // What is damaged itself takes nothing back, and says so.
    edit();
    let ledger = run.join("ledger/ledger.jsonl");
    let text = fs_err::read_to_string(&ledger).unwrap();
    fs_err::write(&ledger, text.replacen("\"event\"", "\"ev", 1)).unwrap();
    let output = site.run(&["undo"]);
    assert_eq!(output.status.code(), Some(10), "{}", stderr(&output));
    insta::assert_snapshot!(plain(&stderr(&output), &site.folder), @"
    error: failed to read the journal `[folder]/runs/[time]-tiny/ledger/ledger.jsonl`: line 1 is damaged (expected `:` at line 1 column [n])

    hint: nothing was taken back, because what is damaged says what was changed; the lines before it can be read, and the originals are in [folder]/runs/[time]-tiny/ledger/saved, each named by the SHA-256 of its bytes
    ");
    assert_eq!(fs_err::read_to_string(&edited).unwrap(), "after\n");
}

#[test]
fn a_plain_run_goes_on_with_the_latest_and_two_runs_of_a_host_are_told() {
    let site = one_pair();
    let here = [("TMPDIR", site.folder.as_str())];
    site.run_with(&here, &["run", "--until", "inspect"]);
    let run = site.latest();
    // As a demo leaves it.
    fs_err::rename(
        site.folder.join("gemmtune.toml"),
        site.folder.join("other.toml"),
    )
    .unwrap();
    let output = site.run_with(&here, &["run", "--until", "inspect"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        stderr(&output).contains(&format!("resuming {run}")),
        "{}",
        stderr(&output)
    );

    let place = site.folder.read_dir_utf8().unwrap().flatten();
    let mut place = place.filter(|entry| entry.file_name().starts_with("gemmtune-"));
    let other = place.next().unwrap().into_path().join("7-7.json");
    let holder = r#"{"holder": {"pid": 7, "host": "h", "command": "gemmtune run", "since": "2026-01-01T00:00:00Z"}, "devices": []}"#;
    fs_err::write(&other, holder).unwrap();
    let at_work = std::fs::File::open(&other).unwrap();
    at_work.lock().unwrap();
    let output = site.run_with(&here, &["run", "--new", "--until", "inspect", "other.toml"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    insta::assert_snapshot!(line(&stderr(&output), "process 7 on h"), @"          another run is active on this host, and each of the two measures the load of the other: process 7 on h since 2026-01-01T00:00:00Z (`gemmtune run`)");
}
