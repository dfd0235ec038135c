//! What was found in logs and record files, in bounded memory.

mod aiter_moe;
mod append;
mod lookups;
mod moe;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use super::cursor::lossy;
use super::dump::Dump;
use super::engagement::{Hit, Reuse};
use super::fmoe::FusedMoe;
use super::hash::NumberMap;
use super::plausible;
use super::record::{CallKind, Hello, Record, TritonServed};
use super::sglang::{Capture, ConfigFile, Limits};
use crate::problem::{Op, Shape};
pub use aiter_moe::AiterMoeSummary;
use lookups::CurrentLookups;
pub(super) use lookups::Logger;
pub use lookups::Served;
pub use moe::{MoeSummary, MoeTables};

/// Most distinct shapes kept. Six weights with every M from 1 to 16384 are 98304; no workload has more, and the
/// records of further ones are counted in [`LogSummary::left_out`].
pub const SHAPES_MAX: usize = 150_000;

/// Most entries of every other collection: batch sizes, identities, tables, kernel names.
const ENTRIES_MAX: usize = 40_000;

/// Longest table path kept.
const TEXT_MAX: usize = 1024;

/// Malformed records shown; all are counted.
pub const MALFORMED_SHOWN: usize = 20;

/// The reason given for a record that the end of its input cuts off.
pub(super) const CUT_OFF: &str = "cut off by the end of the input";

/// Everything that the logs report about GEMMs.
#[derive(Debug, Default)]
pub struct LogSummary {
    /// Bytes read, after decompression.
    pub bytes: u64,
    /// Records that are torn or impossible.
    pub malformed: u64,
    /// The first [`MALFORMED_SHOWN`] of them.
    pub malformed_shown: Vec<Malformed>,
    /// Records of shapes beyond [`SHAPES_MAX`].
    pub left_out: u64,
    /// Dispatch identities and how often each was logged.
    pub dispatch: BTreeMap<String, u64>,
    /// Weights (N, K) that SGLang's Triton kernel named without M.
    pub nk_only: BTreeMap<(u32, u32), NkOnly>,
    /// Lists of captured sizes and how often each was logged.
    pub captures: BTreeMap<Capture, u64>,
    /// Decode batches by number of running requests.
    pub decode_batches: BTreeMap<u32, u64>,
    /// Those of them that ran without a graph.
    pub decode_eager: BTreeMap<u32, u64>,
    /// Prefill batches by number of new tokens.
    pub prefill_batches: BTreeMap<u32, u64>,
    /// Resolved scheduler limits and how often each set was logged.
    pub limits: BTreeMap<Limits, u64>,
    /// Tables that, according to aiter, have no `gfx` column.
    pub legacy_tables: BTreeMap<String, u64>,
    /// Look-ups in tables of families other than our operations', by the stem of the family.
    pub others: BTreeMap<String, u64>,
    /// Keys that aiter's fused MoE looked up, as it prints them.
    pub fused_moe: BTreeSet<String>,
    /// The same keys with what served them.
    pub fmoe: FusedMoe,
    /// Calls of aiter's fused MoE.
    pub aiter_moe: AiterMoeSummary,
    /// What is known of SGLang's fused MoE.
    pub moe: MoeSummary,
    /// Processes that were instrumented.
    pub hellos: BTreeSet<Hello>,
    /// Modules that instrumented processes hooked, with the files they were loaded from.
    pub modules: BTreeSet<(String, String)>,
    /// What served the GEMMs of SGLang's Triton kernel, by (N, K, M). Where processes differ, the one that the
    /// overlay did not put in place, because that is the one to know about.
    pub triton_served: BTreeMap<(u32, u32, u32), TritonServed>,
    /// What computed the GEMMs that may be routed, by (N, K, M), with the Python-level calls of each.
    pub kernels: BTreeMap<(u32, u32, u32), BTreeMap<String, u64>>,
    /// Look-ups by key, from logs that were read to their end.
    served: NumberMap<Key, Served>,
    /// Look-ups of the log that is being read.
    current: CurrentLookups,
    /// Rows of `gemm_a8w8_bpreshuffle` that serve every M above theirs, by (N, K).
    reused: BTreeMap<(u32, u32), Reuse>,
    counts: NumberMap<Key, u64>,
    records: RecordFile,
    texts: Texts,
}

