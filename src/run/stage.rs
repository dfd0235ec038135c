//! The stages of the loop, the state of a run, and the pure function that decides what is next.
//!
//! Nothing here reads, writes, starts or waits.

mod spent;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use spent::spent;

use crate::run::event::{Arm, Event, Role};

/// A step of the loop, in the order they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Finds interpreter, trees, versions, device and the current GEMM path.
    Inspect,
    /// Serves and measures as the user does today.
    Baseline,
    /// Serves the same workload instrumented and collects shapes.
    Capture,
    /// Decides which shapes are worth tuning.
    Plan,
    Tune,
    /// Puts the tuned table and the kernel switch in place.
    Deploy,
    /// Proves that the tuned server is right and that the tuned kernels run.
    Verify,
    /// Measures both arms in interleaved pairs.
    Compare,
    /// Writes the report.
    Report,
}

impl Stage {
    /// Every stage, in order.
    pub const ALL: [Self; 9] = [
        Self::Inspect,
        Self::Baseline,
        Self::Capture,
        Self::Plan,
        Self::Tune,
        Self::Deploy,
        Self::Verify,
        Self::Compare,
        Self::Report,
    ];

    /// Whether the stage starts the server.
    pub const fn serves(self) -> bool {
        matches!(
            self,
            Self::Baseline | Self::Capture | Self::Verify | Self::Compare
        )
    }

    /// The stage's name in commands, files and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inspect => "inspect",
            Self::Baseline => "baseline",
            Self::Capture => "capture",
            Self::Plan => "plan",
            Self::Tune => "tune",
            Self::Deploy => "deploy",
            Self::Verify => "verify",
            Self::Compare => "compare",
            Self::Report => "report",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// The text does not name a stage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "name the stage: `{0}` is not one of inspect, baseline, capture, plan, tune, deploy, verify, compare, report"
)]
pub struct UnknownStage(pub String);

impl FromStr for Stage {
    type Err = UnknownStage;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|stage| stage.name() == text)
            .ok_or_else(|| UnknownStage(text.to_owned()))
    }
}

/// The status of one stage.
#[derive(Clone, Debug, PartialEq)]
pub enum StageStatus {
    /// Never tried, or undone.
    Pending,
    /// Started, with no end recorded: the process was killed, or is still running.
    InDoubt,
    /// The last attempt failed.
    Failed { reason: String },
    Finished {
        /// One line for display.
        summary: String,
    },
}

/// One trial of the run: a server start with its benchmark runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// Number of the trial, from 1 over the whole run.
    pub number: u32,
    pub role: Role,
    /// Name of the host it ran on.
    pub host: String,
    pub end: TrialEnd,
}

/// The outcome of a trial.
#[derive(Clone, Debug, PartialEq)]
pub enum TrialEnd {
    InDoubt,
    Failed {
        reason: String,
    },
    Finished {
        seconds: f64,
        ready_seconds: f64,
        /// Duration of the slowest benchmark run, s.
        benchmark_seconds: f64,
    },
}

/// The state of a run: the fold of its journal.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    statuses: BTreeMap<Stage, (u32, StageStatus)>,
    trials: Vec<Trial>,
    identity: BTreeMap<String, String>,
    nothing_to_gain: Option<String>,
    undone: Vec<String>,
}

