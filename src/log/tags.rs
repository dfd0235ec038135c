//! What a log is searched for, and a search that looks at one byte in thirteen.
//!
//! A tag is fixed text that only relevant records contain. Of each tag one window of [`WINDOW`] bytes is chosen,
//! away from text that progress bars and access lines are full of. A window holds [`STRIDE`] overlapping grams of
//! [`GRAM`] bytes, one for each residue of the position modulo `STRIDE`; so looking up the gram at every
//! `STRIDE`-th position of the input in a table of all grams finds every window once, wherever it is. That is
//! one load, one multiplication and one table look-up for thirteen bytes, for all tags together.

use std::sync::LazyLock;

/// What a tag announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    /// A shape dump; the fields follow after `csv_row:`.
    Dump,
    /// Beginning of a look-up line of aiter's; one of the next three follows.
    LookupHead,
    /// aiter found a row; M, N, K precede it.
    FoundPadded,
    /// aiter's look-up with a dtype; M, N, K precede it.
    WeightDtype,
    /// aiter found no row; M, N, K precede it.
    NotFound,
    /// aiter takes the largest row of a weight for an M above it; the weight follows.
    Reused,
    /// aiter's MX-scaled GEMM reports the outcome of a look-up in its own table.
    MxScale,
    /// Beginning of a look-up line of aiter's batched GEMM.
    Batched,
    /// aiter's fused MoE reports what it runs for a key.
    FusedMoe,
    /// A compiled module lacks the kernel that a row of the fused MoE names; the name follows.
    NoKernel,
    /// SGLang reports which table serves its fused MoE, or that there is none.
    MoeConfig,
    /// SGLang found no table of the fused MoE's down projection.
    MoeDownMissing,
    /// aiter reports that a table has no `gfx` column; its name precedes it.
    NoGfxColumn,
    /// SGLang found no configuration file for an (N, K).
    DefaultConfig,
    /// SGLang found a configuration file for an (N, K).
    UsingConfig,
    /// A decode batch, the number of requests follows.
    Decode,
    /// A decode batch, in a release that numbers its forwards.
    DecodeNumbered,
    /// A prefill batch; the number of new tokens precedes it.
    Prefill,
    /// The resolved limits of the scheduler.
    Limits,
    /// The list of captured batch sizes, up to SGLang 0.5.13.
    CaptureList,
    /// Beginning of a capture, from 0.5.10 (piecewise) and 0.5.14 (decode) on.
    CaptureBegin,
    /// End of a capture.
    CaptureEnd,
    /// The implementation behind the block-FP8 or the per-channel FP8 linear layers.
    Dispatch,
}

/// Text, offset of its window, what it announces.
///
/// Sources: the shape dump and dispatch lines are the playbook's own; aiter `aiter/ops/gemm_op_a8w8.py` and
/// `gemm_op_a4w4.py`, `batched_gemm_op_a8w8.py`, `fused_moe.py` at v0.1.7, v0.1.9, 303a583c, e4048607 and main of
/// September 2026; SGLang 0.5.5 to 0.5.23 `fp8_kernel.py`, `fused_moe_triton_config.py`,
/// `scheduler_metrics_mixin.py`, `cuda_graph_runner.py`, `model_runner.py`, `eagle_worker_v2.py`.
static TAGS: [(&[u8], usize, Tag); 24] = [
    (b"[GEMM_shape_dump]", 0, Tag::Dump),
    (b"[aiter] shape is M:", 0, Tag::LookupHead),
    (b", found padded_M: ", 1, Tag::FoundPadded),
    (b" q_dtype_w:torch.", 0, Tag::WeightDtype),
    (b"not found tuned config in ", 1, Tag::NotFound),
    (b" is above the tuned table for N:", 0, Tag::Reused),
    (b"mxscale bpreshuffle (", 0, Tag::MxScale),
    (b"[aiter] shape is B:", 0, Tag::Batched),
    (b"[fused_moe] using ", 0, Tag::FusedMoe),
    // `ck kernel not found: NAME` of `gemm_moe_ck2stages.cu`, at 303a583c and e4048607. Shortened, because another
    // tag begins with `not found `.
    (b"ck kernel not fou", 0, Tag::NoKernel),
    (b"MoE kernel config", 0, Tag::MoeConfig),
    (
        b"Down MoE config file not found at ",
        0,
        Tag::MoeDownMissing,
    ),
    (b" has no 'gfx' column", 0, Tag::NoGfxColumn),
    (
        b"Using default W8A8 Block FP8 kernel config",
        13,
        Tag::DefaultConfig,
    ),
    (b"Using configuration from ", 6, Tag::UsingConfig),
    // Not `batch, …`: every progress bar of a capture contains `batches`.
    (b"h, #running-req: ", 0, Tag::Decode),
    (b"], #running-req: ", 0, Tag::DecodeNumbered),
    (b", #cached-token: ", 0, Tag::Prefill),
    (b"max_total_num_tokens=", 4, Tag::Limits),
    (b"Capture cuda graph bs [", 6, Tag::CaptureList),
    (b" CUDA graph begin", 0, Tag::CaptureBegin),
    (b" CUDA graph end. ", 0, Tag::CaptureEnd),
    (b"block_quant w8a8_block_fp8_linear=", 12, Tag::Dispatch),
    (b"per_channel fp8_linear=", 0, Tag::Dispatch),
];

