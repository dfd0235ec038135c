//! Reads a log or a record file once, through a rolling buffer, into a [`LogSummary`].
//!
//! A log is any bytes. Records are searched for anywhere: after progress bars, rank prefixes and colours, several in
//! a line. A record starts at its tag and ends at the next line end (`\n` or `\r`), at the latest after
//! [`RECORD_MAX`] bytes; only a look-up line that was wrapped when it was copied may continue. What is found depends
//! on the bytes alone, never on how they arrive. Memory does not depend on the size of the input, nor on the length
//! of its lines.

mod lookup;

use std::io::{self, Read};

use super::cursor::{Cursor, find, rfind};
use super::dump::{self, Payload, Tally};
use super::engagement;
use super::fmoe;
use super::moe;
use super::record;
use super::record_file;
use super::sglang;
use super::summary::{CUT_OFF, LogSummary, Logger, Place, Sizes, add_one};
use super::tags::{Found, Next, Searcher, Tag, WINDOW};
use super::window::{BUFFER, Window, read_some};

pub(super) use lookup::{WRAPPED_MAX, may_go_on};

/// Longest record: a capture list of 4096 sizes is 24 KiB.
const RECORD_MAX: usize = 32 << 10;

/// Bytes kept before a position that may still be a tag: the longest head that a reader looks back for.
const LOOK_BACK: usize = 1 << 10;

/// Whether lines are counted while reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lines {
    /// Count them, so that malformed records have line numbers at once.
    Count,
    /// Do not; [`number_lines`] adds the numbers in a second pass over the same bytes.
    Later,
}

/// Reads `input` to its current end and adds what it reports to `log_summary`; malformed records are listed under
/// `name`. Returns the number of bytes read.
///
/// An error of the reader ends the reading; what was found until then stays in the log summary.
pub fn scan(
    mut input: impl Read,
    name: &str,
    lines: Lines,
    log_summary: &mut LogSummary,
) -> io::Result<u64> {
    let mut window = Window::new(0);
    let mut end = false;
    while !end && window.unread().len() < record::SNIFF {
        end = window.fill(&mut input)? == 0;
    }
    let read = if record::is_record_file(window.unread()) {
        record_file::scan(&mut window, &mut input, name, log_summary)
    } else {
        scan_log(&mut window, &mut input, name, lines, log_summary)
    };
    log_summary.bytes += window.end();
    log_summary.end_log();
    read.map(|()| window.end())
}

/// One part of a log, read independently and not yet added to the parts before it.
pub(super) struct Part {
    log_summary: LogSummary,
    tail: Option<Tail>,
    /// Whether it was read to its end; `false` where it has too many shapes.
    read: io::Result<bool>,
}

impl Part {
    /// Reads `input`, whose first byte starts a line and is at `offset` of the log `name`. Gives up soon after more
    /// than `shapes_max` shapes were found.
    pub(super) fn read(mut input: impl Read, offset: u64, name: &str, shapes_max: usize) -> Self {
        let mut log_summary = LogSummary::default();
        let mut window = Window::new(offset);
        let mut scanner = Scanner::new(name, Lines::Later, shapes_max, &mut log_summary);
        let read = scanner.run(&mut window, &mut input);
        let tail = scanner.finish();
        log_summary.bytes = window.end() - offset;
        Self {
            log_summary,
            tail,
            read,
        }
    }

    /// Adds what was found to what the parts before it hold. `false` means that reading the part was given up and
    /// nothing was added; an error, that it was read only up to that error.
    pub(super) fn add_to(self, name: &str, log_summary: &mut LogSummary) -> io::Result<bool> {
        if let Ok(false) = self.read {
            return self.read;
        }
        log_summary.append(self.log_summary);
        add_tail(self.tail, name, log_summary);
        self.read
    }
}

/// Reads the rest of the log `name` from `offset` on, where a line starts, as [`scan`] would.
pub(super) fn scan_rest(
    mut input: impl Read,
    offset: u64,
    name: &str,
    log_summary: &mut LogSummary,
) -> io::Result<()> {
    let mut window = Window::new(offset);
    let read = scan_log(&mut window, &mut input, name, Lines::Later, log_summary);
    log_summary.bytes += window.end() - offset;
    read
}