impl State {
    /// Updates the state by one event of the journal.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::RunStarted { header } => self.identity.extend(header.identity.clone()),
            Event::Identified { identity } => self.identity.extend(identity.clone()),
            Event::RunResumed { .. } | Event::Interrupted { .. } => {}
            Event::StageStarted { stage, attempt } => {
                self.statuses
                    .insert(*stage, (*attempt, StageStatus::InDoubt));
            }
            Event::StageFinished {
                stage,
                attempt,
                summary,
                nothing_to_gain,
                ..
            } => {
                let status = StageStatus::Finished {
                    summary: summary.clone(),
                };
                self.statuses.insert(*stage, (*attempt, status));
                match stage {
                    Stage::Plan => self.nothing_to_gain.clone_from(nothing_to_gain),
                    _ if nothing_to_gain.is_some() => {
                        self.nothing_to_gain.clone_from(nothing_to_gain);
                    }
                    _ => {}
                }
            }
            Event::StageFailed {
                stage,
                attempt,
                reason,
                ..
            } => {
                let status = StageStatus::Failed {
                    reason: reason.clone(),
                };
                self.statuses.insert(*stage, (*attempt, status));
            }
            Event::TrialStarted { trial, role, host } => self.trials.push(Trial {
                number: *trial,
                role: *role,
                host: host.clone(),
                end: TrialEnd::InDoubt,
            }),
            Event::TrialFinished {
                trial,
                seconds,
                ready_seconds,
                benchmark_seconds,
            } => {
                self.end_trial(
                    *trial,
                    TrialEnd::Finished {
                        seconds: *seconds,
                        ready_seconds: *ready_seconds,
                        benchmark_seconds: *benchmark_seconds,
                    },
                );
            }
            Event::TrialFailed { trial, reason } => {
                self.end_trial(
                    *trial,
                    TrialEnd::Failed {
                        reason: reason.clone(),
                    },
                );
            }
            Event::Undone { reason } => {
                self.undone.push(reason.clone());
                for stage in [Stage::Deploy, Stage::Verify, Stage::Compare, Stage::Report] {
                    if let Some((_, status)) = self.statuses.get_mut(&stage)
                        && !matches!(status, StageStatus::Failed { .. })
                    {
                        *status = StageStatus::Pending;
                    }
                }
            }
        }
    }

    /// The state after `events`.
    pub fn fold<'a>(events: impl IntoIterator<Item = &'a Event>) -> Self {
        let mut state = Self::default();
        for event in events {
            state.apply(event);
        }
        state
    }

    fn end_trial(&mut self, number: u32, end: TrialEnd) {
        if let Some(trial) = self.trials.iter_mut().find(|trial| trial.number == number) {
            trial.end = end;
        }
    }

    /// The number of attempts of `stage`, and its status.
    pub fn status(&self, stage: Stage) -> (u32, &StageStatus) {
        self.statuses
            .get(&stage)
            .map_or((0, &StageStatus::Pending), |(attempt, status)| {
                (*attempt, status)
            })
    }

    /// Whether `stage` has passed.
    pub fn has_finished(&self, stage: Stage) -> bool {
        matches!(self.status(stage).1, StageStatus::Finished { .. })
    }

    /// Every trial, in order.
    pub fn trials(&self) -> &[Trial] {
        &self.trials
    }

    /// The newest finished trial of `role`.
    pub fn finished_trial(&self, role: Role) -> Option<&Trial> {
        self.trials
            .iter()
            .rev()
            .find(|trial| trial.role == role && matches!(trial.end, TrialEnd::Finished { .. }))
    }

    /// The number that the next trial gets.
    pub fn next_trial_number(&self) -> u32 {
        self.trials
            .iter()
            .map(|trial| trial.number)
            .max()
            .unwrap_or(0)
            + 1
    }

    /// Facts that must not change during the run.
    pub fn identity(&self) -> &BTreeMap<String, String> {
        &self.identity
    }

    /// Why nothing is worth tuning, if that was the plan's result.
    pub fn nothing_to_gain(&self) -> Option<&str> {
        self.nothing_to_gain.as_deref()
    }

    /// Why deployments were undone, oldest first.
    pub fn undone(&self) -> &[String] {
        &self.undone
    }
}

/// What the engine should do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Start {
        stage: Stage,
        /// Number of the attempt, from 1.
        attempt: u32,
    },
    /// The requested stage is done, but the run is not.
    Pause,
    Finish,
}

/// Which stages a run goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunMode {
    Full,
    /// Both arms are the baseline: nothing is captured, tuned or deployed, and the compare stage measures the noise
    /// of the setup.
    OnlyNoise,
}

