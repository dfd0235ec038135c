//! Benchmarks of a running server: a load generator, greedy parity, and the files that
//! `bench_serving` and this room write.
//!
//! This room speaks HTTP to a server somebody else started; it starts and ends no process.

pub mod result;