fn scan_log(
    window: &mut Window,
    input: &mut impl Read,
    name: &str,
    lines: Lines,
    log_summary: &mut LogSummary,
) -> io::Result<()> {
    let mut scanner = Scanner::new(name, lines, usize::MAX, log_summary);
    let read = scanner.run(window, input);
    let tail = scanner.finish();
    add_tail(tail, name, log_summary);
    read.map(|_| ())
}

/// A valid dump record that ends with its input, so its dtype may be truncated.
type Tail = (dump::Dump, Place);

/// Adds the record at the end of an input, unless longer names elsewhere show that its dtype is truncated.
fn add_tail(tail: Option<Tail>, name: &str, log_summary: &mut LogSummary) {
    if let Some((dump, place)) = tail {
        if log_summary.expects_longer_than(dump.dtype) {
            log_summary.add_malformed(name, place, CUT_OFF, dump.dtype.as_bytes());
        } else {
            log_summary.add_dump(dump, 1);
        }
    }
}

/// Adds the line numbers of malformed records of `name`, from a second pass over the same bytes.
pub fn number_lines(
    mut input: impl Read,
    name: &str,
    log_summary: &mut LogSummary,
) -> io::Result<()> {
    let mut open: Vec<&mut super::summary::Malformed> = log_summary
        .malformed_shown
        .iter_mut()
        .filter(|malformed| malformed.source == name && malformed.line.is_none())
        .collect();
    open.sort_by_key(|malformed| malformed.offset);
    let mut open = open.into_iter().peekable();
    let mut buffer = vec![0; BUFFER];
    let (mut offset, mut line) = (0, 1);
    while open.peek().is_some() {
        let length = read_some(&mut input, &mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        let bytes = &buffer[..length];
        let mut counted = 0;
        while let Some(malformed) = open.next_if(|next| next.offset < offset + length as u64) {
            let at = (malformed.offset - offset) as usize;
            line += newlines(&bytes[counted..at]);
            counted = at;
            malformed.line = Some(line);
        }
        line += newlines(&bytes[counted..]);
        offset += length as u64;
    }
    Ok(())
}

fn newlines(bytes: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', bytes).count() as u64
}

struct Scanner<'log_summary> {
    name: &'log_summary str,
    log_summary: &'log_summary mut LogSummary,
    searcher: &'static Searcher,
    tally: Tally,
    find_row: memchr::memmem::Finder<'static>,
    lines: Lines,
    /// Reading is given up soon after more shapes than this were found.
    shapes_max: usize,
    /// With [`Lines::Count`]: input position up to which newlines are counted, and how many there are.
    counted: (u64, u64),
    tail: Option<Tail>,
    /// Input position where the last record handled ends: no tag starts before it.
    floor: u64,
    decode: Sizes,
    decode_eager: Sizes,
    prefill: Sizes,
}

/// The part of a window that [`Scanner::block`] has finished.
struct Done {
    /// Where the search continues.
    resume: usize,
    /// First byte that must stay in memory.
    keep: usize,
}

impl Done {
    fn at(resume: usize) -> Self {
        let keep = resume.saturating_sub(LOOK_BACK);
        Self { resume, keep }
    }
}

impl<'log_summary> Scanner<'log_summary> {
    fn new(
        name: &'log_summary str,
        lines: Lines,
        shapes_max: usize,
        log_summary: &'log_summary mut LogSummary,
    ) -> Self {
        Self {
            name,
            log_summary,
            searcher: Searcher::of_tags(),
            tally: Tally::new(),
            find_row: memchr::memmem::Finder::new(b"csv_row:"),
            lines,
            shapes_max,
            counted: (0, 1),
            tail: None,
            floor: 0,
            decode: Sizes::default(),
            decode_eager: Sizes::default(),
            prefill: Sizes::default(),
        }
    }

