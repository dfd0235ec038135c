//! SGLang's Triton kernel for fused MoE (`fused_moe_triton`, SGLang 0.5.5 to 0.5.23).

/// Its name in files.
pub const OP: &str = "fused_moe_triton";

/// Scale blocks of the weights in a race: N side, K side.
pub const BLOCK: (u32, u32) = (128, 128);
