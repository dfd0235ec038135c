//! The only module with `unsafe` code: vector instructions, the thread pool's borrowed jobs, and a
//! view of outputs that several threads write.
//!
//! Everything it exports is safe to call: lengths are asserted at entry, and a function that needs an
//! instruction set can only be had for an [`Isa`] that the running CPU was found to have.

#![expect(
    unsafe_code,
    reason = "vector intrinsics, scoped jobs on long-lived threads"
)]
#![expect(
    clippy::inline_always,
    reason = "inner loops must end up inside a function compiled for the instruction set"
)]
#![expect(
    clippy::needless_range_loop,
    reason = "register tiles are index arithmetic over several arrays at once"
)]

mod entry;
mod micro;
mod pool;
mod shared;
mod simd;

pub use entry::Isa;
pub(crate) use entry::{BurnFn, DecodeFn, DotFn, Tables, TileFn, tables};
pub(crate) use micro::{DotJob, TileJob};
pub use pool::Pool;
pub(crate) use shared::{shared_f32, shared_u16};
