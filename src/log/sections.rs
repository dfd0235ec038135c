//! Reads a plain log in parallel sections: the same log summary as [`scan`] gives, in a fraction of the time.
//!
//! No record extends past the end of its line, except for a wrapped look-up line. So a log can be split at any line
//! end that is not inside one, and the results of the sections add up. They are added in file order, because for some
//! facts the first or last mention counts.

use std::io::{self, Read};
use std::thread;

use camino::Utf8Path;
use fs_err::os::unix::fs::FileExt as _;

use super::record;
use super::scan::{Lines, Part, WRAPPED_MAX, may_go_on, scan, scan_rest};
use super::summary::LogSummary;

/// Shortest section: below it a thread costs more than it gains.
pub const SECTION_MIN: u64 = 16 << 20;

/// Most sections. Each needs a few MB, and reading is limited by memory bandwidth, which a few cores saturate.
pub const SECTIONS_MAX: usize = 4;

/// Most shapes of a section, besides those in its tally. The rest of a log with more is read by one thread, so that
/// memory does not grow with the number of sections.
const SHAPES_MAX: usize = 12_000;

/// Most candidates examined for the start of a section: a log with wrapped lines throughout is read by one thread.
const TRIES_MAX: usize = 4096;

/// How many sections this machine reads at once.
pub fn sections_here() -> usize {
    thread::available_parallelism().map_or(1, |cores| cores.get().min(SECTIONS_MAX))
}

/// Reads the plain file `path` to its current end, in at most `sections` sections of at least `section_min` bytes,
/// and adds what it reports to `log_summary`. Returns the number of bytes read.
///
/// `on_read` is called with the number of bytes read, from the threads that read them. An error ends the reading
/// there: what precedes it stays in the log summary.
pub fn scan_file(
    path: &Utf8Path,
    sections: usize,
    section_min: u64,
    log_summary: &mut LogSummary,
    on_read: &(dyn Fn(u64) + Sync),
) -> io::Result<u64> {
    let read = scan_sections(path, sections, section_min, log_summary, on_read);
    log_summary.end_log();
    read
}

fn scan_sections(
    path: &Utf8Path,
    sections: usize,
    section_min: u64,
    log_summary: &mut LogSummary,
    on_read: &(dyn Fn(u64) + Sync),
) -> io::Result<u64> {
    let file = fs_err::File::open(path)?;
    let starts = starts(&file, sections, section_min)?;
    let section = |index: usize| Section {
        file: &file,
        at: starts[index],
        end: starts.get(index + 1).copied(),
        on_read,
    };
    if starts.len() == 1 {
        return scan(section(0), path.as_str(), Lines::Later, log_summary);
    }
    let parts: Vec<Part> = thread::scope(|scope| {
        let threads: Vec<_> = (0..starts.len())
            .map(|index| {
                let (start, section) = (starts[index], section(index));
                scope.spawn(move || Part::read(section, start, path.as_str(), SHAPES_MAX))
            })
            .collect();
        let joined = threads.into_iter().map(thread::ScopedJoinHandle::join);
        joined
            .map(|part| part.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let before = log_summary.bytes;
    let mut given_up = None;
    for (start, part) in starts.iter().zip(parts) {
        if !part.add_to(path.as_str(), log_summary)? {
            given_up = Some(*start);
            break;
        }
    }
    if let Some(start) = given_up {
        let rest = Section {
            file: &file,
            at: start,
            end: None,
            on_read: &|_| {},
        };
        scan_rest(rest, start, path.as_str(), log_summary)?;
    }
    Ok(log_summary.bytes - before)
}

/// Where the sections start: at the beginning, and after a line end near each equal share. A record file is one
/// section, because its lines belong together.
fn starts(file: &fs_err::File, sections: usize, section_min: u64) -> io::Result<Vec<u64>> {
    let length = file.metadata()?.len();
    let sections = (sections as u64).min(length / section_min.max(1)).max(1);
    let mut starts = vec![0];
    if sections == 1 || record::is_record_file(&read_at(file, 0, record::SNIFF)?) {
        return Ok(starts);
    }
    for index in 1..sections {
        let mut at = length / sections * index;
        let mut tries = 0;
        loop {
            let piece = read_at(file, at, 64 << 10)?;
            let end = memchr::memchr(b'\n', &piece);
            at += end.map_or(piece.len(), |end| end + 1) as u64;
            if piece.is_empty() || (end.is_some() && !goes_on(file, at)?) {
                break;
            }
            tries += 1;
            if tries > TRIES_MAX {
                at = length;
                break;
            }
        }
        if at < length && at > *starts.last().unwrap_or(&0) {
            starts.push(at);
        }
    }
    Ok(starts)
}

/// Whether a look-up line before `at`, where a line starts, may continue there.
fn goes_on(file: &fs_err::File, at: u64) -> io::Result<bool> {
    let from = at.saturating_sub(WRAPPED_MAX as u64);
    let length = usize::try_from(at - from).unwrap_or(WRAPPED_MAX);
    Ok(may_go_on(&read_at(file, from, length)?))
}

/// `length` bytes from `at` on, fewer at the end of the file.
fn read_at(file: &fs_err::File, at: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length);
    let whole = Section {
        file,
        at,
        end: None,
        on_read: &|_| {},
    };
    whole.take(length as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The bytes of a file from `at` to `end`, or to the file's end at the time.
struct Section<'file> {
    file: &'file fs_err::File,
    at: u64,
    end: Option<u64>,
    on_read: &'file (dyn Fn(u64) + Sync),
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.end.map_or(u64::MAX, |end| end - self.at);
        let length = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let read = self.file.read_at(&mut buffer[..length], self.at)?;
        self.at += read as u64;
        (self.on_read)(read as u64);
        Ok(read)
    }
}