/// Bytes of a gram.
const GRAM: usize = 5;

/// Distance between two examined positions: the number of grams in a window.
const STRIDE: usize = WINDOW - GRAM + 1;

/// Bytes of a window: the length of the shortest tag.
pub(super) const WINDOW: usize = 17;

/// Slots of the gram table, as a power of two: 8 KiB, a quarter of the first-level cache.
const BITS: u32 = 13;

/// A tag in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) tag: Tag,
    /// Position of its first byte.
    pub(super) start: usize,
    /// Position behind its last byte.
    pub(super) end: usize,
}

/// The result of [`Searcher::next`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Found(Found),
    /// Text that starts a tag and is cut off by the end of the input, from this position on.
    CutOff(usize),
    Nothing,
}

/// Finds tags by looking up grams in a hash table.
#[derive(Debug)]
pub(super) struct Searcher {
    /// Odd multiplier under which no two grams of the tags share a slot without sharing a fingerprint.
    multiplier: u64,
    /// Fingerprint per slot, always odd; 0 for an empty slot.
    fingerprints: Box<[u8; 1 << BITS]>,
    /// For each slot: where its tags are in `uses`, and how many.
    slots: Box<[(u16, u8)]>,
    /// Tag index and position of the gram within the tag.
    uses: Vec<(u8, u8)>,
}

/// Built once: finding the multiplier takes a millisecond.
static SEARCHER: LazyLock<Searcher> = LazyLock::new(Searcher::new);

impl Searcher {
    /// The searcher for all of [`TAGS`].
    pub(super) fn of_tags() -> &'static Self {
        &SEARCHER
    }

    fn new() -> Self {
        let mut multiplier = 0x9E37_79B9_7F4A_7C15; // 2^64 divided by the golden ratio, odd
        loop {
            if let Some(searcher) = Self::with_multiplier(multiplier) {
                return searcher;
            }
            // Any odd constant will do: this one is the multiplier of Steele and Vigna's LCG128.
            multiplier = multiplier.wrapping_mul(0xD134_2543_DE82_EF95) | 1;
        }
    }

    fn with_multiplier(multiplier: u64) -> Option<Self> {
        let mut grams: Vec<(usize, u8, u8, u8)> = Vec::with_capacity(TAGS.len() * STRIDE);
        for (index, (text, window, _)) in TAGS.iter().enumerate() {
            for offset in *window..*window + STRIDE {
                let mut bytes = [0; 8];
                bytes[..GRAM].copy_from_slice(&text[offset..offset + GRAM]);
                let (slot, fingerprint) = place(u64::from_le_bytes(bytes), multiplier);
                grams.push((slot, fingerprint, index as u8, offset as u8));
            }
        }
        grams.sort_unstable();
        let mut fingerprints = Box::new([0; 1 << BITS]);
        let mut slots = vec![(0, 0); 1 << BITS].into_boxed_slice();
        let mut uses: Vec<(u8, u8)> = Vec::with_capacity(grams.len());
        for (slot, fingerprint, tag, offset) in grams {
            if fingerprints[slot] != 0 && fingerprints[slot] != fingerprint {
                return None;
            }
            if fingerprints[slot] == 0 {
                fingerprints[slot] = fingerprint;
                slots[slot].0 = uses.len() as u16;
            }
            slots[slot].1 += 1;
            uses.push((tag, offset));
        }
        Some(Self {
            multiplier,
            fingerprints,
            slots,
            uses,
        })
    }

    /// The first tag whose window starts at `from` or later and whose text starts at `floor` or later. With
    /// `last` no more input follows `bytes`.
    #[inline]
    pub(super) fn next(&self, bytes: &[u8], from: usize, floor: usize, last: bool) -> Next {
        let mut at = from;
        loop {
            let Some(candidate) = self.candidate(bytes, at) else {
                return Next::Nothing;
            };
            match self.verify(bytes, candidate, floor, last) {
                Next::Nothing => at = candidate + STRIDE,
                next => return next,
            }
        }
    }

    /// The first of the positions `at`, `at + STRIDE`, … that holds a gram of a tag.
    #[inline]
    fn candidate(&self, bytes: &[u8], mut at: usize) -> Option<usize> {
        const AHEAD: usize = 3 * STRIDE + 8;
        let is_gram = |word: &[u8]| {
            let word: [u8; 8] = word.try_into().expect("a slice of eight");
            let (slot, fingerprint) = place(u64::from_le_bytes(word), self.multiplier);
            self.fingerprints[slot] == fingerprint
        };
        // Four positions at a time, with one branch.
        while let Some(ahead) = bytes.get(at..at + AHEAD) {
            let ahead: &[u8; AHEAD] = ahead.try_into().expect("a slice of AHEAD");
            let first = is_gram(&ahead[..8]);
            let second = is_gram(&ahead[STRIDE..STRIDE + 8]);
            let third = is_gram(&ahead[2 * STRIDE..2 * STRIDE + 8]);
            let fourth = is_gram(&ahead[3 * STRIDE..]);
            if first | second | third | fourth {
                let which = u32::from(first)
                    | u32::from(second) << 1
                    | u32::from(third) << 2
                    | u32::from(fourth) << 3;
                return Some(at + STRIDE * which.trailing_zeros() as usize);
            }
            at += 4 * STRIDE;
        }
        while let Some(rest) = bytes.get(at..).filter(|rest| rest.len() >= GRAM) {
            let mut word = [0; 8];
            let length = rest.len().min(8);
            word[..length].copy_from_slice(&rest[..length]);
            if is_gram(&word) {
                return Some(at);
            }
            at += STRIDE;
        }
        None
    }

    /// Whether the text of one of the tags with the gram at `at` is there.
    #[inline]
    fn verify(&self, bytes: &[u8], at: usize, floor: usize, last: bool) -> Next {
        let mut word = [0; 8];
        word[..GRAM].copy_from_slice(&bytes[at..at + GRAM]);
        let (slot, _) = place(u64::from_le_bytes(word), self.multiplier);
        let (first, count) = self.slots[slot];
        for (tag, offset) in &self.uses[usize::from(first)..usize::from(first) + usize::from(count)]
        {
            let (text, _, tag) = TAGS[usize::from(*tag)];
            let start = at.checked_sub(usize::from(*offset));
            let Some(start) = start.filter(|start| *start >= floor) else {
                continue;
            };
            let here = &bytes[start..];
            if starts_with(here, text) {
                let end = start + text.len();
                return Next::Found(Found { tag, start, end });
            }
            if !last && here.len() < text.len() && text.starts_with(here) {
                return Next::CutOff(start);
            }
        }
        Next::Nothing
    }
}

