//! gemmtune makes the FP8 GEMMs of an LLM server measurably faster and proves it.
//!
//! The loop, in order: inspect, baseline, capture, plan, tune, deploy, verify, compare, report. Each
//! room below owns one concern; `DESIGN.md` says which may use which. The library never prints and
//! never reads the terminal: the `cli` feature owns both.

pub mod backend;
pub mod bench;
#[cfg(feature = "cli")]
pub mod cli;
pub mod compare;
pub mod engine;
pub(crate) mod kernel;
pub mod log;
pub mod overlay;
pub mod plan;
pub mod probe;
pub mod problem;
pub mod proc;
pub mod profile;
pub mod pyedit;
pub mod report;
pub mod run;
pub(crate) mod server;
pub mod stats;
pub mod store;
pub mod table;
pub mod tree;
pub mod tune;
pub mod workload;
