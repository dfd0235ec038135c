//! The racing tuner against real child processes: a scripted worker that misbehaves on request, and the
//! reference engine's own.

mod command;
mod ends;
mod fake;
mod moe;
mod pool;
mod replay;
#[path = "../said/mod.rs"]
mod said;

#[path = "../schema/mod.rs"]
mod schema;