/// `bytes.starts_with(text)`, with the first [`WINDOW`] bytes compared as three overlapping words: the most frequent
/// tag is no longer than that, and a library call costs more than the comparison.
#[inline]
fn starts_with(bytes: &[u8], text: &[u8]) -> bool {
    let (Some(here), Some(wanted)) = (bytes.first_chunk::<WINDOW>(), text.first_chunk::<WINDOW>())
    else {
        return false;
    };
    let word = |chunk: &[u8; WINDOW], at: usize| {
        u64::from_le_bytes(chunk[at..at + 8].try_into().expect("a slice of eight"))
    };
    [0, 8, WINDOW - 8]
        .into_iter()
        .all(|at| word(here, at) == word(wanted, at))
        && (text.len() == WINDOW || bytes.starts_with(text))
}

/// Slot and fingerprint of the gram in the low [`GRAM`] bytes of `word`.
#[inline]
fn place(word: u64, multiplier: u64) -> (usize, u8) {
    let product = (word << (64 - 8 * GRAM as u32)).wrapping_mul(multiplier);
    let slot = (product >> (64 - BITS)) as usize;
    (slot, (product >> (56 - BITS)) as u8 | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tag_is_found_at_every_position_and_in_every_cut() {
        let searcher = Searcher::of_tags();
        for (text, window, tag) in TAGS {
            assert!(text.len() >= window + WINDOW, "{tag:?}");
            for before in 0..3 * STRIDE {
                for after in [0, 1, 7, 60] {
                    let mut bytes = vec![b'.'; before];
                    bytes.extend_from_slice(text);
                    bytes.extend(vec![b'.'; after]);
                    let found = Found {
                        tag,
                        start: before,
                        end: before + text.len(),
                    };
                    assert_eq!(searcher.next(&bytes, 0, 0, true), Next::Found(found));
                    assert_eq!(
                        searcher.next(&bytes, found.end, found.end, true),
                        Next::Nothing
                    );
                }
                // Cut inside the tag but after its window.
                for cut in window + WINDOW..text.len() {
                    let mut bytes = vec![b'.'; before];
                    bytes.extend_from_slice(&text[..cut]);
                    assert_eq!(searcher.next(&bytes, 0, 0, false), Next::CutOff(before));
                    assert_eq!(searcher.next(&bytes, 0, 0, true), Next::Nothing);
                }
            }
        }
    }

    #[test]
    fn text_that_resembles_a_tag_is_none() {
        let searcher = Searcher::of_tags();
        let text =
            b"Capturing batches (bs=136 avail_mem=9.96 GB):  44%|4 | 16/36 [GEMM_shape_dumps] \
            shape is M: not found tuned configuration, found padded_N: 7";
        assert_eq!(searcher.next(text, 0, 0, true), Next::Nothing);
    }
}
