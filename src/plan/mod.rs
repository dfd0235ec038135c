//! What is worth tuning, in which order, what it will bring and what it will cost.
//!
//! Shapes that one row will serve are folded, which the runtime's own look-up proves; shapes that a
//! good row already serves are dropped; the rest is weighed by calls times roofline time. The room
//! computes in memory: it reads and writes no file.

mod buckets;
pub mod cost;
pub mod document;
pub mod fold;
pub mod fused_moe;
pub mod make;
pub mod model;
pub mod moe;
pub mod sizes;
pub mod thin;
mod write;

pub use document::Plan;
pub use make::{PlanError, PlanInput, make};