    /// Reads to the end of the input; `false` where reading was given up.
    fn run(&mut self, window: &mut Window, input: &mut impl Read) -> io::Result<bool> {
        let mut resume = 0;
        let mut last = false;
        loop {
            let done = self.block(window.unread(), window.offset, resume, last);
            if last || self.log_summary.shapes_kept() > self.shapes_max {
                return Ok(last);
            }
            if self.lines == Lines::Count {
                self.line_at(window.unread(), window.offset, done.keep);
            }
            window.drop_front(done.keep);
            resume = done.resume - done.keep;
            match window.fill(input) {
                Ok(read) => last = read == 0,
                // What was read before the error is valid, except for a record that the error cuts off.
                Err(error) => {
                    self.block(window.unread(), window.offset, resume, true);
                    return Err(error);
                }
            }
        }
    }

    /// Handles every record that is complete in `bytes`, from `resume` on.
    ///
    /// The tag after a record is found before the record is handled, so that no byte is searched twice and it is
    /// known whether the record is alone in its line.
    fn block(&mut self, bytes: &[u8], offset: u64, resume: usize, last: bool) -> Done {
        let mut at = resume;
        let floor = self.floor.saturating_sub(offset) as usize;
        let mut next = self.searcher.next(bytes, at, floor, last);
        loop {
            let found = match next {
                Next::Found(found) => found,
                Next::CutOff(start) => return Done::at(start),
                Next::Nothing => return Done::at(at.max(bytes.len().saturating_sub(WINDOW - 1))),
            };
            let limit = bytes.len().min(found.start + RECORD_MAX);
            let whole = limit == found.start + RECORD_MAX;
            let line_end = memchr::memchr2(b'\n', b'\r', &bytes[found.end..limit]);
            let end = match line_end {
                Some(length) => found.end + length,
                None if last || whole => limit,
                None => return Done::at(found.start),
            };
            let following = self.searcher.next(bytes, found.end, found.end, last);
            let searched = match following {
                Next::Found(following) => following.start,
                Next::CutOff(start) => start,
                Next::Nothing => bytes.len(),
            };
            let segment = Segment {
                bytes,
                offset,
                end,
                cut_off: line_end.is_none() && !whole,
                last,
                alone: searched >= end,
            };
            let Some(after) = self.record(&segment, found) else {
                return Done::at(found.start);
            };
            at = after;
            self.floor = offset + at as u64;
            next = if at <= searched {
                following
            } else {
                self.searcher.next(bytes, at, at, last)
            };
        }
    }

