//! The walk through a script: variables, functions, sourced files, conditions, and the commands on the way.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Path, Utf8PathBuf};
use tree_sitter::Node;

use super::command::is_name;
use super::{Facts, ScriptError, Surroundings, Word};

/// How deep functions, sourced files and scripts may nest: recursion in a launch script is a mistake.
const DEEPEST: usize = 16;

/// What a variable holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Scalar(Word),
    List(Vec<Word>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Variable {
    pub(super) value: Value,
    pub(super) exported: bool,
}

/// What a subshell gets a copy of.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) variables: BTreeMap<String, Variable>,
    pub(super) unset: BTreeSet<String>,
    pub(super) folder: Word,
    pub(super) venv: Option<Word>,
    pub(super) all_exported: bool,
}

/// A text being read.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) file: Utf8PathBuf,
    /// Positional arguments; `None`: those the user will give.
    pub(super) arguments: Option<Vec<Word>>,
    /// Lines of the file in front of the text.
    pub(super) lines_before: usize,
    /// Of a function: what its local variables hide.
    pub(super) hidden: Option<Vec<(String, Option<Variable>)>>,
}

impl Frame {
    /// A text of `file`.
    pub(super) fn of(file: Utf8PathBuf, arguments: Option<Vec<Word>>) -> Self {
        Self {
            file,
            arguments,
            lines_before: 0,
            hidden: None,
        }
    }
}

/// The interpreter of the script.
pub(super) struct Shell<'a> {
    pub(super) surroundings: &'a Surroundings<'a>,
    /// Texts being read, outermost first.
    pub(super) frames: Vec<Frame>,
    /// Bodies of functions, each with the lines in front of it.
    pub(super) functions: BTreeMap<String, (String, usize)>,
    pub(super) state: State,
    /// What decides whether the present command runs, innermost last.
    pub(super) conditions: Vec<String>,
    depth: usize,
    pub(super) facts: Facts,
}

impl<'a> Shell<'a> {
    pub(super) fn new(surroundings: &'a Surroundings<'a>, script: &Utf8Path) -> Self {
        let state = State {
            variables: BTreeMap::new(),
            unset: BTreeSet::new(),
            folder: Word::Known(surroundings.folder.to_string()),
            venv: None,
            all_exported: false,
        };
        Self {
            surroundings,
            frames: vec![Frame::of(surroundings.folder.join(script), None)],
            functions: BTreeMap::new(),
            state,
            conditions: Vec::new(),
            depth: 0,
            facts: Facts::default(),
        }
    }

    pub(super) fn into_facts(self) -> Facts {
        self.facts
    }

    /// Reads `text` as a script in the present state.
    pub(super) fn run(&mut self, text: &str) -> Result<(), ScriptError> {
        let mut parser = tree_sitter::Parser::new();
        parser.set_language(&tree_sitter_bash::LANGUAGE.into())?;
        let Some(tree) = parser.parse(text, None) else {
            return Ok(()); // only when a time limit was set, and none is
        };
        if let Some(wrong) = first_error(tree.root_node()) {
            let line = wrong.start_position().row;
            return Err(ScriptError::Syntax {
                line: line + 1,
                text: text.lines().nth(line).unwrap_or_default().trim().to_owned(),
            });
        }
        self.depth += 1;
        if self.depth <= DEEPEST {
            self.walk(tree.root_node(), text)?;
        } else {
            self.note(
                "functions and files nest too deeply; the innermost were not read".to_owned(),
            );
        }
        self.depth -= 1;
        Ok(())
    }

    pub(super) fn walk(&mut self, node: Node<'_>, text: &str) -> Result<(), ScriptError> {
        match node.kind() {
            "command" => self.command(node, text)?,
            "variable_assignment" => self.assign(node, text, false),
            "declaration_command" => self.declare(node, text),
            "unset_command" => self.unset(node, text),
            "function_definition" => self.define(node, text),
            "if_statement" => self.branch(node, text)?,
            "while_statement" | "for_statement" | "c_style_for_statement" => {
                self.repeat(node, text)?;
            }
            "case_statement" => self.choose(node, text)?,
            "list" => self.list_of(node, text)?,
            // `(( … ))` is not reckoned: what it names may be changed by it.
            "compound_statement" if text[node.byte_range()].starts_with("((") => {
                let why = format!("the arithmetic at line {}", self.line_of(node));
                self.forget_all(node, text, &why);
            }
            "subshell" | "pipeline" => {
                let before = self.state.clone();
                self.children(node, text)?;
                self.state = before;
            }
            "heredoc_redirect"
            | "file_redirect"
            | "herestring_redirect"
            | "comment"
            | "test_command" => {}
            _ => self.children(node, text)?,
        }
        Ok(())
    }

