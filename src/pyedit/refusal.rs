//! A refusal that shows the lines it is about.

use std::fmt;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use camino::Utf8PathBuf;

use super::source::Source;
use super::syntax::Span;

/// Source that is not as expected: where, what was expected, and what to do.
///
/// It is displayed as a caret snippet of the lines in question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub file: Utf8PathBuf,
    /// One-based line of the first byte in question.
    pub line: usize,
    /// What is wrong, in one line.
    pub what: String,
    snippet: String,
}

impl Refusal {
    /// A refusal about `span` of `source`: `what` is wrong, `label` is shown under the caret, and `expected`
    /// describes what would have been accepted.
    pub fn new(
        source: &Source,
        span: Span,
        what: impl Into<String>,
        label: &str,
        expected: &str,
    ) -> Self {
        Self::of_text(
            source.path().clone(),
            source.text(),
            span,
            what,
            label,
            expected,
        )
    }

    pub(super) fn of_text(
        file: Utf8PathBuf,
        text: &str,
        span: Span,
        what: impl Into<String>,
        label: &str,
        expected: &str,
    ) -> Self {
        let what = what.into();
        // A caret under a whole function would print all of it, so only the first line is marked.
        let start = floor_boundary(text, span.start);
        let line_end = text[start..]
            .find(['\n', '\r'])
            .map_or(text.len(), |length| start + length);
        let end = floor_boundary(text, span.end.clamp(start, line_end.max(start)));
        let report = [Level::ERROR
            .primary_title(what.as_str())
            .element(
                Snippet::source(text).path(file.as_str()).annotation(
                    AnnotationKind::Primary
                        .span(start..end.max(start))
                        .label(label),
                ),
            )
            .element(Level::NOTE.message(expected))];
        let snippet = Renderer::plain().render(&report);
        Self {
            line: 1 + text[..start].matches('\n').count(),
            file,
            what,
            snippet,
        }
    }
}

/// The nearest character boundary at or before `offset`.
fn floor_boundary(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The renderer starts with `error: `, which duplicates the command's own prefix.
        formatter.write_str(
            self.snippet
                .strip_prefix("error: ")
                .unwrap_or(&self.snippet),
        )
    }
}

impl std::error::Error for Refusal {}
