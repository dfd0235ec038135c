//! Server logs and overlay records: which GEMMs ran, how often, and which table rows served them.
//!
//! [`scan::scan`] reads one input into a [`LogSummary`], [`sections::scan_file`] a plain file on several cores; any
//! number of inputs add up. Only [`input`] opens files; nothing here starts a process or prints.

mod cursor;
mod dump;
pub mod engagement;
pub mod fmoe;
mod hash;
pub mod input;
mod moe;
pub mod plausible;
pub mod record;
mod record_file;
pub mod scan;
pub mod sections;
mod sglang;
pub mod summary;
mod tags;
pub mod window;

pub use sglang::{Capture, CaptureUnit, Limits};
pub use summary::LogSummary;
