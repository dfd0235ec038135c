//! What a race is about. The engine races any problem that can say these few things of itself: a dense GEMM
//! ([`Shape`]), a fused MoE ([`super::moe::MoeTask`]).

use std::fmt::{Debug, Display};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::protocol::Candidate;
use crate::problem::{Op, Shape, Weight};

/// A problem that candidates are raced on. Its JSON is what workers are asked with and what results are kept under.
pub trait Task:
    Clone + Debug + Display + Ord + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// How its operation is named.
    type Op: Copy + PartialEq + Display;

    /// Its operation.
    fn op(&self) -> Self::Op;

    /// Tokens of the forward: the M by which tables are read.
    fn m(&self) -> u32;

    /// All of it but M: what one table is about.
    type Weights: Clone + Debug + Ord + Send;

    /// Its weights.
    fn weights(&self) -> Self::Weights;

    /// The task of these weights at `m`.
    fn at(weights: &Self::Weights, m: u32) -> Self;

    /// Floating-point operations of one launch; sets deadlines.
    fn flops(&self) -> f64;

    /// How long a race takes, in no unit: the longest goes first.
    fn cost(&self) -> f64;

    /// The sizes that a line of timings carries.
    fn sizes(&self) -> Map<String, Value>;

    /// Tasks that are raced before this one, because its candidates are put together from their winners.
    fn parts(&self) -> Vec<Self> {
        Vec::new()
    }

    /// Candidates put together from the winners of [`Task::parts`]; `winner` is `None` for a part where nothing ran.
    fn assembled(&self, _winner: &dyn Fn(&Self) -> Option<Candidate>) -> Vec<Candidate> {
        Vec::new()
    }
}

impl Task for Shape {
    type Op = Op;

    fn op(&self) -> Op {
        self.op
    }

    fn m(&self) -> u32 {
        self.m
    }

    type Weights = Weight;

    fn weights(&self) -> Weight {
        self.weight()
    }

    fn at(weights: &Weight, m: u32) -> Self {
        weights.with_m(m)
    }

    fn flops(&self) -> f64 {
        Self::flops(self)
    }

    /// Operations, and weight bytes for small M where reading them is what takes the time (64 rows stand for the
    /// bytes, about a GPU's ratio of operations to bytes / 2).
    fn cost(&self) -> f64 {
        f64::from(self.m.max(64)) * f64::from(self.n) * f64::from(self.k)
    }

    fn sizes(&self) -> Map<String, Value> {
        let sizes = json!({"m": self.m, "n": self.n, "k": self.k});
        sizes.as_object().cloned().unwrap_or_default()
    }
}
