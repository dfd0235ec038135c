//! The record file: what the capture overlay writes and `shapes` reads.
//!
//! # Format, version 1
//!
//! **One append-only file per process**, JSON Lines, UTF-8, each line one object ended by `\n` and written
//! with one `write` (so that a killed process leaves at most one half line, which readers drop). Any file name; by
//! convention `gemmtune-records-<pid>-<start>.jsonl` in the folder the overlay was given, where `<start>` is the
//! process start in nanoseconds, so that a reused pid never appends to an old file.
//!
//! The **first line** is the hello record, written as soon as the overlay is loaded in a worker process, before any
//! GEMM. A process without one was not instrumented; that is how a missing rank is noticed.
//!
//! ```json
//! {"gemmtune":"hello","pid":4711,"rank":0,"world":8,"version":1}
//! ```
//!
//! `pid` integer; `rank` tensor-parallel rank and `world` tensor-parallel size, or `null` where unknown; `version`
//! the version of this format, the integer 1. Further keys are ignored here (`sglang`, `aiter`, `torch`, `device`,
//! `arch`, `cu_num` …). Rank and world may become known later: a process may then write a second hello with the same
//! pid, which replaces the first.
//!
//! **Shape records** count Python-level calls of a GEMM:
//!
//! ```json
//! {"op":"gemm_a8w8_blockscale","M":32,"N":2112,"K":7168,"dtype":"torch.float8_e4m3fnuz","kind":"capture","bs":7,"count":61}
//! ```
//!
//! - `op`: a name of [`crate::problem::Op`]. `M`, `N`, `K`: positive integers. `dtype`: `str(weight.dtype)`.
//! - `kind`: `"eager"` when the call ran at once; `"capture"` when the current stream was capturing a graph
//!   (`torch.cuda.is_current_stream_capturing()`), so that the call runs at each replay and not otherwise; `"warmup"`
//!   for the Python passes a runner makes before it captures, which serve no request.
//! - `bs`: for `capture` the number of the graph, counted from 1 in the order of captures in this process, else `null`. It
//!   is the key of the replay and capture records. It is no batch size: several graphs have the same one (segments of
//!   a prefill graph, a draft model beside its target).
//! - `count`: calls **since the last record of the same key** (`op`, `M`, `N`, `K`, `dtype`, `kind`, `bs`). Readers add
//!   counts up. A writer aggregates, writes a key the first time it is seen at once with count 1, and flushes the
//!   rest every second or so and at exit: the file stays small, and a kill loses a second of counts, never a shape.
//!
//! **Fused-MoE records** count calls of SGLang's fused MoE in the same way, where it looks its rows up:
//!
//! ```json
//! {"fused_moe":"fused_moe_triton","M":32,"E":128,"N":768,"K":2048,"topk":8,"dtype":"fp8_w8a8","scales":"128x128","kind":"capture","bs":7,"count":48}
//! ```
//!
//! M are the tokens of the forward, E the local experts, N the width between the two GEMMs, K the hidden size,
//! `dtype` SGLang's name for it (empty for weights that are not quantised), `scales` `128x128`, `channel` or empty.
//! What served each of them is recorded once:
//!
//! ```json
//! {"served_moe":{"E":128,"N":768,"K":2048,"topk":8,"M":32,"dtype":"fp8_w8a8","block":[128,128],"source":"sglang","up":{"BLOCK_SIZE_M":16},"down":null}}
//! ```
//!
//! `source` is `injected` for a row that the overlay put in place; `down` is null where the up projection's row
//! serves both.
//!
//! Those of aiter's fused MoE have the key that is looked up, but for the tokens, which are those of the forward, and
//! `topk`, which is the width of `topk_ids`; `experts_of_all` is the length of the expert mask, null where none is
//! passed, -1 where it is not known:
//!
//! ```json
//! {"fused_moe":"fused_moe_aiter","M":5,"model_dim":7168,"inter_dim":256,"expert":257,"topk":9,"act_type":"Silu","dtype":"torch.bfloat16","q_dtype_a":"torch.float8_e4m3fnuz","q_dtype_w":"torch.float8_e4m3fnuz","q_type":"per_1x128","use_g1u1":true,"doweight_stage1":false,"experts_of_all":null,"is_shuffled":true,"kind":"eager","bs":null,"count":58}
//! ```
//!
//! `{"served_aiter_moe":{…}}` has the same, and `one_stage`, `kernels` (two names, empty where aiter chose),
//! `block_m`, `table`.
//!
//! **Replay records** count graph replays, again as increments:
//!
//! ```json
//! {"replay":7,"tokens":32,"count":1834}
//! ```
//!
//! `replay` is the number of the graph that ran, `tokens` the M that most of its GEMMs have.
//!
//! **Capture records** count how often a graph was captured, because one that is captured again under its number
//! counts its shapes again. Without such a record, one capture is assumed:
//!
//! ```json
//! {"capture":7,"tokens":32,"count":1}
//! ```
//!
//! **Dispatch records** name the implementation that serves the block-FP8 or per-channel linear layers, once per identity:
//!
//! ```json
//! {"dispatch":"aiter_w8a8_block_fp8_linear (sglang.srt.layers.quantization.fp8_utils)","count":1}
//! ```
//!
//! **Kernel records** count by `M`, `N`, `K` what computed a GEMM that may be routed: `kernel` is the function hooked, `target` what ran.
//!
//! A reader ignores objects with none of the keys above (a newer writer) but refuses a hello of a higher `version`.
//!
//! # Calls
//!
//! Calls of a shape over the recorded time = eager count + Σ over `bs` of (capture count of that `bs` ÷ captures of
//! that `bs`) × replays of that `bs`. Every rank runs the same GEMMs, so sums over ranks keep all shares.
//!
//! This module reads one line; [`super::scan`] reads files.

