//! The inner loops, written once over [`Simd`].

use std::hint::black_box;

use super::simd::{DECODE_SCALE, Simd};

/// Work of the `stream` family: MR activation rows times many weight rows, codes decoded in registers.
pub(crate) struct DotJob<'a> {
    /// MR rows of float32 activations, `x_stride` apart, already times their scales.
    pub(crate) x: &'a [f32],
    /// Elements from one activation row to the next.
    pub(crate) x_stride: usize,
    /// Weight codes from the first row and column of the job on.
    pub(crate) w: &'a [u8],
    /// Bytes from one weight row to the next.
    pub(crate) w_stride: usize,
    /// Weight rows.
    pub(crate) rows: usize,
    /// Columns; a multiple of 128.
    pub(crate) k: usize,
    /// Running sums, MR rows of `rows`, added to.
    pub(crate) out: &'a mut [f32],
}

/// Work of the `tile` family: one register tile over a decoded weight strip.
pub(crate) struct TileJob<'a> {
    /// Packed activations: for each column, the MT rows of the tile side by side.
    pub(crate) x: &'a [f32],
    /// NR decoded weight rows, `w_stride` apart.
    pub(crate) w: &'a [f32],
    /// Elements from one weight row to the next.
    pub(crate) w_stride: usize,
    /// Columns.
    pub(crate) k: usize,
    /// NR rows of MT running sums, `c_stride` apart, added to.
    pub(crate) c: &'a mut [f32],
    /// Elements from one row of sums to the next.
    pub(crate) c_stride: usize,
}

/// Bytes ahead that the streaming loop asks for: far enough to hide DRAM latency at a few bytes a
/// cycle, near enough to stay in L1 for several rows at once.
const PREFETCH_AHEAD: usize = 1024;

/// out[m][n] += sum over k of x[m][k] * w[n][k], NR weight rows at a time.
///
/// # Safety
/// The CPU has `S`'s instruction set.
#[inline(always)]
pub(super) unsafe fn dot<S: Simd, const MR: usize, const NR: usize>(job: DotJob<'_>) {
    let DotJob {
        x,
        x_stride,
        w,
        w_stride,
        rows,
        k,
        out,
    } = job;
    let step = 4 * S::LANES;
    assert!(k > 0 && k.is_multiple_of(step) && rows > 0);
    assert!(x.len() >= (MR - 1) * x_stride + k, "activation rows");
    assert!(w.len() >= (rows - 1) * w_stride + k, "weight rows");
    assert!(out.len() >= MR * rows, "outputs");
    let x = x.as_ptr();
    let w = w.as_ptr();
    let mut first = 0;
    while first < rows {
        // The last group repeats the last row instead of reading past the end.
        let row: [*const u8; NR] = std::array::from_fn(|r| {
            // SAFETY: the row index is below `rows`; the assertion on w.len() covers it.
            unsafe { w.add((first + r).min(rows - 1) * w_stride) }
        });
        // SAFETY: every read of x is below (MR-1)*x_stride + k and of a row below k, as asserted;
        // the caller vouches for the instruction set.
        unsafe {
            let mut acc = [[S::zero(); NR]; MR];
            let mut at = 0;
            while at < k {
                for r in 0..NR {
                    S::prefetch(row[r].wrapping_add(at + PREFETCH_AHEAD));
                    let codes = S::decode4(row[r].add(at));
                    for m in 0..MR {
                        for j in 0..4 {
                            let values = S::load(x.add(m * x_stride + at + j * S::LANES));
                            acc[m][r] = S::fma(values, codes[j], acc[m][r]);
                        }
                    }
                }
                at += step;
            }
            for m in 0..MR {
                for r in 0..NR.min(rows - first) {
                    out[m * rows + first + r] += S::sum(acc[m][r]) * DECODE_SCALE;
                }
            }
        }
        first += NR;
    }
}

/// c[n][m] += sum over k of x[k][m] * w[n][k] for a tile of MV registers by NR rows.
///
/// # Safety
/// The CPU has `S`'s instruction set.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, const MV: usize, const NR: usize>(job: TileJob<'_>) {
    let TileJob {
        x,
        w,
        w_stride,
        k,
        c,
        c_stride,
    } = job;
    let rows = MV * S::LANES;
    assert!(x.len() >= k * rows, "packed activations");
    assert!(w.len() >= (NR - 1) * w_stride + k, "weight strip");
    assert!(c.len() >= (NR - 1) * c_stride + rows, "sums");
    let x = x.as_ptr();
    let w = w.as_ptr();
    let c = c.as_mut_ptr();
    // SAFETY: reads of x are below k*rows, of w below (NR-1)*w_stride + k, accesses of c below
    // (NR-1)*c_stride + rows, all asserted; the caller vouches for the instruction set.
    unsafe {
        let mut acc = [[S::zero(); MV]; NR];
        for at in 0..k {
            let mut values = [S::zero(); MV];
            for v in 0..MV {
                values[v] = S::load(x.add(at * rows + v * S::LANES));
            }
            for n in 0..NR {
                let weight = S::splat(*w.add(n * w_stride + at));
                for v in 0..MV {
                    acc[n][v] = S::fma(values[v], weight, acc[n][v]);
                }
            }
        }
        let one = S::splat(1.0);
        for n in 0..NR {
            for v in 0..MV {
                let sums = c.add(n * c_stride + v * S::LANES);
                S::store(sums, S::fma(acc[n][v], one, S::load(sums)));
            }
        }
    }
}

/// out = decoded codes times the scale of their 128 columns.
///
/// # Safety
/// The CPU has `S`'s instruction set.
#[inline(always)]
pub(super) unsafe fn decode<S: Simd>(codes: &[u8], scales: &[f32], out: &mut [f32]) {
    assert_eq!(codes.len(), out.len());
    assert!(codes.len() == scales.len() * crate::fp8::BLOCK);
    let step = 4 * S::LANES;
    for (block, scale) in scales.iter().enumerate() {
        let from = block * crate::fp8::BLOCK;
        // SAFETY: from..from+128 is within codes and out, as asserted, and 128 is a multiple of the
        // step of every instruction set; the caller vouches for the instruction set.
        unsafe {
            let factor = S::splat(scale * DECODE_SCALE);
            let mut at = from;
            while at < from + crate::fp8::BLOCK {
                let values = S::decode4(codes.as_ptr().add(at));
                for j in 0..4 {
                    S::store(
                        out.as_mut_ptr().add(at + j * S::LANES),
                        S::mul(values[j], factor),
                    );
                }
                at += step;
            }
        }
    }
}

/// Independent sums of [`burn`]: two units of four cycles latency need eight, the rest is slack, and
/// all fit into sixteen registers.
const BURN_SUMS: usize = 12;

/// Multiply-adds that depend on nothing but registers: `rounds` times [`BURN_SUMS`] vectors. Returns the
/// floating-point operations done and a value that keeps them from being optimised away.
///
/// # Safety
/// The CPU has `S`'s instruction set.
#[inline(always)]
pub(super) unsafe fn burn<S: Simd>(rounds: usize) -> (f64, f32) {
    // SAFETY: registers only; the caller vouches for the instruction set.
    unsafe {
        // Opaque, or the fixed point that the sums stand at would be computed when compiling.
        let (factor, term) = (S::splat(black_box(0.999)), S::splat(black_box(0.001)));
        let mut sums = [S::splat(1.0); BURN_SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = S::fma(*sum, factor, term);
            }
        }
        let kept = sums.iter().map(|sum| S::sum(*sum)).sum();
        ((rounds * BURN_SUMS * S::LANES * 2) as f64, kept)
    }
}
