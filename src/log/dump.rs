//! `[GEMM_shape_dump]` records: the fields after `csv_row:`, and a tally that parses each distinct text once.

use super::cursor::Cursor;
use super::plausible;
use crate::problem::Op;

/// The fields of a dump record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Dump {
    /// The operation, where the record's own text names one.
    pub(super) op: Option<Op>,
    pub(super) m: u32,
    pub(super) n: u32,
    pub(super) k: u32,
    /// Whole name of an FP8 dtype.
    pub(super) dtype: &'static str,
}

/// Reads `M,N,K,dtype` at the start of `payload`; returns the record and the payload's length.
///
/// `op` is the operation named in the text before it. What follows the dtype must be neither part of it nor a further
/// field.
pub(super) fn parse_payload(payload: &[u8], op: Option<Op>) -> Result<(Dump, usize), &'static str> {
    const TORN: &str = "torn: no complete M,N,K,dtype behind `csv_row:`";
    let mut cursor = Cursor::new(payload);
    cursor.blanks();
    let mut size = || {
        let digits = cursor.run(|byte| byte.is_ascii_digit());
        let number = super::cursor::decimal(digits);
        if number.is_none() && !digits.is_empty() {
            return Err("M, N and K are numbers below 2^32");
        }
        let number = number.ok_or(TORN)?;
        cursor.eat(b",").ok_or(TORN)?;
        cursor.blanks();
        Ok(number)
    };
    let (m, n, k) = (size()?, size()?, size()?);
    let dtype = cursor.run(is_dtype_byte);
    let dtype = std::str::from_utf8(dtype).map_err(|_| TORN)?;
    plausible::m(m)?;
    plausible::nk(n, k)?;
    let Some(dtype) = plausible::float8(dtype) else {
        let torn = dtype.is_empty() || plausible::longer(dtype).next().is_some();
        return Err(if torn {
            TORN
        } else {
            "the dtype is not one of torch.float8_*"
        });
    };
    // `, ` continues in prose, `,x` is a fifth field.
    if matches!(cursor.rest(), [b',', next, ..] if *next != b' ') {
        return Err("more fields than M,N,K,dtype");
    }
    let length = payload.len() - cursor.rest().len();
    let dump = Dump { op, m, n, k, dtype };
    Ok((dump, length))
}

fn is_dtype_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_')
}

/// The operation that a record's text names, between the tag and `csv_row:`.
///
/// An explicit ` op=<name>` right after the tag takes precedence.
pub(super) fn op_of_text(text: &[u8]) -> Option<Op> {
    if let Some(named) = text.strip_prefix(b" op=") {
        let mut cursor = Cursor::new(named);
        let name = cursor.run(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if let Ok(op) = std::str::from_utf8(name).unwrap_or("").parse() {
            return Some(op);
        }
    }
    Op::of_text(text)
}

/// Longest payload the tally takes: `16384,106496,53248,torch.float8_e4m3fnuz`. Longer ones are parsed each time.
const KEY_MAX: usize = 8 * (STARTS + ENDS);

/// Shortest payload, in bytes: `1,8,8,torch.float8_e5m2`.
const KEY_MIN: usize = 23;

/// Words at the start of a payload, which hold its sizes.
const STARTS: usize = 3;

/// Words at its end, which hold nothing but the dtype.
const ENDS: usize = 2;

/// Offset at which the names of aiter's operations differ in a record's text: after ` op=gemm_a8w8_bloc`.
const OP_DIFFERS: usize = 18;

/// Slots of the index. A server writes hundreds to thousands of distinct rows; a full tally is emptied into the log summary
/// and started again.
const SLOTS: usize = 1 << 15;

/// Rows at which the tally counts as full: three quarters, so that probe chains stay short.
const FULL: usize = SLOTS * 3 / 4;

/// Counts records by the bytes of their payload, so that a repeated record costs one comparison.
///
/// Rows are packed, half a cache line each, so that random accesses stay in the second-level cache.
#[derive(Debug)]
pub(super) struct Tally {
    /// For each slot the number of its row, from 1 on; 0 for an empty slot.
    index: Box<[u16; SLOTS]>,
    rows: Vec<Row>,
    counts: Vec<u64>,
    dumps: Vec<Dump>,
    /// The distinct ends of payloads: one for each dtype.
    ends: Vec<[u64; ENDS]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(32))]
struct Row {
    start: [u64; STARTS],
    /// [`Payload::kind`], and the number of its end.
    kind: u32,
}

/// A payload as the tally compares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Payload {
    start: [u64; STARTS],
    end: [u64; ENDS],
    /// Its length, and a hash of the text before it.
    kind: u32,
}

