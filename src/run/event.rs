//! What happens in a run: the one vocabulary of the engine, the journal and the screen.
//!
//! Events are written to the journal before their effect is relied on; the state of a run is their fold. Progress is
//! for display only and is never recorded.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::run::stage::Stage;

/// Version of the journal's vocabulary. A reader accepts this and older ones; a newer journal is
/// refused, because continuing it would drop what this version does not know.
pub const FORMAT: u32 = 1;

/// Which side of the comparison a server start belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arm {
    /// As the user runs it today.
    Baseline,
    /// With the tuned table and the kernel switch.
    Tuned,
}

impl Arm {
    /// The arm's name in files and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Tuned => "tuned",
        }
    }
}

/// What a trial (one server start with its benchmark) is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum Role {
    /// The baseline stage: the default path, with a recording for parity.
    Baseline,
    /// The capture stage: instrumented, never measured.
    Capture,
    /// The verify stage: the tuned server under test.
    Verify,
    /// One half of a pair of the compare stage.
    Pair {
        /// Index of the pair, from 0.
        pair: u32,
        arm: Arm,
    },
}

impl Role {
    /// The role's name, part of the trial's folder name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Capture => "capture",
            Self::Verify => "verify",
            Self::Pair { arm, .. } => arm.name(),
        }
    }
}

/// The identity of a run. A resumed run must find the same values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`FORMAT`] of the writer.
    pub format: u32,
    pub tool_version: String,
    /// Facts by name: digests of the configuration, versions, device.
    pub identity: BTreeMap<String, String>,
}

/// Something that happened, in the past tense.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    /// The first record of every journal.
    RunStarted {
        /// The run's identity.
        header: Header,
    },
    /// Another process continued the run.
    RunResumed {
        host: String,
        /// Its version of gemmtune.
        tool_version: String,
    },
    /// The installation was inspected; from now on these facts must not change.
    Identified {
        /// Facts about the installation: versions, digests, device.
        identity: BTreeMap<String, String>,
    },
    /// A stage began. Without a recorded end its outcome is unknown when the run is resumed, and it runs again.
    StageStarted {
        stage: Stage,
        /// Number of the attempt, from 1.
        attempt: u32,
    },
    /// A stage passed its guard.
    StageFinished {
        stage: Stage,
        /// Number of the attempt, from 1.
        attempt: u32,
        /// Wall time of this attempt.
        seconds: f64,
        /// One line for display.
        summary: String,
        /// Set by `plan` when nothing is worth tuning: the loop continues with the report.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        nothing_to_gain: Option<String>,
    },
    /// A stage did not pass its guard.
    StageFailed {
        stage: Stage,
        /// Number of the attempt, from 1.
        attempt: u32,
        /// Wall time of this attempt.
        seconds: f64,
        reason: String,
    },
    /// A server is about to be started.
    TrialStarted {
        /// Number of the trial, from 1 over the whole run.
        trial: u32,
        #[serde(flatten)]
        role: Role,
        /// Name of the host it runs on.
        host: String,
    },
    /// A trial ended with all its requests completed.
    TrialFinished {
        trial: u32,
        /// Wall time, start to stop.
        seconds: f64,
        /// Seconds from start to ready.
        ready_seconds: f64,
        /// Duration of the slowest benchmark run, s.
        benchmark_seconds: f64,
    },
    TrialFailed {
        trial: u32,
        reason: String,
    },
    /// The deployment was undone.
    Undone {
        reason: String,
    },
    /// The user stopped the run.
    Interrupted {
        stage: Stage,
    },
}

/// Progress of a long operation, for display.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// The current stage.
    pub stage: Stage,
    /// What is being done now, and the best result so far where there is one.
    pub doing: String,
    /// Steps done and total steps, where they can be counted.
    pub steps: Option<(u64, u64)>,
    /// Estimated seconds until the stage ends, where they can be estimated.
    pub eta_seconds: Option<f64>,
    /// Whether it will be superseded within moments, so that only a live line should show it.
    pub passing: bool,
}

/// What an observer of a run receives.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    Recorded(Event),
    Progress(Progress),
    /// Information that has no effect.
    Remark(String),
}