/// The last text and row logged: consecutive lines are mostly equal, and then share it.
#[derive(Debug, Default)]
struct Texts {
    text: Option<Arc<str>>,
    hit: Option<Arc<Hit>>,
}

impl Texts {
    fn text(&mut self, bytes: &[u8]) -> Arc<str> {
        match &self.text {
            Some(text) if text.as_bytes() == bytes => text.clone(),
            _ => {
                let text: Arc<str> = lossy(bytes, TEXT_MAX).into();
                self.text.insert(text).clone()
            }
        }
    }

    fn hit(&mut self, hit: Hit) -> Arc<Hit> {
        match &self.hit {
            Some(last) if **last == hit => last.clone(),
            _ => self.hit.insert(Arc::new(hit)).clone(),
        }
    }
}

/// A weight that is known without M.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NkOnly {
    /// Times the default configuration was used because there was no file.
    pub default_config: u64,
    /// Times a file was used.
    pub tuned_config: u64,
    /// Device name in the file name.
    pub device: String,
    /// The file that was used or looked for, as last logged.
    pub file: String,
}

/// A record that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Malformed {
    /// The log that contains it.
    pub source: String,
    /// Its 1-based line, where lines were counted.
    pub line: Option<u64>,
    /// Position of its first byte.
    pub offset: u64,
    pub reason: String,
    pub text: String,
}

/// A shape and the number of its records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub shape: Shape,
    /// Log records, or calls where a record file counts them.
    pub records: u64,
}

/// The dtypes a key can have; the empty one means "not known".
const DTYPES: [&str; 9] = [
    "",
    "torch.float8_e4m3fn",
    "torch.float8_e4m3fnuz",
    "torch.float8_e5m2",
    "torch.float8_e5m2fnuz",
    "torch.float8_e8m0fnu",
    "torch.int8",
    "torch.float4_e2m1fn_x2",
    "torch.uint8",
];

/// A shape in 20 bytes. `op` is unknown for dump records that do not name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key {
    op: Option<Op>,
    n: u32,
    k: u32,
    m: u32,
    dtype: u8,
}

/// Operation, N, K, M.
type Problem = (Op, u32, u32, u32);

fn dtype_index(dtype: &str) -> u8 {
    let known = DTYPES.iter().position(|known| *known == dtype);
    known.unwrap_or(0) as u8
}

/// Counts of one record file, until its end determines how many calls its captures stand for.
#[derive(Debug, Default)]
struct RecordFile {
    captured: BTreeMap<(Option<u32>, Key), u64>,
    captures: BTreeMap<u32, u64>,
    replays: BTreeMap<u32, u64>,
}

impl RecordFile {
    /// The number of calls that `count` captured calls in graph `bs` stand for.
    fn calls(&self, bs: Option<u32>, count: u64) -> u64 {
        let of = |counts: &BTreeMap<u32, u64>| bs.and_then(|bs| counts.get(&bs).copied());
        let captures = of(&self.captures).unwrap_or(1).max(1);
        let replays = of(&self.replays).unwrap_or(0);
        let calls = (u128::from(count) * u128::from(replays)).div_ceil(u128::from(captures));
        u64::try_from(calls).unwrap_or(u64::MAX).max(1)
    }
}

impl LogSummary {
    /// The shapes, in the order of [`Shape`].
    ///
    /// Dump records that do not name their operation are attributed to `dump_op`; without one to SGLang's Triton
    /// kernel if that is the only identity seen, else to `gemm_a8w8_blockscale`. A record without a dtype is
    /// attributed to the same shape with one, if there is exactly one.
    pub fn shapes(&self, dump_op: Option<Op>) -> Vec<Seen> {
        let dump_op = dump_op.unwrap_or_else(|| self.op_by_dispatch());
        let mut shapes: BTreeMap<Problem, Vec<(u8, u64)>> = BTreeMap::new();
        let mut counts: Vec<_> = self.counts.iter().collect();
        counts.sort_unstable_by_key(|(key, _)| **key);
        for (key, count) in counts {
            let op = key.op.unwrap_or(dump_op);
            let dtypes = shapes.entry((op, key.n, key.k, key.m)).or_default();
            match dtypes.iter_mut().find(|(dtype, _)| *dtype == key.dtype) {
                Some((_, sum)) => *sum += count,
                None => dtypes.push((key.dtype, *count)),
            }
        }
        let mut seen = Vec::with_capacity(shapes.len());
        for ((op, n, k, m), mut dtypes) in shapes {
            if let [(0, unsaid), (dtype, said)] | [(dtype, said), (0, unsaid)] = dtypes[..] {
                dtypes = vec![(dtype, said + unsaid)];
            }
            seen.extend(dtypes.into_iter().map(|(dtype, records)| {
                let dtype = DTYPES[usize::from(dtype)].to_owned();
                Seen {
                    shape: Shape { op, m, n, k, dtype },
                    records,
                }
            }));
        }
        seen.sort_by(|first, second| first.shape.cmp(&second.shape));
        seen
    }

