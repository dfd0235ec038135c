//! Expansion of words: quotes, variables, arrays, defaults, tildes. What depends on running a command stays unknown.

use brush_parser::ParserOptions;
use brush_parser::word::{
    Parameter, ParameterExpr as Expr, ParameterTestType, SpecialParameter as Special, TildeExpr,
    WordPiece, parse,
};

use super::walk::{Shell, Value};
use super::{Word, names_benchmark};
use crate::workload::container;

/// One word under construction.
#[derive(Default)]
struct Field {
    text: String,
    /// The first reason why it is unknown.
    why: Option<String>,
    /// Whether it is a word even if it is empty, because it was quoted.
    is_there: bool,
}

impl Field {
    fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.is_there |= !text.is_empty();
    }

    fn unknown(&mut self, why: &str) {
        self.is_there = true;
        self.why.get_or_insert_with(|| why.to_owned());
    }

    fn word(self, written: &str) -> Word {
        match self.why {
            None => Word::Known(self.text),
            Some(why) => Word::unknown(written, why),
        }
    }
}

/// The words that one written word expands to.
#[derive(Default)]
struct Fields {
    done: Vec<Field>,
    open: Field,
    /// Whether expansions outside quotes are split at blanks.
    splits: bool,
}

impl Fields {
    fn cut(&mut self) {
        let field = std::mem::take(&mut self.open);
        if field.is_there {
            self.done.push(field);
        }
    }

    /// Adds the value of an expansion: outside quotes it is split at blanks, and a pattern in it expands to file
    /// names.
    fn value(&mut self, word: &Word, in_quotes: bool) {
        match word {
            Word::Unknown { why, .. } => self.open.unknown(why),
            Word::Known(text) if in_quotes || !self.splits => {
                self.open.is_there = true;
                self.open.push(text);
            }
            Word::Known(text) => {
                if is_pattern(text) {
                    self.open.unknown("a pattern of file names");
                }
                for (index, part) in text.split([' ', '\t', '\n']).enumerate() {
                    if index > 0 {
                        self.cut();
                    }
                    self.open.push(part);
                }
            }
        }
    }
}

