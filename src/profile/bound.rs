//! What tuning can bring at most (Amdahl): the step without the time in which a kernel of an operation ran.
//!
//! No kernel takes zero time, so the bound cannot be reached; its purpose is to show, by being near 1, that there is
//! nothing to gain. Time in which other kernels ran at the same moment is removed as well, as if they fitted
//! elsewhere, because a bound must not be too low.

use serde::{Deserialize, Serialize};

use super::class::Operation;

/// The most that tuning can gain in a step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    /// The step's time divided by its time if no operation below took any; absent where nothing would be left.
    pub at_most: Option<f64>,
    /// µs of the step in which a kernel of any operation below ran.
    pub us: f64,
    /// Operations that gemmtune can tune and that ran, the one with most time first.
    pub operations: Vec<OperationBound>,
}

/// The bound of one operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperationBound {
    pub operation: Operation,
    /// µs of the step in which one of its GEMM kernels ran.
    pub us: f64,
    /// The same as a share of the step.
    pub share: f64,
    /// The step's time divided by its time if these kernels took none; absent where nothing would be left.
    pub at_most: Option<f64>,
}

/// The bounds of a step of `step` µs, where a kernel of each operation ran for `ran` µs and a kernel of any of them
/// for `any` µs.
pub(super) fn bound(step: f64, ran: [f64; Operation::ALL.len()], any: f64) -> Bound {
    let mut operations: Vec<OperationBound> = Operation::ALL
        .into_iter()
        .zip(ran)
        .filter(|(_, us)| *us > 0.0)
        .map(|(operation, us)| OperationBound {
            operation,
            us,
            share: us / step,
            at_most: without(step, us),
        })
        .collect();
    operations.sort_by(|one, other| other.us.total_cmp(&one.us));
    Bound {
        at_most: without(step, any),
        us: any,
        operations,
    }
}

/// A remainder below this share of the step is a rounding error.
const NOTHING: f64 = 1e-6;

fn without(step: f64, us: f64) -> Option<f64> {
    let left = step - us;
    (left > step * NOTHING).then(|| step / left)
}

impl Bound {
    /// A phrase like `fused MoE 61 % and dense FP8 GEMMs 12 %`; `None` where neither ran.
    pub(super) fn shares(&self) -> Option<String> {
        let parts: Vec<String> = self
            .operations
            .iter()
            .map(|part| format!("{} {:.0} %", part.operation.name(), part.share * 100.0))
            .collect();
        (!parts.is_empty()).then(|| parts.join(" and "))
    }

    /// A phrase like `tuning it can bring at most 2.56x`.
    pub(super) fn gain(&self) -> String {
        let it = match self.operations.as_slice() {
            [only] if only.operation == Operation::DenseFp8 => "tuning them",
            [_] => "tuning it",
            _ => "tuning both",
        };
        match self.at_most {
            Some(ratio) => format!("{it} can bring at most {ratio:.2}x"),
            None => format!("{it} is not bounded: nothing else ran"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_step_bounds_what_tuning_brings() {
        let found = bound(100.0, [61.0, 12.0], 73.0);
        assert_eq!(found.operations[0].operation, Operation::FusedMoe);
        let moe = found.operations[0].at_most.unwrap();
        assert!((moe - 100.0 / 39.0).abs() < 1e-12, "{moe}");
        assert_eq!(found.at_most, Some(100.0 / 27.0));
        assert_eq!(
            found.shares().as_deref(),
            Some("fused MoE 61 % and dense FP8 GEMMs 12 %")
        );
        assert_eq!(found.gain(), "tuning both can bring at most 3.70x");
        assert_eq!(bound(10.0, [10.0, 0.0], 10.0).at_most, None);
        let none = bound(10.0, [0.0, 0.0], 0.0);
        assert_eq!((none.at_most, none.shares()), (Some(1.0), None));
    }
}
