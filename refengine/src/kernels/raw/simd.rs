//! One trait over the vector registers of an instruction set, and its three implementations.
//!
//! Methods are `inline(always)` so that they end up inside a function compiled for the instruction
//! set; called from anywhere else they would be slow or undefined, hence `unsafe`.

/// A vector of float32.
///
/// # Safety
/// Callers of every method are compiled for, and run on, a CPU with the instruction set, and pass
/// pointers valid for the bytes the method names.
pub(super) trait Simd {
    /// The register.
    type V: Copy;
    /// float32 values in a register.
    const LANES: usize;

    /// All zero.
    unsafe fn zero() -> Self::V;
    /// One value in all lanes.
    unsafe fn splat(value: f32) -> Self::V;
    /// Reads `LANES` values; no alignment needed.
    unsafe fn load(from: *const f32) -> Self::V;
    /// Writes `LANES` values; no alignment needed.
    unsafe fn store(to: *mut f32, value: Self::V);
    /// Lane-wise product.
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// a * b + c.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Sum of the lanes, in a fixed order.
    unsafe fn sum(value: Self::V) -> f32;
    /// Decodes `4 * LANES` e4m3 codes, in order, as their value times 2^-8. Codes are not NaN.
    unsafe fn decode4(from: *const u8) -> [Self::V; 4];
    /// Asks for the cache line at `from`, which need not be valid.
    unsafe fn prefetch(from: *const u8);
}

/// What [`Simd::decode4`] leaves out: its values are too small by this factor. An e4m3 code moved
/// into a float16 keeps its bits but not its exponent bias (7 against 15), subnormals included.
pub(super) const DECODE_SCALE: f32 = 256.0;

/// Eight lanes in plain Rust, for CPUs without the others. Compilers turn it into SSE or NEON.
pub(super) struct Portable;

impl Simd for Portable {
    type V = [f32; 8];
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        [0.0; 8]
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        [value; 8]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: the caller vouches for eight values.
        unsafe { from.cast::<[f32; 8]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::V) {
        // SAFETY: the caller vouches for eight values.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(value) }
    }

    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Not `mul_add`: without a fused instruction that is a library call.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }

    #[inline(always)]
    unsafe fn decode4(from: *const u8) -> [Self::V; 4] {
        // SAFETY: the caller vouches for 32 bytes.
        let codes = unsafe { from.cast::<[u8; 32]>().read_unaligned() };
        std::array::from_fn(|j| {
            std::array::from_fn(|i| crate::fp8::E4M3[codes[j * 8 + i] as usize] / DECODE_SCALE)
        })
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Simd;
    #[cfg_attr(
        not(test),
        expect(clippy::wildcard_imports, reason = "some forty intrinsics")
    )]
    use std::arch::x86_64::*;

    /// AVX2 with FMA and F16C: eight lanes, sixteen registers.
    pub(in super::super) struct Avx2;

    impl Simd for Avx2 {
        type V = __m256;
        const LANES: usize = 8;

        #[inline(always)]
        unsafe fn zero() -> Self::V {
            // SAFETY: the caller runs on AVX2, as for every block below.
            unsafe { _mm256_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self::V {
            // SAFETY: as above.
            unsafe { _mm256_set1_ps(value) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self::V {
            // SAFETY: the caller vouches for eight values.
            unsafe { _mm256_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn store(to: *mut f32, value: Self::V) {
            // SAFETY: the caller vouches for eight values.
            unsafe { _mm256_storeu_ps(to, value) }
        }

        #[inline(always)]
        unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: as above.
            unsafe { _mm256_mul_ps(a, b) }
        }

        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            // SAFETY: as above.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        unsafe fn sum(value: Self::V) -> f32 {
            // SAFETY: as above.
            unsafe {
                let four = _mm_add_ps(
                    _mm256_castps256_ps128(value),
                    _mm256_extractf128_ps::<1>(value),
                );
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
            }
        }

        #[inline(always)]
        unsafe fn decode4(from: *const u8) -> [Self::V; 4] {
            // SAFETY: the caller vouches for 32 bytes.
            unsafe {
                let codes = _mm256_loadu_si256(from.cast());
                let zero = _mm256_setzero_si256();
                let keep = _mm256_set1_epi16(0xbfffu16.cast_signed());
                // Code in the high byte: s eeee mmm 00000000. One arithmetic shift makes it
                // s s eeee mmm 0000000; clearing the second bit leaves float16 with four exponent bits.
                let half = |bytes| _mm256_and_si256(_mm256_srai_epi16::<1>(bytes), keep);
                let low = half(_mm256_unpacklo_epi8(zero, codes));
                let high = half(_mm256_unpackhi_epi8(zero, codes));
                // Unpacking works within 128-bit lanes: `low` holds codes 0-7 and 16-23.
                [
                    _mm256_cvtph_ps(_mm256_castsi256_si128(low)),
                    _mm256_cvtph_ps(_mm256_castsi256_si128(high)),
                    _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(low)),
                    _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(high)),
                ]
            }
        }

        #[inline(always)]
        unsafe fn prefetch(from: *const u8) {
            // SAFETY: prefetching any address is allowed.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
        }
    }

    /// AVX-512 F and BW: sixteen lanes, thirty-two registers.
    pub(in super::super) struct Avx512;

    impl Simd for Avx512 {
        type V = __m512;
        const LANES: usize = 16;

        #[inline(always)]
        unsafe fn zero() -> Self::V {
            // SAFETY: the caller runs on AVX-512, as for every block below.
            unsafe { _mm512_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self::V {
            // SAFETY: as above.
            unsafe { _mm512_set1_ps(value) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self::V {
            // SAFETY: the caller vouches for sixteen values.
            unsafe { _mm512_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn store(to: *mut f32, value: Self::V) {
            // SAFETY: the caller vouches for sixteen values.
            unsafe { _mm512_storeu_ps(to, value) }
        }

        #[inline(always)]
        unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: as above.
            unsafe { _mm512_mul_ps(a, b) }
        }

        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            // SAFETY: as above.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        unsafe fn sum(value: Self::V) -> f32 {
            // SAFETY: as above.
            unsafe { _mm512_reduce_add_ps(value) }
        }

        #[inline(always)]
        unsafe fn decode4(from: *const u8) -> [Self::V; 4] {
            // SAFETY: the caller vouches for 64 bytes.
            unsafe {
                let keep = _mm512_set1_epi16(0xbfffu16.cast_signed());
                // The same bit moves as for AVX2, on codes widened across lanes so that order is kept.
                let pair = |from: *const u8| {
                    let wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256(from.cast()));
                    let half = _mm512_and_si512(
                        _mm512_srai_epi16::<1>(_mm512_slli_epi16::<8>(wide)),
                        keep,
                    );
                    [
                        _mm512_cvtph_ps(_mm512_castsi512_si256(half)),
                        _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(half)),
                    ]
                };
                let [first, second] = pair(from);
                let [third, fourth] = pair(from.add(32));
                [first, second, third, fourth]
            }
        }

        #[inline(always)]
        unsafe fn prefetch(from: *const u8) {
            // SAFETY: prefetching any address is allowed.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
        }
    }
}