mod aiter_moe;
mod moe;

use serde::Deserialize;

pub use aiter_moe::{AiterMoe, AiterMoeServed};
pub use moe::MoeServed;
use moe::MoeServedLine;

use super::plausible;
use crate::problem::fused_moe::MoeProblem;
use crate::problem::op::fused_moe_aiter;
use crate::problem::{Op, Shape};

/// Highest format version this program reads.
pub const VERSION: u64 = 1;

/// What every record file starts with. Writers put the key first, as Python's `json.dumps` does for a dict built in
/// that order; [`is_record_file`] tolerates blanks after the colon.
const FIRST_KEY: &[u8] = b"{\"gemmtune\":";

/// One line of a record file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The first record of an instrumented process.
    Hello(Hello),
    /// Calls of one shape.
    Calls {
        shape: Shape,
        /// How the calls ran.
        kind: CallKind,
        /// Captured batch size, for calls that belong to a graph.
        bs: Option<u32>,
        /// Calls since the last record of the same key.
        count: u64,
    },
    /// Graph replays.
    Replay {
        /// Captured batch size.
        bs: u32,
        /// M of the replayed GEMMs.
        tokens: u32,
        /// Replays since the last record of the same batch size.
        count: u64,
    },
    /// Graph captures.
    Capture {
        /// Captured batch size.
        bs: u32,
        /// M of the captured GEMMs.
        tokens: u32,
        /// Captures since the last record of the same batch size.
        count: u64,
    },
    /// Which implementation serves the block-FP8 linear layers.
    Dispatch {
        /// Qualified name and module.
        identity: String,
        count: u64,
    },
    /// A hooked module and the file it was loaded from.
    Module {
        /// Dotted name.
        name: String,
        file: String,
    },
    /// What SGLang's Triton kernel was served with, once per shape and process.
    TritonServed {
        /// Rows of the activation.
        m: u32,
        /// Output features.
        n: u32,
        /// Input features.
        k: u32,
        served: TritonServed,
    },
    /// Calls of one fused MoE.
    MoeCalls {
        problem: MoeProblem,
        /// Tokens of the forward.
        m: u32,
        /// How the calls ran.
        kind: CallKind,
        /// Number of the graph, for calls that belong to one.
        bs: Option<u32>,
        /// Calls since the last record of the same key.
        count: u64,
    },
    /// What a fused MoE was served with, once per problem, M and process.
    MoeServed {
        problem: MoeProblem,
        /// Tokens of the forward.
        m: u32,
        served: MoeServed,
    },
    /// Calls of aiter's fused MoE.
    AiterMoeCalls {
        call: AiterMoe,
        /// How the calls ran.
        kind: CallKind,
        /// Number of the graph, for calls that belong to one.
        bs: Option<u32>,
        /// Calls since the last record of the same key.
        count: u64,
    },
    /// What a call of aiter's fused MoE was served with, once per call and process.
    AiterMoeServed {
        call: AiterMoe,
        served: AiterMoeServed,
    },
    /// What computed a GEMM that may be routed.
    Kernel {
        /// Rows of the activation.
        m: u32,
        /// Output features.
        n: u32,
        /// Input features.
        k: u32,
        /// `gemmtune:FAMILY`, or the module and name of the function that ran.
        target: String,
        /// Python-level calls since the last record of the same key.
        count: u64,
    },
    /// An object of a newer writer.
    Unknown,
}

