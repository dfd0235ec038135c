//! The problem a kernel solves, and everything that is known of the operations that solve it.
//!
//! Every room describes GEMMs with these types. What distinguishes one operation from another is in that operation's
//! file in [`op`] and nowhere else. Nothing here reads or writes files.

pub mod dtype;
pub mod fused_moe;
pub mod library;
pub mod op;
pub mod revision;
mod shape;

pub use op::{Op, UnknownOp};
pub use shape::{Shape, Weight};
