//! The racing tuner: which candidate is fastest for each shape, found on every visible device.
//!
//! [`run`] is the way in. A [`backends::Backend`] says what the candidates are, [`race`] decides who is
//! timed next and who wins, worker processes speaking [`protocol`] measure, and what they found is
//! kept in [`results`]. This room starts processes and writes result files; it never prints and knows no
//! terminal.

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