impl Shell<'_> {
    /// The words that an argument of a command expands to.
    pub(super) fn expand(&mut self, text: &str) -> Vec<Word> {
        let mut fields = self.fields(text, true, false);
        fields.cut();
        let words = fields.done.into_iter();
        words.map(|field| field.word(text)).collect()
    }

    /// The single word that the value of an assignment, or an operand of a test, expands to: it is not split.
    pub(super) fn scalar(&mut self, text: &str, is_assignment: bool) -> Word {
        self.fields(text, false, is_assignment).open.word(text)
    }

    /// Expands text as in double quotes: an arithmetic expression, a quoted default.
    pub(super) fn quoted_text(&mut self, text: &str) -> Word {
        if text.contains('"') {
            return Word::unknown(text, "quotes within quotes");
        }
        self.scalar(&format!("\"{text}\""), false)
    }

    fn fields(&mut self, text: &str, splits: bool, is_assignment: bool) -> Fields {
        let mut fields = Fields {
            splits,
            ..Fields::default()
        };
        let options = ParserOptions {
            tilde_expansion_after_colon: is_assignment,
            ..ParserOptions::default()
        };
        match parse(text, &options) {
            Ok(pieces) => pieces
                .iter()
                .for_each(|piece| self.piece(&piece.piece, &mut fields, false)),
            Err(_) => fields.open.unknown("a word that is not understood"),
        }
        fields
    }

    fn piece(&mut self, piece: &WordPiece, fields: &mut Fields, in_quotes: bool) {
        match piece {
            WordPiece::Text(text) => {
                if fields.splits && !in_quotes && (is_pattern(text) || text.contains('{')) {
                    fields.open.unknown("a pattern of file names, or braces");
                }
                fields.open.push(text);
            }
            WordPiece::SingleQuotedText(text) => fields.value(&Word::of(text), true),
            WordPiece::DoubleQuotedSequence(pieces) => {
                // "$@" without arguments is no word at all; any other quotes make one.
                let is_list =
                    matches!(pieces.as_slice(), [only] if self.listed(&only.piece).is_some());
                fields.open.is_there |= !is_list;
                for piece in pieces {
                    self.piece(&piece.piece, fields, true);
                }
            }
            WordPiece::EscapeSequence(text) => match text.strip_prefix('\\') {
                Some("\n") => {}
                rest => fields.open.push(rest.unwrap_or(text)),
            },
            WordPiece::TildeExpansion(tilde) => match self.lookup("HOME") {
                Some(home) if matches!(tilde, TildeExpr::Home) => fields.value(&home, true),
                _ => fields.open.unknown("a home folder"),
            },
            WordPiece::ParameterExpansion(expression) => {
                let listed = self.listed(piece).filter(|_| fields.splits);
                let words = listed.unwrap_or_else(|| vec![self.parameter(expression, in_quotes)]);
                for (index, word) in words.iter().enumerate() {
                    if index > 0 {
                        fields.cut();
                    }
                    fields.value(word, in_quotes);
                }
            }
            WordPiece::CommandSubstitution(text)
            | WordPiece::BackquotedCommandSubstitution(text) => {
                fields.value(&self.substituted(text), in_quotes);
            }
            WordPiece::ArithmeticExpression(expression) => {
                match self.arithmetic(&expression.value) {
                    Some(value) => fields.open.push(&value.to_string()),
                    None => fields
                        .open
                        .unknown(&format!("the arithmetic `{}`", expression.value)),
                }
            }
            WordPiece::AnsiCQuotedText(_) | WordPiece::GettextDoubleQuotedSequence(_) => {
                fields.open.unknown("an escaped or translated string");
            }
        }
    }

    /// `$@` and `${ARGS[@]}` as separate words; `$*` and `${ARGS[*]}` are not followed.
    fn listed(&self, piece: &WordPiece) -> Option<Vec<Word>> {
        let WordPiece::ParameterExpansion(Expr::Parameter {
            parameter,
            indirect: false,
        }) = piece
        else {
            return None;
        };
        match parameter {
            Parameter::Special(Special::AllPositionalParameters { concatenate: false }) => {
                Some(self.arguments())
            }
            Parameter::NamedWithAllIndices {
                name,
                concatenate: false,
            } => Some(match self.state.variables.get(name) {
                Some(variable) => variable.value.words().to_vec(),
                None => vec![Word::unknown(
                    "",
                    format!("the array `{name}`, which nothing sets"),
                )],
            }),
            _ => None,
        }
    }

    /// The value of a variable of the script, else of the environment; for an array, its first element.
    pub(super) fn lookup(&self, name: &str) -> Option<Word> {
        match self.state.variables.get(name) {
            _ if is_of_bash(name) => {
                let why = format!("`{name}`, which only bash knows");
                Some(Word::unknown(&format!("${name}"), why))
            }
            Some(variable) => variable.value.words().first().cloned(),
            None if self.state.unset.contains(name) => None,
            None if name == "PWD" => Some(self.state.folder.clone()),
            None => (self.surroundings.variable)(name).map(Word::Known),
        }
    }

    /// A parameter's value: `None` where it is known to be unset.
    fn value(&self, parameter: &Parameter) -> Option<Word> {
        let unknown = |why: String| Some(Word::unknown(&parameter.to_string(), why));
        match (parameter, &self.surroundings.arguments) {
            (Parameter::Named(name), _) => self.lookup(name),
            (Parameter::Positional(at @ 1..), Some(arguments)) => {
                arguments.get(*at as usize - 1).map(Word::of)
            }
            (Parameter::Positional(at @ 1..), None) => {
                unknown(format!("argument {at} of the script"))
            }
            _ => unknown(format!("`{parameter}`, which only bash knows")),
        }
    }

    /// `${NAME}`, `${NAME:-default}`, `${NAME:=default}`; other operators are not evaluated.
    fn parameter(&mut self, expression: &Expr, in_quotes: bool) -> Word {
        let (parameter, default) = match expression {
            Expr::Parameter {
                parameter,
                indirect: false,
            } => (parameter, None),
            Expr::UseDefaultValues {
                parameter,
                indirect: false,
                test_type,
                default_value: default,
            }
            | Expr::AssignDefaultValues {
                parameter,
                indirect: false,
                test_type,
                default_value: default,
            } => (parameter, Some((test_type, default.as_deref()))),
            _ => return Word::unknown("${…}", "an expansion that is not evaluated"),
        };
        let (_, default) = match (self.value(parameter), default) {
            (None, Some(default)) => default,
            (Some(Word::Known(empty)), Some(default @ (ParameterTestType::UnsetOrNull, _)))
                if empty.is_empty() =>
            {
                default
            }
            (Some(value), _) => return value,
            // The caller of the script may set it.
            (None, None) => {
                let written = parameter.to_string();
                let name = written.trim_matches(['$', '{', '}']);
                let why = format!("the variable `{name}`, which nothing sets");
                return Word::unknown(&written, why);
            }
        };
        let default = default.unwrap_or_default();
        let default = if in_quotes {
            self.quoted_text(default)
        } else if default.contains(['"', '\'']) && default.contains([' ', '\t']) {
            Word::unknown(default, "quotes within a default")
        } else {
            self.scalar(default, false)
        };
        if let (Expr::AssignDefaultValues { .. }, Parameter::Named(name)) = (expression, parameter)
        {
            self.set(name, Value::Scalar(default.clone()), false);
        }
        default
    }

    /// The output of a command: known for the few idioms by which a script finds its own folder, as long as it has
    /// not changed the working directory.
    fn substituted(&mut self, written: &str) -> Word {
        if container::names_sglang(written) || names_benchmark(written) {
            self.only_running("starts something for what it prints");
        }
        let text = written.replace("${BASH_SOURCE[0]}", "$0").replace('"', "");
        let folder = self.file.parent().map_or("", |folder| folder.as_str());
        let is_there = self.state.folder.known() == Some(self.surroundings.folder.as_str());
        match text.trim() {
            "pwd" => self.state.folder.clone(),
            "dirname $0" | "cd $(dirname $0) && pwd" if is_there && !folder.contains(' ') => {
                self.below(&Word::of(folder))
            }
            _ => Word::unknown("$(…)", format!("the output of `$({written})`")),
        }
    }
}

/// Whether bash itself sets a variable, whatever the environment (bash 5).
fn is_of_bash(name: &str) -> bool {
    let names = "EPOCHSECONDS EUID HOSTNAME HOSTTYPE IFS LINENO MACHTYPE OLDPWD OSTYPE PPID RANDOM SECONDS SHLVL UID";
    name.starts_with("BASH") || names.split(' ').any(|own| own == name)
}

/// Whether bash expands this to file names: a bracket that is not closed is only a bracket, as in `[ -e x ]`.
fn is_pattern(text: &str) -> bool {
    let open = text.find('[');
    let brackets = open.is_some_and(|open| text[open..].contains(']'));
    brackets || text.contains(['*', '?'])
}
