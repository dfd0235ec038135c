//! The SGLang tree under the server: its version and structure, which GEMM path it takes, and how to change that.
//!
//! Reading goes through `pyedit`; nothing here imports SGLang or runs any of its code.

pub mod aiter;
pub mod aiter_moe;
pub mod channel;
pub mod coupling;
pub mod doctor;
mod environ;
pub mod era;
mod flow;
pub mod force;
pub mod git;
pub mod instrument;
pub mod locate;
pub mod package;
pub mod reach;
mod rebound;
pub mod route;
mod side;
pub mod switch;
pub mod version;

pub use flow::{Arch, Kernel, Rocm};
