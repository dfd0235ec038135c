//! One Python file: its text, its style and its statements.

use std::ops::Range;

use camino::Utf8PathBuf;

use super::convert::{self, TokenClass};
use super::extent;
use super::refusal::Refusal;
use super::syntax::{Span, Stmt};

/// UTF-8 byte order mark, as some Windows editors write it.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// Why a file cannot be read as Python.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The bytes are not UTF-8.
    #[error("`{path}` is not UTF-8 at byte {offset}")]
    Encoding {
        path: Utf8PathBuf,
        /// Offset of the first invalid byte.
        offset: usize,
    },
    /// The text is not valid Python.
    #[error(transparent)]
    Syntax(#[from] Refusal),
}

/// The line ending that a file uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Newline {
    /// `\n`
    Lf,
    /// `\r\n`
    CrLf,
    /// `\r`, as classic Mac OS wrote it.
    Cr,
}

impl Newline {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lf => "\n",
            Self::CrLf => "\r\n",
            Self::Cr => "\r",
        }
    }
}

/// A parsed Python file. Spans are offsets into [`Source::text`], which has no byte order mark.
#[derive(Clone, Debug)]
pub struct Source {
    path: Utf8PathBuf,
    text: String,
    bom: bool,
    newline: Newline,
    indent: String,
    body: Vec<Stmt>,
    comments: Vec<Span>,
}

impl Source {
    /// Parses `bytes`; `path` is only for messages.
    pub fn parse(path: impl Into<Utf8PathBuf>, bytes: &[u8]) -> Result<Self, SourceError> {
        let path = path.into();
        let bom = bytes.starts_with(BOM);
        let offset = if bom { BOM.len() } else { 0 };
        let text = match std::str::from_utf8(&bytes[offset..]) {
            Ok(text) => text.to_owned(),
            Err(error) => {
                return Err(SourceError::Encoding {
                    path,
                    offset: offset + error.valid_up_to(),
                });
            }
        };
        if let Some((at, what)) = extent::excess(&text) {
            return Err(Refusal::of_text(
                path,
                &text,
                Span::at(at),
                what,
                "here",
                "code that a person wrote; this could exhaust the parser",
            )
            .into());
        }
        let parsed = match convert::parse(&text) {
            Ok(parsed) => parsed,
            Err((message, span)) => {
                return Err(Refusal::of_text(
                    path,
                    &text,
                    span,
                    "not valid Python",
                    &message,
                    "the file must parse before it is read or edited",
                )
                .into());
            }
        };
        let of = |class: TokenClass| {
            parsed
                .tokens
                .iter()
                .filter(|(found, _)| *found == class)
                .map(|(_, span)| *span)
                .collect::<Vec<_>>()
        };
        let indent = of(TokenClass::Indent)
            .first()
            .map(|span| &text[span.range()])
            .filter(|indent| !indent.is_empty())
            .unwrap_or("    ")
            .to_owned();
        Ok(Self {
            newline: first_newline(&text).unwrap_or(Newline::Lf),
            indent,
            comments: of(TokenClass::Comment),
            body: parsed.body,
            path,
            text,
            bom,
        })
    }

    /// The file's name for messages.
    pub fn path(&self) -> &Utf8PathBuf {
        &self.path
    }

    /// The text, without a byte order mark.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The bytes to write to disk when the text is `text`: with the byte order mark, if the file has one.
    pub fn bytes_of(&self, text: &str) -> Vec<u8> {
        let mut bytes = if self.bom { BOM.to_vec() } else { Vec::new() };
        bytes.extend_from_slice(text.as_bytes());
        bytes
    }

    pub fn body(&self) -> &[Stmt] {
        &self.body
    }

    /// One level of indentation, as the first indented block has it.
    pub fn indent(&self) -> &str {
        &self.indent
    }

    /// How the first line ends.
    pub fn newline(&self) -> Newline {
        self.newline
    }

