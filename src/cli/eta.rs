//! How long the rest of a run takes, estimated from what it has measured so far.

use std::time::Instant;

use crate::run::event::{Event, Notice, Role};
use crate::run::stage::{Stage, State, TrialEnd};
use crate::workload::config::Config;

/// The finished and the remaining work of a run.
#[derive(Debug)]
pub(super) struct RunEta {
    state: State,
    pairs: u32,
    only_noise: bool,
    /// Wall time that tuning may take, s.
    budget: f64,
    /// The tuner's own estimate of the time it still needs, s.
    tuning: Option<f64>,
    /// When the current trial began.
    trial_began: Option<Instant>,
}

impl RunEta {
    /// For a run of `config` after `events`.
    pub(super) fn new<'a>(config: &Config, events: impl IntoIterator<Item = &'a Event>) -> Self {
        Self {
            state: State::fold(events),
            pairs: config.compare.pairs,
            only_noise: config.compare.only_noise,
            budget: config.budget.tune.duration().as_secs_f64(),
            tuning: None,
            trial_began: None,
        }
    }

    /// Processes a notice received at `now`.
    pub(super) fn take(&mut self, notice: &Notice, now: Instant) {
        match notice {
            Notice::Recorded(event) => {
                self.state.apply(event);
                match event {
                    Event::TrialStarted { .. } => self.trial_began = Some(now),
                    Event::TrialFinished { .. } | Event::TrialFailed { .. } => {
                        self.trial_began = None;
                    }
                    _ => {}
                }
            }
            Notice::Progress(progress) if progress.stage == Stage::Tune => {
                self.tuning = progress.eta_seconds.or(self.tuning);
            }
            Notice::Progress(_) | Notice::Remark(_) => {}
        }
    }

    /// Seconds left at `now`; `None` until one server start was measured. Until the tuner reports an estimate, its
    /// whole budget is counted.
    pub(super) fn left(&self, now: Instant) -> Option<f64> {
        let seconds: Vec<f64> = self
            .state
            .trials()
            .iter()
            .filter_map(|trial| match trial.end {
                TrialEnd::Finished { seconds, .. } => Some(seconds),
                TrialEnd::InDoubt | TrialEnd::Failed { .. } => None,
            })
            .collect();
        if seconds.is_empty() {
            return None;
        }
        let mean = seconds.iter().sum::<f64>() / seconds.len() as f64;
        let begun = self.trial_began.map_or(0.0, |began| {
            now.saturating_duration_since(began).as_secs_f64().min(mean)
        });
        let tunes = !self.only_noise
            && self.state.nothing_to_gain().is_none()
            && !self.state.has_finished(Stage::Tune);
        let tuning = match self.tuning {
            _ if !tunes => 0.0,
            Some(seconds) => seconds,
            None => self.budget,
        };
        Some((mean * f64::from(self.trials_left()) - begun).max(0.0) + tuning)
    }

    /// Server starts still to come, the current one included.
    fn trials_left(&self) -> u32 {
        let one = |stage: Stage| u32::from(!self.state.has_finished(stage));
        if self.state.nothing_to_gain().is_some() {
            return 0;
        }
        let once = if self.only_noise {
            one(Stage::Baseline)
        } else {
            one(Stage::Baseline) + one(Stage::Capture) + one(Stage::Verify)
        };
        let of_pairs = self.state.trials().iter().filter(|trial| {
            matches!(trial.role, Role::Pair { .. })
                && matches!(trial.end, TrialEnd::Finished { .. })
        });
        let pairs = if self.state.has_finished(Stage::Compare) {
            0
        } else {
            (self.pairs * 2).saturating_sub(of_pairs.count() as u32)
        };
        once + pairs
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::run::event::{Arm, Progress};

    fn trial(number: u32, role: Role, seconds: f64) -> [Event; 2] {
        [
            Event::TrialStarted {
                trial: number,
                role,
                host: "h".to_owned(),
            },
            Event::TrialFinished {
                trial: number,
                seconds,
                ready_seconds: 1.0,
                benchmark_seconds: 1.0,
            },
        ]
    }

    fn finished(stage: Stage) -> Event {
        Event::StageFinished {
            stage,
            attempt: 1,
            seconds: 1.0,
            summary: String::new(),
            nothing_to_gain: None,
        }
    }

    fn eta(events: &[Event]) -> RunEta {
        RunEta {
            state: State::fold(events),
            pairs: 2,
            only_noise: false,
            budget: 60.0,
            tuning: None,
            trial_began: None,
        }
    }

    fn seconds(run: &RunEta, now: Instant) -> i64 {
        run.left(now).unwrap().round() as i64
    }

    #[test]
    fn what_is_left_is_server_starts_as_long_as_those_seen_and_tuning() {
        let now = Instant::now();
        assert_eq!(eta(&[]).left(now), None);

        let mut events: Vec<Event> = trial(1, Role::Baseline, 10.0).into();
        events.push(finished(Stage::Baseline));
        let mut run = eta(&events);
        // Capture, verify and two pairs of two; tuning may take its whole budget.
        assert_eq!(seconds(&run, now), 6 * 10 + 60);

        let tuning = Progress {
            stage: Stage::Tune,
            doing: String::new(),
            steps: None,
            eta_seconds: Some(7.0),
            passing: true,
        };
        run.take(&Notice::Progress(tuning), now);
        assert_eq!(seconds(&run, now), 67);
    }

    #[test]
    fn the_trial_at_work_counts_for_what_is_left_of_it() {
        let now = Instant::now();
        let mut events: Vec<Event> = trial(1, Role::Baseline, 10.0).into();
        let stages = [Stage::Baseline, Stage::Capture, Stage::Tune, Stage::Verify];
        events.extend(stages.map(finished));
        let first = Role::Pair {
            pair: 0,
            arm: Arm::Baseline,
        };
        events.extend(trial(2, first, 20.0));
        let mut run = eta(&events);
        assert_eq!(seconds(&run, now), 45);
        let [started, _] = trial(3, first, 0.0);
        run.take(&Notice::Recorded(started), now);
        let later = now + Duration::from_secs(5);
        assert_eq!(seconds(&run, later), 40);
        let much_later = now + Duration::from_secs(500);
        assert_eq!(seconds(&run, much_later), 30);
        run.take(&Notice::Recorded(finished(Stage::Compare)), now);
        assert_eq!(seconds(&run, much_later), 0);
    }
}
