//! What a race is about. The engine races any problem that implements this trait: a dense GEMM ([`Shape`]), a fused
//! MoE ([`super::moe::MoeTask`]).

use std::fmt::{Debug, Display};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::protocol::Candidate;
use crate::problem::{Op, Shape, Weight};

/// A problem on which candidates are raced. Its JSON is used in requests to workers and as the key of stored results.
pub trait Task:
    Clone + Debug + Display + Ord + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// The type that names its operation.
    type Op: Copy + PartialEq + Display;

    /// The operation whose kernels are raced.
    fn op(&self) -> Self::Op;

    /// Tokens of the forward: the M by which tables are read.
    fn m(&self) -> u32;

    /// Everything except M: the subject of one table.
    type Weights: Clone + Debug + Ord + Send;

    /// The part of the task that does not depend on M.
    fn weights(&self) -> Self::Weights;

    /// The task with these weights at `m`.
    fn at(weights: &Self::Weights, m: u32) -> Self;

    /// Floating-point operations of one launch; sets deadlines.
    fn flops(&self) -> f64;

    /// How long a race takes, in arbitrary units: the longest goes first.
    fn cost(&self) -> f64;

    /// The sizes in a line of timings.
    fn sizes(&self) -> Map<String, Value>;

    /// Tasks that are raced before this one, because its candidates are combined from their winners.
    fn parts(&self) -> Vec<Self> {
        Vec::new()
    }

    /// Candidates combined from the winners of [`Task::parts`]; `winner` returns `None` for a part where nothing ran.
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

    /// Operations, plus weight bytes, which dominate for small M (64 rows stand for the bytes, about a GPU's ratio of
    /// operations to bytes / 2).
    fn cost(&self) -> f64 {
        f64::from(self.m.max(64)) * f64::from(self.n) * f64::from(self.k)
    }

    fn sizes(&self) -> Map<String, Value> {
        let sizes = json!({"m": self.m, "n": self.n, "k": self.k});
        sizes.as_object().cloned().unwrap_or_default()
    }
}
