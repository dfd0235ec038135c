//! Statistics of measurements: descriptive numbers, the paired interval that carries a verdict, and
//! the seeded generator behind every random choice.
//!
//! Pure: nothing here reads files or knows what a benchmark is. The unit of replication is the trial
//! (one server start with its benchmark), so [`paired`] is what a verdict may rest on.

pub mod paired;
pub mod rng;
pub mod sample;