    /// Records behind [`LogSummary::shapes`], those left out included.
    pub fn records(&self) -> u64 {
        self.counts.values().sum::<u64>() + self.moe.calls() + self.left_out
    }

    /// Whether nothing was found that tells which GEMMs ran.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty() && self.nk_only.is_empty() && self.moe.is_empty()
    }

    /// Whether a fused MoE was named only in log lines, which have no M.
    pub fn has_moe_without_m(&self) -> bool {
        !self.moe.tables.is_empty() && self.moe.calls() == 0
    }

    /// Distinct shapes kept, before missing dtypes and operations are resolved.
    pub(super) fn shapes_kept(&self) -> usize {
        self.counts.len() + self.current.shapes()
    }

    fn op_by_dispatch(&self) -> Op {
        let identities: Vec<&str> = self.dispatch.keys().map(String::as_str).collect();
        Op::of_identities(&identities)
    }

    fn add(&mut self, key: Key, count: u64) {
        if let Some(sum) = self.counts.get_mut(&key) {
            *sum = sum.saturating_add(count);
        } else if self.counts.len() < SHAPES_MAX {
            self.counts.insert(key, count);
        } else {
            self.left_out = self.left_out.saturating_add(count);
        }
    }

    pub(super) fn add_dump(&mut self, dump: Dump, count: u64) {
        let Dump { op, m, n, k, dtype } = dump;
        let dtype = dtype_index(dtype);
        self.add(Key { op, n, k, m, dtype }, count);
    }

    pub(super) fn add_config(&mut self, file: ConfigFile, hit: bool) {
        let known = self.nk_only.contains_key(&(file.n, file.k));
        if !known && self.nk_only.len() >= ENTRIES_MAX {
            return;
        }
        let entry = self.nk_only.entry((file.n, file.k)).or_default();
        if hit {
            entry.tuned_config += 1;
        } else {
            entry.default_config += 1;
        }
        entry.device = file.device;
        entry.file = file.path;
    }

    /// Adds a record to the counts of the file being read.
    pub(super) fn add_record(&mut self, record: Record) {
        match record {
            Record::Hello(hello) => {
                self.hellos.retain(|known| known.pid != hello.pid);
                if self.hellos.len() < ENTRIES_MAX {
                    self.hellos.insert(hello);
                }
            }
            Record::Calls {
                shape,
                kind,
                bs,
                count,
            } => {
                let key = Key {
                    op: Some(shape.op),
                    n: shape.n,
                    k: shape.k,
                    m: shape.m,
                    dtype: dtype_index(&shape.dtype),
                };
                match kind {
                    CallKind::Eager => self.add(key, count),
                    CallKind::Capture => {
                        let captured = &mut self.records.captured;
                        if captured.len() < SHAPES_MAX || captured.contains_key(&(bs, key)) {
                            *captured.entry((bs, key)).or_default() += count;
                        } else {
                            self.left_out = self.left_out.saturating_add(count);
                        }
                    }
                    CallKind::Warmup => {}
                }
            }
            Record::Replay { bs, count, .. } => add_one(&mut self.records.replays, bs, count),
            Record::Capture { bs, count, .. } => add_one(&mut self.records.captures, bs, count),
            Record::Dispatch { identity, count } => add_one(&mut self.dispatch, identity, count),
            Record::Module { name, file } => {
                if self.modules.len() < ENTRIES_MAX {
                    self.modules.insert((name, file));
                }
            }
            Record::TritonServed { m, n, k, served } => {
                let known = self.triton_served.get(&(n, k, m));
                let worse = known.is_none_or(|known| known.injected && !served.injected);
                if worse && self.triton_served.len() < SHAPES_MAX {
                    self.triton_served.insert((n, k, m), served);
                }
            }
            Record::MoeCalls {
                problem,
                m,
                kind,
                bs,
                count,
            } => {
                let left_out = self.moe.add_calls((problem, m), kind, bs, count);
                self.left_out = self.left_out.saturating_add(left_out);
            }
            Record::MoeServed { problem, m, served } => self.moe.add_served((problem, m), served),
            Record::AiterMoeCalls {
                call,
                kind,
                bs,
                count,
            } => {
                let left_out = self.aiter_moe.add_calls(call, kind, bs, count);
                self.left_out = self.left_out.saturating_add(left_out);
            }
            Record::AiterMoeServed { call, served } => self.aiter_moe.add_served(call, served),
            Record::Kernel {
                m,
                n,
                k,
                target,
                count,
            } => {
                let room = self.kernels.len() < SHAPES_MAX;
                if room || self.kernels.contains_key(&(n, k, m)) {
                    add_one(self.kernels.entry((n, k, m)).or_default(), target, count);
                }
            }
            Record::Unknown => {}
        }
    }

    /// Ends a record file: captured calls are multiplied by the replays of their graph. A captured shape that was
    /// never replayed counts once, so that it is not lost.
    pub(super) fn end_record_file(&mut self) {
        let mut file = std::mem::take(&mut self.records);
        for ((bs, key), count) in std::mem::take(&mut file.captured) {
            self.add(key, file.calls(bs, count));
        }
        self.moe.end_record_file(&file);
        self.aiter_moe.end_record_file(&file);
    }

    pub(super) fn add_malformed(&mut self, source: &str, place: Place, reason: &str, text: &[u8]) {
        self.malformed += 1;
        if self.malformed_shown.len() < MALFORMED_SHOWN {
            self.malformed_shown.push(Malformed {
                source: source.to_owned(),
                line: place.line,
                offset: place.offset,
                reason: reason.to_owned(),
                text: lossy(text, 200).trim_end().to_owned(),
            });
        }
    }

    /// Whether a dtype that continues `dtype` has been seen, and `dtype` itself has not: then `dtype` at the very end
    /// of a file is a truncated name.
    pub(super) fn expects_longer_than(&self, dtype: &str) -> bool {
        let seen = |wanted: &str| {
            let wanted = dtype_index(wanted);
            let mut keys = self.counts.keys().chain(self.current.keys());
            keys.any(|key| key.dtype == wanted)
        };
        plausible::longer(dtype).any(seen) && !seen(dtype)
    }
}

