//! The device this engine computes on: the CPU, its threads, and the buffers that GEMMs reuse.

use std::sync::{Mutex, PoisonError};

use crate::fp8::{Bf16, QuantActivation, QuantWeight};
use crate::kernels::{self, Isa, Kernel, MAX_SPLIT_K, Pool, Workspace};

/// A GEMM cannot be run as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GemmError {
    /// Activation and weight disagree on K.
    #[error("multiply: the activation has K={activation}, the weight K={weight}")]
    Columns {
        /// K of the activation.
        activation: usize,
        /// K of the weight.
        weight: usize,
    },
    /// A dimension is zero.
    #[error("multiply: M={m} N={n} K={k} has a zero dimension")]
    Empty {
        /// Rows of the activation.
        m: usize,
        /// Rows of the weight.
        n: usize,
        /// Columns of both.
        k: usize,
    },
    /// The output buffer is not M x N.
    #[error("multiply: the output has {got} elements, expected {expected}")]
    Output {
        /// Elements given.
        got: usize,
        /// Elements needed.
        expected: usize,
    },
    /// Split-K asks for more parts than the kernels have or than there are 128-column blocks.
    #[error("multiply: splitK={split_k} (2^splitK parts) does not fit K={k}")]
    SplitK {
        /// The exponent asked for.
        split_k: u32,
        /// Columns.
        k: usize,
    },
    /// The kernel is for another instruction set than the device was opened with.
    #[error("multiply: kernel `{kernel}` is for {wants}, the device is {has}")]
    OtherIsa {
        /// The kernel.
        kernel: String,
        /// Its instruction set.
        wants: &'static str,
        /// The device's.
        has: &'static str,
    },
}

/// Whether `split_k` (an exponent, as aiter's `ck` rows have it) is possible for `k` columns.
pub fn split_k_fits(split_k: u32, k: usize) -> bool {
    split_k <= MAX_SPLIT_K && (1usize << split_k) <= k.div_ceil(crate::fp8::BLOCK)
}

/// The CPU, opened for GEMMs. One GEMM runs at a time; callers from several threads take turns.
pub struct Device {
    isa: Isa,
    pool: Pool,
    workspace: Mutex<Workspace>,
}

impl Device {
    /// Opens the CPU with its best instruction set and all its cores.
    pub fn open() -> std::io::Result<Self> {
        Self::with(Isa::best(), cores())
    }

    /// Opens the CPU with an instruction set and a number of threads of the caller's choice.
    pub fn with(isa: Isa, threads: usize) -> std::io::Result<Self> {
        Ok(Self {
            isa,
            pool: Pool::new(threads)?,
            workspace: Mutex::default(),
        })
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// What tables call `gfx`: the instruction set's name.
    pub fn gfx(&self) -> &'static str {
        self.isa.name()
    }

    /// What tables call `cu_num`: the threads that kernels run on.
    pub fn cu_num(&self) -> u32 {
        self.pool.threads() as u32
    }

    /// The kernels that run here.
    pub fn kernels(&self) -> &'static [Kernel] {
        kernels::of(self.isa)
    }

    /// The thread pool, for work besides GEMMs.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// out[M, N] = x · weight^T with `kernel`, K in 2^`split_k` parts.
    pub fn gemm(
        &self,
        kernel: &Kernel,
        split_k: u32,
        x: &QuantActivation,
        weight: &QuantWeight,
        out: &mut [Bf16],
    ) -> Result<(), GemmError> {
        let (m, n, k) = (x.m, weight.n(), weight.k());
        if x.k != k {
            return Err(GemmError::Columns {
                activation: x.k,
                weight: k,
            });
        }
        if m == 0 || n == 0 || k == 0 {
            return Err(GemmError::Empty { m, n, k });
        }
        if out.len() != m * n {
            return Err(GemmError::Output {
                got: out.len(),
                expected: m * n,
            });
        }
        if !split_k_fits(split_k, k) {
            return Err(GemmError::SplitK { split_k, k });
        }
        if kernel.isa() != self.isa {
            return Err(GemmError::OtherIsa {
                kernel: kernel.name().to_owned(),
                wants: kernel.isa().name(),
                has: self.isa.name(),
            });
        }
        let mut workspace = self
            .workspace
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        kernel.run(&self.pool, &mut workspace, x, weight, 1 << split_k, out);
        Ok(())
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "Device({}, {} threads)",
            self.gfx(),
            self.cu_num()
        )
    }
}

/// Cores this process may run on; one when the system does not say.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gemm_that_does_not_fit_is_refused_and_leaves_the_output_alone() {
        let device = Device::with(Isa::best(), 1).unwrap();
        let kernel = kernels::default_kernel(device.isa());
        let weight = QuantWeight::quantise(&[1.0; 4 * 128], 4, 128).unwrap();
        let x = QuantActivation::quantise(&[1.0; 128], 1, 128);
        let other = QuantActivation::quantise(&[1.0; 64], 1, 64);
        let mut out = [Bf16::NAN; 4];
        let error = device
            .gemm(kernel, 0, &other, &weight, &mut out)
            .unwrap_err();
        assert_eq!(
            error,
            GemmError::Columns {
                activation: 64,
                weight: 128
            }
        );
        assert!(
            device.gemm(kernel, 1, &x, &weight, &mut out).is_err(),
            "one block, two parts"
        );
        assert!(device.gemm(kernel, 0, &x, &weight, &mut out[..3]).is_err());
        let empty = QuantActivation::quantise(&[], 0, 128);
        assert!(device.gemm(kernel, 0, &empty, &weight, &mut []).is_err());
        assert_eq!(out, [Bf16::NAN; 4]);
        device.gemm(kernel, 0, &x, &weight, &mut out).unwrap();
        assert!((out[0].to_f32() - 128.0).abs() < 1.0);
    }
}
