//! Number formats: e4m3fn and bfloat16, and the two quantisers of block-scaled FP8.
//!
//! Activations get one scale per token and 128 columns, weights one per 128 x 128 block, as
//! DeepSeek-style FP8 checkpoints (`weight_block_size: [128, 128]`) and SGLang's
//! `per_token_group_quant_fp8` have it. Nothing here is timed; the kernels decode for themselves.

use crate::aligned::Aligned;

/// Side of a scale block (DeepSeek-V3 `weight_block_size`).
pub const BLOCK: usize = 128;
/// Largest finite e4m3fn value.
pub const E4M3_MAX: f32 = 448.0;
/// The e4m3fn code of NaN without its sign bit. The format has no infinity.
const NAN_CODE: u8 = 0x7f;
/// Smallest group maximum the activation quantiser divides by (SGLang `per_token_group_quant_8bit`, eps).
const QUANT_EPS: f32 = 1e-10;

/// A bfloat16 value: the upper half of a float32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(pub u16);

impl Bf16 {
    /// A quiet NaN, what outputs are poisoned with before a check.
    pub const NAN: Self = Self(0x7fc0);

    /// Rounds to nearest, ties to even; NaN stays NaN.
    #[inline]
    pub fn from_f32(value: f32) -> Self {
        let bits = value.to_bits();
        if value.is_nan() {
            return Self((bits >> 16) as u16 | 0x40);
        }
        Self(((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16)
    }

    /// The same value as a float32, exactly.
    #[inline]
    pub fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
}

/// Decodes one e4m3fn code, exactly.
pub fn e4m3_to_f32(code: u8) -> f32 {
    E4M3[code as usize]
}

/// Every e4m3fn code as float32.
pub(crate) const E4M3: [f32; 256] = decode_table();

const fn decode_table() -> [f32; 256] {
    let mut table = [0.0; 256];
    let mut code = 0usize;
    while code < 256 {
        let exponent = ((code >> 3) & 15) as u32;
        let mantissa = (code & 7) as u32;
        // 2^-9 is the weight of the last subnormal bit: bias 7, three mantissa bits.
        let magnitude = if code & 0x7f == NAN_CODE as usize {
            f32::NAN
        } else if exponent == 0 {
            mantissa as f32 / 512.0
        } else {
            f32::from_bits(((exponent + 120) << 23) | (mantissa << 20))
        };
        table[code] = if code & 0x80 == 0 {
            magnitude
        } else {
            -magnitude
        };
        code += 1;
    }
    table
}

/// Encodes to e4m3fn, nearest and ties to even, saturating at ±448 as `torch` conversion after a
/// clamp does. NaN becomes the NaN code. Without branches, so that loops over it become vector code.
#[inline]
pub fn e4m3_from_f32(value: f32) -> u8 {
    let bits = value.to_bits();
    let sign = (bits >> 24) & 0x80;
    let magnitude = bits & 0x7fff_ffff;
    // 120 = 127 - 7: the difference of the exponent biases.
    let rounded = magnitude + 0x7_ffff + ((magnitude >> 20) & 1);
    let normal = (rounded >> 20).wrapping_sub(120 << 3).min(0x7e);
    // Below 2^-6 the format is a fixed-point grid of 2^-9; adding 2^14 makes float32 round to it.
    let subnormal = (f32::from_bits(magnitude) + 16_384.0).to_bits() & 0xff;
    let code = if magnitude < 0x3c80_0000 {
        subnormal
    } else {
        normal
    };
    let code = if magnitude > 0x7f80_0000 {
        u32::from(NAN_CODE)
    } else {
        code
    };
    (sign | code) as u8
}

/// Quantised activations: M rows of K e4m3fn codes and one float32 scale per row and 128 columns.
#[derive(Clone, Debug, Default)]
pub struct QuantActivation {
    /// Rows (tokens).
    pub m: usize,
    /// Columns (input features).
    pub k: usize,
    /// Codes, row-major, M x K.
    pub codes: Vec<u8>,
    /// Scales, row-major, M x ceil(K / 128).
    pub scales: Vec<f32>,
}

impl QuantActivation {
    /// Quantises `values` (M x K, row-major) per token and group of 128: scale = amax / 448.
    ///
    /// A NaN or an infinity in a group makes the group's scale NaN, so that it reaches the output.
    pub fn quantise(values: &[f32], m: usize, k: usize) -> Self {
        let mut quantised = Self::default();
        quantised.requantise(values, m, k);
        quantised
    }

    /// As [`Self::quantise`], reusing the buffers.
    pub fn requantise(&mut self, values: &[f32], m: usize, k: usize) {
        assert_eq!(values.len(), m * k, "activation is M x K");
        self.m = m;
        self.k = k;
        self.codes.clear();
        self.scales.clear();
        self.codes.reserve(m * k);
        for row in values.chunks_exact(k.max(1)).take(m) {
            for group in row.chunks(BLOCK) {
                // The bits of absolute values order as the values do, and those of NaN come last.
                let bits = group.iter().map(|v| v.to_bits() & 0x7fff_ffff).max();
                let amax = f32::from_bits(bits.unwrap_or(0));
                let (scale, inverse) = if amax.is_finite() {
                    let scale = amax.max(QUANT_EPS) / E4M3_MAX;
                    (scale, 1.0 / scale)
                } else {
                    (f32::NAN, 0.0)
                };
                self.scales.push(scale);
                self.codes
                    .extend(group.iter().map(|v| e4m3_from_f32(v * inverse)));
            }
        }
    }
}

/// A weight cannot be used by the kernels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WeightError {
    /// The number of codes or scales does not fit N and K.
    #[error("lay out a weight of N={n} K={k}: {what} has {got} elements, expected {expected}")]
    Size {
        /// Output features.
        n: usize,
        /// Input features.
        k: usize,
        /// `codes` or `scales`.
        what: &'static str,
        /// Elements given.
        got: usize,
        /// Elements needed.
        expected: usize,
    },
    /// A code is NaN; the vector decoders have no NaN.
    #[error("lay out a weight: code {index} is NaN")]
    NotANumber {
        /// Index of the code.
        index: usize,
    },
}

/// A block-scaled FP8 weight, N x K, laid out for the kernels.
///
/// Rows are padded with zero codes to a multiple of 128 columns and start on cache lines, so that
/// kernels need no tail in K. No code is NaN.
#[derive(Clone, Debug)]
pub struct QuantWeight {
    n: usize,
    k: usize,
    codes: Aligned<u8>,
    scales: Vec<f32>,
}

/// K rounded up to whole scale blocks.
pub(crate) const fn padded_k(k: usize) -> usize {
    k.div_ceil(BLOCK) * BLOCK
}

impl QuantWeight {
    /// Lays out `codes` (N x K, row-major) and `scales` (ceil(N/128) x ceil(K/128), row-major).
    pub fn new(n: usize, k: usize, codes: &[u8], scales: Vec<f32>) -> Result<Self, WeightError> {
        if codes.len() != n * k {
            return Err(WeightError::Size {
                n,
                k,
                what: "codes",
                got: codes.len(),
                expected: n * k,
            });
        }
        if let Some(index) = codes.iter().position(|code| code & 0x7f == NAN_CODE) {
            return Err(WeightError::NotANumber { index });
        }
        let mut weight = Self::with_scales(n, k, scales)?;
        let stride = weight.stride();
        if k > 0 {
            for (row, source) in weight
                .codes
                .chunks_exact_mut(stride)
                .zip(codes.chunks_exact(k))
            {
                row[..k].copy_from_slice(source);
            }
        }
        Ok(weight)
    }

