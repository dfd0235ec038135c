//! Reads the lines of a record file of the overlay.

use std::io::{self, Read};

use super::record;
use super::summary::{CUT_OFF, LogSummary, Place};
use super::window::{BUFFER, Window};

/// Adds every line to `log_summary`, and then the calls that the file's captures stand for.
pub(super) fn scan(
    window: &mut Window,
    input: &mut impl Read,
    name: &str,
    log_summary: &mut LogSummary,
) -> io::Result<()> {
    let mut line = 0;
    let mut skipping = false; // inside a line longer than the buffer
    let result = loop {
        let mut start = 0;
        while let Some(length) = memchr::memchr(b'\n', &window.unread()[start..]) {
            line += 1;
            let text = &window.unread()[start..start + length];
            if !std::mem::take(&mut skipping) {
                let offset = window.offset + start as u64;
                add_record_line(log_summary, name, line, offset, text);
            }
            start += length + 1;
        }
        window.drop_front(start);
        if window.unread().len() == BUFFER {
            let place = Place {
                line: Some(line + 1),
                offset: window.offset,
            };
            log_summary.add_malformed(name, place, "a line of more than 256 KiB", window.unread());
            skipping = true;
            window.drop_front(BUFFER);
        }
        match window.fill(input) {
            Ok(0) => {
                let tail = window.unread();
                if !tail.is_empty() && !skipping {
                    // Either a writer killed in mid-line, or one that is about to continue: use the line only if it
                    // is complete.
                    let place = Place {
                        line: Some(line + 1),
                        offset: window.offset,
                    };
                    match record::parse(tail).ok() {
                        Some(record) => log_summary.add_record(record),
                        None => log_summary.add_malformed(name, place, CUT_OFF, tail),
                    }
                }
                break Ok(());
            }
            Ok(_) => {}
            Err(error) => break Err(error),
        }
    };
    log_summary.end_record_file();
    result
}

fn add_record_line(log_summary: &mut LogSummary, name: &str, line: u64, offset: u64, text: &[u8]) {
    if text.trim_ascii().is_empty() {
        return;
    }
    match record::parse(text) {
        Ok(record) => log_summary.add_record(record),
        Err(error) => {
            let place = Place {
                line: Some(line),
                offset,
            };
            log_summary.add_malformed(name, place, &error.to_string(), text);
        }
    }
}