impl Payload {
    /// The payload's words; `None` when it is too short or too long for a dump record.
    ///
    /// `text` is what precedes it, without the tag: the same payload after different text may belong to another operation.
    #[inline]
    pub(super) fn new(bytes: &[u8], text: &[u8]) -> Option<Self> {
        let length = bytes.len();
        if !(KEY_MIN..=KEY_MAX).contains(&length) {
            return None;
        }
        // Words that would extend past the end are replaced by the last eight bytes, so nothing is left out.
        let last = length - 8;
        let word = |at: usize| {
            let at = at.min(last);
            u64::from_le_bytes(bytes[at..at + 8].try_into().expect("a slice of eight"))
        };
        let said = |at: usize| Some(u64::from_le_bytes(*text.get(at..)?.first_chunk()?));
        let beginning = said(0).unwrap_or(0) ^ said(OP_DIFFERS).unwrap_or(0).rotate_left(17);
        let beginning = beginning.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Some(Self {
            start: [word(0), word(8), word(16)],
            end: [word(last - 8), word(last)],
            kind: (beginning >> 40 << 9) as u32 | length as u32,
        })
    }

    #[inline]
    fn slot(&self) -> usize {
        // The sizes are in the first sixteen bytes; the dtype hardly varies.
        let mixed = (self.start[0] ^ self.start[1].rotate_left(29))
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            ^ u64::from(self.kind).wrapping_mul(0xD134_2543_DE82_EF95);
        (mixed >> (64 - SLOTS.trailing_zeros())) as usize
    }

    #[inline]
    fn row(&self, end: usize) -> Row {
        Row {
            start: self.start,
            kind: self.kind | (end as u32) << 6,
        }
    }
}

