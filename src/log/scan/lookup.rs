//! Look-up lines of aiter among the records of a log: complete, torn, and wrapped where they were copied from a
//! terminal.

use super::{CUT_OFF, Found, Next, Scanner, Segment, Tag};
use crate::log::cursor::{find, rfind};
use crate::log::engagement::{self, LookupReport};
use crate::log::summary::Logger;

/// The reason given for an incomplete look-up line.
const TORN_LOOKUP: &str = "torn: no complete look-up line of aiter";

/// How far after its first line a wrapped look-up line extends: a path of 512 bytes and a kernel's name.
pub(in crate::log) const WRAPPED_MAX: usize = 1 << 10;

/// Most lines over which the rest of a wrapped look-up line is spread: the longest have 400 letters, a terminal has
/// 80 columns.
const WRAPPED_LINES: usize = 5;

/// Longest key of a fused MoE that is kept.
const MOE_KEY_MAX: usize = 512;

/// Longest text of a batched look-up before its outcome.
const BATCHED_MAX: usize = 128;

impl Scanner<'_> {
    /// A look-up line of aiter, whose head precedes its tag. Returns where the search continues, or `None` where more
    /// bytes are needed to decide.
    pub(super) fn lookup(&mut self, segment: &Segment<'_>, found: Found) -> Option<usize> {
        let bytes = segment.bytes;
        let start = engagement::head_start(bytes, found.start)
            .filter(|start| !has_line_end(&bytes[*start..found.start]));
        let Some(start) = start else {
            // Another operation's line, another program's, or one whose beginning is lost.
            if let Some(family) = batched_of_the_server(&bytes[..found.start]) {
                self.log_summary
                    .add_other(family.to_owned(), Logger::Server);
            } else if engagement::lost_head(bytes, found.start) {
                self.malformed(segment, found.start, TORN_LOOKUP);
            }
            return Some(found.end);
        };
        let logger = Logger::of(&bytes[..start]);
        if let Some((report, length)) = engagement::parse(&bytes[start..segment.end]) {
            self.add_report(report, logger);
            return Some((start + length).max(found.end));
        }
        match self.wrapped(segment, start, logger) {
            Wrapped::Until(end) => return Some(end),
            Wrapped::Unknown => return None,
            Wrapped::Not => self.torn(segment, start),
        }
        // Its further tags belong to the same line.
        let next = find(&bytes[found.end..segment.end], b"shape ");
        Some(next.map_or(segment.end, |next| found.end + next))
    }

    /// The head of a look-up line: torn if nothing in the rest of its line reports an outcome and the line was not
    /// wrapped. A complete line is handled at its later tag.
    pub(super) fn lookup_head(&mut self, segment: &Segment<'_>, found: Found) -> Option<usize> {
        let text = &segment.bytes[found.end..segment.end];
        let length = find(text, b"[aiter] shape is M:").unwrap_or(text.len());
        let mut at = 0;
        while let Next::Found(next) = self.searcher.next(&text[..length], at, 0, true) {
            if matches!(
                next.tag,
                Tag::FoundPadded | Tag::WeightDtype | Tag::NotFound
            ) {
                return Some(found.end);
            }
            at = next.end;
        }
        let start = found.end - b"shape is M:".len();
        // Look-ups of other families, and misses that name no table.
        if let Some((report, _)) = engagement::parse(&segment.bytes[start..found.end + length]) {
            self.add_report(report, Logger::Aiter);
            return Some(found.end);
        }
        // Another look-up in the same line ends this one.
        if length == text.len() {
            match self.wrapped(segment, start, Logger::Aiter) {
                Wrapped::Until(end) => return Some(end),
                Wrapped::Unknown => return None,
                Wrapped::Not => {}
            }
        }
        self.torn(segment, found.start);
        Some(found.end)
    }

    fn add_report(&mut self, report: LookupReport<'_>, logger: Logger) {
        match report {
            LookupReport::Lookup(line) => self.log_summary.add_lookup(line, logger),
            LookupReport::Other(family) => self.log_summary.add_other(family, logger),
        }
    }

    fn torn(&mut self, segment: &Segment<'_>, start: usize) {
        let reason = if segment.cut_off {
            CUT_OFF
        } else {
            TORN_LOOKUP
        };
        self.malformed(segment, start, reason);
    }

    /// Whether the look-up line from `start` on continues on the following lines; if so, it is counted.
    #[cold]
    fn wrapped(&mut self, segment: &Segment<'_>, start: usize, logger: Logger) -> Wrapped {
        let bytes = segment.bytes;
        let head = &bytes[start..segment.end];
        // Every complete look-up ends with it.
        if memchr::memchr(b'!', head).is_some() {
            return Wrapped::Not;
        }
        let reach = segment.end + WRAPPED_MAX;
        if bytes.len() < reach && !segment.last {
            return Wrapped::Unknown;
        }
        let reach = reach.min(bytes.len());
        // Wrapped at the terminal's width, or at a blank.
        for between in [&b""[..], b" "] {
            let mut whole = head.trim_ascii_end().to_vec();
            let (mut at, mut lines) = (segment.end, 0);
            while at < reach && lines < WRAPPED_LINES {
                let length = memchr::memchr2(b'\n', b'\r', &bytes[at..reach]);
                let end = length.map_or(reach, |length| at + length);
                let line = bytes[at..end].trim_ascii_start();
                at = end + 1;
                if line.is_empty() {
                    continue;
                }
                let other = find(line, b"shape ").is_some() || find(line, b"[aiter]").is_some();
                if other || line.iter().any(u8::is_ascii_control) {
                    break;
                }
                lines += 1;
                // No wrapped line continues past its end, so a log can be split there.
                let own = memchr::memchr(b'!', line).map_or(line, |at| &line[..=at]);
                whole.extend_from_slice(between);
                whole.extend_from_slice(own);
                if let Some((report, length)) = engagement::parse(&whole) {
                    self.add_report(report, logger);
                    let unread = line.len() - own.len() + whole.len() - length;
                    return Wrapped::Until(end - unread);
                }
                if own.ends_with(b"!") {
                    break;
                }
                let kept = whole.trim_ascii_end().len();
                whole.truncate(kept);
            }
        }
        Wrapped::Not
    }
}

