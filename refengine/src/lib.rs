//! The reference engine: a small, real FP8 inference server on the CPU.
//!
//! It exists so that every stage of gemmtune runs for real on a machine without a GPU. It serves a
//! decoder-only model whose linear layers are block-scaled FP8 GEMMs, chosen per (M, N, K) from a
//! tuned table exactly as aiter chooses them.
//!
//! # For a tune worker
//!
//! ```
//! use gemmtune_refengine::device::{Device, split_k_fits};
//! use gemmtune_refengine::measure::{Dims, Operands, check_with, time_with};
//! use gemmtune_refengine::{kernels, table};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Device::open()?; // or `Device::with(Isa, threads)`
//! let dims = Dims { m: 1, n: 128, k: 256 };
//! // Seeded operands, the weight in as many copies as exceed the last-level cache: made once a shape.
//! let operands = Operands::seeded_cold(dims, 0)?;
//! for kernel in device.kernels() {
//!     for split_k in (0..=kernels::MAX_SPLIT_K).filter(|s| split_k_fits(*s, dims.k)) {
//!         let check = check_with(&device, &operands, kernel, split_k)?; // output poisoned with NaN before
//!         assert!(check.passes(), "{}: {check:?}", kernel.name());
//!         let us: Vec<f64> = time_with(&device, &operands, kernel, split_k, 3)?; // one per repeat
//! #       assert_eq!(us.len(), 3);
//!     }
//! }
//! // A table row: gfx = device.gfx(), cu_num = device.cu_num(), libtype = table::LIBTYPE,
//! // kernelId = kernel.id(), kernelName = kernel.name(), columns in the order of table::COLUMNS.
//! // What runs without a row is `kernels::default_kernel(device.isa())` with splitK 0.
//! # assert_eq!(table::COLUMNS.len(), 13);
//! # Ok(())
//! # }
//! ```
//!
//! One GEMM uses every core of the device, so one worker at a time is what the machine can measure.

#![deny(unsafe_code)]

mod aligned;
mod attention;
pub mod config;
pub mod device;
pub mod dispatch;
pub mod fault;
pub mod fp8;
pub mod kernels;
pub mod linear;
pub mod log;
pub mod measure;
pub mod model;
pub mod rng;
pub mod roofline;
pub mod scheduler;
pub mod server;
pub mod table;