/// Position of a malformed record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) line: Option<u64>,
    pub(super) offset: u64,
}

/// Counts of small numbers, in an array while one log is read: there may be millions.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    flat: Vec<u64>,
    large: BTreeMap<u32, u64>,
}

impl Sizes {
    /// Numbers below it are counted in the array: it exceeds any decode batch or default prefill chunk.
    const FLAT: usize = 1 << 15;

    pub(super) fn add(&mut self, size: u32) {
        let at = size as usize;
        if at >= Self::FLAT {
            return add_one(&mut self.large, size, 1);
        }
        if at >= self.flat.len() {
            self.flat.resize((at + 1).next_power_of_two(), 0);
        }
        self.flat[at] += 1;
    }

    /// Moves the counts into `counts`.
    pub(super) fn pour(&mut self, counts: &mut BTreeMap<u32, u64>) {
        let flat = std::mem::take(&mut self.flat);
        let flat = flat.into_iter().enumerate().filter(|(_, count)| *count > 0);
        for (size, count) in flat {
            add_one(counts, size as u32, count);
        }
        for (size, count) in std::mem::take(&mut self.large) {
            add_one(counts, size, count);
        }
    }
}

/// Adds to a count whose map must not grow without bound.
pub(super) fn add_one<K: Ord>(counts: &mut BTreeMap<K, u64>, key: K, count: u64) {
    if let Some(sum) = counts.get_mut(&key) {
        *sum = sum.saturating_add(count);
    } else if counts.len() < ENTRIES_MAX {
        counts.insert(key, count);
    }
}

#[cfg(test)]
#[path = "summary_tests.rs"]
mod tests;