/// Whether a look-up line was wrapped.
enum Wrapped {
    /// Yes, and it ends here.
    Until(usize),
    Not,
    /// The lines behind it are not in memory.
    Unknown,
}

/// Whether a look-up line may continue after `bytes`, which end at a line end.
pub(in crate::log) fn may_go_on(bytes: &[u8]) -> bool {
    rfind(bytes, b"shape ").is_some_and(|at| memchr::memchr(b'!', &bytes[at..]).is_none())
}

/// The family of a batched look-up, judged by what follows its head.
pub(super) fn batched(text: &[u8]) -> &'static str {
    if find(text, b" dtype is bf16").is_some() {
        "bf16_tuned_batched_gemm"
    } else {
        "a8w8_tuned_batched_gemm"
    }
}

/// The family of a batched look-up that a server's logger wrote, whose outcome follows `before`. Those of aiter's own
/// logger are recognised by their head.
fn batched_of_the_server(before: &[u8]) -> Option<&'static str> {
    let before = &before[before.len().saturating_sub(BATCHED_MAX)..];
    let line = memchr::memrchr2(b'\n', b'\r', before).map_or(0, |end| end + 1);
    let line = &before[line..];
    let head = rfind(line, b"shape is B:")?;
    (Logger::of(&line[..head]) == Logger::Server).then(|| batched(&line[head..]))
}

/// The key in `text`, which follows `[fused_moe] using `: `2stage default for (256, 16384, …) `.
pub(super) fn fused_moe_key(text: &[u8]) -> Option<String> {
    let start = find(text, b" for (")? + b" for ".len();
    let text = &text[start..];
    let end = rfind(text, b")")? + 1;
    let key = text.get(..end.min(MOE_KEY_MAX))?;
    key.ends_with(b")")
        .then(|| String::from_utf8_lossy(key).into_owned())
}

fn has_line_end(bytes: &[u8]) -> bool {
    memchr::memchr2(b'\n', b'\r', bytes).is_some()
}