impl RunMode {
    fn skips(self, stage: Stage, state: &State) -> bool {
        use Stage::{Baseline, Capture, Compare, Deploy, Inspect, Plan, Report, Tune, Verify};
        match stage {
            Inspect | Baseline | Report => false,
            Capture | Plan => self == Self::OnlyNoise,
            Tune | Deploy | Verify => self == Self::OnlyNoise || state.nothing_to_gain.is_some(),
            Compare => state.nothing_to_gain.is_some(),
        }
    }
}

/// What to do next for a run in `state` that should continue up to and including `until`.
pub fn next(state: &State, mode: RunMode, until: Stage) -> Action {
    for stage in Stage::ALL {
        let skipped = mode.skips(stage, state);
        if stage > until {
            return Action::Pause;
        }
        if !skipped && !state.has_finished(stage) {
            return Action::Start {
                stage,
                attempt: state.status(stage).0 + 1,
            };
        }
    }
    Action::Finish
}

/// The half of a pair to run next, so that pairs are interleaved A B, B A, A B, …; `None` when all `pairs` are complete.
///
/// A pair whose first half was measured on another host starts over: a pair never spans two hosts.
pub fn next_half(trials: &[Trial], pairs: u32, host: &str) -> Option<(u32, Arm)> {
    (0..pairs).find_map(|pair| {
        let order = match pair % 2 {
            0 => [Arm::Baseline, Arm::Tuned],
            _ => [Arm::Tuned, Arm::Baseline],
        };
        if pair_trials(trials, pair).is_some() {
            return None;
        }
        let done = |arm| finished_half(trials, pair, arm).any(|trial| trial.host == host);
        order
            .into_iter()
            .find(|&arm| !done(arm))
            .map(|arm| (pair, arm))
    })
}

/// The two finished trials of `pair`, baseline first: the newest two that share a host.
pub fn pair_trials(trials: &[Trial], pair: u32) -> Option<[&Trial; 2]> {
    let tuned: Vec<&Trial> = finished_half(trials, pair, Arm::Tuned).collect();
    finished_half(trials, pair, Arm::Baseline)
        .flat_map(|baseline| tuned.iter().map(move |tuned| [baseline, *tuned]))
        .filter(|[baseline, tuned]| baseline.host == tuned.host)
        .max_by_key(|[baseline, tuned]| baseline.number + tuned.number)
}

