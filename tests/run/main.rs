//! The loop, end to end, on the reference engine with a tiny model.

mod faults;
mod interrupts;
mod loops;
mod support;
