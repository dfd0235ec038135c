//! `gemmtune init` on real files and a real process.

mod observing;
#[path = "../ports/mod.rs"]
mod ports;
mod reading;
#[path = "../said/mod.rs"]
mod said;
mod support;
