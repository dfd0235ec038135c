//! The problem a kernel solves: operation, M, N, K and dtype.
//!
//! Every room speaks of GEMMs in these types. Nothing here reads or writes files.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A GEMM operation as the runtime names it; each has its own tuned table and its own look-up rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Op {
    /// aiter `gemm_a8w8_blockscale`: plain CK / CKTile, row-major activation scales. The reference
    /// engine implements the same operation on the CPU.
    #[serde(rename = "gemm_a8w8_blockscale")]
    Blockscale,
    /// aiter `gemm_a8w8_blockscale_bpreshuffle`: weights shuffled to (16, 16) tiles, transposed scales.
    #[serde(rename = "gemm_a8w8_blockscale_bpreshuffle")]
    BlockscaleBpreshuffle,
    /// aiter `gemm_a8w8_bpreshuffle`: per-token, per-channel scales, shuffled weights.
    #[serde(rename = "gemm_a8w8_bpreshuffle")]
    Bpreshuffle,
    /// aiter `gemm_a8w8`: per-token, per-channel scales.
    #[serde(rename = "gemm_a8w8")]
    A8w8,
    /// aiter `gemm_a4w4`: MXFP4. K is the logical K, twice the packed bytes.
    #[serde(rename = "gemm_a4w4")]
    A4w4,
    /// SGLang's own Triton kernel `w8a8_block_fp8_matmul`, configured by its JSON files.
    #[serde(rename = "w8a8_block_fp8_matmul")]
    TritonBlockFp8,
}

impl Op {
    /// Every operation, in table order.
    pub const ALL: [Self; 6] = [
        Self::Blockscale,
        Self::BlockscaleBpreshuffle,
        Self::Bpreshuffle,
        Self::A8w8,
        Self::A4w4,
        Self::TritonBlockFp8,
    ];

    /// The runtime's own name for the operation, as it stands in CSV files and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Blockscale => "gemm_a8w8_blockscale",
            Self::BlockscaleBpreshuffle => "gemm_a8w8_blockscale_bpreshuffle",
            Self::Bpreshuffle => "gemm_a8w8_bpreshuffle",
            Self::A8w8 => "gemm_a8w8",
            Self::A4w4 => "gemm_a4w4",
            Self::TritonBlockFp8 => "w8a8_block_fp8_matmul",
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// The text is not the name of an operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "name the operation: `{0}` is none of gemm_a8w8_blockscale, gemm_a8w8_blockscale_bpreshuffle, gemm_a8w8_bpreshuffle, gemm_a8w8, gemm_a4w4, w8a8_block_fp8_matmul"
)]
pub struct UnknownOp(pub String);

impl FromStr for Op {
    type Err = UnknownOp;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|op| op.name() == text)
            .ok_or_else(|| UnknownOp(text.to_owned()))
    }
}

/// One GEMM problem `Y[M,N] = X[M,K] · W[N,K]^T`.
///
/// The order is that of every file gemmtune writes: operation, N, K, M, dtype.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Shape {
    /// The operation.
    pub op: Op,
    /// Rows of the activation: tokens of this forward.
    pub m: u32,
    /// Rows of the weight: output features on this rank.
    pub n: u32,
    /// Columns of the weight: input features on this rank.
    pub k: u32,
    /// dtype of the weight as torch prints it, for example `torch.float8_e4m3fn`; empty when the
    /// source does not say.
    pub dtype: String,
}

impl Shape {
    /// Floating-point operations of one call: 2·M·N·K.
    pub fn flops(&self) -> f64 {
        2.0 * f64::from(self.m) * f64::from(self.n) * f64::from(self.k)
    }
}

impl Ord for Shape {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.op, self.n, self.k, self.m, &self.dtype).cmp(&(
            other.op,
            other.n,
            other.k,
            other.m,
            &other.dtype,
        ))
    }
}

impl PartialOrd for Shape {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} M={} N={} K={}",
            self.op, self.m, self.n, self.k
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_name_reads_back() {
        for op in Op::ALL {
            assert_eq!(op.name().parse::<Op>(), Ok(op));
            assert_eq!(serde_json::to_string(&op).unwrap(), format!("\"{op}\""));
        }
        assert!("gemm_a8w8_block".parse::<Op>().is_err());
    }

    #[test]
    fn shapes_sort_by_weight_before_tokens() {
        let shape = |m, n, k| Shape {
            op: Op::Blockscale,
            m,
            n,
            k,
            dtype: String::new(),
        };
        let mut shapes = vec![shape(9, 2, 1), shape(1, 4, 1), shape(8, 2, 1)];
        shapes.sort();
        assert_eq!(shapes, vec![shape(8, 2, 1), shape(9, 2, 1), shape(1, 4, 1)]);
    }
}
