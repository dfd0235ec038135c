//! A row that won at one M of its bucket is tried at the bucket's ends before it is written.

use gemmtune::proc::Interrupt;
use gemmtune::tune::ends;
use gemmtune::tune::protocol::Candidate;
use gemmtune::tune::{TuneEvent, TuneOutcome};
use serde_json::json;

use super::fake::Fake;
use super::pool::{Folder, folder, request, table};

/// Races at M = 48, of the bucket from 33 to 64, against a row of 20 us.
fn tuned(folder: &Folder, challenger: Candidate) -> TuneOutcome {
    stopped(folder, challenger, false)
}

/// The same; stopped by the user, if told, as soon as that race is over.
fn stopped(folder: &Folder, challenger: Candidate, after_race: bool) -> TuneOutcome {
    let backend = Fake::new(&[json!({"us": 20.0}), challenger]);
    let request = request(&backend, &[48], folder);
    let interrupt = Interrupt::new();
    let mut events: Vec<TuneEvent> = Vec::new();
    let outcome = ends::run(
        &request,
        &mut |event| {
            if after_race && matches!(event, TuneEvent::Finished { .. }) {
                interrupt.raise();
            }
            events.push(event.clone());
        },
        &interrupt,
    );
    let started = events
        .iter()
        .filter(|event| matches!(event, TuneEvent::Started { .. }));
    assert_eq!(started.count(), 1, "the ends are no tuning of their own");
    outcome.unwrap()
}

#[test]
fn a_row_that_is_no_slower_at_the_ends_is_written() {
    let folder = folder();
    // As fast as today's at one end: a tie is the new row's, which is proven faster at the M that is called most.
    let outcome = tuned(&folder, json!({"us": 10.0, "at": {"33": {"us": 20.0}}}));
    assert_eq!(table(&folder), "48 10.0\n");
    assert!(!outcome.rows[0].incumbent_kept);
    assert!(outcome.remarks.is_empty(), "{:?}", outcome.remarks);
}

#[test]
fn a_row_that_is_slower_at_an_end_leaves_its_bucket_as_it_is() {
    let folder = folder();
    let challenger = json!({"us": 10.0, "at": {"64": {"us": 25.0}}});
    let outcome = tuned(&folder, challenger.clone());
    assert_eq!(table(&folder), "48 20.0\n");
    assert!(outcome.rows[0].incumbent_kept);
    assert_eq!(
        outcome.remarks,
        [
            "N=128 K=128: the row found is 2.00x as fast as today's at M=48 and today's 1.25x as fast at M=64, both in one bucket, \
          which is left as it is"
        ]
    );
    // What was found is kept: the same again races nothing and says the same.
    let again = tuned(&folder, challenger);
    assert_eq!(again.remarks, outcome.remarks);
    assert!(again.busy_s.abs() < f64::EPSILON, "{}", again.busy_s);
}

#[test]
fn a_row_with_wrong_numbers_at_an_end_leaves_its_bucket_as_it_is() {
    let folder = folder();
    let challenger = json!({"us": 10.0, "at": {"33": {"us": 10.0, "does": "nan"}}});
    let outcome = tuned(&folder, challenger);
    assert_eq!(table(&folder), "48 20.0\n");
    insta::assert_snapshot!(outcome.remarks.join("\n"), @"N=128 K=128: the row found wins at M=48 and does not run with right numbers at M=33, both in one bucket, which is left as it is");
}

#[test]
fn a_row_that_could_not_be_tried_at_the_ends_is_not_written_and_left_for_the_next_run() {
    let folder = folder();
    let challenger = json!({"us": 10.0});
    let outcome = stopped(&folder, challenger.clone(), true);
    let left = outcome.not_reached.iter().map(|shape| shape.m);
    assert_eq!(left.collect::<Vec<_>>(), [48]);
    assert_eq!(table(&folder), "");
    let later = tuned(&folder, challenger);
    assert_eq!(table(&folder), "48 10.0\n");
    assert_eq!(later.not_reached, []);
}
