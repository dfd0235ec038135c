//! A dense GEMM: its weight, and with M the whole problem.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Op;

/// One GEMM problem `Y[M,N] = X[M,K] · W[N,K]^T`.
///
/// The order is that of every file gemmtune writes: operation, N, K, M, dtype.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Shape {
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

/// What a GEMM multiplies by: a [`Shape`] without its M. One weight serves every M of a run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Weight {
    pub op: Op,
    /// Rows: output features on this rank.
    pub n: u32,
    /// Columns: input features on this rank.
    pub k: u32,
    /// dtype as torch prints it; empty when the source does not say.
    pub dtype: String,
}

impl Weight {
    /// The problem of multiplying `m` rows of activation by it.
    pub fn with_m(&self, m: u32) -> Shape {
        Shape {
            op: self.op,
            m,
            n: self.n,
            k: self.k,
            dtype: self.dtype.clone(),
        }
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} N={} K={}", self.op, self.n, self.k)
    }
}

impl Shape {
    /// The weight, which is the problem without its M.
    pub fn weight(&self) -> Weight {
        Weight {
            op: self.op,
            n: self.n,
            k: self.k,
            dtype: self.dtype.clone(),
        }
    }

    /// Whether both have the same operation, M, N and K. dtypes are ignored, since a log may cut them short.
    pub fn is_same_problem(&self, other: &Self) -> bool {
        (self.op, self.m, self.n, self.k) == (other.op, other.m, other.n, other.k)
    }

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
