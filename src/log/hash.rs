//! A hash for keys of a few small numbers: one multiplication for each, where the standard hash needs tens of operations.
//!
//! Not safe against keys chosen to collide. The maps that use it are bounded, so such keys only cost time.

use std::hash::{BuildHasherDefault, Hasher};

/// A hash map that uses [`Numbers`].
pub(super) type NumberMap<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<Numbers>>;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Numbers(u64);

impl Numbers {
    #[inline]
    fn mix(&mut self, number: u64) {
        // 2^64 divided by the golden ratio, odd.
        self.0 = (self.0.rotate_left(26) ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

impl Hasher for Numbers {
    #[inline]
    fn finish(&self) -> u64 {
        // The map takes its slot from the low bits, but a product's best bits are its high ones.
        self.0.rotate_left(26)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.mix(u64::from(*byte));
        }
    }

    #[inline]
    fn write_u8(&mut self, number: u8) {
        self.mix(u64::from(number));
    }

    #[inline]
    fn write_u32(&mut self, number: u32) {
        self.mix(u64::from(number));
    }

    #[inline]
    fn write_isize(&mut self, number: isize) {
        self.mix(number as u64);
    }
}
