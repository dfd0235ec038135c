//! The worker protocol: one JSON line per request, one JSON line per reply.
//!
//! A **worker** is a process that owns one device. It is started as `<worker command> --device I
//! --reply-fd F`, reads requests from standard input and lives until `quit` or end of file, when it
//! ends its own children and exits 0. Both ends of the protocol are the types below; a transcript of every message is
//! `testdata/tune/protocol.jsonl`.
//!
//! **Where replies go.** `--reply-fd 3` (any number): lines on that inherited descriptor, nothing
//! else. `--reply-fd stdout`: for launchers such as `srun` that pass on standard streams only; the worker first
//! duplicates descriptor 1 for itself and points descriptor 1 at standard error, then starts every reply line with
//! [`STDOUT_MARKER`]. A line without the marker is a stray print of the launcher and goes to the worker's log. Either
//! way a library that prints cannot break a reply.
//!
//! **Order.** Requests carry an `id` and an `attempt`; the reply repeats both. Replies may come in
//! any order. `time` and `check` hold the device; several may be sent at once, each for another shape, and a worker
//! may begin the next before it has answered the last, as long as nothing of one runs on the device during a sample
//! of another. `prepare` does not touch the device: it is queued, served by up to `prepare_slots` parallel processes
//! in the order it came, answered when done, and `time` requests go on meanwhile. Timing a candidate that was never
//! prepared is allowed and compiles it on the spot.
//!
//! **What is data and what is a fault.** A candidate the device cannot run, a compiler error, a
//! compile that takes too long: [`Outcome::Refused`], and the worker goes on. [`Answer::Failed`] says that the
//! request as such could not be served. A worker whose device is poisoned (illegal address) replies if it can and
//! exits with a status other than 0; the pool starts a fresh one. Everything else, death, silence past the deadline,
//! a line that is not a reply, is a fault too. After a fault with several requests in flight each is sent again on
//! its own; each candidate of one that faults on its own is tried once more alone on a fresh worker, then
//! quarantined.
//!
//! **Numbers** are finite: in Python `json.dumps(reply, allow_nan=False)`. NaN in a kernel's output
//! is counted in [`Numerics::not_finite`]. Times are microseconds (`us`) or seconds (`s`).
//!
//! **Measuring.** Operands are a fixed function of the shape. No launch of a `time` request finds its operands in the
//! L2 cache (rotate copies past `l2_bytes`). One *sample* is the mean time of one launch over as many launches as
//! [`Timing::min_sample_us`] needs; short kernels are timed in a device graph. With several candidates sample 1 of
//! each is taken in order, sample 2 in reverse order, and so on (A B B A), so that drift affects all alike.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::problem::Shape;

/// The version that both ends must have; `hello` reports it.
pub const VERSION: u32 = 1;

/// Prefix of every reply line when replies share standard output with a launcher.
pub const STDOUT_MARKER: &str = "@gemmtune ";

/// One kernel or configuration, in the backend's own format: `{"kernelId":3,"splitK":1}` for the
/// reference engine, `{"BLOCK_SIZE_M":64,…}` for SGLang's Triton kernel. Opaque to the pool.
pub type Candidate = serde_json::Value;

/// One line to a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request<P = Shape> {
    /// Unique within the worker's lifetime.
    pub id: u64,
    /// 1, or 2 for the attempt alone on a fresh worker.
    pub attempt: u32,
    /// The work that is requested.
    pub ask: RequestKind<P>,
}

/// The kinds of requests to a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RequestKind<P = Shape> {
    /// Always first: open the device and report it. Answered by [`Answer::Hello`].
    Hello {
        /// The backend's settings, for example `{"block":[128,128],"out_dtype":"bfloat16"}`.
        options: serde_json::Value,
    },
    /// Compile one candidate off the device. Answered by [`Answer::Prepared`].
    Prepare {
        /// The problem; what is compiled may serve other shapes too.
        shape: P,
        candidate: Candidate,
    },
    /// Measure candidates, interleaved. Answered by [`Answer::Timed`].
    Time {
        shape: P,
        /// The candidates; no duplicates unless an A/A pair is wanted.
        candidates: Vec<Candidate>,
        timing: Timing,
    },
    /// Compare candidates with a float32 reference. Answered by [`Answer::Checked`].
    ///
    /// The output is filled with NaN before each launch, so that an element never written shows.
    Check {
        shape: P,
        candidates: Vec<Candidate>,
    },
    /// Answer [`Answer::Bye`], end all children and exit 0.
    Quit,
}

/// How to measure each candidate of a `time` request.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Launches not counted, before the first sample.
    pub warmups: u32,
    pub samples: u32,
    /// A sample covers at least this much device time, by repeating the launch.
    pub min_sample_us: f64,
    /// A candidate whose first sample is above this takes no further samples.
    pub stop_above_us: Option<f64>,
}

/// One line from a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    pub id: u64,
    pub attempt: u32,
    pub answer: Answer,
}

