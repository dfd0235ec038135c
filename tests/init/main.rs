//! `gemmtune init` on real files and a real process.

mod observing;
mod reading;
mod support;
