//! Benchmarks of a running server: a load generator, greedy parity, and the files that
//! `bench_serving` and this room write.
//!
//! This room talks HTTP to a server that it did not start; it starts and ends no process.

pub mod client;
pub mod line;
pub mod load;
pub mod parity;
pub mod prompt;
pub mod result;
mod sse;

#[cfg(test)]
mod fake;