/// The kinds of replies from a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Answer {
    /// The reply to `hello`.
    Hello {
        /// The device and the software on it.
        device: Device,
    },
    /// The reply to `prepare`.
    Prepared {
        /// Whether the candidate can now be timed without compiling.
        outcome: Outcome<Preparation>,
    },
    /// The reply to `time`: one outcome per candidate, in the request's order.
    Timed {
        outcomes: Vec<Outcome<Samples>>,
        /// Seconds for which this request held the device, including the setup of operands.
        busy_s: f64,
        /// Clocks before and after, MHz; empty if they cannot be read.
        clocks_mhz: Vec<f64>,
        /// NVML's bit set of reasons for a lowered clock after the request; absent if it cannot be read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        throttle_reasons: Option<u64>,
    },
    /// The reply to `check`: one outcome per candidate, in the request's order.
    Checked {
        outcomes: Vec<Outcome<Numerics>>,
        /// Seconds for which this request held the device.
        busy_s: f64,
    },
    /// The reply to `quit`.
    Bye,
    /// The request could not be served.
    Failed { error: String },
}

/// The result for one candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome<T> {
    Done {
        result: T,
    },
    /// It cannot run here. This is data: the candidate is dropped for this shape.
    Refused {
        reason: Refusal,
        /// The evidence for display: the message of the compiler or driver.
        detail: String,
    },
}

/// Why a candidate cannot run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Too much shared memory, registers or threads for this device.
    OutOfResources,
    /// The kernel does not take this shape or setting.
    Unsupported,
    /// The compiler reported an error.
    CompileFailed,
    /// The compiler was stopped at the worker's own limit.
    CompileTimedOut,
    /// The launch failed and the device is still usable.
    LaunchFailed,
}

/// A candidate that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preparation {
    /// Seconds that compiling took.
    pub seconds: f64,
    /// Whether it was compiled before.
    pub cached: bool,
}

/// Times of one candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Samples {
    /// One mean launch time per sample, in the order taken, µs.
    pub us: Vec<f64>,
}

/// Numerics of one candidate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Numerics {
    /// Share of elements outside `1e-2 + 1e-2·|reference|`, as aiter's `errRatio`.
    pub err_ratio: f64,
    /// Elements that are NaN or infinite where the reference is finite.
    pub not_finite: u64,
    /// Whether a second launch gave the same bits.
    pub repeatable: bool,
}

/// A device and the software that runs on it: with `backend`, the identity of a result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// [`VERSION`] of the worker.
    pub protocol: u32,
    /// The backend's name: `reference` or `sglang-triton`.
    pub backend: String,
    /// Name as reported by the runtime: `torch.cuda.get_device_name()`, or the CPU's model name.
    pub name: String,
    /// `gfx942`, `sm_90`, or the reference engine's `gfx` column (`avx512`, …).
    pub arch: String,
    /// Compute units, streaming multiprocessors, or cores.
    pub cu_num: u32,
    /// Index of this device among those available on this host.
    pub index: u32,
    /// Devices visible to the worker; the pool starts one worker for each.
    pub visible: u32,
    /// Bytes of last-level cache that timing rotates past.
    pub l2_bytes: u64,
    /// Shared memory that one block may use, bytes; 0 if that does not apply.
    pub smem_bytes: u64,
    /// Versions that change results: `{"torch":"2.11.0","triton":"3.6.0","sglang":"0.5.16"}`.
    pub versions: BTreeMap<String, String>,
    /// Digest of the kernels' source, or of the list of kernels.
    pub kernel_hash: String,
    /// What the kernel supports beyond the plain settings: `split_k`, `swap_ab`.
    pub capabilities: Vec<String>,
    /// How many `prepare` run at once; 0 when there is nothing to prepare.
    pub prepare_slots: u32,
    /// Candidates that the worker itself reports, if only the worker knows the list; else empty.
    pub candidates: Vec<Candidate>,
    /// Folder of the tables shipped with the software (SGLang's `configs`); empty if there is none. They serve the
    /// shapes today.
    #[serde(default)]
    pub shipped: String,
    /// Memory of the device that was taken when the worker opened it, its own driver context included, bytes; absent where that is
    /// not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_bytes: Option<u64>,
}

/// More than a worker's own context, which takes some hundreds of MB, and less than what a server or a training job holds.
const CONTEXT_BYTES: u64 = 2 << 30;

impl Device {
    /// That another process holds memory of this device, and so may compute on it while candidates are timed.
    pub fn is_shared(&self) -> Option<String> {
        let taken = self.taken_bytes.filter(|taken| *taken > CONTEXT_BYTES)?;
        Some(format!(
            "device {}: {:.0} GiB were taken before racing began; another process on it makes times wrong",
            self.index,
            taken as f64 / f64::from(1 << 30)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The transcript is the reference for a worker written in another language.
    #[test]
    fn the_transcript_reads_and_writes_back_unchanged() {
        let transcript = include_str!("../../testdata/tune/protocol.jsonl");
        let mut kinds = std::collections::BTreeSet::new();
        for line in transcript.lines() {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            let back = if value.get("ask").is_some() {
                kinds.insert(value["ask"]["kind"].to_string());
                serde_json::to_value(serde_json::from_str::<Request<Shape>>(line).unwrap()).unwrap()
            } else {
                kinds.insert(value["answer"]["kind"].to_string());
                serde_json::to_value(serde_json::from_str::<Reply>(line).unwrap()).unwrap()
            };
            assert_eq!(back, value);
        }
        assert_eq!(
            kinds.len(),
            10,
            "every message is in the transcript: {kinds:?}"
        );
    }

    #[test]
    fn a_bare_nan_is_no_reply() {
        let line = r#"{"id":1,"attempt":1,"answer":{"kind":"timed","outcomes":[{"outcome":"done","result":{"us":[NaN]}}],"busy_s":0.1,"clocks_mhz":[]}}"#;
        assert!(serde_json::from_str::<Reply>(line).is_err());
    }
}
