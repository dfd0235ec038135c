//! The vocabulary of a run: its stages, its events, its errors, and the pure function that decides what is next.
//!
//! Nothing in this room reads, writes, starts or waits.

pub mod documents;
pub mod error;
pub mod event;
pub mod stage;