    pub(super) fn children(&mut self, node: Node<'_>, text: &str) -> Result<(), ScriptError> {
        let mut cursor = node.walk();
        let children: Vec<_> = node.named_children(&mut cursor).collect();
        children
            .into_iter()
            .try_for_each(|child| self.walk(child, text))
    }

    fn assign(&mut self, node: Node<'_>, text: &str, exported: bool) {
        let (Some(name), value) = (
            node.child_by_field_name("name"),
            node.child_by_field_name("value"),
        ) else {
            return;
        };
        let name_text = &text[name.byte_range()];
        let mut value = match value {
            None => Value::Scalar(Word::Known(String::new())),
            Some(value) if value.kind() == "array" => {
                let mut cursor = value.walk();
                let items: Vec<_> = value.named_children(&mut cursor).collect();
                Value::List(
                    items
                        .into_iter()
                        .filter(|item| item.kind() != "comment")
                        .flat_map(|item| self.expand(item, text))
                        .collect(),
                )
            }
            Some(value) => Value::Scalar(self.scalar(value, text)),
        };
        if name.kind() == "subscript" {
            let array = name_text.split('[').next().unwrap_or_default().to_owned();
            value = Value::Scalar(Word::unknown(name_text, "an element of an array"));
            return self.set(&array, value, exported);
        }
        if text[name.end_byte()..].starts_with("+=") {
            value = appended(self.value(name_text), value, name_text);
        }
        self.set(name_text, value, exported);
    }

    pub(super) fn set(&mut self, name: &str, value: Value, exported: bool) {
        let already = self
            .state
            .variables
            .get(name)
            .is_some_and(|variable| variable.exported);
        // A variable that came with the environment stays exported when it is set anew.
        let inherited = (self.surroundings.variable)(name).is_some();
        let exported = exported || already || inherited || self.state.all_exported;
        self.state.unset.remove(name);
        self.state
            .variables
            .insert(name.to_owned(), Variable { value, exported });
    }

    /// Makes a variable unknown.
    pub(super) fn forget(&mut self, name: &str, why: &str) {
        let word = Word::unknown(&format!("${name}"), why);
        self.set(name, Value::Scalar(word), false);
    }

    /// Makes every variable named below `node` unknown.
    pub(super) fn forget_all(&mut self, node: Node<'_>, text: &str, why: &str) {
        if node.kind() == "variable_name" || node.kind() == "word" {
            let name = &text[node.byte_range()];
            if is_name(name) {
                self.forget(name, why);
            }
        }
        let mut cursor = node.walk();
        let children: Vec<_> = node.named_children(&mut cursor).collect();
        for child in children {
            self.forget_all(child, text, why);
        }
    }

    /// Remembers what a local variable of the innermost function hides, to be put back when it returns.
    fn hide(&mut self, name: &str) {
        let present = self.state.variables.get(name).cloned();
        let function = self
            .frames
            .iter_mut()
            .rev()
            .find_map(|frame| frame.hidden.as_mut());
        if let Some(hidden) = function
            && !hidden.iter().any(|(other, _)| other == name)
        {
            hidden.push((name.to_owned(), present));
        }
    }

    fn declare(&mut self, node: Node<'_>, text: &str) {
        let words: Vec<_> = text[node.byte_range()].split_whitespace().take(2).collect();
        let local = matches!(words.first(), Some(&("local" | "declare" | "typeset")));
        let exports = words.first() == Some(&"export")
            || words
                .get(1)
                .is_some_and(|option| option.starts_with('-') && option.contains('x'));
        let mut cursor = node.walk();
        let children: Vec<_> = node.named_children(&mut cursor).collect();
        for child in children {
            let name = match child.kind() {
                "variable_assignment" => child.child_by_field_name("name"),
                "variable_name" => Some(child),
                _ => None,
            };
            if let Some(name) = name.filter(|_| local) {
                self.hide(&text[name.byte_range()]);
            }
            match child.kind() {
                "variable_assignment" => self.assign(child, text, exports),
                "command_substitution" => self.note(format!(
                    "line {} sets variables from the output of `{}`, which was not run",
                    self.line_of(child),
                    &text[child.byte_range()]
                )),
                "variable_name" if exports => {
                    let name = &text[child.byte_range()];
                    if let Some(variable) = self.state.variables.get_mut(name) {
                        variable.exported = true;
                    }
                }
                _ => {}
            }
        }
    }

    fn unset(&mut self, node: Node<'_>, text: &str) {
        let mut cursor = node.walk();
        for child in node
            .named_children(&mut cursor)
            .filter(|child| child.kind() == "variable_name")
        {
            let name = text[child.byte_range()].to_owned();
            self.state.variables.remove(&name);
            self.state.unset.insert(name);
        }
    }

    fn define(&mut self, node: Node<'_>, text: &str) {
        if let (Some(name), Some(body)) = (
            node.child_by_field_name("name"),
            node.child_by_field_name("body"),
        ) {
            let lines_before = self.line_of(body) - 1;
            let body = text[body.byte_range()].to_owned();
            self.functions
                .insert(text[name.byte_range()].to_owned(), (body, lines_before));
        }
    }

