//! A profile as data: each phase of a device with its operations, per step.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::account::{Account, accounts};
use super::bound::{Bound, bound};
use super::class::{Class, Operation, UNKNOWN, classify};
use super::steps::{Phase, StepSource, Steps, steps};
use super::trace::{Device, Trace};

/// Most kernels without a rule that are listed by name.
const LISTED: usize = 12;

/// Bytes kept of a kernel's name in a document: what distinguishes templates comes before their arguments.
const SHOWN_NAME: usize = 160;

/// What one rank's device did, by phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// Which of the server's processes: `TP-0`.
    pub rank: String,
    /// File name of the trace.
    pub file: String,
    /// Name of the device, where the trace has it.
    #[serde(default)]
    pub device: Option<String>,
    pub phases: Vec<PhaseProfile>,
}

/// How a step's time is spent. Times are µs, averaged over steps, or of the whole trace where steps cannot be
/// distinguished.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseProfile {
    pub phase: Phase,
    pub told_by: StepSource,
    /// Steps that were averaged; absent where they cannot be distinguished.
    pub steps: Option<u64>,
    /// Decode steps left out, because something ran between two of them.
    pub left_out: u64,
    /// Fewest and most requests in a step, where the trace records it.
    #[serde(default)]
    pub requests: Option<(u32, u32)>,
    /// Average number of prompt tokens in a step, where the trace records it.
    #[serde(default)]
    pub tokens: Option<f64>,
    /// Time of the step while profiling, which lengthens the time between kernels.
    pub profiled_us: f64,
    /// Time of the step without the profiler, where a benchmark measured it.
    #[serde(default)]
    pub unprofiled_us: Option<f64>,
    /// The time that shares and bounds refer to: the unprofiled time where it is known, but never less than the
    /// kernels took.
    pub step_us: f64,
    /// Time in which anything ran.
    pub busy_us: f64,
    /// Time in which nothing ran.
    pub idle_us: f64,
    /// Every operation that ran; with `idle_us` they add up to the step.
    pub operations: Vec<ClassTime>,
    /// The largest kernels without a rule; they are part of [`Class::Rest`].
    pub unknown: Vec<KernelTime>,
    pub bound: Bound,
}

/// The share of one operation in a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassTime {
    pub operation: Class,
    /// Time, µs; where kernels overlap each gets an equal share.
    pub us: f64,
    /// The same as a share of the step.
    pub share: f64,
    pub kernels: f64,
    /// By library or kind, the largest first.
    pub families: Vec<FamilyTime>,
}

/// The share of a library in an operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FamilyTime {
    pub family: String,
    pub us: f64,
}

/// The share of a kernel that no rule matches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelTime {
    pub name: String,
    pub us: f64,
}

pub(super) fn profiles(trace: &Trace, file: &str) -> Vec<Profile> {
    let several = trace.devices.len() > 1;
    trace
        .devices
        .iter()
        .map(|device| {
            let rank = rank(file)
                .or_else(|| trace.rank.map(|rank| format!("rank {rank}")))
                .unwrap_or_else(|| "-".to_owned());
            Profile {
                rank: if several {
                    format!("{rank}, device {}", device.id)
                } else {
                    rank
                },
                file: file.to_owned(),
                device: trace.device_name.clone(),
                phases: phases(trace, device, file),
            }
        })
        .collect()
}

/// The rank in the name that SGLang gives a trace: `TP-0`, `TP-3-EP-1`.
pub fn rank(file: &str) -> Option<String> {
    let stem = file.split(".trace").next()?;
    let words: Vec<&str> = stem.split('-').collect();
    let ranks: Vec<String> = words
        .windows(2)
        .filter(|pair| {
            matches!(pair[0], "TP" | "DP" | "PP" | "EP")
                && !pair[1].is_empty()
                && pair[1].bytes().all(|byte| byte.is_ascii_digit())
        })
        .map(|pair| pair.join("-"))
        .collect();
    (!ranks.is_empty()).then(|| ranks.join("-"))
}

