//! Expansion of words: quotes, variables, arrays, defaults, tildes. What needs a command to run stays unknown.

use tree_sitter::Node;

use super::Word;
use super::shell::{Shell, Value};

impl Shell<'_> {
    /// The words that an argument of a command expands to; an unquoted variable splits at blanks.
    pub(super) fn expand(&self, node: Node<'_>, text: &str) -> Vec<Word> {
        match node.kind() {
            "simple_expansion" | "expansion" => match self.list(node, text) {
                Some(words) => words,
                None => split(self.scalar(node, text)),
            },
            // "${ARGS[@]}" and "$@" alone in quotes are as many words as there are elements.
            "string" if node.named_child_count() == 1 => {
                let only = node
                    .named_child(0)
                    .filter(|child| child.byte_range().len() + 2 == node.byte_range().len());
                match only.and_then(|child| self.list(child, text)) {
                    Some(words) => words,
                    None => vec![self.scalar(node, text)],
                }
            }
            _ => vec![self.scalar(node, text)],
        }
    }

    /// The one word that `node` stands for.
    pub(super) fn scalar(&self, node: Node<'_>, text: &str) -> Word {
        let written = &text[node.byte_range()];
        match node.kind() {
            "raw_string" => Word::Known(written.trim_matches('\'').to_owned()),
            "ansi_c_string" => Word::unknown(written, "an escaped string"),
            "string" => self.joined(node, text, Quoted::Yes),
            "concatenation" | "command_name" => self.joined(node, text, Quoted::No),
            "simple_expansion" => {
                let name = written.trim_start_matches('$');
                self.variable(name, written)
            }
            "expansion" => self.braced(node, text),
            "command_substitution" => self.substituted(node, text),
            "process_substitution" => Word::unknown(written, "a process substitution"),
            "arithmetic_expansion" => Word::unknown(written, "an arithmetic expression"),
            "brace_expression" => Word::unknown(written, "a brace expansion"),
            _ => Word::Known(unescape(&self.tilde(written), Quoted::No)),
        }
    }

    /// Children and the bytes between them, in order: blanks between two expansions are no node.
    fn joined(&self, node: Node<'_>, text: &str, quoted: Quoted) -> Word {
        let (mut at, end) = match quoted {
            Quoted::Yes => (node.start_byte() + 1, node.end_byte().saturating_sub(1)),
            Quoted::No => (node.start_byte(), node.end_byte()),
        };
        let mut parts = Vec::new();
        let mut cursor = node.walk();
        for child in node.named_children(&mut cursor) {
            if child.start_byte() > at {
                parts.push(Word::Known(unescape(&text[at..child.start_byte()], quoted)));
            }
            at = child.end_byte().max(at);
            parts.push(match child.kind() {
                "string_content" => Word::Known(unescape(&text[child.byte_range()], Quoted::Yes)),
                _ => self.scalar(child, text),
            });
        }
        if at < end {
            parts.push(Word::Known(unescape(&text[at..end], quoted)));
        }
        concatenate(&text[node.byte_range()], parts)
    }

    /// `"$@"`, `${ARGS[@]}` and their like as separate words.
    fn list(&self, node: Node<'_>, text: &str) -> Option<Vec<Word>> {
        let written = &text[node.byte_range()];
        let name = written.trim_start_matches(['$', '{']).trim_end_matches('}');
        if name == "@" || name == "*" {
            return Some(self.arguments(written));
        }
        let name = name
            .strip_suffix("[@]")
            .or_else(|| name.strip_suffix("[*]"))?;
        match self.value(name) {
            Some(Value::List(words)) => Some(words.clone()),
            Some(Value::Scalar(word)) => Some(vec![word.clone()]),
            None => Some(vec![Word::unknown(written, format!("the array `{name}`"))]),
        }
    }

    /// `${NAME}`, `${NAME:-default}`, `${NAME:?…}`; other operators are not evaluated.
    fn braced(&self, node: Node<'_>, text: &str) -> Word {
        let written = &text[node.byte_range()];
        let inner = written.trim_start_matches("${").trim_end_matches('}');
        let name_end = inner
            .find(|character: char| !(character.is_ascii_alphanumeric() || character == '_'))
            .unwrap_or(inner.len());
        let (name, operator) = inner.split_at(name_end);
        if operator.is_empty() {
            return self.variable(name, written);
        }
        let set = self.lookup(name);
        let default = || {
            let mut cursor = node.walk();
            let fallback = node.named_children(&mut cursor).nth(1);
            fallback.map_or(Word::Known(String::new()), |fallback| {
                self.scalar(fallback, text)
            })
        };
        let filled = |word: &Word| !matches!(word, Word::Known(value) if value.is_empty());
        match operator {
            _ if operator.starts_with(":-") || operator.starts_with(":=") => match set {
                Some(word) if filled(&word) => word,
                _ => default(),
            },
            _ if operator.starts_with('-') || operator.starts_with('=') => {
                set.unwrap_or_else(default)
            }
            _ if operator.starts_with(":+") || operator.starts_with('+') => match set {
                Some(word) if filled(&word) => default(),
                _ => Word::Known(String::new()),
            },
            _ if operator.starts_with(":?") || operator.starts_with('?') => {
                self.variable(name, written)
            }
            _ => Word::unknown(written, format!("`{written}`, which is not evaluated")),
        }
    }

    /// A variable by name, positional parameters included.
    fn variable(&self, name: &str, written: &str) -> Word {
        if name.is_empty()
            || !name
                .chars()
                .all(|character| character.is_ascii_alphanumeric() || character == '_')
        {
            return Word::unknown(written, format!("`{written}`"));
        }
        if name == "0" {
            return Word::Known(self.script().to_string());
        }
        if let Ok(position) = name.parse::<usize>() {
            return self.argument(position, written);
        }
        self.lookup(name).unwrap_or_else(|| {
            Word::unknown(
                written,
                format!("the variable `{name}`, which nothing sets"),
            )
        })
    }

    /// The few substitutions that only say where the script is.
    fn substituted(&self, node: Node<'_>, text: &str) -> Word {
        let written = &text[node.byte_range()];
        let command = written
            .trim_start_matches("$(")
            .trim_matches('`')
            .trim_end_matches(')')
            .trim();
        let plain: String = command
            .chars()
            .filter(|character| !"\"'{}".contains(*character))
            .collect();
        let own_folder = || {
            Word::Known(
                self.script()
                    .parent()
                    .map_or(String::from("."), ToString::to_string),
            )
        };
        match plain.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["pwd"] => self.folder().clone(),
            ["dirname", "$0" | "$BASH_SOURCE[0]" | "$BASH_SOURCE"] => own_folder(),
            ["cd", rest @ .., "&&", "pwd"] | ["cd", rest @ .., "&&", "pwd", "-P"]
                if rest.join(" ").replace("-- ", "").starts_with("$(dirname") =>
            {
                let inner = rest.join(" ");
                if inner.contains("$0") || inner.contains("BASH_SOURCE") {
                    own_folder()
                } else {
                    unknown_output(written)
                }
            }
            ["realpath" | "readlink", .., "$0"] => Word::Known(self.script().to_string()),
            _ => unknown_output(written),
        }
    }

    fn tilde(&self, written: &str) -> String {
        match written.strip_prefix('~') {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => match self.lookup("HOME") {
                Some(Word::Known(home)) => format!("{home}{rest}"),
                _ => written.to_owned(),
            },
            _ => written.to_owned(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Quoted {
    Yes,
    No,
}

fn unknown_output(written: &str) -> Word {
    Word::unknown(written, format!("the output of `{written}`"))
}

/// Backslashes away: outside quotes before anything, inside only before what would be special.
fn unescape(text: &str, quoted: Quoted) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character != '\\' {
            plain.push(character);
            continue;
        }
        match characters.peek() {
            Some('\n') => {
                characters.next();
            }
            Some(next) if quoted == Quoted::No || "$`\"\\".contains(*next) => {
                plain.push(*next);
                characters.next();
            }
            _ => plain.push('\\'),
        }
    }
    plain
}

/// One word of several parts; unknown if any part is, with the first reason.
fn concatenate(written: &str, parts: Vec<Word>) -> Word {
    let mut text = String::new();
    for part in parts {
        match part {
            Word::Known(part) => text.push_str(&part),
            Word::Unknown { why, .. } => return Word::unknown(written, why),
        }
    }
    Word::Known(text)
}

/// Word splitting of an unquoted expansion.
fn split(word: Word) -> Vec<Word> {
    match word {
        Word::Known(text) => text
            .split_whitespace()
            .map(|part| Word::Known(part.to_owned()))
            .collect(),
        unknown @ Word::Unknown { .. } => vec![unknown],
    }
}
