//! The racing tuner: finds the fastest candidate for each shape, on every visible device.
//!
//! [`run`] is the entry point. A [`backends::Backend`] defines the candidates, [`race`] decides which are timed next
//! and which wins, worker processes that speak [`protocol`] measure, and results are stored in [`results`]. This room
//! starts processes and writes result files; it never prints and does not use the terminal.

pub mod aiter;
pub mod backends;
pub mod clocks;
pub mod compile_only;
mod device_worker;
pub mod ends;
pub mod event;
mod pace;
pub mod points;
pub mod pool;
pub mod protocol;
pub mod race;
pub mod results;
pub mod rules;
pub mod sample;
pub mod task;
pub mod tuned;
mod work_queue;
pub mod worker;

pub use backends::sglang_moe::task as moe;
pub use event::{TuneEvent, TuneOutcome};
pub use pool::{TuneError, TuneRequest, run};
pub use rules::Effort;
