//! What becomes of a run when candidates, workers or the run itself go wrong.

use std::time::Duration;

use camino::Utf8PathBuf;
use gemmtune::problem::{Op, Shape};
use gemmtune::proc::{Interrupt, Keeper};
use gemmtune::tune::{self, Effort, TuneError, TuneEvent, TuneOutcome, TuneRequest};
use serde_json::json;

use super::fake::{self, Fake};

pub(super) struct Folder {
    _keep: tempfile::TempDir,
    path: Utf8PathBuf,
}

pub(super) fn folder() -> Folder {
    let keep = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::try_from(keep.path().join("out")).unwrap();
    Folder { _keep: keep, path }
}

fn shapes(ms: &[u32]) -> Vec<Shape> {
    ms.iter()
        .map(|m| Shape {
            op: Op::Blockscale,
            m: *m,
            n: 128,
            k: 128,
            dtype: String::new(),
        })
        .collect()
}

pub(super) fn request<'a>(backend: &'a Fake, ms: &[u32], folder: &Folder) -> TuneRequest<'a> {
    TuneRequest {
        backend,
        shapes: shapes(ms),
        folder: folder.path.clone(),
        command: fake::command(),
        keeper: Keeper::new(env!("CARGO_BIN_EXE_gemmtune").into()),
        workers: None,
        budget: None,
        effort: Effort::Quick,
    }
}

fn run(request: &TuneRequest<'_>) -> (Result<TuneOutcome, TuneError>, Vec<TuneEvent>) {
    let mut events = Vec::new();
    let mut keep = |event: &TuneEvent| events.push(event.clone());
    let outcome = tune::run(request, &mut keep, &Interrupt::new());
    (outcome, events)
}

/// The winners' times by M, as the table has them.
pub(super) fn table(folder: &Folder) -> String {
    fs_err::read_to_string(folder.path.join("table.txt")).unwrap()
}

#[test]
fn candidates_that_fault_hang_or_compute_nan_are_named_and_the_table_is_right() {
    name_the_faulty(&[8], "8 10.0\n");
}

#[test]
fn whoever_was_under_way_beside_a_fault_is_not_blamed() {
    name_the_faulty(&[8, 16], "8 10.0\n16 10.0\n");
}

fn name_the_faulty(ms: &[u32], expected_table: &str) {
    let folder = folder();
    let backend = Fake::new(&[
        json!({"us": 20.0}),
        json!({"us": 10.0}),
        json!({"us": 1.0, "does": "fault"}),
        json!({"us": 2.0, "does": "hang"}),
        json!({"us": 3.0, "does": "nan"}),
        json!({"us": 4.0, "does": "garbage"}),
        json!({"us": 5.0, "does": "dies compiling"}),
        json!({"us": 6.0, "does": "refuse"}),
        json!({"us": 7.0, "does": "fault in company"}),
        json!({"us": 15.0}),
    ]);
    let mut request = request(&backend, ms, &folder);
    request.workers = Some(1);
    let (outcome, events) = run(&request);
    let outcome = outcome.unwrap();
    assert_eq!(table(&folder), expected_table);
    assert!(!outcome.rows[0].incumbent_kept);
    let mut named: Vec<(f64, &str)> = outcome
        .quarantined
        .iter()
        .map(|entry| (entry.candidate["us"].as_f64().unwrap(), &*entry.evidence))
        .collect();
    named.sort_by(|a, b| a.0.total_cmp(&b.0));
    let expected = [
        (1.0, "exited with code 134"),
        (2.0, "no reply within"),
        (3.0, "wrong numbers: 1 elements not finite"),
        (4.0, "understand the worker"),
        (5.0, "while compiling alone"),
        (7.0, "beside another"),
    ];
    let expected: Vec<_> = expected
        .iter()
        .flat_map(|one| std::iter::repeat_n(*one, ms.len()))
        .collect();
    assert_eq!(named.len(), expected.len(), "{named:?}");
    for ((us, evidence), (expected_us, words)) in named.iter().zip(expected) {
        assert!(
            (us - expected_us).abs() < 1e-9 && evidence.contains(words),
            "{us}: {evidence}"
        );
    }
    assert!(outcome.restarts >= 5);
    assert!(
        events
            .iter()
            .any(|event| matches!(event, TuneEvent::Quarantined(_)))
    );
}

#[test]
fn a_fault_that_does_not_come_again_alone_is_forgiven() {
    let folder = folder();
    let mark = folder.path.with_extension("mark");
    let backend = Fake::new(&[
        json!({"us": 20.0}),
        json!({"us": 10.0, "does": "fault once", "mark": mark.as_str()}),
        json!({"us": 15.0}),
    ]);
    let (outcome, _) = run(&request(&backend, &[8], &folder));
    let outcome = outcome.unwrap();
    assert_eq!(table(&folder), "8 10.0\n");
    assert_eq!((outcome.quarantined.len(), outcome.restarts), (0, 1));
}

