//! Which M, N, K and dtype a GEMM can have, which distinguishes a record from a torn one.

use crate::problem::Op;
use crate::problem::dtype::FLOAT8;

/// Largest plausible M. Prefill chunks end at 16384 tokens by default (SGLang 0.5.5 to 0.5.23); the factor
/// of 1024 leaves room for offline engines, while two numbers run together are still recognised.
pub const MAX_M: u32 = 1 << 24;

/// Largest plausible N or K: eight times the largest dense projection in the model tables known here
/// (Llama-3.1-405B gate_up at TP1, 106496), rounded up.
pub const MAX_NK: u32 = 1 << 20;

/// The FP8 dtype whose full name is `dtype`; `None` for a truncated name.
pub fn float8(dtype: &str) -> Option<&'static str> {
    FLOAT8.into_iter().find(|whole| *whole == dtype)
}

/// The FP8 dtypes whose names continue `dtype`: it may be one of them, truncated.
pub fn longer(dtype: &str) -> impl Iterator<Item = &'static str> {
    FLOAT8
        .into_iter()
        .filter(move |whole| whole.len() > dtype.len() && whole.starts_with(dtype))
}

/// Whether a GEMM can have N and K: positive multiples of 8 (the narrowest vector load of any kernel here) and
/// no larger than [`MAX_NK`].
pub fn nk(n: u32, k: u32) -> Result<(), &'static str> {
    if n == 0 || k == 0 || !n.is_multiple_of(8) || !k.is_multiple_of(8) {
        Err("N and K are positive multiples of 8")
    } else if n > MAX_NK || k > MAX_NK {
        Err("N and K are at most 1048576")
    } else {
        Ok(())
    }
}

/// Whether a fused MoE can have `experts` experts and a width of `n` on a rank. The largest models have 512 experts,
/// to which redundant ones are added.
pub fn experts(experts: u32, n: u32) -> Result<(), &'static str> {
    if experts == 0 || experts > 1 << 16 {
        Err("E is from 1 to 65536")
    } else if n == 0 || n > MAX_NK {
        Err("N of a fused MoE is from 1 to 1048576")
    } else {
        Ok(())
    }
}

/// Whether a GEMM can have M: at least 1 and at most [`MAX_M`].
pub fn m(m: u32) -> Result<(), &'static str> {
    if m == 0 {
        Err("M is at least 1")
    } else if m > MAX_M {
        Err("M is at most 16777216")
    } else {
        Ok(())
    }
}

/// Whether a GEMM of `op` can have these sizes and this dtype; the error is the rule that it violates.
pub fn shape(op: Op, m: u32, n: u32, k: u32, dtype: &str) -> Result<(), &'static str> {
    self::m(m)?;
    nk(n, k)?;
    let known = op.facts().dtypes.contains(&dtype);
    if known {
        Ok(())
    } else {
        Err("this operation does not take this dtype")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dtype_cut_short_is_no_dtype() {
        assert!(float8("torch.float8_e4m3fn").is_some());
        assert!(float8("torch.float8_e4m3").is_none());
        assert!(float8("torch.bfloat16").is_none());
        assert_eq!(longer("torch.float8_e4m3fn").count(), 1, "fnuz goes on");
        assert_eq!(longer("torch.float8_e4m3fnuz").count(), 0);
    }

    #[test]
    fn sizes_no_gemm_has_are_told_apart() {
        let check = |m, n, k| shape(Op::Blockscale, m, n, k, "torch.float8_e4m3fn");
        assert!(check(1, 8, 8).is_ok());
        assert!(check(16384, 106_496, 16384).is_ok());
        assert!(check(0, 8, 8).is_err());
        assert!(check(1, 12, 8).is_err());
        assert!(check(1, 8, 0).is_err());
        assert!(check(1, 8, 1 << 21).is_err());
        assert!(shape(Op::Blockscale, 1, 8, 8, "torch.int8").is_err());
        assert!(shape(Op::Bpreshuffle, 1, 8, 8, "torch.int8").is_ok());
    }
}
