//! Timing and checking one kernel on one shape: what a tune worker and `/gemm_check` do.
//!
//! Inputs are seeded, so two processes measure the same numbers. Timing is with cold caches: serving
//! streams every layer's weights once per forward, so a weight is never in cache when its turn comes.

use std::time::Instant;

use crate::device::{Device, GemmError};
use crate::fp8::{BLOCK, Bf16, QuantActivation, QuantWeight, WeightError};
use crate::kernels::Kernel;
use crate::rng::SplitMix64;

/// Bytes that rotated weight copies must exceed together. Twice the 32 MiB of L3 that one core complex
/// of the EPYC and Ryzen CPUs of this decade has; a single weight larger than this needs no copy.
pub const COLD_BYTES: usize = 64 << 20;

/// Largest relative error ‖y − ref‖ / ‖ref‖ of a correct kernel: bfloat16 keeps eight bits, so rounding
/// the output costs at most 2^-8 of each element (about 0.0017 in norm over many); the rest is room for
/// float32 sums, which cost a hundredth of it.
pub const MAX_RELATIVE_ERROR: f64 = 0.004;

/// The shape of a GEMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dims {
    /// Rows of the activation.
    pub m: usize,
    /// Rows of the weight.
    pub n: usize,
    /// Columns of both.
    pub k: usize,
}

/// A measurement cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The kernel refused the shape.
    #[error(transparent)]
    Gemm(#[from] GemmError),
    /// The inputs could not be made.
    #[error(transparent)]
    Weight(#[from] WeightError),
}

/// How right a kernel is on one shape.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Check {
    /// ‖y − ref‖ / ‖ref‖ over the rows compared, against float64 sums of the same codes and scales;
    /// infinite when an output is not finite.
    pub relative_error: f64,
    /// Share of the elements compared that are outside `1e-2 + 1e-2·|ref|`, which is what aiter's tuner
    /// writes as `errRatio`; 1 when an output is not finite.
    pub wrong_share: f64,
    /// Whether every output is finite. Outputs are NaN before the kernel runs.
    pub finite: bool,
    /// Duration of the checked call, microseconds.
    pub us: f64,
}

impl Check {
    /// Whether the kernel is right: finite and within [`MAX_RELATIVE_ERROR`].
    pub fn passes(&self) -> bool {
        self.finite && self.relative_error <= MAX_RELATIVE_ERROR
    }
}

/// Seeded operands of a GEMM.
#[derive(Debug)]
pub struct Operands {
    /// The activation.
    pub x: QuantActivation,
    /// Copies of one weight; one unless made cold.
    weights: Vec<QuantWeight>,
}

impl Operands {
    /// About normal activations and weights with varied scales, from a seed.
    pub fn seeded(dims: Dims, seed: u64) -> Result<Self, MeasureError> {
        let Dims { m, n, k } = dims;
        let mut rng = SplitMix64::for_part(seed, 1);
        let values: Vec<f32> = (0..m * k).map(|_| rng.normal()).collect();
        let x = QuantActivation::quantise(&values, m, k);
        Ok(Self {
            x,
            weights: vec![random_weight(n, k, 1.0, seed)?],
        })
    }

    /// The same with as many copies of the weight as exceed [`COLD_BYTES`].
    pub fn seeded_cold(dims: Dims, seed: u64) -> Result<Self, MeasureError> {
        let mut operands = Self::seeded(dims, seed)?;
        let copies = COLD_BYTES.div_ceil((dims.n * dims.k).max(1)).clamp(1, 4096);
        let copy = operands.weights[0].clone();
        operands.weights.resize(copies, copy);
        Ok(operands)
    }

    /// The weight of a repeat: consecutive repeats get different copies.
    pub fn weight(&self, repeat: usize) -> &QuantWeight {
        &self.weights[repeat % self.weights.len()]
    }
}

/// A weight of about normal values with deviation `deviation`, whose block scales vary by a factor of
/// up to two, so that a kernel that takes the wrong scale is wrong.
pub fn random_weight(
    n: usize,
    k: usize,
    deviation: f32,
    seed: u64,
) -> Result<QuantWeight, WeightError> {
    let mut rng = SplitMix64::for_part(seed, 2);
    let blocks = n.div_ceil(BLOCK) * k.div_ceil(BLOCK);
    // Codes have deviation 32: 4 sigma is 128, well inside the format's 448.
    let scales = (0..blocks)
        .map(|_| deviation / 32.0 * (1.0 + 0.3 * rng.signed()))
        .collect();
    let mut weight = QuantWeight::with_scales(n, k, scales)?;
    let codes: Vec<u8> = (0..4096)
        .map(|_| crate::fp8::e4m3_from_f32(rng.normal() * 32.0))
        .collect();
    let stride = weight.stride();
    if k > 0 {
        for row in weight.codes_mut().chunks_exact_mut(stride) {
            for five in row[..k].chunks_mut(5) {
                // Five draws of twelve bits from sixty-four.
                let bits = rng.next_u64();
                for (at, code) in five.iter_mut().enumerate() {
                    *code = codes[(bits >> (12 * at)) as usize & 4095];
                }
            }
        }
    }
    Ok(weight)
}

