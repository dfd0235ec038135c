//! Server logs and overlay records: which GEMMs ran, how often, and which table rows served them.
//!
//! This room reads bytes and returns facts. It opens no file by itself, starts no process and prints nothing.

pub mod plausible;
pub mod record;
