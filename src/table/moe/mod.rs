//! SGLang's tables of its Triton fused-MoE kernel: what their names mean, and which file and row a server uses.
//!
//! There is one JSON file for each (E, N), device, dtype and scale block, in a folder for each Triton version; a
//! second one, `…_down.json`, for the down projection. E is the number of local experts of a rank, N the columns
//! between the two GEMMs (half of the up projection's rows), M the tokens of a forward. Source: SGLang 0.5.5 to
//! 0.5.23, `fused_moe_triton_config.py`.

pub mod counted;
pub mod default;
pub mod folders;
pub mod merge;
pub mod name;
pub mod release;
pub mod serve;