    /// Handles the record after one tag; returns where the search continues, or `None` where more bytes are needed.
    #[inline]
    fn record(&mut self, segment: &Segment<'_>, found: Found) -> Option<usize> {
        if found.tag == Tag::Dump {
            let known = self.known_dump(segment, found);
            return Some(known.unwrap_or_else(|| self.dump(segment, found)));
        }
        let before = &segment.bytes[..found.start];
        let text = &segment.bytes[found.end..segment.end];
        match found.tag {
            Tag::Dump => {}
            Tag::LookupHead => return self.lookup_head(segment, found),
            Tag::FoundPadded | Tag::WeightDtype | Tag::NotFound => {
                return self.lookup(segment, found);
            }
            Tag::Reused => {
                if let Some(reuse) = engagement::reuse(text) {
                    self.log_summary.add_reuse(reuse);
                }
            }
            Tag::MxScale => {
                let stem = "a8w8_blockscale_mxscale_bpreshuffle_tuned_gemm";
                let logger = Logger::of_line(before);
                self.log_summary.add_other(stem.to_owned(), logger);
            }
            Tag::Batched => {
                let stem = lookup::batched(text);
                self.log_summary.add_other(stem.to_owned(), Logger::Aiter);
            }
            Tag::FusedMoe => {
                if let Some(key) = lookup::fused_moe_key(text) {
                    self.log_summary.add_fused_moe(key);
                }
                if let Some((call, found)) = fmoe::parse(text) {
                    let logger = Logger::of(before);
                    self.log_summary.fmoe.add(call, found, logger);
                }
            }
            Tag::NoKernel => {
                if let Some(name) = text.strip_prefix(b"nd: ") {
                    self.log_summary.fmoe.add_not_found(name);
                }
            }
            Tag::MoeConfig | Tag::MoeDownMissing => {
                let line = match found.tag {
                    Tag::MoeConfig => moe::config(before, text),
                    _ => Some(moe::down_missing(text)),
                };
                match line {
                    Some(Ok(line)) => self.log_summary.moe.add_line(line),
                    Some(Err(reason)) => self.malformed(segment, found.start, reason),
                    None => {}
                }
            }
            Tag::NoGfxColumn => {
                let from = memchr::memrchr3(b'\n', b'\r', 0x1b, before).map_or(0, |at| at + 1);
                let from = from.max(before.len().saturating_sub(LOOK_BACK / 2));
                // The prefix of aiter's logger, or of a launcher before it.
                let path = rfind(&before[from..], b"] ").map_or(from, |at| from + at + 2);
                let path = super::cursor::lossy(&before[path..], LOOK_BACK);
                add_one(&mut self.log_summary.legacy_tables, path, 1);
            }
            Tag::DefaultConfig | Tag::UsingConfig => {
                let hit = found.tag == Tag::UsingConfig;
                match sglang::config_file(text, hit) {
                    Some(Ok(file)) => self.log_summary.add_config(file, hit),
                    Some(Err(reason)) => self.malformed(segment, found.start, reason),
                    None => {}
                }
            }
            Tag::Decode | Tag::DecodeNumbered => {
                let numbered = found.tag == Tag::DecodeNumbered;
                if let Some(batch) = sglang::decode(before, text, numbered) {
                    self.decode.add(batch.requests);
                    if batch.eager {
                        self.decode_eager.add(batch.requests);
                    }
                }
            }
            Tag::Prefill => {
                if let Some(tokens) = sglang::prefill(before) {
                    self.prefill.add(tokens);
                }
            }
            Tag::Limits => {
                if let Some(limits) = sglang::limits(text) {
                    add_one(&mut self.log_summary.limits, limits, 1);
                }
            }
            Tag::CaptureList | Tag::CaptureBegin | Tag::CaptureEnd => {
                let capture = if found.tag == Tag::CaptureList {
                    sglang::capture_list(text)
                } else {
                    sglang::capture(before, text)
                };
                if let Some(capture) = capture {
                    add_one(&mut self.log_summary.captures, capture, 1);
                }
            }
            Tag::Dispatch => {
                if let Some(identity) = sglang::dispatch(text) {
                    add_one(&mut self.log_summary.dispatch, identity, 1);
                }
            }
        }
        Some(found.end)
    }

    /// A dump record that ends its line and whose payload is known already, so that nothing is parsed.
    #[inline]
    fn known_dump(&mut self, segment: &Segment<'_>, found: Found) -> Option<usize> {
        // With a second record in the line, parse it carefully.
        if segment.cut_off || !segment.alone {
            return None;
        }
        let text = &segment.bytes[found.end..segment.end];
        let blank = memchr::memrchr(b' ', text)?;
        let payload = Payload::new(&text[blank + 1..], text)?;
        let middle = text[..blank].strip_suffix(b"csv_row:")?;
        if middle.starts_with(b" op=") {
            return None;
        }
        if !self.tally.count(&payload) {
            let op = dump::op_of_text(middle);
            let (dump, length) = dump::parse_payload(&text[blank + 1..], op).ok()?;
            if blank + 1 + length != text.len() {
                return None;
            }
            if !self.tally.learn(&payload, dump) {
                self.empty_tally();
                self.tally.learn(&payload, dump);
            }
        }
        Some(segment.end)
    }

