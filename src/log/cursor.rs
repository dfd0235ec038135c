//! Parses fields from bytes, left to right.

/// A position in bytes that only moves forward.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'bytes> {
    rest: &'bytes [u8],
}

impl<'bytes> Cursor<'bytes> {
    pub(super) fn new(bytes: &'bytes [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The bytes that have not been read yet.
    pub(super) fn rest(&self) -> &'bytes [u8] {
        self.rest
    }

    /// Skips `text` if it is next.
    pub(super) fn eat(&mut self, text: &[u8]) -> Option<()> {
        self.rest = self.rest.strip_prefix(text)?;
        Some(())
    }

    pub(super) fn blanks(&mut self) {
        while let [b' ', rest @ ..] = self.rest {
            self.rest = rest;
        }
    }

    /// Reads decimal digits as a number; `None` if there are none or the number does not fit.
    pub(super) fn number(&mut self) -> Option<u32> {
        let digits = self.rest.iter().take_while(|byte| byte.is_ascii_digit());
        let length = digits.count();
        let number = decimal(&self.rest[..length])?;
        self.rest = &self.rest[length..];
        Some(number)
    }

    /// Reads up to `end` and skips it.
    pub(super) fn until(&mut self, end: &[u8]) -> Option<&'bytes [u8]> {
        let at = find(self.rest, end)?;
        let text = &self.rest[..at];
        self.rest = &self.rest[at + end.len()..];
        Some(text)
    }

    /// Reads the longest run of bytes that satisfy `wanted`.
    pub(super) fn run(&mut self, wanted: impl Fn(u8) -> bool) -> &'bytes [u8] {
        let length = self.rest.iter().take_while(|byte| wanted(**byte)).count();
        let (run, rest) = self.rest.split_at(length);
        self.rest = rest;
        run
    }
}

/// Position of the first `text` in `bytes`.
///
/// For short texts in short bytes, where `memmem` spends more time on preparing than this on searching.
pub(super) fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    let first = *text.first()?;
    memchr::memchr_iter(first, bytes).find(|at| bytes[*at..].starts_with(text))
}

/// Position of the last `text` in `bytes`.
pub(super) fn rfind(bytes: &[u8], text: &[u8]) -> Option<usize> {
    let first = *text.first()?;
    memchr::memrchr_iter(first, bytes).find(|at| bytes[*at..].starts_with(text))
}

/// Decimal digits as a number; `None` for no digits, other bytes or too many.
pub(super) fn decimal(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u32, |number, byte| {
        let digit = byte.wrapping_sub(b'0');
        (digit < 10).then_some(())?;
        number.checked_mul(10)?.checked_add(u32::from(digit))
    })
}

/// The number whose digits end `bytes`, and the bytes before it.
pub(super) fn trailing_number(bytes: &[u8]) -> Option<(&[u8], u32)> {
    let digits = bytes
        .iter()
        .rev()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let (before, digits) = bytes.split_at(bytes.len() - digits);
    Some((before, decimal(digits)?))
}

/// Text for people and JSON: UTF-8 with replacements, cut to `limit` bytes or a little less.
pub(super) fn lossy(bytes: &[u8], limit: usize) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(limit)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_order_and_a_wrong_one_moves_nothing() {
        let mut cursor = Cursor::new(b"M:12, N:0034 rest");
        assert_eq!(cursor.eat(b"N:"), None);
        assert_eq!(cursor.eat(b"M:"), Some(()));
        assert_eq!(cursor.number(), Some(12));
        assert_eq!(cursor.number(), None);
        assert_eq!(cursor.until(b"N:"), Some(b", ".as_slice()));
        assert_eq!(cursor.number(), Some(34));
        assert_eq!(cursor.rest(), b" rest");
    }

    #[test]
    fn texts_are_found_from_either_end() {
        assert_eq!(find(b"aab ab", b"ab"), Some(1));
        assert_eq!(rfind(b"aab ab a", b"ab"), Some(4));
        assert_eq!(
            (find(b"a", b"ab"), rfind(b"", b"ab"), find(b"a", b"")),
            (None, None, None)
        );
    }

    #[test]
    fn a_number_that_does_not_fit_is_none() {
        assert_eq!(decimal(b"4294967295"), Some(u32::MAX));
        assert_eq!(decimal(b"4294967296"), None);
        assert_eq!(decimal(b"99999999999999999999"), None);
        assert_eq!(decimal(b"1_0"), None);
        assert_eq!(
            trailing_number(b"#new-token: 77"),
            Some((b"#new-token: ".as_slice(), 77))
        );
        assert_eq!(trailing_number(b"none"), None);
    }
}