    /// A weight of zero codes with the given scales, to be filled by row.
    pub(crate) fn with_scales(n: usize, k: usize, scales: Vec<f32>) -> Result<Self, WeightError> {
        let expected = n.div_ceil(BLOCK) * k.div_ceil(BLOCK);
        if scales.len() != expected {
            return Err(WeightError::Size {
                n,
                k,
                what: "scales",
                got: scales.len(),
                expected,
            });
        }
        Ok(Self {
            n,
            k,
            codes: Aligned::zeroed(n * padded_k(k)),
            scales,
        })
    }

    /// Quantises a float32 matrix (N x K, row-major): one scale = amax / 448 per 128 x 128 block.
    pub fn quantise(values: &[f32], n: usize, k: usize) -> Result<Self, WeightError> {
        if values.len() != n * k {
            return Err(WeightError::Size {
                n,
                k,
                what: "codes",
                got: values.len(),
                expected: n * k,
            });
        }
        let blocks = k.div_ceil(BLOCK);
        let mut scales = vec![QUANT_EPS; n.div_ceil(BLOCK) * blocks];
        let block_of = |index: usize| (index / k / BLOCK) * blocks + (index % k) / BLOCK;
        for (index, value) in values.iter().enumerate() {
            let scale = &mut scales[block_of(index)];
            *scale = scale.max(value.abs() / E4M3_MAX);
        }
        let codes: Vec<u8> = values
            .iter()
            .enumerate()
            .map(|(index, value)| e4m3_from_f32(value / scales[block_of(index)]))
            .collect();
        Self::new(n, k, &codes, scales)
    }

    /// Output features.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Input features.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bytes from one row to the next.
    pub(crate) fn stride(&self) -> usize {
        padded_k(self.k)
    }