#[test]
fn a_worker_is_given_a_second_request_before_it_has_answered_the_first() {
    let folder = folder();
    let mark = folder.path.with_extension("mark");
    let backend = Fake::new(&[
        json!({"us": 20.0}),
        json!({"us": 10.0, "does": "wait for another request", "mark": mark.as_str()}),
    ]);
    let mut request = request(&backend, &[8, 16], &folder);
    request.workers = Some(1);
    let (outcome, _) = run(&request);
    let outcome = outcome.unwrap();
    assert!(mark.exists());
    assert_eq!((outcome.rows.len(), outcome.restarts), (2, 0));
}

#[test]
fn a_second_run_repeats_nothing_and_a_longer_list_goes_on() {
    let folder = folder();
    let backend = Fake::new(&[json!({"us": 20.0}), json!({"us": 10.0})]);
    let (first, _) = run(&request(&backend, &[1, 2, 4], &folder));
    assert_eq!(first.unwrap().rows.len(), 3);
    let (second, events) = run(&request(&backend, &[1, 2, 4, 8], &folder));
    let second = second.unwrap();
    assert_eq!(second.resumed.len(), 3);
    let finished = |event: &&TuneEvent| matches!(event, TuneEvent::Finished { .. });
    assert_eq!(events.iter().filter(finished).count(), 1);
    assert_eq!(table(&folder), "1 10.0\n2 10.0\n4 10.0\n8 10.0\n");
}

#[test]
fn a_quarantined_candidate_is_not_tried_again_by_a_later_run() {
    let folder = folder();
    let mut backend = Fake::new(&[json!({"us": 20.0}), json!({"us": 1.0, "does": "fault"})]);
    let (first, _) = run(&request(&backend, &[1], &folder));
    assert_eq!(first.unwrap().quarantined.len(), 1);
    // Another incumbent: the race is run again.
    backend.candidates.insert(0, json!({"us": 30.0}));
    let (second, _) = run(&request(&backend, &[1], &folder));
    let second = second.unwrap();
    assert_eq!(second.restarts, 0);
    assert_eq!(table(&folder), "1 20.0\n");
}

#[test]
fn a_shape_on_which_nothing_runs_is_a_failure_with_its_reason() {
    let folder = folder();
    let backend = Fake::new(&[json!({"us": 20.0, "does": "refuse"})]);
    let (outcome, _) = run(&request(&backend, &[1], &folder));
    let outcome = outcome.unwrap();
    assert!(outcome.rows.is_empty());
    insta::assert_snapshot!(outcome.failed[0].reason, @"no candidate ran with right numbers; last: OutOfResources: shared memory 300000 > 232448");
}

#[test]
fn a_spent_budget_keeps_what_is_finished_and_names_the_rest() {
    let folder = folder();
    let backend = Fake::new(&[
        json!({"us": 20.0, "does": "slow"}),
        json!({"us": 10.0, "does": "slow"}),
    ]);
    let mut short = request(&backend, &[1, 2, 4, 8, 16, 32], &folder);
    short.workers = Some(1);
    short.budget = Some(Duration::from_millis(2000));
    let (outcome, _) = run(&short);
    let outcome = outcome.unwrap();
    assert!(!outcome.rows.is_empty() && !outcome.not_reached.is_empty());
    assert_eq!(outcome.rows.len() + outcome.not_reached.len(), 6);
    // Without a budget the same folder is finished.
    let (outcome, _) = run(&request(&backend, &[1, 2, 4, 8, 16, 32], &folder));
    assert_eq!(outcome.unwrap().rows.len(), 6);
}

#[test]
fn the_time_of_a_candidate_that_hangs_is_not_the_races() {
    let folder = folder();
    let mut backend = Fake::new(&[
        json!({"us": 20.0}),
        json!({"us": 1.0, "does": "hang"}),
        json!({"us": 10.0}),
    ]);
    // One after another, so that the best is not timed before the other has hung twice: more than three fifths of what then is left.
    backend.pace.batch = 1;
    backend.pace.under_way = 1;
    backend.pace.side_by_side = 1;
    backend.pace.deadlines.floor = Duration::from_secs(4);
    let mut short = request(&backend, &[8], &folder);
    short.workers = Some(1);
    short.budget = Some(Duration::from_secs(16));
    let (outcome, events) = run(&short);
    let outcome = outcome.unwrap();
    let restarted = |event: &&TuneEvent| matches!(event, TuneEvent::WorkerRestarted { .. });
    assert_eq!(events.iter().filter(restarted).count(), 2, "{events:?}");
    assert_eq!(outcome.quarantined.len(), 1);
    assert_eq!(table(&folder), "8 10.0\n", "{outcome:?}");
}

