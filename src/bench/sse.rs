//! Server-sent events, as far as completion streams use them: the data of one event after another.

use std::io::{self, BufRead};

/// The longest line accepted: one event holds a few tokens, so a longer one means a faulty server.
const LONGEST_LINE: u64 = 1 << 20;

/// Reads events from a stream.
#[derive(Debug)]
pub(super) struct Events<R> {
    reader: R,
}

impl<R: BufRead> Events<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader }
    }

    /// The data of the next event; `None` at the end of the stream. Comments and fields other than
    /// `data` are skipped; an event cut off by the end of the stream is not delivered.
    pub(super) fn next(&mut self) -> io::Result<Option<String>> {
        let mut data: Option<String> = None;
        loop {
            let mut line = Vec::new();
            let mut limited = io::Read::take(&mut self.reader, LONGEST_LINE);
            limited.read_until(b'\n', &mut line)?;
            if line.pop_if(|last| *last == b'\n').is_none() {
                return if line.len() as u64 == LONGEST_LINE {
                    Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a line of the event stream is longer than 1 MiB",
                    ))
                } else {
                    Ok(None)
                };
            }
            line.pop_if(|last| *last == b'\r');
            if line.is_empty() {
                if data.is_some() {
                    return Ok(data);
                }
                continue;
            }
            let Some(value) = line.strip_prefix(b"data:") else {
                continue;
            };
            let value = String::from_utf8_lossy(value.strip_prefix(b" ").unwrap_or(value));
            match &mut data {
                None => data = Some(value.into_owned()),
                Some(data) => {
                    data.push('\n');
                    data.push_str(&value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(bytes: &[u8]) -> Vec<String> {
        let mut events = Events::new(bytes);
        std::iter::from_fn(|| events.next().unwrap()).collect()
    }

    #[test]
    fn data_lines_are_events_whatever_the_line_ends() {
        let stream = b": ping\n\ndata: {\"a\":1}\n\nevent: x\r\ndata:two\r\ndata: lines\r\n\r\ndata: [DONE]\n\n";
        assert_eq!(events(stream), ["{\"a\":1}", "two\nlines", "[DONE]"]);
    }

    #[test]
    fn an_event_cut_off_by_the_end_is_not_delivered() {
        assert_eq!(events(b"data: one\n\ndata: tw"), ["one"]);
        assert_eq!(events(b"data: one\n\ndata: two\n"), ["one"]);
        assert!(events(b"").is_empty());
    }

    #[test]
    fn an_endless_line_is_an_error() {
        let long = vec![b'x'; 2 << 20];
        let error = Events::new(&long[..]).next().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
