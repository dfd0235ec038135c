//! aiter's fused MoE: its tuned table, and how a call of `fused_moe` finds a row in it.
//!
//! The table (`AITER_CONFIG_FMOE`, by default `tuned_fmoe.csv` with every `model_configs/*tuned_fmoe*`) has fourteen key
//! columns and no shape of a single GEMM: a row tunes the two GEMMs of all experts at once. Everything here follows
//! `aiter/fused_moe.py` of the releases that [`rules`] names; vectors made by running that file are in `testdata/lookup`.

mod defaults;
pub mod lookup;
pub mod merge;
pub mod reason;
pub mod requests;
pub mod rules;
pub mod table;