fn empty_index() -> Box<[u16; SLOTS]> {
    let slots = vec![0; SLOTS].into_boxed_slice();
    slots.try_into().expect("as many slots as were asked for")
}

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            index: empty_index(),
            rows: Vec::new(),
            counts: Vec::new(),
            dumps: Vec::new(),
            ends: Vec::new(),
        }
    }

    /// Counts `payload` and returns true, if it is known.
    #[inline]
    pub(super) fn count(&mut self, payload: &Payload) -> bool {
        let Some(end) = self.ends.iter().position(|end| *end == payload.end) else {
            return false;
        };
        let wanted = payload.row(end);
        let mut at = payload.slot();
        loop {
            let Some(row) = usize::from(self.index[at % SLOTS]).checked_sub(1) else {
                return false;
            };
            if self.rows[row] == wanted {
                self.counts[row] += 1;
                return true;
            }
            at += 1;
        }
    }

    /// Adds `payload`, which is not known yet, with a count of one. Returns `false` when the tally is full and has to
    /// be drained first.
    pub(super) fn learn(&mut self, payload: &Payload, dump: Dump) -> bool {
        if self.rows.len() >= FULL {
            return false;
        }
        let known = self.ends.iter().position(|end| *end == payload.end);
        let end = known.unwrap_or(self.ends.len());
        if known.is_none() {
            self.ends.push(payload.end);
        }
        let mut at = payload.slot() % SLOTS;
        while self.index[at] != 0 {
            at = (at + 1) % SLOTS;
        }
        self.rows.push(payload.row(end));
        self.counts.push(1);
        self.dumps.push(dump);
        self.index[at] = self.rows.len() as u16;
        true
    }

    /// Empties the tally: yields every record with its count, in the order first seen.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = (Dump, u64)> {
        self.index.fill(0);
        self.rows.clear();
        self.dumps.drain(..).zip(self.counts.drain(..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(Dump, usize), &'static str> {
        parse_payload(text.as_bytes(), Some(Op::Blockscale))
    }

    #[test]
    fn a_payload_ends_where_its_dtype_does() {
        let (dump, length) = parse("128,2112,7168,torch.float8_e4m3fnuz[2026-09-01").unwrap();
        assert_eq!((dump.m, dump.n, dump.k), (128, 2112, 7168));
        assert_eq!(dump.dtype, "torch.float8_e4m3fnuz");
        assert_eq!(length, 35);
        assert!(parse(" 1, 8, 8, torch.float8_e5m2, and so on").is_ok());
    }

    #[test]
    fn torn_and_impossible_payloads_say_why() {
        let said = [
            "128,2112",
            "128,2112,7168,torch.float8_e4",
            "128,2112,7168,",
            "0,2112,7168,torch.float8_e4m3fn",
            "1,2113,7168,torch.float8_e4m3fn",
            "1,2112,7168,torch.bfloat16",
            "1,2112,7168,torch.float8_e4m3fnCapturing",
            "99999999999,8,8,torch.float8_e4m3fn",
            "1,8,8,torch.float8_e4m3fn,4",
            "-1,8,8,torch.float8_e4m3fn",
        ]
        .map(|text| format!("{text}: {}", parse(text).unwrap_err()));
        insta::assert_snapshot!(said.join("\n"), @"
        128,2112: torn: no complete M,N,K,dtype behind `csv_row:`
        128,2112,7168,torch.float8_e4: torn: no complete M,N,K,dtype behind `csv_row:`
        128,2112,7168,: torn: no complete M,N,K,dtype behind `csv_row:`
        0,2112,7168,torch.float8_e4m3fn: M is at least 1
        1,2113,7168,torch.float8_e4m3fn: N and K are positive multiples of 8
        1,2112,7168,torch.bfloat16: the dtype is not one of torch.float8_*
        1,2112,7168,torch.float8_e4m3fnCapturing: the dtype is not one of torch.float8_*
        99999999999,8,8,torch.float8_e4m3fn: M, N and K are numbers below 2^32
        1,8,8,torch.float8_e4m3fn,4: more fields than M,N,K,dtype
        -1,8,8,torch.float8_e4m3fn: torn: no complete M,N,K,dtype behind `csv_row:`
        ");
    }

    #[test]
    fn the_text_names_the_operation() {
        let playbook = b" aiter FP8 block GEMM path | M=1 (aiter gemm_a8w8_blockscale / bpreshuffle tune CSV) | ";
        assert_eq!(op_of_text(playbook), Some(Op::Blockscale));
        assert_eq!(
            op_of_text(b" op=gemm_a8w8_bpreshuffle aiter"),
            Some(Op::Bpreshuffle)
        );
        assert_eq!(op_of_text(b" op=unheard_of |"), None);
        assert_eq!(
            op_of_text(b" w8a8_block_fp8_matmul |"),
            Some(Op::TritonBlockFp8)
        );
    }

    #[test]
    fn the_tally_tells_payloads_apart_and_gives_every_count_back() {
        let mut tally = Tally::new();
        let mut expected = Vec::new();
        let mut full = 0;
        for m in 1..36_000u32 {
            let text = format!("{m},2112,7168,torch.float8_e4m3fn");
            let payload = Payload::new(text.as_bytes(), b" aiter FP8").unwrap();
            let (dump, _) = parse(&text).unwrap();
            assert!(!tally.count(&payload));
            if !tally.learn(&payload, dump) {
                full += 1;
                expected.extend(tally.drain());
                assert!(tally.learn(&payload, dump));
            }
            assert!(tally.count(&payload));
        }
        expected.extend(tally.drain());
        assert_eq!(full, 1, "two fillings");
        assert_eq!(expected.len(), 35_999);
        assert!(expected.iter().all(|(_, count)| *count == 2));
        let aiter = Payload::new(b"1,8,8,torch.float8_e5m2", b" aiter FP8");
        let triton = Payload::new(b"1,8,8,torch.float8_e5m2", b" w8a8_block_fp8_matmul");
        assert_ne!(aiter, triton);
        let named = [
            "gemm_a8w8",
            "gemm_a8w8_bpreshuffle",
            "gemm_a8w8_blockscale",
            "gemm_a8w8_blockscale_bpreshuffle",
        ]
        .map(|op| {
            Payload::new(
                b"1,8,8,torch.float8_e5m2",
                format!(" op={op} aiter FP8 GEMM path | ").as_bytes(),
            )
            .unwrap()
        });
        for (at, one) in named.iter().enumerate() {
            assert!(!named[at + 1..].contains(one), "{at}");
        }
        // Payloads that differ only in their dtype, or in one digit of the longest sizes.
        let mut tally = Tally::new();
        let texts = [
            "1,8,8,torch.float8_e4m3fn",
            "1,8,8,torch.float8_e5m2",
            "16384,106496,53248,torch.float8_e4m3fnuz",
            "16384,106496,53248,torch.float8_e5m2fnuz",
            "16384,106496,53240,torch.float8_e4m3fnuz",
        ];
        for text in texts {
            let payload = Payload::new(text.as_bytes(), b" aiter FP8").unwrap();
            assert!(!tally.count(&payload), "{text}");
            assert!(tally.learn(&payload, parse(text).unwrap().0));
            assert!(tally.count(&payload), "{text}");
        }
        assert!(tally.drain().all(|(_, count)| count == 2));
        assert_eq!(Payload::new(b"1,8,8,torch.float8_e5m", b""), None);
        let longest = b"16384,106496,53248,torch.float8_e4m3fnuz";
        assert!(Payload::new(longest, b"").is_some());
        assert_eq!(Payload::new(&[b'1'; KEY_MAX + 1], b""), None);
    }
}