/// The configuration that served a GEMM of SGLang's Triton kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TritonServed {
    /// Whether it comes from a table that the overlay put in place.
    pub injected: bool,
    /// The configuration; null where SGLang's default served.
    pub config: serde_json::Value,
}

/// The first record of a process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Hello {
    pub pid: u64,
    /// Tensor-parallel rank.
    pub rank: Option<u32>,
    /// Tensor-parallel size.
    pub world: Option<u32>,
    /// Format version.
    pub version: u64,
}

/// How recorded calls ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CallKind {
    /// Executed immediately.
    Eager,
    /// Into a graph: they run at each replay.
    Capture,
    /// Before a capture, not serving any request.
    Warmup,
}

/// A line of a record file from which nothing can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not one JSON object with fields of the right types.
    #[error("read the record: {0}")]
    Json(String),
    /// The writer is newer than this program.
    #[error("read a record file of version {0}: this gemmtune reads up to {VERSION}")]
    Newer(u64),
    /// A shape that no GEMM has.
    #[error("{0}")]
    Impossible(&'static str),
}

/// Every key of every kind; which of them are present determines the kind.
#[derive(Deserialize)]
struct Line {
    gemmtune: Option<String>,
    pid: Option<u64>,
    rank: Option<u32>,
    world: Option<u32>,
    version: Option<u64>,
    op: Option<Op>,
    #[serde(rename = "M")]
    m: Option<u32>,
    #[serde(rename = "N")]
    n: Option<u32>,
    #[serde(rename = "K")]
    k: Option<u32>,
    dtype: Option<String>,
    kind: Option<CallKind>,
    bs: Option<u32>,
    count: Option<u64>,
    replay: Option<u32>,
    capture: Option<u32>,
    tokens: Option<u32>,
    dispatch: Option<String>,
    module: Option<String>,
    file: Option<String>,
    served: Option<ServedLine>,
    kernel: Option<String>,
    target: Option<String>,
    fused_moe: Option<String>,
    served_moe: Option<MoeServedLine>,
    served_aiter_moe: Option<aiter_moe::ServedLine>,
    #[serde(rename = "E")]
    experts: Option<u32>,
    topk: Option<u32>,
    scales: Option<String>,
}

/// `{"served": {…}}`, written by the overlay's `tables.py`.
#[derive(Deserialize)]
struct ServedLine {
    #[serde(rename = "M")]
    m: u32,
    #[serde(rename = "N")]
    n: u32,
    #[serde(rename = "K")]
    k: u32,
    source: String,
    #[serde(default)]
    config: serde_json::Value,
}

/// Whether a stream that starts with `start` (at least [`SNIFF`] bytes unless it is shorter) is a record file.
pub fn is_record_file(start: &[u8]) -> bool {
    let mut bytes = start.iter().filter(|byte| **byte != b' ');
    FIRST_KEY.iter().all(|wanted| bytes.next() == Some(wanted))
}

/// Bytes that [`is_record_file`] needs to see.
pub const SNIFF: usize = FIRST_KEY.len() + 4;