/// Times `kernel` on one shape, `repeats` calls, each with a weight that is not in cache: microseconds
/// of each call, in order. One call before the first is not timed (it grows buffers and wakes threads).
///
/// Making the operands takes far longer than a few calls: to race many kernels on one shape, make
/// [`Operands::seeded_cold`] once and use [`time_with`].
pub fn time_kernel(
    device: &Device,
    dims: Dims,
    kernel: &Kernel,
    split_k: u32,
    repeats: usize,
) -> Result<Vec<f64>, MeasureError> {
    time_with(
        device,
        &Operands::seeded_cold(dims, 0)?,
        kernel,
        split_k,
        repeats,
    )
}

/// As [`time_kernel`], on operands made before.
pub fn time_with(
    device: &Device,
    operands: &Operands,
    kernel: &Kernel,
    split_k: u32,
    repeats: usize,
) -> Result<Vec<f64>, MeasureError> {
    let mut out = vec![Bf16::NAN; operands.x.m * operands.weight(0).n()];
    device.gemm(kernel, split_k, &operands.x, operands.weight(0), &mut out)?;
    let mut durations = Vec::with_capacity(repeats);
    for repeat in 1..=repeats {
        let started = Instant::now();
        device.gemm(
            kernel,
            split_k,
            &operands.x,
            operands.weight(repeat),
            &mut out,
        )?;
        durations.push(started.elapsed().as_secs_f64() * 1e6);
    }
    Ok(durations)
}

/// Checks `kernel` on one shape with seeded inputs against float64, outputs poisoned with NaN before.
pub fn check_kernel(
    device: &Device,
    dims: Dims,
    kernel: &Kernel,
    split_k: u32,
    seed: u64,
) -> Result<Check, MeasureError> {
    check_with(device, &Operands::seeded(dims, seed)?, kernel, split_k)
}

/// As [`check_kernel`], on operands made before.
pub fn check_with(
    device: &Device,
    operands: &Operands,
    kernel: &Kernel,
    split_k: u32,
) -> Result<Check, MeasureError> {
    Ok(check_call(operands, |out| {
        device.gemm(kernel, split_k, &operands.x, operands.weight(0), out)
    })?)
}

/// Checks whatever `multiply` does with the operands and the NaN-filled output it is given.
pub fn check_call<E>(
    operands: &Operands,
    multiply: impl FnOnce(&mut [Bf16]) -> Result<(), E>,
) -> Result<Check, E> {
    let weight = operands.weight(0);
    let mut out = vec![Bf16::NAN; operands.x.m * weight.n()];
    let started = Instant::now();
    multiply(&mut out)?;
    let us = started.elapsed().as_secs_f64() * 1e6;
    let finite = out.iter().all(|value| value.to_f32().is_finite());
    let (relative_error, wrong_share) = if finite {
        difference(&operands.x, weight, &out)
    } else {
        (f64::INFINITY, 1.0)
    };
    Ok(Check {
        relative_error,
        wrong_share,
        finite,
        us,
    })
}

/// Multiply-adds that a check spends on its reference at most, to stay within a fraction of a second:
/// beyond it, evenly spaced columns are compared (all rows, the first and last column always).
const REFERENCE_BUDGET: usize = 1 << 28;