/// The rank that the others wait for: the one that computes longest, communication aside, in the phase `phase`.
pub fn slowest(profiles: &[Profile], phase: Phase) -> Option<&Profile> {
    let computes = |profile: &Profile| {
        let phase = profile.phases.iter().find(|found| found.phase == phase)?;
        let waits: f64 = phase
            .operations
            .iter()
            .filter(|part| part.operation == Class::Communication)
            .map(|part| part.us)
            .sum();
        Some(phase.busy_us - waits)
    };
    profiles
        .iter()
        .filter_map(|profile| Some((computes(profile)?, profile)))
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, profile)| profile)
}

fn phases(trace: &Trace, device: &Device, file: &str) -> Vec<PhaseProfile> {
    let classes: Vec<(Class, &'static str)> =
        trace.names.iter().map(|name| classify(name)).collect();
    let operation = |name: u32| {
        let (class, _) = classes[name as usize];
        Operation::ALL
            .into_iter()
            .find(|operation| operation.class() == class)
    };
    let found = steps(trace, device, file);
    let accounts = accounts(&device.kernels, &found.all, trace.names.len(), &operation);
    Phase::ALL
        .into_iter()
        .zip(accounts)
        .filter(|(_, account)| account.total > 0.0)
        .map(|(phase, account)| of_phase(trace, &classes, &found, phase, &account))
        .collect()
}

fn of_phase(
    trace: &Trace,
    classes: &[(Class, &'static str)],
    found: &Steps,
    phase: Phase,
    account: &Account,
) -> PhaseProfile {
    let steps: Vec<_> = found
        .all
        .iter()
        .filter(|step| step.phase == phase)
        .collect();
    let told = matches!(
        found.told_by,
        StepSource::StepSpans | StepSource::GraphLaunches
    );
    let each = if told { steps.len() as f64 } else { 1.0 };
    let requests = || steps.iter().filter_map(|step| step.requests);
    let tokens: Vec<f64> = steps
        .iter()
        .filter_map(|step| step.tokens.map(f64::from))
        .collect();
    let mut operations = Vec::new();
    for class in Class::ALL {
        let mut families: Vec<FamilyTime> = Vec::new();
        let (mut us, mut kernels) = (0.0, 0_u64);
        for (&(own, family), &(time, begun)) in classes.iter().zip(&account.kernels) {
            if own != class || (time <= 0.0 && begun == 0) {
                continue;
            }
            us += time / each;
            kernels += begun;
            match families.iter_mut().find(|known| known.family == family) {
                Some(known) => known.us += time / each,
                None => families.push(FamilyTime {
                    family: family.to_owned(),
                    us: time / each,
                }),
            }
        }
        if families.is_empty() {
            continue;
        }
        families.sort_by(|one, other| other.us.total_cmp(&one.us));
        operations.push(ClassTime {
            operation: class,
            us,
            share: 0.0,
            kernels: kernels as f64 / each,
            families,
        });
    }
    let mut unknown: Vec<KernelTime> = trace
        .names
        .iter()
        .zip(classes)
        .zip(&account.kernels)
        .filter(|((_, (_, family)), (time, _))| *family == UNKNOWN && *time > 0.0)
        .map(|((name, _), (time, _))| KernelTime {
            name: name[..name.floor_char_boundary(SHOWN_NAME)].to_owned(),
            us: time / each,
        })
        .collect();
    unknown.sort_by(|one, other| other.us.total_cmp(&one.us));
    unknown.truncate(LISTED);
    let mut profile = PhaseProfile {
        phase,
        told_by: found.told_by,
        steps: told.then_some(steps.len() as u64),
        left_out: if phase == Phase::Decode {
            found.left_out
        } else {
            0
        },
        requests: requests().min().zip(requests().max()),
        tokens: (!tokens.is_empty()).then(|| tokens.iter().sum::<f64>() / tokens.len() as f64),
        profiled_us: account.total / each,
        unprofiled_us: None,
        step_us: account.total / each,
        busy_us: account.busy / each,
        idle_us: 0.0,
        operations,
        unknown,
        bound: bound(
            account.total / each,
            account.ran.map(|us| us / each),
            account.any_ran / each,
        ),
    };
    profile.relate();
    profile
}

impl Profile {
    /// Removes operations from every bound that are not in `tuned`.
    pub fn restrict(&mut self, tuned: &[Operation]) {
        for phase in &mut self.phases {
            phase.restrict(tuned);
        }
    }
}

impl PhaseProfile {
    /// Relates shares and bounds to a step of `us` µs, its duration without the profiler. A step is never shorter
    /// than the time in which its kernels ran, nor longer than it was profiled.
    pub fn set_unprofiled(&mut self, us: f64) {
        if !us.is_finite() || us <= 0.0 {
            return;
        }
        self.unprofiled_us = Some(us);
        self.step_us = us.clamp(self.busy_us, self.profiled_us.max(self.busy_us));
        self.relate();
    }

    /// Recomputes what is relative to the step.
    fn relate(&mut self) {
        let step = self.step_us;
        self.idle_us = (step - self.busy_us).max(0.0);
        for part in &mut self.operations {
            part.share = part.us / step;
        }
        let mut ran = [0.0; Operation::ALL.len()];
        for part in &self.bound.operations {
            ran[part.operation as usize] = part.us;
        }
        self.bound = bound(step, ran, self.bound.us);
    }

    /// Removes operations from the bound that are not in `tuned`.
    fn restrict(&mut self, tuned: &[Operation]) {
        let parts = &mut self.bound.operations;
        parts.retain(|part| tuned.contains(&part.operation));
        match parts.as_slice() {
            [] => self.bound.us = 0.0,
            [only] => self.bound.us = only.us,
            _ => {}
        }
        self.relate();
    }

    /// Whether the bound removes the time of this operation.
    pub fn tunes(&self, class: Class) -> bool {
        let parts = &self.bound.operations;
        parts.iter().any(|part| part.operation.class() == class)
    }

    /// A description of the steps: `decode: 24 steps of 9041.3 µs, 8 requests; longer steps left out: 1`.
    pub fn describe(&self) -> String {
        let (name, us) = (self.phase.name(), self.profiled_us);
        let mut text = match self.steps {
            Some(1) => format!("{name}: 1 step of {us:.1} µs"),
            Some(steps) => format!("{name}: {steps} steps of {us:.1} µs"),
            None => format!("{name}: {us:.1} µs in all"),
        };
        let _ = match self.requests {
            Some((1, 1)) => write!(text, ", 1 request"),
            Some((one, other)) if one == other => write!(text, ", {one} requests"),
            Some((fewest, most)) => write!(text, ", {fewest} to {most} requests"),
            None => Ok(()),
        };
        if let Some(tokens) = self.tokens {
            let _ = write!(text, ", {tokens:.0} prompt tokens");
        }
        if self.left_out > 0 {
            let _ = write!(text, "; longer steps left out: {}", self.left_out);
        }
        text
    }

    /// The share of an operation, 0 where it did not run.
    pub fn share(&self, class: Class) -> f64 {
        let parts = self.operations.iter();
        parts
            .filter(|part| part.operation == class)
            .map(|part| part.share)
            .sum()
    }

    /// A sentence like `fused MoE 61 % of a decode step at concurrency 8; tuning it can bring at most 2.56x`. `at` is
    /// the load, in words that follow `a decode step`; may be empty.
    pub fn sentence(&self, at: &str) -> String {
        let step = self.phase.step();
        let gap = if at.is_empty() { "" } else { " " };
        match self.bound.shares() {
            Some(shares) => format!("{shares} of {step}{gap}{at}; {}", self.bound.gain()),
            None => format!("none of the GEMMs that are tuned ran in {step}{gap}{at}"),
        }
    }
}
