//! Size limits of a file, checked without parsing it: the parser recurses once for each nesting level, so a file with
//! excessive nesting must be refused before it exhausts the stack.

/// Brackets may nest this deep; CPython's tokenizer refuses more (MAXLEVEL, `Parser/lexer/state.h`).
const MAX_BRACKETS: usize = 200;
/// Blocks may nest this deep; CPython's tokenizer refuses more (MAXINDENT, `Parser/lexer/state.h`).
const MAX_INDENTS: usize = 100;
/// A statement may have this many tokens. The longest one in the files read here, over SGLang 0.5.5
/// to 0.5.23, has fewer than 500.
const MAX_TOKENS: usize = 4000;

/// The first place at which `text` exceeds a limit, and which one.
pub(super) fn excess(text: &str) -> Option<(usize, &'static str)> {
    let mut scan = Scan::default();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let next = scan.step(bytes, at);
        if scan.depth > MAX_BRACKETS {
            return Some((at, "brackets nest too deep"));
        }
        if scan.indents.len() > MAX_INDENTS {
            return Some((at, "blocks nest too deep"));
        }
        if scan.tokens > MAX_TOKENS {
            return Some((at, "a statement without end"));
        }
        at = next;
    }
    None
}

#[derive(Default)]
struct Scan {
    depth: usize,
    /// Tokens of the statement so far.
    tokens: usize,
    /// Widths of the enclosing blocks' indentations.
    indents: Vec<usize>,
    /// Whether the previous byte was part of a word.
    in_word: bool,
    /// Whether this line has had anything but blanks.
    in_line: bool,
}

impl Scan {
    /// Consumes the byte at `at`, a whole string or a whole comment, and returns where to continue.
    fn step(&mut self, bytes: &[u8], at: usize) -> usize {
        let byte = bytes[at];
        if !self.in_line && self.depth == 0 && !byte.is_ascii_whitespace() && byte != b'#' {
            self.indent(bytes, at);
        }
        self.in_line |= !byte.is_ascii_whitespace();
        let is_word = byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80;
        let goes_on = is_word && self.in_word;
        if !(byte.is_ascii_whitespace() || goes_on) {
            self.tokens += 1;
        }
        self.in_word = is_word;
        match byte {
            b'#' => return end_of_line(bytes, at),
            b'"' | b'\'' => return end_of_string(bytes, at),
            // A continued line does not start a statement.
            b'\\' => return (at + 2).min(bytes.len()),
            b'(' | b'[' | b'{' => self.depth += 1,
            b')' | b']' | b'}' => self.depth = self.depth.saturating_sub(1),
            b'\n' | b'\r' if self.depth == 0 => {
                self.tokens = 0;
                self.in_line = false;
            }
            _ => {}
        }
        at + 1
    }

    fn indent(&mut self, bytes: &[u8], at: usize) {
        let start = bytes[..at]
            .iter()
            .rposition(|byte| matches!(byte, b'\n' | b'\r'))
            .map_or(0, |end| end + 1);
        let width = at - start;
        self.indents.retain(|open| *open < width);
        if width > 0 {
            self.indents.push(width);
        }
    }
}

fn end_of_line(bytes: &[u8], at: usize) -> usize {
    bytes[at..]
        .iter()
        .position(|byte| matches!(byte, b'\n' | b'\r'))
        .map_or(bytes.len(), |length| at + length)
}

fn end_of_string(bytes: &[u8], at: usize) -> usize {
    let quote = bytes[at];
    let triple = bytes[at..].starts_with(&[quote; 3]);
    let mut next = at + if triple { 3 } else { 1 };
    while next < bytes.len() {
        match bytes[next] {
            b'\\' => next += 2,
            b'\n' | b'\r' if !triple => return next,
            byte if byte == quote => {
                if !triple {
                    return next + 1;
                }
                if bytes[next..].starts_with(&[quote; 3]) {
                    return next + 3;
                }
                next += 1;
            }
            _ => next += 1,
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nests_without_end_is_found() {
        for (text, what) in [
            ("(".repeat(300), "brackets nest too deep"),
            (
                format!("x = {}1\n", "not ".repeat(5000)),
                "a statement without end",
            ),
            (
                format!("x = {}1\n", "-".repeat(5000)),
                "a statement without end",
            ),
            (
                format!("x = (\n{}1)\n", "not\n".repeat(5000)),
                "a statement without end",
            ),
            (
                format!("x = a{}\n", ".b".repeat(5000)),
                "a statement without end",
            ),
            (
                {
                    let blocks: Vec<String> = (1..200)
                        .map(|depth| format!("{}if a:\n", " ".repeat(depth)))
                        .collect();
                    blocks.concat()
                },
                "blocks nest too deep",
            ),
        ] {
            assert_eq!(excess(&text).map(|(_, what)| what), Some(what));
        }
    }

    #[test]
    fn brackets_in_strings_and_comments_open_nothing() {
        let line = "x = '([{' + \"\\\"([{\"  # :-( [0, 1)\n\"\"\"((( ' \" \"\"\"\n";
        assert_eq!(excess(&line.repeat(500)), None);
        let blocks = "if a:\n    b = (\n  1,\n)\nelse:\n\tc\n".repeat(500);
        assert_eq!(excess(&blocks), None);
    }
}
