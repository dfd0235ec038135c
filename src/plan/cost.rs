//! How long tuning will take on one device.
//!
//! `seconds(row) = shape + Σ over rungs: candidates × share × (setup + repeats × us × slowdown)`, where `us` is the
//! roofline time of the row, `setup` is paid in the first rung only, and `slowdown` is how much slower than its
//! roofline a candidate runs on average. Terms are measured where a measurement has been published, and labelled as
//! assumed otherwise; an estimate is accurate to a factor of two.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::problem::Op;

/// One rung of a race, or the only one of a tuner.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rung {
    /// Share of the candidates that are timed in it.
    pub share: f64,
    /// Calls per candidate, warm-up included.
    pub repeats: f64,
}

/// The terms of the estimate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    pub tuner: Cow<'static, str>,
    /// Candidates per shape.
    pub candidates: f64,
    /// Seconds before a candidate's first call: compiling, launching, making inputs.
    pub setup_s: f64,
    /// Further seconds for each shape.
    pub shape_s: f64,
    /// How much slower than the roofline a candidate runs on average.
    pub slowdown: f64,
    pub rungs: Vec<Rung>,
    /// Where the terms come from.
    pub source: Cow<'static, str>,
}

impl Cost {
    /// The cost of tuning `op` on `gfx`, where the reference engine's devices have names of their own.
    pub fn of(op: Op, gfx: &str) -> Self {
        match op.aiter() {
            None => Self::triton_race(),
            Some(aiter) if gfx.starts_with("gfx") => Self::aiter_tuner(aiter.candidates.on(gfx)),
            Some(_) => Self::reference(),
        }
    }

    /// aiter's own tuner at default flags: every candidate, 5 warm-up and 101 timed calls.
    fn aiter_tuner(candidates: u32) -> Self {
        Self {
            tuner: "aiter".into(),
            candidates: f64::from(candidates),
            setup_s: 0.15,
            shape_s: 0.5,
            slowdown: 4.0,
            rungs: vec![Rung {
                share: 1.0,
                repeats: 106.0,
            }],
            source: "candidates: instance lists of aiter e4048607a5; setup: 12 shapes in 52 s with 27 candidates on MI300X (AMD-AGI/GEAK notes); slowdown and time per shape: assumed".into(),
        }
    }

    /// gemmtune's race over SGLang's Triton configurations.
    pub fn triton_race() -> Self {
        Self {
            tuner: "gemmtune race".into(),
            candidates: 160.0,
            setup_s: 0.45,
            shape_s: 2.0,
            slowdown: 4.0,
            rungs: vec![
                Rung {
                    share: 1.0,
                    repeats: 5.0,
                },
                Rung {
                    share: 0.2,
                    repeats: 30.0,
                },
                Rung {
                    share: 0.05,
                    repeats: 200.0,
                },
            ],
            source: "setup: 10,368 configurations in 77 minutes on one H100 (vllm-project/vllm#44830); candidates, rungs, slowdown: assumed".into(),
        }
    }

    /// gemmtune's race of kernel families.
    pub fn family_race() -> Self {
        Self {
            tuner: "gemmtune race".into(),
            candidates: 64.0,
            setup_s: 0.03,
            shape_s: 1.0,
            source: "eight races in 24.7 s on one H200 (docs/evidence/kernel-contest-h200); candidates: the quick field; rungs and slowdown: assumed".into(),
            ..Self::triton_race()
        }
    }

    /// The reference engine's kernels on the CPU: nothing is compiled.
    pub fn reference() -> Self {
        Self {
            tuner: "gemmtune race".into(),
            candidates: 32.0,
            setup_s: 0.0,
            shape_s: 0.05,
            slowdown: 3.0,
            rungs: vec![
                Rung {
                    share: 1.0,
                    repeats: 3.0,
                },
                Rung {
                    share: 0.25,
                    repeats: 10.0,
                },
                Rung {
                    share: 0.1,
                    repeats: 40.0,
                },
            ],
            source: "assumed".into(),
        }
    }

    /// Seconds for a row whose roofline time is `us`.
    pub fn seconds(&self, us: f64) -> f64 {
        let timed: f64 = self
            .rungs
            .iter()
            .map(|rung| self.candidates * rung.share * rung.repeats * us * self.slowdown / 1e6)
            .sum();
        self.shape_s + self.candidates * self.setup_s + timed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_run_is_met_within_a_factor_of_two() {
        // 12 shapes, `--libtype both`, MI300X: 52 s; 28 shapes: about 300 s.
        let cost = Cost::of(Op::Blockscale, "gfx942");
        let twelve = 12.0 * cost.seconds(10.0);
        assert!((26.0..104.0).contains(&twelve), "{twelve}");
        let more = 28.0 * cost.seconds(10.0);
        assert!((75.0..600.0).contains(&more), "{more}");
    }

    #[test]
    fn longer_shapes_and_more_rungs_cost_more() {
        let cost = Cost::triton_race();
        assert!(cost.seconds(1000.0) > cost.seconds(10.0));
        assert!(Cost::reference().seconds(10.0) < 1.0);
    }
}
