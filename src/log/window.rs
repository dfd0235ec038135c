//! The part of an input that is in memory: a rolling buffer of fixed size.

use std::io::{self, Read};

/// Bytes read at a time: together with the counters of a log it fits the second-level cache.
pub const BUFFER: usize = 256 << 10;

/// The bytes in memory, and their position in the input.
pub(super) struct Window {
    buffer: Box<[u8]>,
    length: usize,
    /// Position of `buffer[0]` in the input.
    pub(super) offset: u64,
}

impl Window {
    /// An empty window, for an input whose first byte is at `offset`.
    pub(super) fn new(offset: u64) -> Self {
        Self {
            buffer: vec![0; BUFFER].into_boxed_slice(),
            length: 0,
            offset,
        }
    }

    pub(super) fn unread(&self) -> &[u8] {
        &self.buffer[..self.length]
    }

    /// Position behind the last byte in memory.
    pub(super) fn end(&self) -> u64 {
        self.offset + self.length as u64
    }

    /// Reads once; 0 is the end. There is always room: what is kept is far shorter than the buffer.
    pub(super) fn fill(&mut self, input: &mut impl Read) -> io::Result<usize> {
        let read = read_some(input, &mut self.buffer[self.length..])?;
        self.length += read;
        Ok(read)
    }

    /// Discards the first `count` bytes.
    pub(super) fn drop_front(&mut self, count: usize) {
        self.buffer.copy_within(count..self.length, 0);
        self.length -= count;
        self.offset += count as u64;
    }
}

/// Reads once; 0 is the end.
pub(super) fn read_some(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match input.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