    /// The text of `span`.
    pub fn slice(&self, span: Span) -> &str {
        &self.text[span.range()]
    }

    /// One-based line number of `offset`.
    pub fn line_number(&self, offset: usize) -> usize {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        let mut line = 1;
        for (index, byte) in before.iter().enumerate() {
            // `\r\n` counts once, at its `\n`; a lone `\r` ends a line for Python too.
            if *byte == b'\n' || (*byte == b'\r' && before.get(index + 1) != Some(&b'\n')) {
                line += 1;
            }
        }
        line
    }

    /// The line that holds `offset`, without its end.
    pub fn line_at(&self, offset: usize) -> &str {
        &self.text[self.line_range(offset)]
    }

    /// The bytes of the line that holds `offset`, without its end.
    pub fn line_range(&self, offset: usize) -> Range<usize> {
        let start = self.text[..offset]
            .rfind(['\n', '\r'])
            .map_or(0, |at| at + 1);
        let end = self.text[offset..]
            .find(['\n', '\r'])
            .map_or(self.text.len(), |length| offset + length);
        start..end
    }

    /// Where the line after the one at `offset` starts, and whether that one has a line end.
    pub fn next_line(&self, offset: usize) -> (usize, bool) {
        let end = self.line_range(offset).end;
        let rest = &self.text[end..];
        if rest.starts_with("\r\n") {
            (end + 2, true)
        } else {
            (end + usize::from(!rest.is_empty()), !rest.is_empty())
        }
    }

    /// The leading whitespace of the line at `offset`.
    pub fn indentation_at(&self, offset: usize) -> &str {
        let line = self.line_at(offset);
        &line[..line.len() - line.trim_start_matches([' ', '\t', '\x0c']).len()]
    }

    /// Whether `offset` is inside a comment.
    pub fn in_comment(&self, offset: usize) -> bool {
        self.comments
            .iter()
            .any(|span| span.range().contains(&offset))
    }
}

fn first_newline(text: &str) -> Option<Newline> {
    let at = text.find(['\n', '\r'])?;
    Some(match &text.as_bytes()[at..] {
        [b'\r', b'\n', ..] => Newline::CrLf,
        [b'\r', ..] => Newline::Cr,
        _ => Newline::Lf,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn style_is_taken_from_the_file_at_hand() {
        let source = Source::parse("a.py", b"\xef\xbb\xbfif x:\r\n\ty = 1\r\n").unwrap();
        assert_eq!(source.newline(), Newline::CrLf);
        assert_eq!(source.indent(), "\t");
        assert_eq!(
            source.bytes_of(source.text()),
            b"\xef\xbb\xbfif x:\r\n\ty = 1\r\n"
        );
        assert_eq!(source.line_number(source.text().find('y').unwrap()), 2);
    }

    #[test]
    fn broken_python_is_refused_with_a_caret() {
        let error = Source::parse("a.py", b"if x:\ny = 1\n").unwrap_err();
        insta::assert_snapshot!(error, @"
        not valid Python
         --> a.py:2:1
          |
        2 | y = 1
          | ^ Expected an indented block after `if` statement
          |
          = note: the file must parse before it is read or edited
        ");
    }

    #[test]
    fn bytes_that_are_not_utf_8_are_refused_with_their_place() {
        let error = Source::parse("a.py", b"x = '\xff'\n").unwrap_err();
        assert_eq!(error.to_string(), "`a.py` is not UTF-8 at byte 5");
    }

    #[test]
    fn a_file_of_brackets_is_refused_before_it_is_parsed() {
        let error = Source::parse("a.py", "(".repeat(100_000).as_bytes()).unwrap_err();
        insta::assert_snapshot!(error, @"
        brackets nest too deep
         --> a.py:1:201
          |
        1 | ...((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((...
          |                                                                  ^ here
          |
          = note: code that a person wrote; this could exhaust the parser
        ");
    }
}