    /// All codes, rows of [`Self::stride`] bytes.
    pub(crate) fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// All codes, to fill them. The caller writes no NaN code and leaves padding zero.
    pub(crate) fn codes_mut(&mut self) -> &mut [u8] {
        &mut self.codes
    }

    /// Scales of one block row, one per 128 columns.
    pub(crate) fn scale_row(&self, block_row: usize) -> &[f32] {
        let blocks = self.k.div_ceil(BLOCK);
        &self.scales[block_row * blocks..(block_row + 1) * blocks]
    }

    /// The value of one element, exactly, as float64.
    pub fn value(&self, n: usize, k: usize) -> f64 {
        f64::from(E4M3[self.codes[n * self.stride() + k] as usize])
            * f64::from(self.scale_row(n / BLOCK)[k / BLOCK])
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "values that are exact by construction")]
mod tests {
    use super::*;

    #[test]
    fn every_finite_code_survives_decode_and_encode() {
        for code in 0..=255u8 {
            let value = e4m3_to_f32(code);
            if value.is_nan() {
                assert_eq!(code & 0x7f, 0x7f);
            } else {
                assert_eq!(e4m3_from_f32(value), code, "{value}");
            }
        }
        assert_eq!(e4m3_to_f32(0x7e), 448.0);
        assert_eq!(e4m3_to_f32(0x01), 2f32.powi(-9));
    }

    #[test]
    fn encoding_picks_the_nearest_code_and_the_even_one_on_ties() {
        let finite: Vec<u8> = (0..0x7f).collect();
        for step in 0..200_000u32 {
            let value =
                f64::from(step) * 450.0 / 200_000.0 * if step % 3 == 0 { 1e-3 } else { 1.0 };
            let value = value as f32;
            let code = e4m3_from_f32(value);
            let error = (e4m3_to_f32(code) - value).abs();
            let best = finite
                .iter()
                .map(|&c| (e4m3_to_f32(c) - value).abs())
                .fold(f32::INFINITY, f32::min);
            assert_eq!(error, best, "{value} became {code:#x}");
        }
        assert_eq!(e4m3_from_f32(17.0), e4m3_from_f32(16.0), "tie goes to even");
        assert_eq!(e4m3_from_f32(19.0), e4m3_from_f32(20.0), "tie goes to even");
        assert_eq!(e4m3_from_f32(-1e9), 0xfe);
    }

    #[test]
    fn bf16_rounds_to_nearest_even() {
        assert_eq!(Bf16::from_f32(1.0).0, 0x3f80);
        assert_eq!(Bf16::from_f32(f32::from_bits(0x3f80_8000)).0, 0x3f80);
        assert_eq!(Bf16::from_f32(f32::from_bits(0x3f81_8000)).0, 0x3f82);
        assert_eq!(Bf16::from_f32(f32::from_bits(0x3f80_8001)).0, 0x3f81);
        assert!(Bf16::from_f32(f32::NAN).to_f32().is_nan());
        assert_eq!(Bf16::from_f32(f32::INFINITY).to_f32(), f32::INFINITY);
    }

    #[test]
    fn activation_groups_use_their_own_scale_and_nan_poisons_only_its_group() {
        let mut values = vec![1.0f32; 300];
        values[130] = 448.0;
        values[299] = f32::NAN;
        let quantised = QuantActivation::quantise(&values, 1, 300);
        assert_eq!(quantised.scales.len(), 3);
        assert_eq!(quantised.scales[0], 1.0 / 448.0);
        assert_eq!(quantised.scales[1], 1.0);
        assert!(quantised.scales[2].is_nan());
    }

    #[test]
    fn a_weight_with_a_nan_code_or_a_wrong_size_is_refused() {
        assert_eq!(
            QuantWeight::new(1, 2, &[0, 0xff], vec![1.0]).unwrap_err(),
            WeightError::NotANumber { index: 1 }
        );
        assert!(QuantWeight::new(1, 3, &[0, 0], vec![1.0]).is_err());
        assert!(QuantWeight::new(1, 2, &[0, 0], vec![]).is_err());
    }

    #[test]
    fn a_quantised_weight_is_close_to_its_values() {
        let values: Vec<f32> = (0..3 * 200)
            .map(|i| (i as f32 * 0.37).sin() * 0.1)
            .collect();
        let weight = QuantWeight::quantise(&values, 3, 200).unwrap();
        for (index, value) in values.iter().enumerate() {
            let got = weight.value(index / 200, index % 200) as f32;
            assert!(
                (got - value).abs() <= value.abs() / 16.0 + 1e-5,
                "{got} {value}"
            );
        }
    }
}