/// Reads one line, without its line end.
pub fn parse(text: &[u8]) -> Result<Record, RecordError> {
    let line: Line =
        serde_json::from_slice(text).map_err(|error| RecordError::Json(error.to_string()))?;
    let missing = |field: &str| RecordError::Json(format!("`{field}` is missing"));
    let count = line.count.unwrap_or(1);
    if line.gemmtune.as_deref() == Some("hello") {
        let version = line.version.ok_or_else(|| missing("version"))?;
        if version > VERSION {
            return Err(RecordError::Newer(version));
        }
        return Ok(Record::Hello(Hello {
            pid: line.pid.ok_or_else(|| missing("pid"))?,
            rank: line.rank,
            world: line.world,
            version,
        }));
    }
    if line.fused_moe.as_deref() == Some(fused_moe_aiter::OP) {
        return aiter_moe::calls(text, count);
    }
    if let Some(served) = line.served_aiter_moe {
        return served.read();
    }
    if line.fused_moe.is_some() {
        return moe::calls(line, count);
    }
    if let Some(served) = line.served_moe {
        return moe::served(served);
    }
    if let Some(bs) = line.replay {
        let tokens = line.tokens.unwrap_or(bs);
        return Ok(Record::Replay { bs, tokens, count });
    }
    if let Some(bs) = line.capture {
        let tokens = line.tokens.unwrap_or(bs);
        return Ok(Record::Capture { bs, tokens, count });
    }
    if let Some(identity) = line.dispatch {
        return Ok(Record::Dispatch { identity, count });
    }
    if let (Some(name), Some(file)) = (line.module, line.file) {
        return Ok(Record::Module { name, file });
    }
    if let Some(served) = line.served {
        plausible::m(served.m).map_err(RecordError::Impossible)?;
        plausible::nk(served.n, served.k).map_err(RecordError::Impossible)?;
        return Ok(Record::TritonServed {
            m: served.m,
            n: served.n,
            k: served.k,
            served: TritonServed {
                injected: served.source == "injected",
                config: served.config,
            },
        });
    }
    if let (Some(_), Some(target)) = (line.kernel, line.target) {
        let [m, n, k] = [("M", line.m), ("N", line.n), ("K", line.k)]
            .map(|(name, size)| size.ok_or_else(|| missing(name)));
        let (m, n, k) = (m?, n?, k?);
        plausible::m(m).map_err(RecordError::Impossible)?;
        plausible::nk(n, k).map_err(RecordError::Impossible)?;
        return Ok(Record::Kernel {
            m,
            n,
            k,
            target,
            count,
        });
    }
    let Some(op) = line.op else {
        return Ok(Record::Unknown);
    };
    let shape = Shape {
        op,
        m: line.m.ok_or_else(|| missing("M"))?,
        n: line.n.ok_or_else(|| missing("N"))?,
        k: line.k.ok_or_else(|| missing("K"))?,
        dtype: line.dtype.ok_or_else(|| missing("dtype"))?,
    };
    plausible::shape(op, shape.m, shape.n, shape.k, &shape.dtype)
        .map_err(RecordError::Impossible)?;
    let kind = line.kind.ok_or_else(|| missing("kind"))?;
    Ok(Record::Calls {
        shape,
        kind,
        bs: line.bs,
        count,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_record_reads_as_documented() {
        let hello =
            br#"{"gemmtune":"hello","pid":4711,"rank":0,"world":8,"version":1,"arch":"gfx942"}"#;
        assert!(is_record_file(hello));
        assert!(is_record_file(br#"{"gemmtune": "hello", "pid": 1}"#));
        assert!(!is_record_file(b"{\"op\":"));
        assert!(!is_record_file(b"{\"gem"));
        assert_eq!(
            parse(hello),
            Ok(Record::Hello(Hello {
                pid: 4711,
                rank: Some(0),
                world: Some(8),
                version: 1
            }))
        );
        let calls = br#"{"op":"gemm_a8w8_blockscale","M":32,"N":2112,"K":7168,"dtype":"torch.float8_e4m3fnuz","kind":"capture","bs":32,"count":61}"#;
        assert_eq!(
            parse(calls),
            Ok(Record::Calls {
                shape: Shape {
                    op: Op::Blockscale,
                    m: 32,
                    n: 2112,
                    k: 7168,
                    dtype: "torch.float8_e4m3fnuz".to_owned()
                },
                kind: CallKind::Capture,
                bs: Some(32),
                count: 61
            })
        );
        assert_eq!(
            parse(br#"{"replay":32,"tokens":64,"count":9}"#),
            Ok(Record::Replay {
                bs: 32,
                tokens: 64,
                count: 9
            })
        );
        assert_eq!(
            parse(br#"{"capture":32,"count":1}"#),
            Ok(Record::Capture {
                bs: 32,
                tokens: 32,
                count: 1
            })
        );
        assert_eq!(
            parse(br#"{"dispatch":"f (m)"}"#),
            Ok(Record::Dispatch {
                identity: "f (m)".to_owned(),
                count: 1
            })
        );
        assert_eq!(
            parse(br#"{"kernel":"f","target":"gemmtune:stream","M":1,"N":512,"K":256,"count":4}"#),
            Ok(Record::Kernel {
                m: 1,
                n: 512,
                k: 256,
                target: "gemmtune:stream".to_owned(),
                count: 4
            })
        );
        assert_eq!(parse(br#"{"future":1}"#), Ok(Record::Unknown));
    }

    #[test]
    fn a_newer_file_a_half_line_and_an_impossible_shape_are_refused() {
        assert_eq!(
            parse(br#"{"gemmtune":"hello","pid":1,"version":2}"#),
            Err(RecordError::Newer(2))
        );
        assert!(matches!(
            parse(br#"{"replay":32,"tok"#),
            Err(RecordError::Json(_))
        ));
        let zero = br#"{"op":"gemm_a8w8_blockscale","M":0,"N":8,"K":8,"dtype":"torch.float8_e4m3fn","kind":"eager","bs":null,"count":1}"#;
        assert!(matches!(parse(zero), Err(RecordError::Impossible(_))));
    }
}
