//! What a fresh process measured of a deployed operation.

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

use super::ran::Ran;
use crate::problem::Shape;

/// The deployed operation against a reference in higher precision, on one shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayoutCheck {
    pub m: u32,
    /// Output features.
    pub n: u32,
    /// Input features.
    pub k: u32,
    pub kernel: String,
    /// ‖y − ref‖ / ‖ref‖; absent when the output was not finite.
    pub relative_error: Option<f64>,
    /// The largest error accepted.
    pub limit: f64,
}

impl LayoutCheck {
    /// Whether the numbers are right.
    pub fn passes(&self) -> bool {
        self.relative_error.is_some_and(|error| error <= self.limit)
    }
}

/// How long a deployed kernel takes, compared with the tuner's measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelTime {
    pub shape: Shape,
    /// The tuner's time, µs.
    pub tuned_us: f64,
    /// The deployed operation's time, µs, in a process of its own; absent where it could not be timed.
    pub us: Option<f64>,
    /// What `us` measures: `device` or `wall` time.
    pub clock: String,
    /// The kernel that ran longest, by the device's name for it, where there is one.
    #[serde(default)]
    pub kernel: Option<String>,
}

impl KernelTime {
    /// Relative difference up to which both times count as the same kernel's.
    pub const TOLERANCE: f64 = 0.03;

    /// Whether the deployed operation takes as long as was measured while tuning.
    pub fn agrees(&self) -> bool {
        self.us
            .is_some_and(|us| (us / self.tuned_us - 1.0).abs() <= Self::TOLERANCE)
    }
}

/// What a fresh process measured of the deployed operation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Probed {
    pub layout: Vec<LayoutCheck>,
    pub times: Vec<KernelTime>,
    /// The compiled modules that it loaded.
    pub modules: Vec<Module>,
    /// Which kernels ran, judged by names and times.
    pub ran: Ran,
}

impl Probed {
    /// Merges what a process measured of another operation. The worse of both verdicts on what ran is kept.
    pub fn add(&mut self, other: Self) {
        self.layout.extend(other.layout);
        self.times.extend(other.times);
        self.modules.extend(other.modules);
        let rank = |ran: &Ran| match ran {
            Ran::Tuned => 0,
            Ran::Explained(_) => 1,
            Ran::Other(_) => 2,
        };
        if rank(&other.ran) > rank(&self.ran) {
            self.ran = other.ran;
        }
    }
}

/// A compiled module that the process loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    pub name: String,
    pub path: Utf8PathBuf,
    /// Digest of its bytes.
    pub digest: String,
    /// Whether it takes a kernel by name; otherwise a table is compiled into it.
    pub by_name: bool,
}
