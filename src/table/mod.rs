//! Tuned tables: reading, writing, checking and merging them.
//!
//! A table is what a runtime looks up kernels in: aiter's CSV files (which the reference engine
//! shares) and SGLang's block-FP8 JSON files. This room knows their columns, keys and quirks per
//! revision. It starts no process and touches no device; only `merge` and the commands write files.

pub mod aiter;
pub mod aiter_triton;
pub mod csv_text;
pub mod devices;
pub mod family;
pub mod fmoe;
pub mod kernels;
pub mod lint;
pub mod lookup;
pub mod merge;
pub mod moe;
pub mod nearest;
pub mod outcome;
pub mod reason;
pub mod revision;
pub mod roofline;
pub mod serves;
pub mod sglang_json;
pub mod shapes;