#[test]
fn an_interrupt_ends_the_run_soon_and_keeps_what_is_finished() {
    let folder = folder();
    let backend = Fake::new(&[
        json!({"us": 20.0, "does": "slow"}),
        json!({"us": 10.0, "does": "slow"}),
    ]);
    let request = request(&backend, &[1, 2, 4, 8, 16, 32, 64, 128], &folder);
    let interrupt = Interrupt::new();
    let mut raised_at = None;
    let outcome = tune::run(
        &request,
        &mut |event| {
            if matches!(event, TuneEvent::Finished { .. }) && raised_at.is_none() {
                interrupt.raise();
                raised_at = Some(std::time::Instant::now());
            }
        },
        &interrupt,
    )
    .unwrap();
    assert!(outcome.interrupted);
    assert!(raised_at.unwrap().elapsed() < Duration::from_secs(5));
    assert!(!outcome.rows.is_empty() && outcome.rows.len() < 8);
    assert_eq!(table(&folder).lines().count(), outcome.rows.len());
}

#[test]
fn a_second_run_into_the_folder_is_refused_and_told_who_is_there() {
    let folder = folder();
    fs_err::create_dir_all(&folder.path).unwrap();
    let _held = tune::results::lock(&folder.path).unwrap();
    let backend = Fake::new(&[json!({"us": 20.0})]);
    let (outcome, _) = run(&request(&backend, &[1], &folder));
    let error = outcome.unwrap_err().to_string();
    assert!(
        error.contains(&format!("{}", std::process::id())),
        "{error}"
    );
}

/// A launcher passes on standard streams only: replies are marked, stray prints are not replies.
#[test]
fn a_launcher_that_prints_does_not_disturb_the_replies() {
    let folder = folder();
    let backend = Fake::new(&[json!({"us": 20.0}), json!({"us": 10.0})]);
    let mut launched = request(&backend, &[1, 2], &folder);
    let script = "echo 'launcher: queued'; exec \"$@\"";
    launched.command.launcher = ["sh", "-c", script, "sh"].map(str::to_owned).into();
    launched.workers = Some(2);
    let (outcome, _) = run(&launched);
    assert_eq!(outcome.unwrap().rows.len(), 2);
    let log = fs_err::read_to_string(folder.path.join("workers/worker-0.log")).unwrap();
    assert!(
        log.contains("launcher: queued") && log.contains("a library prints"),
        "{log}"
    );
}

/// The launcher works once for each of two workers; then one node is gone: its shape goes to the other.
#[test]
fn a_lost_node_gives_its_shapes_to_the_others() {
    let folder = folder();
    let backend = Fake::new(&[
        json!({"us": 20.0, "does": "slow"}),
        json!({"us": 10.0, "does": "slow"}),
    ]);
    let mut request = request(&backend, &[1, 2, 4, 8], &folder);
    request.workers = Some(2);
    let down = folder.path.join("node-1-is-down");
    // The node of worker 1 goes down half a second after the worker came up, and stays down.
    let script = format!(
        "case \"$*\" in *'--device 1'*) [ -e {down} ] && exit 9; touch {down}; \
         (sleep 0.5; kill -9 $$) & exec \"$@\";; *) exec \"$@\";; esac"
    );
    request.command.launcher = vec!["sh".to_owned(), "-c".to_owned(), script, "sh".to_owned()];
    let (outcome, _) = run(&request);
    let outcome = outcome.unwrap();
    assert_eq!(outcome.lost.len(), 1, "{:?}", outcome.lost);
    assert!(outcome.quarantined.is_empty(), "{:?}", outcome.quarantined);
    assert_eq!(table(&folder), "1 10.0\n2 10.0\n4 10.0\n8 10.0\n");
}

#[test]
fn a_worker_that_does_not_come_up_is_an_error_that_quotes_its_log() {
    let folder = folder();
    let backend = Fake::new(&[json!({"us": 20.0})]);
    let mut request = request(&backend, &[1], &folder);
    request.command.argv = ["sh", "-c", "echo no CUDA device >&2; exit 3"]
        .map(str::to_owned)
        .into();
    let (outcome, _) = run(&request);
    let error = outcome.unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    insta::assert_snapshot!(super::said::plain(&cause, folder.path.as_str()), @"
    hear from the worker: it exited with code 3
        no CUDA device
    ");
}

#[test]
fn a_worker_on_another_device_than_the_first_races_nothing_and_is_named() {
    let folder = folder();
    let mut backend = Fake::new(&[json!({"us": 20.0}), json!({"us": 10.0, "does": "slow"})]);
    backend.odd = Some(1);
    let mut request = request(&backend, &[8, 16, 32], &folder);
    request.workers = Some(2);
    let outcome = run(&request).0.unwrap();
    assert_eq!(table(&folder), "8 10.0\n16 10.0\n32 10.0\n");
    assert_eq!(outcome.device.name, "fake device");
    assert_eq!(
        outcome.lost,
        ["its device differs in device: `another device`, the others have `fake device`"]
    );
}