    pub(super) fn exported(&self) -> BTreeMap<String, Word> {
        let variables = self
            .state
            .variables
            .iter()
            .filter(|(_, variable)| variable.exported);
        variables
            .filter_map(|(name, variable)| match &variable.value {
                Value::Scalar(word) if is_name(name) => Some((name.clone(), word.clone())),
                _ => None, // arrays are not passed on
            })
            .collect()
    }

    /// A path of the script, from its working directory on.
    pub(super) fn below(&self, path: &Word) -> Word {
        match (path.known(), self.state.folder.known()) {
            (Some(path), _) if path.starts_with('/') => Word::Known(path.to_owned()),
            (Some(path), Some(folder)) => {
                Word::Known(clean(&Utf8Path::new(folder).join(path)).to_string())
            }
            (Some(path), None) => Word::unknown(path, reason(&self.state.folder)),
            (None, _) => path.clone(),
        }
    }

    pub(super) fn note(&mut self, note: String) {
        if !self.facts.notes.contains(&note) {
            self.facts.notes.push(note);
        }
    }

    pub(super) fn positional(&self) -> Option<&Vec<Word>> {
        self.frames.last()?.arguments.as_ref()
    }

    /// A positional parameter.
    pub(super) fn argument(&self, position: usize, written: &str) -> Word {
        match self.positional() {
            Some(arguments) => arguments
                .get(position.wrapping_sub(1))
                .cloned()
                .unwrap_or_else(|| Word::Known(String::new())),
            None => Word::unknown(written, format!("argument {position} of the script")),
        }
    }

    /// All positional parameters.
    pub(super) fn arguments(&self, written: &str) -> Vec<Word> {
        match self.positional() {
            Some(arguments) => arguments.clone(),
            None => vec![Word::unknown(written, "the arguments of the script")],
        }
    }

    /// A variable of the script.
    pub(super) fn value(&self, name: &str) -> Option<&Value> {
        self.state
            .variables
            .get(name)
            .map(|variable| &variable.value)
    }

    /// A variable of the script, else of the environment; the first element of an array.
    pub(super) fn lookup(&self, name: &str) -> Option<Word> {
        match self.value(name) {
            Some(Value::Scalar(word)) => Some(word.clone()),
            Some(Value::List(words)) => words.first().cloned(),
            None if self.state.unset.contains(name) => None,
            None if name == "PWD" => Some(self.state.folder.clone()),
            None => (self.surroundings.variable)(name).map(Word::Known),
        }
    }

    /// The file being read.
    pub(super) fn script(&self) -> &Utf8Path {
        self.frames
            .last()
            .map_or(Utf8Path::new(""), |frame| &frame.file)
    }

    /// The line of the file that `node` starts at, from 1.
    pub(super) fn line_of(&self, node: Node<'_>) -> usize {
        let before = self.frames.last().map_or(0, |frame| frame.lines_before);
        before + node.start_position().row + 1
    }

    /// The working directory.
    pub(super) fn folder(&self) -> &Word {
        &self.state.folder
    }
}

pub(super) fn reason(word: &Word) -> String {
    match word {
        Word::Known(_) => "nothing".to_owned(),
        Word::Unknown { why, .. } => why.clone(),
    }
}

fn appended(present: Option<&Value>, more: Value, name: &str) -> Value {
    match (present, more) {
        (None, more) => more,
        (Some(Value::List(words)), Value::List(more)) => {
            Value::List(words.iter().cloned().chain(more).collect())
        }
        (Some(Value::Scalar(Word::Known(text))), Value::Scalar(Word::Known(more))) => {
            Value::Scalar(Word::Known(format!("{text}{more}")))
        }
        (Some(Value::Scalar(unknown @ Word::Unknown { .. })), _) => Value::Scalar(unknown.clone()),
        (_, Value::Scalar(unknown @ Word::Unknown { .. })) => Value::Scalar(unknown),
        _ => Value::Scalar(Word::unknown(name, "text appended to an array")),
    }
}

/// `a/./b/../c` as `a/c`, by text alone.
pub(super) fn clean(path: &Utf8Path) -> Utf8PathBuf {
    let mut clean = Utf8PathBuf::new();
    for part in path.components() {
        match part.as_str() {
            "." => {}
            ".." if clean.file_name().is_some() => {
                clean.pop();
            }
            part => clean.push(part),
        }
    }
    clean
}

fn first_error(node: Node<'_>) -> Option<Node<'_>> {
    if !node.has_error() {
        return None;
    }
    if node.is_error() || node.is_missing() {
        return Some(node);
    }
    let mut cursor = node.walk();
    node.children(&mut cursor).find_map(first_error)
}
