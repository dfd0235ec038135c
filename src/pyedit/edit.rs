//! Changes to a file as data: byte ranges and their replacements.

use super::source::{Source, SourceError};
use super::syntax::Span;

/// One change: the bytes of `span` become `text`. An empty span is an insertion, an empty text a
/// deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// The bytes to replace.
    pub span: Span,
    /// The replacement.
    pub text: String,
}

impl Edit {
    /// Inserts `text` before `offset`.
    pub fn insertion(offset: usize, text: impl Into<String>) -> Self {
        Self {
            span: Span::at(offset),
            text: text.into(),
        }
    }
}

/// Why a patch cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// Two edits touch the same bytes, and no program can decide which should win.
    #[error("two edits of `{path}` overlap at bytes {}..{} and {}..{}", first.start, first.end, second.start, second.end)]
    Overlap {
        path: camino::Utf8PathBuf,
        /// The earlier edit's bytes.
        first: Span,
        /// The later edit's bytes.
        second: Span,
    },
    /// An edit lies outside the text or splits a character.
    #[error("an edit of `{path}` at bytes {}..{} does not fit the text", span.start, span.end)]
    OutOfRange {
        path: camino::Utf8PathBuf,
        span: Span,
    },
    /// The edited text is no longer valid Python.
    #[error("the edited text is refused: {0}")]
    Broken(#[source] SourceError),
}

/// A set of edits to one file, applied together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    edits: Vec<Edit>,
}

impl Patch {
    /// Adds an edit. Insertions at the same place keep the order they were added in.
    pub fn push(&mut self, edit: Edit) {
        self.edits.push(edit);
    }

    /// Whether nothing would change.
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty()
    }

    /// Applies the edits to `source` and parses the result. Bytes outside the edits are copied unchanged.
    pub fn apply(&self, source: &Source) -> Result<Source, EditError> {
        let mut edits: Vec<&Edit> = self.edits.iter().collect();
        edits.sort_by_key(|edit| (edit.span.start, edit.span.end));
        let text = source.text();
        let mut result = String::with_capacity(text.len());
        let mut copied = 0;
        let mut last = Span::at(0);
        for edit in edits {
            let fits = edit.span.start <= edit.span.end
                && edit.span.end <= text.len()
                && text.is_char_boundary(edit.span.start)
                && text.is_char_boundary(edit.span.end);
            if !fits {
                return Err(EditError::OutOfRange {
                    path: source.path().clone(),
                    span: edit.span,
                });
            }
            if edit.span.start < copied {
                return Err(EditError::Overlap {
                    path: source.path().clone(),
                    first: last,
                    second: edit.span,
                });
            }
            result.push_str(&text[copied..edit.span.start]);
            result.push_str(&edit.text);
            copied = edit.span.end;
            last = edit.span;
        }
        result.push_str(&text[copied..]);
        Source::parse(source.path().clone(), &source.bytes_of(&result)).map_err(EditError::Broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn source(text: &str) -> Source {
        Source::parse("a.py", text.as_bytes()).unwrap()
    }

    #[test]
    fn overlapping_edits_are_refused() {
        let mut patch = Patch::default();
        for (start, end, text) in [(0, 3, "b"), (2, 5, "c")] {
            let (span, text) = (Span { start, end }, text.to_owned());
            patch.push(Edit { span, text });
        }
        let error = patch.apply(&source("alpha = 1\n")).unwrap_err();
        assert!(matches!(error, EditError::Overlap { .. }), "{error}");
    }

    #[test]
    fn an_edit_that_breaks_the_file_is_refused() {
        let mut patch = Patch::default();
        patch.push(Edit::insertion(0, "  "));
        let error = patch.apply(&source("alpha = 1\n")).unwrap_err();
        assert!(matches!(error, EditError::Broken(_)), "{error}");
    }

    #[test]
    fn insertions_at_one_place_keep_their_order() {
        let mut patch = Patch::default();
        patch.push(Edit::insertion(0, "a = 1\n"));
        patch.push(Edit::insertion(0, "b = 2\n"));
        let edited = patch.apply(&source("c = 3\n")).unwrap();
        assert_eq!(edited.text(), "a = 1\nb = 2\nc = 3\n");
    }

    proptest! {
        #[test]
        fn bytes_outside_the_edits_never_change(at in 0_usize..12, names in 1_usize..4) {
            let text = "a = 1\nb = 2\nc = 3\n";
            let line = text[..at].rfind('\n').map_or(0, |index| index + 1);
            let added = "x = 0\n".repeat(names);
            let mut patch = Patch::default();
            patch.push(Edit::insertion(line, added.clone()));
            let edited = patch.apply(&source(text)).unwrap();
            prop_assert_eq!(edited.text().replacen(&added, "", 1), text);
        }
    }
}