    /// A dump record in any context.
    fn dump(&mut self, segment: &Segment<'_>, found: Found) -> usize {
        let text = &segment.bytes[found.end..segment.end];
        // The record ends where the next one starts, unless its fields come first.
        let next = find(text, b"[GEMM_shape_dump]").unwrap_or(text.len());
        let row = self.find_row.find(&text[..next]);
        let Some(row) = row else {
            let cut_off = segment.cut_off && next == text.len();
            let reason = if cut_off {
                CUT_OFF
            } else {
                "torn: no `csv_row:` behind the tag"
            };
            self.malformed(segment, found.start, reason);
            return found.end;
        };
        let op = dump::op_of_text(&text[..row]);
        let payload = &text[row + b"csv_row:".len()..next];
        let start = found.end + row + b"csv_row:".len();
        match dump::parse_payload(payload, op) {
            Ok((dump, length)) if segment.cut_off && start + length == segment.end => {
                self.tail = Some((dump, self.place(segment, found.start)));
                start + length
            }
            Ok((dump, length)) => {
                self.log_summary.add_dump(dump, 1);
                start + length
            }
            Err(reason) => {
                // There may be colour sequences inside the fields.
                if let Some(dump) = uncoloured(payload, op) {
                    self.log_summary.add_dump(dump, 1);
                } else {
                    let at_end =
                        segment.cut_off && next == text.len() && reason.starts_with("torn");
                    let reason = if at_end { CUT_OFF } else { reason };
                    self.malformed(segment, found.start, reason);
                }
                start
            }
        }
    }

    #[cold]
    fn empty_tally(&mut self) {
        for (dump, count) in self.tally.drain() {
            self.log_summary.add_dump(dump, count);
        }
    }

    /// Adds what was held back until the end of the input, except for the record there, which it returns.
    fn finish(mut self) -> Option<Tail> {
        self.empty_tally();
        self.decode.pour(&mut self.log_summary.decode_batches);
        self.decode_eager.pour(&mut self.log_summary.decode_eager);
        self.prefill.pour(&mut self.log_summary.prefill_batches);
        self.tail
    }

    #[cold]
    fn malformed(&mut self, segment: &Segment<'_>, start: usize, reason: &str) {
        let place = self.place(segment, start);
        let text = &segment.bytes[start..segment.end.max(start)];
        self.log_summary
            .add_malformed(self.name, place, reason, text);
    }

    fn place(&mut self, segment: &Segment<'_>, start: usize) -> Place {
        let line = (self.lines == Lines::Count)
            .then(|| self.line_at(segment.bytes, segment.offset, start));
        let offset = segment.offset + start as u64;
        Place { line, offset }
    }

    /// The line of `bytes[at]`; for bytes before the part counted already, newlines are counted backwards.
    fn line_at(&mut self, bytes: &[u8], offset: u64, at: usize) -> u64 {
        let (counted, line) = self.counted;
        let done = usize::try_from(counted.saturating_sub(offset)).unwrap_or(usize::MAX);
        if at < done {
            return line - newlines(&bytes[at..done.min(bytes.len())]);
        }
        let line = line + newlines(&bytes[done..at]);
        self.counted = (offset + at as u64, line);
        line
    }
}

/// The bytes in memory, and where the current record ends.
struct Segment<'bytes> {
    bytes: &'bytes [u8],
    /// Position of `bytes[0]` in the input.
    offset: u64,
    end: usize,
    /// Whether the record ends with the input, without a line end.
    cut_off: bool,
    /// Whether the input ends with `bytes`.
    last: bool,
    /// Whether no further tag starts before `end`.
    alone: bool,
}

/// Parses a payload with colour sequences (`ESC [ … letter`) in it.
fn uncoloured(payload: &[u8], op: Option<crate::problem::Op>) -> Option<dump::Dump> {
    memchr::memchr(0x1b, payload)?;
    let mut plain = Vec::with_capacity(payload.len());
    let mut cursor = Cursor::new(payload);
    while !cursor.rest().is_empty() {
        plain.extend_from_slice(cursor.run(|byte| byte != 0x1b));
        if cursor.eat(b"\x1b").is_some() && cursor.eat(b"[").is_some() {
            cursor.run(|byte| !byte.is_ascii_alphabetic());
            let _ = cursor
                .rest()
                .first()
                .and_then(|letter| cursor.eat(&[*letter]));
        }
    }
    dump::parse_payload(&plain, op).ok().map(|(dump, _)| dump)
}
