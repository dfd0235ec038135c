//! A growable buffer whose elements start on a cache line.
//!
//! Vector loads that straddle two lines cost twice; a `Vec` promises only its element's alignment.

use std::ops::{Deref, DerefMut};

/// Bytes of a cache line on every CPU this engine knows.
pub(crate) const LINE: usize = 64;

/// A buffer of `T` starting on a cache line. Never shrinks; growing zeroes it.
#[derive(Debug)]
pub(crate) struct Aligned<T> {
    buffer: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Copy + Default> Aligned<T> {
    /// `len` default (zero) elements.
    pub(crate) fn zeroed(len: usize) -> Self {
        let buffer = vec![T::default(); len + LINE / size_of::<T>()];
        let start = buffer.as_ptr().align_offset(LINE);
        // `align_offset` may in theory decline (usize::MAX); then alignment is lost, nothing else.
        let start = if start + len <= buffer.len() {
            start
        } else {
            0
        };
        Self { buffer, start, len }
    }

    /// Makes the buffer at least `len` long and returns its first `len` elements, contents unspecified.
    pub(crate) fn at_least(&mut self, len: usize) -> &mut [T] {
        if self.len < len {
            *self = Self::zeroed(len);
        }
        &mut self[..len]
    }
}

impl<T: Copy + Default> Default for Aligned<T> {
    fn default() -> Self {
        Self::zeroed(0)
    }
}

impl<T: Copy + Default> Clone for Aligned<T> {
    fn clone(&self) -> Self {
        // A cloned Vec lies elsewhere, so the start is found anew.
        let mut copy = Self::zeroed(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.buffer[self.start..self.start + self.len]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.buffer[self.start..self.start + self.len]
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "values that are exact by construction")]
mod tests {
    use super::*;

    #[test]
    fn buffers_start_on_a_line_also_after_growing_and_cloning() {
        let mut buffer = Aligned::<f32>::zeroed(3);
        for len in [1, 100, 7, 1000] {
            assert_eq!(buffer.at_least(len).len(), len);
            assert_eq!(buffer.as_ptr() as usize % LINE, 0);
            assert_eq!(buffer.clone().as_ptr() as usize % LINE, 0);
        }
        buffer[2] = 5.0;
        assert_eq!(buffer.clone()[2], 5.0);
    }
}
