//! Expansion of words: quotes, variables, arrays, defaults, tildes. What needs a command to run stays unknown.

use camino::Utf8Path;
use tree_sitter::Node;

use super::Word;
use super::shell::{Shell, Value, clean};

impl Shell<'_> {
    /// The words that an argument of a command expands to; an unquoted variable splits at blanks.
    pub(super) fn expand(&self, node: Node<'_>, text: &str) -> Vec<Word> {
        if let Some(why) = multiplies(&bare(node, text)) {
            return vec![Word::unknown(&text[node.byte_range()], why)];
        }
        match node.kind() {
            "simple_expansion" | "expansion" => match self.list(node, text) {
                Some(words) => words,
                None if self.value("IFS").is_some() => {
                    let written = &text[node.byte_range()];
                    vec![Word::unknown(written, "`IFS`, which the script sets")]
                }
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
            _ => match self.tilde(written) {
                Some(text) => Word::Known(unescape(&text, Quoted::No)),
                None => Word::unknown(written, "a home folder"),
            },
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
        let set = match name.parse::<usize>() {
            Ok(position) => {
                let Some(arguments) = self.positional() else {
                    let why = format!("argument {position} of the script (`{written}`)");
                    return Word::unknown(written, why);
                };
                arguments.get(position.wrapping_sub(1)).cloned()
            }
            Err(_) => self.lookup(name),
        };
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
            .strip_prefix("$(")
            .and_then(|inner| inner.strip_suffix(')'))
            .unwrap_or_else(|| written.trim_matches('`'));
        let plain: String = command
            .chars()
            .filter(|character| !"\"'{}".contains(*character))
            .collect();
        let own_folder = |below: &str| {
            let folder = self.script().parent().unwrap_or(Utf8Path::new("."));
            Word::Known(clean(&folder.join(below.trim_start_matches('/'))).to_string())
        };
        match plain.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["pwd"] => self.folder().clone(),
            ["dirname", script] if is_own(script) => own_folder(""),
            ["dirname", real @ .., script] if is_real(real) && is_own_in_brackets(script) => {
                own_folder("")
            }
            ["cd", target @ .., "&&", "pwd"] | ["cd", target @ .., "&&", "pwd", "-P"] => {
                let target = target.strip_prefix(&["--"]).unwrap_or(target);
                let below = match target {
                    ["$(dirname", script] => script
                        .split_once(')')
                        .filter(|(script, below)| {
                            is_own(script) && (below.is_empty() || below.starts_with('/'))
                        })
                        .map(|(_, below)| below),
                    _ => None,
                };
                match below {
                    Some(below) if !below.contains(['$', '`', '*', '?']) => own_folder(below),
                    _ => unknown_output(written),
                }
            }
            ["realpath" | "readlink", options @ .., script]
                if is_own(script) && options.iter().all(|option| RESOLVES.contains(option)) =>
            {
                Word::Known(self.script().to_string())
            }
            _ => unknown_output(written),
        }
    }

    /// A word with its home folder in place; `None` where that is somebody else's, or not known.
    fn tilde(&self, written: &str) -> Option<String> {
        match written.strip_prefix('~') {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => match self.lookup("HOME") {
                Some(Word::Known(home)) => Some(format!("{home}{rest}")),
                _ => None,
            },
            Some(_) => None,
            None => Some(written.to_owned()),
        }
    }
}

/// Options of `readlink` and `realpath` that leave the file the one it is.
const RESOLVES: [&str; 4] = ["-f", "-e", "-m", "--"];

/// `$0` and its like.
fn is_own(word: &str) -> bool {
    matches!(word, "$0" | "$BASH_SOURCE[0]" | "$BASH_SOURCE")
}

/// `$0)`: the end of `$(readlink -f $0)`.
fn is_own_in_brackets(word: &str) -> bool {
    word.strip_suffix(')').is_some_and(is_own)
}

/// `$(readlink -f`, taken apart.
fn is_real(words: &[&str]) -> bool {
    matches!(words, ["$(readlink" | "$(realpath", options @ ..]
        if options.iter().all(|option| RESOLVES.contains(option)))
}

/// What of a word stands in no quotes, expansion or escape: where `*` and `{a,b}` have their meanings.
fn bare(node: Node<'_>, text: &str) -> String {
    let own = match node.kind() {
        "word" | "brace_expression" | "extglob_pattern" => text[node.byte_range()].to_owned(),
        "concatenation" | "command_name" => {
            let (mut at, mut own) = (node.start_byte(), String::new());
            let mut cursor = node.walk();
            for child in node.named_children(&mut cursor) {
                own.push_str(&text[at..child.start_byte().max(at)]);
                own.push_str(&bare(child, text));
                at = child.end_byte();
            }
            own.push_str(&text[at..node.end_byte()]);
            return own;
        }
        _ => return String::new(),
    };
    let mut characters = own.chars();
    let mut plain = String::new();
    while let Some(character) = characters.next() {
        if character == '\\' {
            characters.next();
        } else {
            plain.push(character);
        }
    }
    plain
}

/// Why an unquoted text may become other words: bash looks for files, or writes it out several times.
fn multiplies(bare: &str) -> Option<&'static str> {
    if bare.contains(['*', '?']) {
        return Some("a pattern of file names");
    }
    let (_, inner) = bare.split_once('{')?;
    let (inner, _) = inner.split_once('}')?;
    (inner.contains(',') || inner.contains("..")).then_some("a brace expansion")
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
            .map(|part| match multiplies(part) {
                // Braces in a value are only braces.
                Some(why) if part.contains(['*', '?']) => Word::unknown(part, why),
                _ => Word::Known(part.to_owned()),
            })
            .collect(),
        unknown @ Word::Unknown { .. } => vec![unknown],
    }
}
