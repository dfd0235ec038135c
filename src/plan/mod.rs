//! What is worth tuning, in which order, and what it will gain and cost.
//!
//! Shapes that one row will serve are folded, which the runtime's own look-up verifies; shapes that a good row
//! already serves are dropped; the rest is weighted by calls times roofline time. This room computes in memory: it
//! neither reads nor writes files.

mod buckets;
pub mod cost;
pub mod document;
pub mod experts;
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
