//! Where lines can be inserted into a file: an insertion point has its indentation and line ending, and does not
//! split a statement, a docstring, a comment or a continuation.

use super::edit::Edit;
use super::refusal::Refusal;
use super::source::{Newline, Source};
use super::syntax::{ExprKind, Function, Span, Stmt, StmtKind};

/// A place between two lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InsertionPoint {
    offset: usize,
    indent: String,
    step: String,
    newline: Newline,
    /// The text before `offset` has no line end yet (the last line of a file without one).
    unended: bool,
}

impl InsertionPoint {
    /// The line before `stmt`, at its indentation.
    ///
    /// ```text
    /// x = 1
    ///         <- here
    /// y = 2   # stmt
    /// ```
    pub fn before(source: &Source, stmt: &Stmt) -> Result<Self, Refusal> {
        let line = source.line_range(stmt.span.start);
        if !source.text()[line.start..stmt.span.start].trim().is_empty() {
            return Err(shares_a_line(source, stmt.span));
        }
        refuse_continuation(source, line.start)?;
        Ok(Self {
            offset: line.start,
            indent: source.indentation_at(stmt.span.start).to_owned(),
            step: source.indent().to_owned(),
            newline: line_end(source, line.start),
            unended: false,
        })
    }

    /// The line after `stmt`, at its indentation.
    ///
    /// ```text
    /// x = (
    ///     1
    /// )       # the end of stmt
    ///         <- here
    /// y = 2
    /// ```
    pub fn after(source: &Source, stmt: &Stmt) -> Result<Self, Refusal> {
        let line = source.line_range(stmt.span.start);
        if !source.text()[line.start..stmt.span.start].trim().is_empty() {
            return Err(shares_a_line(source, stmt.span));
        }
        let tail = &source.text()[stmt.span.end..source.line_range(stmt.span.end).end];
        let tail = tail.trim();
        if !(tail.is_empty() || tail.starts_with('#')) {
            return Err(shares_a_line(source, stmt.span));
        }
        let (offset, ended) = source.next_line(stmt.span.end);
        Ok(Self {
            offset,
            indent: source.indentation_at(stmt.span.start).to_owned(),
            step: source.indent().to_owned(),
            newline: line_end(source, stmt.span.start),
            unended: !ended,
        })
    }

    /// The first line of a function's body, after its docstring.
    ///
    /// ```text
    /// def f(x):
    ///     """What f does."""
    ///         <- here
    ///     return x
    /// ```
    pub fn top_of(source: &Source, function: &Function) -> Result<Self, Refusal> {
        let is_docstring = |stmt: &Stmt| matches!(&stmt.kind, StmtKind::Expr(expr) if matches!(expr.kind, ExprKind::Str(_)));
        match function.body.as_slice() {
            [docstring, ..] if is_docstring(docstring) => Self::after(source, docstring),
            [first, ..] => Self::before(source, first),
            [] => Err(shares_a_line(source, function.name_span)),
        }
    }

    /// The edit that inserts `lines` here. `lines` uses `\n` and four spaces for each level; it is converted to the
    /// indentation of this place and to the file's own indentation width and line ends.
    pub fn insert(&self, lines: &str) -> Edit {
        let mut text = String::new();
        if self.unended {
            text.push_str(self.newline.as_str());
        }
        for line in lines.lines() {
            let bare = line.trim_start_matches(' ');
            if !bare.is_empty() {
                text.push_str(&self.indent);
                for _ in 0..(line.len() - bare.len()) / 4 {
                    text.push_str(&self.step);
                }
                // Continuation lines inside brackets may be indented by any amount.
                text.push_str(&" ".repeat((line.len() - bare.len()) % 4));
                text.push_str(bare);
            }
            text.push_str(self.newline.as_str());
        }
        if self.unended {
            // The file had no line end and gets none.
            text.truncate(text.len() - self.newline.as_str().len());
        }
        Edit::insertion(self.offset, text)
    }
}

/// The line end of the line at `offset`: a file may mix them, and an insertion should match its neighbours.
fn line_end(source: &Source, offset: usize) -> Newline {
    let rest = &source.text()[source.line_range(offset).end..];
    if rest.starts_with("\r\n") {
        Newline::CrLf
    } else if rest.starts_with('\r') {
        Newline::Cr
    } else if rest.starts_with('\n') {
        Newline::Lf
    } else {
        source.newline()
    }
}

fn shares_a_line(source: &Source, span: Span) -> Refusal {
    Refusal::new(
        source,
        span,
        "no room for a line here",
        "this statement shares its line with another",
        "a statement on lines of its own, as every SGLang release has it",
    )
}

fn refuse_continuation(source: &Source, line_start: usize) -> Result<(), Refusal> {
    let before = source.text()[..line_start].trim_end_matches(['\n', '\r']);
    if before.ends_with('\\') && !source.in_comment(before.len() - 1) {
        return Err(Refusal::new(
            source,
            Span::at(line_start),
            "no room for a line here",
            "the line before is continued with a backslash",
            "a statement that starts on a line of its own",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::edit::Patch;
    use super::super::syntax;
    use super::*;

    fn patched(text: &str, lines: &str) -> String {
        let source = Source::parse("a.py", text.as_bytes()).unwrap();
        let (_, function) = syntax::function(source.body(), "f").unwrap();
        let mut patch = Patch::default();
        patch.push(
            InsertionPoint::top_of(&source, function)
                .unwrap()
                .insert(lines),
        );
        patch.apply(&source).unwrap().text().to_owned()
    }

    #[test]
    fn lines_go_after_the_docstring_in_the_files_own_style() {
        assert_eq!(
            patched(
                "def f(\r\n\tx,\r\n):\r\n\t\"\"\"Two\r\n\tlines.\"\"\"  # note\r\n\treturn x\r\n",
                "if x:\n    g(x)\n"
            ),
            "def f(\r\n\tx,\r\n):\r\n\t\"\"\"Two\r\n\tlines.\"\"\"  # note\r\n\tif x:\r\n\t\tg(x)\r\n\treturn x\r\n"
        );
    }

    #[test]
    fn lines_go_before_the_first_statement_of_a_body_without_docstring() {
        assert_eq!(
            patched("def f(x):\n  # why\n  return x", "g(x)\n"),
            "def f(x):\n  # why\n  g(x)\n  return x"
        );
    }

    #[test]
    fn a_body_on_the_line_of_its_def_is_refused() {
        let source = Source::parse("a.py", b"def f(x): return x\n").unwrap();
        let (_, function) = syntax::function(source.body(), "f").unwrap();
        let refusal = InsertionPoint::top_of(&source, function).unwrap_err();
        insta::assert_snapshot!(refusal, @"
        no room for a line here
         --> a.py:1:11
          |
        1 | def f(x): return x
          |           ^^^^^^^^ this statement shares its line with another
          |
          = note: a statement on lines of its own, as every SGLang release has it
        ");
    }

    #[test]
    fn lines_after_the_last_statement_of_a_file_without_line_end_stay_inside_it() {
        let source = Source::parse("a.py", b"x = 1").unwrap();
        let mut patch = Patch::default();
        patch.push(
            InsertionPoint::after(&source, &source.body()[0])
                .unwrap()
                .insert("y = 2\n"),
        );
        assert_eq!(patch.apply(&source).unwrap().text(), "x = 1\ny = 2");
    }
}