/// ‖y − ref‖ / ‖ref‖ with float64 sums, and the share of elements outside aiter's tolerance.
fn difference(x: &QuantActivation, weight: &QuantWeight, out: &[Bf16]) -> (f64, f64) {
    let (m, n, k) = (x.m, weight.n(), weight.k());
    let blocks = k.div_ceil(BLOCK);
    let rows: Vec<f64> = x
        .codes
        .iter()
        .enumerate()
        .map(|(index, &code)| {
            f64::from(crate::fp8::e4m3_to_f32(code))
                * f64::from(x.scales[index / k * blocks + index % k / BLOCK])
        })
        .collect();
    let compared = n.min((REFERENCE_BUDGET / (m * k).max(1)).max(2));
    let (mut difference, mut norm) = (0.0, 0.0);
    let mut wrong = 0usize;
    let mut column = vec![0.0; k];
    for index in 0..compared {
        let n_at = if compared > 1 {
            index * (n - 1) / (compared - 1)
        } else {
            0
        };
        for (k_at, value) in column.iter_mut().enumerate() {
            *value = weight.value(n_at, k_at);
        }
        for (m_at, row) in rows.chunks_exact(k).enumerate() {
            let reference: f64 = row.iter().zip(&column).map(|(a, b)| a * b).sum();
            let got = f64::from(out[m_at * n + n_at].to_f32());
            difference += (got - reference).powi(2);
            norm += reference.powi(2);
            wrong += usize::from((got - reference).abs() > 1e-2 + 1e-2 * reference.abs());
        }
    }
    let relative = if norm > 0.0 {
        (difference / norm).sqrt()
    } else {
        difference.sqrt()
    };
    (relative, wrong as f64 / (compared * m).max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{self, Isa};

    /// Every kernel of every instruction set of this CPU against float64.
    fn check_all(dims: Dims, split_k: u32) {
        for isa in Isa::available() {
            let device = Device::with(isa, 2).unwrap();
            let operands = Operands::seeded(dims, 5).unwrap();
            for kernel in kernels::of(isa) {
                let check = check_with(&device, &operands, kernel, split_k).unwrap();
                assert!(
                    check.passes(),
                    "{kernel:?} {dims:?} splitK={split_k}: {check:?}"
                );
            }
        }
    }

    #[test]
    fn every_kernel_is_right_for_every_small_m() {
        for m in 1..=10 {
            check_all(Dims { m, n: 160, k: 256 }, 0);
        }
    }

    #[test]
    fn every_kernel_is_right_for_ragged_n_and_k() {
        for (m, n, k) in [
            (1, 1, 128),
            (2, 3, 1),
            (5, 130, 100),
            (17, 127, 300),
            (33, 257, 129),
            (1, 64, 640),
        ] {
            check_all(Dims { m, n, k }, 0);
        }
    }

    #[test]
    fn every_kernel_is_right_for_large_m() {
        check_all(
            Dims {
                m: 97,
                n: 200,
                k: 384,
            },
            0,
        );
    }

    #[test]
    fn every_kernel_is_right_with_split_k() {
        for split_k in 1..=3 {
            check_all(
                Dims {
                    m: 3,
                    n: 140,
                    k: 1100,
                },
                split_k,
            );
            check_all(
                Dims {
                    m: 20,
                    n: 70,
                    k: 1024,
                },
                split_k,
            );
        }
    }

    #[test]
    fn results_are_the_same_to_the_bit_whatever_the_number_of_threads() {
        let operands = Operands::seeded(
            Dims {
                m: 7,
                n: 300,
                k: 512,
            },
            9,
        )
        .unwrap();
        let devices = [1, 2, 5].map(|threads| Device::with(Isa::best(), threads).unwrap());
        for kernel in kernels::all() {
            for split_k in [0, 2] {
                let results = devices.each_ref().map(|device| {
                    let mut out = vec![Bf16::NAN; 7 * 300];
                    device
                        .gemm(kernel, split_k, &operands.x, operands.weight(0), &mut out)
                        .unwrap();
                    out
                });
                assert!(
                    results[0] == results[1] && results[1] == results[2],
                    "{kernel:?}"
                );
            }
        }
    }

    #[test]
    fn a_nan_activation_reaches_the_output_row_and_no_other() {
        let mut values = vec![0.5f32; 2 * 256];
        values[3] = f32::NAN;
        let x = QuantActivation::quantise(&values, 2, 256);
        let weight = random_weight(40, 256, 1.0, 3).unwrap();
        for isa in Isa::available() {
            let device = Device::with(isa, 1).unwrap();
            for kernel in kernels::of(isa) {
                let mut out = vec![Bf16::default(); 80];
                device.gemm(kernel, 0, &x, &weight, &mut out).unwrap();
                assert!(out[..40].iter().all(|v| v.to_f32().is_nan()), "{kernel:?}");
                assert!(
                    out[40..].iter().all(|v| v.to_f32().is_finite()),
                    "{kernel:?}"
                );
            }
        }
    }

    #[test]
    fn a_check_fails_for_wrong_scales_and_for_outputs_left_unwritten() {
        let operands = Operands::seeded(
            Dims {
                m: 2,
                n: 256,
                k: 256,
            },
            1,
        )
        .unwrap();
        let check = check_call(&operands, |_| Ok::<_, GemmError>(())).unwrap();
        assert!(!check.finite && !check.passes());
        let swapped = random_weight(256, 256, 1.0, 2).unwrap();
        let device = Device::with(Isa::best(), 1).unwrap();
        let kernel = kernels::default_kernel(device.isa());
        let check = check_call(&operands, |out| {
            device.gemm(kernel, 0, &operands.x, &swapped, out)
        })
        .unwrap();
        assert!(check.finite && !check.passes());
    }

    #[test]
    fn timing_returns_one_duration_per_repeat_over_rotating_weights() {
        let device = Device::with(Isa::best(), 1).unwrap();
        let dims = Dims {
            m: 1,
            n: 256,
            k: 1024,
        };
        let operands = Operands::seeded_cold(dims, 0).unwrap();
        assert!(operands.weights.len() * 256 * 1024 >= COLD_BYTES);
        assert!(!std::ptr::eq(operands.weight(0), operands.weight(1)));
        let times = time_with(
            &device,
            &operands,
            kernels::default_kernel(device.isa()),
            0,
            5,
        )
        .unwrap();
        assert_eq!(times.len(), 5);
        assert!(times.iter().all(|us| *us > 0.0));
    }
}
