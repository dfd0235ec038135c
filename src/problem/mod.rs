//! The problem a kernel solves, and everything that is known of the operations that solve it.
//!
//! Every room speaks of GEMMs in these types. What distinguishes one operation from another stands in one file of
//! [`op`] and nowhere else. Nothing here reads or writes files.

pub mod dtype;
pub mod library;
pub mod op;
pub mod revision;
mod shape;

pub use op::{Op, UnknownOp};
pub use shape::{Shape, Weight};
