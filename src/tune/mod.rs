//! The racing tuner: which candidate is fastest for each shape, found on every device at hand.
//!
//! [`protocol`] is what a worker process speaks. This room starts processes and writes result
//! files; it never prints and knows no terminal.

pub mod points;
pub mod protocol;
pub mod race;
pub mod results;
pub mod rules;
pub mod sample;
pub mod worker;
