//! How long each stage took, over all its attempts.
//!
//! A run done in several sessions finishes a stage in a later attempt than the one that began it, and the earlier
//! attempts took time as well. An attempt that was killed has no end: it counts up to the last record it wrote, which
//! is less than it took.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::Stage;
use crate::run::event::Event;

/// An attempt without a recorded end so far.
struct Attempt {
    stage: Stage,
    began: Timestamp,
    last: Timestamp,
}

/// Seconds spent in each stage that was started, from the journal's records in order.
pub fn spent<'a>(
    records: impl IntoIterator<Item = (Timestamp, &'a Event)>,
) -> BTreeMap<Stage, f64> {
    let mut all = BTreeMap::<Stage, f64>::new();
    let mut add = |stage: Stage, seconds: f64| *all.entry(stage).or_default() += seconds.max(0.0);
    let mut open: Option<Attempt> = None;
    for (at, event) in records {
        match event {
            // The engine's own clock does not jump, so its value is preferred.
            Event::StageFinished { stage, seconds, .. }
            | Event::StageFailed { stage, seconds, .. } => {
                open = None;
                add(*stage, *seconds);
            }
            Event::Interrupted { .. } => {
                if let Some(attempt) = open.take() {
                    add(attempt.stage, between(attempt.began, at));
                }
            }
            Event::StageStarted { .. } | Event::RunResumed { .. } => {
                if let Some(killed) = open.take() {
                    add(killed.stage, between(killed.began, killed.last));
                }
                if let Event::StageStarted { stage, .. } = event {
                    open = Some(Attempt {
                        stage: *stage,
                        began: at,
                        last: at,
                    });
                }
            }
            _ => {
                if let Some(attempt) = &mut open {
                    attempt.last = at;
                }
            }
        }
    }
    if let Some(attempt) = open {
        add(attempt.stage, between(attempt.began, attempt.last));
    }
    all
}

fn between(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::event::Role;

    fn started(stage: Stage, attempt: u32) -> Event {
        Event::StageStarted { stage, attempt }
    }

    fn finished(stage: Stage, attempt: u32, seconds: f64) -> Event {
        Event::StageFinished {
            stage,
            attempt,
            seconds,
            summary: String::new(),
            nothing_to_gain: None,
        }
    }

    fn resumed() -> Event {
        Event::RunResumed {
            host: "here".to_owned(),
            tool_version: "0.1.0".to_owned(),
        }
    }

    fn trial(number: u32) -> Event {
        Event::TrialStarted {
            trial: number,
            role: Role::Verify,
            host: "here".to_owned(),
        }
    }

    /// Seconds of `stage` for records written at these seconds.
    fn seconds(stage: Stage, records: &[(i64, Event)]) -> Option<f64> {
        let at = |second: &i64| Timestamp::from_second(*second).unwrap();
        spent(records.iter().map(|(second, event)| (at(second), event)))
            .get(&stage)
            .copied()
    }

    #[test]
    fn an_interrupted_attempt_counts_up_to_its_interruption() {
        let stage = Stage::Compare;
        let records = [
            (100, started(stage, 1)),
            (110, trial(1)),
            (140, Event::Interrupted { stage }),
            (1000, resumed()),
            (1001, resumed()),
            (1002, started(stage, 2)),
            (1022, finished(stage, 2, 19.5)),
        ];
        assert_eq!(seconds(stage, &records), Some(59.5));
        assert_eq!(seconds(Stage::Verify, &records), None, "never begun");
    }

    #[test]
    fn a_killed_attempt_counts_up_to_the_last_it_recorded() {
        let stage = Stage::Verify;
        let mut records = vec![
            (100, started(stage, 1)),
            (130, trial(1)),
            (500, resumed()),
            (501, started(stage, 2)),
            (503, trial(2)),
        ];
        assert_eq!(seconds(stage, &records), Some(32.0), "and still at work");
        records.push((521, finished(stage, 2, 20.0)));
        assert_eq!(seconds(stage, &records), Some(50.0));
    }

    #[test]
    fn a_failed_attempt_and_one_whose_deployment_was_taken_back_were_spent_as_well() {
        let stage = Stage::Verify;
        let records = [
            (0, started(stage, 1)),
            (
                8,
                Event::StageFailed {
                    stage,
                    attempt: 1,
                    seconds: 8.0,
                    reason: "wrong numbers".to_owned(),
                },
            ),
            (
                9,
                Event::Undone {
                    reason: "wrong numbers".to_owned(),
                },
            ),
            (20, started(stage, 2)),
            (30, finished(stage, 2, 10.0)),
            (
                40,
                Event::Undone {
                    reason: "asked for".to_owned(),
                },
            ),
            (50, started(stage, 3)),
            (55, finished(stage, 3, 5.0)),
        ];
        assert_eq!(seconds(stage, &records), Some(23.0));
    }

    #[test]
    fn a_wish_to_stop_between_two_stages_costs_neither() {
        let records = [
            (0, started(Stage::Plan, 1)),
            (1, finished(Stage::Plan, 1, 1.0)),
            (7, Event::Interrupted { stage: Stage::Tune }),
        ];
        assert_eq!(seconds(Stage::Plan, &records), Some(1.0));
        assert_eq!(seconds(Stage::Tune, &records), None);
    }

    #[test]
    fn a_real_run_made_in_three_slices_adds_up() {
        let journal = include_str!("../../../docs/evidence/sglang-h200-qwen3-14b/journal.jsonl");
        let records: Vec<crate::store::journal::Record<Event>> = journal
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let spent = spent(records.iter().map(|record| (record.at, &record.event)));
        let whole = |stage: Stage| spent[&stage].round() as u32;
        assert_eq!(whole(Stage::Baseline), 196);
        // 69.7 s up to the interruption and 64.6 s.
        assert_eq!(whole(Stage::Verify), 134);
        // 490.8 s and 219.4 s.
        assert_eq!(whole(Stage::Compare), 710);
    }
}
