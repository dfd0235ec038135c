//! aiter's tuner as gemmtune drives it, against a stand-in of our own that has its command line, its output, its
//! batches and its faults. The real one is run by `tests/aiter/run CHECKOUT`.

mod faults;
mod fused_moe;
mod fused_moe_real;
mod real;
mod real_flags;
#[path = "../said/mod.rs"]
mod said;
#[path = "../schema/mod.rs"]
mod schema;
mod stops;
mod support;
mod tags;
mod taking;
mod triton_gemm;
mod whole;
