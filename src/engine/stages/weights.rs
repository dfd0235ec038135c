//! How often a forward pass calls each weight, by the operation that ran it in the capture.

use std::collections::BTreeMap;

use crate::engine::Engine;
use crate::plan::Plan;
use crate::plan::model::Prediction;
use crate::problem::{Op, Shape};
use crate::run::error::{Error, ErrorKind};
use crate::table::roofline::Device;
use crate::table::shapes::{self, CountedShape};

/// A weight that a forward pass calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Called {
    pub(super) op: Op,
    /// Output features.
    pub(super) n: u32,
    /// Input features.
    pub(super) k: u32,
    /// Calls in a forward pass.
    pub(super) calls: u32,
}

impl Called {
    /// Its GEMM on `m` rows of activation.
    pub(super) fn at(self, m: u32) -> Shape {
        Shape {
            op: self.op,
            m,
            n: self.n,
            k: self.k,
            dtype: String::new(),
        }
    }

    /// Whether `shape` is a GEMM of it.
    pub(super) fn is_of(self, shape: &Shape) -> bool {
        (self.op, self.n, self.k) == (shape.op, shape.n, shape.k)
    }
}

/// The weights that the model's config predicts; `None` if nothing was predicted. A weight that the workload did not
/// call is assigned to `expected`.
pub(super) fn weights(
    engine: &Engine<'_>,
    plan: &Plan,
    expected: Op,
) -> Result<Option<Vec<Called>>, Error> {
    let Some(predicted) = plan.model.as_ref().map(Prediction::weights) else {
        return Ok(None);
    };
    let bytes =
        crate::store::file::read(&engine.run.shapes()).map_err(|error| Error::file(&error))?;
    let seen = shapes::read(&bytes, None)
        .map_err(|error| Error::caused(ErrorKind::NotResumable, &error))?;
    Ok(Some(by_operation(&predicted, &seen, expected)))
}

/// (N, K, calls) by the operation that ran them. Layers of one N and K may run different operations, which the config
/// does not distinguish: these share the calls in proportion to the workload's.
fn by_operation(predicted: &[(u32, u32, u32)], seen: &[CountedShape], expected: Op) -> Vec<Called> {
    let mut records = BTreeMap::<(u32, u32), BTreeMap<Op, u64>>::new();
    for counted in seen {
        let ops = records.entry((counted.shape.n, counted.shape.k));
        *ops.or_default().entry(counted.shape.op).or_default() += counted.records;
    }
    let mut weights = Vec::new();
    for &(n, k, calls) in predicted {
        let ops = records.remove(&(n, k)).unwrap_or_default();
        let ops = if ops.values().all(|records| *records == 0) {
            BTreeMap::from([(expected, 1)])
        } else {
            ops
        };
        let all: u64 = ops.values().sum();
        let of = |(op, records): (Op, u64)| Called {
            op,
            n,
            k,
            calls: (f64::from(calls) * records as f64 / all as f64).round() as u32,
        };
        let each = ops.into_iter().map(of);
        weights.extend(each.filter(|weight| weight.calls > 0));
    }
    weights
}

/// Time of a forward pass's dense GEMMs over `m` tokens at the peak rates of `device` for each operation, µs.
pub(super) fn least_us(weights: &[Called], m: u32, device: &Device) -> f64 {
    let each = weights.iter();
    each.map(|weight| f64::from(weight.calls) * device.estimate_us(&weight.at(m)))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(op: Op, (n, k): (u32, u32), calls: u32) -> Called {
        Called { op, n, k, calls }
    }

    #[test]
    fn a_weight_is_the_operations_that_ran_it_and_one_of_two_operations_is_shared_by_calls() {
        let seen = |op, m, n, records| CountedShape {
            shape: called(op, (n, 128), 0).at(m),
            records,
        };
        let seen = [
            seen(Op::Bpreshuffle, 1, 256, 90),
            seen(Op::Bpreshuffle, 64, 512, 30),
            seen(Op::Blockscale, 1, 512, 5),
            seen(Op::Blockscale, 64, 512, 5),
        ];
        let predicted = [(256, 128, 36), (512, 128, 40), (1024, 128, 1)];
        assert_eq!(
            by_operation(&predicted, &seen, Op::Bpreshuffle),
            [
                called(Op::Bpreshuffle, (256, 128), 36),
                called(Op::Blockscale, (512, 128), 10),
                called(Op::Bpreshuffle, (512, 128), 30),
                called(Op::Bpreshuffle, (1024, 128), 1),
            ]
        );
    }

    #[test]
    fn a_weight_takes_at_least_what_its_own_operation_moves() {
        let device = Device::of_key("gfx950", 256).unwrap();
        let weight = |op| called(op, (16384, 16384), 2);
        let least = |weights: &[Called]| least_us(weights, 1, &device);
        let (fp8, fp4) = (weight(Op::Blockscale), weight(Op::A4w4));
        // Of one row the weight's bytes take the time, and those of FP4 are half.
        let ratio = least(&[fp8]) / least(&[fp4]);
        assert!((1.9..2.1).contains(&ratio), "{ratio}");
        let both = least(&[fp8, fp4]);
        assert!((both - least(&[fp8]) - least(&[fp4])).abs() < 1e-9);
    }
}
