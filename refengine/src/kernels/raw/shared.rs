//! Views of plain buffers as atomics, so that threads may write disjoint elements in safe code.
//!
//! A relaxed atomic store is an ordinary store on every CPU; only vectorised stores are given up,
//! and outputs are a K-th of the work.

use std::sync::atomic::{AtomicU16, AtomicU32};

use crate::fp8::Bf16;

/// Views bfloat16 outputs as atomics of their bits.
pub(crate) fn shared_u16(values: &mut [Bf16]) -> &[AtomicU16] {
    // SAFETY: Bf16 is a transparent u16, AtomicU16 has the size and alignment of u16 (checked below),
    // and the exclusive borrow lasts as long as the view, so nobody accesses it non-atomically.
    unsafe { std::slice::from_raw_parts(values.as_mut_ptr().cast(), values.len()) }
}

/// Views float32 partial sums as atomics of their bits.
pub(crate) fn shared_f32(values: &mut [f32]) -> &[AtomicU32] {
    // SAFETY: AtomicU32 has the size and alignment of f32 (checked below), every bit pattern is valid
    // in both, and the exclusive borrow lasts as long as the view.
    unsafe { std::slice::from_raw_parts(values.as_mut_ptr().cast(), values.len()) }
}

const _: () = assert!(align_of::<AtomicU16>() == align_of::<u16>() && size_of::<AtomicU16>() == 2);
const _: () = assert!(align_of::<AtomicU32>() == align_of::<f32>() && size_of::<AtomicU32>() == 4);
