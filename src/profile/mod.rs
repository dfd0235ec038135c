//! Where the time of a served step goes: a trace of torch.profiler into time by operation, and what tuning can bring
//! at most.
//!
//! [`read`] reads a trace as a stream; [`profiles`] splits it into decode and prefill steps and assigns each moment
//! of a device to operations exactly once. This room measures nothing and prints nothing.

mod account;
mod bound;
pub mod class;
mod document;
mod load;
mod rules;
mod steps;
mod trace;

pub use bound::{Bound, OperationBound};
pub use class::{Class, Operation};
pub use document::{ClassTime, FamilyTime, KernelTime, PhaseProfile, Profile, rank, slowest};
pub use load::{AtPeak, LoadProfile};
pub use steps::{Phase, StepSource};
pub use trace::{ProfileError, Trace, read};

/// The profiles of `trace`, one for each device, in trace order. `file` is the trace's name: it contains the rank
/// that wrote it and, where SGLang recorded stages separately, the stage.
pub fn profiles(trace: &Trace, file: &str) -> Vec<Profile> {
    document::profiles(trace, file)
}

#[cfg(test)]
mod tests;
