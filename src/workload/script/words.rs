//! Expansion of words: quotes, variables, arrays, defaults, tildes. What needs a command to run stays unknown.

use brush_parser::ParserOptions;
use brush_parser::ast::{Command, Word as Written};
use brush_parser::word::{
    BraceExpressionOrText, Parameter, ParameterExpr, ParameterTestType, SpecialParameter,
    TildeExpr, WordPiece, parse, parse_brace_expansions,
};
use camino::Utf8Path;

use super::Word;
use super::shell::{Shell, Value, clean, reason};

/// One word while it is put together.
#[derive(Default)]
struct Field {
    text: String,
    /// The first reason why it is not known.
    why: Option<String>,
    /// Whether it is a word although it is empty: it stood in quotes.
    is_there: bool,
}

/// The words that one written word becomes.
#[derive(Default)]
struct Fields {
    done: Vec<Field>,
    open: Field,
}

impl Fields {
    fn push(&mut self, text: &str) {
        self.open.text.push_str(text);
        self.open.is_there |= !text.is_empty();
    }

    fn unknown(&mut self, why: impl Into<String>) {
        self.open.is_there = true;
        self.open.why.get_or_insert(why.into());
    }

    fn cut(&mut self) {
        let field = std::mem::take(&mut self.open);
        if field.is_there {
            self.done.push(field);
        }
    }

    /// The value of an unquoted expansion: cut at blanks; a pattern in it stands for file names.
    fn split(&mut self, word: &Word) {
        match word {
            Word::Known(text) => {
                if is_pattern(text) {
                    self.unknown("a pattern of file names");
                }
                if text.starts_with([' ', '\t', '\n']) {
                    self.cut();
                }
                for (index, part) in text.split_ascii_whitespace().enumerate() {
                    if index > 0 {
                        self.cut();
                    }
                    self.push(part);
                }
                if text.len() > 1 && text.ends_with([' ', '\t', '\n']) {
                    self.cut();
                }
            }
            Word::Unknown { why, .. } => self.unknown(why.clone()),
        }
    }

    /// The value of an expansion in quotes.
    fn quoted(&mut self, word: &Word) {
        self.open.is_there = true;
        match word {
            Word::Known(text) => self.push(text),
            Word::Unknown { why, .. } => self.unknown(why.clone()),
        }
    }

    /// Several words, of which the first joins what stands before and the last what follows.
    fn several(&mut self, words: &[Word]) {
        for (index, word) in words.iter().enumerate() {
            if index > 0 {
                self.cut();
            }
            self.quoted(word);
        }
    }

    fn words(mut self, written: &str) -> Vec<Word> {
        self.cut();
        let fields = self.done.into_iter();
        fields
            .map(|field| match field.why {
                None => Word::Known(field.text),
                Some(why) => Word::unknown(written, why),
            })
            .collect()
    }
}

fn options(is_assignment: bool) -> ParserOptions {
    ParserOptions {
        tilde_expansion_after_colon: is_assignment,
        ..ParserOptions::default()
    }
}

