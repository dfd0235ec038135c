//! The loop, end to end, on the reference engine with a tiny model.

mod aiter_triton;
mod documents;
mod faults;
mod first_hour;
mod fused_moe;
mod interrupts;
mod loops;
#[path = "../ports/mod.rs"]
mod ports;
mod profile;
mod rest;
mod route;
#[path = "../said/mod.rs"]
mod said;
#[path = "../schema/mod.rs"]
mod schema;
mod sglang_triton;
mod support;
mod table;