fn finished_half(trials: &[Trial], pair: u32, arm: Arm) -> impl Iterator<Item = &Trial> {
    trials.iter().filter(move |trial| {
        trial.role == Role::Pair { pair, arm } && matches!(trial.end, TrialEnd::Finished { .. })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(stage: Stage) -> Event {
        Event::StageFinished {
            stage,
            attempt: 1,
            seconds: 1.0,
            summary: String::new(),
            nothing_to_gain: None,
        }
    }

    fn trial(number: u32, pair: u32, arm: Arm, host: &str) -> [Event; 2] {
        let role = Role::Pair { pair, arm };
        [
            Event::TrialStarted {
                trial: number,
                role,
                host: host.to_owned(),
            },
            Event::TrialFinished {
                trial: number,
                seconds: 1.0,
                ready_seconds: 0.1,
                benchmark_seconds: 0.5,
            },
        ]
    }

    #[test]
    fn a_plan_or_a_race_that_found_nothing_to_gain_leads_to_the_report() {
        for stage in [Stage::Plan, Stage::Tune] {
            let mut state = State::default();
            for earlier in Stage::ALL.into_iter().filter(|earlier| *earlier < stage) {
                state.apply(&finished(earlier));
            }
            state.apply(&Event::StageFinished {
                stage,
                attempt: 1,
                seconds: 1.0,
                summary: String::new(),
                nothing_to_gain: Some("all is well".to_owned()),
            });
            let action = Action::Start {
                stage: Stage::Report,
                attempt: 1,
            };
            assert_eq!(
                next(&state, RunMode::Full, Stage::Report),
                action,
                "{stage}"
            );
        }
    }

    #[test]
    fn stages_run_in_order_up_to_the_one_asked_for() {
        let mut state = State::default();
        for stage in Stage::ALL {
            assert_eq!(
                next(&state, RunMode::Full, Stage::Report),
                Action::Start { stage, attempt: 1 }
            );
            state.apply(&Event::StageStarted { stage, attempt: 1 });
            assert_eq!(
                next(&state, RunMode::Full, Stage::Report),
                Action::Start { stage, attempt: 2 }
            );
            state.apply(&finished(stage));
            if stage < Stage::Report {
                assert_eq!(next(&state, RunMode::Full, stage), Action::Pause);
            }
        }
        assert_eq!(next(&state, RunMode::Full, Stage::Report), Action::Finish);
    }

    #[test]
    fn a_plan_with_nothing_to_gain_goes_straight_to_its_report() {
        let mut state = State::fold(
            &Stage::ALL[..3]
                .iter()
                .map(|&stage| finished(stage))
                .collect::<Vec<_>>(),
        );
        state.apply(&Event::StageFinished {
            stage: Stage::Plan,
            attempt: 1,
            seconds: 1.0,
            summary: String::new(),
            nothing_to_gain: Some("every shape is served".to_owned()),
        });
        assert_eq!(
            next(&state, RunMode::Full, Stage::Report),
            Action::Start {
                stage: Stage::Report,
                attempt: 1
            }
        );
    }

    #[test]
    fn a_noise_run_only_serves_and_compares() {
        let mut state = State::default();
        let mut ran = Vec::new();
        while let Action::Start { stage, .. } = next(&state, RunMode::OnlyNoise, Stage::Report) {
            ran.push(stage);
            state.apply(&finished(stage));
        }
        assert_eq!(
            ran,
            [
                Stage::Inspect,
                Stage::Baseline,
                Stage::Compare,
                Stage::Report
            ]
        );
    }

    #[test]
    fn an_undone_deployment_is_deployed_again() {
        let mut state = State::default();
        for stage in &Stage::ALL[..6] {
            state.apply(&finished(*stage));
        }
        state.apply(&Event::StageFailed {
            stage: Stage::Verify,
            attempt: 1,
            seconds: 1.0,
            reason: "wrong numbers".to_owned(),
        });
        state.apply(&Event::Undone {
            reason: "wrong numbers".to_owned(),
        });
        assert_eq!(
            next(&state, RunMode::Full, Stage::Report),
            Action::Start {
                stage: Stage::Deploy,
                attempt: 2
            }
        );
        assert_eq!(state.undone(), ["wrong numbers"]);
    }

    #[test]
    fn pairs_are_interleaved() {
        let mut events = Vec::new();
        let mut order = String::new();
        for number in 1..=8 {
            let state = State::fold(&events);
            let (pair, arm) = next_half(state.trials(), 4, "here").unwrap();
            order.push(if arm == Arm::Baseline { 'A' } else { 'B' });
            events.extend(trial(number, pair, arm, "here"));
        }
        assert_eq!(order, "ABBAABBA");
        assert_eq!(next_half(State::fold(&events).trials(), 4, "here"), None);
    }

    #[test]
    fn a_pair_never_spans_two_hosts() {
        let mut events = trial(1, 0, Arm::Baseline, "here").to_vec();
        assert_eq!(
            next_half(State::fold(&events).trials(), 1, "there"),
            Some((0, Arm::Baseline))
        );
        events.extend(trial(2, 0, Arm::Baseline, "there"));
        assert_eq!(
            next_half(State::fold(&events).trials(), 1, "there"),
            Some((0, Arm::Tuned))
        );
        events.extend(trial(3, 0, Arm::Tuned, "there"));
        let state = State::fold(&events);
        assert_eq!(next_half(state.trials(), 1, "there"), None);
        let numbers = pair_trials(state.trials(), 0)
            .unwrap()
            .map(|trial| trial.number);
        assert_eq!(numbers, [2, 3]);
    }

    #[test]
    fn a_trial_without_an_end_is_no_half() {
        let [started, _] = trial(1, 0, Arm::Baseline, "here");
        let state = State::fold(&[started]);
        assert_eq!(
            next_half(state.trials(), 1, "here"),
            Some((0, Arm::Baseline))
        );
        assert_eq!(state.next_trial_number(), 2);
    }
}
