//! A block-FP8 linear layer as the server runs it: quantise, log, look up, multiply.
//!
//! The log lines are the contract of the tuning playbook: `[GEMM_shape_dump]` for every call and
//! `[Fp8LinearMethod]` once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::dispatch::{DispatchError, Dispatcher};
use crate::fp8::{Bf16, QuantActivation, QuantWeight};
use crate::log::Log;

/// A linear layer.
#[derive(Debug)]
pub struct Linear {
    /// Its name in the model, `model.layers.0.mlp.down_proj`.
    pub prefix: String,
    /// Its weight.
    pub weight: QuantWeight,
}

/// What the environment asks to be logged.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogSwitches {
    /// `SGLANG_DUMP_AITER_FP8_GEMM_SHAPES`: a line for every GEMM call.
    pub shapes: bool,
    /// `SGLANG_LOG_FP8_BLOCK_GEMM_DISPATCH`: one line that says which implementation runs.
    pub dispatch: bool,
}

/// Runs linear layers.
pub struct LinearPath {
    dispatcher: Dispatcher,
    log: Arc<Log>,
    switches: LogSwitches,
    announced: AtomicBool,
    nan_above_m: Option<usize>,
}

impl LinearPath {
    /// A path over `dispatcher`. `nan_above_m` is a fault: outputs are NaN for larger M.
    pub fn new(
        dispatcher: Dispatcher,
        log: Arc<Log>,
        switches: LogSwitches,
        nan_above_m: Option<usize>,
    ) -> Self {
        Self {
            dispatcher,
            log,
            switches,
            announced: AtomicBool::new(false),
            nan_above_m,
        }
    }

    /// The dispatcher it runs on.
    pub fn dispatcher(&self) -> &Dispatcher {
        &self.dispatcher
    }

    /// values (M x K) times the layer's weight: M x N.
    pub fn forward(
        &self,
        linear: &Linear,
        values: &[f32],
        m: usize,
        x: &mut QuantActivation,
        out: &mut Vec<Bf16>,
    ) -> Result<(), DispatchError> {
        let (n, k) = (linear.weight.n(), linear.weight.k());
        if self.switches.dispatch && !self.announced.swap(true, Ordering::Relaxed) {
            self.log.line("[Fp8LinearMethod] block_quant w8a8_block_fp8_linear=LinearPath.forward (gemmtune_refengine.linear)");
        }
        if self.switches.shapes {
            self.log.line(&format!(
                "[GEMM_shape_dump] aiter FP8 block GEMM path layer.prefix='{}' block_size=[128, 128] | x.shape=({m}, {k}) weight.shape=({n}, {k}) | M={m} N={n} K={k} (aiter gemm_a8w8_blockscale / bpreshuffle tune CSV) | csv_row: {m},{n},{k},torch.float8_e4m3fn",
                linear.prefix
            ));
        }
        x.requantise(values, m, k);
        out.resize(m * n, Bf16::NAN);
        self.multiply(x, &linear.weight, out)
    }

    /// The GEMM alone, fault included: what `/gemm_check` checks.
    pub fn multiply(
        &self,
        x: &QuantActivation,
        weight: &QuantWeight,
        out: &mut [Bf16],
    ) -> Result<(), DispatchError> {
        self.dispatcher.gemm(x, weight, out)?;
        if self.nan_above_m.is_some_and(|limit| x.m > limit) {
            out.fill(Bf16::NAN);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::kernels::Isa;
    use crate::log::tests::Captured;

    #[test]
    fn every_call_dumps_its_shape_in_the_playbooks_words_and_dispatch_is_said_once() {
        let captured = Captured::default();
        let log = Arc::new(Log::new(Box::new(captured.clone()), false));
        let device = Device::with(Isa::best(), 1).unwrap();
        let dispatcher = Dispatcher::new(device, None, false, Box::new(|_| ()));
        let switches = LogSwitches {
            shapes: true,
            dispatch: true,
        };
        let path = LinearPath::new(dispatcher, log, switches, Some(1));
        let linear = Linear {
            prefix: "model.layers.0.mlp.down_proj".to_owned(),
            weight: QuantWeight::quantise(&[0.5; 2 * 128], 2, 128).unwrap(),
        };
        let (mut x, mut out) = (QuantActivation::default(), Vec::new());
        path.forward(&linear, &[1.0; 128], 1, &mut x, &mut out)
            .unwrap();
        assert!((out[0].to_f32() - 64.0).abs() < 1.0);
        path.forward(&linear, &[1.0; 256], 2, &mut x, &mut out)
            .unwrap();
        assert!(out.iter().all(|value| value.to_f32().is_nan()), "the fault");
        let text = captured.text();
        let records: Vec<&str> = text
            .lines()
            .map(|line| line.split_once("] ").unwrap().1)
            .collect();
        assert_eq!(
            records,
            [
                "[Fp8LinearMethod] block_quant w8a8_block_fp8_linear=LinearPath.forward (gemmtune_refengine.linear)",
                "[GEMM_shape_dump] aiter FP8 block GEMM path layer.prefix='model.layers.0.mlp.down_proj' block_size=[128, 128] | x.shape=(1, 128) weight.shape=(2, 128) | M=1 N=2 K=128 (aiter gemm_a8w8_blockscale / bpreshuffle tune CSV) | csv_row: 1,2,128,torch.float8_e4m3fn",
                "[GEMM_shape_dump] aiter FP8 block GEMM path layer.prefix='model.layers.0.mlp.down_proj' block_size=[128, 128] | x.shape=(2, 128) weight.shape=(2, 128) | M=2 N=2 K=128 (aiter gemm_a8w8_blockscale / bpreshuffle tune CSV) | csv_row: 2,2,128,torch.float8_e4m3fn",
            ]
        );
    }
}