impl Shell<'_> {
    /// The words that an argument of a command expands to.
    pub(super) fn expand(&mut self, written: &Written) -> Vec<Word> {
        self.expand_text(&written.value)
    }

    fn expand_text(&mut self, text: &str) -> Vec<Word> {
        let braces = parse_brace_expansions(text, &options(false));
        let multiplies = braces.ok().flatten().is_some_and(|parts| {
            parts
                .iter()
                .any(|part| matches!(part, BraceExpressionOrText::Expr(_)))
        });
        if multiplies {
            return vec![Word::unknown(text, "a brace expansion")];
        }
        let Ok(pieces) = parse(text, &options(false)) else {
            return vec![Word::unknown(text, "a word that is not understood")];
        };
        let mut fields = Fields::default();
        for piece in &pieces {
            self.piece(&piece.piece, &mut fields, false, true);
        }
        fields.words(text)
    }

    /// The one word that a value of an assignment, or an operand of a test, stands for: it is not split.
    pub(super) fn scalar(&mut self, written: &Written, is_assignment: bool) -> Word {
        self.scalar_text(&written.value, is_assignment)
    }

    pub(super) fn scalar_text(&mut self, text: &str, is_assignment: bool) -> Word {
        let Ok(pieces) = parse(text, &options(is_assignment)) else {
            return Word::unknown(text, "a word that is not understood");
        };
        let mut fields = Fields::default();
        for piece in &pieces {
            self.piece(&piece.piece, &mut fields, false, false);
        }
        joined(&fields.words(text), text)
    }

    /// Text as it would stand in double quotes: an arithmetic expression, a default in quotes.
    pub(super) fn quoted_text(&mut self, text: &str) -> Word {
        if text.contains('"') {
            return Word::unknown(text, "quotes within quotes");
        }
        self.scalar_text(&format!("\"{text}\""), false)
    }

    fn piece(&mut self, piece: &WordPiece, fields: &mut Fields, in_quotes: bool, splits: bool) {
        match piece {
            WordPiece::Text(text) => {
                if splits && !in_quotes && is_pattern(text) {
                    fields.unknown("a pattern of file names");
                }
                fields.push(text);
            }
            WordPiece::SingleQuotedText(text) => fields.quoted(&Word::of(text)),
            WordPiece::AnsiCQuotedText(text) if !text.contains('\\') => {
                fields.quoted(&Word::of(text));
            }
            WordPiece::AnsiCQuotedText(_) => fields.unknown("an escaped string"),
            WordPiece::GettextDoubleQuotedSequence(_) => fields.unknown("a translated string"),
            WordPiece::DoubleQuotedSequence(pieces) => {
                // "$@" of nothing is no word at all; any other quotes make one.
                let alone =
                    matches!(pieces.as_slice(), [only] if self.listed(&only.piece).is_some());
                fields.open.is_there |= !alone;
                for piece in pieces {
                    self.piece(&piece.piece, fields, true, splits);
                }
            }
            WordPiece::EscapeSequence(text) => match text.strip_prefix('\\') {
                Some("\n") => {}
                Some(rest) => fields.push(rest),
                None => fields.push(text),
            },
            WordPiece::TildeExpansion(tilde) => match tilde {
                TildeExpr::Home => match self.lookup("HOME") {
                    Some(home) => fields.quoted(&home),
                    None => fields.unknown("a home folder"),
                },
                TildeExpr::WorkingDir => fields.quoted(&self.state.folder.clone()),
                _ => fields.unknown("a home folder"),
            },
            WordPiece::ParameterExpansion(expression) => {
                if let Some(words) = self.listed(piece).filter(|_| splits) {
                    if in_quotes {
                        fields.several(&words);
                    } else {
                        for (index, word) in words.iter().enumerate() {
                            if index > 0 {
                                fields.cut();
                            }
                            fields.split(word);
                        }
                    }
                    return;
                }
                let word = self.parameter(expression, in_quotes);
                self.value_of(&word, fields, in_quotes || !splits);
            }
            WordPiece::CommandSubstitution(text) => {
                let word = self.substituted(text);
                self.value_of(&word, fields, in_quotes || !splits);
            }
            WordPiece::BackquotedCommandSubstitution(text) => {
                fields.unknown(format!("the output of `{text}`"));
            }
            WordPiece::ArithmeticExpression(expression) => match self.arithmetic(&expression.value)
            {
                Some(value) => fields.push(&value.to_string()),
                None => fields.unknown(format!("the arithmetic `{}`", expression.value)),
            },
        }
    }

    fn value_of(&self, word: &Word, fields: &mut Fields, whole: bool) {
        if whole {
            fields.quoted(word);
        } else if self.state.variables.contains_key("IFS") {
            fields.unknown("`IFS`, which the script sets");
        } else {
            fields.split(word);
        }
    }

    /// `$@` and `${ARGS[@]}` as separate words; in quotes `$*` and `${ARGS[*]}` are one, which is not followed.
    fn listed(&self, piece: &WordPiece) -> Option<Vec<Word>> {
        let WordPiece::ParameterExpansion(ParameterExpr::Parameter {
            parameter,
            indirect: false,
        }) = piece
        else {
            return None;
        };
        match parameter {
            Parameter::Special(SpecialParameter::AllPositionalParameters {
                concatenate: false,
            }) => {
                let unknown = || vec![Word::unknown("$@", "the arguments of the script")];
                Some(self.state.arguments.clone().unwrap_or_else(unknown))
            }
            Parameter::NamedWithAllIndices {
                name,
                concatenate: false,
            } => match self
                .state
                .variables
                .get(name)
                .map(|variable| &variable.value)
            {
                Some(Value::List(words)) => Some(words.clone()),
                Some(Value::Scalar(word)) => Some(vec![word.clone()]),
                None => Some(vec![Word::unknown(
                    &format!("${{{name}[@]}}"),
                    format!("the array `{name}`, which nothing sets"),
                )]),
            },
            _ => None,
        }
    }

    /// A parameter's value: `Ok(None)` where it is known to be unset, an error with the reason where nothing is known.
    fn parameter_value(&self, parameter: &Parameter) -> Result<Option<Word>, Word> {
        let written = parameter.to_string();
        match parameter {
            Parameter::Positional(0) | Parameter::Special(SpecialParameter::ShellName) => {
                Ok(Some(Word::of(self.file.as_str())))
            }
            Parameter::Positional(position) => match &self.state.arguments {
                Some(arguments) => Ok(arguments.get(*position as usize - 1).cloned()),
                None => Err(Word::unknown(
                    &written,
                    format!("argument {position} of the script"),
                )),
            },
            Parameter::Special(SpecialParameter::PositionalParameterCount) => {
                match &self.state.arguments {
                    Some(arguments) => Ok(Some(Word::of(arguments.len().to_string()))),
                    None => Err(Word::unknown("$#", "the arguments of the script")),
                }
            }
            Parameter::Special(_) => Err(Word::unknown(
                &written,
                format!("`{written}`, which only bash knows"),
            )),
            Parameter::Named(name) if name == "BASH_SOURCE" => {
                Ok(Some(Word::of(self.file.as_str())))
            }
            Parameter::Named(name) => Ok(self.lookup(name)),
            Parameter::NamedWithIndex { name, index } if name == "BASH_SOURCE" && index == "0" => {
                Ok(Some(Word::of(self.file.as_str())))
            }
            Parameter::NamedWithIndex { name, index } => {
                let variable = self.state.variables.get(name);
                let Some(Value::List(list)) = variable.map(|variable| &variable.value) else {
                    return Err(Word::unknown(&written, format!("the array `{name}`")));
                };
                match index.parse::<usize>() {
                    Ok(index) => Ok(list.get(index).cloned()),
                    Err(_) => Err(Word::unknown(&written, format!("an element of `{name}`"))),
                }
            }
            Parameter::NamedWithAllIndices { name, .. } => Err(Word::unknown(
                &written,
                format!("the array `{name}` as one word"),
            )),
        }
    }

    /// `${NAME}`, `${NAME:-default}` and their like; other operators are not evaluated.
    fn parameter(&mut self, expression: &ParameterExpr, in_quotes: bool) -> Word {
        let (parameter, test, operand) = match expression {
            ParameterExpr::Parameter {
                parameter,
                indirect: false,
            }
            | ParameterExpr::IndicateErrorIfNullOrUnset {
                parameter,
                indirect: false,
                ..
            } => {
                return match self.parameter_value(parameter) {
                    Ok(Some(word)) | Err(word) => word,
                    // Whoever starts the script may set it.
                    Ok(None) => {
                        let written = parameter.to_string();
                        let name = written.trim_matches(['$', '{', '}']).to_owned();
                        Word::unknown(
                            &written,
                            format!("the variable `{name}`, which nothing sets"),
                        )
                    }
                };
            }
            ParameterExpr::UseDefaultValues {
                parameter,
                indirect: false,
                test_type,
                default_value: operand,
            }
            | ParameterExpr::AssignDefaultValues {
                parameter,
                indirect: false,
                test_type,
                default_value: operand,
            }
            | ParameterExpr::UseAlternativeValue {
                parameter,
                indirect: false,
                test_type,
                alternative_value: operand,
            } => (parameter, test_type, operand.clone().unwrap_or_default()),
            _ => return Word::unknown("${…}", "an expansion that is not evaluated"),
        };
        let value = match self.parameter_value(parameter) {
            Ok(value) => value,
            Err(unknown) => return unknown,
        };
        let is_filled = match (&value, test) {
            (None, _) => false,
            (Some(Word::Known(text)), ParameterTestType::UnsetOrNull) => !text.is_empty(),
            (Some(Word::Known(_)), ParameterTestType::Unset) => true,
            // It may be empty.
            (Some(Word::Unknown { .. }), _) => return value.expect("it was just seen"),
        };
        let is_alternative = matches!(expression, ParameterExpr::UseAlternativeValue { .. });
        if is_filled != is_alternative {
            return value.unwrap_or_else(|| Word::of(""));
        }
        let default = if in_quotes {
            self.quoted_text(&operand)
        } else if operand.contains(['"', '\'']) && operand.contains([' ', '\t']) {
            Word::unknown(&operand, "quotes within a default")
        } else {
            self.scalar_text(&operand, false)
        };
        if let (ParameterExpr::AssignDefaultValues { .. }, Parameter::Named(name)) =
            (expression, parameter)
        {
            self.set(name, Value::Scalar(default.clone()), false);
        }
        default
    }

    /// The few substitutions that only say where something is.
    fn substituted(&mut self, text: &str) -> Word {
        self.location(text).unwrap_or_else(|| {
            Word::unknown(&format!("$({text})"), format!("the output of `$({text})`"))
        })
    }

    fn location(&mut self, text: &str) -> Option<Word> {
        let options = ParserOptions::default();
        let program = brush_parser::Parser::new(text.as_bytes(), &options)
            .parse_program()
            .ok()?;
        let [list] = program.complete_commands.as_slice() else {
            return None;
        };
        let [item] = list.0.as_slice() else {
            return None;
        };
        let first = self.words_of(item.0.first.seq.as_slice())?;
        let texts: Vec<&str> = first.iter().map(Word::known).collect::<Option<_>>()?;
        if let ["cd", options @ .., target] = texts.as_slice() {
            let [brush_parser::ast::AndOr::And(then)] = item.0.additional.as_slice() else {
                return None;
            };
            let then = self.words_of(then.seq.as_slice())?;
            let then: Vec<&str> = then.iter().map(Word::known).collect::<Option<_>>()?;
            let plain = options.iter().all(|option| *option == "--");
            return (plain && then == ["pwd"] && *target != "-")
                .then(|| self.below(&Word::of(*target)))
                .filter(|word| word.known().is_some());
        }
        if !item.0.additional.is_empty() {
            return None;
        }
        match texts.as_slice() {
            ["pwd"] => Some(self.state.folder.clone()),
            ["dirname", path] => {
                let parent = Utf8Path::new(path).parent()?;
                let here = if parent.as_str().is_empty() {
                    "."
                } else {
                    parent.as_str()
                };
                Some(Word::of(here))
            }
            // Links on the way would make another path of it: taken only for the script itself.
            ["realpath", path] | ["readlink" | "realpath", "-f" | "-e", path]
                if *path == self.file.as_str() && self.surroundings.path_is_real =>
            {
                Some(Word::of(clean(Utf8Path::new(path))))
            }
            _ => None,
        }
    }

    /// The words of one simple command without redirections or assignments.
    fn words_of(&mut self, commands: &[Command]) -> Option<Vec<Word>> {
        use brush_parser::ast::CommandPrefixOrSuffixItem::Word as Argument;
        let [Command::Simple(command)] = commands else {
            return None;
        };
        if command.prefix.is_some() {
            return None;
        }
        let mut words = self.expand(command.word_or_name.as_ref()?);
        for item in command.suffix.iter().flat_map(|suffix| &suffix.0) {
            match item {
                Argument(word) => words.extend(self.expand(word)),
                // `2> /dev/null`
                brush_parser::ast::CommandPrefixOrSuffixItem::IoRedirect(_) => {}
                _ => return None,
            }
        }
        Some(words)
    }
}

/// Whether bash looks for files of this name: a bracket that is not closed is only a bracket, as in `[ -e x ]`.
fn is_pattern(text: &str) -> bool {
    let brackets = text
        .find('[')
        .is_some_and(|open| text[open..].contains(']'));
    brackets || text.contains(['*', '?'])
}

/// One word of several, as an assignment makes it.
fn joined(words: &[Word], written: &str) -> Word {
    let mut text = Vec::new();
    for word in words {
        match word {
            Word::Known(part) => text.push(part.as_str()),
            Word::Unknown { .. } => return Word::unknown(written, reason(word)),
        }
    }
    Word::of(text.join(" "))
}
